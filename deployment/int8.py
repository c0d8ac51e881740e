"""The int8 graph: convolutions between quantise and dequantise nodes, the rest in half precision.

ONNX Runtime's static quantisation sets the ranges from calibration frames: weights per channel, activations symmetric,
biases left alone. Attention is left out. Q/DQ of opset 17 are float32 only, so a quantised convolution is float32
between int8 on both sides, which runtimes fuse into one int8 kernel; the rest is as in the fp16 graph.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxslim
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from deployment.graph import INPUT, as_input

# In the names of convolutions that stay in half precision: attention's, as timm names it.
ATTENTION_PREFIX = "/context_module/"
# Float32 in the fp16 graph, too: the image's normalisation, attention's products, and the heads with what follows them.
FLOAT32_OPS = ("Cast", "BatchNormalization", "MatMul", "Div")
HEAD = "ConvTranspose"


class CalibrationImages(CalibrationDataReader):
    """Calibration frames as ONNX Runtime wants them; images: uint8 [N,H,W,3]."""

    def __init__(self, images: np.ndarray, uint8_input: bool):
        self.inputs = ({INPUT: as_input(image, uint8_input)} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next frame as the graph's input; None after the last."""
        return next(self.inputs, None)


class Quantiser:
    """Makes int8 graphs of one float32 graph, with more or fewer of its convolutions quantised."""

    def __init__(self, graph: onnx.ModelProto, images: np.ndarray, uint8_input: bool):
        """images: calibration frames, uint8 [N,H,W,3], N >= 1."""
        self.images, self.uint8_input = images, uint8_input
        convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
        self.layers = [name for name in convolutions if ATTENTION_PREFIX not in name]
        self.folder = tempfile.TemporaryDirectory()
        self.source = Path(self.folder.name) / "float32.onnx"  # a graph in memory would be changed
        onnx.save(graph, self.source)
        self.ranges = Path(self.folder.name) / "ranges.json"  # calibrated once, by the first graph

    def __enter__(self) -> "Quantiser":
        self.make(self.layers)
        return self

    def __exit__(self, *exception: object) -> None:
        self.folder.cleanup()

    def make(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The graph with these convolutions, one or more, in int8 and the others in float16."""
        return convert_rest_to_half(self.quantise(layers), set(layers))

    def quantise(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The graph with these convolutions, one or more, in int8 and all else in float32."""
        path = Path(self.folder.name) / "int8.onnx"
        logger, level = logging.getLogger(), logging.getLogger().level
        logger.setLevel(logging.ERROR)  # it advises to simplify a graph that has been simplified
        try:
            quantize_static(
                self.source,
                path,
                CalibrationImages(self.images, self.uint8_input),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],  # not the heads, transposed: 256 steps would be too coarse for answers
                nodes_to_quantize=list(layers),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self.ranges,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # what comes out meets an activation first, and is rounded once, where the next one takes it in
                    "OpTypesToExcludeOutputQuantization": ["Conv"],
                },
            )
        finally:
            logger.setLevel(level)
        return onnx.load(path)


def convert_rest_to_half(quantised: onnx.ModelProto, layers: set[str]) -> onnx.ModelProto:
    """A quantised graph with float16 where it need not be float32; layers: its quantised convolutions."""
    whole = {node.name for node in quantised.graph.node if node.op_type in FLOAT32_OPS or node.name in layers}
    whole |= between(quantised, "MatMul", "Div")  # attention's sums, that only the division makes small again
    whole |= nodes_downstream(quantised, HEAD)
    kinds = ["QuantizeLinear", "DequantizeLinear"]
    half = convert_float_to_float16(quantised, keep_io_types=True, op_block_list=kinds, node_block_list=list(whole))
    skip_double_casts(half)
    model = ONNXModel(half)
    model.topological_sort()
    return onnxslim.slim(model.model)


def find_consumers(graph: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """{tensor: the nodes that read it}."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def nodes_downstream(graph: onnx.ModelProto, first: str) -> set[str]:
    """Names of the operators `first` and of all nodes that depend on them."""
    readers, found = find_consumers(graph), set()
    waiting = [node for node in graph.graph.node if node.op_type == first]
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += [reader for name in node.output for reader in readers.get(name, [])]
    return found


def between(graph: onnx.ModelProto, first: str, last: str) -> set[str]:
    """Names of the nodes on the ways from operators `first` to `last` that meet no convolution, those included."""
    readers = find_consumers(graph)

    def to_last(node: onnx.NodeProto) -> set[str]:
        if node.op_type in (last, "Conv"):
            return {node.name} if node.op_type == last else set()
        found = set().union(*(to_last(reader) for name in node.output for reader in readers.get(name, [])))
        return found | {node.name} if found else set()

    return set().union(*(to_last(node) for node in graph.graph.node if node.op_type == first))


def skip_double_casts(graph: onnx.ModelProto) -> None:
    """Read a float32 tensor directly where it is read through float16 and back, in place.

    The converter puts a cast at every edge of a float32 node, also between two such nodes, where the detour rounds
    values and stands between a dequantise node and its convolution.
    """
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    types = {name: node.attribute[0].i for name, node in casts.items()}
    for node in graph.graph.node:
        for position, name in enumerate(node.input):
            source = casts[name].input[0] if name in casts else None
            if types.get(name) == TensorProto.FLOAT and types.get(source) == TensorProto.FLOAT16:
                node.input[position] = casts[source].input[0]
