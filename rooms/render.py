"""Ray caster for furnished rooms: colour, exact depth, object ids and simulated time-of-flight depth.

Embree intersects the rays, kernels.py computes the shading. Lighting is direct light from lamps and windows with soft
shadows, plus one indirect bounce. Both use interleaved sampling: the 16 pixels of a 4x4 block share one set of samples,
and a 4x4 filter over pixels of the same surface combines them (Keller and Heidrich, Interleaved Sampling, 2001).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import ArrayLike

from config import Intrinsics
from rooms import kernels
from rooms.embree import EmbreeScene
from rooms.geometry import Soup, cross
from rooms.kernels import BLOCK, RAY_OFFSET
from rooms.textures import GLASS, MIRROR, OPAQUE, MaterialTable, Palette

LIGHT_SAMPLES = 2  # per pixel; 16 times as many per block
MAX_BOUNCES = 4
SENSOR_RANGE = 8.0  # metres
LEAST_REFLECTION = 0.015  # share of the light; less is not traced
SKY = np.array([0.8, 0.9, 1.0], np.float32)


@dataclass
class Light:
    """Rectangular light source: centre, half edges u and v, unit normal in its emission direction, linear RGB power."""

    centre: np.ndarray
    half_u: np.ndarray
    half_v: np.ndarray
    normal: np.ndarray
    power: np.ndarray


@dataclass
class Pose:
    """Camera position [3] in metres; yaw from +x, pitch (positive is up) and roll in radians."""

    position: np.ndarray
    yaw: float
    pitch: float
    roll: float

    def matrix(self) -> np.ndarray:
        """Camera-to-world transform, float64 [4,4], for points in camera axes: x right, y down, z forward."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation(), self.position
        return matrix

    def rotation(self) -> np.ndarray:
        """Rotation matrix, float64 [3,3]; its columns are the camera's right, down and forward axes in the world."""
        cos, sin = np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([cos * np.cos(self.yaw), cos * np.sin(self.yaw), sin])
        right = np.array([np.sin(self.yaw), -np.cos(self.yaw), 0.0])
        down = np.cross(forward, right)
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.stack([c * right + s * down, c * down - s * right, forward], 1)


@dataclass
class Hits:
    """Hits of N rays: triangle int [N], -1 = none; distance [N] in direction-vector lengths; barycentrics [N,2]."""

    triangle: np.ndarray
    distance: np.ndarray
    bary: np.ndarray


