"""The student as ONNX graphs that carry their own precision: export, contract, and what half precision can hold."""

import copy
import io
import warnings

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from torch import Tensor, nn

from config import CLASS_NAMES
from models.student import Student

OPSET = 17  # the newest that the parsers of TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read
INPUT, DEPTH, SEG = "rgb", "depth", "seg"
LARGEST_HALF = 16_000.0  # what a float16 tensor may hold: a quarter of what overflows, for frames that nobody has seen


class Deployed(nn.Module):
    """The student behind one camera: [1,3,H,W] in 0..1 to depth in metres of that camera and class logits, all float32.

    In half precision, too: float32 are then the normalisation of the image, attention's products (timm's block sees to
    that; they overflow in float16) and depth from its logarithm on.
    """

    def __init__(self, student: Student, depth_factor: float):
        """depth_factor: f / f_ref, see models/student.py."""
        super().__init__()
        self.student, self.depth_factor = student, depth_factor
        self.eval()  # all of it: the exporter puts every part back into the mode that it finds the outermost one in

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        depth, seg = self.student(rgb)
        return depth * self.depth_factor, seg.float()


def in_half(model: Deployed) -> Deployed:
    """A copy whose weights are float16."""
    copied = copy.deepcopy(model)
    copied.student.half()
    copied.student.mean, copied.student.std = model.student.mean, model.student.std
    return copied


def export_graph(model: Deployed, height: int, width: int) -> onnx.ModelProto:
    """The graph of a model in the precision of its weights, simplified, in one piece, opset 17.

    torch.export's exporter writes opset 18 whatever is asked for; the TorchScript one writes 17, in three times the
    nodes, which onnxslim folds.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter itself
        warnings.filterwarnings("ignore", category=UserWarning, message="Constant folding")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, height, width),),
            buffer,
            input_names=[INPUT],
            output_names=[DEPTH, SEG],
            opset_version=OPSET,
            dynamo=False,
        )
    return onnxslim.slim(onnx.load_from_string(buffer.getvalue()))


def check_graph(graph: onnx.ModelProto, height: int, width: int) -> None:
    """Raises RuntimeError when a graph is not valid, or of other opset, names, types or shapes than engines rely on."""
    onnx.checker.check_model(graph, full_check=True)
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if opsets != {"": OPSET}:
        raise RuntimeError(f"the exporter wrote opset {opsets}, not {OPSET}")
    contract = {
        INPUT: [1, 3, height, width],
        DEPTH: [1, 1, height, width],
        SEG: [1, len(CLASS_NAMES), height, width],
    }
    tensors = {value.name: value.type.tensor_type for value in (*graph.graph.input, *graph.graph.output)}
    shapes = {name: [axis.dim_value for axis in tensor.shape.dim] for name, tensor in tensors.items()}
    if shapes != contract or any(tensor.elem_type != onnx.TensorProto.FLOAT for tensor in tensors.values()):
        raise RuntimeError(f"the exporter wrote inputs and outputs {shapes}, not float32 {contract}")


def half_ranges(graph: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    """The largest absolute value of every tensor that a graph stores as float16; inf and NaN count as inf.

    ONNX Runtime computes float16 nodes in float32 on a CPU, so what overflows within a node does not show; between two
    nodes it does, because each tensor is stored as the graph says. in_half(model) run by PyTorch shows the rest.

    Args:
        images: uint8 [N,H,W,3], N >= 1.

    Returns: {tensor: value}, the largest first; empty for a graph without float16.
    """
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    half = [info for info in inferred.graph.value_info if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16]
    if not half:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    watched.graph.output.extend(half)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused nodes store less
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [info.name for info in half]
    largest = np.zeros(len(names))
    for image in images:
        values = session.run(names, {INPUT: as_input(image)})
        found = [np.nan_to_num(np.abs(value.astype(np.float32)), nan=np.inf).max(initial=0) for value in values]
        largest = np.maximum(largest, found)
    return dict(sorted(zip(names, largest.tolist(), strict=True), key=lambda pair: -pair[1]))


def as_input(image: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] to what a graph takes: float32 [1,3,H,W] in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)


def extreme_images(height: int, width: int) -> np.ndarray:
    """uint8 [N,H,W,3] that drive activations far: black, white, plain colours, noise, fine and coarse checks."""
    plain = [np.full((height, width, 3), colour) for colour in np.ndindex(2, 2, 2)]
    row, column = np.indices((height, width))
    checks = [np.repeat(((row // side + column // side) % 2)[..., None], 3, axis=2) for side in (1, 2, 16)]
    noise = np.random.default_rng(0).integers(0, 2, (height, width, 3))
    return (255 * np.stack([*plain, *checks, noise])).astype(np.uint8)
