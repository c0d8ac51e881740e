"""Build TensorRT engines on the exporting machine, with the builder of benchmark_jetson.py."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from cli import UserError

import onnx
import torch

from benchmark_jetson import BenchmarkError, build_engine, identity


def import_tensorrt() -> ModuleType:
    """Import tensorrt; raises UserError if it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise UserError(f"no engine was built: {error}; --skip-trt exports the ONNX alone") from None
    return tensorrt


def build(trt: ModuleType, onnx_path: Path, entry: dict) -> tuple[bytes, dict[str, str]]:
    """Build an engine of an exported graph for this GPU; returns it and the GPU and TensorRT version it needs.

    Args:
        trt: the tensorrt module, 8.5 or newer.
        onnx_path: the graph; timing.cache is kept beside it.
        entry: the graph's entry in 'precisions' of student.json.

    Raises UserError if there is no GPU or TensorRT rejects the graph.
    """
    try:
        engine = build_engine(trt, onnx_path.read_bytes(), entry, onnx_path.parent / "timing.cache")
    except BenchmarkError as error:
        raise UserError(f"{error}; --skip-trt exports the ONNX alone") from None
    gpu = "unknown"
    capability: Sequence[int] = ()
    if torch.cuda.is_available():
        gpu, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return engine, identity(trt, gpu, capability)


def layer_precisions(graph: onnx.ModelProto) -> dict:
    """The layer precisions that benchmark_jetson.build_engine() needs if the network is not strongly typed.

    Returns 'int8', whether the graph has quantised layers, and 'float32_layers', the names of its float32 layers, or
    None for a graph without fp16.
    """
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    dequantised = {node.output[0] for node in inferred.node if node.op_type == "DequantizeLinear"}
    if onnx.TensorProto.FLOAT16 not in types.values():
        return {"int8": bool(dequantised), "float32_layers": None}
    float32_layers = [
        node.name
        for node in inferred.node
        if types.get(node.output[0]) == onnx.TensorProto.FLOAT and not dequantised & {*node.input, *node.output}
    ]
    return {"int8": bool(dequantised), "float32_layers": float32_layers}
