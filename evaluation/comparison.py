"""Rows of Table IV: student, baseline and teacher, each compared with teacher and reference."""

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
from evaluation.pixels import is_nyu, scored_classes, scored_depth
from evaluation.report import picture

ROWS = (
    "student vs teacher",
    "baseline vs teacher",
    "student vs reference",
    "baseline vs reference",
    "teacher vs reference",
)
# Of NYU's frames: depth that was filled in where the sensor had no reading, whatever its confidence.
FILLED_ROWS = ("student vs filled reference", "baseline vs filled reference", "teacher vs filled reference")


@dataclass
class Maps:
    """Depth float32 [H,W] in metres and classes uint8 [H,W] of one frame; None if missing."""

    depth: np.ndarray | None
    seg: np.ndarray | None


@dataclass
class Truth(Maps):
    """A reference for predictions, and bool [H,W] where it is valid (see evaluation.pixels)."""

    scored_depth: np.ndarray
    scored_seg: np.ndarray


class Comparison:
    """One row of the table: accumulates the comparison of predictions with a reference over a set.

    Args:
        recipe: the student's.
        mask_holes: whether a pixel without an answer is left out rather than wrong: a teacher's holes are no
            mistakes, they teach nothing.
    """

    def __init__(self, recipe: Recipe, mask_holes: bool = False):
        self.depth = DepthMetrics(recipe.min_depth, recipe.max_depth)
        self.seg = ConfusionMatrix(len(CLASS_NAMES))
        self.mask_holes = mask_holes
        self.pixels = {"depth": np.zeros(2, np.int64), "seg": np.zeros(2, np.int64)}  # predicted, scored

    def update(self, answer: Maps, truth: Truth) -> None:
        """Add one frame; maps missing on either side are not compared."""
        if answer.depth is not None and truth.depth is not None:
            answered = np.nan_to_num(answer.depth) > 0
            scored = self._scored("depth", truth.scored_depth, answered)
            self.depth.update(*map(torch.from_numpy, (answer.depth, truth.depth, scored)))
        if answer.seg is not None and truth.seg is not None:
            scored = self._scored("seg", truth.scored_seg, answer.seg != IGNORE)
            self.seg.update(*map(torch.from_numpy, (answer.seg, truth.seg, scored)))

    def _scored(self, part: str, counts: np.ndarray, answered: np.ndarray) -> np.ndarray:
        both = counts & answered
        self.pixels[part] += (np.count_nonzero(both), np.count_nonzero(counts))
        return both if self.mask_holes else counts

    def results(self) -> dict[str, dict]:
        """Metrics 'depth' and 'seg', each absent if no pixel was compared.

        Each includes 'coverage', the fraction of the reference's valid pixels that have a prediction.
        """
        results: dict[str, dict] = {}
        if self.depth.sums:
            results["depth"] = self.depth.compute() | {"coverage": self._coverage("depth")}
        if self.seg.counts.any():
            results["seg"] = self.seg.compute() | {"coverage": self._coverage("seg")}
        return results

    def _coverage(self, part: str) -> float:
        answered, counted = self.pixels[part]
        return float(answered / counted)


def references_of(frame: Frame, recipe: Recipe) -> dict[str, Truth]:
    """The truths of a frame by the names that the table's rows give them."""
    camera = frame.intrinsics
    nothing = np.zeros(frame.rgb.shape[:2], dtype=bool)

    def truth(depth: np.ndarray | None, seg: np.ndarray | None, confidence: np.ndarray | None = None) -> Truth:
        counts = nothing if depth is None else scored_depth(depth, confidence, recipe, camera)
        return Truth(depth, seg, counts, nothing if seg is None else scored_classes(seg, recipe))

    truths = {
        "teacher": truth(frame.da3_depth, frame.sam2_seg),
        "reference": truth(frame.depth, frame.labels, frame.confidence),
    }
    return truths | ({"filled reference": truth(frame.depth, None)} if is_nyu(camera) else {})


def compare(
    student: Predictor, rows: list[Row], notes: dict, recipe: Recipe, pictures: list[Path]
) -> dict[str, dict]:
    """Compute all rows of the table as {name: results}, in print order.

    Args:
        student: see evaluation.inference.
        rows: the frames.
        notes: notes of the student's checkpoint, for the baseline.
        recipe: the student's recipe.
        pictures: paths of pictures to draw.
    """
    table = {name: Comparison(recipe, name.startswith("teacher")) for name in ROWS + FILLED_ROWS}
    drawn = dict(zip(np.linspace(0, len(rows) - 1, len(pictures)).round().astype(int), pictures, strict=True))
    for index, row in enumerate(tqdm(rows, desc="evaluating", disable=None)):
        frame = read_frame(row)
        depth, seg = student(frame.rgb, frame.intrinsics)
        answers = {
            "student": Maps(depth, seg),
            "baseline": baseline(frame.rgb.shape[:2], focal_scale(frame.intrinsics, recipe), notes),
            "teacher": Maps(frame.da3_depth, frame.sam2_seg),
        }
        truths = references_of(frame, recipe)
        for name, comparison in table.items():
            answer, truth = name.split(" vs ")
            if truth in truths:
                comparison.update(answers[answer], truths[truth])
        if index in drawn:
            write_png(drawn[index], picture(frame, depth, seg))
    results = {name: comparison.results() for name, comparison in table.items()}
    return {name: row for name, row in results.items() if row or name in ROWS}


def baseline(shape: tuple[int, int], scale: float, notes: dict) -> Maps:
    """Constant baseline: the training data's mean depth, through this lens, and its most frequent class."""
    mean, majority = notes.get("mean_depth"), notes.get("majority_class")
    depth = None if mean is None else np.full(shape, mean * scale, dtype=np.float32)
    return Maps(depth, None if majority is None else np.full(shape, majority, dtype=np.uint8))
