"""Ray caster for furnished rooms: colour, exact depth, object ids and a time-of-flight sensor's depth.

Rays run through Embree; colours are shaded in numpy. Light comes from lamps and windows with soft shadows, and
from one gathered bounce, both by interleaved sampling: the 16 pixels of a 4x4 block share one set of samples,
and a filter over 4x4 pixels of the same surface joins them again (Keller and Heidrich, Interleaved Sampling, 2001).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from config import Intrinsics
from rooms.geometry import Soup
from rooms.textures import GLASS, MIRROR, OPAQUE, MaterialTable, Palette

NEAR = 1e-3  # metres that a secondary ray starts off its surface
BLOCK = 4
DRAWS = 2  # light samples a pixel; 16 * DRAWS a block
MAX_BOUNCES = 4
SENSOR_RANGE = 8.0
SKY = np.array([0.8, 0.9, 1.0], np.float32)


@dataclass
class Light:
    """Rectangular lamp or window: centre, half edges u and v [3], unit normal it shines along, linear RGB power."""

    centre: np.ndarray
    half_u: np.ndarray
    half_v: np.ndarray
    normal: np.ndarray
    power: np.ndarray


@dataclass
class Pose:
    """Camera position [3] in metres; yaw from +x, pitch (positive looks up), roll, all in radians."""

    position: np.ndarray
    yaw: float
    pitch: float
    roll: float

    def rotation(self) -> np.ndarray:
        """float64 [3,3] whose columns are the camera's right, down and forward axes in the world."""
        cos, sin = np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([cos * np.cos(self.yaw), cos * np.sin(self.yaw), sin])
        right = np.array([np.sin(self.yaw), -np.cos(self.yaw), 0.0])
        down = np.cross(forward, right)
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.stack([c * right + s * down, c * down - s * right, forward], 1)


@dataclass
class Hits:
    """What N rays hit: triangle int [N] (-1 none), distance along the ray's direction vector [N], barycentrics."""

    triangle: np.ndarray
    distance: np.ndarray
    bary: np.ndarray


