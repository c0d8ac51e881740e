"""Distributed training on one or several nodes. A single process runs the same code without communication.

Start it with torchrun, or with srun and torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT). Gradients use NCCL between GPUs and gloo between CPUs. Host-side values always use gloo, so that no host
waits for its GPU.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from cli import Stopped, UserError, resolve_device

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

GROUP_TIMEOUT = timedelta(hours=12)  # the main process may pack a large data set while the others wait


class Processes:
    """Collective operations of the processes of a run. A single process has rank 0 and world size 1."""

    def __init__(self, rank: int = 0, world_size: int = 1):
        self.rank, self.world_size = rank, world_size
        self.cpu_group: distributed.ProcessGroup | None = None
        if world_size > 1:
            group = distributed.new_group(backend="gloo", timeout=GROUP_TIMEOUT)
            assert isinstance(group, distributed.ProcessGroup)
            self.cpu_group = group

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def rank_slice(self, items: int) -> slice:
        """This rank's slice of a sequence of `items`, as even as possible, in rank order."""
        # rounded up: rank 0, which draws the pictures, gets an item even if there are too few for all
        start, stop = (-(-items * rank // self.world_size) for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the body in the main process first, then in the others, which find the files that it wrote.

        In the others, raises UserError if the body failed in the main process, or Stopped if a signal stopped it there.
        """
        if not self.is_main and (failure := self.broadcast_from_main(None)):
            raise failure
        failure = UserError("the main process has failed, see its message")
        try:
            yield
            failure = None
        except Stopped as stopped:
            failure = stopped
            raise
        finally:
            if self.is_main:
                self.broadcast_from_main(failure)

    def broadcast_from_main(self, value: Any) -> Any:
        """Broadcast a Python or NumPy value from the main process; returns it on all ranks."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self.cpu_group)
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Gather each rank's value, in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.cpu_group)
        return values

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank. Hosts wait for each other, not for their devices."""
        if self.world_size == 1:
            return list(flags)
        reduced = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(reduced, distributed.ReduceOp.MAX, group=self.cpu_group)
        return reduced.bool().tolist()

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the ranks, on the training device; the host does not wait for it."""
        if self.world_size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.world_size

    def average_running_statistics(self, statistics: list[Tensor]) -> None:
        """Average batch norm's running statistics over the ranks, in place; a no-op with SyncBatchNorm."""
        if self.world_size == 1 or statistics[0].is_cuda:  # SyncBatchNorm keeps them equal
            return
        means = self.all_reduce_mean(torch.cat([statistic.flatten() for statistic in statistics]))
        for statistic, mean in zip(statistics, means.split([s.numel() for s in statistics]), strict=True):
            statistic.copy_(mean.view_as(statistic))

    def broadcast_weights(self, model: nn.Module) -> None:
        """Broadcast the main process's weights and running statistics, in place."""
        if self.world_size > 1:
            for value in model.state_dict().values():
                distributed.broadcast(value, src=0)

    def data_parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model in DistributedDataParallel, on GPUs with SyncBatchNorm; a no-op for a single process."""
        if self.world_size == 1:
            return model
        if device.type != "cuda":  # SyncBatchNorm does not run on a CPU
            return DistributedDataParallel(model)
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the same weights
        return DistributedDataParallel(model, device_ids=[device])

    def gradient_sync(self, model: nn.Module, enabled: bool) -> AbstractContextManager:
        """Context of a forward and backward pass of the wrapped model; gradients are reduced only if `enabled`."""
        return nullcontext() if enabled or not isinstance(model, DistributedDataParallel) else model.no_sync()


@contextmanager
def process_group(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Join the process group that the environment describes; yields it and this rank's device.

    Args:
        device: as for resolve_device(); 'auto' and 'cuda' mean one GPU per process.

    Raises UserError if the device is unavailable, the other processes are unreachable, or SLURM set no ranks.
    """
    _require_ranks()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Processes(), resolve_device(device)
        return
    rank_device = _rank_device(device)
    try:
        distributed.init_process_group("nccl" if rank_device.type == "cuda" else "gloo")
        group = Processes(distributed.get_rank(), distributed.get_world_size())
    except (ValueError, RuntimeError) as error:
        raise UserError(f"can't connect the processes of WORLD_SIZE: {error}") from None
    yield group, rank_device
    distributed.destroy_process_group()  # not after an error: the other processes may be waiting for this one


def _require_ranks() -> None:
    """Raise UserError if SLURM started several processes that would each train alone."""
    tasks = os.environ.get("SLURM_NTASKS") or "1"
    if tasks != "1" and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise UserError(
            f"SLURM_NTASKS is {tasks}, but RANK and WORLD_SIZE are not set, so each process would train alone: use "
            "srun bash cluster/rank.sh python train.py, or SLURM_NTASKS=1 for a single process"
        )


def _rank_device(device: str) -> torch.device:
    rank_device = resolve_device(device)
    if rank_device.type == "cpu":
        return rank_device
    if rank_device.index is not None:
        raise UserError(f"--device {device} with several processes: use --device cuda, each process takes its own GPU")
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError("several processes and several GPUs: set LOCAL_RANK to the GPU of each process")
    # a launcher may show each process only its own GPU
    rank_device = resolve_device(f"cuda:{os.environ['LOCAL_RANK'] if torch.cuda.device_count() > 1 else 0}")
    torch.cuda.set_device(rank_device)
    return rank_device
