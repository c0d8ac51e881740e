"""Rows of Table IV: student, baseline and teacher, each against the teacher or the reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import CLASS_NAMES, IGNORE, Recipe
from dataset.files import write_png
from dataset.frames import Frame, read_frame
from dataset.manifest import Row
from evaluation.inference import Predictor, focal_scale
from evaluation.metrics import ConfusionMatrix, DepthMetrics
from evaluation.pixels import class_mask, depth_mask, is_nyu
from evaluation.report import draw_comparison

ROWS = (
    "student vs teacher",
    "baseline vs teacher",
    "student vs reference",
    "baseline vs reference",
    "teacher vs reference",
)
# NYU only: against the reference depth with its holes filled in, whatever its confidence.
FILLED_ROWS = ("student vs filled reference", "baseline vs filled reference", "teacher vs filled reference")


@dataclass
class Maps:
    """Depth float32 [H,W] in metres and classes uint8 [H,W] of one frame; None if missing."""

    depth: np.ndarray | None
    seg: np.ndarray | None


@dataclass
class Reference(Maps):
    """Maps that predictions are compared with, and their masks of valid pixels, bool [H,W] (see evaluation.pixels)."""

    depth_mask: np.ndarray
    seg_mask: np.ndarray


class Comparison:
    """One row of the table: accumulates the metrics of predictions against references.

    Args:
        recipe: the student's recipe.
        mask_holes: skip pixels without a prediction instead of counting them as wrong. It is set for teachers, because
            the student does not learn from their holes.
    """

    def __init__(self, recipe: Recipe, mask_holes: bool = False):
        self.depth = DepthMetrics(recipe.min_depth, recipe.max_depth)
        self.seg = ConfusionMatrix(len(CLASS_NAMES))
        self.mask_holes = mask_holes
        # counts of [predicted, valid] pixels
        self.pixel_counts = {"depth": np.zeros(2, np.int64), "seg": np.zeros(2, np.int64)}

    def update(self, prediction: Maps, reference: Reference) -> None:
        """Add one frame; a map that is missing on either side is skipped."""
        if prediction.depth is not None and reference.depth is not None:
            predicted = np.nan_to_num(prediction.depth) > 0
            mask = self._count_and_mask("depth", reference.depth_mask, predicted)
            self.depth.update(*map(torch.from_numpy, (prediction.depth, reference.depth, mask)))
        if prediction.seg is not None and reference.seg is not None:
            mask = self._count_and_mask("seg", reference.seg_mask, prediction.seg != IGNORE)
            self.seg.update(*map(torch.from_numpy, (prediction.seg, reference.seg, mask)))

    def _count_and_mask(self, task: str, valid: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        valid_and_predicted = valid & predicted
        self.pixel_counts[task] += (np.count_nonzero(valid_and_predicted), np.count_nonzero(valid))
        return valid_and_predicted if self.mask_holes else valid

    def results(self) -> dict[str, dict]:
        """Return the metrics of 'depth' and 'seg', each absent if no pixel was compared.

        Both include 'coverage', the fraction of the reference's valid pixels that have a prediction.
        """
        results: dict[str, dict] = {}
        if self.depth.sums:
            results["depth"] = self.depth.compute() | {"coverage": self._coverage("depth")}
        if self.seg.counts.any():
            results["seg"] = self.seg.compute() | {"coverage": self._coverage("seg")}
        return results

    def _coverage(self, task: str) -> float:
        predicted, valid = self.pixel_counts[task]
        return float(predicted / valid)


def frame_references(frame: Frame, recipe: Recipe) -> dict[str, Reference]:
    """References of a frame, by their names in ROWS and FILLED_ROWS."""
    camera = frame.intrinsics
    empty = np.zeros(frame.rgb.shape[:2], dtype=bool)

    def reference(depth: np.ndarray | None, seg: np.ndarray | None, confidence: np.ndarray | None = None) -> Reference:
        valid = empty if depth is None else depth_mask(depth, confidence, recipe, camera)
        return Reference(depth, seg, valid, empty if seg is None else class_mask(seg, recipe))

    references = {
        "teacher": reference(frame.da3_depth, frame.sam2_seg),
        "reference": reference(frame.depth, frame.labels, frame.confidence),
    }
    return references | ({"filled reference": reference(frame.depth, None)} if is_nyu(camera) else {})


def compare(
    student: Predictor, rows: list[Row], metadata: dict, recipe: Recipe, pictures: list[Path]
) -> dict[str, dict]:
    """Compute all rows of the table as {name: results}, in print order.

    Args:
        student: from make_predictor().
        rows: rows of the manifest.
        metadata: metadata of the student's checkpoint, for the baseline.
        recipe: the student's recipe.
        pictures: output paths of comparison pictures, one each for frames evenly spaced over the rows.
    """
    table = {name: Comparison(recipe, name.startswith("teacher")) for name in ROWS + FILLED_ROWS}
    picture_paths = dict(zip(np.linspace(0, len(rows) - 1, len(pictures)).round().astype(int), pictures, strict=True))
    for index, row in enumerate(tqdm(rows, desc="evaluating", disable=None)):
        frame = read_frame(row)
        depth, seg = student(frame.rgb, frame.intrinsics)
        predictions = {
            "student": Maps(depth, seg),
            "baseline": baseline(frame.rgb.shape[:2], focal_scale(frame.intrinsics, recipe), metadata),
            "teacher": Maps(frame.da3_depth, frame.sam2_seg),
        }
        references = frame_references(frame, recipe)
        for name, comparison in table.items():
            predictor_name, reference_name = name.split(" vs ")
            if reference_name in references:
                comparison.update(predictions[predictor_name], references[reference_name])
        if index in picture_paths:
            write_png(picture_paths[index], draw_comparison(frame, depth, seg))
    results = {name: comparison.results() for name, comparison in table.items()}
    return {name: row for name, row in results.items() if row or name in ROWS}


def baseline(shape: tuple[int, int], scale: float, metadata: dict) -> Maps:
    """Constant baseline: the training data's mean depth and its most frequent class, at every pixel.

    Args:
        shape: (height, width) of the maps.
        scale: factor from depth at the reference focal length to the camera's depth, from focal_scale().
        metadata: metadata of the student's checkpoint.
    """
    mean, majority = metadata.get("mean_depth"), metadata.get("majority_class")
    depth = None if mean is None else np.full(shape, mean * scale, dtype=np.float32)
    return Maps(depth, None if majority is None else np.full(shape, majority, dtype=np.uint8))
