"""Coordinate frames of a recording: the tree of tf and tf_static, poses, and the direction of gravity."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WORLD_FRAMES = ("map", "odom", "world", "vicon")  # in order of preference
LEVEL_FRAMES = (*WORLD_FRAMES, "base_footprint", "base_link")  # their z axis points up (REP 103, REP 105)
MAX_EXTRAPOLATION, MAX_INTERPOLATION = 100_000_000, 1_000_000_000  # nanoseconds
GRAVITY_WINDOW = 500_000_000  # nanoseconds before and after a frame over which accelerations are averaged
MAX_ACCELERATION = 0.1  # relative difference of an acceleration's norm from the recording's median


def rigid(rotation: np.ndarray, translation: Sequence[float] | np.ndarray) -> np.ndarray:
    """The 4x4 matrix of a rotation [3,3] and a translation [3], float64."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def rotation_of(quaternion: Sequence[float] | np.ndarray) -> np.ndarray:
    """The rotation matrix [3,3] of a quaternion x y z w of any length; raises ValueError if it is 0 or not finite."""
    quaternion = np.asarray(quaternion, float)
    norm = np.linalg.norm(quaternion)
    if not 1e-6 < norm < 1e6:
        raise ValueError(f"{quaternion.tolist()} is not a rotation")
    x, y, z, w = quaternion / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


class Track:
    """A moving transform: samples in time, interpolated between neighbours."""

    def __init__(self) -> None:
        self.samples: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._times: list[int] = []

    def add(self, time: int, translation: Sequence[float], quaternion: Sequence[float]) -> None:
        """Add a sample at a time in nanoseconds; a later one at the same time replaces it."""
        self.samples[time] = np.asarray(translation, float), np.asarray(quaternion, float)
        self._times = []

    def at(self, time: int) -> np.ndarray | None:
        """The transform [4,4] at a time; None farther than MAX_EXTRAPOLATION outside or in a gap of the samples."""
        times = self._times = self._times or sorted(self.samples)
        after = bisect_left(times, time)
        if after in (0, len(times)):
            nearest = times[0 if after == 0 else -1]
            if abs(nearest - time) > MAX_EXTRAPOLATION:
                return None
            translation, quaternion = self.samples[nearest]
            return rigid(rotation_of(quaternion), translation)
        earlier, later = times[after - 1], times[after]
        if later - earlier > MAX_INTERPOLATION:
            return None
        share = (time - earlier) / (later - earlier)
        (t0, q0), (t1, q1) = self.samples[earlier], self.samples[later]
        q1 = q1 if q0 @ q1 >= 0 else -q1  # both mean the same rotation
        return rigid(rotation_of((1 - share) * q0 + share * q1), (1 - share) * t0 + share * t1)


class TransformTree:
    """Coordinate frames by name, each with its parent."""

    def __init__(self) -> None:
        self.fixed: dict[str, tuple[str, np.ndarray]] = {}
        self.moving: dict[str, tuple[str, Track]] = {}

    def add(
        self, parent: str, child: str, time: int | None, translation: Sequence[float], quaternion: Sequence[float]
    ) -> None:
        """Add a transform from the child's to the parent's coordinates.

        Args:
            parent: name of the frame, with or without a leading slash.
            child: likewise.
            time: nanoseconds; None for a fixed transform.
            translation: x y z in metres.
            quaternion: x y z w.

        Raises ValueError if the numbers are not a transform.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        if not np.isfinite(np.asarray(translation, float)).all():
            raise ValueError(f"{list(translation)} is not a translation")
        rotation = rotation_of(quaternion)
        if time is None:
            self.fixed[child] = parent, rigid(rotation, translation)
            return
        if self.moving.get(child, (parent,))[0] != parent:
            raise ValueError(f"frame {child} has two parents")
        self.moving.setdefault(child, (parent, Track()))[1].add(time, translation, quaternion)

    def lookup(self, target: str, source: str, time: int | None) -> np.ndarray | None:
        """The transform [4,4] from source to target coordinates at a time; None if the frames are not connected.

        Without a time only fixed transforms are used.
        """
        to_source, to_target = (self._ancestors(frame.lstrip("/"), time) for frame in (source, target))
        for frame, from_source in to_source.items():
            if frame in to_target:
                return np.linalg.inv(to_target[frame]) @ from_source
        return None

    def _ancestors(self, frame: str, time: int | None) -> dict[str, np.ndarray]:
        """{frame or ancestor: transform from the frame's coordinates}, the frame itself first."""
        found = {frame: np.eye(4)}
        while True:
            step: np.ndarray | None = None
            if frame in self.fixed:
                parent, step = self.fixed[frame]
            elif frame in self.moving and time is not None:
                parent, track = self.moving[frame]
                step = track.at(time)
            if step is None or parent in found:
                return found
            found[parent] = step @ found[frame]
            frame = parent

    def names(self) -> set[str]:
        """The names of all frames."""
        parents = {parent for parent, _ in (*self.fixed.values(), *self.moving.values())}
        return {*parents, *self.fixed, *self.moving}


class Accelerometer:
    """Accelerations of one IMU, in its own frame.

    At rest an accelerometer measures the opposite of gravity. Samples whose norm differs from the usual one belong to
    bumps and turns.
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[int, tuple[float, float, float]]]] = defaultdict(list)

    def add(self, frame: str, time: int, acceleration: tuple[float, float, float]) -> None:
        """Add a sample; zero and NaN, which gyroscopes write, are left out."""
        if np.isfinite(acceleration).all() and any(acceleration):
            self.samples[frame.lstrip("/")].append((time, acceleration))

    def gravity(self, times: Sequence[int], to_camera: np.ndarray, frame: str) -> dict[int, np.ndarray]:
        """Downward unit vectors [3] in camera axes.

        Args:
            times: of the frames, nanoseconds.
            to_camera: transform [4,4] from the IMU's coordinates to the camera's.
            frame: of the IMU.

        Returns {time: vector}, without the times that have no acceleration of the usual norm.
        """
        ordered = sorted(self.samples[frame])
        stamps = np.array([time for time, _ in ordered])
        values = np.array([acceleration for _, acceleration in ordered])
        norms = np.linalg.norm(values, axis=1)
        usual = np.median(norms)
        still = np.abs(norms - usual) < MAX_ACCELERATION * usual
        stamps, values = stamps[still], values[still] / norms[still, None]
        found = {}
        for time in times:
            first, last = np.searchsorted(stamps, (time - GRAVITY_WINDOW, time + GRAVITY_WINDOW))
            down = -values[first:last].sum(0) @ to_camera[:3, :3].T
            if (norm := np.linalg.norm(down)) > 0:
                found[time] = down / norm
        return found
