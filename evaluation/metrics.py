"""Depth and segmentation metrics, in one place for training and evaluation.

Depth: Eigen et al., NeurIPS 2014 (arXiv:1406.2283) and the KITTI and NYU benchmarks that follow it. There is no scale
alignment. Every metric is computed twice: pooled over all pixels, and averaged over images.
Segmentation: one confusion matrix over the whole set; IoU = TP / (TP + FP + FN) per class; mIoU is its mean over the
classes that occur in the reference or the prediction.

evaluation.pixels defines the valid pixels. A valid pixel without a prediction counts as an error and is never skipped:
otherwise a student could improve its metrics by predicting less.
"""

import torch
from torch import Tensor


class DepthMetrics:
    """Accumulates depth metrics: add images with update(), then call compute()."""

    MEAN_METRICS = ("mae", "abs_rel", "sq_rel", "log10", "delta1", "delta2", "delta3")

    def __init__(self, min_depth: float, max_depth: float):
        """min_depth, max_depth: the evaluated range in metres; predictions are clipped to it."""
        self.min_depth, self.max_depth = min_depth, max_depth
        # floats, not tensors: long-lived small tensors would keep the heap from shrinking
        self.sums: list[list[float]] = []  # one list per image, see _image_sums()
        self.median_ratios: list[float] = []

    def update(self, predicted: Tensor, reference: Tensor, mask: Tensor) -> None:
        """Add one image.

        Args:
            predicted: metres [H,W]; NaN or <= 0 where there is no prediction. Such a pixel is scored as if min_depth or
                max_depth were predicted, whichever has the larger error, and fails every delta threshold.
            reference: metres [H,W]; within the evaluated range at all valid pixels.
            mask: bool [H,W], valid pixels.
        """
        prediction, target = (values.double() for values in _select(mask, predicted, reference))
        if not len(target):
            return
        has_prediction = prediction > 0
        if not has_prediction.all():
            min_is_farther = target - self.min_depth > self.max_depth - target
            prediction = torch.where(
                has_prediction, prediction, torch.where(min_is_farther, self.min_depth, self.max_depth)
            )
        self.median_ratios.append((prediction / target).median().item())
        self.sums.append(
            self._image_sums(prediction.clamp(self.min_depth, self.max_depth), target, has_prediction).tolist()
        )

    def merge(self, other: "DepthMetrics") -> None:
        """Add the images of a second accumulator."""
        self.sums += other.sums
        self.median_ratios += other.median_ratios

    @staticmethod
    def _image_sums(p: Tensor, r: Tensor, has_prediction: Tensor) -> Tensor:
        """Sum the terms of all metrics over an image: [11], in the order that _metrics() expects.

        p, r, has_prediction: predicted and reference depth, float64 [N], and where there is a prediction, bool [N].
        """
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
            *(((ratio < 1.25**power) & has_prediction).double() for power in (1, 2, 3)),
        ]
        return torch.stack([values.sum() for values in per_pixel])

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
        """Metrics {name: [N]} of N rows of _image_sums(), [N,11]."""
        means = sums / sums[:, :1]  # the first term counts the pixels
        variance = (means[:, 2] - means[:, 3] ** 2).clamp(min=0)
        metrics = {"rmse": means[:, 1].sqrt(), "rmse_log": means[:, 2].sqrt(), "silog": 100 * variance.sqrt()}
        return metrics | dict(zip(self.MEAN_METRICS, means[:, 4:].unbind(dim=1), strict=True))


def _select(mask: Tensor, *maps: Tensor) -> list[Tensor]:
    """Select the values of each map where the mask is true; equivalent to map[mask], but three times as fast."""
    indices = mask.flatten().nonzero().squeeze(1)
    return [values.flatten().index_select(0, indices) for values in maps]


class ConfusionMatrix:
    """Counts [C,C+1] of (reference class, predicted class) over a set; the last column counts missing predictions."""

    def __init__(self, classes: int):
        self.classes = classes
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def update(self, predicted: Tensor, reference: Tensor, mask: Tensor) -> None:
        """Add class maps of the same shape, any integer dtype.

        Args:
            predicted: class ids; any other value, such as 255, is a missing prediction and counts as wrong.
            reference: class ids at the valid pixels.
            mask: bool, valid pixels.
        """
        prediction, target = (classes.long() for classes in _select(mask, predicted, reference))
        prediction = torch.where((prediction >= 0) & (prediction < self.classes), prediction, self.classes)
        counts = torch.bincount(target * (self.classes + 1) + prediction, minlength=self.counts.numel())
        self.counts += counts.reshape(self.counts.shape).cpu()

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of a second matrix."""
        self.counts += other.counts

    def compute(self) -> dict[str, float | list[float]]:
        """Return 'miou' and 'pixel_accuracy', and 'iou', a list by class id with NaN for absent classes; fractions."""
        counts = self.counts.double()
        true_positives = counts.diag()
        iou = true_positives / (counts.sum(dim=0)[: self.classes] + counts.sum(dim=1) - true_positives)
        return {
            "miou": iou.nanmean().item(),
            "pixel_accuracy": (true_positives.sum() / counts.sum()).item(),
            "iou": iou.tolist(),
        }
