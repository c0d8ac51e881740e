"""Export a trained student for the robot: ONNX graphs, TensorRT engines and the frames that Table III is scored on.

Reads   a checkpoint; a manifest and the frames of its split 'test'; camera.json of the robot's camera, if given.
Writes  <engine-dir>/student_fp32.onnx     rgb [1,3,240,320] float32 in 0..1 -> depth [1,1,240,320] in metres of the
                                           target camera and seg [1,6,240,320], class logits
        <engine-dir>/student_fp16.onnx     the same in half precision but for what overflows in it; float32 in and out
                                           (with --uint8-input both take rgb [1,240,320,3] uint8)
        <engine-dir>/student_fp32.engine   the same for TensorRT, on the GPU and TensorRT version it was built with
        <engine-dir>/eval_frames.npz       held-out frames with references
        <engine-dir>/student.json          what was exported, from what, for which camera, with which error

Every graph is run in ONNX Runtime against PyTorch before it is written, and half precision is shown to hold every value
that it has to; exit code 1 when not. An engine runs
only on the kind of GPU that built it: copy the folder to a Jetson with the .onnx and build there (benchmark_jetson.py
says how).
"""

import hashlib
import math
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from tabulate import tabulate

from cli import EXIT_GATE_FAILED, EXIT_OK, ArgumentParser, UserError, positive_int, run
from config import CLASS_NAMES, IGNORE, Config, Intrinsics
from dataset.files import atomic_path, write_json
from dataset.frames import to_network_camera
from dataset.manifest import Cameras
from deployment.agreement import TOLERANCES, by_onnx_runtime, by_pytorch, compare, losses, score, within
from deployment.engine import build_engine, import_tensorrt
from deployment.frames import evaluation_frames, find_test_rows, random_images, write_evaluation_frames
from deployment.graph import (
    DEPTH,
    INPUT,
    LARGEST_HALF,
    OPSET,
    SEG,
    Deployed,
    check_graph,
    export_graph,
    extreme_images,
    half_ranges,
    in_half,
)
from training.checkpoint import load_student

LISTED_RANGES = 8  # tensors in the table of the largest values


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


def write_graph(path: Path, graph: bytes) -> None:
    """Write an ONNX file; an engine beside it goes away, since it was built from an earlier one."""
    engine = path.with_suffix(".engine")
    if engine.is_file():
        engine.unlink()
        print(f"removed {engine}: it was built from an earlier export")
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph)


