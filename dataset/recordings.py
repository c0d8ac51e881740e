"""What the importer knows of a recording, whatever it was recorded with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from config import Intrinsics
from dataset.frame_writer import FrameWriter

Item = TypeVar("Item")

THUMBNAIL = (40, 30)  # pixels, width and height, at which pictures are compared


@dataclass
class FrameInfo:
    """A frame of a recording.

    Attributes:
        recording: its name.
        time: seconds since the recording's first frame.
        pose: float64 [4,4], camera to world, metres; camera axes: x right, y down, z forward.
        gravity: float64 [3], downward vector in camera axes.
        split: train, val or test, if the data set says so.
        confidence: where it comes from, SENSOR or COMPUTED of dataset/confidence.py; None: 1 where there is depth.
    """

    recording: str
    time: float | None = None
    pose: np.ndarray | None = None
    gravity: np.ndarray | None = None
    split: str | None = None
    confidence: str | None = None


class Recording(Protocol):
    """A recording, or several of one layout.

    Attributes:
        name: of the recording, for stems and messages.
        frames: {stem: FrameInfo} in the order of time.
        unpaired: {stem: reason} of pictures without depth and depth without a picture.
        lines: what is wrong or missing, one line each.
    """

    name: str
    frames: dict[str, FrameInfo]
    unpaired: dict[str, str]
    lines: list[str]

    def describe(self) -> str:
        """One line: what the recording was recognised as, and what it contains."""

    def camera_of(self, stem: str) -> Intrinsics:
        """The pinhole camera of a frame."""

    def convert(self, stems: dict[str, str], writer: FrameWriter) -> Iterator[tuple[str, str | None]]:
        """Write frames, {stem: stem to write}; yields each stem once, with the reason if it could not be read."""


def choose_frames(
    frames: Sequence[Item], every: int, min_motion: float | None, thumbnail: Callable[[Item], np.ndarray]
) -> list[Item]:
    """Every k-th frame, without those that look like the last one taken.

    Args:
        frames: in the order of time.
        every: k.
        min_motion: smallest mean difference of two thumbnails, in grey levels; None takes all.
        thumbnail: a frame's grey levels, uint8 [h,w].
    """
    frames = frames[::every]
    if min_motion is None or not frames:
        return list(frames)
    kept, last = [frames[0]], thumbnail(frames[0]).astype(int)
    for frame in frames[1:]:
        levels = thumbnail(frame).astype(int)
        if np.abs(levels - last).mean() >= min_motion:
            kept.append(frame)
            last = levels
    return kept
