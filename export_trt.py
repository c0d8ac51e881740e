"""Export a trained student for the robot: ONNX graphs, TensorRT engines and the evaluation frames of Table III.

Reads   a checkpoint; a manifest and the frames of its split 'test'; camera.json of the robot's camera, if given.
Writes  <engine-dir>/student_fp32.onnx     rgb [1,3,240,320] float32 in 0..1 -> depth [1,1,240,320] in metres of the
                                           target camera and seg [1,6,240,320], class logits
        <engine-dir>/student_fp16.onnx     the same in half precision, except what would overflow; float32 in and out
                                           (with --uint8-input all graphs take rgb [1,240,320,3] uint8)
        <engine-dir>/student_int8.onnx     the same with convolutions in int8 and the rest in half precision
        <engine-dir>/student_fp32.engine   TensorRT engines, only for the GPU model and TensorRT version that built them
        <engine-dir>/eval_frames.npz       held-out frames with references
        <engine-dir>/student.json          description: checkpoint, camera, inputs and outputs, errors, sha256

Before a graph is written, it is run in ONNX Runtime and compared with PyTorch, and its fp16 values are checked for
overflow; exit code 1 if a bound is exceeded. An engine runs only on the GPU model that built it: copy the folder to the
Jetson and build there (benchmark_jetson.py --build).
"""

import platform
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli import EXIT_GATE_FAILED, EXIT_OK, ArgumentParser, UserError, add_flags, flag_values, positive_int, run

import onnx
import onnxruntime
import onnxslim
import torch

from config import CLASS_NAMES, IGNORE, Intrinsics, Recipe, Runtime, student_path
from dataset.files import atomic_path, sha256_of, write_json
from dataset.frames import to_network_camera
from dataset.manifest import Cameras
from deployment.agreement import TOLERANCES
from deployment.engine import build, import_tensorrt, layer_precisions
from deployment.graph import DEPTH, INPUT, MAX_FP16_VALUE, SEG, ExportedStudent
from deployment.images import calibration_images, find_manifest, random_images
from deployment.validation import PrecisionValidator, print_validation, validate_precisions
from evaluation.held_out import evaluation_frames, find_test_rows, write_evaluation_frames
from trainer.checkpoint import load_student


def target_camera(camera_file: Path | None, trained_camera: dict | None, recipe: Recipe) -> Intrinsics:
    """The target camera of the export, at the network's input size.

    Args:
        camera_file: camera.json of the robot; takes precedence over trained_camera.
        trained_camera: the training data's camera, from the checkpoint; None if there were several or none.
        recipe: the student's recipe.

    Raises UserError if the file does not hold exactly one camera, or if there is neither.
    """
    if camera_file:
        cameras = Cameras.read(camera_file)
        distinct = {cameras.common} if cameras.common else set(cameras.by_stem.values())
        if len(distinct) != 1:
            raise UserError(f"--camera {camera_file} holds {len(distinct)} cameras: depth is exported for one")
        return to_network_camera(distinct.pop(), recipe.width, recipe.height)
    if trained_camera:
        return Intrinsics(**trained_camera)
    raise UserError(
        "the training data had several cameras, or none with intrinsics, so the camera to export depth for is unknown: "
        "pass the robot's with --camera camera.json"
    )


def check_depth_range(camera: Intrinsics, recipe: Recipe) -> None:
    """Raise UserError if the student's output range, converted to the camera, does not cover the evaluated range."""
    factor = camera.focal / recipe.reference_focal
    nearest, farthest = (metres * factor for metres in recipe.output_range)
    if nearest > recipe.min_depth or farthest < recipe.max_depth:
        raise UserError(
            f"with a focal length of {camera.focal:.0f} pixels at {camera.width}x{camera.height}, this student "
            f"predicts {nearest:.2f} to {farthest:.1f} m, not {recipe.min_depth:g} to {recipe.max_depth:g}: train on "
            "data with similar focal lengths, or widen --zoom"
        )


def remove_outdated(path: Path) -> None:
    """Remove a file left by an earlier export, if there is one."""
    if path.is_file():
        path.unlink()
        print(f"removed {path}, left by an earlier export")


def write_graph(path: Path, graph: bytes) -> None:
    """Write an ONNX file, and remove an engine that was built from an earlier one."""
    remove_outdated(path.with_suffix(".engine"))
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph)


