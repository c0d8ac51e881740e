"""What the student learns from: hybrid depth, teacher classes, and smoothness where the image is smooth."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255  # class of pixels that teach nothing


@dataclass
class LossWeights:
    """Weights of the terms of the total loss."""

    depth: float
    segmentation: float
    smoothness: float


def hybrid_depth(depth: Tensor, confidence: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """The depth target: the sensor where its confidence reaches the threshold, the teacher elsewhere.

    Args:
        depth, teacher: float32 [B,1,H,W], metres, 0 = no value (all 0 for a frame without a teacher).
        confidence: float32 [B,1,H,W] in 0..1.
        threshold: tau, in 0..1.

    Returns: float32 [B,1,H,W], metres, 0 = nothing to learn.
    """
    return torch.where((confidence >= threshold) & (depth > 0), depth, teacher)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values [B,...] where the mask is true; 0 where it is true nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def depth_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the pixels with a target, in metres plus in log metres; float32 [B,1,H,W] each.

    In metres alone the far wall outweighs what the robot is about to touch; the logarithm is the relative error.
    """
    mask = target > 0
    log_difference = predicted.log() - torch.where(mask, target, 1).log()
    return masked_mean((predicted - target).abs() + log_difference.abs(), mask)


def segmentation_cross_entropy(logits: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
    """Mean cross-entropy over the pixels with a class, weighted by the teacher's confidence in it.

    logits: [B,C,H,W]; target: int64 [B,H,W], 255 = ignore; confidence: float32 [B,1,H,W] in 0..1.
    """
    per_pixel = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")
    weight = torch.where(target != IGNORE, confidence[:, 0], 0)
    return (per_pixel * weight).sum() / weight.sum().clamp(min=1)


def edge_aware_smoothness(depth: Tensor, rgb: Tensor) -> Tensor:
    """Mean gradient of the mean-normalised inverse depth, damped by exp(-image gradient).

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


def distillation_loss(
    depth: Tensor,
    seg: Tensor,
    rgb: Tensor,
    depth_target: Tensor,
    seg_target: Tensor,
    seg_confidence: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """All terms and their weighted total.

    Args:
        depth: predicted, float32 [B,1,H,W], metres at the reference focal length, like depth_target (0 = nothing).
        seg: logits [B,6,H,W]; seg_target: int64 [B,H,W], 255 = nothing to learn; seg_confidence: float32 [B,1,H,W].
        rgb: float32 [B,3,H,W] in 0..1.

    Returns: scalars 'depth', 'segmentation', 'smoothness', 'total'.
    """
    terms = {
        "depth": depth_l1(depth, depth_target),
        "segmentation": segmentation_cross_entropy(seg, seg_target, seg_confidence),
        "smoothness": edge_aware_smoothness(depth, rgb),
    }
    terms["total"] = sum(getattr(weights, name) * term for name, term in terms.items())
    return terms
