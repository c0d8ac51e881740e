"""Segmentation teacher: objects from YOLO and SAM2, floor, wall and glass from the geometry of depth."""

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
from dataset.pictures import colour_classes, panel, stack
from dataset.units import DepthUnit, add_unit_flag, sample_evenly
from teacher_infer.geometry import OTHER, GeometryResult, classify
from teacher_infer.object_backends import (
    DetectedObject,
    ObjectBackend,
    add_object_flags,
    load_object_backend,
)
from teacher_infer.sensor_rim import rim_of_frames
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

SAME_DEPTH = 0.05  # relative difference of depth up to which two objects count as equally near
RIM_FRAMES = 50  # spread over the folder, that the sensor's rim is found in
NO_DEPTH = 10**6  # an object without depth lies behind all others
UNTOLD = 0.5  # confidence in `other` where geometry recognises nothing
CONFIDENCE_DIR = "seg_confidence"  # beside --output-dir


def parse_args() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(
        "Reads the images below --input-dir, their depth and camera.json beside the image folder; writes\n"
        "--output-dir/<stem>.npy, uint8 [H,W], 0..5: " + ", ".join(CLASS_NAMES) + ", with provenance.json and\n"
        "failed_frames.jsonl, and beside that folder seg_confidence/<stem>.npy, uint8 [H,W], 0..255 for 0..1.\n\n"
        "Objects come from --backend; floor, wall and glass from the geometry of the depth. Interrupted or run again,\n"
        "it does the frames that are missing. Exit 0: all done or listed as failed; 2: wrong input; 75: stopped by\n"
        "SIGTERM or SIGUSR1 with frames left."
    )
    parser.add_argument("--input-dir", required=True, metavar="RGB", help="folder of images")
    parser.add_argument(
        "--depth-dir",
        required=True,
        metavar="DEPTH",
        help="depth for geometry without holes: the depth teacher's, or filled sensor depth",
    )
    parser.add_argument("--output-dir", required=True, metavar="OUT", help="folder for the class maps")
    parser.add_argument(
        "--sensor-depth-dir",
        metavar="D",
        help="depth as a sensor gave it, for glass (default: depth/ beside the image folder)",
    )
    parser.add_argument(
        "--confidence-dir",
        metavar="C",
        help="the sensor's confidence; where it is 0 the sensor gave nothing "
        "(default: confidence/ beside the image folder, unless --sensor-depth-dir is given)",
    )
    parser.add_argument(
        "--gravity",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="vector that points down in the camera's axes (x right, y down, z forward), the same for all frames "
        "(default: gravity.json beside the image folder, {stem: [x, y, z]}; else found in each frame's depth)",
    )
    parser.add_argument(
        "--save-panels",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="write pictures of the first N frames to --output-dir/panels (default: 0)",
    )
    add_unit_flag(parser, "--sensor-depth-dir and --depth-dir")
    add_object_flags(parser)
    add_camera_flags(parser)
    add_stage_flags(parser)
    return parser.parse_args()


