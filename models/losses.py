"""Losses: hybrid depth, teacher classes, and edge-aware smoothness."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255  # class of pixels that teach nothing
MIN_CLASS_SHARE = 1e-3  # of the pixels: a class that is rarer counts no more, so that a few wrong labels don't lead


@dataclass
class LossWeights:
    """Weights of the terms of the total loss."""

    depth: float
    segmentation: float
    dice: float
    smoothness: float


def hybrid_depth(
    depth: Tensor, confidence: Tensor, teacher: Tensor, threshold: float, depth_range: tuple[float, float]
) -> Tensor:
    """Depth target: the sensor where its confidence reaches the threshold, the teacher elsewhere.

    Values outside the range are invalid: 65 m of a stereo sensor indoors is an outlier that would outweigh the room.

    Args:
        depth: the sensor's depth, float32 [B,1,H,W], metres, 0 = invalid.
        confidence: of the sensor, float32 [B,1,H,W] in 0..1.
        teacher: the teacher's depth, as depth; all 0 for a frame without a teacher.
        threshold: tau, in 0..1.
        depth_range: minimum and maximum in metres.

    Returns float32 [B,1,H,W], metres, 0 = no target.
    """
    nearest, farthest = depth_range

    def within(values: Tensor) -> Tensor:
        return (values >= nearest) & (values <= farthest)

    return torch.where((confidence >= threshold) & within(depth), depth, torch.where(within(teacher), teacher, 0))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values [B,...] where the mask is true; 0 for an empty mask."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def depth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the pixels with a target, in metres plus in log metres; float32 [B,1,H,W] each.

    In metres alone, a far wall outweighs nearby obstacles; the logarithm adds the relative error.
    """
    mask = target > 0
    log_difference = predicted.log() - torch.where(mask, target, 1).log()
    return masked_mean((predicted - target).abs() + log_difference.abs(), mask)


def segmentation_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy over the pixels with a class.

    logits: [B,C,H,W]; target: integers [B,H,W], 255 = ignore; weight: float32 [B,1,H,W], 0 or more.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    per_pixel = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="none")
    weight = torch.where(target != IGNORE, weight[:, 0], 0)
    return (per_pixel * weight).sum() / weight.sum().clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - Dice, averaged over the classes present in each frame; arguments as for the cross-entropy.

    Dice = 2 * sum(p * t) / (sum(p) + sum(t)) over the frame's weighted pixels, with the class's probability p and its
    target t: Milletari et al., 3DV 2016 (arXiv:1606.04797), section 3, who square the terms of the denominator. In the
    cross-entropy a small object counts by its area; here it counts as much as a wall.
    """
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
    known = target != IGNORE
    of_target = probability.gather(1, torch.where(known, target, 0).long()[:, None])
    classes = logits.shape[1]
    labelled = sum_per_class(weight, target)[:, :classes]
    intersection = sum_per_class(weight * of_target, target)[:, :classes]
    predicted = (probability * torch.where(known[:, None], weight, 0)).sum(dim=(2, 3))
    total = (labelled + predicted).clamp(min=torch.finfo(predicted.dtype).tiny)
    return masked_mean(1 - 2 * intersection / total, labelled > 0)


def sum_per_class(values: Tensor, target: Tensor) -> Tensor:
    """Sums of values [B,1,H,W] over the pixels of each class of each frame: [B,255]; target: integers [B,H,W]."""
    sums = values.new_zeros(len(values), IGNORE + 1)
    return sums.scatter_add(1, target.flatten(1).long(), values.flatten(1))[:, :IGNORE]


def edge_aware_smoothness(depth: Tensor, rgb: Tensor) -> Tensor:
    """Mean gradient of the mean-normalised inverse depth, weighted by exp(-image gradient).

    Godard et al., ICCV 2019 (Monodepth2, arXiv:1806.01260), equation 3. depth [B,1,H,W] metres, rgb [B,3,H,W] in 0..1.
    """
    inverse = 1 / depth
    inverse = inverse / inverse.mean(dim=(2, 3), keepdim=True)
    total = depth.new_zeros(())
    for dim in (2, 3):
        step = inverse.diff(dim=dim).abs()
        edge = rgb.diff(dim=dim).abs().mean(dim=1, keepdim=True)
        total = total + (step * torch.exp(-edge)).mean()
    return total


def class_weights(shares: Tensor, balance: float) -> Tensor:
    """Class weights of the cross-entropy: share ** -balance, normalised to a mean of 1 over the pixels.

    With equal weights a small student learns walls and furniture and misses people. The inverse square root of the
    frequency, balance 0.5, is a common choice: see Cui et al., CVPR 2019 (arXiv:1901.05555).

    Args:
        shares: float32 [C], fraction of the labelled training pixels per class; sums to 1, or to 0 without labels.
        balance: 0 = equal weight per pixel, 1 = equal weight per class.

    Returns float32 [256], indexed by class maps; 0 for labels that are not classes.
    """
    rareness = shares.clamp(min=MIN_CLASS_SHARE).pow(-balance)
    weights = rareness / (rareness * shares).sum() if shares.any() else torch.ones_like(shares)
    return F.pad(weights, (0, IGNORE + 1 - len(shares)))


def target_counts(depth_target: Tensor, seg_target: Tensor, seg_weight: Tensor) -> Tensor:
    """Denominators of the terms of distillation_loss(); the arguments are the same.

    Returns [4] of depth_target's dtype: pixels with depth, sum of the weights of labelled pixels, number of classes
    present summed over the frames, frames.
    """
    pixels = (depth_target > 0).sum().to(depth_target)
    by_class = sum_per_class(seg_weight, seg_target)
    frames = depth_target.new_full((), len(depth_target))  # new_tensor() would wait for the device
    return torch.stack([pixels, by_class.sum(), (by_class > 0).sum().to(depth_target), frames])


def distillation_loss(
    depth: Tensor,
    seg: Tensor,
    rgb: Tensor,
    depth_target: Tensor,
    seg_target: Tensor,
    seg_weight: Tensor,
    weights: LossWeights,
    share: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the loss terms with a non-zero weight, and their weighted sum.

    Args:
        depth: predicted, float32 [B,1,H,W], metres at the reference focal length.
        seg: predicted logits [B,6,H,W].
        rgb: float32 [B,3,H,W] in 0..1.
        depth_target: as depth, 0 = no target.
        seg_target: integers [B,H,W], 255 = ignore.
        seg_weight: float32 [B,1,H,W], weight of each pixel: the teacher's confidence, 0..1, times the class weight, see
            class_weights().
        weights: weights of the terms.
        share: float32 [4], for a micro-batch: its target_counts() divided by the whole batch's. The losses of the
            micro-batches then add up to the batch's, however the targets are distributed.

    Returns scalars 'depth', 'segmentation', 'dice', 'smoothness', without those of weight 0, and 'total'.
    """
    losses: dict[str, Callable[[], Tensor]] = {
        "depth": lambda: depth_l1(depth, depth_target),
        "segmentation": lambda: segmentation_cross_entropy(seg, seg_target, seg_weight),
        "dice": lambda: dice_loss(seg, seg_target, seg_weight),
        "smoothness": lambda: edge_aware_smoothness(depth, rgb),
    }
    shares = [1.0] * len(losses) if share is None else share
    terms = {
        name: loss() * part
        for (name, loss), part in zip(losses.items(), shares, strict=True)
        if getattr(weights, name)
    }
    terms["total"] = sum(getattr(weights, name) * term for name, term in terms.items())
    return terms
