"""Read and write videos with OpenCV, checking for the errors that OpenCV ignores."""

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

# Silence OpenCV and ffmpeg: scripts print their own one-line error for a file that is not a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
DEFAULT_FPS = 15.0  # for sources without a frame rate
MAX_CAMERA_DIGITS = 3  # in a camera's number


class Video:
    """A video file, stream URL or camera number. OpenCV applies the rotation stored by phones.

    fps: frames per second, DEFAULT_FPS if unknown. is_live: whether it is a camera or a stream.
    """

    def __init__(self, source: str):
        """Open the video; raises UserError if its path is not UTF-8, since OpenCV would abort the process."""
        require_utf8(source)
        self.source, self.is_live = source, not Path(source).is_file()
        is_camera = self.is_live and source.isdecimal() and len(source) <= MAX_CAMERA_DIGITS
        self.capture = cv2.VideoCapture(int(source) if is_camera else source)
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS

    def frames(self, limit: int | None) -> Iterator[np.ndarray]:
        """Yield frames as RGB uint8 [H,W,3], at most `limit`; raises UserError if none can be read."""
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
            raise UserError(f"--input {self.source}: not a readable image, folder, video or camera")


@contextmanager
def open_video_writer(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends an RGB uint8 [H,W,3] frame to an mp4, which is written atomically.

    Args:
        path: path of the video; raises UserError if it is not UTF-8.
        fps: frames per second; DEFAULT_FPS is used if the format does not support the rate.
        size: (width, height) of the frames. Odd sizes are padded by one row or column, since mp4 needs even ones.

    Raises OSError if the video can't be opened, or can't be read back at the end.
    """
    require_utf8(path)
    width, height = size
    even = (width + width % 2, height + height % 2)
    count = 0

    def append(picture: np.ndarray) -> None:
        nonlocal count
        if picture.shape[1::-1] != size:  # OpenCV would drop it silently
            raise OSError(f"{path}: a frame is {picture.shape[1]}x{picture.shape[0]}, the video {width}x{height}")
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        writer.write(cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
        count += 1

    with atomic_path(path) as temporary:
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(temporary), codec, fps, even)
        if not writer.isOpened():
            writer = cv2.VideoWriter(str(temporary), codec, DEFAULT_FPS, even)
        if not writer.isOpened():
            raise OSError(f"OpenCV can't write a video to {path}: is the folder writable, does OpenCV have ffmpeg?")
        try:
            yield append
        finally:
            writer.release()
        if _count_frames(temporary) != count:
            raise OSError(f"writing {path} failed: OpenCV can't read it back (disk full?)")


def _count_frames(path: Path) -> int:
    """Number of frames in a video according to its index; 0 if it has none or the first frame is unreadable."""
    capture = cv2.VideoCapture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.read()[0] else 0
    finally:
        capture.release()
