"""Depth and segmentation metrics, in one place for training and evaluation.

Depth: Eigen et al., NeurIPS 2014 (arXiv:1406.2283) and the KITTI and NYU benchmarks that follow it. Every metric is
given twice: pooled over all pixels, and as the mean over images. There is no scale alignment.
Segmentation: one confusion matrix over the whole set; IoU = TP / (TP + FP + FN) a class, mIoU its mean over the
classes that occur in reference or prediction.

Which pixels count is said by evaluation.pixels. A pixel that counts and has no answer is an error, never left out: else
the less a student says, the better it would look.
"""

import torch
from torch import Tensor


class DepthMetrics:
    """Sums that depth metrics are made of, per image and over all; add images with update(), read with compute()."""

    ERRORS = ("mae", "abs_rel", "sq_rel", "log10", "delta1", "delta2", "delta3")

    def __init__(self, min_depth: float, max_depth: float):
        """min_depth, max_depth: the range of what is scored, in metres; answers outside are taken as its ends."""
        self.min_depth, self.max_depth = min_depth, max_depth
        # numbers, not tensors: small tensors that stay between large ones that go keep the heap from shrinking
        self.sums: list[list[float]] = []  # one row an image, see _row()
        self.median_ratios: list[float] = []

    def update(self, predicted: Tensor, reference: Tensor, scored: Tensor) -> None:
        """Add one image.

        Args:
            predicted: metres [H,W]; NaN, 0 or less where there is no answer. That counts as the end of the range that
                is farther from the reference, and as wrong for every delta.
            reference: metres [H,W].
            scored: bool [H,W], the pixels that count; the reference lies within the range there.
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
        """Add the images that another one has seen."""
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
        """All metrics, pooled over pixels under their own name and as mean over images under 'image_<name>'.

        Units: rmse, mae, sq_rel in metres; silog is 100 times the standard deviation of the log difference, as KITTI
        defines it; deltas and abs_rel are fractions. 'median_ratio' is the median over images of each image's median
        of predicted / reference: 1 when the scale is right. NaN everywhere when no pixel was scored.
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
    """The values of each map where a mask is true, a third of the time of indexing by the mask."""
    places = scored.flatten().nonzero().squeeze(1)
    return [values.flatten().index_select(0, places) for values in maps]


class ConfusionMatrix:
    """Counts [C,C+1] of (reference class, predicted class) over a whole set; the last column is for no answer."""

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor, scored: Tensor) -> None:
        """Add class maps of one shape, any integer dtype.

        Args:
            predicted: a class; any other number, such as 255, is no answer, which is wrong.
            reference: a class where scored.
            scored: bool, the pixels that count.
        """
        answer, truth = (classes.long() for classes in _selected(scored, predicted, reference))
        answer = torch.where((answer >= 0) & (answer < self.classes), answer, self.classes)
        counts = torch.bincount(truth * (self.classes + 1) + answer, minlength=self.counts.numel())
        self.counts += counts.reshape(self.counts.shape).cpu()

    def extend(self, other: "ConfusionMatrix") -> None:
        """Add the pixels that another one has counted."""
        self.counts += other.counts

    def compute(self) -> dict[str, float | list[float]]:
        """miou, pixel_accuracy (fractions) and iou, one a class, NaN for a class that occurs nowhere."""
        counts = self.counts.double()
        hits = counts.diag()
        iou = hits / (counts.sum(dim=0)[: self.classes] + counts.sum(dim=1) - hits)
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (hits.sum() / counts.sum()).item(),
            "iou": iou.tolist(),
        }
