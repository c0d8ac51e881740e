"""RGB-D frames of a ROS bag: topics, pairs in time, cameras, poses, and their conversion to a data folder.

A bag is read twice, front to back: once for the times, once for the pictures. No picture waits in memory for its
partner, so the memory used depends on neither the bag's length nor its order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cli import UserError, cpu_count

import numpy as np
from natsort import natsorted
from tqdm import tqdm

from config import Intrinsics
from dataset.bag_files import BAG_SUFFIXES, Damage, Message, Topic, read_messages
from dataset.bag_messages import (
    CAMERA_INFO,
    COLOUR_LAYOUTS,
    COMPRESSED,
    IMAGE,
    IMU,
    MESSAGE_TYPES,
    TF,
    DamagedMessageError,
    check_picture,
    decode,
    decoded_size,
    encoding_of,
    read_colour,
    read_lens,
    read_single,
    read_thumbnail,
    stamp,
)
from dataset.calibration import CameraSettings, find_intrinsics
from dataset.confidence import COMPUTED, SENSOR, sensor_confidence
from dataset.frame_writer import FrameWriter
from dataset.listing import is_ignored
from dataset.pairing import pair_nearest
from dataset.parallel import threaded_map
from dataset.recordings import THUMBNAIL, FrameInfo, choose_frames
from dataset.rectification import Lens
from dataset.rig import Rig
from dataset.transforms import LEVEL_FRAMES, WORLD_FRAMES, Accelerometer, TransformTree
from dataset.units import MAX_SAMPLES, UNITS, DepthUnit, check_plausible_unit, sample_evenly

CONFIDENCE_NAMES, AMPLITUDE_NAMES = ("confidence",), ("amplitude", "infra", "intensity", "/ir", "ir_")
DEPTH_ENCODINGS, COLOUR_ENCODINGS = ("16UC1", "32FC1"), (*COLOUR_LAYOUTS, "jpeg", "png")
REGISTERED_NAMES, RECTIFIED_NAMES = ("aligned", "registered", "depth_to_color"), ("rect",)
SECOND = 1_000_000_000
PACKED_SUFFIXES = (".mcap.zstd", ".db3.zstd")  # by rosbag2's compression of whole files


def find_bags(path: Path) -> dict[str, list[Path]]:
    """The bags at a path, {name of the recording: its files}; empty if there is none.

    A .mcap, .db3 or .bag file is a recording. In a folder, and in its subfolders, .mcap or .db3 files are the parts of
    one recording, each .bag is one. Raises UserError if the bag is compressed as a whole.
    """
    if path.is_file():
        return {path.stem: [path]} if path.suffix.lower() in BAG_SUFFIXES else {}
    bags: dict[str, list[Path]] = {}
    subfolders = natsorted(entry for entry in path.iterdir() if entry.is_dir() and not is_ignored(entry.name))
    for folder in (path, *subfolders):
        names = (
            entry.name for entry in folder.iterdir() if entry.name.lower().endswith((*BAG_SUFFIXES, *PACKED_SUFFIXES))
        )
        files = [folder / name for name in natsorted(names) if not is_ignored(name)]
        if packed := [file for file in files if file.name.lower().endswith(PACKED_SUFFIXES)]:
            raise UserError(f"{packed[0]} is compressed as a whole: unpack it with zstd -d")
        for file in files:
            if file.suffix.lower() == ".bag":
                bags[file.stem if folder == path else f"{folder.name}/{file.stem}"] = [file]
        if parts := [file for file in files if file.suffix.lower() != ".bag"]:
            bags[folder.resolve().name] = parts
    return bags


@dataclass(frozen=True)
class BagOptions:
    """What to take of a bag.

    Attributes:
        topics: {role: topic} chosen by the user; roles are those of ROLES.
        max_offset: largest difference in time of colour and depth, seconds.
        every: take every k-th frame.
        min_motion: mean difference to the last frame taken, in grey levels, below which a frame is left out; None: 0.
        half_confidence: value of the confidence or amplitude topic that means a confidence of 0.5; None: half of the
            range of its type, for confidence only.
        compute_confidence: of frames without a map of their own.
        unit: of 16-bit depth; None: millimetres, checked.
        world_frame: frame of the poses; None: the first of WORLD_FRAMES that the bag has.
        cameras: replace those of the bag.
    """

    topics: dict[str, str] = field(default_factory=dict)
    max_offset: float = 0.05
    every: int = 1
    min_motion: float | None = None
    half_confidence: float | None = None
    compute_confidence: bool = True
    unit: DepthUnit | None = None
    world_frame: str | None = None
    cameras: CameraSettings = field(default_factory=CameraSettings)


ROLES = ("rgb", "depth", "rgb_info", "depth_info", "confidence", "imu")


@dataclass
class Pictures:
    """The pictures of one topic, in the order of the file.

    Attributes:
        topic: the topic.
        encoding: of the first readable one.
        frame: coordinate frame of the camera.
        size: (width, height).
        times: {number of the message: nanoseconds} of the readable ones.
        damaged: number of unreadable ones.
        reason: why the first of them is.
        samples: some pictures as stored, of depth alone.
        thumbnails: {number: uint8 [h,w]}, if asked for.
    """

    topic: Topic
    encoding: str = ""
    frame: str = ""
    size: tuple[int, int] = (0, 0)
    times: dict[int, int] = field(default_factory=dict)
    count: int = 0
    damaged: int = 0
    reason: str = ""
    samples: list[np.ndarray] = field(default_factory=list)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    sample_every: int = 1

    @property
    def kind(self) -> str | None:
        """What the topic shows: rgb, depth, confidence, amplitude, or None if that is unknown."""
        name = self.topic.name.lower()
        is_single = self.encoding in ("mono8", "8UC1", "mono16", *DEPTH_ENCODINGS)
        if is_single and any(word in name for word in CONFIDENCE_NAMES):
            return "confidence"
        if is_single and any(word in name for word in AMPLITUDE_NAMES):
            return "amplitude"
        if self.encoding in DEPTH_ENCODINGS or self.encoding == "mono16" and "depth" in name:
            return "depth"
        return "rgb" if self.encoding in COLOUR_ENCODINGS else None

    def add(self, message: Message, with_thumbnails: bool) -> None:
        """Add a message; counts it if it is damaged."""
        number, self.count = self.count, self.count + 1
        try:
            decoded = decode(message)
            size, encoding = check_picture(decoded), encoding_of(decoded)
            if not self.encoding:
                self.size = size or decoded_size(decoded, encoding)
                self.encoding, self.frame = encoding, decoded.header.frame_id
            if encoding != self.encoding or size not in (None, self.size):
                raise DamagedMessageError(f"{encoding} {size} among {self.encoding} {self.size}")
            if with_thumbnails and self.kind == "rgb":
                self.thumbnails[number] = read_thumbnail(decoded, *THUMBNAIL)
            if self.kind == "depth" and number % self.sample_every == 0:
                self._add_sample(read_single(decoded))
            self.times[number] = stamp(decoded, message)
        except DamagedMessageError as error:
            self.damaged += 1
            self.reason = self.reason or str(error)

    def _add_sample(self, stored: np.ndarray) -> None:
        """Keep up to 2 MAX_SAMPLES pictures, evenly spaced: the gaps double each time that these are full."""
        self.samples.append(stored)
        if len(self.samples) > 2 * MAX_SAMPLES:
            self.samples, self.sample_every = self.samples[::2], 2 * self.sample_every


class Scan:
    """What a bag contains, from its first reading."""

    def __init__(self, files: Sequence[Path], with_thumbnails: bool):
        self.pictures: dict[str, Pictures] = {}
        self.infos: dict[str, Any] = {}
        self.accelerations: dict[str, Accelerometer] = {}
        self.tree = TransformTree()
        self.others: dict[str, int] = {}  # {topic: number of damaged messages} that are no pictures
        damage = Damage()
        size = sum(file.stat().st_size for file in files)
        with tqdm(desc="reading times", total=size, unit="B", unit_scale=True, disable=None) as bar:
            for message in _all_messages(files, MESSAGE_TYPES, damage):
                self._add(message, with_thumbnails)
                bar.update(len(message.data))
        self.lines = damage.lines()
        for pictures in self.pictures.values():
            if pictures.damaged:
                self.lines.append(
                    f"{pictures.topic.name}: skipped {pictures.damaged} damaged messages of {pictures.count}; "
                    f"first: {pictures.reason}"
                )
        self.lines += [f"{name}: skipped {count} damaged messages" for name, count in self.others.items()]

    def _add(self, message: Message, with_thumbnails: bool) -> None:
        name, msgtype = message.topic.name, message.topic.msgtype
        if msgtype in (IMAGE, COMPRESSED):
            self.pictures.setdefault(name, Pictures(message.topic)).add(message, with_thumbnails)
            return
        try:
            decoded = decode(message)
            if msgtype == CAMERA_INFO:
                self.infos.setdefault(name, decoded)
            elif msgtype == IMU:
                a = decoded.linear_acceleration
                self.accelerations.setdefault(name, Accelerometer()).add(
                    decoded.header.frame_id, stamp(decoded, message), (a.x, a.y, a.z)
                )
            elif msgtype == TF:
                self._add_transforms(decoded, is_static=name.endswith("static"))
        except (DamagedMessageError, ValueError):
            self.others[name] = self.others.get(name, 0) + 1

    def _add_transforms(self, decoded: Any, is_static: bool) -> None:
        for entry in decoded.transforms:
            t, q, time = entry.transform.translation, entry.transform.rotation, entry.header.stamp
            at = None if is_static else time.sec * SECOND + time.nanosec
            self.tree.add(entry.header.frame_id, entry.child_frame_id, at, (t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def _all_messages(files: Sequence[Path], kinds: Sequence[str], damage: Damage) -> Iterator[Message]:
    return chain.from_iterable(read_messages(file, lambda topic: topic.msgtype in kinds, damage) for file in files)


def _choose(
    scan: Scan, role: str, wanted: str | None, kinds: Sequence[str], preferred: Sequence[str]
) -> Pictures | None:
    """The topic of a role: the user's, or the best one of a kind."""
    if wanted is not None:
        found = scan.pictures.get(wanted)
        if found is None or not found.times:
            topics = ", ".join(sorted(scan.pictures)) or "none"
            raise UserError(f"--{role}-topic {wanted}: the bag has no readable pictures there; topics: {topics}")
        return found

    def rank(pictures: Pictures) -> tuple:
        name = pictures.topic.name
        is_preferred = any(word in name for word in preferred)
        return not is_preferred, pictures.topic.msgtype != IMAGE, -len(pictures.times), name

    fitting = [pictures for pictures in scan.pictures.values() if pictures.times and pictures.kind in kinds]
    return min(fitting, key=rank, default=None)


