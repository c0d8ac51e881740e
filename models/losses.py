"""Distillation losses and their targets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255  # label of ignored pixels
MIN_CLASS_FREQUENCY = 1e-3  # caps the weight of rarer classes, so that a few wrong labels do not dominate


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

    Values outside the range are invalid: an outlier of 65 m from a stereo sensor would outweigh the whole room.

    Args:
        depth: the sensor's depth, float32 [B,1,H,W], metres, 0 = invalid.
        confidence: the sensor's confidence, float32 [B,1,H,W] in 0..1.
        teacher: the teacher's depth, in the same format; all 0 for a frame without a teacher.
        threshold: confidence threshold, in 0..1.
        depth_range: minimum and maximum depth in metres.

    Returns float32 [B,1,H,W], metres, 0 = no target.
    """
    nearest, farthest = depth_range

    def in_range(values: Tensor) -> Tensor:
        return (values >= nearest) & (values <= farthest)

    return torch.where((confidence >= threshold) & in_range(depth), depth, torch.where(in_range(teacher), teacher, 0))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values [B,...] where the mask is true; 0 for an empty mask."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def depth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """L1 in metres plus L1 in log depth, averaged over the pixels with a target; float32 [B,1,H,W] each.

    With L1 in metres alone, a far wall outweighs nearby obstacles. L1 in log depth measures the relative error.
    """
    mask = target > 0
    log_difference = predicted.log() - torch.where(mask, target, 1).log()
    return masked_mean((predicted - target).abs() + log_difference.abs(), mask)


def segmentation_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy, averaged over the labelled pixels with their weights.

    logits: [B,C,H,W]; target: integers [B,H,W], 255 = ignore; weight: float32 [B,1,H,W], 0 or more.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    per_pixel = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="none")
    weight = torch.where(target != IGNORE, weight[:, 0], 0)
    return (per_pixel * weight).sum() / weight.sum().clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - Dice, averaged over the classes present in each frame; arguments as for the cross-entropy.

    Dice = 2 * sum(p * t) / (sum(p) + sum(t)), with a class's probability p and target t, over the frame's weighted
    pixels: Milletari et al., 3DV 2016 (arXiv:1606.04797), section 3, without the squares in the denominator. The
    cross-entropy weights an object by its area; here a small object counts as much as a wall.
    """
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
    valid = target != IGNORE
    target_probability = probability.gather(1, torch.where(valid, target, 0).long()[:, None])
    classes = logits.shape[1]
    target_sum = sum_per_class(weight, target)[:, :classes]
    intersection = sum_per_class(weight * target_probability, target)[:, :classes]
    predicted_sum = (probability * torch.where(valid[:, None], weight, 0)).sum(dim=(2, 3))
    total = (target_sum + predicted_sum).clamp(min=torch.finfo(predicted_sum.dtype).tiny)
    return masked_mean(1 - 2 * intersection / total, target_sum > 0)


def sum_per_class(values: Tensor, target: Tensor) -> Tensor:
    """Sum values [B,1,H,W] per frame and class: [B,255]; target: integers [B,H,W], 255 = ignore."""
    sums = values.new_zeros(len(values), IGNORE + 1)
    return sums.scatter_add(1, target.flatten(1).long(), values.flatten(1))[:, :IGNORE]


def edge_aware_smoothness(depth: Tensor, rgb: Tensor) -> Tensor:
    """Mean gradient of the mean-normalised inverse depth, weighted by exp(-image gradient): less at edges.

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


def class_weights(frequencies: Tensor, balance: float) -> Tensor:
    """Weight per class: frequency ** -balance, normalised to a mean of 1 over the pixels.

    With equal weights, a small student learns walls and furniture and misses people. A balance of 0.5, the inverse
    square root of the frequency, is a common choice: see Cui et al., CVPR 2019 (arXiv:1901.05555).

    Args:
        frequencies: float32 [C], fraction of the labelled training pixels per class; they sum to 1, or to 0 if no pixel
            is labelled.
        balance: 0 = equal weight per pixel, 1 = equal weight per class.

    Returns float32 [256], a lookup table by class id; 0 for other labels.
    """
    unnormalised = frequencies.clamp(min=MIN_CLASS_FREQUENCY).pow(-balance)
    weights = unnormalised / (unnormalised * frequencies).sum() if frequencies.any() else torch.ones_like(frequencies)
    return F.pad(weights, (0, IGNORE + 1 - len(frequencies)))


def loss_denominators(depth_target: Tensor, seg_target: Tensor, seg_weight: Tensor) -> Tensor:
    """Denominators of the terms of distillation_loss(); the arguments are the same.

    Returns [4] of depth_target's dtype: number of pixels with depth, summed weight of the labelled pixels, number of
    classes present summed over the frames, number of frames.
    """
    pixels = (depth_target > 0).sum().to(depth_target)
    per_class = sum_per_class(seg_weight, seg_target)
    frames = depth_target.new_full((), len(depth_target))  # new_tensor() would wait for the device
    return torch.stack([pixels, per_class.sum(), (per_class > 0).sum().to(depth_target), frames])


def distillation_loss(
    depth: Tensor,
    seg: Tensor,
    rgb: Tensor,
    depth_target: Tensor,
    seg_target: Tensor,
    seg_weight: Tensor,
    weights: LossWeights,
    term_scales: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the loss terms with a non-zero weight, and their weighted sum.

    Args:
        depth: predicted, float32 [B,1,H,W], metres at the reference focal length.
        seg: predicted logits [B,6,H,W].
        rgb: float32 [B,3,H,W] in 0..1.
        depth_target: in the same format as depth, 0 = no target.
        seg_target: integers [B,H,W], 255 = ignore.
        seg_weight: float32 [B,1,H,W], weight of each pixel: the teacher's confidence in 0..1, multiplied by the class
            weight of class_weights().
        weights: weights of the terms.
        term_scales: float32 [4], for a micro-batch: its loss_denominators() divided by the whole batch's. The losses of
            the micro-batches then add up to the batch's, however unevenly the targets are distributed.

    Returns scalars 'depth', 'segmentation', 'dice' and 'smoothness', except those of weight 0, and 'total'.
    """
    losses: dict[str, Callable[[], Tensor]] = {
        "depth": lambda: depth_l1(depth, depth_target),
        "segmentation": lambda: segmentation_cross_entropy(seg, seg_target, seg_weight),
        "dice": lambda: dice_loss(seg, seg_target, seg_weight),
        "smoothness": lambda: edge_aware_smoothness(depth, rgb),
    }
    scales = [1.0] * len(losses) if term_scales is None else term_scales
    terms = {
        name: loss() * scale
        for (name, loss), scale in zip(losses.items(), scales, strict=True)
        if getattr(weights, name)
    }
    terms["total"] = sum(getattr(weights, name) * term for name, term in terms.items())
    return terms
