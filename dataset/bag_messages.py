"""Decode ROS messages: pictures, depth, cameras, and their times."""

import struct
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from cli import UserError

import cv2
import numpy as np
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from config import Intrinsics
from dataset.bag_files import Message
from dataset.files import decode_image
from dataset.rectification import Lens

IMAGE, COMPRESSED, CAMERA_INFO, IMU, TF = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/Imu",
    "tf2_msgs/msg/TFMessage",
)
MESSAGE_TYPES = (IMAGE, COMPRESSED, CAMERA_INFO, IMU, TF)
MAX_SIDE = 16384  # pixels; a longer side is damage
PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
DEPTH_HEADER = 12  # bytes before the PNG of compressedDepth: format, and the quantisation's two floats


class DamagedMessageError(Exception):
    """A message that can't be decoded; it is skipped."""


class Layout(NamedTuple):
    """How an encoding stores a picture: type and number of values per pixel, and OpenCV's code for RGB."""

    dtype: str
    channels: int
    code: int | None = None


# names: http://docs.ros.org/en/api/sensor_msgs/html/image__encodings_8h_source.html
COLOUR_LAYOUTS = {
    "rgb8": Layout("u1", 3),
    "bgr8": Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "8UC3": Layout("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": Layout("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": Layout("u1", 4, cv2.COLOR_BGRA2RGB),
    "8UC4": Layout("u1", 4, cv2.COLOR_BGRA2RGB),
    "rgb16": Layout("u2", 3),
    "bgr16": Layout("u2", 3, cv2.COLOR_BGR2RGB),
    "yuv422": Layout("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": Layout("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": Layout("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": Layout("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
    "nv12": Layout("u1", 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": Layout("u1", 1, cv2.COLOR_YUV2RGB_NV21),
} | {
    f"bayer_{pattern}{8 * size}": Layout(f"u{size}", 1, getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB"))
    for pattern in ("rggb", "bggr", "gbrg", "grbg")
    for size in (1, 2)
}
SINGLE_LAYOUTS = {
    "16UC1": Layout("u2", 1),
    "mono16": Layout("u2", 1),
    "32FC1": Layout("f4", 1),
    "mono8": Layout("u1", 1),
    "8UC1": Layout("u1", 1),
}
LAYOUTS = COLOUR_LAYOUTS | SINGLE_LAYOUTS


@cache
def _typestore(encoding: str) -> Typestore:
    """The standard messages of ROS 1 or 2; those used here have the same fields in all releases."""
    if encoding != "ros1":
        return get_typestore(Stores.ROS2_HUMBLE)
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", TF))
    return store


def decode(message: Message) -> Any:
    """Decode a message to rosbags' class of its type; raises DamagedMessageError if it is damaged."""
    store = _typestore(message.topic.encoding)
    deserialize = store.deserialize_ros1 if message.topic.encoding == "ros1" else store.deserialize_cdr
    try:
        return deserialize(message.data, message.topic.msgtype)
    except (SerdeError, ValueError, struct.error, IndexError, OverflowError, MemoryError) as error:
        raise DamagedMessageError(str(error)) from None


def stamp(decoded: Any, message: Message) -> int:
    """The time of measurement in nanoseconds; the time of recording if the message has none."""
    time = decoded.header.stamp
    return time.sec * 10**9 + time.nanosec or message.time


def encoding_of(decoded: Any) -> str:
    """A picture's encoding, such as rgb8 or 16UC1; for compressed ones jpeg, png, or 16UC1 and 32FC1 of depth.

    Raises DamagedMessageError if a compressed picture is neither JPEG nor PNG.
    """
    if decoded.__msgtype__ == IMAGE:
        return decoded.encoding
    content = decoded.data[: DEPTH_HEADER + 32].tobytes()
    for start in (0, DEPTH_HEADER):
        if content[start:].startswith(PNG_MAGIC):
            bits, colour_type = content[start + 24 : start + 26]
            if (bits, colour_type) == (16, 0):
                return "32FC1" if decoded.format.startswith("32FC1") else "16UC1"
            return "mono8" if colour_type == 0 else "png"
    if content.startswith(JPEG_MAGIC):
        return "mono8" if decoded.format.startswith("mono") else "jpeg"
    raise DamagedMessageError(f"a compressed picture of format {decoded.format!r} is neither JPEG nor PNG")


def check_picture(decoded: Any) -> tuple[int, int] | None:
    """(width, height) of a raw picture, None for compressed ones; raises DamagedMessageError if bytes are missing."""
    if decoded.__msgtype__ != IMAGE:
        encoding_of(decoded)
        return None
    _rows(decoded)
    return decoded.width, decoded.height


def decoded_size(decoded: Any, encoding: str) -> tuple[int, int]:
    """(width, height) of a compressed picture; raises DamagedMessageError if it can't be decoded."""
    picture = read_colour(decoded) if encoding in ("jpeg", "png") else read_single(decoded)
    return picture.shape[1], picture.shape[0]


def _rows(decoded: Any) -> tuple[np.ndarray, Layout]:
    """The bytes of a raw picture as uint8 [rows, bytes per row] without padding, and its layout."""
    if (layout := LAYOUTS.get(decoded.encoding)) is None:
        raise DamagedMessageError(f"unknown encoding {decoded.encoding!r}")
    if not (0 < decoded.width <= MAX_SIDE and 0 < decoded.height <= MAX_SIDE):
        raise DamagedMessageError(f"a picture of {decoded.width}x{decoded.height} pixels")
    length = decoded.width * layout.channels * np.dtype(layout.dtype).itemsize
    step = decoded.step or length
    height = decoded.height * 3 // 2 if decoded.encoding in ("nv12", "nv21") else decoded.height  # luma, then chroma
    if step < length or step * height > len(decoded.data):
        raise DamagedMessageError(f"{len(decoded.data)} bytes are too few for {decoded.width}x{decoded.height} pixels")
    return decoded.data[: step * height].reshape(height, step)[:, :length], layout


def _values(decoded: Any) -> tuple[np.ndarray, Layout]:
    """The values of a raw picture, [rows, columns] or [rows, columns, channels], in native byte order."""
    rows, layout = _rows(decoded)
    stored = np.ascontiguousarray(rows).view(np.dtype(layout.dtype).newbyteorder(">" if decoded.is_bigendian else "<"))
    values = stored.astype(layout.dtype, copy=False)
    return (values.reshape(len(rows), -1, layout.channels) if layout.channels > 1 else values), layout


def read_colour(decoded: Any) -> np.ndarray:
    """Decode a colour picture to RGB uint8 [H,W,3]; raises DamagedMessageError if that fails."""
    if decoded.__msgtype__ == COMPRESSED:
        try:
            return decode_image(decoded.data.tobytes(), "the picture")
        except UserError as error:
            raise DamagedMessageError(str(error)) from None
    values, layout = _values(decoded)
    try:
        rgb = values if layout.code is None else np.asarray(cv2.cvtColor(values, layout.code))
    except cv2.error as error:  # an odd width of yuv422
        raise DamagedMessageError(f"{decoded.encoding} of {decoded.width}x{decoded.height}: {error.err}") from None
    return (rgb // 256).astype(np.uint8) if rgb.dtype == np.uint16 else rgb


def read_thumbnail(decoded: Any, width: int, height: int) -> np.ndarray:
    """Grey levels of a picture at a small size, uint8 [height, width]; raises DamagedMessageError if that fails."""
    if decoded.__msgtype__ == COMPRESSED:
        grey = cv2.imdecode(decoded.data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        if grey is None:
            raise DamagedMessageError("the picture is not readable")
    else:
        grey = cv2.cvtColor(read_colour(decoded), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


def read_single(decoded: Any) -> np.ndarray:
    """Decode a picture of one channel as stored: uint8, uint16 or float32 [H,W]; raises DamagedMessageError.

    Compressed depth of 32FC1 is stored as inverse depth in 16 bits and comes back in metres:
    https://github.com/ros-perception/image_transport_plugins, compressed_depth_image_transport/codec.cpp.
    """
    if decoded.__msgtype__ == IMAGE:
        values, layout = _values(decoded)
        if layout.channels > 1 or layout.code is not None:
            raise DamagedMessageError(f"{decoded.encoding} is not a picture of one channel")
        return values
    content = decoded.data.tobytes()
    start = 0 if content.startswith((PNG_MAGIC, JPEG_MAGIC)) else DEPTH_HEADER
    decoded_map = None
    with suppress(cv2.error):
        decoded_map = cv2.imdecode(decoded.data[start:], cv2.IMREAD_UNCHANGED)
    values = np.asarray(decoded_map)
    if decoded_map is None or values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise DamagedMessageError(f"a compressed picture of format {decoded.format!r} is damaged or not of one channel")
    if content[start:].startswith(PNG_MAGIC) and b"IEND" not in content[-16:]:
        raise DamagedMessageError("a PNG is cut off")  # OpenCV fills the missing rows
    if not decoded.format.startswith("32FC1"):
        return values
    quantisation, offset = struct.unpack_from("<ff", content, 4)
    with np.errstate(divide="ignore"):
        metres = np.float32(quantisation) / (values.astype(np.float32) - np.float32(offset))
    return np.where((values > 0) & np.isfinite(metres), metres, 0).astype(np.float32)


def read_lens(info: Any) -> Lens:
    """The camera of a CameraInfo message; raises UserError if it is implausible or of an unknown lens model."""
    fields = {name: getattr(info, name, getattr(info, name.upper(), None)) for name in ("k", "d", "r", "p")}
    k, p, rotation = (np.asarray(fields[name], float) for name in ("k", "p", "r"))
    width, height = int(info.width), int(info.height)
    where = f"camera_info of frame {info.header.frame_id}"
    if not (np.isfinite(k).all() and k[0] > 0 and k[4] > 0 and width > 0 and height > 0):
        raise UserError(f"{where} is empty: the camera was not calibrated")
    camera = Intrinsics(k[0], k[4], k[2], k[5], width, height)
    # R turns the picture to a second camera's; P then belongs to the turned one
    is_turned = rotation.any() and not np.allclose(rotation.reshape(3, 3), np.eye(3), atol=1e-4)
    has_p = np.isfinite(p).all() and p[0] > 0 and p[5] > 0 and not is_turned
    rectified = Intrinsics(p[0], p[5], p[2], p[6], width, height) if has_p else camera
    return Lens.parse(camera, info.distortion_model, np.asarray(fields["d"], float), where, rectified)
