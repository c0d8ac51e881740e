"""Write ROS bags with the package rosbags: messages of colour, depth, cameras, IMU and tf."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

IMAGE, COMPRESSED, INFO, IMU, TF = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/Imu",
    "tf2_msgs/msg/TFMessage",
)
KINDS = ("mcap", "db3", "bag")
START = 1_700_000_000_000_000_000  # ns
RGB, DEPTH = "/camera/color/image_raw", "/camera/depth/image_raw"
DEPTH_COMPRESSED = "/camera/depth/image_raw/compressedDepth"


class Messages:
    """Makes the messages of ROS 1 or 2, serialised."""

    def __init__(self, kind: str):
        self.ros1 = kind == "bag"
        self.store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        if self.ros1:
            self.store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", TF))

    def _make(self, name: str, *values: Any) -> Any:
        return self.store.types[name](*values)

    def header(self, time: int, frame: str) -> Any:
        stamp = self._make("builtin_interfaces/msg/Time", time // 10**9, time % 10**9)
        return self._make("std_msgs/msg/Header", *([0] if self.ros1 else []), stamp, frame)

    def raw(self, time: int, frame: str, encoding: str, pixels: np.ndarray, padding: int = 0, height: int = 0) -> Any:
        """pixels: [rows, ...]; `height` if it differs from the rows, as for nv12."""
        rows = pixels.reshape(len(pixels), -1).view(np.uint8)
        rows = np.pad(rows, ((0, 0), (0, padding)))
        width = pixels.shape[1]
        big = pixels.dtype.byteorder == ">"
        values = (height or len(pixels), width, encoding, int(big), rows.shape[1], rows.reshape(-1))
        return self._make(IMAGE, self.header(time, frame), *values)

    def compressed(self, time: int, frame: str, form: str, content: bytes) -> Any:
        return self._make(COMPRESSED, self.header(time, frame), form, np.frombuffer(content, np.uint8))

    def info(
        self,
        frame: str,
        size: tuple[int, int],
        k: tuple[float, float, float, float],
        model: str = "plumb_bob",
        d: Iterable[float] = (0.0,) * 5,
        p: tuple[float, float, float, float] | None = None,
    ) -> Any:
        fx, fy, cx, cy = k
        px, py, pcx, pcy = p or k
        roi = self._make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
        return self._make(
            INFO,
            self.header(START, frame),
            size[1],
            size[0],
            model,
            np.array(list(d), float),
            np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], float),
            np.eye(3).reshape(-1),
            np.array([px, 0, pcx, 0, 0, py, pcy, 0, 0, 0, 1, 0], float),
            0,
            0,
            roi,
        )

    def imu(self, time: int, frame: str, acceleration: Iterable[float]) -> Any:
        vector = "geometry_msgs/msg/Vector3"
        quaternion = self._make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0)
        none = np.zeros(9)
        return self._make(
            IMU,
            self.header(time, frame),
            quaternion,
            none,
            self._make(vector, 0.0, 0.0, 0.0),
            none,
            self._make(vector, *map(float, acceleration)),
            none,
        )

    def transforms(
        self,
        time: int,
        entries: Iterable[tuple[str, str, Iterable[float], Iterable[float]]],
    ) -> Any:
        """entries: (parent, child, x y z, quaternion x y z w)."""
        made = [
            self._make(
                "geometry_msgs/msg/TransformStamped",
                self.header(time, parent),
                child,
                self._make(
                    "geometry_msgs/msg/Transform",
                    self._make("geometry_msgs/msg/Vector3", *map(float, translation)),
                    self._make("geometry_msgs/msg/Quaternion", *map(float, quaternion)),
                ),
            )
            for parent, child, translation, quaternion in entries
        ]
        return self._make(TF, made)

    def serialize(self, message: Any) -> bytes:
        serialize = self.store.serialize_ros1 if self.ros1 else self.store.serialize_cdr
        return bytes(serialize(message, message.__msgtype__))


Entry = tuple[str, int, Any]  # topic, time of recording, message (bytes with a type for damaged ones)


def write_bag(folder: Path, kind: str, entries: Iterable[Entry], compression: str = "") -> Path:
    """Write a bag; returns the path to import: the .bag file, or the folder of a rosbag2 bag.

    entries: (topic, time of recording in ns, message), or (topic, time, (type, serialised bytes)).
    """
    messages = Messages(kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".bag") if kind == "bag" else folder
    if kind == "bag":
        writer: Any = rosbag1.Writer(path)
        if compression:
            writer.set_compression(rosbag1.Writer.CompressionFormat[compression.upper()])
    else:
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        writer = rosbag2.Writer(path, version=9, storage_plugin=plugin)
        if compression:
            mode = CompressionMode.STORAGE if kind == "mcap" else CompressionMode.MESSAGE
            writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, time, message in entries:
            is_raw = isinstance(message, tuple)
            msgtype, content = message if is_raw else (message.__msgtype__, messages.serialize(message))
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=messages.store)
            writer.write(connections[topic], time, content)
    return path


def bag_file(path: Path) -> Path:
    """The file with the messages of a bag that write_bag() wrote."""
    if path.is_file():
        return path
    return next(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))


def compressed_depth(millimetres: np.ndarray) -> bytes:
    """The content of a compressedDepth message of 16UC1."""
    return bytes(12) + cv2.imencode(".png", millimetres)[1].tobytes()


def compressed_depth_of_metres(metres: np.ndarray, quantisation: float = 100.0, maximum: float = 10.0) -> bytes:
    """The content of a compressedDepth message of 32FC1, as compressed_depth_image_transport writes it."""
    a = quantisation * (quantisation + 1.0)
    b = 1.0 - a / maximum
    with np.errstate(divide="ignore"):
        inverse = np.where(metres > 0, a / metres + b, 0)
    header = np.array([0], np.int32).tobytes() + np.array([a, b], np.float32).tobytes()
    return header + cv2.imencode(".png", np.rint(inverse).astype(np.uint16))[1].tobytes()


Frame = tuple[np.ndarray, np.ndarray]  # RGB uint8 [H,W,3], millimetres uint16 [H,W]
Colour = Callable[[Messages, int, np.ndarray], Any]


def recording(
    kind: str,
    frames: Iterable[Frame],
    k: tuple[float, float, float, float],
    colour: str = "rgb8",
    depth: str = "16UC1",
    rate: float = 30.0,
    offset: int = 3_000_000,
) -> list[Entry]:
    """The entries of a bag: colour and depth registered to it, 3 ms later, with camera_info."""
    made, entries = Messages(kind), []
    frame = "camera_color_optical_frame"
    for number, (rgb, millimetres) in enumerate(frames):
        time = START + round(number * 1e9 / rate)
        size = (rgb.shape[1], rgb.shape[0])
        if number == 0:
            entries += [
                (f"{topic.rsplit('/', 1)[0]}/camera_info", time, made.info(frame, size, k)) for topic in (RGB, DEPTH)
            ]
        if colour == "jpeg":
            content = cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()
            entries.append(
                (f"{RGB}/compressed", time, made.compressed(time, frame, "rgb8; jpeg compressed bgr8", content))
            )
        else:
            pixels = rgb[..., ::-1] if colour == "bgr8" else rgb
            entries.append((RGB, time, made.raw(time, frame, colour, np.ascontiguousarray(pixels))))
        then = time + offset
        metres = millimetres.astype(np.float32) / 1000
        if depth == "16UC1":
            entries.append((DEPTH, then, made.raw(then, frame, "16UC1", millimetres)))
        elif depth == "32FC1":
            values = np.where(millimetres > 0, metres, np.float32(np.nan))
            entries.append((DEPTH, then, made.raw(then, frame, "32FC1", values)))
        else:
            of_metres = depth == "compressedDepth 32FC1"
            content = compressed_depth_of_metres(metres) if of_metres else compressed_depth(millimetres)
            form = f"{'32FC1' if of_metres else '16UC1'}; compressedDepth png"
            entries.append((DEPTH_COMPRESSED, then, made.compressed(then, frame, form, content)))
    return entries
