"""Folders of RGB-D images as data sets publish them: recognised by their files, and read as recordings."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from cli import UserError, cpu_count

import cv2
import numpy as np
from natsort import natsorted
from PIL import Image

from config import Intrinsics
from dataset.calibration import CameraSettings, find_intrinsics, matrix_values, read_matrix
from dataset.confidence import COMPUTED, sensor_confidence
from dataset.files import DECODE_ERRORS, ImageOrientationError, decode_text, read_image, read_png_raw
from dataset.frame_writer import FrameWriter
from dataset.frames import check_depth_unit, find_frames, read_depth
from dataset.listing import IMAGE_SUFFIXES, add_file, find_files, is_ignored, stem_of, walk_folders
from dataset.pairing import pair_nearest
from dataset.parallel import threaded_map
from dataset.recordings import THUMBNAIL, FrameInfo, choose_frames
from dataset.rectification import Lens
from dataset.rig import Rig
from dataset.transforms import Track
from dataset.units import UNITS, DepthUnit

COLOUR_SUFFIX, DEPTH_SUFFIX, POSE_SUFFIX = ".color", ".depth.png", ".pose.txt"  # <stem>.color.jpg, <stem>.depth.png
COLOUR_FOLDERS, DEPTH_FOLDER = ("rgb", "color"), "depth"
NANOSECONDS = 1e9
PHOTOS_PER_SCENE = 20  # of SUN RGB-D's collections of single photos, whose neighbours often show one room
PHOTO_COLLECTIONS = ("NYUdata", "b3dodata")
TIME_IN_NAME = re.compile(r"\d{4}[-_]\d\d[-_]\d\d[-_]\d\d[-_]\d\d")  # to the minute

# https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats: colour cameras, plumb_bob; fr3 is rectified
TUM_CAMERAS = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), ()),
}
# 7-Scenes publishes the depth camera alone; the colour camera was estimated from edges in both images of redkitchen
SEVEN_SCENES_DEPTH = Intrinsics(585.0, 585.0, 320.0, 240.0, 640, 480)
SEVEN_SCENES_COLOUR = Intrinsics(528.0, 528.0, 323.7, 240.0, 640, 480)
SEVEN_SCENES_TRANSFORM = np.array([[1, 0, 0, -0.0355], [0, 1, 0, -0.0040], [0, 0, 1, 0], [0, 0, 0, 1]])

Files = dict[str, tuple[Path, Path]]


class UnreadableFrameError(Exception):
    """An image that can't be decoded; its frame is skipped."""


@dataclass(frozen=True)
class FolderOptions:
    """How to read folders.

    Attributes:
        cameras: that the user gave.
        unit: of the depth; None: the layout's, or millimetres, checked.
        max_offset: largest difference in time of colour and depth, seconds, where images have times.
        every: take every k-th frame.
        min_motion: see choose_frames().
        compute_confidence: of all frames.
        allsplit: SUN RGB-D's file of its split.
    """

    cameras: CameraSettings = field(default_factory=CameraSettings)
    unit: DepthUnit | None = None
    max_offset: float = 0.05
    every: int = 1
    min_motion: float | None = None
    compute_confidence: bool = True
    allsplit: Path | None = None


