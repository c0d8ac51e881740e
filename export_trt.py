"""Export a trained student for the robot: ONNX graphs, TensorRT engines and the frames that Table III is scored on.

Reads   a checkpoint; a manifest and the frames of its split 'test'; camera.json of the robot's camera, if given.
Writes  <engine-dir>/student_fp32.onnx     rgb [1,3,240,320] float32 in 0..1 -> depth [1,1,240,320] in metres of the
                                           target camera and seg [1,6,240,320], class logits
        <engine-dir>/student_fp32.engine   the same for TensorRT, on the GPU and TensorRT version it was built with
        <engine-dir>/eval_frames.npz       held-out frames with references
        <engine-dir>/student.json          what was exported, from what, for which camera, with which error

Every graph is run in ONNX Runtime against PyTorch before it is written; exit code 1 when they differ. An engine runs
only on the kind of GPU that built it: copy the folder to a Jetson with the .onnx and build there (benchmark_jetson.py
says how).
"""

import hashlib
import io
import platform
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from torch import Tensor, nn

from cli import EXIT_GATE_FAILED, EXIT_OK, ArgumentParser, UserError, positive_int, run
from config import CLASS_NAMES, IGNORE, NYU_INTRINSICS, Config, Intrinsics
from dataset.files import atomic_path, write_json
from dataset.frames import MILLIMETRES, Frame, read_frame, to_network_camera
from dataset.manifest import Cameras, Row, read_manifest
from models.metrics import eigen_crop
from models.student import Student
from training.checkpoint import load_student
from training.feed import choose_rows, pack_frame

OPSET = 17  # the newest that the parsers of TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read
RANDOM_IMAGES = 4  # what graphs are compared on when there are no held-out frames
INPUT, DEPTH, SEG = "rgb", "depth", "seg"


@dataclass(frozen=True)
class Tolerance:
    """How far a graph may stray from PyTorch: depth in millimetres anywhere, share of pixels with the same class."""

    depth_mm: float
    class_agreement: float


TOLERANCES = {"fp32": Tolerance(depth_mm=1.0, class_agreement=0.999)}  # by precision, in the order of export


class Deployed(nn.Module):
    """The student behind one camera: [1,3,H,W] in 0..1 to depth in metres of that camera and class logits."""

    def __init__(self, student: Student, depth_factor: float):
        """depth_factor: f / f_ref, see models/student.py."""
        super().__init__()
        self.student, self.depth_factor = student, depth_factor
        self.eval()  # all of it: the exporter puts every part back into the mode that it finds the outermost one in

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        depth, seg = self.student(rgb)
        return depth * self.depth_factor, seg


def target_camera(camera_file: Path | None, trained_camera: dict | None, config: Config) -> Intrinsics:
    """The camera that the exported depth is for, at the network's size.

    Args:
        camera_file: camera.json of the robot, wins when given.
        trained_camera: the checkpoint's notes on the one camera of its training data, None when there were several.

    Raises UserError when the file is no camera.json with one camera, or when there is neither.
    """
    if camera_file:
        cameras = Cameras.read(camera_file)
        different = {cameras.common} if cameras.common else set(cameras.by_stem.values())
        if len(different) != 1:
            raise UserError(f"--camera {camera_file} holds {len(different)} cameras: depth is exported for one")
        return to_network_camera(different.pop(), config.width, config.height)
    if trained_camera:
        return Intrinsics(**trained_camera)
    raise UserError(
        "the training data had several cameras or none with intrinsics, so nothing says for which one to export depth: "
        "give the robot's with --camera camera.json"
    )


def find_test_rows(manifest: Path | None, config: Config, train_stems: list[str], limit: int) -> tuple[list[Row], str]:
    """Rows of the test split that the student was not trained on, and what they are in words.

    Without `manifest` the data folder's is taken, else the rendered rooms'; no row when there is neither.
    Raises UserError when the manifest is unreadable or has no such row.
    """
    candidates = [config.teacher_data_dir, config.data_root / "rooms_teacher_data"]
    found = [folder / "manifest.jsonl" for folder in candidates if (folder / "manifest.jsonl").is_file()]
    if manifest is None and not found:
        return [], "random images"
    manifest = manifest or found[0]
    trained = set(train_stems)
    test_rows = [row for row in read_manifest(manifest) if row.split == "test"]
    rows = [row for row in test_rows if row.stem not in trained]
    if len(rows) < len(test_rows):
        print(f"left out {len(test_rows) - len(rows)} test frames of {manifest}: the student was trained on them")
    if not rows:
        raise UserError(f"{manifest} has no frame of the split 'test' that the student was not trained on")
    rows = choose_rows(rows, "test", limit)
    return rows, f"{len(rows)} test frames of {manifest.parent.name}/{manifest.name}"


