"""Export and validate every precision, against PyTorch and the references; choose the int8 layers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from tabulate import tabulate

from config import Recipe
from deployment.agreement import (
    TOLERANCES,
    InferenceFn,
    compare,
    degradation,
    onnx_runtime_fn,
    pytorch_fn,
    score,
    within_tolerance,
)
from deployment.graph import (
    MAX_FP16_VALUE,
    OPSET,
    ExportedStudent,
    check_graph,
    export_graph,
    extreme_images,
    fp16_ranges,
    to_half,
)
from deployment.int8 import Quantiser

MAX_LISTED = 8  # number of tensors in the list of the largest fp16 values
N_RANKING_IMAGES = 4  # to rank the layers of the int8 graph
N_RANGE_IMAGES = 8  # to find the largest fp16 values, with the extreme images; each takes a quarter of a second


class PrecisionValidator:
    """Validates the graphs of one model. Validate fp32 first: its scores are the baseline for the other precisions."""

    def __init__(
        self,
        model: ExportedStudent,
        images: np.ndarray,
        frames: dict[str, np.ndarray] | None,
        focal: float,
        recipe: Recipe,
    ):
        """Store the model and the data to validate graphs on.

        Args:
            model: the exported model.
            images: uint8 [N,H,W,3] to compare graphs and PyTorch on.
            frames: frames to score on, from evaluation_frames(), or None.
            focal: focal length of the target camera, in pixels at the network's input size.
            recipe: the model's recipe.
        """
        self.model, self.reference = model, pytorch_fn(model)
        self.images, self.frames, self.focal, self.recipe = images, frames, focal, recipe
        self.range_images = np.concatenate([images[:N_RANGE_IMAGES], extreme_images(recipe.height, recipe.width)])
        self.baseline: dict[str, float] | None = None

    def validate(self, precision: str, graph: onnx.ModelProto) -> dict:
        """Validate a graph; returns its entry for student.json, in which 'passed' is the verdict.

        The entry holds the errors against PyTorch in float32, the scores, their degradation from the fp32 graph's
        scores, and the largest fp16 values. Raises RuntimeError as check_graph() does.
        """
        tolerance = TOLERANCES[precision]
        check_graph(graph, self.recipe.height, self.recipe.width, self.model.uint8_input)
        infer = onnx_runtime_fn(graph.SerializeToString())
        scores = score(infer, self.frames, self.focal, self.recipe) if self.frames else None
        self.baseline = self.baseline or scores
        nodes = len(graph.graph.node)
        entry: dict[str, Any] = {"precision": precision, "opset": OPSET, "nodes": nodes, "scores": scores}
        entry["errors"] = compare(infer, self.reference, self.images)
        entry["degradation"] = degradation(scores, self.baseline) if scores and self.baseline else {}
        entry["passed"] = within_tolerance(entry["errors"], entry["degradation"], tolerance)
        if precision != "fp32":
            entry["largest_values"] = dict(list(fp16_ranges(graph, self.range_images).items())[:MAX_LISTED])
            entry["passed"] &= max(entry["largest_values"].values(), default=math.inf) <= MAX_FP16_VALUE
        return entry


def validate_precisions(
    model: ExportedStudent, validator: PrecisionValidator, calibration: np.ndarray | None, recipe: Recipe
) -> tuple[dict[str, bytes], list[dict]]:
    """Export and validate every precision; int8 only with calibration images, uint8 [N,H,W,3].

    Returns the serialised graphs by precision, and their entries for student.json.
    """
    half_model = to_half(model)
    float32_graph = export_graph(model, recipe.height, recipe.width)
    graphs = {"fp32": float32_graph, "fp16": export_graph(half_model, recipe.height, recipe.width)}
    entries = [validator.validate(precision, graph) for precision, graph in graphs.items()]
    # Run the half-precision model in PyTorch, too: on the CPU, PyTorch's kernels compute in fp16, but ONNX Runtime
    # computes fp16 nodes in float32.
    fp16_entry = entries[1]
    fp16_entry["pytorch_half_errors"] = compare(pytorch_fn(half_model), validator.reference, validator.images)
    fp16_entry["passed"] &= within_tolerance(fp16_entry["pytorch_half_errors"], {}, TOLERANCES["fp16"])
    if calibration is not None and all(entry["passed"] for entry in entries):
        with Quantiser(float32_graph, calibration, model.uint8_input) as quantiser:
            graphs["int8"], entry = choose_int8_layers(quantiser, validator)
        entries.append(entry | {"calibration_frames": len(calibration)})
    return {precision: graph.SerializeToString() for precision, graph in graphs.items()}, entries


def choose_int8_layers(quantiser: Quantiser, validator: PrecisionValidator) -> tuple[onnx.ModelProto, dict]:
    """Build the int8 graph with as many int8 layers as the tolerance allows; returns it and its entry.

    If the graph with all layers in int8 exceeds the tolerance, the layers are ranked by the error that each causes
    alone. The worst 1, 2, 4... layers then stay in half precision until the graph passes or one int8 layer is left.
    """
    graph = quantiser.build_graph(quantiser.layers)
    entry, n_half = validator.validate("int8", graph), 0
    ranking: dict[str, float] = {}
    max_half = len(quantiser.layers) - 1
    while not entry["passed"] and n_half < max_half:
        ranking = ranking or rank_layers(quantiser, validator.reference, validator.images[:N_RANKING_IMAGES])
        n_half = min(max(2 * n_half, 1), max_half)
        worst = set(list(ranking)[:n_half])
        graph = quantiser.build_graph([layer for layer in quantiser.layers if layer not in worst])
        entry = validator.validate("int8", graph)
    return graph, entry | {"left_in_half": list(ranking)[:n_half], "layer_errors": ranking}


def rank_layers(quantiser: Quantiser, reference: InferenceFn, images: np.ndarray) -> dict[str, float]:
    """Return {layer: mean relative depth error + fraction of pixels with a changed class}, worst layer first.

    The error of a layer is that of a graph with only this layer in int8 and the rest in float32.
    """
    layer_errors, reference_outputs = {}, [reference(image) for image in images]
    for layer in quantiser.layers:
        infer = onnx_runtime_fn(quantiser.quantise([layer]).SerializeToString())
        errors = compare(infer, _replay(reference_outputs), images)
        layer_errors[layer] = errors["mean_relative_depth_error"] + 1 - errors["class_agreement"]
    return dict(sorted(layer_errors.items(), key=lambda pair: -pair[1]))


def _replay(outputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> InferenceFn:
    """Wrap stored outputs as a function that returns the next one at each call, whatever the image."""
    remaining = iter(outputs)
    return lambda image: next(remaining)


def print_validation(entries: Sequence[dict], images_description: str) -> None:
    """Print the errors and scores of each precision, and the largest fp16 values."""
    lines = []
    for entry in entries:
        rows = [(entry["precision"], entry["errors"], entry["scores"] or {}, entry["degradation"])]
        if "pytorch_half_errors" in entry:
            rows.append((f"{entry['precision']} in PyTorch", entry["pytorch_half_errors"], {}, {}))
        for name, errors, scores, degradations in rows:
            line = [name, errors["max_depth_error_mm"], f"{errors['mean_relative_depth_error']:.4%}"]
            line += [f"{errors['class_agreement']:.4%}", *(scores.get(key) for key in ("rmse", "delta1", "miou"))]
            line += [f"{degradations[key]:+.3%}" if key in degradations else None for key in ("rmse", "miou")]
            lines.append(line)
    headers = [
        "",
        "max depth error, mm",
        "mean relative depth error",
        "same class",
        "RMSE, m",
        "delta1",
        "mIoU",
        "RMSE increase",
        "mIoU decrease",
    ]
    print(f"opset {OPSET} in ONNX Runtime against PyTorch in float32, on {images_description}:")
    print(tabulate(lines, headers, floatfmt=".4f", missingval="-"))
    for entry in entries:
        if "largest_values" in entry:
            print(
                f"largest fp16 values in {entry['precision']}, including extreme images; bound {MAX_FP16_VALUE:.0f}:"
            )
            print(tabulate(entry["largest_values"].items(), floatfmt=".0f"))
        if entry.get("left_in_half"):
            print(f"layers kept in half precision, because int8 is too inaccurate: {', '.join(entry['left_in_half'])}")
