"""Reading and writing videos with OpenCV, which says nothing of most of its failures itself."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import UserError

import cv2
import numpy as np

from dataset.files import atomic_path
from dataset.listing import require_utf8

# What OpenCV and ffmpeg have to say of a file that is no video would bury the one line that a script says.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
DEFAULT_FPS = 15.0  # of a written video when its source does not tell its own
MAX_CAMERA_DIGITS = 3  # of a camera's number, at most


class Video:
    """A video file, a stream's address, or the number of a camera. OpenCV turns what a phone has recorded upright.

    fps: pictures a second, DEFAULT_FPS where the source tells none. is_live: whether it is a camera or a stream.
    """

    def __init__(self, source: str):
        """Open it; raises UserError when its path is no UTF-8, on which OpenCV ends the process."""
        require_utf8(source)
        self.source, self.is_live = source, not Path(source).is_file()
        is_camera = self.is_live and source.isdecimal() and len(source) <= MAX_CAMERA_DIGITS
        self.capture = cv2.VideoCapture(int(source) if is_camera else source)
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS

    def frames(self, limit: int | None) -> Iterator[np.ndarray]:
        """RGB uint8 [H,W,3] of one picture after the other; raises UserError when not one can be read."""
        count = 0
        try:
            while limit is None or count < limit:
                decoded, picture = self.capture.read()
                if not decoded:
                    break
                yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                count += 1
        finally:
            self.capture.release()
        if not count:
            raise UserError(f"--input {self.source}: no image, folder, video or camera that can be read")


@contextmanager
def open_video_writer(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends an RGB uint8 [H,W,3] picture to an mp4, which is written whole or not at all.

    Args:
        path: of the video; raises UserError when it is no UTF-8.
        fps: pictures a second; DEFAULT_FPS instead where the format has no such rate.
        size: (width, height) of the pictures. An odd one gets another row or column, since the format has even ones.

    Raises OSError when the video can't be opened or, in the end, can't be read back.
    """
    require_utf8(path)
    width, height = size
    even = (width + width % 2, height + height % 2)
    count = 0

    def append(picture: np.ndarray) -> None:
        nonlocal count
        if picture.shape[1::-1] != size:  # which OpenCV would leave out without a word
            raise OSError(f"{path}: a picture is {picture.shape[1]}x{picture.shape[0]}, the video {width}x{height}")
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        writer.write(cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
        count += 1

    with atomic_path(path) as temporary:
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(temporary), codec, fps, even)
        if not writer.isOpened():
            writer = cv2.VideoWriter(str(temporary), codec, DEFAULT_FPS, even)
        if not writer.isOpened():
            raise OSError(f"OpenCV can't write a video to {path}: is the folder writable, has OpenCV ffmpeg?")
        try:
            yield append
        finally:
            writer.release()
        if _count_frames(temporary) != count:
            raise OSError(f"{path} could not be written: OpenCV can't read it back (disk full?)")


def _count_frames(path: Path) -> int:
    """Pictures in a video by its index, 0 when it has none or the first one can't be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.read()[0] else 0
    finally:
        capture.release()
