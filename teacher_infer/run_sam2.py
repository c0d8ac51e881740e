"""Run the segmentation teacher: objects from YOLO and SAM2; floor, wall and glass from depth geometry."""

import hashlib
import json
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, existing_dir, non_negative_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np

from config import CLASS_COLOURS, CLASS_NAMES, Intrinsics
from dataset.files import read_image, read_json, write_npy, write_png
from dataset.frames import check_depth_unit, find_frames, find_map, read_confidence, read_depth
from dataset.listing import find_data_folder, normalize_stems, require_separate_output
from dataset.manifest import check_gravity
from dataset.pictures import colour_classes, panel, stack
from dataset.units import DepthUnit, add_unit_flag, sample_evenly
from teacher_infer.geometry import OTHER, GeometryResult, classify
from teacher_infer.object_backends import (
    DetectedObject,
    ObjectBackend,
    add_object_flags,
    load_object_backend,
)
from teacher_infer.sensor_rim import find_common_rim
from teacher_infer.stage import (
    PROVENANCE,
    FrameCameras,
    add_camera_flags,
    add_stage_flags,
    claim_output,
    default_batch_size,
    limit_threads,
    run_stage,
)

DEPTH_TIE_TOLERANCE = 0.05  # relative width of the depth bins in which two objects count as equally near
N_RIM_FRAMES = 50  # evenly spaced frames used to find the sensor's rim
NO_DEPTH_RANK = 10**6  # depth bin of an object without depth: behind all others
OTHER_CONFIDENCE = 0.5  # of class other where geometry finds no surface
CONFIDENCE_DIR = "seg_confidence"  # beside --output-dir


def parse_args() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads the images below --input-dir, their depth, and camera.json beside the image folder. Writes\n"
        "--output-dir/<stem>.npy, uint8 [H,W], 0..5: " + ", ".join(CLASS_NAMES) + ", with provenance.json and\n"
        "failed_frames.jsonl, and seg_confidence/<stem>.npy beside that folder, uint8 [H,W], 0..255 for 0..1.\n\n"
        "Objects come from --backend; floor, wall and glass from the geometry of the depth. Finished frames are\n"
        "skipped, so an interrupted run resumes when the command is run again. Exit codes: 0 all frames done or\n"
        "listed as failed, 2 wrong input, 75 stopped by SIGTERM or SIGUSR1 with frames left."
    )
    parser.add_argument("--input-dir", required=True, metavar="RGB", help="folder of images")
    parser.add_argument(
        "--depth-dir",
        required=True,
        metavar="DEPTH",
        help="dense depth for the geometry: the depth teacher's output or filled sensor depth",
    )
    parser.add_argument("--output-dir", required=True, metavar="OUT", help="folder for the class maps")
    parser.add_argument(
        "--sensor-depth-dir",
        metavar="D",
        help="raw sensor depth, used to detect glass (default: depth/ beside the image folder)",
    )
    parser.add_argument(
        "--confidence-dir",
        metavar="C",
        help="confidence of the sensor depth; 0 marks pixels without a reading "
        "(default: confidence/ beside the image folder, unless --sensor-depth-dir is given)",
    )
    parser.add_argument(
        "--gravity",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="downward vector in camera axes (x right, y down, z forward), the same for all frames "
        "(default: gravity.json beside the image folder, {stem: [x, y, z]}; else estimated from each frame's depth)",
    )
    parser.add_argument(
        "--save-panels",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="write visualisations of the first N frames to --output-dir/panels (default: 0)",
    )
    add_unit_flag(parser, "--sensor-depth-dir and --depth-dir")
    add_object_flags(parser)
    add_camera_flags(parser)
    add_stage_flags(parser)
    return parser.parse_args()