@dataclass
class FolderRecording:
    """Recordings stored as image files.

    Attributes:
        name: of the recording or the data set.
        what: the layout, in words.
        files: {stem: (colour image, depth image)} of all colour images.
        frames: {stem: FrameInfo} in the order of time.
        unpaired: {stem: reason} of colour without depth and depth without colour.
        rigs: {stem: the cameras}.
        unit: of the depth; None for millimetres.
        lines: what is missing, one line each.
    """

    name: str
    what: str
    files: Files
    frames: dict[str, FrameInfo]
    unpaired: dict[str, str]
    rigs: dict[str, Rig]
    unit: DepthUnit | None
    lines: list[str] = field(default_factory=list)

    def choose(self, every: int, min_motion: float | None) -> None:
        """Keep every k-th frame, and of those the ones that differ from the last one."""
        paired = [stem for stem in self.frames if stem not in self.unpaired]
        kept = set(choose_frames(paired, every, min_motion, lambda stem: _thumbnail(self.files[stem][0])))
        if every > 1 or min_motion is not None:
            self.frames = {stem: info for stem, info in self.frames.items() if stem in kept}

    def describe(self) -> str:
        """One line: the layout and what is done to the images."""
        done = dict.fromkeys(rig.describe() for rig in self.rigs.values())
        unit = f", depth in {self.unit.what}" if self.unit else ""
        if any(info.confidence == COMPUTED for info in self.frames.values()):
            done["confidence is computed"] = None
        return f"{self.name}: recognised as {self.what}{unit}" + "".join(f"; {text}" for text in done if text)

    def camera_of(self, stem: str) -> Intrinsics:
        """The pinhole camera of a frame."""
        return self.rigs[stem].camera

    def convert(self, stems: Mapping[str, str], writer: FrameWriter) -> Iterator[tuple[str, str | None]]:
        """Write frames, see Recording.convert(); raises UserError if the recording is unsuitable."""
        return threaded_map(partial(self._convert, writer=writer), stems.items(), cpu_count())

    def _convert(self, item: tuple[str, str], writer: FrameWriter) -> tuple[str, str | None]:
        stem, target = item
        if writer.has_colour(target) and writer.has_depth(target):
            return stem, None
        colour, depth = self.files[stem]
        rig = self.rigs[stem]
        try:
            rgb, metres = load_frame(colour, depth, self.unit, rig.registration is not None)
        except UnreadableFrameError as error:
            return stem, str(error)
        if rgb.shape[1::-1] != (size := (rig.lens.camera.width, rig.lens.camera.height)):
            raise UserError(f"{colour} is {rgb.shape[1]}x{rgb.shape[0]}, but other frames are {size[0]}x{size[1]}")
        computed = sensor_confidence(metres) if self.frames[stem].confidence == COMPUTED else None
        registered, confidence = rig.depth(metres, computed)
        if registered is metres and writer.depth_format == "png" and self.unit in (None, UNITS["mm"]):
            writer.copy_depth(target, depth.read_bytes(), confidence)
        else:
            writer.write_depth(target, registered, confidence)
        picture = rig.colour(rgb)
        if picture is rgb:
            writer.copy_colour(target, colour.read_bytes(), colour.suffix.lower())
        else:
            writer.write_colour(target, picture)
        return stem, None


def open_folder(folder: Path, options: FolderOptions) -> list[FolderRecording]:
    """The recordings in a folder of a known layout, or in its subfolders.

    Raises UserError if the folder has no known layout, or if a recording is unsuitable.
    """
    if (opened := _recognise(folder, options)) is not None:
        recordings = [opened]
    elif frames := _find_sun_frames(folder):
        recordings = [_open_sun(folder, frames, options)]
    else:
        below = natsorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_ignored(entry.name))
        recordings = [found for entry in below if (found := _recognise(entry, options)) is not None]
        recordings = recordings or [_open_plain(folder, options)]
    if (folder / "TrainSplit.txt").is_file() and (folder / "TestSplit.txt").is_file():
        _assign_seven_scenes_split(folder, recordings)
    for recording in recordings:
        recording.choose(options.every, options.min_motion)
        for info in recording.frames.values():
            info.confidence = COMPUTED if options.compute_confidence else None
    return recordings


def _recognise(folder: Path, options: FolderOptions) -> FolderRecording | None:
    """The recording in a folder of a known layout; None if there is none."""
    if (folder / "rgb.txt").is_file() and (folder / "depth.txt").is_file():
        return _open_tum(folder, options)
    if (folder / "intrinsic" / "intrinsic_color.txt").is_file():
        return _open_scannet(folder, options)
    has_intrinsics = any("intrinsics" in path.name.lower() for path in folder.glob("*.txt"))
    if not has_intrinsics and any(folder.glob("frame-*.color.png")) and any(folder.glob("frame-*.pose.txt")):
        return _open_seven_scenes(folder, options)
    colour, _ = _find_file_pairs(folder)
    in_folders = any((folder / name).is_dir() for name in COLOUR_FOLDERS) and (folder / DEPTH_FOLDER).is_dir()
    return _open_plain(folder, options) if colour or in_folders else None


