"""Rows of Table IV: student, baseline and teacher, each against the teacher or the reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import CLASS_NAMES, IGNORE, Recipe
from dataset.files import write_png
from dataset.frames import Frame, read_frame
from dataset.manifest import Row
from evaluation.inference import Predictor, focal_scale
from evaluation.metrics import ConfusionMatrix, DepthMetrics
from evaluation.pixels import class_mask, depth_mask, is_nyu
from evaluation.report import draw_comparison
from evaluation.slices import SliceSums, slice_cells

ROWS = (
    "student vs teacher",
    "baseline vs teacher",
    "student vs reference",
    "baseline vs reference",
    "teacher vs reference",
)
# NYU only: against the reference depth with its holes filled in, whatever its confidence.
FILLED_ROWS = ("student vs filled reference", "baseline vs filled reference", "teacher vs filled reference")
OTHER = "other student"  # the prediction of a second student, whose rows follow the first one's


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
    cells: Tensor | None = None  # uint8 [H,W], the slices of each pixel (see evaluation.slices); None: not sliced


@dataclass
class Table:
    """Table IV of a list of frames.

    Attributes:
        rows: the metrics of each row, in print order, see Comparison.results().
        slices: of the rows that have them, see is_sliced(); their frames are in the list's order.
    """

    rows: dict[str, dict]
    slices: dict[str, SliceSums]


class Comparison:
    """One row of the table: accumulates the metrics of predictions against references.

    Args:
        recipe: the student's recipe.
        mask_holes: skip pixels without a prediction instead of counting them as wrong. It is set for teachers, because
            the student does not learn from their holes.
        slices: also accumulates the errors by frame and slice.
    """

    def __init__(self, recipe: Recipe, mask_holes: bool = False, slices: SliceSums | None = None):
        self.depth = DepthMetrics(recipe.min_depth, recipe.max_depth)
        self.seg = ConfusionMatrix(len(CLASS_NAMES))
        self.mask_holes, self.slices = mask_holes, slices
        # counts of [predicted, valid] pixels
        self.pixel_counts = {"depth": np.zeros(2, np.int64), "seg": np.zeros(2, np.int64)}

    def update(self, prediction: Maps, reference: Reference, frame: int = 0) -> None:
        """Add one frame; a map that is missing on either side is skipped. frame: its position in the slices."""
        cells = None if self.slices is None else reference.cells
        if prediction.depth is not None and reference.depth is not None:
            predicted = np.nan_to_num(prediction.depth) > 0
            mask = self._count_and_mask("depth", reference.depth_mask, predicted)
            errors = self.depth.update(*map(torch.from_numpy, (prediction.depth, reference.depth, mask)))
            if self.slices and errors and cells is not None:
                self.slices.add_depth(frame, errors, cells)
        if prediction.seg is not None and reference.seg is not None:
            mask = self._count_and_mask("seg", reference.seg_mask, prediction.seg != IGNORE)
            seg, valid = torch.from_numpy(prediction.seg), torch.from_numpy(mask)
            counts = self.seg.update(seg, torch.from_numpy(reference.seg), valid, cells)
            if self.slices and cells is not None:
                self.slices.add_classes(frame, counts)

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

    def reference(
        depth: np.ndarray | None,
        seg: np.ndarray | None,
        confidence: np.ndarray | None = None,
        cells: Tensor | None = None,
    ) -> Reference:
        valid = empty if depth is None else depth_mask(depth, confidence, recipe, camera)
        return Reference(depth, seg, valid, empty if seg is None else class_mask(seg, recipe), cells)

    cells = torch.from_numpy(slice_cells(frame.depth, frame.confidence, frame.labels, recipe))
    references = {
        "teacher": reference(frame.da3_depth, frame.sam2_seg),
        "reference": reference(frame.depth, frame.labels, frame.confidence, cells),
    }
    return references | ({"filled reference": reference(frame.depth, None, None, cells)} if is_nyu(camera) else {})


def row_names(has_other: bool) -> list[str]:
    """Names of all rows in print order; those of another student come below the student's."""
    names = []
    for name in ROWS + FILLED_ROWS:
        names.append(name)
        if has_other and name.startswith("student"):
            names.append(name.replace("student", OTHER, 1))
    return names


def is_sliced(name: str) -> bool:
    """Whether a row has slices: all against the reference, and the students against the filled one."""
    return name.endswith(" vs reference") or (name.endswith(" vs filled reference") and "student" in name)


def compare(
    student: Predictor,
    rows: list[Row],
    metadata: dict,
    recipe: Recipe,
    pictures: list[Path],
    other: Predictor | None = None,
) -> Table:
    """Compute all rows of the table.

    Args:
        student: from make_predictor().
        rows: rows of the manifest.
        metadata: metadata of the student's checkpoint, for the baseline.
        recipe: the student's recipe.
        pictures: output paths of comparison pictures, one each for frames evenly spaced over the rows.
        other: another student, compared with the same references on the same pixels.
    """
    names = row_names(other is not None)
    slices = {name: SliceSums(len(rows)) for name in names if is_sliced(name)}
    table = {name: Comparison(recipe, name.startswith("teacher"), slices.get(name)) for name in names}
    picture_paths = dict(zip(np.linspace(0, len(rows) - 1, len(pictures)).round().astype(int), pictures, strict=True))
    for index, row in enumerate(tqdm(rows, desc="evaluating", disable=None)):
        frame = read_frame(row)
        depth, seg = student(frame.rgb, frame.intrinsics)
        predictions = {
            "student": Maps(depth, seg),
            "baseline": baseline(frame.rgb.shape[:2], focal_scale(frame.intrinsics, recipe), metadata),
            "teacher": Maps(frame.da3_depth, frame.sam2_seg),
        }
        if other:
            predictions[OTHER] = Maps(*other(frame.rgb, frame.intrinsics))
        references = frame_references(frame, recipe)
        for name, comparison in table.items():
            predictor_name, reference_name = name.split(" vs ")
            if reference_name in references:
                comparison.update(predictions[predictor_name], references[reference_name], index)
        if index in picture_paths:
            write_png(picture_paths[index], draw_comparison(frame, depth, seg))
    results = {name: comparison.results() for name, comparison in table.items()}
    kept = {name: row for name, row in results.items() if row or "filled" not in name}
    return Table(kept, {name: sums for name, sums in slices.items() if name in kept})


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
