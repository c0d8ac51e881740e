"""The rows of Table IV: student, baseline and teacher, each against teacher and reference."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import CLASS_NAMES, NYU_INTRINSICS, Recipe
from dataset.files import write_png
from dataset.frames import Frame, read_frame
from dataset.manifest import Row
from evaluation.inference import Predictor, focal_scale
from evaluation.metrics import ConfusionMatrix, DepthMetrics, eigen_crop
from evaluation.report import picture

ROWS = (
    "student vs teacher",
    "baseline vs teacher",
    "student vs reference",
    "baseline vs reference",
    "teacher vs reference",
)
Maps = tuple[np.ndarray | None, np.ndarray | None]  # depth float32 [H,W] metres and classes uint8 [H,W] of one frame


class Comparison:
    """One row of the table: the sums of comparing two pairs of maps over a set."""

    def __init__(self, recipe: Recipe):
        self.depth = DepthMetrics(recipe.min_depth, recipe.max_depth)
        self.seg = ConfusionMatrix(len(CLASS_NAMES))

    def update(self, answer: Maps, truth: Maps, crop: tuple[slice, slice]) -> None:
        """Add one frame; depth is compared inside the crop, and what either side lacks is not compared."""
        if answer[0] is not None and truth[0] is not None:
            self.depth.update(torch.from_numpy(answer[0][crop]), torch.from_numpy(truth[0][crop]))
        if answer[1] is not None and truth[1] is not None:
            self.seg.update(torch.from_numpy(answer[1]), torch.from_numpy(truth[1]))

    def results(self) -> dict:
        """Metrics of what was compared: 'depth' and 'seg', each absent when no pixel was."""
        results = {"depth": self.depth.compute()} if self.depth.sums else {}
        return results | ({"seg": self.seg.compute()} if self.seg.counts.any() else {})


def compare(
    student: Predictor, rows: list[Row], notes: dict, recipe: Recipe, pictures: list[Path]
) -> dict[str, dict]:
    """All rows of the table as {name: results}, in the order in which they are printed.

    Args:
        student: see evaluation.inference.
        rows: the frames.
        notes: of the student's checkpoint, for the baseline.
        recipe: the student's.
        pictures: where to draw some of the frames.
    """
    table = {name: Comparison(recipe) for name in ROWS}
    drawn = dict(zip(np.linspace(0, len(rows) - 1, len(pictures)).round().astype(int), pictures, strict=True))
    for index, row in enumerate(tqdm(rows, desc="evaluating", disable=None)):
        frame = read_frame(row)
        predicted = student(frame.rgb, frame.intrinsics)
        answers = {
            "student": predicted,
            "baseline": baseline(frame.rgb.shape[:2], focal_scale(frame.intrinsics, recipe), notes),
            "teacher": (frame.da3_depth, frame.sam2_seg),
        }
        truths = {"teacher": (frame.da3_depth, frame.sam2_seg), "reference": (frame.depth, frame.labels)}
        crop = eigen_crop(*frame.depth.shape) if is_nyu(frame) else (slice(None), slice(None))
        for name, comparison in table.items():
            answer, truth = name.split(" vs ")
            comparison.update(answers[answer], truths[truth], crop)
        if index in drawn:
            write_png(drawn[index], picture(frame, *predicted))
    return {name: comparison.results() for name, comparison in table.items()}


def baseline(shape: tuple[int, int], scale: float, notes: dict) -> Maps:
    """What needs no learning: the training data's mean depth (through this lens) and most frequent class."""
    mean, majority = notes.get("mean_depth"), notes.get("majority_class")
    depth = None if mean is None else np.full(shape, mean * scale, dtype=np.float32)
    return depth, None if majority is None else np.full(shape, majority, dtype=np.uint8)


def is_nyu(frame: Frame) -> bool:
    """Whether a frame has NYU's size and camera, so that the Eigen crop applies."""
    return frame.intrinsics == NYU_INTRINSICS