def find_recording(folder: Path) -> tuple[Files, dict[str, str]]:
    """Find a recording's frames in natural order, and files without a counterpart.

    The layout is <stem>.color.jpg|png beside <stem>.depth.png, or subfolders rgb/ (or color/) and depth/ with equal
    stems.

    Returns: {stem: (colour image, depth image)} of all colour images, including those without depth, to keep the order
    in time; {stem: reason} of colour without depth and depth without colour. Raises UserError if the folder has neither
    layout, or if more than half of the colour images lack depth.
    """
    colour, depth = _find_file_pairs(folder)
    expected = f"{folder}/{{}}{DEPTH_SUFFIX}"
    if not colour:
        images = next((folder / name for name in COLOUR_FOLDERS if (folder / name).is_dir()), None)
        if images is None or not (folder / DEPTH_FOLDER).is_dir():
            raise UserError(
                f"{folder} is not a recording: expected a ROS bag (.mcap, .db3, .bag), TUM RGB-D, 7-Scenes, ScanNet or "
                f"SUN RGB-D, <stem>{COLOUR_SUFFIX}.jpg and <stem>{DEPTH_SUFFIX} files, or subfolders rgb/ (or color/) "
                "and depth/"
            )
        colour, (depth, _) = find_frames(images), find_files(folder / DEPTH_FOLDER, (".png",))
        expected = f"{folder / DEPTH_FOLDER}/{{}}.png"
    stems = natsorted(colour.keys() | depth.keys(), key=lambda stem: stem.split("/"))
    frames = {s: (colour[s], depth.get(s) or Path(expected.replace("{}", s))) for s in stems if s in colour}
    unpaired = {
        s: f"{file.name} has no depth image {frame_depth}"
        for s, (file, frame_depth) in frames.items()
        if s not in depth
    }
    if 2 * len(unpaired) > len(frames):
        first = next(iter(unpaired.values()))
        raise UserError(f"{folder}: colour without depth in {len(unpaired)} of {len(frames)} frames: {first}")
    return frames, unpaired | {s: f"{depth[s].name} has no colour image" for s in stems if s not in colour}


