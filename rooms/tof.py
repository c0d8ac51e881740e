"""A time-of-flight camera beside the colour camera, as on an Orbbec Femto Bolt, and its depth in the colour image.

The sensor's numbers are assumptions until a camera_info of a real one is read: a field of view of 75 x 65 degrees over
640x576 pixels (binned: 320x288), 32 mm beside the colour camera, both looking the same way.
"""

import math
from dataclasses import replace

import numpy as np

from config import Intrinsics
from dataset.rectification import Lens
from dataset.registration import Registration
from dataset.transforms import rigid
from rooms.render import Hits, Pose, World, camera_rays, simulate_sensor, trace_to_opaque

FIELD_OF_VIEW = (75.0, 65.0)  # degrees
BASELINE = 0.032  # metres along the colour camera's x axis
SIZE, BINNED_SIZE = (640, 576), (320, 288)


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
    reading, _ = measure(world, colour, pose, rng, weakness)
    return register(reading, tof_camera(colour), colour, np.array([BASELINE, 0.0, 0.0]))


def measure(
    world: World, colour: Intrinsics, pose: Pose, rng: np.random.Generator, weakness: float
) -> tuple[np.ndarray, Hits]:
    """Simulate the sensor's depth in its own view; arguments as for simulate_tof().

    Returns float32 [h,w] metres, 0 = no reading, and what its h * w rays hit first.
    """
    camera = tof_camera(colour)
    placed = beside(pose)
    rays = camera_rays(camera, placed)
    origins = placed.position[None]
    first = world.cast(origins, rays)
    _, _, path, _, _ = trace_to_opaque(world, origins, rays, first)
    return simulate_sensor(world, first, path, rays, (camera.height, camera.width), rng, weakness), first


def register(depth: np.ndarray, camera: Intrinsics, colour: Intrinsics, offset: np.ndarray) -> np.ndarray:
    """A depth map as another camera would see it, which looks the same way.

    Args:
        depth: float32 [h,w] metres along the optical axis, 0 = no reading.
        camera: that it was measured with.
        colour: the other camera.
        offset: of the first camera's centre, metres in the other camera's axes.

    Returns float32 [H,W] metres along the other camera's axis, 0 = no reading.
    """
    return Registration(Lens.pinhole(camera), colour, rigid(np.eye(3), offset)).register(depth)