def _namespace(topic: str) -> str:
    """The namespace of a picture's topic: /camera/color/image_raw/compressed -> /camera/color."""
    parts = topic.split("/")
    if parts[-1] in ("compressed", "compressedDepth"):
        parts.pop()
    return "/".join(parts[:-1])


class BagRecording:
    """A bag as a recording of paired frames.

    Attributes:
        name: of the recording.
        frames: {stem: FrameInfo} of the chosen frames, in the order of time; the stem is the number among all colour
            pictures.
        unpaired: {stem: reason} of colour pictures without depth.
        rig: the cameras.
        lines: what was found and what is missing, one line each.
    """

    def __init__(self, name: str, files: Sequence[Path], options: BagOptions):
        self.name, self.files, self.options = name, files, options
        scan = Scan(files, options.min_motion is not None)
        topics = options.topics
        rgb = _choose(scan, "rgb", topics.get("rgb"), ("rgb",), RECTIFIED_NAMES)
        depth = _choose(scan, "depth", topics.get("depth"), ("depth",), REGISTERED_NAMES)
        if rgb is None or depth is None:
            found = (
                ", ".join(f"{p.topic.name} ({p.encoding or 'unreadable'})" for p in scan.pictures.values()) or "none"
            )
            missing = "colour" if rgb is None else "depth"
            raise UserError(f"{files[0]} has no {missing} pictures; topics with pictures: {found}")
        kinds = ("confidence",) if options.half_confidence is None else ("confidence", "amplitude")
        confidence = _choose(scan, "confidence", topics.get("confidence"), kinds, CONFIDENCE_NAMES)
        self.rgb, self.depth, self.confidence = rgb, depth, confidence
        self.half = self._half_confidence()
        self.lines: list[str] = []
        self.infos: list[str] = []
        self.motion: list[str] = []
        if options.unit is None:
            check_plausible_unit(files[0], sample_evenly(depth.samples))
        self.rig = self._build_rig(scan)
        self.frames: dict[str, FrameInfo] = {}
        self.unpaired: dict[str, str] = {}
        self._numbers: dict[str, tuple[int, int, int | None]] = {}
        self._pair()
        self._add_motion(scan)
        self.lines += scan.lines

    def _half_confidence(self) -> float:
        if self.confidence is None:
            return 0.5
        if self.options.half_confidence is not None:
            return self.options.half_confidence
        if self.confidence.encoding in ("16UC1", "mono16"):
            raise UserError(
                f"{self.confidence.topic.name} has 16 bits: set --half-confidence, the value that means 0.5"
            )
        return 0.5 if self.confidence.encoding == "32FC1" else 127.5

    def _build_rig(self, scan: Scan) -> Rig:
        cameras = self.options.cameras
        colour = self._colour_lens(scan)
        same_frame = self.depth.frame == self.rgb.frame
        depth = cameras.depth_lens(self.depth.size) or self._lens_of(scan, "depth", self.depth)
        transform = cameras.extrinsics
        if transform is None and not same_frame:
            first = min(self.rgb.times.values())
            for time in (None, first):
                transform = scan.tree.lookup(self.rgb.frame, self.depth.frame, time) if transform is None else transform
            if transform is None:
                raise UserError(
                    f"{self.files[0]}: depth is in the frame {self.depth.frame!r}, colour in {self.rgb.frame!r}, and "
                    "tf_static does not connect them: set --extrinsics FILE, the 4x4 matrix from the depth camera to "
                    "the colour camera"
                )
        if depth is None and (transform is not None or self.depth.size != _size(colour)):
            raise UserError(
                f"{self.files[0]} has no camera_info for {self.depth.topic.name}: set --depth-intrinsics FILE"
            )
        return Rig.build(colour, depth, transform)

    def _colour_lens(self, scan: Scan) -> Lens:
        """The colour camera: of the flags, with what they leave out from camera_info."""
        cameras = self.options.cameras
        lens = None if cameras.is_complete else self._lens_of(scan, "rgb", self.rgb)
        if lens is not None and not cameras.values and not cameras.distortion[0]:
            return lens
        if lens is None and not cameras.is_complete:
            raise UserError(
                f"{self.files[0]} has no camera_info for {self.rgb.topic.name}: set --fx --fy --cx --cy or "
                "--intrinsics, and --distortion if its pictures are distorted"
            )
        camera = lens.camera if lens else None
        known = camera and {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy}
        values = find_intrinsics(self.files[0], cameras, known or {})
        self.lines.append(f"{self.rgb.topic.name}: its camera is that of the flags")
        given = cameras.lens(values, self.rgb.size, "the flags")
        if lens is None or cameras.distortion[0]:
            return given
        return Lens.parse(given.camera, lens.model, lens.coefficients, "the flags")

    def _lens_of(self, scan: Scan, role: str, pictures: Pictures) -> Lens | None:
        """The camera of a topic: of the user's camera_info, the one in its namespace, or one of its frame and size."""
        wanted = self.options.topics.get(f"{role}_info")
        if wanted is not None and wanted not in scan.infos:
            topics = ", ".join(sorted(scan.infos)) or "none"
            flag = f"--{role}-info-topic"
            raise UserError(f"{flag} {wanted}: the bag has no camera_info there; topics: {topics}")
        same_frame = (name for name, info in scan.infos.items() if info.header.frame_id == pictures.frame)
        sibling = wanted or f"{_namespace(pictures.topic.name)}/camera_info"
        name = sibling if sibling in scan.infos else next(same_frame, None)
        if name is None:
            return None
        self.infos.append(name)
        info = scan.infos[name]
        lens = read_lens(info)
        if any(word in pictures.topic.name.split("/")[-1] for word in RECTIFIED_NAMES) and pictures is self.rgb:
            lens = Lens.pinhole(lens.rectified)
        if pictures.size == _size(lens):
            return lens
        width, height = pictures.size
        if abs(width / height / (lens.camera.width / lens.camera.height) - 1) > 0.01:
            raise UserError(
                f"{pictures.topic.name} is {width}x{height}, but its camera_info is for "
                f"{lens.camera.width}x{lens.camera.height}"
            )
        return lens.resized(width, height)

    def _pair(self) -> None:
        """Pair colour with depth, choose frames, and name them by their number among all colour pictures."""
        order = sorted(self.rgb.times, key=lambda number: (self.rgb.times[number], number))
        if order != sorted(order):
            self.lines.append(f"{self.rgb.topic.name}: pictures are not in the order of their times; sorted")
        times = [self.rgb.times[number] for number in order]
        depth_numbers, depth_times = list(self.depth.times), list(self.depth.times.values())
        limit = self.options.max_offset
        pairs = pair_nearest(times, depth_times, round(limit * SECOND))
        if not pairs:
            raise UserError(
                f"{self.files[0]}: no picture of {self.rgb.topic.name} has one of {self.depth.topic.name} within "
                f"{1000 * limit:g} ms: set --max-offset, or synchronise the cameras"
            )
        confidences: dict[int, int] = {}
        if self.confidence is not None:
            numbers, paired = list(self.confidence.times), list(pairs)
            found = pair_nearest(
                [depth_times[pairs[index]] for index in paired],
                list(self.confidence.times.values()),
                round(limit * SECOND),
            )
            confidences = {paired[index]: numbers[other] for index, other in found.items()}
            if len(confidences) < len(pairs):
                count = f"{len(pairs) - len(confidences)} of {len(pairs)}"
                self.lines.append(
                    f"{self.confidence.topic.name}: no picture within {1000 * limit:g} ms of {count} frames"
                )
        options, paired_numbers = self.options, [order[index] for index in sorted(pairs)]
        chosen = set(choose_frames(paired_numbers, options.every, options.min_motion, self.rgb.thumbnails.__getitem__))
        begin = times[min(pairs)]
        for index, number in enumerate(order):
            stem = f"{index:06d}"
            if index not in pairs:
                self.unpaired[stem] = f"no picture of {self.depth.topic.name} within {1000 * limit:g} ms"
            elif number in chosen:
                computed = COMPUTED if options.compute_confidence else None
                source = SENSOR if index in confidences else computed
                self.frames[stem] = FrameInfo(self.name, time=(times[index] - begin) / SECOND, confidence=source)
                self._numbers[stem] = number, depth_numbers[pairs[index]], confidences.get(index)
        if self.unpaired:
            self.lines.append(
                f"{self.rgb.topic.name}: {len(self.unpaired)} of {len(order)} pictures have no depth within "
                f"{1000 * limit:g} ms"
            )

    def _add_motion(self, scan: Scan) -> None:
        """Add poses and the direction of gravity to the frames."""
        camera, wanted, names = self.rgb.frame.lstrip("/"), self.options.world_frame, scan.tree.names()
        if wanted and wanted not in names:
            raise UserError(
                f"--world-frame {wanted}: the bag's tf has no such frame; frames: {', '.join(sorted(names))}"
            )
        times = {stem: self.rgb.times[number] for stem, (number, _, _) in self._numbers.items()}
        for world in [wanted] if wanted else WORLD_FRAMES:
            poses = {stem: scan.tree.lookup(world, camera, time) for stem, time in times.items()}
            if count := sum(pose is not None for pose in poses.values()):
                self.motion.append(f"{count} poses in {world}")
                for stem, pose in poses.items():
                    self.frames[stem].pose = pose
                break
        down = self._imu_gravity(scan, camera, times)
        source = "IMU"
        for level in LEVEL_FRAMES if not down else ():
            found = {stem: scan.tree.lookup(level, camera, time) for stem, time in times.items()}
            # the level frame's z axis in camera axes, turned down
            down = {stem: -to_level[2, :3] for stem, to_level in found.items() if to_level is not None}
            if down:
                source = f"tf frame {level}"
                break
        for stem, vector in down.items():
            self.frames[stem].gravity = vector
        if down:
            self.motion.append(f"gravity of {len(down)} frames from {source}")

    def _imu_gravity(self, scan: Scan, camera: str, times: dict[str, int]) -> dict[str, np.ndarray]:
        """{stem: downward vector in camera axes} from the first IMU that tf_static connects to the camera."""
        wanted = self.options.topics.get("imu")
        if wanted is not None and wanted not in scan.accelerations:
            topics = ", ".join(sorted(scan.accelerations)) or "none"
            raise UserError(f"--imu-topic {wanted}: the bag has no IMU there; topics: {topics}")
        for name in [wanted] if wanted else sorted(scan.accelerations):
            for frame in scan.accelerations[name].samples:
                to_camera = scan.tree.lookup(camera, frame, None)
                if to_camera is not None:
                    self.motion.append(f"IMU {name}")
                    found = scan.accelerations[name].gravity(list(times.values()), to_camera, frame)
                    return {stem: found[time] for stem, time in times.items() if time in found}
                self.lines.append(f"{name}: its frame {frame!r} is not connected to {camera!r} by tf_static; not used")
        return {}

    def camera_of(self, stem: str) -> Intrinsics:
        """The pinhole camera of a frame."""
        return self.rig.camera

    def describe(self) -> str:
        """One line on what was found."""

        def named(pictures: Pictures | None) -> str:
            return f"{pictures.topic.name} ({pictures.encoding})" if pictures else "none"

        confidence = named(self.confidence)
        if self.confidence is None and self.options.compute_confidence:
            confidence = "computed"
        infos = f"camera_info {' and '.join(dict.fromkeys(self.infos)) or 'none'}"
        topics = [
            f"colour {named(self.rgb)}",
            f"depth {named(self.depth)}",
            f"confidence {confidence}",
            infos,
        ]
        rig = self.rig.describe()
        return f"{self.name}: {', '.join([*topics, *self.motion])}" + (f"; {rig}" if rig else "")

    def convert(self, stems: dict[str, str], writer: FrameWriter) -> Iterator[tuple[str, str | None]]:
        """Write frames; several threads decode and encode.

        Args:
            stems: {stem in `frames`: stem to write}, without the unpaired ones.
            writer: of the data folder.

        Yields (stem in `frames`, None) when a frame is complete, or (stem, why it can't be read); the frame's files are
        then removed.
        """
        left = {stem: 2 for stem in stems}
        failed: dict[str, str] = {}
        for stem, reason in threaded_map(
            lambda job: job.run(self, writer), self._jobs(stems, writer, left), cpu_count()
        ):
            left[stem] -= 1
            if reason is not None:
                failed.setdefault(stem, reason)
            if left[stem] == 0:
                if stem in failed:
                    writer.remove(stems[stem])
                yield stem, failed.get(stem)
        for stem, count in left.items():
            if count > 0:  # the file has changed since the first reading
                writer.remove(stems[stem])
                yield stem, failed.get(stem, "its messages are no longer readable")

    def _jobs(self, stems: dict[str, str], writer: FrameWriter, left: dict[str, int]) -> Iterator["Job"]:
        """The pictures to write; those that exist are done."""
        role_of: dict[str, dict[int, tuple[str, str]]] = {p.topic.name: {} for p in self._used()}
        waiting: dict[str, dict[str, Message]] = {}
        for stem, target in stems.items():
            number, depth, confidence = self._numbers[stem]
            if writer.has_colour(target):
                yield Job(stem, target)
            else:
                role_of[self.rgb.topic.name][number] = stem, "rgb"
            if writer.has_depth(target):
                yield Job(stem, target)
                continue
            role_of[self.depth.topic.name][depth] = stem, "depth"
            if self.confidence is not None and confidence is not None:
                role_of[self.confidence.topic.name][confidence] = stem, "confidence"
                waiting[stem] = {}
        counts = dict.fromkeys(role_of, 0)
        if not any(role_of.values()):
            return
        for message in _all_messages(self.files, (IMAGE, COMPRESSED), Damage()):
            name = message.topic.name
            if name not in counts:
                continue
            number, counts[name] = counts[name], counts[name] + 1
            stem, role = role_of[name].get(number, ("", ""))
            if not stem:
                continue
            if role == "rgb":
                yield Job(stem, stems[stem], rgb=message)
            elif stem in waiting:
                # a copy: the message is a view of its block, which would stay in memory with it
                waiting[stem][role] = message._replace(data=bytes(message.data))
                if len(waiting[stem]) == 2:
                    yield Job(stem, stems[stem], **waiting.pop(stem))
            else:
                yield Job(stem, stems[stem], depth=message)

    def _used(self) -> Iterable[Pictures]:
        return [pictures for pictures in (self.rgb, self.depth, self.confidence) if pictures is not None]

    def read_depth(self, message: Message) -> np.ndarray:
        """Decode a depth message to float32 [h,w] metres, 0 = no reading; raises DamagedMessageError."""
        stored = read_single(decode(message))
        if stored.dtype == np.uint8:
            raise DamagedMessageError("depth has 8 bits")
        unit = self.options.unit or UNITS["mm"] if stored.dtype == np.uint16 else UNITS["m"]
        return unit.decode(stored)

    def read_confidence(self, message: Message) -> np.ndarray:
        """Decode a confidence message to float32 [h,w] in 0..1; raises DamagedMessageError."""
        stored = np.nan_to_num(read_single(decode(message)).astype(np.float32), nan=0.0)
        return np.clip(stored * np.float32(0.5 / self.half), 0, 1)


