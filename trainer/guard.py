"""Skip and count steps with a non-finite loss; several in a row end the run."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MAX_CONSECUTIVE_SKIPS = 3  # at this many the run ends


class FiniteGuard:
    """Checks each step on the device, so that the host never waits for a loss.

    The optimizer must be a fused one of torch, which skips a step if its `found_inf` is 1, as for GradScaler.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, device: torch.device):
        self.optimizer: Any = optimizer  # torch does not declare found_inf
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # of batch norm
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)  # skipped, in a row, most in a row, last
        self.seen = torch.zeros(4, dtype=torch.int64, pin_memory=device.type == "cuda")

    def begin_step(self) -> None:
        """Save what the forward pass changes; call before it."""
        self.kept = torch._foreach_mul(self.statistics, 1.0)

    def skip_if_not_finite(self, loss: Tensor, gradient_norm: Tensor, step: int) -> Tensor:
        """Make the optimizer skip the step if loss or gradient norm is not finite, and restore the running statistics.

        Call it between backward() and the optimizer's step. loss and gradient_norm are scalars, step is its number.
        Returns the loss, or 0 for a skipped step.
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
        """Whether MAX_CONSECUTIVE_SKIPS steps in a row were skipped, as far as known without waiting for the device."""
        return int(self.seen[2]) >= MAX_CONSECUTIVE_SKIPS

    @property
    def skipped(self) -> int:
        """Number of skipped steps; waits for the device."""
        return int(self.counts[0])

    @property
    def most_consecutive_skips(self) -> int:
        """Largest number of consecutive skips; waits for the device."""
        return int(self.counts[2])

    @property
    def last_skipped(self) -> int:
        """Number of the last skipped step; waits for the device."""
        return int(self.counts[3])

    def state_dict(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of state_dict()."""
        self.counts.copy_(state["counts"])
        self.seen.copy_(state["counts"])