def file_entry(path: Path) -> dict:
    """Name, size and sha256 of a file for student.json."""
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def describe(checkpoint: Path, content: dict, camera: Intrinsics, uint8_input: bool, config: Config) -> dict:
    """student.json but for its files: from what, for which camera, inputs and outputs, versions."""
    notes = content.get("notes", {})
    shape = [config.height, config.width]
    frame = {"shape": [1, *shape, 3], "dtype": "uint8", "range": [0, 255]}
    planes = {"shape": [1, 3, *shape], "dtype": "float32", "range": [0, 1]}
    return {
        "checkpoint": {
            **file_entry(checkpoint),
            "step": content["step"],
            "encoder": content["config"]["encoder"],
            **{name: notes.get(name) for name in ("encoder_start", "git_revision", "data_fingerprint", "teachers")},
        },
        "camera": asdict(camera) | {"focal": camera.focal},
        "reference_focal": config.reference_focal,
        "input": {"name": INPUT, "colour": "RGB"} | (frame if uint8_input else planes),
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
    parser.add_argument(
        "--uint8-input", action="store_true", help="take the camera's frames as they are: uint8 [1,H,W,3], RGB"
    )
    parser.add_argument("--manifest", type=Path, help="data with test frames (default: the data folder's, else rooms')")
    parser.add_argument("--eval-frames", type=positive_int, default=32, help="at most so many (default: %(default)s)")
    return parser.parse_args()


def prove(
    model: Deployed, images: np.ndarray, frames: dict[str, np.ndarray] | None, focal: float, config: Config
) -> tuple[dict[str, bytes], list[dict]]:
    """Export every precision and measure it.

    Args:
        images: uint8 [N,H,W,3] to compare graphs and PyTorch on.
        frames: to score on, of evaluation_frames(), if there are any.
        focal: of the camera that the depth is for, in pixels at the network's size.

    Returns: the serialised graphs, and of each an entry for student.json: errors against PyTorch in float32, scores
        against the reference and what they lose, what half precision must hold; 'passed' says whether it is good.
    """
    exact, half = by_pytorch(model), in_half(model)
    graphs, entries = {}, []
    for precision, source in (("fp32", model), ("fp16", half)):
        graph = export_graph(source, config.height, config.width)
        check_graph(graph, config.height, config.width, model.uint8_input)
        graphs[precision] = graph.SerializeToString()
        answer = by_onnx_runtime(graphs[precision])
        entry = {"precision": precision, "opset": OPSET, "nodes": len(graph.graph.node)}
        entry["errors"] = compare(answer, exact, images)
        entry["scores"] = score(answer, frames, focal, config) if frames else None
        base = entries[0]["scores"] if entries else entry["scores"]
        entry["losses"] = losses(entry["scores"], base) if frames else {}
        entry["passed"] = within(entry["errors"], entry["losses"], TOLERANCES[precision])
        if source is half:
            extremes = np.concatenate([images, extreme_images(config.height, config.width)])
            entry["largest_values"] = dict(list(half_ranges(graph, extremes).items())[:LISTED_RANGES])
            entry["pytorch_half_errors"] = compare(by_pytorch(half), exact, images)
            holds = max(entry["largest_values"].values(), default=math.inf) <= LARGEST_HALF
            entry["passed"] &= holds and within(entry["pytorch_half_errors"], {}, TOLERANCES[precision])
        entries.append(entry)
    return graphs, entries


def print_proof(entries: list[dict], images_are: str) -> None:
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
            print(f"largest values in {entry['precision']} on these and on extreme images, bound {LARGEST_HALF:.0f}:")
            print(tabulate(entry["largest_values"].items(), floatfmt=".0f"))


def main() -> int:
    arguments = parse_arguments()
    student, content = load_student(arguments.checkpoint)
    notes = content.get("notes", {})
    config = Config(reference_focal=content["reference_focal"])
    camera = target_camera(arguments.camera, notes.get("camera"), config)
    model = Deployed(student, camera.focal / config.reference_focal, arguments.uint8_input)
    print(f"depth is exported for a focal length of {camera.focal:.1f} pixels at {camera.width}x{camera.height}")

    rows, images_are = find_test_rows(arguments.manifest, config, notes.get("train_stems", []), arguments.eval_frames)
    frames = evaluation_frames(rows, config) if rows else None
    if not frames:
        print(
            "*** NO HELD-OUT FRAMES: no manifest was found (--manifest names one). The graphs are compared with "
            "PyTorch on RANDOM IMAGES, and Table III will have no accuracy. ***"
        )
    images = frames["rgb"] if frames else random_images(config.height, config.width)
    graphs, precisions = prove(model, images, frames, camera.focal, config)
    print_proof(precisions, images_are)
    if failed := [entry["precision"] for entry in precisions if not entry["passed"]]:
        bounds = ", ".join(f"{precision}: {TOLERANCES[precision]}" for precision in failed)
        print(f"FAILED: {bounds}, no half-precision value above {LARGEST_HALF:.0f}; nothing was written")
        return EXIT_GATE_FAILED

    for entry in precisions:
        path = arguments.engine_dir / f"student_{entry['precision']}.onnx"
        write_graph(path, graphs[entry["precision"]])
        entry |= {"onnx": file_entry(path), "engine": None}
    evaluation = arguments.engine_dir / "eval_frames.npz"
    write_evaluation_frames(evaluation, frames)
    description = {"precisions": precisions, "compared_on": images_are}
    description |= describe(arguments.checkpoint, content, camera, arguments.uint8_input, config)
    description["evaluation"] = file_entry(evaluation) | {"frames": len(rows)} if frames else None
    write_json(arguments.engine_dir / "student.json", description)
    print(f"wrote {', '.join(sorted(path.name for path in arguments.engine_dir.glob('*')))} in {arguments.engine_dir}")
    if not arguments.skip_trt:
        build_engines(description, arguments.engine_dir)
        write_json(arguments.engine_dir / "student.json", description)
    return EXIT_OK


if __name__ == "__main__":
    run(main)
