"""A step whose loss is not finite is skipped and counted, and several of them in a row end the run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LARGEST_ROW = 3  # skipped steps in a row that end a run


class FiniteGuard:
    """Judges each step on its own device, so that the host never waits for a loss.

    The optimizer must be a fused one of torch: it leaves out a step whose `found_inf` is 1, as it does for GradScaler.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device):
        self.optimizer: Any = optimizer  # torch declares no found_inf
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # of batch norm
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)  # skipped, in a row, longest row, the last one
        self.seen = torch.zeros(4, dtype=torch.int64, pin_memory=device.type == "cuda")

    def begin_step(self) -> None:
        """Keep what the forward pass changes. Call before it."""
        self.kept = torch._foreach_mul(self.statistics, 1.0)

    def judge(self, loss: Tensor, gradient_norm: Tensor, step: int) -> Tensor:
        """Let the optimizer skip the step when either is not finite, and put back batch norm's statistics.

        Returns the loss, or 0 for a step that is skipped.

        Call between backward() and the optimizer's step; loss and gradient_norm are scalars, step is the step's number.
        """
        finite = loss.isfinite() & gradient_norm.isfinite()
        self.optimizer.found_inf = (~finite).float()
        for statistic, kept in zip(self.statistics, self.kept, strict=True):
            statistic.copy_(torch.where(finite, statistic, kept))
        skipped, row, longest, last = self.counts.unbind()
        row = torch.where(finite, 0, row + 1)
        last = torch.where(finite, last, step)
        self.counts = torch.stack([skipped + (~finite).long(), row, torch.maximum(longest, row), last])
        self.seen.copy_(self.counts, non_blocking=True)
        return torch.where(finite, loss, 0.0)

    @property
    def gave_up(self) -> bool:
        """Whether LARGEST_ROW steps in a row were skipped, as far as the device has told."""
        return int(self.seen[2]) >= LARGEST_ROW

    @property
    def skipped(self) -> int:
        """Steps left out so far; waits for the device."""
        return int(self.counts[0])

    @property
    def longest(self) -> int:
        """The most steps in a row that were left out so far; waits for the device."""
        return int(self.counts[2])

    @property
    def last_skipped(self) -> int:
        """Number of the last step left out; waits for the device."""
        return int(self.counts[3])

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, for a checkpoint."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what state_dict() gave."""
        self.counts.copy_(state["counts"])
        self.seen.copy_(state["counts"])