class World:
    """A scene ready for rays."""

    def __init__(self, soup: Soup, palette: Palette, lights: list[Light], area: float):
        self.soup = soup
        self.table = MaterialTable(palette)
        self.lights = lights
        self.triangle_kind = self.table.kind[soup.materials]
        first, second, third = (soup.vertices[:, i] for i in range(3))
        self.plane = np.cross(second - first, third - first)
        self.plane /= np.linalg.norm(self.plane, axis=1, keepdims=True)
        self.offset = (self.plane * first).sum(1)
        self._scene = embree(soup.vertices)
        # Lamps shine through their own shades, daylight through panes: neither may cast shadows.
        blocks = (self.triangle_kind != GLASS) & (self.table.emission[soup.materials] == 0)
        self._blocker_ids = np.flatnonzero(blocks)
        self._blockers = embree(soup.vertices[blocks])
        # Irradiance of the bounced light: the lamps' power spread over `area` m^2 of walls, floor and ceiling.
        self.ambient = np.float32(4.0 * sum(light.power.mean() for light in lights) / area)

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Nearest hits of rays float [N,3]; distances are exact intersections with the hit triangles' planes."""
        found = self._scene.run(_f32(origins), _f32(directions), query="INTERSECT", output=1)
        triangle = np.where(found["geomID"] >= 0, found["primID"], -1)
        return Hits(triangle, self._exact(triangle, origins, directions, found["tfar"]),
                    np.stack([found["u"], found["v"]], 1))

    def _exact(
        self, triangle: np.ndarray, origins: np.ndarray, directions: np.ndarray, approximate: np.ndarray
    ) -> np.ndarray:
        # Embree works in float32. Far off a silhouette's edge-on triangle the plane means nothing: keep Embree's.
        plane = self.plane.take(triangle, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (self.offset[triangle] - _dot(plane, origins)) / _dot(plane, directions)
        good = np.abs(distance - approximate) < 1e-3 * np.maximum(approximate, 1.0)
        return np.where(triangle < 0, np.inf, np.where(good, distance, approximate))

    def visible(self, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Bool [N]: nothing opaque within `reach` (in lengths of the direction vector)."""
        return self._blockers.run(_f32(origins), _f32(directions), dists=_f32(reach), query="OCCLUDED") == -1

    def gather(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Triangles (-1 none) and distances of the nearest opaque, unlit surfaces along rays [N,3]."""
        found = self._blockers.run(_f32(origins), _f32(directions), query="INTERSECT", output=1)
        hit = found["geomID"] >= 0
        return np.where(hit, self._blocker_ids[np.where(hit, found["primID"], 0)], -1), found["tfar"]


@dataclass
class Surface:
    """Shading inputs of N points: position, unit shading normal that faces the ray, unit direction, material."""

    triangle: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    view: np.ndarray
    material: np.ndarray
    albedo: np.ndarray


@dataclass
class RawFrame:
    """rgb uint8 [H,W,3]; depth, sensor_depth float32 [H,W] metres (sensor 0 = hole); object int32 [H,W]."""

    rgb: np.ndarray
    depth: np.ndarray
    sensor_depth: np.ndarray
    object: np.ndarray


def camera_rays(camera: Intrinsics, pose: Pose) -> np.ndarray:
    """float64 [H*W,3] ray directions with a camera z of 1, so that a hit's distance is its depth."""
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    return np.einsum("ij,kj->ik", rays.reshape(-1, 3), pose.rotation())  # unlike BLAS, the same bits everywhere


def render(
    world: World,
    camera: Intrinsics,
    pose: Pose,
    rng: np.random.Generator,
    developed: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
) -> RawFrame:
    """One frame; all randomness (noise, exposure, sampling patterns) comes from `rng`.

    developed: makes the picture of linear radiance [H,W,3], as develop() does.
    """
    shape = (camera.height, camera.width)
    rays = camera_rays(camera, pose)
    origins = np.broadcast_to(pose.position, rays.shape)
    first = world.cast(origins, rays)
    seen, tint, path, ends, directions = follow(world, origins, rays, first)
    pixel_angle = 1.0 / camera.focal
    surface = _surface(world, seen, ends, directions, path * pixel_angle)
    light = _gathered_light(world, surface, shape, rng)
    radiance = _emitted_or_lit(world, surface, light) * tint
    _add_reflections(world, radiance, first, surface, origins, rays, pixel_angle)
    rgb = (developed or develop)(radiance.reshape(*shape, 3), rng)
    depth = np.where(np.isfinite(first.distance), first.distance, 0).astype(np.float32).reshape(shape)
    objects = np.where(first.triangle >= 0, world.soup.objects[first.triangle], -1).reshape(shape)
    sensor = sense(world, first, path, rays, shape, rng)
    return RawFrame(rgb, depth, sensor, objects.astype(np.int32))


def follow(
    world: World, origins: np.ndarray, rays: np.ndarray, first: Hits
) -> tuple[Hits, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Carry rays on through panes and off mirrors to the first opaque surface.

    Returns hits on opaque surfaces, tint float32 [N,3], length of the path in units of the ray's length [N], and
    origins and directions of the last legs [N,3].
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
        triangle, way = hits.triangle[active], directions[active]
        point = origins[active] + way * hits.distance[active, None]
        mirrored = (kind[active] == MIRROR)[:, None]
        plane = world.plane[triangle]
        way = np.where(mirrored, way - 2 * _dot(way, plane)[:, None] * plane, way)
        tint[active] *= world.table.colour[world.soup.materials[triangle]]
        origins[active], directions[active] = point + NEAR * way, way
        onward = world.cast(origins[active], way)
        hits.triangle[active], hits.distance[active], hits.bary[active] = onward.triangle, onward.distance, onward.bary
        path[active] += onward.distance + NEAR
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
    # Fitted textures have uv in 0..1 over metres unknown here: their tile counts as 1 m.
    albedo = world.table.lookup(material, uv.astype(np.float32), width.astype(np.float32))
    return Surface(triangle, point, normal, view, material, albedo)


def _gathered_light(world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Irradiance float32 [N,3] with soft shadows and one bounce."""
    direct = _unshadowed(world, surface)
    arriving, blocked = _light_samples(world, surface, shape, rng)
    bounce = _bounce_samples(world, surface, shape, rng)
    summed = _join_blocks(np.concatenate([arriving, blocked, bounce], 1), surface, shape, world)
    shadow = summed[:, 1:2] / np.maximum(summed[:, :1], 1e-6)
    return direct * np.minimum(shadow, 1.0) + summed[:, 2:]


def _irradiance(
    light: Light, place: np.ndarray, surface: Surface, rows: slice | np.ndarray = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Irradiance before colour, float32 [N], of a point `place` ([3] or [N,3]) of a lamp, and the vectors to it."""
    toward = _f32(place) - surface.point[rows]
    squared = np.maximum(_dot(toward, toward), 0.04)
    cos_surface = np.maximum(_dot(toward, surface.normal[rows]), 0)
    cos_light = np.maximum(-np.einsum("ij,j->i", toward, _f32(light.normal)), 0)
    return cos_surface * (0.8 * cos_light + 0.2 * np.sqrt(squared)) / squared**2, toward


def _unshadowed(world: World, surface: Surface) -> np.ndarray:
    total = np.zeros(surface.point.shape, np.float32)
    for light in world.lights:
        total += _irradiance(light, light.centre, surface)[0][:, None] * _f32(light.power)
    return total


def _light_samples(
    world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Light reaching each pixel from its DRAWS samples without and with shadows: two float32 [N,1]."""
    brightness = np.array([light.power.sum() for light in world.lights])
    count = BLOCK * BLOCK * DRAWS
    choice = np.searchsorted(np.cumsum(brightness) / brightness.sum(), (np.arange(count) + 0.5) / count)
    choice = choice[rng.permutation(count)]
    offsets = (np.stack([rng.permutation(count), rng.permutation(count)], 1) + 0.5) / count * 2 - 1
    block = _block_index(shape)
    members = [np.flatnonzero(block == index) for index in range(BLOCK * BLOCK)]
    open_light, arriving = (np.zeros((len(block), 1), np.float32) for _ in range(2))
    for sample in range(count):
        rows = members[sample // DRAWS]
        light = world.lights[choice[sample]]
        place = light.centre + offsets[sample, 0] * light.half_u + offsets[sample, 1] * light.half_v
        strength, toward = _irradiance(light, place, surface, rows)
        start = surface.point[rows] + NEAR * 3 * surface.normal[rows]
        clear = world.visible(start, toward, np.full(len(rows), 0.995))
        open_light[rows, 0] += strength
        arriving[rows, 0] += strength * clear
    return open_light, arriving


def _bounce_samples(world: World, surface: Surface, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Light off other surfaces, float32 [N,3], from one cosine-distributed ray a pixel."""
    count = BLOCK * BLOCK
    grid = (np.stack(np.divmod(np.arange(count), BLOCK), 1) + rng.random((count, 2))) / BLOCK
    grid = grid[rng.permutation(count)][_block_index(shape)].astype(np.float32)
    ring = np.sqrt(grid[:, :1]) * 0.98
    ball = np.concatenate([ring * np.cos(2 * np.pi * grid[:, 1:]), ring * np.sin(2 * np.pi * grid[:, 1:]),
                           np.sqrt(1 - ring**2)], 1)
    normal = surface.normal
    # Basis from Duff et al., Building an Orthonormal Basis, Revisited, 2017.
    sign = np.where(normal[:, 2] >= 0, 1, -1).astype(np.float32)
    a = -1 / (sign + normal[:, 2])
    b = normal[:, 0] * normal[:, 1] * a
    tangent = np.stack([1 + sign * normal[:, 0] ** 2 * a, sign * b, -sign * normal[:, 0]], 1)
    bitangent = np.stack([b, sign + normal[:, 1] ** 2 * a, -normal[:, 1]], 1)
    direction = ball[:, :1] * tangent + ball[:, 1:2] * bitangent + ball[:, 2:] * normal
    triangle, distance = world.gather(surface.point + NEAR * 3 * normal, direction)
    near = np.minimum(distance / 1.3, 1.0)[:, None]
    colour = world.table.colour[world.soup.materials[triangle]] * (0.15 + 0.85 * near)
    return world.ambient * np.where((triangle < 0)[:, None], SKY, colour).astype(np.float32)


def _join_blocks(values: np.ndarray, surface: Surface, shape: tuple[int, int], world: World) -> np.ndarray:
    """Mean of `values` [N,C] over the 4x4 pixels around each that lie on the same surface, rows first."""
    height, width = shape
    normal = surface.normal.reshape(height, width, 3)
    point = surface.point.reshape(height, width, 3)
    objects = world.soup.objects[surface.triangle].reshape(shape)
    image = np.concatenate([values, np.ones((len(values), 1), np.float32)], 1).reshape(height, width, -1)
    for down, right in ((0, 1), (1, 0)):
        total = np.zeros_like(image)
        for step in range(-BLOCK // 2, BLOCK // 2):
            dy, dx = down * step, right * step
            here = np.s_[max(0, -dy):height - max(0, dy), max(0, -dx):width - max(0, dx)]
            there = np.s_[max(0, dy):height + min(0, dy), max(0, dx):width + min(0, dx)]
            alike = objects[here] == objects[there]
            alike &= np.einsum("ijk,ijk->ij", normal[here], normal[there]) > 0.9
            alike &= np.abs(np.einsum("ijk,ijk->ij", normal[here], point[here] - point[there])) < 0.03
            total[here] += image[there] * alike[..., None]
        image = total
    return (image[..., :-1] / image[..., -1:]).reshape(values.shape)


def _emitted_or_lit(world: World, surface: Surface, irradiance: np.ndarray) -> np.ndarray:
    emission = world.table.emission[surface.material][:, None]
    radiance = np.where(emission > 0, surface.albedo * emission, surface.albedo * irradiance)
    return np.where((surface.triangle >= 0)[:, None], radiance, SKY)


def _add_reflections(
    world: World, radiance: np.ndarray, first: Hits, surface: Surface,
    origins: np.ndarray, rays: np.ndarray, pixel_angle: float,
) -> None:  # fmt: skip
    """Add what panes and glossy surfaces reflect (Schlick's Fresnel term) to `radiance`, in place."""
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
    way = ray - 2 * _dot(ray, normal)[:, None] * normal
    start = origins[rows] + rays[rows] * first.distance[rows, None] - NEAR * 3 * ray
    hits = world.cast(start, way)
    seen, tint, path, ends, directions = follow(world, start, way, hits)
    other = _surface(world, seen, ends, directions, path * pixel_angle)
    light = _unshadowed(world, other) * 0.8 + world.ambient * 0.45
    mirrored = _emitted_or_lit(world, other, light) * tint
    radiance[rows] = radiance[rows] * (1 - share[rows, None]) + mirrored * share[rows, None]


def develop(radiance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, white balance, vignette, lens blur, shot noise and gamma: linear [H,W,3] -> uint8 [H,W,3]."""
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


def sense(
    world: World,
    first: Hits,
    path: np.ndarray,
    rays: np.ndarray,
    shape: tuple[int, int],
    rng: np.random.Generator,
    weakness: float = 1.0,
) -> np.ndarray:
    """Depth as a time-of-flight sensor reports it: float32 [H,W] metres, 0 = hole.

    The signal falls with infrared albedo * cos(incidence) / distance^2; below a threshold there is no reading, and
    noise grows as it falls. Panes and mirrors return light from behind or nothing; edges mix two depths and drop.
    weakness: factor on that threshold.
    """
    triangle = np.maximum(first.triangle, 0)
    material = world.soup.materials[triangle]
    length = _length(rays)
    cosine = np.abs(_dot(rays, world.plane[triangle])) / length
    depth = np.where(np.isfinite(first.distance), first.distance, 0)
    signal = world.table.infrared[material] * cosine / np.maximum((depth * length) ** 2, 0.1)
    blotch = _smooth_noise(shape, 12, rng).ravel()
    threshold = weakness * 0.0035 * np.exp(0.35 * blotch + 0.25 * rng.standard_normal(depth.shape))
    kind = np.where(first.triangle >= 0, world.triangle_kind[triangle], OPAQUE)
    clear = kind != OPAQUE
    behind = np.where(np.isfinite(path), path, 0)
    speck = _smooth_noise(shape, 5, rng).ravel()
    through = clear & (blotch > np.where(kind == MIRROR, 0.3, 0.9)) & (behind < 5)
    glare = clear & ((cosine > 0.985) & (speck > 0.2) | (speck > 2.2))  # facing panes and smears do answer
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


def embree(vertices: np.ndarray) -> EmbreeScene:
    """Triangles float [F,3,3] ready for rays."""
    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, _f32(vertices))
    return scene


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)  # several times faster than (first * second).sum(1)


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(vectors, vectors))


def _f32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
