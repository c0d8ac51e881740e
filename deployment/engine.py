"""TensorRT, whichever generation is installed: parse a graph and build an engine of it in the graph's own precisions.

From 10 on a network can be strongly typed: every tensor has the type that the graph gives it. 8.5 and 8.6 know no such
mode; there float16 and int8 are allowed as a whole and forbidden to the layers that the graph keeps in float32.
"""

import onnx

from cli import UserError


def import_tensorrt():
    """The tensorrt module; raises UserError when it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise UserError(f"no engine was built: {error}; --skip-trt exports the ONNX alone") from None
    return tensorrt


def parse_graph(trt, graph: bytes) -> tuple:
    """TensorRT's builder, network and parser of an ONNX graph; all three must live until the engine is built.

    Args:
        trt: the tensorrt module, 8.5 or newer.

    Raises UserError when there is no GPU to build for or the parser does not take the graph.
    """
    flags = trt.NetworkDefinitionCreationFlag
    flag = flags.STRONGLY_TYPED if is_strongly_typed(trt) else flags.EXPLICIT_BATCH
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what the binding makes of a null pointer
        raise UserError(
            f"TensorRT {trt.__version__} finds no usable GPU ({error}); --skip-trt exports the ONNX alone"
        ) from None
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        problems = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"TensorRT {trt.__version__} does not take the graph: {problems}")
    return builder, network, parser


def build_engine(trt, graph: bytes) -> bytes:
    """A serialised engine of an ONNX graph for the GPU at hand; raises like parse_graph()."""
    builder, network, parser = parse_graph(trt, graph)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa are no float32
    if not is_strongly_typed(trt):
        keep_types(trt, network, config, graph)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} could not build an engine; its messages stand above")
    return bytes(engine)


def is_strongly_typed(trt) -> bool:
    """Whether this generation takes each tensor's type from the graph."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def keep_types(trt, network, config, graph: bytes) -> None:
    """Have 8.5 and 8.6 compute in float16 and int8 what a graph computes in them, and nothing else."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph)).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    if onnx.TensorProto.FLOAT16 not in types.values():
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    scaled = {node.output[0] for node in inferred.node if node.op_type == "DequantizeLinear"}
    if scaled:
        config.set_flag(trt.BuilderFlag.INT8)
    whole = {
        node.name
        for node in inferred.node
        if types.get(node.output[0]) == onnx.TensorProto.FLOAT and not scaled & {*node.input, *node.output}
    }
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in whole:
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.float32)
