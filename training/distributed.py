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

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cli import UserError, resolve_device

LONGEST_WAIT = timedelta(hours=12)  # of processes for the first one, which packs a data set of any size


class Processes:
    """The processes of a run; rank and size are 0 and 1 for one that is alone."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.hosts = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) if size > 1 else None

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This process's share of a sequence: as even as can be, in the order of the ranks."""
        first, last = (items * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The body runs in the main process, then in all others: they find the files that it has written."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            distributed.barrier(self.hosts)

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
        return nullcontext() if complete or self.size == 1 else model.no_sync()


@contextmanager
def processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that this one was started with, and its own device.

    Args:
        device: as for resolve_device(); 'auto' and 'cuda' mean a GPU a process.

    Raises UserError when the device can't be had, or the environment names processes that can't be reached.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(), resolve_device(device)
        return
    own = resolve_device(device)
    if own.type == "cuda":
        own = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    except (ValueError, distributed.DistError) as error:
        raise UserError(f"the processes named by WORLD_SIZE don't find each other: {error}") from None
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size()), own
    finally:
        distributed.destroy_process_group()
