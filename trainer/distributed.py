"""Several processes that train one model, on one node or several; a process alone is the same code with nothing to do.

Started by torchrun, or by srun with torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT). Gradients go over NCCL between GPUs and over gloo between CPUs; all that the hosts agree on goes over
gloo, so that no host waits for its GPU.
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

LONGEST_WAIT = timedelta(hours=12)  # of processes for the first one, which packs a data set of any size


class Processes:
    """The processes of a run; rank and size are 0 and 1 for one that is alone."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.hosts: distributed.ProcessGroup | None = None
        if size > 1:
            group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
            assert isinstance(group, distributed.ProcessGroup)
            self.hosts = group

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This process's share of a sequence: as even as can be, in the order of the ranks."""
        # rounded up: where there are too few for all, the main process, which draws the pictures, gets one
        first, last = (-(-items * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The body runs in the main process, then in all others: they find the files that it has written.

        Raises UserError in the others when the body raised in the main one, Stopped when a signal has stopped it.
        """
        if not self.main and (end := self.of_main(None)):
            raise end
        end = UserError("the main process has failed, see its message")
        try:
            yield
            end = None
        except Stopped as stopped:
            end = stopped
            raise
        finally:
            if self.main:
                self.of_main(end)

    def of_main(self, value: Any) -> Any:
        """The main process's value, plain Python or numpy, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self.hosts)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value in the order of the ranks, in all of them."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        distributed.all_gather_object(values, value, group=self.hosts)
        return values

    def any_of(self, *flags: bool) -> list[bool]:
        """Each flag: whether it is set in any process. Hosts wait for each other, not for their devices."""
        if self.size == 1:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(seen, distributed.ReduceOp.MAX, group=self.hosts)
        return seen.bool().tolist()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of a tensor on the training device, which need not wait for it."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.size

    def average_statistics(self, statistics: list[Tensor]) -> None:
        """Give batch norm's running statistics their means over the processes, in place, where each has its own."""
        if self.size == 1 or statistics[0].is_cuda:  # SyncBatchNorm's are the same in all
            return
        means = self.mean(torch.cat([statistic.flatten() for statistic in statistics]))
        for statistic, mean in zip(statistics, means.split([s.numel() for s in statistics]), strict=True):
            statistic.copy_(mean.view_as(statistic))

    def same_start(self, model: nn.Module) -> None:
        """Give all processes the main one's weights and statistics, in place."""
        if self.size > 1:
            for value in model.state_dict().values():
                distributed.broadcast(value, src=0)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model as one that averages its gradients over the processes, and on GPUs batch norm's statistics."""
        if self.size == 1:
            return model
        if device.type != "cuda":  # torch has no such batch norm for the CPU
            return DistributedDataParallel(model)
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, with the same weights
        return DistributedDataParallel(model, device_ids=[device])

    def gradients_of(self, model: nn.Module, complete: bool) -> AbstractContextManager:
        """For a forward and a backward pass of what parallel() returned: gradients are exchanged once complete."""
        return nullcontext() if complete or not isinstance(model, DistributedDataParallel) else model.no_sync()


@contextmanager
def processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that this one was started with, and its own device.

    Args:
        device: as for resolve_device(); 'auto' and 'cuda' mean a GPU a process.

    Raises UserError when the device can't be had, or the environment names processes that can't be reached or that
    don't know of each other.
    """
    _refuse_separate_trainings()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Processes(), resolve_device(device)
        return
    own = _own_device(device)
    try:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
        group = Processes(distributed.get_rank(), distributed.get_world_size())
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes named by WORLD_SIZE don't find each other: {error}") from None
    yield group, own
    distributed.destroy_process_group()  # not after an error: it would wait for processes that wait for this one


def _refuse_separate_trainings() -> None:
    """Raise UserError when SLURM starts several processes that each would train alone."""
    tasks = os.environ.get("SLURM_NTASKS") or "1"
    if tasks != "1" and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise UserError(
            f"SLURM_NTASKS is {tasks}, but RANK and WORLD_SIZE are not set, so that each process would train alone: "
            "start them with srun bash cluster/rank.sh python train.py, or a single one with SLURM_NTASKS=1"
        )


def _own_device(device: str) -> torch.device:
    own = resolve_device(device)
    if own.type == "cpu":
        return own
    if own.index is not None:
        raise UserError(f"--device {device} for several processes: give cuda, each takes a GPU of its own")
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError("several processes and several GPUs: LOCAL_RANK must say which one is this process's")
    # a launcher may show each process its own GPU alone
    own = resolve_device(f"cuda:{os.environ['LOCAL_RANK'] if torch.cuda.device_count() > 1 else 0}")
    torch.cuda.set_device(own)
    return own
