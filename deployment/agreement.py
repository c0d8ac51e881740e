"""Compare an exported graph with the student in PyTorch, per pixel and by its metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from config import CLASS_NAMES, IGNORE, Recipe
from dataset.frames import MILLIMETRES
from deployment.graph import DEPTH, INPUT, SEG, ExportedStudent, has_uint8_input, open_session, to_input
from evaluation.metrics import ConfusionMatrix, DepthMetrics


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the differences between a graph and PyTorch in float32.

    depth_mm: maximum depth difference at any pixel, in millimetres; None: unbounded.
    mean_relative_depth_error: maximum mean relative depth difference.
    class_agreement: minimum fraction of pixels with the same class.
    degradation: maximum degradation of each metric, by the names of degradation().
    """

    depth_mm: float | None
    mean_relative_depth_error: float
    class_agreement: float
    degradation: dict[str, float]


TOLERANCES = {  # by precision, in the order of export
    "fp32": Tolerance(1.0, 1e-4, 0.999, {"rmse": 1e-3, "miou": 1e-3}),
    "fp16": Tolerance(None, 5e-3, 0.99, {"rmse": 5e-3, "miou": 5e-3}),
    "int8": Tolerance(None, 5e-2, 0.9, {"rmse": 3e-2, "miou_points": 1.0}),
}
# Maps an image, uint8 [H,W,3], to depth [1,1,H,W] and seg [1,6,H,W].
InferenceFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def onnx_runtime_fn(graph: bytes) -> InferenceFn:
    """Wrap a serialised ONNX model as a function that runs it in ONNX Runtime on the CPU."""
    session = open_session(graph)
    uint8_input = has_uint8_input(session)
    return lambda image: tuple(session.run([DEPTH, SEG], {INPUT: to_input(image, uint8_input)}))


def pytorch_fn(model: ExportedStudent) -> InferenceFn:
    """Wrap a model as a function that runs it in PyTorch on the CPU."""

    @torch.inference_mode()
    def infer(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        depth, seg = model(torch.from_numpy(to_input(image, model.uint8_input)))
        return depth.numpy(), seg.numpy()

    return infer


def compare(infer: InferenceFn, reference: InferenceFn, images: np.ndarray) -> dict[str, float]:
    """Compare the outputs of two functions; images: uint8 [N,H,W,3], N >= 1.

    Returns max_depth_error_mm, the maximum depth difference at any pixel; mean_relative_depth_error, the mean of the
    depth difference divided by the reference's depth; class_agreement, the fraction of pixels with the same class. NaN
    if either depth contains NaN.
    """
    errors, relative_errors, agreements = [], [], []
    for image in images:
        (depth, seg), (expected_depth, expected_seg) = infer(image), reference(image)
        difference = np.abs(depth - expected_depth)
        errors.append(difference.max() * MILLIMETRES)
        relative_errors.append((difference / expected_depth).mean())
        agreements.append((seg.argmax(axis=1) == expected_seg.argmax(axis=1)).mean())
    return {
        "max_depth_error_mm": float(np.max(errors)),
        "mean_relative_depth_error": float(np.mean(relative_errors)),
        "class_agreement": float(np.mean(agreements)),
    }


def score(infer: InferenceFn, frames: dict[str, np.ndarray], focal: float, recipe: Recipe) -> dict[str, float]:
    """RMSE in metres, delta1 and mIoU on held-out frames; NaN without a reference.

    Args:
        infer: the function to score.
        frames: from evaluation.held_out.evaluation_frames().
        focal: focal length of the target camera, in pixels at the network's input size.
        recipe: defines the evaluated depth range.
    """
    depth_metrics, confusion = DepthMetrics(recipe.min_depth, recipe.max_depth), ConfusionMatrix(len(CLASS_NAMES))
    columns = (frames[name] for name in ("rgb", "depth", "labels", "focal"))
    for image, depth, labels, frame_focal in zip(*columns, strict=True):
        predicted, seg = infer(image)
        metres = predicted[0, 0] * (frame_focal / focal)
        depth_metrics.update(*map(torch.from_numpy, (metres, depth, depth > 0)))
        confusion.update(*map(torch.from_numpy, (seg[0].argmax(axis=0), labels, labels != IGNORE)))
    miou = confusion.compute()["miou"]
    assert isinstance(miou, float)
    return {name: depth_metrics.compute()[name] for name in ("rmse", "delta1")} | {"miou": miou}


def degradation(scores: dict[str, float], baseline: dict[str, float]) -> dict[str, float]:
    """How much worse the scores are than the baseline; negative is better. Scores without a reference are omitted.

    Returns rmse and miou relative to the baseline (0.01 is 1 % worse), and miou_points in hundredths of mIoU.
    """
    result = {}
    if not math.isnan(baseline["rmse"]):
        result["rmse"] = (scores["rmse"] - baseline["rmse"]) / baseline["rmse"]
    if not math.isnan(baseline["miou"]):
        difference = baseline["miou"] - scores["miou"]
        result |= {"miou": difference / (baseline["miou"] or 1), "miou_points": 100 * difference}
    return result


def within_tolerance(errors: dict[str, float], degradations: dict[str, float], tolerance: Tolerance) -> bool:
    """Whether the results of compare() and degradation() are within the tolerance; NaN is not."""
    depth_ok = tolerance.depth_mm is None or errors["max_depth_error_mm"] <= tolerance.depth_mm
    depth_ok = depth_ok and errors["mean_relative_depth_error"] <= tolerance.mean_relative_depth_error
    classes_ok = errors["class_agreement"] >= tolerance.class_agreement
    return (
        depth_ok
        and classes_ok
        and all(degradations[name] <= bound for name, bound in tolerance.degradation.items() if name in degradations)
    )
