"""The int8 graph: convolutions between Q/DQ nodes, the rest in half precision.

ONNX Runtime's static quantisation calibrates the ranges: per-channel weights, symmetric activations, no quantised bias.
Attention is not quantised. Q/DQ nodes of opset 17 support only float32, so a quantised convolution is a float32 node
between Q/DQ nodes, which runtimes fuse into one int8 kernel. The rest is as in the fp16 graph.
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

from deployment.graph import INPUT, to_input

# Node names of attention's convolutions contain this (timm's module name); they stay in half precision.
ATTENTION_SCOPE = "/context_module/"
# These stay in float32, as in the fp16 graph: normalisation, attention's matmuls and division, and everything from the
# decoders' heads (HEAD_OP) onwards.
FLOAT32_OPS = ("Cast", "BatchNormalization", "MatMul", "Div")
HEAD_OP = "ConvTranspose"


class CalibrationImages(CalibrationDataReader):
    """Feeds calibration images to ONNX Runtime; images: uint8 [N,H,W,3]."""

    def __init__(self, images: np.ndarray, uint8_input: bool):
        self.inputs = ({INPUT: to_input(image, uint8_input)} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image as the graph's input; None after the last."""
        return next(self.inputs, None)


class Quantiser:
    """Builds int8 graphs from a float32 graph, quantising a chosen subset of its convolutions.

    Use it as a context manager: it keeps the float32 graph and the calibrated ranges in a temporary folder.
    """

    def __init__(self, graph: onnx.ModelProto, images: np.ndarray, uint8_input: bool):
        """images: calibration images, uint8 [N,H,W,3], N >= 1."""
        self.images, self.uint8_input = images, uint8_input
        convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
        self.layers = [name for name in convolutions if ATTENTION_SCOPE not in name]
        self.folder = tempfile.TemporaryDirectory()
        self.source_path = Path(self.folder.name) / "float32.onnx"  # quantize_static() modifies a graph in memory
        onnx.save(graph, self.source_path)
        self.ranges_path = Path(self.folder.name) / "ranges.json"

    def __enter__(self) -> "Quantiser":
        self.build_graph(self.layers)  # calibrates the ranges of all layers, which later graphs reuse
        return self

    def __exit__(self, *exception: object) -> None:
        self.folder.cleanup()

    def build_graph(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Build the graph with these convolutions, at least one, in int8 and the rest in half precision."""
        return convert_rest_to_half(self.quantise(layers), set(layers))

    def quantise(self, layers: Sequence[str]) -> onnx.ModelProto:
        """Build the graph with these convolutions, at least one, in int8 and the rest in float32."""
        path = Path(self.folder.name) / "int8.onnx"
        logger, level = logging.getLogger(), logging.getLogger().level
        logger.setLevel(logging.ERROR)  # quantize_static() would recommend preprocessing that is already done
        try:
            quantize_static(
                self.source_path,
                path,
                CalibrationImages(self.images, self.uint8_input),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],  # not the heads (ConvTranspose): 256 levels are too coarse for outputs
                nodes_to_quantize=list(layers),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self.ranges_path,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # only inputs: an output is quantised after its activation, as the next convolution's input
                    "OpTypesToExcludeOutputQuantization": ["Conv"],
                },
            )
        finally:
            logger.setLevel(level)
        return onnx.load(path)


def convert_rest_to_half(quantised: onnx.ModelProto, layers: set[str]) -> onnx.ModelProto:
    """Convert a quantised graph to fp16 where float32 is not needed; layers: its quantised convolutions."""
    float32_nodes = {node.name for node in quantised.graph.node if node.op_type in FLOAT32_OPS or node.name in layers}
    float32_nodes |= find_between(quantised, "MatMul", "Div")  # attention's sums would overflow before the division
    float32_nodes |= find_downstream(quantised, HEAD_OP)
    qdq_ops = ["QuantizeLinear", "DequantizeLinear"]
    half = convert_float_to_float16(
        quantised, keep_io_types=True, op_block_list=qdq_ops, node_block_list=list(float32_nodes)
    )
    remove_double_casts(half)
    model = ONNXModel(half)
    model.topological_sort()
    return onnxslim.slim(model.model)


def find_consumers(graph: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Return {tensor: nodes that consume it}."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return consumers


def find_downstream(graph: onnx.ModelProto, first: str) -> set[str]:
    """Names of all nodes of operator type `first` and of all nodes downstream of them."""
    consumers, found = find_consumers(graph), set()
    pending = [node for node in graph.graph.node if node.op_type == first]
    while pending:
        node = pending.pop()
        if node.name not in found:
            found.add(node.name)
            pending += [consumer for name in node.output for consumer in consumers.get(name, [])]
    return found


def find_between(graph: onnx.ModelProto, first: str, last: str) -> set[str]:
    """Names of the nodes on all paths from operator type `first` to `last` that contain no convolution.

    Both ends of a path are included.
    """
    consumers = find_consumers(graph)

    def to_last(node: onnx.NodeProto) -> set[str]:
        if node.op_type in (last, "Conv"):
            return {node.name} if node.op_type == last else set()
        found = set().union(*(to_last(consumer) for name in node.output for consumer in consumers.get(name, [])))
        return found | {node.name} if found else set()

    return set().union(*(to_last(node) for node in graph.graph.node if node.op_type == first))


def remove_double_casts(graph: onnx.ModelProto) -> None:
    """Bypass casts from float32 to fp16 and back, in place.

    The converter adds casts at all inputs and outputs of a float32 node. Between two float32 nodes, such casts round
    the values, and they separate a DequantizeLinear node from its convolution, so that runtimes can't fuse the two.
    """
    casts = {node.output[0]: node for node in graph.graph.node if node.op_type == "Cast"}
    types = {name: node.attribute[0].i for name, node in casts.items()}
    for node in graph.graph.node:
        for position, name in enumerate(node.input):
            source = casts[name].input[0] if name in casts else None
            if types.get(name) == TensorProto.FLOAT and types.get(source) == TensorProto.FLOAT16:
                node.input[position] = casts[source].input[0]
