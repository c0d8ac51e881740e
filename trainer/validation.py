"""Validation: metrics, the score that selects best.pt, and pictures."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from config import CLASS_NAMES, IGNORE, Recipe
from dataset.pictures import colour_classes, colour_depth, depth_range, panel
from evaluation.metrics import ConfusionMatrix, DepthMetrics
from evaluation.pixels import class_mask, depth_mask
from trainer.distributed import Processes
from trainer.feed import Batch, PackedFrames, sequential_batches

N_PANELS = 4


def validate_sets(
    model: nn.Module, sets: dict[str, PackedFrames], recipe: Recipe, device: torch.device, processes: Processes
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Score a student on {set: validation frames}, one set or more; returns its metrics and pictures.

    Several sets have the mean of each metric over the sets, so that a large one does not decide alone, and their own
    metrics as '<metric> <set>'. A single set has validate()'s.
    """
    scored = {name: validate(model, frames, recipe, device, processes) for name, frames in sets.items()}
    if len(scored) == 1:
        return next(iter(scored.values()))
    names = next(iter(scored.values()))[0]
    means = {name: _mean([metrics[name] for metrics, _ in scored.values()]) for name in names}
    own = {f"{name} {of}": value for of, (metrics, _) in scored.items() for name, value in metrics.items()}
    return means | own, [picture for _, panels in scored.values() for picture in panels]


def _mean(values: list[float]) -> float:
    """Mean of the values that are numbers; NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


@torch.inference_mode()
def validate(
    model: nn.Module, frames: PackedFrames, recipe: Recipe, device: torch.device, processes: Processes
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Score a student at the network's input size; returns its metrics and pictures of the first frames.

    Each rank scores its slice of the frames. All ranks return the metrics of all frames and their own pictures. The
    'score' is delta1 + mIoU, or delta1 without classes; NaN without frames or without any finite prediction.
    """
    depth_metrics, confusion = DepthMetrics(recipe.min_depth, recipe.max_depth), ConfusionMatrix(len(CLASS_NAMES))
    panels: list[np.ndarray] = []
    n_finite = 0
    rank_slice = processes.rank_slice(len(frames))
    cameras = iter([row.intrinsics for row in frames.rows[rank_slice]])
    for batch in sequential_batches(frames, recipe.batch_size, device, rank_slice):
        depth, seg = model(batch.rgb)
        depth = depth / batch.focal_factor.view(-1, 1, 1, 1)
        classes = seg.argmax(dim=1)
        labelled = (batch.labels != IGNORE).flatten(1).any(dim=1).view(-1, 1, 1)
        class_reference = torch.where(labelled, batch.labels, batch.sam2_seg)
        sensor_maps = zip(batch.depth[:, 0], batch.confidence[:, 0], strict=True)
        mask = torch.stack([depth_mask(*maps, recipe, next(cameras)) for maps in sensor_maps])
        for image in zip(depth[:, 0], batch.depth[:, 0], mask, strict=True):
            depth_metrics.update(*image)
        n_finite += int(depth.isfinite().sum())
        confusion.update(classes, class_reference, class_mask(class_reference, recipe))
        if len(panels) < N_PANELS:
            reference = torch.where(mask.unsqueeze(1), batch.depth, 0)
            panels.append(_panel(batch, depth, reference, classes, class_reference))
    gathered = processes.all_gather((depth_metrics, confusion, n_finite))
    depth_metrics, confusion, n_finite = gathered[0]
    for other_depth, other_confusion, other_finite in gathered[1:]:
        depth_metrics.merge(other_depth)
        confusion.merge(other_confusion)
        n_finite += other_finite
    metrics = {name: depth_metrics.compute()[name] for name in ("rmse", "abs_rel", "delta1")}
    metrics["miou"] = confusion.compute()["miou"]
    metrics["score"] = metrics["delta1"] + (metrics["miou"] if metrics["miou"] == metrics["miou"] else 0.0)
    if not n_finite:
        metrics["score"] = math.nan
    return metrics, panels


def best_score(history: list[dict], freeze_bn_step: float) -> float:
    """The score of best.pt: the highest of the epochs that ended with frozen batch norm.

    Before batch norm is frozen, the learning rate is high and the depth scale swings, so that some epochs fit a small
    validation set by chance.

    Args:
        history: one dict per epoch, with 'step' (at its end) and 'score' (see validate()).
        freeze_bn_step: the step at which batch norm is frozen.

    Returns the highest score of all epochs if none ended after that step, or -inf if no epoch has a score.
    """
    scored = [entry for entry in history if not math.isnan(entry["score"])]
    frozen = [entry for entry in scored if entry["step"] > freeze_bn_step]
    return max((entry["score"] for entry in frozen or scored), default=-math.inf)


def _panel(batch: Batch, depth: Tensor, reference: Tensor, classes: Tensor, class_reference: Tensor) -> np.ndarray:
    """Draw a batch's first frame: RGB, then depth and classes, each beside its reference.

    depth, reference: [B,1,H,W] metres; classes, class_reference: [B,H,W]. Returns RGB uint8 [H,W,3].
    """
    near, far = depth_range(reference[0, 0].cpu().numpy())
    return panel(
        [
            ("image", (batch.rgb[0].permute(1, 2, 0) * 255).byte().cpu().numpy()),
            ("reference depth", colour_depth(reference[0, 0].cpu().numpy(), near, far)),
            (f"student depth ({near:.1f} to {far:.1f} m)", colour_depth(depth[0, 0].cpu().numpy(), near, far)),
            ("reference classes", colour_classes(class_reference[0].cpu().numpy())),
            ("student classes", colour_classes(classes[0].byte().cpu().numpy())),
        ],
        width=240,
    )