class World:
    """A scene prepared for ray casting."""

    def __init__(self, soup: Soup, palette: Palette, lights: list[Light], area: float):
        self.table = MaterialTable(palette)
        self.lights = lights
        self.light_centres, self.light_normals, self.light_powers = (
            _f32([getattr(light, name) for light in lights]) for name in ("centre", "normal", "power")
        )
        # irradiance of indirect light: the power of all lights, spread over `area` m^2 of walls, floor and ceiling
        self.ambient = np.float32(4.0 * sum(light.power.mean() for light in lights) / area)
        self._set_geometry(soup)

    def with_geometry(self, soup: Soup) -> "World":
        """The same materials and lights with other triangles, for things that move."""
        world = copy.copy(self)
        world._set_geometry(soup)
        return world

    def _set_geometry(self, soup: Soup) -> None:
        self.soup = soup
        self.triangle_kind = self.table.kind[soup.materials]
        self.triangle_gloss = self.table.gloss[soup.materials]
        self.triangle_emission = self.table.emission[soup.materials]
        self.triangle_infrared = self.table.infrared[soup.materials]
        first, second, third = (soup.vertices[:, i] for i in range(3))
        self.plane = cross(second - first, third - first)
        self.plane /= np.linalg.norm(self.plane, axis=1, keepdims=True)
        self.offset = (self.plane * first).sum(1)
        self._scene = EmbreeScene(soup.vertices)
        # glass and light-emitting surfaces, such as lamp shades, cast no shadow and reflect no light
        occluder = (self.triangle_kind != GLASS) & (self.triangle_emission == 0)
        self.occluders = EmbreeScene(soup.vertices[occluder])
        self.occluder_colour = self.table.colour[soup.materials[occluder]]

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Find the nearest hits of rays, float64 [N,3], from origins [N,3], or [1,3] for all.

        The distances are exact, from the planes of the hit triangles.
        """
        return Hits(*kernels.cast(self._scene.handle, self.plane, self.offset, origins, directions))


@dataclass
class Surface:
    """Shading inputs of N points: triangle, position, unit normal towards the ray, material, albedo."""

    triangle: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    material: np.ndarray
    albedo: np.ndarray


@dataclass
class RawFrame:
    """rgb uint8 [H,W,3]; depth and sensor_depth float32 [H,W] metres, 0 = none; object id int32 [H,W], -1 = none."""

    rgb: np.ndarray
    depth: np.ndarray
    sensor_depth: np.ndarray
    object: np.ndarray


def camera_rays(camera: Intrinsics, pose: Pose) -> np.ndarray:
    """Ray directions, float64 [H*W,3], with a camera z of 1, so that the distance of a hit is its depth."""
    return kernels.camera_rays(
        camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy, pose.rotation()
    )


def render(
    world: World,
    camera: Intrinsics,
    pose: Pose,
    rng: np.random.Generator,
    develop: Callable[[np.ndarray], np.ndarray] | None = None,
    look: int = 1,
) -> RawFrame:
    """Render one frame; noise, exposure and sampling patterns are drawn from `rng`.

    Args:
        world: the scene.
        camera: the camera.
        pose: its pose.
        rng: random generator.
        develop: converts linear radiance [H,W,3] to the image (default: develop_image with `rng`).
        look: 2 casts the rays for the light in packets, which is faster. Of light that grazes an edge, rounding then
            decides otherwise than with 1: the images differ by 0.002 of 255 on average. The depths are the same.
    """
    shape = (camera.height, camera.width)
    rays = camera_rays(camera, pose)
    origins = pose.position[None]
    first = world.cast(origins, rays)
    seen, tint, path, last_origins, directions = trace_to_opaque(world, origins, rays, first)
    pixel_angle = 1.0 / camera.focal
    surface = _surface(world, seen, last_origins, directions, path * pixel_angle)
    light = _compute_irradiance(world, surface, shape, rng, look == 2)
    radiance = _shade(world, surface, light, tint)
    _add_reflections(world, radiance, first, surface, origins, rays, pixel_angle)
    develop = develop or partial(develop_image, rng=rng)
    rgb = develop(radiance.reshape(*shape, 3))
    depth = np.where(np.isfinite(first.distance), first.distance, 0).astype(np.float32).reshape(shape)
    objects = np.where(first.triangle >= 0, world.soup.objects[first.triangle], -1).reshape(shape)
    sensor = simulate_sensor(world, first, path, rays, shape, rng)
    return RawFrame(rgb, depth, sensor, objects.astype(np.int32))


def trace_to_opaque(
    world: World, origins: np.ndarray, rays: np.ndarray, first: Hits
) -> tuple[Hits, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Trace rays through glass and off mirrors to the first opaque surface.

    Returns the hits on opaque surfaces, the tint float32 [N,3], the path length [N] in lengths of the ray's direction
    vector, and the origins and directions [N,3] of the last path segments.
    """
    hits = Hits(first.triangle.copy(), first.distance.copy(), first.bary.copy())
    origins, directions = np.broadcast_to(origins, rays.shape).copy(), rays.copy()
    tint = np.ones(rays.shape, np.float32)
    path = hits.distance.copy()
    active = np.flatnonzero(world.triangle_kind[hits.triangle] != OPAQUE)
    for _ in range(MAX_BOUNCES):
        active = active[hits.triangle[active] >= 0]
        active = active[world.triangle_kind[hits.triangle[active]] != OPAQUE]
        if len(active) == 0:
            break
        triangle, direction = hits.triangle[active], directions[active]
        point = origins[active] + direction * hits.distance[active, None]
        mirrored = (world.triangle_kind[triangle] == MIRROR)[:, None]
        plane = world.plane[triangle]
        direction = np.where(mirrored, direction - 2 * _dot(direction, plane)[:, None] * plane, direction)
        tint[active] *= world.table.colour[world.soup.materials[triangle]]
        origins[active], directions[active] = point + RAY_OFFSET * direction, direction
        new = world.cast(origins[active], direction)
        hits.triangle[active], hits.distance[active], hits.bary[active] = new.triangle, new.distance, new.bary
        path[active] += new.distance + RAY_OFFSET
    return hits, tint, path, origins, directions