def evaluation_frames(rows: list[Row], config: Config) -> dict[str, np.ndarray]:
    """The arrays of eval_frames.npz: what Table III is computed from, at the network's size.

    Returns: rgb uint8 [N,H,W,3]; depth float32 [N,H,W], metres of the frame's own camera, 0 where the sensor gave
        none that is trusted or the benchmark of the data does not score; labels uint8 [N,H,W], reference classes, 255
        = none; focal float32 [N], pixels at this size (the reference's for a frame without intrinsics);
        stems, fixed-width strings [N].
    """
    frames = [read_frame(row) for row in rows]
    packed = [pack_frame(frame, config.width, config.height) for frame in frames]
    return {
        "rgb": np.stack([maps["rgb"] for maps in packed]),
        "depth": np.stack([_trusted_depth(*pair, config) for pair in zip(frames, packed, strict=True)]),
        "labels": np.stack([maps["labels"][..., 0] for maps in packed]),
        "focal": np.array([_focal(frame, config) for frame in frames], dtype=np.float32),
        "stems": np.array([frame.stem for frame in frames]),
    }


def _trusted_depth(frame: Frame, packed: dict[str, np.ndarray], config: Config) -> np.ndarray:
    confident = packed["confidence"] >= config.confidence_threshold * 255
    depth = np.where(confident, packed["depth"], 0)[..., 0].astype(np.float32) / np.float32(MILLIMETRES)
    if frame.intrinsics != NYU_INTRINSICS:
        return depth
    scored = np.zeros_like(depth)
    window = eigen_crop(*depth.shape)
    scored[window] = depth[window]
    return scored


def _focal(frame: Frame, config: Config) -> float:
    if frame.intrinsics is None:
        return config.reference_focal
    return to_network_camera(frame.intrinsics, config.width, config.height).focal


def export_fp32(model: Deployed, height: int, width: int) -> onnx.ModelProto:
    """The float32 graph, simplified, in one piece, opset 17.

    torch.export's exporter writes opset 18 whatever is asked for; the TorchScript one writes 17, in three times the
    nodes, which onnxslim folds. Attention's divisions stay float32 like everything else.
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


@torch.inference_mode()
def compare(graph: bytes, model: Deployed, images: np.ndarray) -> dict[str, float]:
    """How far a graph in ONNX Runtime strays from PyTorch.

    Args:
        graph: a serialised ONNX model.
        images: uint8 [N,H,W,3], N >= 1.

    Returns: max_depth_error_mm, the largest difference at any pixel; class_agreement, the share of pixels with the
        same class. NaN as soon as either side says NaN.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    errors, agreements = [], []
    for image in images:
        rgb = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float() / 255
        depth, seg = session.run([DEPTH, SEG], {INPUT: rgb.numpy()})
        expected_depth, expected_seg = (output.numpy() for output in model(rgb))
        errors.append(np.abs(depth - expected_depth).max() * MILLIMETRES)
        agreements.append((seg.argmax(axis=1) == expected_seg.argmax(axis=1)).mean())
    return {"max_depth_error_mm": float(np.max(errors)), "class_agreement": float(np.mean(agreements))}


def within(errors: dict[str, float], tolerance: Tolerance) -> bool:
    """Whether the errors of compare() are within a tolerance; NaN is not."""
    same_depth = errors["max_depth_error_mm"] <= tolerance.depth_mm
    return same_depth and errors["class_agreement"] >= tolerance.class_agreement


def random_images(height: int, width: int) -> np.ndarray:
    """uint8 [RANDOM_IMAGES,H,W,3], always the same."""
    return np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, height, width, 3), dtype=np.uint8)


def parse_graph(trt, graph: bytes) -> tuple:
    """TensorRT's builder, network and parser of an ONNX graph; all three must live until the engine is built.

    Args:
        trt: the tensorrt module, 8.5 or newer.

    Raises UserError when there is no GPU to build for or the parser does not take the graph.
    """
    flags = trt.NetworkDefinitionCreationFlag
    # From 10 on types come from the graph; 8.5 and 8.6 know no such mode and must be asked for an explicit batch.
    flag = flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH
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
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"TensorRT {trt.__version__} could not build an engine; its messages stand above")
    return bytes(engine)


