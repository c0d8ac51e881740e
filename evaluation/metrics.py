"""Depth and segmentation metrics, in one place for training and evaluation.

Depth: Eigen et al., NeurIPS 2014 (arXiv:1406.2283) and the KITTI and NYU benchmarks that follow it. There is no scale
alignment. Every metric is computed twice: pooled over all pixels, and averaged over images.
Segmentation: one confusion matrix over the whole set; IoU = TP / (TP + FP + FN) per class; mIoU is its mean over the
classes that occur in the reference or the prediction.

evaluation.pixels defines the valid pixels. A valid pixel without a prediction counts as an error and is never skipped:
otherwise a student could improve its metrics by predicting less.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DepthErrors:
    """Depth errors of the N valid pixels of one image, N >= 1.

    Attributes:
        prediction: float64 [N], metres within the evaluated range, missing predictions replaced.
        target: float64 [N], metres.
        has_prediction: bool [N].
        indices: int64 [N], the pixels' positions in the flattened image.
        unclipped: float64 [N], the prediction before it is clipped to the range.
        depth_range: the evaluated range in metres.
        per_pixel: {quantity: float64 [N]}: count, which is 1, squared, squared_log and log, of the differences, and
            those whose means are DepthMetrics.MEAN_METRICS.
        median_ratio: median of prediction / target before clipping.
    """

    prediction: Tensor
    target: Tensor
    has_prediction: Tensor
    indices: Tensor
    unclipped: Tensor
    depth_range: tuple[float, float]

    def __post_init__(self) -> None:
        p, r = self.prediction, self.target
        difference, log_difference = p - r, p.log() - r.log()
        ratio = torch.maximum(p / r, r / p)
        self.per_pixel = {
            "count": torch.ones_like(p),
            "squared": difference**2,
            "squared_log": log_difference**2,
            "log": log_difference,
            "mae": difference.abs(),
            "abs_rel": difference.abs() / r,
            "sq_rel": difference**2 / r,
            "log10": (p.log10() - r.log10()).abs(),
            **{f"delta{power}": ((ratio < 1.25**power) & self.has_prediction).double() for power in (1, 2, 3)},
        }
        self.median_ratio = (self.unclipped / r).median().item()

    def aligned(self) -> dict[str, Tensor]:
        """The quantities squared, abs_rel and delta1 of per_pixel after median alignment.

        The image's depth is divided by its median ratio to the reference, as the robot scales the student's depth to
        its sensor's. Zhou et al. (CVPR 2017, arXiv:1704.07813) take the ratio of the medians instead. A missing
        prediction stays wrong, and does not count for the median.
        """
        scale, has_prediction = self.median_ratio, self.has_prediction
        if not has_prediction.all() and has_prediction.any():
            scale = (self.unclipped / self.target)[has_prediction].median().item()
        p = torch.where(has_prediction, self.unclipped / scale, self.prediction).clamp(*self.depth_range)
        r, difference = self.target, p - self.target
        delta1 = (p < 1.25 * r) & (r < 1.25 * p) & has_prediction
        return {"squared": difference**2, "abs_rel": difference.abs() / r, "delta1": delta1.double()}


def depth_errors(
    predicted: Tensor, reference: Tensor, mask: Tensor, min_depth: float, max_depth: float
) -> DepthErrors | None:
    """Depth errors of one image at its valid pixels; None if it has none.

    Args:
        predicted: metres [H,W]; NaN or <= 0 where there is no prediction. A missing prediction counts as the end of
            the range that is farther from the reference, and fails every delta threshold.
        reference: metres [H,W].
        mask: bool [H,W], valid pixels, where the reference must be within the range.
        min_depth: start of the evaluated range in metres; predictions are clipped to it.
        max_depth: end of that range.
    """
    indices = _indices(mask)
    prediction, target = (values.flatten().index_select(0, indices).double() for values in (predicted, reference))
    if not len(target):
        return None
    has_prediction = prediction > 0
    if not has_prediction.all():
        min_is_farther = target - min_depth > max_depth - target
        prediction = torch.where(has_prediction, prediction, torch.where(min_is_farther, min_depth, max_depth))
    clipped = prediction.clamp(min_depth, max_depth)
    return DepthErrors(clipped, target, has_prediction, indices, prediction, (min_depth, max_depth))


class DepthMetrics:
    """Accumulates depth metrics: add images with update(), then call compute()."""

    MEAN_METRICS = ("mae", "abs_rel", "sq_rel", "log10", "delta1", "delta2", "delta3")

    def __init__(self, min_depth: float, max_depth: float):
        """min_depth, max_depth: the evaluated range in metres; predictions are clipped to it."""
        self.min_depth, self.max_depth = min_depth, max_depth
        # floats, not tensors: long-lived small tensors would keep the heap from shrinking
        self.sums: list[list[float]] = []  # one list per image, the sums of DepthErrors.per_pixel
        self.median_ratios: list[float] = []

    def update(self, predicted: Tensor, reference: Tensor, mask: Tensor) -> DepthErrors | None:
        """Add one image, with the arguments of depth_errors(); returns its errors, None without valid pixels."""
        errors = depth_errors(predicted, reference, mask, self.min_depth, self.max_depth)
        if errors:
            self.median_ratios.append(errors.median_ratio)
            self.sums.append(torch.stack([values.sum() for values in errors.per_pixel.values()]).tolist())
        return errors

    def merge(self, other: "DepthMetrics") -> None:
        """Add the images of a second accumulator."""
        self.sums += other.sums
        self.median_ratios += other.median_ratios

    def compute(self) -> dict[str, float]:
        """Return all metrics, pooled over pixels as '<name>' and averaged over images as 'image_<name>'.

        Units: rmse, mae and sq_rel are in metres; silog is 100 times the standard deviation of the log difference, as
        KITTI defines it; deltas and abs_rel are fractions. 'median_ratio' is the median over images of each image's
        median of predicted / reference; 1 means a correct scale. All are NaN if there were no valid pixels.
        """
        if not self.sums:
            names = ("rmse", "rmse_log", "silog", *self.MEAN_METRICS)
            undefined = {prefix + name: float("nan") for prefix in ("", "image_") for name in names}
            return undefined | {"median_ratio": float("nan")}
        sums = torch.tensor(self.sums, dtype=torch.float64)
        pooled = self._metrics(sums.sum(dim=0, keepdim=True))
        per_image = self._metrics(sums)
        return (
            {name: value.item() for name, value in pooled.items()}
            | {f"image_{name}": value.mean().item() for name, value in per_image.items()}
            | {"median_ratio": torch.tensor(self.median_ratios, dtype=torch.float64).median().item()}
        )

    def _metrics(self, sums: Tensor) -> dict[str, Tensor]:
        """Metrics {name: [N]} of N rows of sums of DepthErrors.per_pixel, [N,11]."""
        means = sums / sums[:, :1]  # the first term counts the pixels
        variance = (means[:, 2] - means[:, 3] ** 2).clamp(min=0)
        metrics = {"rmse": means[:, 1].sqrt(), "rmse_log": means[:, 2].sqrt(), "silog": 100 * variance.sqrt()}
        return metrics | dict(zip(self.MEAN_METRICS, means[:, 4:].unbind(dim=1), strict=True))


def _indices(mask: Tensor) -> Tensor:
    """Positions of a mask's pixels in the flattened image; selecting by them is three times as fast as map[mask]."""
    return mask.flatten().nonzero().squeeze(1)