def _surface(world: World, hits: Hits, origins: np.ndarray, directions: np.ndarray, footprint: np.ndarray) -> Surface:
    soup = world.soup
    point, normal, uv, width = kernels.surface(
        hits.triangle, hits.distance, hits.bary, origins, directions, footprint, soup.normals, soup.uvs
    )
    material = soup.materials[hits.triangle]
    # the size in metres of a fitted texture, with uv in 0..1, is not known here: assume 1 m
    return Surface(hits.triangle, point, normal, material, world.table.lookup(material, uv, width))


def _compute_irradiance(
    world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator, beams: bool
) -> np.ndarray:
    """Irradiance, float32 [N,3], with soft shadows and one indirect bounce."""
    samples = _sample_lights(world, surface, shape, rng, beams)
    noisy = np.concatenate([samples, _sample_bounce(world, surface, shape, rng, beams)])
    objects = world.soup.objects[surface.triangle]
    filtered = kernels.filter_blocks(noisy, surface.point, surface.normal, objects, *shape)
    return kernels.combine(_unshadowed_irradiance(world, surface), filtered)


def _unshadowed_irradiance(world: World, surface: Surface) -> np.ndarray:
    return kernels.unshadowed(
        surface.point, surface.normal, world.light_centres, world.light_normals, world.light_powers
    )


def _sample_lights(
    world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator, beams: bool
) -> np.ndarray:
    """Irradiance of each pixel from its light samples, without and with shadows: float32 [2,N]."""
    brightness = np.array([light.power.sum() for light in world.lights])
    count = BLOCK * BLOCK * LIGHT_SAMPLES
    choice = np.searchsorted(np.cumsum(brightness) / brightness.sum(), (np.arange(count) + 0.5) / count)
    choice = choice[rng.permutation(count)]
    offsets = (np.stack([rng.permutation(count), rng.permutation(count)], 1) + 0.5) / count * 2 - 1
    lights = [world.lights[index] for index in choice]
    points = [light.centre + u * light.half_u + v * light.half_v for light, (u, v) in zip(lights, offsets, strict=True)]
    per_pixel = (BLOCK * BLOCK, LIGHT_SAMPLES, 3)
    positions, normals = _f32(points).reshape(per_pixel), world.light_normals[choice].reshape(per_pixel)
    return kernels.sample_lights(
        world.occluders.handle, surface.point, surface.normal, positions, normals, *shape, beams
    )


def _sample_bounce(
    world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator, beams: bool
) -> np.ndarray:
    """Indirect irradiance, float32 [3,N], from one cosine-distributed ray per pixel."""
    count = BLOCK * BLOCK
    grid = (np.stack(np.divmod(np.arange(count), BLOCK), 1) + rng.random((count, 2))) / BLOCK
    grid = grid[rng.permutation(count)].astype(np.float32)
    ring = np.sqrt(grid[:, :1]) * 0.98
    hemisphere = np.concatenate([ring * np.cos(2 * np.pi * grid[:, 1:]), ring * np.sin(2 * np.pi * grid[:, 1:]),
                           np.sqrt(1 - ring**2)], 1)
    return kernels.sample_bounce(
        world.occluders.handle, surface.point, surface.normal, hemisphere, world.occluder_colour, SKY, world.ambient,
        *shape, beams,
    )  # fmt: skip


def _shade(world: World, surface: Surface, irradiance: np.ndarray, tint: np.ndarray) -> np.ndarray:
    return kernels.shade(surface.triangle, surface.albedo, world.triangle_emission, irradiance, tint, SKY)


