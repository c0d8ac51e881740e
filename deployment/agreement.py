"""Compare an exported graph with the PyTorch student: per pixel, and by its scores."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from config import CLASS_NAMES, IGNORE, Recipe
from dataset.frames import MILLIMETRES
from deployment.graph import DEPTH, INPUT, SEG, ExportedStudent, as_input, open_session, takes_uint8
from evaluation.metrics import ConfusionMatrix, DepthMetrics


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the differences between a graph and PyTorch in float32.

    depth_mm: maximum depth difference at any pixel, millimetres; None: unbounded.
    depth_share: maximum mean relative depth difference.
    class_agreement: minimum fraction of pixels with the same class.
    losses: maximum loss of each score, by the names of losses().
    """

    depth_mm: float | None
    depth_share: float
    class_agreement: float
    losses: dict[str, float]


TOLERANCES = {  # by precision, in the order of export
    "fp32": Tolerance(1.0, 1e-4, 0.999, {"rmse": 1e-3, "miou": 1e-3}),
    "fp16": Tolerance(None, 5e-3, 0.99, {"rmse": 5e-3, "miou": 5e-3}),
    "int8": Tolerance(None, 5e-2, 0.9, {"rmse": 3e-2, "miou_points": 1.0}),
}
Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # uint8 [H,W,3] to depth [1,1,H,W] and seg [1,6,H,W]


def run_onnx_runtime(graph: bytes) -> Answer:
    """What answers for a serialised ONNX model: ONNX Runtime on the CPU."""
    session = open_session(graph)
    uint8_input = takes_uint8(session)
    return lambda image: tuple(session.run([DEPTH, SEG], {INPUT: as_input(image, uint8_input)}))


def run_pytorch(model: ExportedStudent) -> Answer:
    """What answers for a model: PyTorch on the CPU."""

    @torch.inference_mode()
    def answer(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        depth, seg = model(torch.from_numpy(as_input(image, model.uint8_input)))
        return depth.numpy(), seg.numpy()

    return answer


def compare(answer: Answer, expected: Answer, images: np.ndarray) -> dict[str, float]:
    """Compare two ways to run the student; images: uint8 [N,H,W,3], N >= 1.

    Returns max_depth_error_mm, the maximum depth difference at any pixel; mean_depth_share, the mean relative
    difference; class_agreement, the fraction of pixels with the same class. NaN if either output contains NaN.
    """
    errors, shares, agreements = [], [], []
    for image in images:
        (depth, seg), (expected_depth, expected_seg) = answer(image), expected(image)
        difference = np.abs(depth - expected_depth)
        errors.append(difference.max() * MILLIMETRES)
        shares.append((difference / expected_depth).mean())
        agreements.append((seg.argmax(axis=1) == expected_seg.argmax(axis=1)).mean())
    return {
        "max_depth_error_mm": float(np.max(errors)),
        "mean_depth_share": float(np.mean(shares)),
        "class_agreement": float(np.mean(agreements)),
    }


def score(answer: Answer, frames: dict[str, np.ndarray], focal: float, recipe: Recipe) -> dict[str, float]:
    """RMSE in metres, delta1 and mIoU on held-out frames; NaN without a reference.

    Args:
        answer: the function to score.
        frames: from evaluation.held_out.evaluation_frames().
        focal: focal length that the predicted depth is for, pixels at the network's size.
        recipe: defines the scored depth range.
    """
    depth_metrics, confusion = DepthMetrics(recipe.min_depth, recipe.max_depth), ConfusionMatrix(len(CLASS_NAMES))
    columns = (frames[name] for name in ("rgb", "depth", "labels", "focal"))
    for image, depth, labels, own_focal in zip(*columns, strict=True):
        predicted, seg = answer(image)
        metres = predicted[0, 0] * (own_focal / focal)
        depth_metrics.update(*map(torch.from_numpy, (metres, depth, depth > 0)))
        confusion.update(*map(torch.from_numpy, (seg[0].argmax(axis=0), labels, labels != IGNORE)))
    miou = confusion.compute()["miou"]
    assert isinstance(miou, float)
    return {name: depth_metrics.compute()[name] for name in ("rmse", "delta1")} | {"miou": miou}


def losses(scores: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    """How much worse the scores are than `base`; negative is better. Scores that are NaN in both are omitted.

    Returns rmse and miou relative to `base` (0.01 is one per cent worse) and miou_points in hundredths of mIoU.
    """
    lost = {}
    if not math.isnan(base["rmse"]):
        lost["rmse"] = (scores["rmse"] - base["rmse"]) / base["rmse"]
    if not math.isnan(base["miou"]):
        difference = base["miou"] - scores["miou"]
        lost |= {"miou": difference / (base["miou"] or 1), "miou_points": 100 * difference}
    return lost


def within(errors: dict[str, float], lost: dict[str, float], tolerance: Tolerance) -> bool:
    """Whether the results of compare() and losses() are within a tolerance; NaN is not."""
    near = tolerance.depth_mm is None or errors["max_depth_error_mm"] <= tolerance.depth_mm
    near = near and errors["mean_depth_share"] <= tolerance.depth_share
    alike = errors["class_agreement"] >= tolerance.class_agreement
    return near and alike and all(lost[name] <= most for name, most in tolerance.losses.items() if name in lost)
