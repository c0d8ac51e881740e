"""A time-of-flight camera beside the colour camera, as on an Orbbec Femto Bolt, and its depth in the colour image.

The sensor's numbers are assumptions until a camera_info of a real one is read: a field of view of 75 x 65 degrees over
640x576 pixels (binned: 320x288), 32 mm beside the colour camera, both looking the same way.
"""

import math
from dataclasses import replace

import numpy as np

from config import Intrinsics
from rooms import kernels
from rooms.embree import EmbreeScene
from rooms.render import Pose, World, camera_rays, simulate_sensor, trace_to_opaque

FIELD_OF_VIEW = (75.0, 65.0)  # degrees
BASELINE = 0.032  # metres along the colour camera's x axis
SIZE, BINNED_SIZE = (640, 576), (320, 288)
JUMP = 0.04  # relative difference of neighbouring readings across which there is no surface


def tof_camera(colour: Intrinsics) -> Intrinsics:
    """The sensor's intrinsics: all of its pixels beside a wide colour image, binned 2x2 beside a smaller one."""
    width, height = SIZE if colour.width > 2 * BINNED_SIZE[0] else BINNED_SIZE
    fx, fy = (
        0.5 * size / math.tan(math.radians(view) / 2)
        for size, view in zip((width, height), FIELD_OF_VIEW, strict=True)
    )
    return Intrinsics.centred(fx, fy, width, height)


def beside(colour: Pose) -> Pose:
    """The sensor's pose beside the colour camera."""
    return replace(colour, position=colour.position + BASELINE * colour.rotation()[:, 0])


def simulate_tof(
    world: World, colour: Intrinsics, pose: Pose, rng: np.random.Generator, weakness: float
) -> np.ndarray:
    """Simulate the sensor's depth, registered to the colour image: float32 [H,W] metres, 0 = no reading.

    weakness: of the sensor, as in simulate_sensor().
    """
    camera = tof_camera(colour)
    placed = beside(pose)
    rays = camera_rays(camera, placed)
    origins = placed.position[None]
    first = world.cast(origins, rays)
    _, _, path, _, _ = trace_to_opaque(world, origins, rays, first)
    reading = simulate_sensor(world, first, path, rays, (camera.height, camera.width), rng, weakness)
    return register(reading, camera, colour, np.array([BASELINE, 0.0, 0.0]))


def register(depth: np.ndarray, camera: Intrinsics, colour: Intrinsics, offset: np.ndarray) -> np.ndarray:
    """A depth map as another camera would see it, which looks the same way.

    Neighbouring readings of one surface are joined by triangles, and the other camera's rays are cast on them: nearer
    surfaces hide farther ones, and a denser grid has no gaps.

    Args:
        depth: float32 [h,w] metres along the optical axis, 0 = no reading.
        camera: that it was measured with.
        colour: the other camera.
        offset: of the first camera's centre, metres in the other camera's axes.

    Returns float32 [H,W] metres along the other camera's axis, 0 = no reading.
    """
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    points = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    points = points * depth[..., None] + offset
    corners = np.stack([depth[:-1, :-1], depth[:-1, 1:], depth[1:, 1:], depth[1:, :-1]], -1)
    nearest, farthest = corners.min(-1), corners.max(-1)
    joined = (nearest > 0) & (farthest - nearest < JUMP * farthest)
    if not joined.any():
        return np.zeros((colour.height, colour.width), np.float32)
    quads = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], -2)[joined]
    triangles = quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3, 3)
    rays = camera_rays(colour, Pose(np.zeros(3), 0.0, 0.0, 0.0)) @ FROM_WORLD
    found = EmbreeScene(triangles)
    depth = kernels.distances(found.handle, rays)
    return depth.reshape(colour.height, colour.width)


FROM_WORLD = Pose(np.zeros(3), 0.0, 0.0, 0.0).rotation()  # rays of the pose at rest, back into camera axes