def _add_reflections(
    world: World, radiance: np.ndarray, first: Hits, surface: Surface,
    origin: np.ndarray, rays: np.ndarray, pixel_angle: float,
) -> None:  # fmt: skip
    """Add the reflections of glass and glossy surfaces to `radiance`, in place, with Schlick's Fresnel term."""
    gloss, kind = world.triangle_gloss, world.triangle_kind
    rows, slant = kernels.grazing(first.triangle, gloss, kind, rays, surface.normal, world.plane, LEAST_REFLECTION)
    share = gloss[first.triangle[rows]] ** 2 * (0.04 + 0.96 * slant**5)
    rows, share = rows[share > LEAST_REFLECTION], share[share > LEAST_REFLECTION, None]
    if len(rows) == 0:
        return
    start, direction = kernels.reflect(
        rows, first.triangle, first.distance, kind, origin, rays, surface.normal, world.plane
    )
    hits = world.cast(start, direction)
    seen, tint, path, last_origins, directions = trace_to_opaque(world, start, direction, hits)
    other = _surface(world, seen, last_origins, directions, path * pixel_angle)
    light = _unshadowed_irradiance(world, other) * 0.8 + world.ambient * 0.45
    radiance[rows] = radiance[rows] * (1 - share) + _shade(world, other, light, tint) * share


def develop_image(radiance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply exposure, white balance, lens blur, vignetting, noise and gamma: linear [H,W,3] -> uint8 [H,W,3]."""
    height, width = radiance.shape[:2]
    luminance = (radiance[..., 0] + radiance[..., 1] + radiance[..., 2]) / 3
    key = np.exp(np.log(np.maximum(luminance, 1e-4)).mean())
    exposed: np.ndarray = radiance * np.float32(rng.uniform(0.17, 0.32) / key)
    exposed *= _f32(1 + rng.uniform(-0.05, 0.05, 3))
    exposed = cv2.GaussianBlur(np.minimum(exposed, 6.0, out=exposed), (0, 0), rng.uniform(0.5, 0.7))
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    exposed *= _f32(1 - rng.uniform(0.03, 0.12) * (x**2 + y**2))[..., None]
    exposed *= -1.25
    film = 1 - np.exp(exposed)
    grain = rng.standard_normal(film.shape, np.float32)
    grain *= np.float32(rng.uniform(0.004, 0.012))
    grain *= np.sqrt(film + 0.02)
    film += grain
    np.clip(film, 0, 1, out=film)
    np.power(film, np.float32(1 / 2.2), out=film)
    film *= 255
    film += 0.5
    return film.astype(np.uint8)


def simulate_sensor(
    world: World,
    first: Hits,
    path: np.ndarray,
    rays: np.ndarray,
    shape: tuple[int, int],
    rng: np.random.Generator,
    weakness: float = 1.0,
) -> np.ndarray:
    """Simulate the depth of a time-of-flight sensor, float32 [H,W] metres, 0 = hole.

    The signal is infrared albedo * cos(incidence) / distance^2. Below a threshold there is no reading; a weaker signal
    has more noise. Glass and mirrors give the depth behind them, or none. Readings at edges are lost or mix two depths.
    weakness: factor on that threshold.
    """
    coarse = _smooth_noise(shape, 12, rng).ravel()
    threshold = weakness * 0.0035 * np.exp(0.35 * coarse + 0.25 * rng.standard_normal(coarse.shape))
    fine = _smooth_noise(shape, 5, rng).ravel()
    noise = rng.standard_normal(coarse.shape)
    reading = kernels.sense(
        first.triangle, first.distance, path, rays, world.plane, world.triangle_kind, world.triangle_infrared,
        threshold, coarse, fine, noise, SENSOR_RANGE,
    )  # fmt: skip
    return _drop_edges(reading.reshape(shape), rng)


def _drop_edges(reading: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kernel = np.ones((3, 3), np.uint8)
    far, near = cv2.dilate(reading, kernel), cv2.erode(reading, kernel)
    jump = (far - near > 0.04 * np.maximum(reading, 0.5)) & (near > 0)
    lost = jump & (rng.random(reading.shape) < 0.65)
    flying = jump & ~lost & (rng.random(reading.shape) < 0.3)
    mixed = near + (far - near) * rng.random(reading.shape, np.float32)
    return np.where(lost, 0, np.where(flying, mixed, reading)).astype(np.float32)


def _smooth_noise(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.standard_normal((max(2, int(shape[0] / cell)), max(2, int(shape[1] / cell))), np.float32)
    noise = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return noise / noise.std()


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)  # faster than (first * second).sum(1)


def _f32(values: ArrayLike) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