class DepthMaps:
    """The depth that geometry takes and the sensor's, in which glass is a hole."""

    def __init__(
        self,
        depth_dir: str,
        sensor_dir: str | None,
        confidence_dir: str | None,
        root: Path,
        unit: DepthUnit | None = None,
    ):
        self.depth, self.unit = existing_dir(depth_dir, "--depth-dir"), unit
        self.sensor = _given_or_beside(sensor_dir, root / "depth", "--sensor-depth-dir")
        beside = root / "confidence"  # of the depth beside the images, so of no other sensor's
        self.confidence = (
            None if sensor_dir and not confidence_dir else _given_or_beside(confidence_dir, beside, "--confidence-dir")
        )
        if self.sensor is None:
            print("no sensor depth: nothing will be labelled glass")
        else:
            print(f"glass from the holes of {self.sensor}" + (f" by {self.confidence}" if self.confidence else ""))
        self.rims: dict[tuple[int, ...], np.ndarray] = {}

    def find_rims(self, stems: Sequence[str]) -> None:
        """Find where the sensor never looks, from some of all frames, whichever part of them is to be done."""
        if self.sensor is None:
            return
        readings: dict[tuple[int, ...], list[np.ndarray]] = {}
        for index in np.unique(np.linspace(0, len(stems) - 1, RIM_FRAMES).round().astype(int)):
            with suppress(UserError, OSError):  # it is listed as failed when its turn comes
                sensor = self._read_sensor(stems[index])
                readings.setdefault(sensor.shape, []).append(sensor > 0)
        self.rims = {shape: rim_of_frames(each) for shape, each in readings.items()}
        if largest := max((rim.mean() for rim in self.rims.values()), default=0):
            print(f"no glass on the sensor's rim, which it has no readings on: {largest:.0%} of the image")

    def settings(self) -> dict:
        """For provenance: which depth, what made it, whether a sensor's depth and confidence were there."""
        made_by = self.depth / PROVENANCE
        content = read_json(made_by) if made_by.is_file() else {}
        rim = {"glass_on_sensor_rim": False} if self.sensor else {}  # labels of before may have some
        return rim | {
            "depth": {
                "folder": self.depth.resolve().name,
                **{k: content[k] for k in ("backend", "model") if k in content},
            },
            "sensor_depth": self.sensor and self.sensor.resolve().name,
            "confidence": self.confidence and self.confidence.resolve().name,
        } | ({"depth_unit": self.unit.name} if self.unit else {})

    def read(self, stem: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """(depth, sensor depth or None) of a frame, float32 [H,W] metres, 0 = none; UserError when unfit."""
        depth = _read_map(self.depth, stem, self._metres, shape)
        return depth, None if self.sensor is None else self._read_sensor(stem, shape)

    def _read_sensor(self, stem: str, shape: tuple[int, int] | None = None) -> np.ndarray:
        assert self.sensor is not None
        sensor = _read_map(self.sensor, stem, self._metres, shape)
        if self.confidence is not None and find_map(self.confidence, stem) is not None:
            sensor[_read_map(self.confidence, stem, read_confidence, sensor.shape) == 0] = 0
        return sensor

    def check_units(self, stems: Collection[str]) -> None:
        """Raise UserError when the .png maps of some frames can't be in millimetres."""
        for folder in (self.depth, self.sensor):
            if folder and not self.unit:
                maps = (find_map(folder, stem) for stem in sample_evenly(stems))
                check_depth_unit(folder, (path for path in maps if path and path.suffix.lower() == ".png"))

    def _metres(self, path: Path) -> np.ndarray:
        return read_depth(path, self.unit)


def _given_or_beside(given: str | None, beside: Path, flag: str) -> Path | None:
    if given:
        return existing_dir(given, flag)
    return beside if beside.is_dir() else None


def _read_map(
    folder: Path, stem: str, read: Callable[[Path], np.ndarray], shape: tuple[int, ...] | None
) -> np.ndarray:
    """A frame's map; UserError when it is missing or not of a shape (H, W), unless that is None."""
    path = find_map(folder, stem)
    if path is None:
        raise UserError(f"{folder} has no map for frame {stem}")
    array = read(path)
    if shape and array.shape != shape:
        raise UserError(f"{path} is {array.shape[1]}x{array.shape[0]} but its image is {shape[1]}x{shape[0]}")
    return array


def merge(
    geometry: GeometryResult, objects: list[DetectedObject], depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Object masks over geometry's classes: the nearer object over the farther one, the surer one where both are alike.

    depth: float32 [H,W], metres, 0 = none; an object's is the median over its mask.
    Returns classes uint8 [H,W], 0..5, and confidence float32 [H,W] in 0..1: an object's score, geometry's own, UNTOLD
    where geometry can't tell what is there, and 0 where it has no depth to tell by.
    """
    classes, confidence = geometry.classes.copy(), geometry.confidence.copy()
    untold = classes == OTHER
    confidence[untold] = np.where(depth[untold] > 0, UNTOLD, 0)

    def nearness(found: DetectedObject) -> tuple[int, float]:
        known = depth[found.mask & (depth > 0)]
        steps = round(np.log(np.median(known)) / np.log(1 + SAME_DEPTH)) if known.size else NO_DEPTH
        return -steps, found.score

    for found in sorted(objects, key=nearness):
        classes[found.mask], confidence[found.mask] = found.class_id, found.score
    return classes, confidence


def draw_objects(rgb: np.ndarray, objects: list[DetectedObject]) -> np.ndarray:
    """The image with each object's mask tinted and its box drawn in the colour of its class."""
    picture = rgb.copy()
    for found in objects:
        colour = np.array(CLASS_COLOURS[found.class_id], dtype=np.float32)
        picture[found.mask] = (picture[found.mask] * 0.5 + colour * 0.5).astype(np.uint8)
    for found in objects:
        x0, y0, x1, y1 = (int(v) for v in found.box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), CLASS_COLOURS[found.class_id], 2)
    return picture


def histogram_line(counts: np.ndarray) -> str:
    """Shares of the classes in all pixels written by this run."""
    shares = counts / max(counts.sum(), 1)
    return "pixels: " + ", ".join(f"{name} {share:.1%}" for name, share in zip(CLASS_NAMES, shares, strict=True))


class FrameGravity:
    """What points down in each frame: --gravity, else its entry of gravity.json beside the images, else None.

    gravity.json is {stem: [x, y, z]}, vectors of any length in the camera's axes (x right, y down, z forward). An
    accelerometer at rest measures the opposite, what holds it up.
    """

    def __init__(self, flag: list[float] | None, root: Path, stems: Collection[str]):
        path = root / "gravity.json"
        self.common = self._checked(flag, "--gravity") if flag is not None else None
        self.by_stem = {}
        if flag is None and path.is_file():
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path} must be a JSON object of stems and vectors")
            vectors = normalize_stems(content, path).items()
            self.by_stem = {stem: self._checked(vector, f"{path}, {stem}") for stem, vector in vectors}
            known = len(self.by_stem.keys() & set(stems))
            if not known:
                raise UserError(f"{path} has none of the frames' stems")
            upward = sum(vector[1] < 0 for vector in self.by_stem.values())
            print(f"gravity.json: {known} of {len(stems)} frames, {upward} of its vectors point up in the image")

    @staticmethod
    def _checked(vector: object, where: str) -> list[float]:
        if (
            not isinstance(vector, list)
            or not all(type(value) in (int, float) for value in vector)
            or len(vector) != 3
            or not 1e-3 < np.linalg.norm(vector) < 1e6
        ):
            raise UserError(f"{where}: gravity is three numbers x y z that have a direction")
        return vector

    def of(self, stem: str) -> list[float] | None:
        """Vector [3] that points down in the camera's axes; None where nothing tells it but depth."""
        return self.common or self.by_stem.get(stem)

    def settings(self) -> list[float] | str | None:
        """For provenance."""
        if not self.by_stem:
            return self.common
        return "gravity.json " + hashlib.sha256(json.dumps(self.by_stem, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class SceneMaps:
    """What geometry and objects are found in: rgb uint8 [H,W,3], depths float32 [H,W] metres, 0 = none."""

    stem: str
    rgb: np.ndarray
    depth: np.ndarray
    sensor: np.ndarray | None
    camera: Intrinsics


class SegmentationTeacher:
    """Objects and geometry over image files, as run_stage() takes it.

    counts: int64 [6], pixels of each class written so far. Panels are written for the frames of `panel_stems`.
    """

    def __init__(
        self,
        find_objects: ObjectBackend,
        maps: DepthMaps,
        cameras: FrameCameras,
        gravity: FrameGravity,
        output_dir: Path,
    ):
        self.find_objects, self.maps, self.cameras, self.gravity = find_objects, maps, cameras, gravity
        self.panels = output_dir / "panels"
        self.confidence = Path(os.path.abspath(output_dir)).parent / CONFIDENCE_DIR  # beside a link, not its target
        self.provenance = find_objects.provenance | maps.settings()
        self.provenance |= {"camera": cameras.settings(), "gravity": gravity.settings()}
        self.counts = np.zeros(len(CLASS_NAMES), dtype=np.int64)
        self.counting = threading.Lock()
        self.panel_stems: set[str] = set()

    def prepare(self, stem: str, path: Path) -> SceneMaps:
        """Read an image, its depths and its camera."""
        rgb = read_image(path)
        return SceneMaps(stem, rgb, *self.maps.read(stem, rgb.shape[:2]), self.cameras.of(stem, rgb))

    def infer(self, prepared: list[SceneMaps]) -> list[list[DetectedObject]]:
        """The objects of each frame."""
        return self.find_objects.find([(scene.stem, scene.rgb) for scene in prepared])

    def finish(self, prepared: SceneMaps, output: list[DetectedObject]) -> np.ndarray:
        """Classes uint8 [H,W]; writes their confidence, and a picture of the frame when it is of `panel_stems`."""
        gravity, rim = self.gravity.of(prepared.stem), self.maps.rims.get(prepared.depth.shape)
        geometry = classify(prepared.depth, prepared.camera, prepared.sensor, gravity, rim)
        classes, confidence = merge(geometry, output, prepared.depth)
        with self.counting:
            self.counts += np.bincount(classes.ravel(), minlength=len(CLASS_NAMES))
        if prepared.stem in self.panel_stems:
            pictures = (
                ("image", prepared.rgb),
                ("boxes and masks", draw_objects(prepared.rgb, output)),
                ("geometry", colour_classes(geometry.classes)),
                ("merged", colour_classes(classes)),
            )
            write_png(self.panels / f"{prepared.stem}.png", stack([panel(pictures)]))
        # before the classes, whose file says that the frame is finished
        write_npy(self.confidence / f"{prepared.stem}.npy", np.rint(confidence * 255).astype(np.uint8))
        return classes


def main() -> int:
    """Run the script; returns the exit code."""
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
        print(histogram_line(teacher.counts))
    return code


if __name__ == "__main__":
    run(main)