def _find_file_pairs(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """({stem: colour image}, {stem: depth image}) of one folder, by the file names."""
    colour: dict[str, Path] = {}
    depth: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = Path(path.name)
        if is_ignored(path.name):
            continue
        if path.name.lower().endswith(DEPTH_SUFFIX):
            add_file(depth, stem_of(name.with_suffix("")), path)
        elif name.suffix.lower() in IMAGE_SUFFIXES and name.stem.lower().endswith(COLOUR_SUFFIX):
            add_file(colour, stem_of(name.with_suffix("")), path)
    return colour, depth


def load_frame(
    colour: Path, depth: Path, unit: DepthUnit | None, is_registered_here: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decode a frame: RGB uint8 [H,W,3] and depth float32 [h,w], metres, 0 = no reading; `unit` is that of the depth.

    Raises UnreadableFrameError if an image can't be decoded, and UserError if the recording is unsuitable: colour
    images with an EXIF orientation, 8-bit depth, or depth of another size than the colour image that is not registered
    here.
    """
    try:
        rgb, raw = read_image(colour), read_png_raw(depth)
    except ImageOrientationError:
        raise
    except UserError as error:
        raise UnreadableFrameError(str(error)) from None
    if raw.shape != rgb.shape[:2] and not is_registered_here:
        raise UserError(
            f"{depth} is {raw.shape[1]}x{raw.shape[0]}, but its colour image is {rgb.shape[1]}x{rgb.shape[0]}: "
            "register depth to the colour camera, or set --depth-intrinsics"
        )
    return rgb, read_depth(depth, unit)


def _image_sizes(
    files: Sequence[tuple[Path, Path]], unit: DepthUnit | None, is_registered_here: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of colour and depth of the first readable frame; raises UserError if there is none."""
    reason: UnreadableFrameError | None = None
    for colour, depth in files:
        try:
            rgb, metres = load_frame(colour, depth, unit, is_registered_here)
            return (rgb.shape[1], rgb.shape[0]), (metres.shape[1], metres.shape[0])
        except UnreadableFrameError as error:
            reason = reason or error
    raise UserError(f"no frame of the recording is readable; first error: {reason}")


def _thumbnail(path: Path) -> np.ndarray:
    grey = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    if grey is None:  # reported when the frame is converted
        return np.zeros(THUMBNAIL[::-1], np.uint8)
    return cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA)


def read_pose(path: Path) -> np.ndarray | None:
    """A camera-to-world matrix, float64 [4,4]; None if the file is missing, or holds infinities for a lost track.

    Raises UserError if the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        pose = np.loadtxt(decode_text(path.read_bytes()).splitlines(), ndmin=2)
    except ValueError as error:
        raise UserError(f"{path} is not a pose: {error}") from None
    if pose.shape != (4, 4):
        raise UserError(f"{path} is not a pose: four rows of four numbers")
    return pose if np.isfinite(pose).all() else None


def _open_plain(folder: Path, options: FolderOptions) -> FolderRecording:
    """Colour beside depth, or in folders."""
    files, unpaired = find_recording(folder)
    if options.unit is None:
        check_depth_unit(folder, (depth for _, depth in files.values()))
    registers = options.cameras.depth_file is not None
    sizes = _image_sizes(list(files.values()), options.unit, registers)
    values = find_intrinsics(folder, options.cameras)
    lens = options.cameras.lens(values, sizes[0], str(options.cameras.file or folder))
    rig = Rig.build(lens, options.cameras.depth_lens(sizes[1]), options.cameras.extrinsics)
    name = folder.resolve().name
    poses = {
        stem: read_pose(colour.parent / f"{PurePosixPath(stem).name}{POSE_SUFFIX}")
        for stem, (colour, _) in files.items()
    }
    frames = {stem: FrameInfo(name, pose=poses[stem]) for stem in files}
    return FolderRecording(
        name, "colour and depth images", files, frames, unpaired, dict.fromkeys(files, rig), options.unit
    )


def _read_list(path: Path) -> list[tuple[float, list[str]]]:
    """Lines of a TUM file: (time in seconds, words after it); raises UserError if a line has no time."""
    entries = []
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except ValueError as error:
        raise UserError(f"{path} is not a text file: {error}") from None
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            time = float(words[0])
        except ValueError:
            time = math.nan
        if not 0 <= time < 1e11:
            raise UserError(f"{path}, line {number}: {words[0]!r} is not a time in seconds")
        entries.append((time, words[1:]))
    return entries


def _read_image_list(path: Path) -> list[tuple[float, Path]]:
    """(time, image) of rgb.txt or depth.txt, in the order of time; raises UserError if a path leaves the folder."""
    images = []
    for time, words in _read_list(path):
        relative = PurePosixPath(words[0]) if words else PurePosixPath("..")
        if relative.is_absolute() or ".." in relative.parts:
            raise UserError(f"{path}: {' '.join(words) or 'a line'} is not the path of an image in its folder")
        images.append((time, path.parent / relative))
    return sorted(images)


def _open_tum(folder: Path, options: FolderOptions) -> FolderRecording:
    """TUM RGB-D: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats."""
    colour, depth = (_read_image_list(folder / name) for name in ("rgb.txt", "depth.txt"))
    pairs = pair_nearest([time for time, _ in colour], [time for time, _ in depth], options.max_offset)
    if not pairs:
        raise UserError(
            f"{folder}: no image of rgb.txt has one of depth.txt within {1000 * options.max_offset:g} ms: "
            "set --max-offset"
        )
    name, unit = folder.resolve().name, options.unit or UNITS["tum"]
    camera = next((camera for key, camera in TUM_CAMERAS.items() if key in name), None)
    known = None if camera is None else dict(zip(("fx", "fy", "cx", "cy"), camera[0], strict=True))
    files = {image.stem: (image, depth[pairs[index]][1]) for index, (_, image) in enumerate(colour) if index in pairs}
    reason = f"no image of depth.txt within {1000 * options.max_offset:g} ms"
    unpaired = {image.stem: reason for index, (_, image) in enumerate(colour) if index not in pairs}
    values = find_intrinsics(folder, options.cameras, known)
    size, _ = _image_sizes(list(files.values()), unit, False)
    cameras = options.cameras
    if camera is not None and not cameras.is_complete and not cameras.distortion[0]:
        lens = Lens.parse(Intrinsics(**values, width=size[0], height=size[1]), "plumb_bob", camera[1], str(folder))
    else:
        lens = cameras.lens(values, size, str(cameras.file or folder))
    track = _read_track(folder / "groundtruth.txt")
    begin = colour[min(pairs)][0]
    frames = {}
    for index, (time, image) in enumerate(colour):
        if index in pairs:
            pose = track.at(round(time * NANOSECONDS)) if track else None
            frames[image.stem] = FrameInfo(name, round(time - begin, 6), pose)
    return FolderRecording(name, "TUM RGB-D", files, frames, unpaired, dict.fromkeys(files, Rig(lens)), unit)


def _read_track(path: Path) -> Track | None:
    """The poses of groundtruth.txt: time tx ty tz qx qy qz qw; None without the file."""
    if not path.is_file():
        return None
    track = Track()
    for time, words in _read_list(path):
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) != 7 or not np.isfinite(numbers).all() or not any(numbers[3:]):
            raise UserError(f"{path}: the line of time {time:g} is not tx ty tz qx qy qz qw")
        track.add(round(time * NANOSECONDS), numbers[:3], numbers[3:])
    return track


def _open_seven_scenes(folder: Path, options: FolderOptions) -> FolderRecording:
    """7-Scenes: depth as the sensor gave it, and the depth camera's poses."""
    files, unpaired = find_recording(folder)
    unit = options.unit or UNITS["mm"]
    size, depth_size = _image_sizes(list(files.values()), unit, True)
    colour, depth = SEVEN_SCENES_COLOUR.resized(*size), SEVEN_SCENES_DEPTH.resized(*depth_size)
    known = {"fx": colour.fx, "fy": colour.fy, "cx": colour.cx, "cy": colour.cy}
    lens = options.cameras.lens(find_intrinsics(folder, options.cameras, known), size, str(folder))
    given = options.cameras.extrinsics
    transform = SEVEN_SCENES_TRANSFORM if given is None else given
    rig = Rig.build(lens, options.cameras.depth_lens(depth_size) or Lens.pinhole(depth), transform)
    name = folder.resolve().name
    frames = {}
    for stem in files:
        pose = read_pose(folder / f"{stem}{POSE_SUFFIX}")
        frames[stem] = FrameInfo(name, pose=None if pose is None else pose @ np.linalg.inv(transform))
    return FolderRecording(name, "7-Scenes", files, frames, unpaired, dict.fromkeys(files, rig), unit)


def _assign_seven_scenes_split(folder: Path, recordings: Sequence[FolderRecording]) -> None:
    """Split by the sequences that TrainSplit.txt and TestSplit.txt name: sequence1 is seq-01."""
    split_of = {}
    for split, file in (("train", "TrainSplit.txt"), ("test", "TestSplit.txt")):
        for number in re.findall(rb"\d+", (folder / file).read_bytes()):
            split_of[int(number)] = split
    for recording in recordings:
        number = re.search(r"\d+", recording.name)
        for info in recording.frames.values():
            info.split = split_of.get(int(number[0])) if number else None


def _open_scannet(folder: Path, options: FolderOptions) -> FolderRecording:
    """A scan as ScanNet's SensReader exports it: color/ depth/ pose/ intrinsic/."""
    files, unpaired = find_recording(folder)
    unit = options.unit or UNITS["mm"]
    size, depth_size = _image_sizes(list(files.values()), unit, True)
    cameras, intrinsic = options.cameras, folder / "intrinsic"
    known = read_matrix(intrinsic / "intrinsic_color.txt")
    lens = cameras.lens(find_intrinsics(folder, cameras, known), size, str(intrinsic / "intrinsic_color.txt"))
    depth = cameras.depth_lens(depth_size)
    if depth is None:
        values = read_matrix(intrinsic / "intrinsic_depth.txt")
        depth = CameraSettings().lens(values, depth_size, str(intrinsic / "intrinsic_depth.txt"))
    rig = Rig.build(lens, depth, cameras.extrinsics)
    name = folder.resolve().name
    frames = {stem: FrameInfo(_scannet_place(name), pose=read_pose(folder / "pose" / f"{stem}.txt")) for stem in files}
    return FolderRecording(name, "ScanNet", files, frames, unpaired, dict.fromkeys(files, rig), unit)


def _scannet_place(scan: str) -> str:
    """The place of a scan: scene0000_00 and scene0000_01 are scans of one room."""
    return re.sub(r"^(scene\d{4})_\d\d$", r"\1", scan)


def _find_sun_frames(folder: Path) -> list[Path]:
    """Folders below with image/, depth/ and intrinsics.txt, in natural order."""
    found = []
    for below, folders, files in walk_folders(folder):
        names = {entry.name for entry in folders}
        if {"image", "depth"} <= names and any(file.name == "intrinsics.txt" for file in files):
            found.append(below)
    return natsorted(found)


def _open_sun(folder: Path, found: Sequence[Path], options: FolderOptions) -> FolderRecording:
    """SUN RGB-D: a folder a frame, depth registered to colour, with rotated bits."""
    unit = options.unit or UNITS["sunrgbd"]
    split_of = read_allsplit(options.allsplit) if options.allsplit else None
    files: Files = {}
    frames: dict[str, FrameInfo] = {}
    unpaired: dict[str, str] = {}
    rigs: dict[str, Rig] = {}
    for index, frame in enumerate(found):
        stem = stem_of(frame.relative_to(folder) / "frame").rpartition("/")[0] or frame.resolve().name
        images = [
            sorted(
                path
                for path in (frame / name).iterdir()
                if path.suffix.lower() in IMAGE_SUFFIXES and not is_ignored(path.name)
            )
            for name in ("image", "depth")
        ]
        if not all(images):
            unpaired[stem] = f"{frame} has no {'image' if not images[0] else 'depth'}"
            continue
        try:
            with Image.open(images[0][0]) as picture:
                size = picture.size
        except DECODE_ERRORS as error:
            unpaired[stem] = f"{images[0][0]} is not a readable image: {error}"
            continue
        files[stem] = images[0][0], images[1][0]
        rigs[stem] = Rig(options.cameras.lens(_sun_intrinsics(frame, options.cameras), size, str(frame)))
        split = None if split_of is None else _published_split(frame, split_of)
        frames[stem] = FrameInfo(_sun_scene(frame, index), split=split)
    lines = []
    if split_of is not None and (others := [stem for stem, info in frames.items() if info.split is None]):
        lines.append(
            f"{options.allsplit} does not list {len(others)} of {len(frames)} frames, such as {others[0]}; left out"
        )
        frames = {stem: info for stem, info in frames.items() if info.split is not None}
    if not frames:
        raise UserError(f"{folder}: no frame of SUN RGB-D is readable, or {options.allsplit} belongs to other data")
    return FolderRecording(folder.resolve().name, "SUN RGB-D", files, frames, unpaired, rigs, unit, lines)


def _sun_intrinsics(frame: Path, cameras: CameraSettings) -> dict[str, float]:
    """The camera of a frame: nine numbers in one line or three."""
    file = frame / "intrinsics.txt"
    try:
        numbers = np.array(decode_text(file.read_bytes()).split(), float)
    except ValueError as error:
        raise UserError(f"{file} is not a text file of numbers: {error}") from None
    if numbers.size != 9 or not np.isfinite(numbers).all():
        raise UserError(f"{file} is not a 3x3 camera matrix: {numbers.size} numbers")
    return find_intrinsics(frame, cameras, matrix_values(numbers.reshape(3, 3), str(file)))


def _sun_scene(frame: Path, index: int) -> str:
    """What was recorded in one go: a place of SUN3D, a minute of a recording, or some neighbours of a collection."""
    parent = frame.parent.name
    if parent in PHOTO_COLLECTIONS:
        return f"{parent}_{index // PHOTOS_PER_SCENE:04d}"
    minute = TIME_IN_NAME.search(frame.name)
    return f"{parent}_{minute[0]}" if minute else parent


def read_allsplit(path: Path) -> dict[str, str]:
    """Read SUN RGB-D's allsplit.mat: {frame's folder below SUNRGBD: split}; raises UserError if it is not."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True, variable_names=("alltrain", "alltest"))
        lists = {
            split: np.atleast_1d(content[name]).tolist() for split, name in (("train", "alltrain"), ("test", "alltest"))
        }
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path} is not SUN RGB-D's allsplit.mat: {error}") from None
    return {
        str(entry).rpartition("SUNRGBD/")[2].strip("/"): split for split, entries in lists.items() for entry in entries
    }


def _published_split(frame: Path, split_of: Mapping[str, str]) -> str | None:
    parts = frame.resolve().parts
    tails = ("/".join(parts[start:]) for start in range(1, len(parts)))
    return next((split_of[tail] for tail in tails if tail in split_of), None)
