"""Ray caster for furnished rooms: colour, exact depth, object ids and simulated time-of-flight depth.

Embree intersects the rays, NumPy computes the shading. Lighting is direct light from lamps and windows with soft
shadows, plus one indirect bounce. Both use interleaved sampling: the 16 pixels of a 4x4 block share one set of samples,
and a 4x4 filter over pixels of the same surface combines them (Keller and Heidrich, Interleaved Sampling, 2001).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from config import Intrinsics
from rooms.geometry import Soup
from rooms.textures import GLASS, MIRROR, OPAQUE, MaterialTable, Palette

RAY_OFFSET = 1e-3  # distance of a secondary ray's origin from its surface
BLOCK = 4
LIGHT_SAMPLES = 2  # per pixel; 16 times as many per block
MAX_BOUNCES = 4
SENSOR_RANGE = 8.0  # metres
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
        first, second, third = (soup.vertices[:, i] for i in range(3))
        self.plane = np.cross(second - first, third - first)
        self.plane /= np.linalg.norm(self.plane, axis=1, keepdims=True)
        self.offset = (self.plane * first).sum(1)
        self._scene = build_embree_scene(soup.vertices)
        # glass and light-emitting surfaces, such as lamp shades, cast no shadow
        casts_shadow = (self.triangle_kind != GLASS) & (self.table.emission[soup.materials] == 0)
        self._occluder_ids = np.flatnonzero(casts_shadow)
        self._occluders = build_embree_scene(soup.vertices[casts_shadow])

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Find the nearest hits of rays, float [N,3]; the distances are exact, from the planes of the hit triangles."""
        result = self._scene.run(_f32(origins), _f32(directions), query="INTERSECT", output=1)
        triangle = np.where(result["geomID"] >= 0, result["primID"], -1)
        return Hits(triangle, self._exact(triangle, origins, directions, result["tfar"]),
                    np.stack([result["u"], result["v"]], 1))

    def _exact(
        self, triangle: np.ndarray, origins: np.ndarray, directions: np.ndarray, approximate: np.ndarray
    ) -> np.ndarray:
        # Embree computes in float32. For triangles seen edge-on, the plane is unreliable: keep Embree's distance.
        plane = self.plane.take(triangle, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (self.offset[triangle] - _dot(plane, origins)) / _dot(plane, directions)
        reliable = np.abs(distance - approximate) < 1e-3 * np.maximum(approximate, 1.0)
        return np.where(triangle < 0, np.inf, np.where(reliable, distance, approximate))

    def visible(self, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Whether no occluder lies within `reach`, in lengths of the direction vector, bool [N]."""
        return self._occluders.run(_f32(origins), _f32(directions), dists=_f32(reach), query="OCCLUDED") == -1

    def gather(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find triangles [N], -1 = none, and distances [N] of the nearest occluders along rays [N,3]."""
        result = self._occluders.run(_f32(origins), _f32(directions), query="INTERSECT", output=1)
        hit = result["geomID"] >= 0
        return np.where(hit, self._occluder_ids[np.where(hit, result["primID"], 0)], -1), result["tfar"]


@dataclass
class Surface:
    """Shading inputs of N points: triangle, position, unit normal towards the ray, unit direction, material, albedo."""

    triangle: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    view: np.ndarray
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
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    return np.einsum("ij,kj->ik", rays.reshape(-1, 3), pose.rotation())  # unlike BLAS, bitwise reproducible


def render(
    world: World,
    camera: Intrinsics,
    pose: Pose,
    rng: np.random.Generator,
    develop: Callable[[np.ndarray], np.ndarray] | None = None,
) -> RawFrame:
    """Render one frame; noise, exposure and sampling patterns are drawn from `rng`.

    develop: converts linear radiance [H,W,3] to the image (default: develop_image with `rng`).
    """
    shape = (camera.height, camera.width)
    rays = camera_rays(camera, pose)
    origins = np.broadcast_to(pose.position, rays.shape)
    first = world.cast(origins, rays)
    seen, tint, path, last_origins, directions = trace_to_opaque(world, origins, rays, first)
    pixel_angle = 1.0 / camera.focal
    surface = _surface(world, seen, last_origins, directions, path * pixel_angle)
    light = _compute_irradiance(world, surface, shape, rng)
    radiance = _shade(world, surface, light) * tint
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
    origins, directions = origins.copy(), rays.copy()
    tint = np.ones(rays.shape, np.float32)
    path = hits.distance.copy()
    for _ in range(MAX_BOUNCES):
        kind = np.where(hits.triangle >= 0, world.triangle_kind[hits.triangle], OPAQUE)
        active = np.flatnonzero(kind != OPAQUE)
        if len(active) == 0:
            break
        triangle, direction = hits.triangle[active], directions[active]
        point = origins[active] + direction * hits.distance[active, None]
        mirrored = (kind[active] == MIRROR)[:, None]
        plane = world.plane[triangle]
        direction = np.where(mirrored, direction - 2 * _dot(direction, plane)[:, None] * plane, direction)
        tint[active] *= world.table.colour[world.soup.materials[triangle]]
        origins[active], directions[active] = point + RAY_OFFSET * direction, direction
        new = world.cast(origins[active], direction)
        hits.triangle[active], hits.distance[active], hits.bary[active] = new.triangle, new.distance, new.bary
        path[active] += new.distance + RAY_OFFSET
    return hits, tint, path, origins, directions


def _surface(world: World, hits: Hits, origins: np.ndarray, directions: np.ndarray, footprint: np.ndarray) -> Surface:
    soup, triangle = world.soup, hits.triangle
    distance = np.where(np.isfinite(hits.distance), hits.distance, 0.0)
    point = (origins + directions * distance[:, None]).astype(np.float32)
    weights = np.stack([1 - hits.bary[:, 0] - hits.bary[:, 1], hits.bary[:, 0], hits.bary[:, 1]], 1)
    normal = np.einsum("ijk,ij->ik", soup.normals.take(triangle, axis=0), weights)
    uv = np.einsum("ijk,ij->ik", soup.uvs.take(triangle, axis=0), weights)
    normal /= np.maximum(_length(normal), 1e-6)[:, None]
    view = _f32(directions / _length(directions)[:, None])
    facing = _dot(normal, view)
    normal = np.where(facing[:, None] > 0, -normal, normal).astype(np.float32)
    material = soup.materials[triangle]
    width = np.where(np.isfinite(footprint), footprint, 1.0) / np.sqrt(np.maximum(np.abs(facing), 0.04))
    # the size in metres of a fitted texture, with uv in 0..1, is not known here: assume 1 m
    albedo = world.table.lookup(material, uv.astype(np.float32), width.astype(np.float32))
    return Surface(triangle, point, normal, view, material, albedo)


def _compute_irradiance(world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Irradiance, float32 [N,3], with soft shadows and one indirect bounce."""
    direct = _unshadowed_irradiance(world, surface)
    arriving, blocked = _sample_lights(world, surface, shape, rng)
    bounce = _sample_bounce(world, surface, shape, rng)
    filtered = _filter_blocks(np.concatenate([arriving, blocked, bounce], 1), surface, shape, world)
    shadow = filtered[:, 1:2] / np.maximum(filtered[:, :1], 1e-6)
    return direct * np.minimum(shadow, 1.0) + filtered[:, 2:]


def _light_irradiance(
    light: Light, position: np.ndarray, surface: Surface, rows: slice | np.ndarray = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Irradiance from a point on a light per unit power, float32 [N], and the vectors to that point, [N,3].

    position: the point, [3] or [N,3]. rows: which points of the surface to use.
    """
    toward = _f32(position) - surface.point[rows]
    squared = np.maximum(_dot(toward, toward), 0.04)
    cos_surface = np.maximum(_dot(toward, surface.normal[rows]), 0)
    cos_light = np.maximum(-np.einsum("ij,j->i", toward, _f32(light.normal)), 0)
    return cos_surface * (0.8 * cos_light + 0.2 * np.sqrt(squared)) / squared**2, toward


def _unshadowed_irradiance(world: World, surface: Surface) -> np.ndarray:
    total = np.zeros(surface.point.shape, np.float32)
    for light in world.lights:
        total += _light_irradiance(light, light.centre, surface)[0][:, None] * _f32(light.power)
    return total


def _sample_lights(
    world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Irradiance of each pixel from its light samples, without and with shadows: two float32 [N,1]."""
    brightness = np.array([light.power.sum() for light in world.lights])
    count = BLOCK * BLOCK * LIGHT_SAMPLES
    choice = np.searchsorted(np.cumsum(brightness) / brightness.sum(), (np.arange(count) + 0.5) / count)
    choice = choice[rng.permutation(count)]
    offsets = (np.stack([rng.permutation(count), rng.permutation(count)], 1) + 0.5) / count * 2 - 1
    block = _block_index(shape)
    members = [np.flatnonzero(block == index) for index in range(BLOCK * BLOCK)]
    unshadowed, arriving = (np.zeros((len(block), 1), np.float32) for _ in range(2))
    for sample in range(count):
        rows = members[sample // LIGHT_SAMPLES]
        light = world.lights[choice[sample]]
        position = light.centre + offsets[sample, 0] * light.half_u + offsets[sample, 1] * light.half_v
        strength, toward = _light_irradiance(light, position, surface, rows)
        start = surface.point[rows] + RAY_OFFSET * 3 * surface.normal[rows]
        clear = world.visible(start, toward, np.full(len(rows), 0.995))
        unshadowed[rows, 0] += strength
        arriving[rows, 0] += strength * clear
    return unshadowed, arriving


def _sample_bounce(world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Indirect irradiance, float32 [N,3], from one cosine-distributed ray per pixel."""
    count = BLOCK * BLOCK
    grid = (np.stack(np.divmod(np.arange(count), BLOCK), 1) + rng.random((count, 2))) / BLOCK
    grid = grid[rng.permutation(count)][_block_index(shape)].astype(np.float32)
    ring = np.sqrt(grid[:, :1]) * 0.98
    hemisphere = np.concatenate([ring * np.cos(2 * np.pi * grid[:, 1:]), ring * np.sin(2 * np.pi * grid[:, 1:]),
                           np.sqrt(1 - ring**2)], 1)
    normal = surface.normal
    # orthonormal basis from Duff et al., Building an Orthonormal Basis, Revisited, 2017
    sign = np.where(normal[:, 2] >= 0, 1, -1).astype(np.float32)
    a = -1 / (sign + normal[:, 2])
    b = normal[:, 0] * normal[:, 1] * a
    tangent = np.stack([1 + sign * normal[:, 0] ** 2 * a, sign * b, -sign * normal[:, 0]], 1)
    bitangent = np.stack([b, sign + normal[:, 1] ** 2 * a, -normal[:, 1]], 1)
    direction = hemisphere[:, :1] * tangent + hemisphere[:, 1:2] * bitangent + hemisphere[:, 2:] * normal
    triangle, distance = world.gather(surface.point + RAY_OFFSET * 3 * normal, direction)
    near = np.minimum(distance / 1.3, 1.0)[:, None]
    colour = world.table.colour[world.soup.materials[triangle]] * (0.15 + 0.85 * near)
    return world.ambient * np.where((triangle < 0)[:, None], SKY, colour).astype(np.float32)


def _filter_blocks(values: np.ndarray, surface: Surface, shape: tuple[int, int], world: World) -> np.ndarray:
    """Average `values` [N,C] over the pixels of the same surface in a 4x4 window, in two separable passes."""
    height, width = shape
    normal = surface.normal.reshape(height, width, 3)
    point = surface.point.reshape(height, width, 3)
    objects = world.soup.objects[surface.triangle].reshape(shape)
    image = np.concatenate([values, np.ones((len(values), 1), np.float32)], 1).reshape(height, width, -1)
    for down, right in ((0, 1), (1, 0)):
        total = np.zeros_like(image)
        for step in range(-BLOCK // 2, BLOCK // 2):
            dy, dx = down * step, right * step
            target = np.s_[max(0, -dy):height - max(0, dy), max(0, -dx):width - max(0, dx)]
            source = np.s_[max(0, dy):height + min(0, dy), max(0, dx):width + min(0, dx)]
            same_surface = objects[target] == objects[source]
            same_surface &= np.einsum("ijk,ijk->ij", normal[target], normal[source]) > 0.9
            same_surface &= np.abs(np.einsum("ijk,ijk->ij", normal[target], point[target] - point[source])) < 0.03
            total[target] += image[source] * same_surface[..., None]
        image = total
    return (image[..., :-1] / image[..., -1:]).reshape(values.shape)


def _shade(world: World, surface: Surface, irradiance: np.ndarray) -> np.ndarray:
    emission = world.table.emission[surface.material][:, None]
    radiance = np.where(emission > 0, surface.albedo * emission, surface.albedo * irradiance)
    return np.where((surface.triangle >= 0)[:, None], radiance, SKY)


def _add_reflections(
    world: World, radiance: np.ndarray, first: Hits, surface: Surface,
    origins: np.ndarray, rays: np.ndarray, pixel_angle: float,
) -> None:  # fmt: skip
    """Add the reflections of glass and glossy surfaces to `radiance`, in place, with Schlick's Fresnel term."""
    gloss = np.where(first.triangle >= 0, world.table.gloss[world.soup.materials[first.triangle]], 0)
    kind = np.where(first.triangle >= 0, world.triangle_kind[first.triangle], MIRROR)
    length = _length(rays)
    plane = world.plane[first.triangle]
    smooth = (kind == OPAQUE)[:, None]
    normal = np.where(smooth, surface.normal, plane)
    cosine = np.abs(_dot(rays, normal)) / length
    share = np.where(kind == MIRROR, 0, gloss**2 * (0.04 + 0.96 * (1 - cosine) ** 5))
    rows = np.flatnonzero(share > 0.015)
    if len(rows) == 0:
        return
    normal, ray = normal[rows], rays[rows] / length[rows, None]
    direction = ray - 2 * _dot(ray, normal)[:, None] * normal
    start = origins[rows] + rays[rows] * first.distance[rows, None] - RAY_OFFSET * 3 * ray
    hits = world.cast(start, direction)
    seen, tint, path, last_origins, directions = trace_to_opaque(world, start, direction, hits)
    other = _surface(world, seen, last_origins, directions, path * pixel_angle)
    light = _unshadowed_irradiance(world, other) * 0.8 + world.ambient * 0.45
    mirrored = _shade(world, other, light) * tint
    radiance[rows] = radiance[rows] * (1 - share[rows, None]) + mirrored * share[rows, None]


def develop_image(radiance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply exposure, white balance, lens blur, vignetting, noise and gamma: linear [H,W,3] -> uint8 [H,W,3]."""
    height, width = radiance.shape[:2]
    luminance = radiance.mean(2)
    key = np.exp(np.log(np.maximum(luminance, 1e-4)).mean())
    exposed = radiance * np.float32(rng.uniform(0.17, 0.32) / key) * _f32(1 + rng.uniform(-0.05, 0.05, 3))
    exposed = cv2.GaussianBlur(np.minimum(exposed, 6.0), (0, 0), rng.uniform(0.5, 0.7))
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    exposed *= _f32(1 - rng.uniform(0.03, 0.12) * (x**2 + y**2))[..., None]
    film = 1 - np.exp(-exposed * 1.25)
    grain = rng.standard_normal(film.shape, np.float32)
    film += grain * np.float32(rng.uniform(0.004, 0.012)) * np.sqrt(film + 0.02)
    return (np.clip(film, 0, 1) ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8)


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
    triangle = np.maximum(first.triangle, 0)
    material = world.soup.materials[triangle]
    length = _length(rays)
    cosine = np.abs(_dot(rays, world.plane[triangle])) / length
    depth = np.where(np.isfinite(first.distance), first.distance, 0)
    signal = world.table.infrared[material] * cosine / np.maximum((depth * length) ** 2, 0.1)
    coarse_noise = _smooth_noise(shape, 12, rng).ravel()
    threshold = weakness * 0.0035 * np.exp(0.35 * coarse_noise + 0.25 * rng.standard_normal(depth.shape))
    kind = np.where(first.triangle >= 0, world.triangle_kind[triangle], OPAQUE)
    clear = kind != OPAQUE
    behind = np.where(np.isfinite(path), path, 0)
    fine_noise = _smooth_noise(shape, 5, rng).ravel()
    through = clear & (coarse_noise > np.where(kind == MIRROR, 0.3, 0.9)) & (behind < 5)
    glare = clear & ((cosine > 0.985) & (fine_noise > 0.2) | (fine_noise > 2.2))  # frontal or smeared glass
    reading = np.where(through, behind, depth)
    reading = np.where(clear & ~through & ~glare, 0, reading)
    reading = np.where(~clear & (signal < threshold), 0, reading)
    reading[(reading > SENSOR_RANGE) | (depth == 0)] = 0
    noise = 0.0015 + 0.0006 * reading**2 * np.clip(0.02 / np.maximum(signal, 1e-4), 0.3, 3)
    reading = np.where(reading > 0, reading + noise * rng.standard_normal(depth.shape), 0)
    return _drop_edges(np.maximum(reading, 0).astype(np.float32).reshape(shape), rng)


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


def _block_index(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape)
    return (y % BLOCK * BLOCK + x % BLOCK).ravel()


def build_embree_scene(vertices: np.ndarray) -> EmbreeScene:
    """Build an Embree scene of triangles, float [F,3,3]."""
    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, _f32(vertices))
    return scene


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)  # faster than (first * second).sum(1)


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(vectors, vectors))


def _f32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
