"""Export every precision, validate it against PyTorch and the reference, and un-quantise layers that lose too much."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from tabulate import tabulate

from config import Recipe
from deployment.agreement import TOLERANCES, Answer, compare, losses, run_onnx_runtime, run_pytorch, score, within
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

LISTED = 8  # tensors with the largest values that are listed
RANKING_IMAGES = 4
RANGE_IMAGES = 8  # in addition to the extreme ones; each takes a quarter of a second


class PrecisionValidator:
    """Measures the graphs of one model, float32 first: the others' losses are against that one."""

    def __init__(
        self,
        model: ExportedStudent,
        images: np.ndarray,
        frames: dict[str, np.ndarray] | None,
        focal: float,
        recipe: Recipe,
    ):
        """Set the data that graphs are validated on.

        Args:
            model: the exported model.
            images: uint8 [N,H,W,3] to compare graphs and PyTorch on.
            frames: frames to score on, from evaluation_frames(), or None.
            focal: focal length of the target camera, pixels at the network's size.
            recipe: the model's recipe.
        """
        self.model, self.exact = model, run_pytorch(model)
        self.images, self.frames, self.focal, self.recipe = images, frames, focal, recipe
        self.extremes = np.concatenate([images[:RANGE_IMAGES], extreme_images(recipe.height, recipe.width)])
        self.base: dict[str, float] | None = None

    def validate(self, precision: str, graph: onnx.ModelProto) -> dict:
        """An entry for student.json; 'passed' says whether the graph is good.

        The entry holds the errors against PyTorch in float32, the scores and their losses, and the largest fp16 values.
        Raises RuntimeError if the graph breaks the contract.
        """
        tolerance = TOLERANCES[precision]
        check_graph(graph, self.recipe.height, self.recipe.width, self.model.uint8_input)
        answer = run_onnx_runtime(graph.SerializeToString())
        scores = score(answer, self.frames, self.focal, self.recipe) if self.frames else None
        self.base = self.base or scores
        nodes = len(graph.graph.node)
        entry: dict[str, Any] = {"precision": precision, "opset": OPSET, "nodes": nodes, "scores": scores}
        entry["errors"] = compare(answer, self.exact, self.images)
        entry["losses"] = losses(scores, self.base) if scores and self.base else {}
        entry["passed"] = within(entry["errors"], entry["losses"], tolerance)
        if precision != "fp32":
            entry["largest_values"] = dict(list(fp16_ranges(graph, self.extremes).items())[:LISTED])
            entry["passed"] &= max(entry["largest_values"].values(), default=math.inf) <= MAX_FP16_VALUE
        return entry


def validate_precisions(
    model: ExportedStudent, validator: PrecisionValidator, calibration: np.ndarray | None, recipe: Recipe
) -> tuple[dict[str, bytes], list[dict]]:
    """Export and validate every precision; int8 only with calibration images, uint8 [N,H,W,3].

    Returns the serialised graphs by precision, and their entries for student.json.
    """
    half = to_half(model)
    whole = export_graph(model, recipe.height, recipe.width)
    graphs = {"fp32": whole, "fp16": export_graph(half, recipe.height, recipe.width)}
    entries = [validator.validate(precision, graph) for precision, graph in graphs.items()]
    # what ONNX Runtime computes within a node in float32, PyTorch's kernels compute in float16
    entries[1]["pytorch_half_errors"] = compare(run_pytorch(half), validator.exact, validator.images)
    entries[1]["passed"] &= within(entries[1]["pytorch_half_errors"], {}, TOLERANCES["fp16"])
    if calibration is not None and all(entry["passed"] for entry in entries):
        with Quantiser(whole, calibration, model.uint8_input) as quantiser:
            graphs["int8"], entry = validate_int8(quantiser, validator)
        entries.append(entry | {"calibration_frames": len(calibration)})
    return {precision: graph.SerializeToString() for precision, graph in graphs.items()}, entries


def validate_int8(quantiser: Quantiser, validator: PrecisionValidator) -> tuple[onnx.ModelProto, dict]:
    """The int8 graph with as many layers in int8 as its tolerance allows, and its entry.

    If all layers together exceed it, they are ranked by what each loses alone, and the worst 1, 2, 4... stay in half
    precision until the tolerance holds.
    """
    graph = quantiser.make(quantiser.layers)
    entry, left = validator.validate("int8", graph), 0
    ranking: dict[str, float] = {}
    most = len(quantiser.layers) - 1
    while not entry["passed"] and left < most:
        ranking = ranking or rank_layers(quantiser, validator.exact, validator.images[:RANKING_IMAGES])
        left = min(max(2 * left, 1), most)
        worst = set(list(ranking)[:left])
        graph = quantiser.make([layer for layer in quantiser.layers if layer not in worst])
        entry = validator.validate("int8", graph)
    return graph, entry | {"left_in_half": list(ranking)[:left], "losses_of_layers": ranking}


def rank_layers(quantiser: Quantiser, exact: Answer, images: np.ndarray) -> dict[str, float]:
    """{layer: mean error of depth, as a share of it, plus share of pixels of another class} with that layer in int8.

    In each graph only that layer is int8; the rest is float32.
    """
    lost, answers = {}, [exact(image) for image in images]
    for layer in quantiser.layers:
        answer = run_onnx_runtime(quantiser.quantise([layer]).SerializeToString())
        errors = compare(answer, _replay(answers), images)
        lost[layer] = errors["mean_depth_share"] + 1 - errors["class_agreement"]
    return dict(sorted(lost.items(), key=lambda pair: -pair[1]))


def _replay(answers: Sequence[tuple[np.ndarray, np.ndarray]]) -> Answer:
    known = iter(answers)
    return lambda image: next(known)


def print_validation(entries: Sequence[dict], images_are: str) -> None:
    """The tables of what each precision costs, and of the largest values that half precision holds."""
    lines = []
    for entry in entries:
        runs = [(entry["precision"], entry["errors"], entry["scores"] or {}, entry["losses"])]
        if "pytorch_half_errors" in entry:
            runs.append((f"{entry['precision']} by PyTorch", entry["pytorch_half_errors"], {}, {}))
        for name, errors, scores, lost in runs:
            line = [name, errors["max_depth_error_mm"], f"{errors['mean_depth_share']:.4%}"]
            line += [f"{errors['class_agreement']:.4%}", *(scores.get(key) for key in ("rmse", "delta1", "miou"))]
            lines.append(line + [f"{lost[key]:+.3%}" if key in lost else None for key in ("rmse", "miou")])
    headers = ["", "depth: most, mm", "mean", "same class", "RMSE m", "delta1", "mIoU", "RMSE lost", "mIoU lost"]
    print(f"opset {OPSET} in ONNX Runtime, against PyTorch in float32, on {images_are}:")
    print(tabulate(lines, headers, floatfmt=".4f", missingval="-"))
    for entry in entries:
        if "largest_values" in entry:
            print(f"largest values in {entry['precision']}, on extreme images, too; bound {MAX_FP16_VALUE:.0f}:")
            print(tabulate(entry["largest_values"].items(), floatfmt=".0f"))
        if entry.get("left_in_half"):
            print(f"kept in half precision, because int8 loses too much: {', '.join(entry['left_in_half'])}")
