"""A colour and a depth camera, and how their pictures become one frame of a pinhole camera."""

from dataclasses import dataclass

from cli import UserError

import numpy as np

from config import Intrinsics
from dataset.rectification import Lens
from dataset.registration import Registration

SAME_CAMERA = 1e-3  # relative difference up to which two camera matrices are the same


@dataclass(frozen=True)
class Rig:
    """The two cameras of a recording.

    Attributes:
        lens: the colour camera.
        registration: brings depth into the colour camera; None if it already lies on the pictures.
    """

    lens: Lens
    registration: Registration | None = None

    @classmethod
    def build(cls, colour: Lens, depth: Lens | None, transform: np.ndarray | None) -> "Rig":
        """A rig of a colour camera and a depth camera.

        Args:
            colour: the colour camera.
            depth: the depth camera; None if depth already lies on the pictures.
            transform: float [4,4], from points of the depth camera to points of the colour camera; None: the same axes.
        """
        same_axes = transform is None or np.allclose(transform, np.eye(4), atol=1e-6)
        if depth is None or same_axes and _is_same(colour, depth):
            return cls(colour)
        return cls(colour, Registration(depth, colour.rectified, np.eye(4) if transform is None else transform))

    @property
    def camera(self) -> Intrinsics:
        """The pinhole camera of the frames."""
        return self.lens.rectified

    @property
    def depth_size(self) -> tuple[int, int]:
        """(width, height) of the depth maps as taken."""
        camera = self.registration.source.camera if self.registration else self.lens.camera
        return camera.width, camera.height

    def describe(self) -> str:
        """What is done to the pictures, in words; empty if nothing."""
        parts = []
        if self.lens.is_distorted:
            parts.append(f"{self.lens.model} distortion is removed")
            if (unseen := self.lens.unseen) > 0.001:
                parts.append(f"{unseen:.1%} of the picture are black, outside the lens's view")
        if self.registration:
            width, height = self.depth_size
            parts.append(f"depth of {width}x{height} is registered to colour")
        return ", ".join(parts)

    def colour(self, rgb: np.ndarray) -> np.ndarray:
        """A colour picture uint8 [H,W,3] without distortion. Raises UserError if it has another size."""
        self._check_size("a colour picture", rgb, (self.lens.camera.width, self.lens.camera.height))
        return self.lens.rectify(rgb)

    def depth(self, metres: np.ndarray, confidence: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Depth and its confidence (or None), float32 [h,w], in the frame; raises UserError on other sizes."""
        for values in (metres, confidence):
            if values is not None:
                self._check_size("a depth map", values, self.depth_size)
        if self.registration:
            return self.registration.register_with(metres, confidence)
        rectify = self.lens.rectify_map
        return rectify(metres), None if confidence is None else rectify(confidence)

    @staticmethod
    def _check_size(what: str, picture: np.ndarray, size: tuple[int, int]) -> None:
        if picture.shape[1::-1] != size:
            found = f"{picture.shape[1]}x{picture.shape[0]}"
            raise UserError(f"{what} is {found}, but its camera has {size[0]}x{size[1]} pixels")


def _is_same(first: Lens, second: Lens) -> bool:
    a, b = first.camera, second.camera
    # a driver that maps depth onto distorted pictures copies their coefficients; without them depth lies on a pinhole
    same_lens = (a.width, a.height, first.coefficients) == (b.width, b.height, second.coefficients)
    matrices = np.array([[c.fx, c.fy, c.cx, c.cy] for c in (a, b)])
    return same_lens and bool(np.abs(matrices[0] - matrices[1]).max() <= SAME_CAMERA * a.focal)