def import_tensorrt():
    """The tensorrt module; raises UserError when it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise UserError(f"no engine was built: {error}; --skip-trt exports the ONNX alone") from None
    return tensorrt


def write_graph(path: Path, graph: bytes) -> None:
    """Write an ONNX file; an engine beside it goes away, since it was built from an earlier one."""
    engine = path.with_suffix(".engine")
    if engine.is_file():
        engine.unlink()
        print(f"removed {engine}: it was built from an earlier export")
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph)


def write_evaluation_frames(path: Path, frames: dict[str, np.ndarray] | None) -> None:
    """Write eval_frames.npz; without frames an older one goes away."""
    if frames:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **frames)
    elif path.is_file():
        path.unlink()
        print(f"removed {path}: this export has no held-out frames")


def file_entry(path: Path) -> dict:
    """Name, size and sha256 of a file for student.json."""
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def describe(checkpoint: Path, content: dict, camera: Intrinsics, config: Config) -> dict:
    """student.json but for its files: from what, for which camera, inputs and outputs, versions."""
    notes = content.get("notes", {})
    shape = [config.height, config.width]
    return {
        "checkpoint": {
            **file_entry(checkpoint),
            "step": content["step"],
            "encoder": content["config"]["encoder"],
            **{name: notes.get(name) for name in ("encoder_start", "git_revision", "data_fingerprint", "teachers")},
        },
        "camera": asdict(camera) | {"focal": camera.focal},
        "reference_focal": config.reference_focal,
        "input": {"name": INPUT, "shape": [1, 3, *shape], "dtype": "float32", "range": [0, 1], "colour": "RGB"},
        "outputs": [
            {"name": DEPTH, "shape": [1, 1, *shape], "dtype": "float32", "unit": "metres of the camera above"},
            {"name": SEG, "shape": [1, len(CLASS_NAMES), *shape], "dtype": "float32", "unit": "logits"},
        ],
        "class_names": list(CLASS_NAMES),
        "ignore": IGNORE,
        "scored_depth": [config.min_depth, config.max_depth],
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, onnx, onnxruntime, onnxslim)},
        },
        "gpu": None,
        "tensorrt": None,
    }


def build_engines(description: dict, engine_dir: Path) -> None:
    """Build the engine of every exported graph and note it in the description; raises like build_engine()."""
    trt = import_tensorrt()
    for entry in description["precisions"]:
        onnx_path = engine_dir / entry["onnx"]["file"]
        print(f"building {onnx_path.with_suffix('.engine')} with TensorRT {trt.__version__}: takes minutes")
        with atomic_path(onnx_path.with_suffix(".engine")) as temporary:
            temporary.write_bytes(build_engine(trt, onnx_path.read_bytes()))
        entry["engine"] = file_entry(onnx_path.with_suffix(".engine"))
    description["tensorrt"] = trt.__version__
    description["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None


def parse_arguments():
    parser = ArgumentParser(__doc__)
    config = Config()
    parser.add_argument("--checkpoint", type=Path, required=True, help="best.pt of train.py")
    parser.add_argument("--engine-dir", type=Path, default=config.engine_dir, help="default: %(default)s")
    parser.add_argument("--skip-trt", action="store_true", help="export and check the ONNX, build no engine")
    parser.add_argument("--camera", type=Path, help="camera.json of the robot (default: the training data's camera)")
    parser.add_argument("--manifest", type=Path, help="data with test frames (default: the data folder's, else rooms')")
    parser.add_argument("--eval-frames", type=positive_int, default=32, help="at most so many (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    student, content = load_student(arguments.checkpoint)
    notes = content.get("notes", {})
    config = Config(reference_focal=content["reference_focal"])
    camera = target_camera(arguments.camera, notes.get("camera"), config)
    model = Deployed(student, camera.focal / config.reference_focal)
    print(f"depth is exported for a focal length of {camera.focal:.1f} pixels at {camera.width}x{camera.height}")

    rows, images_are = find_test_rows(arguments.manifest, config, notes.get("train_stems", []), arguments.eval_frames)
    frames = evaluation_frames(rows, config) if rows else None
    if not frames:
        print(
            "*** NO HELD-OUT FRAMES: no manifest was found (--manifest names one). The graph is compared with PyTorch "
            "on RANDOM IMAGES, and Table III will have no accuracy. ***"
        )
    images = frames["rgb"] if frames else random_images(config.height, config.width)

    graphs = {"fp32": export_fp32(model, config.height, config.width)}
    precisions = []
    for precision, graph in graphs.items():
        check_graph(graph, config.height, config.width)
        errors = compare(graph.SerializeToString(), model, images)
        print(
            f"{precision}: opset {OPSET}, {len(graph.graph.node)} nodes; against PyTorch on {images_are}: "
            f"largest depth difference {errors['max_depth_error_mm']:.4f} mm, "
            f"{errors['class_agreement']:.4%} of pixels have the same class"
        )
        if not within(errors, TOLERANCES[precision]):
            print(f"FAILED: {precision} may differ by at most {TOLERANCES[precision]}; nothing was written")
            return EXIT_GATE_FAILED
        precisions.append({"precision": precision, "opset": OPSET, "errors": errors | {"images": images_are}})

    for entry in precisions:
        path = arguments.engine_dir / f"student_{entry['precision']}.onnx"
        write_graph(path, graphs[entry["precision"]].SerializeToString())
        entry |= {"onnx": file_entry(path), "engine": None}
    evaluation = arguments.engine_dir / "eval_frames.npz"
    write_evaluation_frames(evaluation, frames)
    description = {"precisions": precisions} | describe(arguments.checkpoint, content, camera, config)
    description["evaluation"] = file_entry(evaluation) | {"frames": len(rows)} if frames else None
    write_json(arguments.engine_dir / "student.json", description)
    print(f"wrote {', '.join(sorted(path.name for path in arguments.engine_dir.glob('*')))} in {arguments.engine_dir}")
    if not arguments.skip_trt:
        build_engines(description, arguments.engine_dir)
        write_json(arguments.engine_dir / "student.json", description)
    return EXIT_OK


if __name__ == "__main__":
    run(main)