class DepthMaps:
    """The dense depth used by the geometry, and the sensor depth, in which glass shows up as holes."""

    def __init__(
        self,
        depth_dir: str,
        sensor_dir: str | None,
        confidence_dir: str | None,
        root: Path,
        unit: DepthUnit | None = None,
    ):
        self.depth, self.unit = existing_dir(depth_dir, "--depth-dir"), unit
        self.sensor = _dir_or_default(sensor_dir, root / "depth", "--sensor-depth-dir")
        beside = root / "confidence"  # belongs to depth/ beside it, not to a different --sensor-depth-dir
        self.confidence = (
            None if sensor_dir and not confidence_dir else _dir_or_default(confidence_dir, beside, "--confidence-dir")
        )
        if self.sensor is None:
            print("no sensor depth: no pixel will be labelled glass")
        else:
            print(f"glass from the holes in {self.sensor}" + (f" and {self.confidence}" if self.confidence else ""))
        self.rims: dict[tuple[int, ...], np.ndarray] = {}

    def find_rims(self, stems: Sequence[str]) -> None:
        """Find the image borders outside the sensor's view, from N_RIM_FRAMES of `stems`.

        Pass the stems of all frames, not of one shard, so that all shards find the same rims.
        """
        if self.sensor is None:
            return
        readings: dict[tuple[int, ...], list[np.ndarray]] = {}
        for index in np.unique(np.linspace(0, len(stems) - 1, N_RIM_FRAMES).round().astype(int)):
            with suppress(UserError, OSError):  # run_stage() will list this frame as failed
                sensor = self._read_sensor(stems[index])
                readings.setdefault(sensor.shape, []).append(sensor > 0)
        self.rims = {shape: find_common_rim(each) for shape, each in readings.items()}
        if largest := max((rim.mean() for rim in self.rims.values()), default=0):
            print(f"no glass on the sensor's rim, where it has no readings: {largest:.0%} of the image")

    def settings(self) -> dict:
        """Provenance entries: the depth and its origin, the sensor depth and its confidence, the unit."""
        provenance_file = self.depth / PROVENANCE
        content = read_json(provenance_file) if provenance_file.is_file() else {}
        rim = {"glass_on_sensor_rim": False} if self.sensor else {}  # older labels may have glass there
        return (
            rim
            | {
                "depth": {
                    "folder": self.depth.resolve().name,
                    **{k: content[k] for k in ("backend", "model") if k in content},
                },
                "sensor_depth": self.sensor and self.sensor.resolve().name,
                "confidence": self.confidence and self.confidence.resolve().name,
            }
            | ({"depth_unit": self.unit.name} if self.unit else {})
        )

    def read(self, stem: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (depth, sensor depth or None) of a frame, float32 [H,W] metres, 0 = none.

        Raises UserError if a map is missing, invalid or not of size `shape`, (H, W).
        """
        depth = _read_map(self.depth, stem, self._metres, shape)
        return depth, None if self.sensor is None else self._read_sensor(stem, shape)

    def _read_sensor(self, stem: str, shape: tuple[int, int] | None = None) -> np.ndarray:
        assert self.sensor is not None
        sensor = _read_map(self.sensor, stem, self._metres, shape)
        if self.confidence is not None and find_map(self.confidence, stem) is not None:
            sensor[_read_map(self.confidence, stem, read_confidence, sensor.shape) == 0] = 0
        return sensor

    def check_units(self, stems: Collection[str]) -> None:
        """Raise UserError if the .png maps of some evenly spaced frames can't be in millimetres."""
        for folder in (self.depth, self.sensor):
            if folder and not self.unit:
                maps = (find_map(folder, stem) for stem in sample_evenly(stems))
                check_depth_unit(folder, (path for path in maps if path and path.suffix.lower() == ".png"))

    def _metres(self, path: Path) -> np.ndarray:
        return read_depth(path, self.unit)


def _dir_or_default(given: str | None, default: Path, flag: str) -> Path | None:
    if given:
        return existing_dir(given, flag)
    return default if default.is_dir() else None


def _read_map(folder: Path, stem: str, read: Callable[[Path], np.ndarray], shape: tuple[int, ...] | None) -> np.ndarray:
    """Read a frame's map; raises UserError if it is missing or, with a `shape` (H, W), of a different size."""
    path = find_map(folder, stem)
    if path is None:
        raise UserError(f"{folder} has no map for frame {stem}")
    array = read(path)
    if shape and array.shape != shape:
        raise UserError(f"{path} is {array.shape[1]}x{array.shape[0]} but its image is {shape[1]}x{shape[0]}")
    return array


def merge(geometry: GeometryResult, objects: list[DetectedObject], depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paint object masks over the geometry's classes, near objects over far ones; at equal depth the higher score wins.

    depth: float32 [H,W], metres, 0 = none. An object's depth is the median over its mask.
    Returns classes uint8 [H,W], 0..5, and confidence float32 [H,W] in 0..1: the score of an object, the geometry's
    confidence of a surface, OTHER_CONFIDENCE where the geometry finds no surface, and 0 where it has no depth.
    """
    classes, confidence = geometry.classes.copy(), geometry.confidence.copy()
    unknown = classes == OTHER
    confidence[unknown] = np.where(depth[unknown] > 0, OTHER_CONFIDENCE, 0)

    def paint_order(obj: DetectedObject) -> tuple[int, float]:
        known = depth[obj.mask & (depth > 0)]
        steps = round(np.log(np.median(known)) / np.log(1 + DEPTH_TIE_TOLERANCE)) if known.size else NO_DEPTH_RANK
        return -steps, obj.score

    for obj in sorted(objects, key=paint_order):
        classes[obj.mask], confidence[obj.mask] = obj.class_id, obj.score
    return classes, confidence


def draw_objects(rgb: np.ndarray, objects: list[DetectedObject]) -> np.ndarray:
    """Overlay each object's mask and box on the image, in the colour of its class."""
    picture = rgb.copy()
    for obj in objects:
        colour = np.array(CLASS_COLOURS[obj.class_id], dtype=np.float32)
        picture[obj.mask] = (picture[obj.mask] * 0.5 + colour * 0.5).astype(np.uint8)
    for obj in objects:
        x0, y0, x1, y1 = (int(v) for v in obj.box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), CLASS_COLOURS[obj.class_id], 2)
    return picture


def format_class_fractions(counts: np.ndarray) -> str:
    """Format the fraction of each class among the pixels written in this run."""
    fractions = counts / max(counts.sum(), 1)
    formatted = (f"{name} {fraction:.1%}" for name, fraction in zip(CLASS_NAMES, fractions, strict=True))
    return "pixels: " + ", ".join(formatted)


class FrameGravity:
    """Gravity of each frame: --gravity, else its entry in gravity.json beside the images, else None.

    gravity.json is {stem: [x, y, z]}: downward vectors of any length in camera axes (x right, y down, z forward). An
    accelerometer at rest measures the opposite vector, pointing up.
    """

    def __init__(self, flag: list[float] | None, root: Path, stems: Collection[str]):
        path = root / "gravity.json"
        self.common = check_gravity(flag, "--gravity") if flag is not None else None
        self.by_stem = {}
        if flag is None and path.is_file():
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path} must be a JSON object that maps stems to vectors")
            vectors = normalize_stems(content, path).items()
            self.by_stem = {stem: check_gravity(vector, f"{path}, {stem}") for stem, vector in vectors}
            known = len(self.by_stem.keys() & set(stems))
            if not known:
                raise UserError(f"{path} contains none of the frames' stems")
            upward = sum(vector[1] < 0 for vector in self.by_stem.values())
            print(f"gravity.json: {known} of {len(stems)} frames; {upward} vectors point up in the image")

    def get(self, stem: str) -> list[float] | None:
        """Downward vector [3] in camera axes; None if it has to be estimated from depth."""
        return self.common or self.by_stem.get(stem)

    def settings(self) -> list[float] | str | None:
        """Provenance entry."""
        if not self.by_stem:
            return self.common
        return "gravity.json " + hashlib.sha256(json.dumps(self.by_stem, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class FrameInputs:
    """Inputs of one frame: rgb uint8 [H,W,3]; depth and sensor depth float32 [H,W] metres, 0 = none."""

    stem: str
    rgb: np.ndarray
    depth: np.ndarray
    sensor: np.ndarray | None
    camera: Intrinsics


class SegmentationTeacher:
    """Objects and geometry combined, with the Teacher interface of run_stage().

    counts: int64 [6], pixels per class written so far. Frames in `panel_stems` get a visualisation.
    """

    def __init__(
        self,
        object_backend: ObjectBackend,
        maps: DepthMaps,
        cameras: FrameCameras,
        gravity: FrameGravity,
        output_dir: Path,
    ):
        self.object_backend, self.maps, self.cameras, self.gravity = object_backend, maps, cameras, gravity
        self.panels = output_dir / "panels"
        # abspath, not resolve: if the output folder is a link, the confidence goes beside the link, not its target
        self.confidence = Path(os.path.abspath(output_dir)).parent / CONFIDENCE_DIR
        self.provenance = object_backend.provenance | maps.settings()
        self.provenance |= {"camera": cameras.settings(), "gravity": gravity.settings()}
        self.counts = np.zeros(len(CLASS_NAMES), dtype=np.int64)
        self.counts_lock = threading.Lock()
        self.panel_stems: set[str] = set()

    def prepare(self, stem: str, path: Path) -> FrameInputs:
        """Read an image, its depth maps and its camera."""
        rgb = read_image(path)
        return FrameInputs(stem, rgb, *self.maps.read(stem, rgb.shape[:2]), self.cameras.get(stem, rgb))

    def infer(self, prepared: list[FrameInputs]) -> list[list[DetectedObject]]:
        """Detect the objects in each frame."""
        return self.object_backend.find([(frame.stem, frame.rgb) for frame in prepared])

    def finish(self, prepared: FrameInputs, output: list[DetectedObject]) -> np.ndarray:
        """Return classes uint8 [H,W]; also write their confidence and, for `panel_stems`, a visualisation."""
        gravity, rim = self.gravity.get(prepared.stem), self.maps.rims.get(prepared.depth.shape)
        geometry = classify(prepared.depth, prepared.camera, prepared.sensor, gravity, rim)
        classes, confidence = merge(geometry, output, prepared.depth)
        with self.counts_lock:
            self.counts += np.bincount(classes.ravel(), minlength=len(CLASS_NAMES))
        if prepared.stem in self.panel_stems:
            pictures = (
                ("image", prepared.rgb),
                ("boxes and masks", draw_objects(prepared.rgb, output)),
                ("geometry", colour_classes(geometry.classes)),
                ("merged", colour_classes(classes)),
            )
            write_png(self.panels / f"{prepared.stem}.png", stack([panel(pictures)]))
        # confidence first: the file with the classes marks the frame as finished
        write_npy(self.confidence / f"{prepared.stem}.npy", np.rint(confidence * 255).astype(np.uint8))
        return classes


def main() -> int:
    """Run the script and return the exit code."""
    args = parse_args()
    limit_threads()
    input_dir, output_dir = existing_dir(args.input_dir, "--input-dir"), Path(args.output_dir)
    root = find_data_folder(input_dir)
    maps = DepthMaps(args.depth_dir, args.sensor_depth_dir, args.confidence_dir, root, args.depth_unit)
    require_separate_output(output_dir, "--output-dir", input_dir, maps.depth, maps.sensor, maps.confidence)
    frames = find_frames(input_dir)
    maps.check_units(frames)
    maps.find_rims(list(frames))
    cameras = FrameCameras(input_dir, args.fx, args.fy)
    gravity = FrameGravity(args.gravity, root, frames)
    teacher = SegmentationTeacher(load_object_backend(args, input_dir), maps, cameras, gravity, output_dir)
    teacher.panel_stems.update(list(frames)[: args.save_panels])
    claim_output(output_dir, teacher.provenance, args.overwrite)
    claim_output(teacher.confidence, {"of": output_dir.resolve().name}, args.overwrite)
    batch_size = args.batch_size or default_batch_size(args.backend, args.device)
    code = run_stage(
        frames, output_dir, teacher, args.shard, args.overwrite, batch_size, args.num_workers, (teacher.confidence,)
    )
    if teacher.counts.any():
        print(format_class_fractions(teacher.counts))
    return code


if __name__ == "__main__":
    run(main)
