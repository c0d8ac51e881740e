"""The int8 graph: convolutions between Q/DQ nodes, the rest in half precision.

ONNX Runtime's static quantisation calibrates the ranges: per-channel weights, symmetric activations, no quantised bias.
Attention is not quantised. Q/DQ nodes of opset 17 are float32 only, so a quantised convolution is a float32 node
between int8 tensors, which runtimes fuse into one int8 kernel. The rest is as in the fp16 graph.
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
        """The next image as the graph's input; None after the last."""
        return next(self.inputs, None)


class Quantiser:
    """Quantises chosen convolutions of a float32 graph."""

    def __init__(self, graph: onnx.ModelProto, images: np.ndarray, uint8_input: bool):
        """images: calibration frames, uint8 [N,H,W,3], N >= 1."""
        self.images, self.uint8_input = images, uint8_input
        convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
        self.layers = [name for name in convolutions if ATTENTION_PREFIX not in name]
        self.folder = tempfile.TemporaryDirectory()
        self.source = Path(self.folder.name) / "float32.onnx"  # a graph in memory would be modified
        onnx.save(graph, self.source)
        self.ranges = Path(self.folder.name) / "ranges.json"  # calibrated once

    def __enter__(self) -> "Quantiser":
        self.make(self.layers)
        return self

    def __exit__(self, *exception: object) -> None:
        self.folder.cleanup()

    def make(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The graph with these convolutions, one or more, in int8 and the others in float16."""
        return convert_rest_to_half(self.quantise(layers), set(layers))

    def quantise(self, layers: Sequence[str]) -> onnx.ModelProto:
        """The graph with these convolutions, at least one, in int8 and the rest in float32."""
        path = Path(self.folder.name) / "int8.onnx"
        logger, level = logging.getLogger(), logging.getLogger().level
        logger.setLevel(logging.ERROR)  # it recommends preprocessing that was done
        try:
            quantize_static(
                self.source,
                path,
                CalibrationImages(self.images, self.uint8_input),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],  # not the heads (ConvTranspose): 256 levels are too coarse for outputs
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
                    # an activation follows; the next convolution's input is quantised instead
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
    """Remove casts from float32 to float16 and back, in place.

    The converter adds a cast at every edge of a float32 node, also between two of them, where it rounds the values and
    separates a dequantise node from its convolution.
    """
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    types = {name: node.attribute[0].i for name, node in casts.items()}
    for node in graph.graph.node:
        for position, name in enumerate(node.input):
            source = casts[name].input[0] if name in casts else None
            if types.get(name) == TensorProto.FLOAT and types.get(source) == TensorProto.FLOAT16:
                node.input[position] = casts[source].input[0]
