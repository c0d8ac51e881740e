"""Slices of Table IV: where a prediction is right and where it is wrong.

Four groups of slices divide a frame's pixels: by the range of the reference depth, by reference class, at depth edges
and away from them, with and without a sensor reading. Each pixel is in exactly one slice of a group, so that the sums
over a group's slices equal those over all pixels. evaluation.pixels says which pixels count.
"""

import cv2
import numpy as np
import torch

from config import CLASS_NAMES, Recipe
from evaluation.intervals import Units, intervals
from evaluation.metrics import DepthErrors, class_metrics
from evaluation.pixels import in_range, is_reading

RANGES = (0.1, 0.5, 1.0, 1.5, 3.0, 6.0, 10.0)  # metres; a robot brakes within the first two
ALL = "all"
GROUPS = {
    "range": (*(f"{near:g}-{far:g} m" for near, far in zip(RANGES, RANGES[1:], strict=False)), "no depth"),
    "class": (*CLASS_NAMES, "no class"),
    "edge": ("away from edges", "at edges"),
    "sensor": ("no sensor reading", "sensor reading"),
}
SLICES = ((ALL, ALL), *((group, name) for group, names in GROUPS.items() for name in names))  # in the order of the sums
SLICE_METRICS = (
    *("rmse", "abs_rel", "delta1", "aligned_rmse", "aligned_abs_rel", "aligned_delta1"),
    *("pixel_accuracy", "miou"),
)
SUMS = ("count", "squared", "abs_rel", "delta1", "aligned_squared", "aligned_abs_rel", "aligned_delta1")
N_CELLS = int(np.prod([len(names) for names in GROUPS.values()]))

EDGE_RATIO = 1.1  # adjacent pixels are at an edge if one is this many times as far as the other
EDGE_DISTANCE = 0.01  # of the image's height: pixels up to this far from an edge are at it
SHADOW = 0.025  # of the image's height: holes up to twice as wide are taken for a sensor's shadow


def _membership() -> np.ndarray:
    """Which cell belongs to which slice: float64 [S,N_CELLS], 0 or 1."""
    positions = np.indices([len(names) for names in GROUPS.values()]).reshape(len(GROUPS), -1)
    members = [np.ones(N_CELLS, dtype=bool)]
    for position, names in zip(positions, GROUPS.values(), strict=True):
        members += [position == index for index in range(len(names))]
    return np.array(members, dtype=np.float64)


MEMBERSHIP = _membership()


def depth_edges(depth: np.ndarray) -> np.ndarray:
    """Mask of the pixels at depth edges: bool [H,W].

    An edge is between two adjacent pixels of which one is over 1.1 times as far as the other. A floor seen at a
    grazing angle has no such step between neighbours: from a height of 0.25 m through NYU's lens it grows by 1.08 a
    row at 10 m. A sensor's shadow lies on the surface behind, so small holes take the farthest depth beside them, and
    the edge is at the surface in front.

    Args:
        depth: float32 [H,W], metres, 0 = invalid.
    """
    height = depth.shape[0]
    shadow, distance = max(1, round(SHADOW * height)), max(1, round(EDGE_DISTANCE * height))
    filled = np.where(depth > 0, depth, cv2.dilate(depth, np.ones((2 * shadow + 1,) * 2, np.uint8)))
    steps = np.zeros(depth.shape, dtype=np.uint8)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        nearer, farther = np.minimum(filled[first], filled[second]), np.maximum(filled[first], filled[second])
        step = (nearer > 0) & (farther > np.float32(EDGE_RATIO) * nearer)
        steps[first] |= step
        steps[second] |= step
    return cv2.dilate(steps, np.ones((2 * distance + 1,) * 2, np.uint8)).astype(bool)


def slice_cells(depth: np.ndarray, confidence: np.ndarray, labels: np.ndarray | None, recipe: Recipe) -> np.ndarray:
    """The cell of each pixel, uint8 [H,W]: one number for its slice of every group.

    Args:
        depth: the reference depth, float32 [H,W], metres, 0 = invalid.
        confidence: that the depth is a reading of the sensor, float32 [H,W] in 0..1.
        labels: reference classes, uint8 [H,W], 255 = ignore; None: no pixel has a class.
        recipe: the student's depth range and confidence threshold.
    """
    interval = np.zeros(depth.shape, dtype=np.uint8)
    for bound in RANGES[1:-1]:
        interval += depth >= np.float32(bound)
    interval[~in_range(depth, recipe)] = len(RANGES) - 1
    no_class = len(CLASS_NAMES)
    classes = np.full(depth.shape, no_class, np.uint8) if labels is None else np.minimum(labels, np.uint8(no_class))
    cells = interval
    for group, index in (
        ("class", classes),
        ("edge", depth_edges(depth)),
        ("sensor", (depth > 0) & is_reading(confidence, recipe)),
    ):
        cells = cells * np.uint8(len(GROUPS[group])) + index.astype(np.uint8)
    return cells


