"""How far an exported graph is from the student that it was made of: pixel by pixel, and in what it scores."""

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
    """How far a graph may stray from PyTorch's float32.

    depth_mm: largest difference of depth at any pixel, in millimetres; None where a precision has no such bound.
    depth_share: mean difference of depth, as a share of it.
    class_agreement: least share of pixels with the same class.
    losses: the most that may be lost in scores, by the names of losses().
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
    """How far one way to run the student strays from another; images: uint8 [N,H,W,3], N >= 1.

    Returns: max_depth_error_mm, the largest difference of depth at any pixel; mean_depth_share, the mean difference as
        a share of depth; class_agreement, the share of pixels with the same class. NaN as soon as either side says NaN.
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
    """RMSE in metres, delta1 and mIoU on held-out frames; NaN for what they have no reference of.

    Args:
        answer: what is scored.
        frames: of evaluation.held_out.evaluation_frames().
        focal: of the camera that the answers' depth is for, in pixels at the network's size.
        recipe: bounds the depth that is scored.
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
    """How much worse scores are than `base`, below 0 is better; without what has no reference (NaN in both).

    Returns: rmse and miou as a share of `base`: 0.01 is one per cent worse; miou_points in hundredths of mIoU.
    """
    lost = {}
    if not math.isnan(base["rmse"]):
        lost["rmse"] = (scores["rmse"] - base["rmse"]) / base["rmse"]
    if not math.isnan(base["miou"]):
        difference = base["miou"] - scores["miou"]
        lost |= {"miou": difference / (base["miou"] or 1), "miou_points": 100 * difference}
    return lost


def within(errors: dict[str, float], lost: dict[str, float], tolerance: Tolerance) -> bool:
    """Whether compare()'s errors and losses() are within a tolerance; NaN is not."""
    near = tolerance.depth_mm is None or errors["max_depth_error_mm"] <= tolerance.depth_mm
    near = near and errors["mean_depth_share"] <= tolerance.depth_share
    alike = errors["class_agreement"] >= tolerance.class_agreement
    return near and alike and all(lost[name] <= most for name, most in tolerance.losses.items() if name in lost)
