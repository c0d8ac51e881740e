"""Depth and segmentation metrics, in one place for training and evaluation.

Depth: Eigen et al., NeurIPS 2014 (arXiv:1406.2283) and the KITTI and NYU benchmarks that follow it. Every metric is
given twice: pooled over all pixels, and as the mean over images. There is no scale alignment.
Segmentation: one confusion matrix over the whole set; IoU = TP / (TP + FP + FN) a class, mIoU its mean over the
classes that occur in reference or prediction.
"""

import torch
from torch import Tensor

# Eigen's crop of NYU's 640x480 frames, rows 45..470 and columns 41..600, as fractions of the height and width.
EIGEN_CROP = (45 / 480, 471 / 480, 41 / 640, 601 / 640)
IGNORE = 255


def eigen_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of an image of the given size that NYU's depth is scored in."""
    top, bottom, left, right = EIGEN_CROP
    return slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))


class DepthMetrics:
    """Sums that depth metrics are made of, per image and over all; add images with update(), read with compute()."""

    ERRORS = ("mae", "abs_rel", "sq_rel", "log10", "delta1", "delta2", "delta3")

    def __init__(self, min_depth: float, max_depth: float):
        """Pixels whose reference lies outside min_depth..max_depth (metres) are not scored."""
        self.min_depth, self.max_depth = min_depth, max_depth
        self.sums: list[Tensor] = []  # one row an image, see _row()
        self.median_ratios: list[Tensor] = []

    def update(self, predicted: Tensor, reference: Tensor) -> None:
        """Add one image: two maps [H,W] in metres; pixels without prediction or reference are 0 or NaN."""
        predicted, reference = predicted.double(), reference.double()
        mask = (reference >= self.min_depth) & (reference <= self.max_depth) & (predicted > 0)
        if mask.any():
            self.median_ratios.append((predicted[mask] / reference[mask]).median().cpu())
            self.sums.append(self._row(predicted[mask].clamp(self.min_depth, self.max_depth), reference[mask]).cpu())

    def extend(self, other: "DepthMetrics") -> None:
        """Add the images that another one has seen."""
        self.sums += other.sums
        self.median_ratios += other.median_ratios

    @staticmethod
    def _row(p: Tensor, r: Tensor) -> Tensor:
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
            *((ratio < 1.25**power).double() for power in (1, 2, 3)),
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
        rows = torch.stack(self.sums)
        pooled = self._metrics(rows.sum(dim=0, keepdim=True))
        mean = self._metrics(rows)
        return (
            {name: value.item() for name, value in pooled.items()}
            | {f"image_{name}": value.mean().item() for name, value in mean.items()}
            | {"median_ratio": torch.stack(self.median_ratios).median().item()}
        )

    def _metrics(self, rows: Tensor) -> dict[str, Tensor]:
        means = rows / rows[:, :1]
        variance = (means[:, 2] - means[:, 3] ** 2).clamp(min=0)
        metrics = {"rmse": means[:, 1].sqrt(), "rmse_log": means[:, 2].sqrt(), "silog": 100 * variance.sqrt()}
        return metrics | dict(zip(self.ERRORS, means[:, 4:].unbind(dim=1), strict=True))


class ConfusionMatrix:
    """Counts of (reference class, predicted class) over a whole set."""

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor) -> None:
        """Add class maps of one shape, any integer dtype; pixels that are 255 in either are not counted."""
        predicted, reference = predicted.long().flatten(), reference.long().flatten()
        mask = (reference != IGNORE) & (predicted != IGNORE)
        index = reference[mask] * self.classes + predicted[mask]
        counts = torch.bincount(index, minlength=self.classes**2)
        self.counts += counts.reshape(self.classes, self.classes).cpu()

    def extend(self, other: "ConfusionMatrix") -> None:
        """Add the pixels that another one has counted."""
        self.counts += other.counts

    def compute(self) -> dict[str, float | list[float]]:
        """miou, pixel_accuracy (fractions) and iou, one a class, NaN for a class that occurs nowhere."""
        counts = self.counts.double()
        hits = counts.diag()
        iou = hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits)
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (hits.sum() / counts.sum()).item(),
            "iou": iou.tolist(),
        }