class SliceSums:
    """The sums behind the metrics of one row of Table IV, by frame and slice.

    Attributes:
        depth: float64 [F,S,Q], sums over pixels of the quantities SUMS of evaluation.metrics.DepthErrors, S as in
            SLICES; 0 for a frame without valid depth.
        confusion: float64 [F,S,C,C+1], counts of (reference class, predicted class), see ConfusionMatrix.
        median_ratio: float64 [F], median of predicted / reference depth; NaN without valid depth.
    """

    def __init__(self, frames: int):
        classes = len(CLASS_NAMES)
        self.depth = np.zeros((frames, len(SLICES), len(SUMS)))
        self.confusion = np.zeros((frames, len(SLICES), classes, classes + 1))
        self.median_ratio = np.full(frames, np.nan)

    def add_depth(self, frame: int, errors: DepthErrors, cells: torch.Tensor) -> None:
        """Add the depth errors of a frame; cells: uint8 [H,W], from slice_cells()."""
        at_pixels = cells.flatten().index_select(0, errors.indices).long()
        values = errors.per_pixel | {f"aligned_{name}": value for name, value in errors.aligned().items()}
        sums = torch.stack([torch.bincount(at_pixels, values[name], minlength=N_CELLS) for name in SUMS], dim=1)
        self.depth[frame] = MEMBERSHIP @ sums.numpy()
        self.median_ratio[frame] = errors.median_ratio

    def add_classes(self, frame: int, counts: torch.Tensor) -> None:
        """Add the confusion matrices of a frame's cells, int64 [256,C,C+1], from ConfusionMatrix.update()."""
        by_cell = counts[:N_CELLS].numpy().reshape(N_CELLS, -1).astype(np.float64)
        self.confusion[frame] = (MEMBERSHIP @ by_cell).reshape(self.confusion.shape[1:])


def depth_metrics(sums: torch.Tensor) -> dict[str, torch.Tensor]:
    """Depth metrics of SLICE_METRICS from sums over pixels, float64 [...,Q] -> [...]; NaN where there are no pixels."""
    means = dict(zip(SUMS, (sums / sums[..., :1]).unbind(dim=-1), strict=True))
    means |= {"rmse": means["squared"].sqrt(), "aligned_rmse": means["aligned_squared"].sqrt()}
    return {name: means[name] for name in SLICE_METRICS if name in means}


def slice_results(sums: SliceSums, units: Units, other: SliceSums | None = None) -> dict[str, dict[str, dict]]:
    """Metrics of one row of the table by slice, or their differences between two students.

    Args:
        sums: of the row.
        units: what the intervals are over.
        other: of the same row of another student, with the same frames; the results are the other's metrics minus the
            row's, with intervals of the difference.

    Returns {group: {slice: results}}; slices without pixels are absent. Results are 'pixels', the number of pixels with
    valid depth, the metrics of SLICE_METRICS, and 'intervals', their bounds. What does not exist is NaN.
    """
    values = _metrics(sums.depth.sum(axis=0), sums.confusion.sum(axis=0))
    bounds = intervals(depth_metrics, units, sums.depth, None if other is None else other.depth)
    bounds |= intervals(class_metrics, units, sums.confusion, None if other is None else other.confusion)
    if other is not None:
        others = _metrics(other.depth.sum(axis=0), other.confusion.sum(axis=0))
        values = {name: others[name] - value for name, value in values.items()}
    occurs = sums.depth[..., 0].sum(axis=0) + sums.confusion.sum(axis=(0, 2, 3)) > 0
    results: dict[str, dict[str, dict]] = {}
    for index, (group, name) in enumerate(SLICES):
        if occurs[index]:
            entry: dict = {"pixels": int(sums.depth[:, index, 0].sum())}
            entry |= {metric: float(values[metric][index]) for metric in SLICE_METRICS}
            entry["intervals"] = {metric: bounds[metric][index].tolist() for metric in SLICE_METRICS}
            results.setdefault(group, {})[name] = entry
    return results


def frame_results(sums: SliceSums) -> dict[str, np.ndarray]:
    """Metrics of each frame over all its pixels: {metric: float64 [F]}; NaN without pixels.

    The metrics of SLICE_METRICS, 'median_ratio', and 'pixels', the number of pixels with valid depth.
    """
    metrics = _metrics(sums.depth[:, 0], sums.confusion[:, 0])
    return {"pixels": sums.depth[:, 0, 0], **metrics, "median_ratio": sums.median_ratio}


def _metrics(depth: np.ndarray, confusion: np.ndarray) -> dict[str, np.ndarray]:
    """SLICE_METRICS [N] of sums [N,Q] and confusion matrices [N,C,C+1]."""
    metrics = depth_metrics(torch.from_numpy(depth)) | class_metrics(torch.from_numpy(confusion))
    return {name: metrics[name].numpy() for name in SLICE_METRICS}
