"""Depth and segmentation metrics, in one place for training and evaluation.

Depth: Eigen et al., NeurIPS 2014 (arXiv:1406.2283) and the KITTI and NYU benchmarks that follow it. Every metric is
computed twice: pooled over all pixels, and as the mean over images, without scale alignment.
Segmentation: one confusion matrix over the whole set; IoU = TP / (TP + FP + FN) per class, mIoU its mean over the
classes that occur in reference or prediction.

evaluation.pixels defines the valid pixels. A valid pixel without a prediction is an error and is never skipped:
otherwise a student would improve by predicting less.
"""

import torch
from torch import Tensor


class DepthMetrics:
    """Accumulates depth metrics per image and over all images; add images with update(), read with compute()."""

    ERRORS = ("mae", "abs_rel", "sq_rel", "log10", "delta1", "delta2", "delta3")

    def __init__(self, min_depth: float, max_depth: float):
        """min_depth, max_depth: scored range in metres; predictions are clipped to it."""
        self.min_depth, self.max_depth = min_depth, max_depth
        # numbers, not tensors: small tensors that stay keep the heap from shrinking
        self.sums: list[list[float]] = []  # one row per image, see _row()
        self.median_ratios: list[float] = []

    def update(self, predicted: Tensor, reference: Tensor, scored: Tensor) -> None:
        """Add one image.

        Args:
            predicted: metres [H,W]; NaN, 0 or less where there is no prediction, which counts as the end of the range
                that is farther from the reference, and as wrong for every delta.
            reference: metres [H,W].
            scored: bool [H,W], the valid pixels; the reference is within the range there.
        """
        answer, truth = (values.double() for values in _selected(scored, predicted, reference))
        if not len(truth):
            return
        answered = answer > 0
        if not answered.all():
            nearest_is_farther = truth - self.min_depth > self.max_depth - truth
            answer = torch.where(answered, answer, torch.where(nearest_is_farther, self.min_depth, self.max_depth))
        self.median_ratios.append((answer / truth).median().item())
        self.sums.append(self._row(answer.clamp(self.min_depth, self.max_depth), truth, answered).tolist())

    def extend(self, other: "DepthMetrics") -> None:
        """Merge the images of another accumulator."""
        self.sums += other.sums
        self.median_ratios += other.median_ratios

    @staticmethod
    def _row(p: Tensor, r: Tensor, answered: Tensor) -> Tensor:
        difference, log_difference = p - r, p.log() - r.log()
        ratio = torch.maximum(p / r, r / p)
        per_pixel = [
            torch.ones_like(p),
            difference**2,
            log_difference**2,
            log_difference,
            difference.abs(),
            difference.abs() / r,
            difference**2 / r,
            (p.log10() - r.log10()).abs(),
            *(((ratio < 1.25**power) & answered).double() for power in (1, 2, 3)),
        ]
        return torch.stack([values.sum() for values in per_pixel])

    def compute(self) -> dict[str, float]:
        """All metrics: pooled over pixels as '<name>', and averaged over images as 'image_<name>'.

        Units: rmse, mae, sq_rel in metres; silog is 100 times the standard deviation of the log difference, as KITTI
        defines it; deltas and abs_rel are fractions. 'median_ratio' is the median over images of each image's median
        of predicted / reference; 1 means the right scale. All NaN if no pixel was scored.
        """
        if not self.sums:
            names = ("rmse", "rmse_log", "silog", *self.ERRORS)
            nothing = {prefix + name: float("nan") for prefix in ("", "image_") for name in names}
            return nothing | {"median_ratio": float("nan")}
        rows = torch.tensor(self.sums, dtype=torch.float64)
        pooled = self._metrics(rows.sum(dim=0, keepdim=True))
        mean = self._metrics(rows)
        return (
            {name: value.item() for name, value in pooled.items()}
            | {f"image_{name}": value.mean().item() for name, value in mean.items()}
            | {"median_ratio": torch.tensor(self.median_ratios, dtype=torch.float64).median().item()}
        )

    def _metrics(self, rows: Tensor) -> dict[str, Tensor]:
        means = rows / rows[:, :1]
        variance = (means[:, 2] - means[:, 3] ** 2).clamp(min=0)
        metrics = {"rmse": means[:, 1].sqrt(), "rmse_log": means[:, 2].sqrt(), "silog": 100 * variance.sqrt()}
        return metrics | dict(zip(self.ERRORS, means[:, 4:].unbind(dim=1), strict=True))


def _selected(scored: Tensor, *maps: Tensor) -> list[Tensor]:
    """Values of each map where a mask is true; equals map[mask], in a third of the time."""
    places = scored.flatten().nonzero().squeeze(1)
    return [values.flatten().index_select(0, places) for values in maps]


class ConfusionMatrix:
    """Counts [C,C+1] of (reference class, predicted class) over a set; the last column counts missing predictions."""

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor, scored: Tensor) -> None:
        """Add class maps of one shape, any integer dtype.

        Args:
            predicted: class ids; any other value, such as 255, is a missing prediction, which is wrong.
            reference: class ids where scored.
            scored: bool, the valid pixels.
        """
        answer, truth = (classes.long() for classes in _selected(scored, predicted, reference))
        answer = torch.where((answer >= 0) & (answer < self.classes), answer, self.classes)
        counts = torch.bincount(truth * (self.classes + 1) + answer, minlength=self.counts.numel())
        self.counts += counts.reshape(self.counts.shape).cpu()

    def extend(self, other: "ConfusionMatrix") -> None:
        """Merge the counts of another matrix."""
        self.counts += other.counts

    def compute(self) -> dict[str, float | list[float]]:
        """Return miou and pixel_accuracy, fractions; iou per class, NaN for a class that does not occur."""
        counts = self.counts.double()
        hits = counts.diag()
        iou = hits / (counts.sum(dim=0)[: self.classes] + counts.sum(dim=1) - hits)
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (hits.sum() / counts.sum()).item(),
            "iou": iou.tolist(),
        }