def file_entry(path: Path) -> dict:
    """Name, size and sha256 of a file for student.json."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def describe_export(checkpoint: Path, content: dict, camera: Intrinsics, uint8_input: bool, recipe: Recipe) -> dict:
    """Content of student.json without its graphs: checkpoint, camera, inputs and outputs, versions."""
    metadata = content.get("notes", {})
    shape = [recipe.height, recipe.width]
    uint8_format = {"shape": [1, *shape, 3], "dtype": "uint8", "range": [0, 255]}
    float32_format = {"shape": [1, 3, *shape], "dtype": "float32", "range": [0, 1]}
    return {
        "checkpoint": {
            **file_entry(checkpoint),
            "step": content["step"],
            "encoder": recipe.encoder,
            **{name: metadata.get(name) for name in ("encoder_start", "git_revision", "data_fingerprint", "teachers")},
        },
        "camera": asdict(camera) | {"focal": camera.focal},
        "reference_focal": recipe.reference_focal,
        "crop": f"largest centred window with the aspect ratio {recipe.width}:{recipe.height}",
        "input": {"name": INPUT, "colour": "RGB"} | (uint8_format if uint8_input else float32_format),
        "outputs": [
            {"name": DEPTH, "shape": [1, 1, *shape], "dtype": "float32", "unit": "metres of the camera above"},
            {"name": SEG, "shape": [1, len(CLASS_NAMES), *shape], "dtype": "float32", "unit": "logits"},
        ],
        "class_names": list(CLASS_NAMES),
        "ignore": IGNORE,
        "evaluated_depth_range": [recipe.min_depth, recipe.max_depth],
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, onnx, onnxruntime, onnxslim)},
        },
    }


def build_engines(description: dict, engine_dir: Path) -> None:
    """Build the engine of every exported graph and record it in the description; raises as build() does."""
    trt = import_tensorrt()
    for entry in description["precisions"]:
        onnx_path = engine_dir / entry["onnx"]["file"]
        print(f"building {onnx_path.with_suffix('.engine')} with TensorRT {trt.__version__}: takes minutes")
        engine, built_for = build(trt, onnx_path, entry)
        with atomic_path(onnx_path.with_suffix(".engine")) as temporary:
            temporary.write_bytes(engine)
        entry["engine"] = file_entry(onnx_path.with_suffix(".engine")) | built_for


def parse_arguments() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--checkpoint", type=student_path, required=True, help="best.pt of train.py, or rooms: the student of weights/"
    )
    add_flags(parser, Runtime(), "engine_dir", "allow_links_to")
    parser.add_argument("--skip-trt", action="store_true", help="export and check the ONNX graphs, build no engine")
    parser.add_argument("--camera", type=Path, help="camera.json of the robot (default: the training data's camera)")
    parser.add_argument(
        "--uint8-input", action="store_true", help="graphs take the camera's frames: uint8 [1,H,W,3], RGB"
    )
    parser.add_argument(
        "--manifest", type=Path, help="manifest with test frames (default: the data folder's, else the rooms')"
    )
    parser.add_argument(
        "--eval-frames",
        type=positive_int,
        default=32,
        help="maximum number of test frames to score (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration-frames",
        type=positive_int,
        default=500,
        help="maximum number of training frames to calibrate int8 on (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    runtime = Runtime(**flag_values(arguments, Runtime))
    student, recipe, content = load_student(arguments.checkpoint)
    metadata = content.get("notes", {})
    camera = target_camera(arguments.camera, metadata.get("camera"), recipe)
    check_depth_range(camera, recipe)
    model = ExportedStudent(student, camera.focal / recipe.reference_focal, arguments.uint8_input)
    print(f"depth is exported for a focal length of {camera.focal:.1f} pixels at {camera.width}x{camera.height}")

    manifest = find_manifest(arguments.manifest, runtime)
    links = runtime.allow_links_to
    frames, calibration, images_description = None, None, "random images"
    if manifest:
        rows, images_description = find_test_rows(manifest, metadata, arguments.eval_frames, links)
        frames = evaluation_frames(rows, recipe)
        calibration = calibration_images(manifest, rows, arguments.calibration_frames, recipe, links)
    else:
        print(
            "*** NO HELD-OUT FRAMES: no manifest was found (pass one with --manifest). The graphs are compared with "
            "PyTorch on RANDOM IMAGES, Table III will have no accuracy, and int8 is skipped, because there are no "
            "calibration frames. ***"
        )
    images = frames["rgb"] if frames else random_images(recipe.height, recipe.width)
    validator = PrecisionValidator(model, images, frames, camera.focal, recipe)
    graphs, precisions = validate_precisions(model, validator, calibration, recipe)
    print_validation(precisions, images_description)
    if failed := [entry["precision"] for entry in precisions if not entry["passed"]]:
        bounds = ", ".join(f"{precision}: {TOLERANCES[precision]}" for precision in failed)
        print(f"FAILED, nothing was written; bounds: {bounds}; half-precision values up to {MAX_FP16_VALUE:.0f}")
        return EXIT_GATE_FAILED

    for precision in TOLERANCES.keys() - graphs.keys():
        for suffix in (".onnx", ".engine"):
            remove_outdated(runtime.engine_dir / f"student_{precision}{suffix}")
    for entry in precisions:
        path = runtime.engine_dir / f"student_{entry['precision']}.onnx"
        write_graph(path, graphs[entry["precision"]])
        entry |= {"onnx": file_entry(path), "engine": None} | layer_precisions(onnx.load(path))
    evaluation = runtime.engine_dir / "eval_frames.npz"
    write_evaluation_frames(evaluation, frames)
    description: dict[str, Any] = {"precisions": precisions, "compared_on": images_description}
    description |= describe_export(arguments.checkpoint, content, camera, arguments.uint8_input, recipe)
    description["evaluation"] = file_entry(evaluation) | {"frames": len(images)} if frames else None
    write_json(runtime.engine_dir / "student.json", description)
    print(f"wrote {', '.join(sorted(path.name for path in runtime.engine_dir.glob('*')))} in {runtime.engine_dir}")
    if not arguments.skip_trt:
        build_engines(description, runtime.engine_dir)
        write_json(runtime.engine_dir / "student.json", description)
    return EXIT_OK


if __name__ == "__main__":
    run(main)
