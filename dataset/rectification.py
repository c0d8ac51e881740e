"""Lens distortion: cameras as ROS and OpenCV describe them, and pictures without distortion.

The student, its teachers and the geometric rules assume a pinhole camera: a straight line is straight in the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cli import UserError

import cv2
import numpy as np

from config import Intrinsics

# numbers of coefficients, by ROS's name of the model: k1 k2 p1 p2 k3; k1 k2 p1 p2 k3 k4 k5 k6; k1 k2 k3 k4
MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
SYNONYMS = {"fisheye": "equidistant", "kannala_brandt4": "equidistant", "rational": "rational_polynomial"}
MAX_COEFFICIENT = 1e3


@dataclass(frozen=True)
class Lens:
    """A camera with lens distortion.

    Attributes:
        camera: the camera matrix of the pictures as taken, and their size.
        model: plumb_bob, rational_polynomial or equidistant; empty without distortion.
        coefficients: of the model, in OpenCV's order; empty without distortion.
        rectified: the camera of the pictures without distortion.
    """

    camera: Intrinsics
    model: str
    coefficients: tuple[float, ...]
    rectified: Intrinsics

    @classmethod
    def pinhole(cls, camera: Intrinsics) -> "Lens":
        """A camera without distortion."""
        return cls(camera, "", (), camera)

    @classmethod
    def parse(
        cls,
        camera: Intrinsics,
        model: str,
        coefficients: Sequence[float] | np.ndarray,
        where: str,
        rectified: Intrinsics | None = None,
    ) -> "Lens":
        """A camera from the numbers of a camera_info, a file or flags; raises UserError naming `where`.

        rectified: the camera of the pictures without distortion; default: with the same matrix.
        """
        values = tuple(float(value) for value in coefficients)
        for known in filter(None, (camera, rectified)):
            if known.problem:
                raise UserError(f"{where}: {known.problem}")
        if not any(values):
            return cls.pinhole(camera)
        model = SYNONYMS.get(model, model)
        if model not in MODELS:
            raise UserError(f"{where}: unknown distortion model {model!r}; known are {', '.join(MODELS)}")
        if len(values) not in MODELS[model]:
            counts = " or ".join(map(str, MODELS[model]))
            raise UserError(f"{where}: {model} has {counts} coefficients, not {len(values)}")
        if not all(math.isfinite(value) and abs(value) < MAX_COEFFICIENT for value in values):
            raise UserError(f"{where}: the distortion coefficients {values} can't be right")
        return cls(camera, model, values, rectified or camera)

    def resized(self, width: int, height: int) -> "Lens":
        """The camera after resizing its pictures."""
        resized = self.camera.resized(width, height), self.rectified.resized(width, height)
        return Lens(resized[0], self.model, self.coefficients, resized[1])

    @property
    def is_distorted(self) -> bool:
        """Whether its pictures must be rectified."""
        return bool(self.model)

    def rays(self) -> np.ndarray:
        """The ray of each pixel as taken: float32 [H,W,2], x / z and y / z, without distortion."""
        u, v = np.meshgrid(np.arange(self.camera.width, dtype=float), np.arange(self.camera.height, dtype=float))
        matrix = camera_matrix(self.camera)
        if not self.model:
            rays = np.stack([(u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1]], -1)
            return rays.astype(np.float32)
        pixels = np.stack([u, v], -1).reshape(-1, 1, 2)
        undistort = cv2.fisheye.undistortPoints if self.model == "equidistant" else cv2.undistortPoints
        rays = undistort(pixels, matrix, np.array(self.coefficients))
        return np.asarray(rays).reshape(*u.shape, 2).astype(np.float32)

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel of a rectified picture lies in the picture as taken, float32 [H,W] each."""
        size = (self.rectified.width, self.rectified.height)
        matrices = camera_matrix(self.camera), camera_matrix(self.rectified)
        fisheye = self.model == "equidistant"
        initialise = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        x, y = initialise(matrices[0], np.array(self.coefficients), np.eye(3), matrices[1], size, cv2.CV_32FC1)
        return x, y

    @property
    def unseen(self) -> float:
        """The share of a rectified picture that lies outside the picture as taken; it is black."""
        if not self.model:
            return 0.0
        x, y = self._maps
        inside = (x > -0.5) & (x < self.camera.width - 0.5) & (y > -0.5) & (y < self.camera.height - 0.5)
        return 1 - float(inside.mean())

    def distort(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where pixels float32 [H,W] of a rectified picture lie in the picture as taken; -1e4 outside of both."""
        if not self.model:
            return u, v
        x, y = (cv2.remap(places, u, v, cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, -1e4) for places in self._maps)
        return np.asarray(x), np.asarray(y)

    def rectify(self, picture: np.ndarray) -> np.ndarray:
        """A colour picture uint8 [H,W,3] without distortion; the same if there is none."""
        return cv2.remap(picture, *self._maps, cv2.INTER_LINEAR) if self.model else picture

    def rectify_map(self, values: np.ndarray) -> np.ndarray:
        """A map [H,W] that lies on the picture, without distortion; nearest pixel, 0 outside."""
        return cv2.remap(values, *self._maps, cv2.INTER_NEAREST) if self.model else values


def camera_matrix(camera: Intrinsics) -> np.ndarray:
    """The 3x3 matrix of a camera, float64."""
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], float)