@dataclass(frozen=True)
class Job:
    """A picture to write, or depth with its confidence; without either it exists already."""

    stem: str
    target: str
    rgb: Message | None = None
    depth: Message | None = None
    confidence: Message | None = None

    def run(self, recording: BagRecording, writer: FrameWriter) -> tuple[str, str | None]:
        """Write the picture; returns the stem, and why it can't be read or None."""
        try:
            if self.rgb is not None:
                self._write_colour(self.rgb, recording.rig, writer)
            if self.depth is not None:
                depth, confidence = recording.read_depth(self.depth), None
                if self.confidence is not None:
                    confidence = recording.read_confidence(self.confidence)
                elif recording.frames[self.stem].confidence == COMPUTED:
                    confidence = sensor_confidence(depth)
                writer.write_depth(self.target, *recording.rig.depth(depth, confidence))
        except (DamagedMessageError, UserError) as error:
            return self.stem, str(error)
        return self.stem, None

    def _write_colour(self, message: Message, rig: Rig, writer: FrameWriter) -> None:
        decoded = decode(message)
        rgb = read_colour(decoded)
        picture = rig.colour(rgb)
        if message.topic.msgtype == COMPRESSED and picture is rgb:
            suffix = ".jpg" if encoding_of(decoded) == "jpeg" else ".png"
            writer.copy_colour(self.target, decoded.data.tobytes(), suffix)
        else:
            writer.write_colour(self.target, picture)


def _size(lens: Lens) -> tuple[int, int]:
    return lens.camera.width, lens.camera.height
