"""Depth of one camera as another camera beside it would see it."""

import math

import cv2
import numpy as np

from config import Intrinsics
from dataset.rectification import Lens

JUMP = 0.04  # relative difference of neighbouring readings above which they may belong to two surfaces
STEPS = 4
STRIP = 64  # rows that are registered at a time: their arrays stay in the processor's cache
MAX_CHANGE = 0.02  # relative, of the last step; more is a place that only one of the two cameras sees
NEARLY_ZERO = np.float32(1e-6)  # 1/metres


class Registration:
    """Registers depth maps of one camera to another one.

    For each pixel of the target, the nearest point is sought that both cameras see. The first guess is the nearest
    reading that falls on the pixel. Each step projects the guess into the depth map and takes the surface found there.
    Between four readings of one surface, inverse depth is interpolated, which is exact on planes: a target with more
    pixels than the sensor has no gaps. At an edge, the nearest pixel's reading is taken.

    Args:
        source: the depth camera.
        target: the other camera, without distortion.
        transform: float [4,4], from points of the depth camera to points of the target, metres.
    """

    def __init__(self, source: Lens, target: Intrinsics, transform: np.ndarray):
        self.source, self.target = source, target
        rotation, offset = transform[:3, :3].astype(np.float32), transform[:3, 3].astype(np.float32)
        self.offset, self.offset_back = offset, -offset @ rotation
        self.rays = _turned_rays(source, rotation)
        self.rays_back = _turned_rays(Lens.pinhole(target), rotation.T)
        spacing = max(target.fx / source.rectified.fx, target.fy / source.rectified.fy)
        self.reach = math.ceil(spacing / 2)  # pixels around a reading on which no other reading falls

    def register(self, depth: np.ndarray) -> np.ndarray:
        """Register a depth map.

        Args:
            depth: float32 [h,w] metres along the depth camera's optical axis, 0 = no reading.

        Returns float32 [H,W] metres along the target's optical axis, 0 = no reading.
        """
        return self.register_with(depth, None)[0]

    def register_with(self, depth: np.ndarray, values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Register a depth map and another map [h,w] of the depth camera, which is sampled at the nearest pixel.

        Returns (depth, values) in the target, 0 where there is no reading. `values` may be None.
        """
        inverse = _invert(depth)
        is_surface = find_surfaces(inverse)
        own = self._nearest_readings(depth)
        guess = _invert(cv2.dilate(own, np.ones((2 * self.reach + 1, 2 * self.reach + 1), np.uint8)))
        registered = _invert(own)  # thin things have no surface, only readings
        moved = None if values is None else np.zeros(registered.shape, values.dtype)
        for top in range(0, self.target.height, STRIP):
            strip = slice(top, top + STRIP)
            metres = last = guess[strip]
            for _ in range(STEPS):
                last = metres
                u, v = self._find_in_source(metres, strip)
                metres = self._measure(inverse, is_surface, u, v)
            seen = (metres > 0) & (np.abs(metres - last) <= MAX_CHANGE * metres)
            registered[strip] = np.where(seen, metres, registered[strip])
            if values is not None and moved is not None:
                u, v = self._find_in_source(registered[strip], strip)
                moved[strip] = np.where(registered[strip] > 0, cv2.remap(values, u, v, cv2.INTER_NEAREST), 0)
        return registered, moved

    def _nearest_readings(self, depth: np.ndarray) -> np.ndarray:
        """The nearest reading that falls on each pixel: float32 [H,W], 1/metres, 0 = none."""
        x, y, z = (axis * depth + shift for axis, shift in zip(self.rays, self.offset, strict=True))
        ahead = (depth > 0) & (z > 0)
        x, y, z = x[ahead], y[ahead], z[ahead]
        u = np.rint(self.target.fx * x / z + self.target.cx)
        v = np.rint(self.target.fy * y / z + self.target.cy)
        inside = (u >= 0) & (u < self.target.width) & (v >= 0) & (v < self.target.height)
        nearest = np.zeros((self.target.height, self.target.width), np.float32)
        pixels = v[inside].astype(np.int32) * self.target.width + u[inside].astype(np.int32)
        np.maximum.at(nearest.reshape(-1), pixels, 1 / z[inside])
        return nearest

    def _find_in_source(self, metres: np.ndarray, strip: slice) -> tuple[np.ndarray, np.ndarray]:
        """Where points of a strip of the target lie in the depth map, in pixels; far outside without a guess."""
        rays = self.rays_back[:, strip]
        x, y, z = (axis * metres + shift for axis, shift in zip(rays, self.offset_back, strict=True))
        np.maximum(z, NEARLY_ZERO, out=z)
        camera = self.source.rectified
        u, v = camera.fx * x / z + np.float32(camera.cx), camera.fy * y / z + np.float32(camera.cy)
        u[metres <= 0] = -1e4
        return self.source.distort(u.astype(np.float32, copy=False), v.astype(np.float32, copy=False))

    def _measure(self, inverse: np.ndarray, is_surface: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Depth along the target's axis of the surface at positions in the depth map; 0 = no reading."""
        within = cv2.remap(is_surface, u - 0.5, v - 0.5, cv2.INTER_NEAREST)  # 0 outside
        smooth, nearest = (cv2.remap(inverse, u, v, how) for how in (cv2.INTER_LINEAR, cv2.INTER_NEAREST))
        sampled = np.where(np.asarray(within) > 0, np.asarray(smooth), np.asarray(nearest))
        along = cv2.remap(self.rays[2], u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.maximum(np.where(sampled > 0, along * _invert(sampled) + self.offset[2], 0), 0)


def _invert(values: np.ndarray) -> np.ndarray:
    """1 / values, 0 where they are not above 0; float32."""
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)


def _turned_rays(lens: Lens, rotation: np.ndarray) -> np.ndarray:
    """The rays of a camera's pixels, turned: float32 [3,H,W]; their z is 1 before the turn."""
    rays = lens.rays()
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], -1)
    return np.ascontiguousarray((rays @ rotation.T).transpose(2, 0, 1))


def find_surfaces(inverse: np.ndarray) -> np.ndarray:
    """Squares of four neighbouring readings that belong to one surface.

    Two neighbours do if they differ by less than JUMP, or if the difference goes on on one of the two sides, as it does
    on a floor seen at a grazing angle: inverse depth is linear on a plane.

    Args:
        inverse: float32 [h,w], 1/metres, 0 = no reading.

    Returns uint8 [h,w], 1 if the readings at (v, u), (v, u + 1), (v + 1, u) and (v + 1, u + 1) are of one surface.
    """
    joined = []
    for image in (inverse, inverse.T):
        step = np.diff(image, axis=1)
        both = (image[:, 1:] > 0) & (image[:, :-1] > 0)
        small = np.abs(step) < JUMP * np.minimum(image[:, 1:], image[:, :-1])
        goes_on = np.zeros_like(both)
        alike = np.abs(np.diff(step, axis=1)) < 0.5 * np.minimum(np.abs(step[:, 1:]), np.abs(step[:, :-1]))
        alike &= both[:, 1:] & both[:, :-1]
        goes_on[:, 1:] |= alike
        goes_on[:, :-1] |= alike
        joined.append(both & (small | goes_on))
    across, down = joined[0], joined[1].T
    surfaces = np.zeros(inverse.shape, np.uint8)
    surfaces[:-1, :-1] = across[:-1] & across[1:] & down[:, :-1] & down[:, 1:]
    return surfaces