def class_metrics(counts: Tensor) -> dict[str, Tensor]:
    """Metrics of confusion matrices, float64 [...,C,C+1]: miou [...], pixel_accuracy [...] and iou [...,C].

    NaN for a class that does not occur, and where there were no pixels.
    """
    classes = counts.shape[-2]
    true_positives = counts[..., :classes].diagonal(dim1=-2, dim2=-1)
    iou = true_positives / (counts.sum(dim=-2)[..., :classes] + counts.sum(dim=-1) - true_positives)
    accuracy = true_positives.sum(dim=-1) / counts.sum(dim=(-2, -1))
    return {"miou": iou.nanmean(dim=-1), "pixel_accuracy": accuracy, "iou": iou}


class ConfusionMatrix:
    """Counts [C,C+1] of (reference class, predicted class) over a set; the last column counts missing predictions."""

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor, mask: Tensor, cells: Tensor | None = None) -> Tensor:
        """Add class maps of the same shape, any integer dtype.

        Args:
            predicted: class ids; any other value, such as 255, is a missing prediction and counts as wrong.
            reference: class ids at the valid pixels.
            mask: bool, valid pixels.
            cells: uint8, divides the pixels; None: all are in cell 0.

        Returns the counts of each cell, int64 [256,C,C+1]; [1,C,C+1] without cells.
        """
        indices = _indices(mask)
        prediction, target = (classes.flatten().index_select(0, indices).long() for classes in (predicted, reference))
        prediction = torch.where((prediction >= 0) & (prediction < self.classes), prediction, self.classes)
        pair, cell_count = target * (self.classes + 1) + prediction, 1
        if cells is not None:
            pair += cells.flatten().index_select(0, indices).long() * self.counts.numel()
            cell_count = 256
        counts = torch.bincount(pair, minlength=cell_count * self.counts.numel()).cpu()
        counts = counts.reshape(cell_count, *self.counts.shape)
        self.counts += counts.sum(dim=0)
        return counts

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of a second matrix."""
        self.counts += other.counts

    def compute(self) -> dict[str, float | list[float]]:
        """Return miou and pixel_accuracy, fractions; iou per class, NaN for a class that does not occur."""
        metrics = class_metrics(self.counts.double())
        return {
            "miou": metrics["miou"].item(),
            "pixel_accuracy": metrics["pixel_accuracy"].item(),
            "iou": metrics["iou"].tolist(),
        }
