"""Export the student as ONNX graphs with explicit precisions, and check their inputs, outputs and fp16 ranges."""

import copy
import io
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from torch import Tensor, nn

from config import CLASS_NAMES
from models.student import Student

OPSET = 17  # the latest that the parsers of TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) support
INPUT, DEPTH, SEG = "rgb", "depth", "seg"
MAX_FP16_VALUE = 16_000.0  # bound on stored fp16 values: a quarter of fp16's maximum, a margin for unseen frames


class ExportedStudent(nn.Module):
    """The student for one camera: maps an image to depth in metres of that camera and class logits, both float32.

    The image is float32 [1,3,H,W] in 0..1, or uint8 [1,H,W,3] as cameras provide it. In half precision, these stay in
    float32: the normalisation; attention's matmuls, which overflow in fp16 (timm's block casts them); and everything
    from the decoders' heads onwards.
    """

    def __init__(self, student: Student, depth_factor: float, uint8_input: bool = False):
        """depth_factor: f / f_ref, see models/student.py."""
        super().__init__()
        self.student, self.depth_factor, self.uint8_input = student, depth_factor, uint8_input
        # The exporter ends by setting all submodules to this module's mode, so this module must be in eval mode, too.
        self.eval()

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Map the image to depth [1,1,H,W] and class logits [1,6,H,W]."""
        if self.uint8_input:  # TensorRT can only cast uint8 tensors
            rgb = rgb.float().permute(0, 3, 1, 2) / 255
        depth, seg = self.student(rgb)
        return depth * self.depth_factor, seg


def to_half(model: ExportedStudent) -> ExportedStudent:
    """Return a copy with fp16 weights, except in the decoders' heads."""
    copied = copy.deepcopy(model)
    copied.student.half()
    copied.student.depth_decoder.head.float()
    copied.student.seg_decoder.head.float()
    copied.student.mean, copied.student.variance = model.student.mean, model.student.variance
    return copied


def export_graph(model: ExportedStudent, height: int, width: int) -> onnx.ModelProto:
    """Export a model in the precision of its weights, as a simplified graph of opset 17.

    The torch.export exporter always writes opset 18. The TorchScript exporter writes 17, but three times the nodes,
    which onnxslim folds.
    """
    buffer: Any = io.BytesIO()  # Any: the exporter accepts a buffer, but its type annotation allows only paths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the TorchScript exporter is deprecated
        warnings.filterwarnings("ignore", category=UserWarning, message="Constant folding")
        torch.onnx.export(
            model,
            (torch.from_numpy(to_input(np.zeros((height, width, 3), np.uint8), model.uint8_input)),),
            buffer,
            input_names=[INPUT],
            output_names=[DEPTH, SEG],
            opset_version=OPSET,
            dynamo=False,
        )
    return onnxslim.slim(onnx.load_from_string(buffer.getvalue()))


def check_graph(graph: onnx.ModelProto, height: int, width: int, uint8_input: bool = False) -> None:
    """Raise RuntimeError if a graph is invalid or if its opset, inputs or outputs differ from what engines expect."""
    onnx.checker.check_model(graph, full_check=True)
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if opsets != {"": OPSET}:
        raise RuntimeError(f"the exporter wrote opset {opsets}, not {OPSET}")
    expected = {
        INPUT: ("UINT8", [1, height, width, 3]) if uint8_input else ("FLOAT", [1, 3, height, width]),
        DEPTH: ("FLOAT", [1, 1, height, width]),
        SEG: ("FLOAT", [1, len(CLASS_NAMES), height, width]),
    }
    tensors = {value.name: value.type.tensor_type for value in (*graph.graph.input, *graph.graph.output)}
    actual = {
        name: (onnx.TensorProto.DataType.Name(tensor.elem_type), [axis.dim_value for axis in tensor.shape.dim])
        for name, tensor in tensors.items()
    }
    if actual != expected:
        raise RuntimeError(f"the exporter wrote inputs and outputs {actual}, not {expected}")


def fp16_ranges(graph: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    """Maximum absolute value of every fp16 tensor of a graph; inf and NaN count as inf.

    This finds overflows in the tensors between nodes, which are stored as fp16. It misses an overflow inside a node,
    because ONNX Runtime on a CPU computes fp16 nodes in float32. Run to_half(model) in PyTorch to find these, too.

    Args:
        graph: from export_graph() or Quantiser.
        images: uint8 [N,H,W,3], N >= 1.

    Returns {tensor: value}, largest first; empty for a graph without fp16.
    """
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    half = [info for info in inferred.graph.value_info if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16]
    if not half:
        return {}
    instrumented = onnx.ModelProto()
    instrumented.CopyFrom(graph)
    instrumented.graph.output.extend(half)
    session = open_session(instrumented.SerializeToString(), fuse=False)  # fusion would hide tensors
    uint8_input = has_uint8_input(session)
    names = [info.name for info in half]
    largest = np.zeros(len(names))
    for image in images:
        values = session.run(names, {INPUT: to_input(image, uint8_input)})
        maxima = [np.nan_to_num(np.abs(value.astype(np.float32)), nan=np.inf).max(initial=0) for value in values]
        largest = np.maximum(largest, maxima)
    return dict(sorted(zip(names, largest.tolist(), strict=True), key=lambda pair: -pair[1]))


def open_session(graph: bytes, fuse: bool = True) -> onnxruntime.InferenceSession:
    """Open a serialised ONNX model in ONNX Runtime on the CPU; fuse: whether to optimise the graph."""
    options = onnxruntime.SessionOptions()
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # idle threads of ONNX Runtime would spin and take cores from PyTorch, which runs between its inferences
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def has_uint8_input(session: onnxruntime.InferenceSession) -> bool:
    """Whether a graph has uint8 input."""
    return session.get_inputs()[0].type == "tensor(uint8)"


def to_input(image: np.ndarray, uint8_input: bool) -> np.ndarray:
    """Convert an image, uint8 [H,W,3], to a graph's input: uint8 [1,H,W,3], or float32 [1,3,H,W] in 0..1."""
    if uint8_input:
        return image[None]
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)


def extreme_images(height: int, width: int) -> np.ndarray:
    """Images, uint8 [N,H,W,3], with extreme activations: black, white, solid colours, checkerboards, noise."""
    plain = [np.full((height, width, 3), colour) for colour in np.ndindex(2, 2, 2)]
    row, column = np.indices((height, width))
    checks = [np.repeat(((row // side + column // side) % 2)[..., None], 3, axis=2) for side in (1, 2, 16)]
    noise = np.random.default_rng(0).integers(0, 2, (height, width, 3))
    return (255 * np.stack([*plain, *checks, noise])).astype(np.uint8)
