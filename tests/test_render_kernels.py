"""The renderer's compiled kernels give the bytes of plain NumPy versions, which say what they compute."""

import cv2
import embreex.rtcore_scene
import numpy as np
import pytest
from embreex.mesh_construction import TriangleMesh

from config import NYU_INTRINSICS
from rooms import kernels
from rooms.embree import EmbreeScene
from rooms.geometry import cross
from rooms.kernels import BLOCK, RAY_OFFSET
from rooms.layout import build_room
from rooms.render import Pose, camera_rays, render
from rooms.textures import GLASS, MIRROR, OPAQUE, MaterialTable, Palette

HEIGHT, WIDTH = 30, 41
COUNT = HEIGHT * WIDTH
SKY = np.array([0.8, 0.9, 1.0], np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)


def length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(dot(vectors, vectors))


def unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, 3))
    return vectors / length(vectors)[:, None]


def bumpy_floor(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points and normals, float32 [COUNT,3], and object ids, int32 [COUNT], of an image of patches of surfaces."""
    y, x = np.indices((HEIGHT, WIDTH))
    steps = 0.05 * (x // 7 + y // 9)
    points = np.stack([0.01 * x, 0.01 * y, steps + 0.002 * rng.random(steps.shape)], -1).reshape(-1, 3)
    normals = np.array([0, 0, 1]) + 0.4 * rng.standard_normal((COUNT, 3)) * (rng.random((COUNT, 1)) < 0.3)
    normals /= length(normals)[:, None]
    return points.astype(np.float32), normals.astype(np.float32), (x // 11 + 3 * (y // 8)).ravel().astype(np.int32)


@pytest.fixture
def clutter(rng) -> np.ndarray:
    """Random triangles above a floor, float32 [F,3,3]."""
    triangles = rng.uniform((-1, -1, 0.3), (1, 1, 2), (300, 1, 3)) + rng.normal(0, 0.12, (300, 3, 3))
    floor = [[[-9, -9, 0], [9, -9, 0], [9, 9, 0]], [[-9, -9, 0], [9, 9, 0], [-9, 9, 0]]]
    return np.concatenate([triangles, floor]).astype(np.float32)


def reference_scene(triangles: np.ndarray) -> embreex.rtcore_scene.EmbreeScene:
    """The same triangles in a scene of embreex, which casts ray by ray."""
    scene = embreex.rtcore_scene.EmbreeScene(robust=True)
    TriangleMesh(scene, triangles)
    return scene


def test_camera_rays():
    camera, pose = NYU_INTRINSICS.resized(WIDTH, HEIGHT), Pose(np.zeros(3), 0.7, -0.2, 0.05)
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1)
    expected = np.einsum("ij,kj->ik", rays.reshape(-1, 3), pose.rotation())
    assert np.array_equal(camera_rays(camera, pose), expected)


@pytest.mark.parametrize("origins", [1, COUNT])
def test_cast(rng, clutter, origins):
    starts = rng.uniform(-0.2, 0.2, (origins, 3)) + [0, 0, 2.5]
    directions = unit_vectors(rng, COUNT) - [0, 0, 1]
    plane = cross(clutter[:, 1] - clutter[:, 0], clutter[:, 2] - clutter[:, 0]).astype(np.float64)
    plane /= length(plane)[:, None]
    offset = (plane * clutter[:, 0]).sum(1)
    every = np.ascontiguousarray(np.broadcast_to(starts, directions.shape), np.float32)
    hits = reference_scene(clutter).run(every, directions.astype(np.float32), query="INTERSECT", output=1)
    hit = hits["geomID"] >= 0
    triangle = np.where(hit, hits["primID"], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        along = dot(plane[triangle], directions)
        distance = (offset[triangle] - dot(plane[triangle], np.broadcast_to(starts, directions.shape))) / along
    reliable = np.abs(distance - hits["tfar"]) < 1e-3 * np.maximum(hits["tfar"], 1.0)
    expected = np.where(hit, np.where(reliable, distance, hits["tfar"]), np.inf)
    scene = EmbreeScene(clutter)
    found = kernels.cast(scene.handle, plane, offset, starts, directions)
    assert 0.3 < hit.mean() < 1 and np.array_equal(found[0], triangle) and np.array_equal(found[1], expected)
    assert np.array_equal(found[2][hit], np.stack([hits["u"], hits["v"]], 1)[hit])


def test_surface(rng):
    triangle = rng.integers(-1, 50, COUNT).astype(np.int32)
    distance = np.where(triangle < 0, np.inf, rng.uniform(0.5, 5, COUNT))
    bary = (0.5 * rng.random((COUNT, 2))).astype(np.float32)
    origins, directions = rng.standard_normal((COUNT, 3)), rng.standard_normal((COUNT, 3))
    normals = unit_vectors(rng, 150).reshape(50, 3, 3).astype(np.float32)
    uvs, footprint = rng.random((50, 3, 2), np.float32), distance / 500
    weights = np.stack([1 - bary[:, 0] - bary[:, 1], bary[:, 0], bary[:, 1]], 1)
    normal = np.einsum("ijk,ij->ik", normals[triangle], weights)
    normal /= np.maximum(length(normal), 1e-6)[:, None]
    facing = dot(normal, (directions / length(directions)[:, None]).astype(np.float32))
    slant = np.sqrt(np.maximum(np.abs(facing), 0.04))
    expected = (
        (origins + directions * np.where(np.isfinite(distance), distance, 0)[:, None]).astype(np.float32),
        np.where(facing[:, None] > 0, -normal, normal),
        np.einsum("ijk,ij->ik", uvs[triangle], weights),
        (np.where(np.isfinite(footprint), footprint, 1.0) / slant).astype(np.float32),
    )
    found = kernels.surface(triangle, distance, bary, origins, directions, footprint, normals, uvs)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_look_up(rng):
    palette = Palette(rng)
    for size in (2, 64, 256):
        palette.image(rng.random((size, size, 3)), (1.3, 0.7))
    palette.cloth((0.2, 0.5, 0.7))
    table = MaterialTable(palette)
    material = rng.integers(0, 4, COUNT).astype(np.int32)
    uv = rng.uniform(-3, 3, (COUNT, 2)).astype(np.float32)
    footprint = np.exp(rng.uniform(-9, 3, COUNT)).astype(np.float32)
    texture, extent = table._texture[material], table._extent[material]
    blur = np.log2(np.maximum(footprint / extent.min(1) * table._sizes[texture], 1.0))
    level = np.minimum((blur + 0.5).astype(np.int64), table._levels[texture] - 1)
    start, side = table._starts[texture, level], table._sizes[texture] >> level
    place = uv / extent * side[:, None] - np.float32(0.5)
    corner = np.floor(place)
    fx, fy = np.hsplit((place - corner).astype(np.float32), 2)
    x, y = corner.astype(np.int64).T
    texel = [table._texels[start + (y + dy) % side * side + (x + dx) % side] for dy in (0, 1) for dx in (0, 1)]
    bottom, top = texel[0] * (1 - fx) + texel[1] * fx, texel[2] * (1 - fx) + texel[3] * fx
    expected = (bottom * (1 - fy) + top * fy) * table._tint[material]
    assert np.array_equal(table.lookup(material, uv, footprint), expected) and len(np.unique(level)) > 4


def irradiance(toward: np.ndarray, normals: np.ndarray, light_normal: np.ndarray) -> np.ndarray:
    """Irradiance per unit power, float32 [N], from points on lights at `toward`, float32 [N,3]."""
    squared = np.maximum(dot(toward, toward), 0.04)
    cos_surface = np.maximum(dot(toward, normals), 0)
    cos_light = np.maximum(-np.einsum("ij,j->i", toward, light_normal), 0)
    return cos_surface * (0.8 * cos_light + 0.2 * np.sqrt(squared)) / squared**2


def test_unshadowed(rng):
    points, normals, _ = bumpy_floor(rng)
    centres, light_normals, powers = (rng.standard_normal((4, 3)).astype(np.float32) for _ in range(3))
    expected = np.zeros((COUNT, 3), np.float32)
    for centre, light_normal, power in zip(centres, light_normals, powers, strict=True):
        expected += irradiance(centre - points, normals, light_normal)[:, None] * power
    assert np.array_equal(kernels.unshadowed(points, normals, centres, light_normals, powers), expected)


def member_of_block() -> np.ndarray:
    y, x = np.indices((HEIGHT, WIDTH))
    return (y % BLOCK * BLOCK + x % BLOCK).ravel()


@pytest.mark.parametrize("beams", [False, True])
def test_sample_lights(rng, clutter, beams):
    points, normals, _ = bumpy_floor(rng)
    positions = rng.uniform((-1, -1, 1), (1, 1, 3), (16, 2, 3)).astype(np.float32)
    light_normals = unit_vectors(rng, 32).reshape(16, 2, 3).astype(np.float32)
    reference, member = reference_scene(clutter), member_of_block()
    expected = np.zeros((2, COUNT), np.float32)
    for index in range(16):
        rows = np.flatnonzero(member == index)
        for position, light_normal in zip(positions[index], light_normals[index], strict=True):
            toward = position - points[rows]
            strength = irradiance(toward, normals[rows], light_normal)
            start, reach = points[rows] + RAY_OFFSET * 3 * normals[rows], np.full(len(rows), 0.995, np.float32)
            clear = reference.run(start, toward, dists=reach, query="OCCLUDED") == -1
            expected[0, rows] += strength
            expected[1, rows] += strength * clear
    scene = EmbreeScene(clutter)
    found = kernels.sample_lights(scene.handle, points, normals, positions, light_normals, HEIGHT, WIDTH, beams)
    assert np.array_equal(found, expected) and 0.1 < (expected[1] == expected[0]).mean() < 0.9


@pytest.mark.parametrize("beams", [False, True])
def test_sample_bounce(rng, clutter, beams):
    points, normals, _ = bumpy_floor(rng)
    normals[:40, 2] *= -1
    hemisphere = unit_vectors(rng, 16).astype(np.float32)
    hemisphere[:, 2] = np.abs(hemisphere[:, 2])
    colours, ambient = rng.random((len(clutter), 3), np.float32), np.float32(0.7)
    sign = np.where(normals[:, 2] >= 0, 1, -1).astype(np.float32)
    a = -1 / (sign + normals[:, 2])
    b = normals[:, 0] * normals[:, 1] * a
    tangent = np.stack([1 + sign * normals[:, 0] ** 2 * a, sign * b, -sign * normals[:, 0]], 1)
    bitangent = np.stack([b, sign + normals[:, 1] ** 2 * a, -normals[:, 1]], 1)
    across, along, up = np.hsplit(hemisphere[member_of_block()], 3)
    direction = across * tangent + along * bitangent + up * normals
    start = points + RAY_OFFSET * 3 * normals
    hits = reference_scene(clutter).run(start, direction, query="INTERSECT", output=1)
    hit = (hits["geomID"] >= 0)[:, None]
    near = np.minimum(hits["tfar"] / 1.3, 1.0)[:, None]
    expected = (ambient * np.where(hit, colours[hits["primID"]] * (0.15 + 0.85 * near), SKY)).T
    scene = EmbreeScene(clutter)
    found = kernels.sample_bounce(
        scene.handle, points, normals, hemisphere, colours, SKY, ambient, HEIGHT, WIDTH, beams
    )
    assert np.array_equal(found, expected) and 0.1 < hit.mean() < 0.9


def test_filter_blocks(rng):
    points, normals, objects = bumpy_floor(rng)
    values = rng.random((5, COUNT), np.float32)
    image = np.concatenate([values.T, np.ones((COUNT, 1), np.float32)], 1).reshape(HEIGHT, WIDTH, -1)
    point, normal = points.reshape(HEIGHT, WIDTH, 3), normals.reshape(HEIGHT, WIDTH, 3)
    object_id = objects.reshape(HEIGHT, WIDTH)
    for down, right in ((0, 1), (1, 0)):
        total = np.zeros_like(image)
        for step in range(-BLOCK // 2, BLOCK // 2):
            dy, dx = down * step, right * step
            target = np.s_[max(0, -dy) : HEIGHT - max(0, dy), max(0, -dx) : WIDTH - max(0, dx)]
            source = np.s_[max(0, dy) : HEIGHT + min(0, dy), max(0, dx) : WIDTH + min(0, dx)]
            same = object_id[target] == object_id[source]
            same &= np.einsum("ijk,ijk->ij", normal[target], normal[source]) > 0.9
            same &= np.abs(np.einsum("ijk,ijk->ij", normal[target], point[target] - point[source])) < 0.03
            total[target] += image[source] * same[..., None]
        image = total
    expected = (image[..., :-1] / image[..., -1:]).reshape(COUNT, 5).T
    found = kernels.filter_blocks(values, points, normals, objects, HEIGHT, WIDTH)
    assert np.array_equal(found, expected) and not np.array_equal(found, values)


def test_combine(rng):
    direct, filtered = rng.random((COUNT, 3), np.float32), rng.random((5, COUNT), np.float32)
    filtered[0, :20] = 0
    shadow = (filtered[1] / np.maximum(filtered[0], 1e-6))[:, None]
    assert np.array_equal(kernels.combine(direct, filtered), direct * np.minimum(shadow, 1.0) + filtered[2:].T)


def test_shade(rng):
    triangle = rng.integers(-1, 9, COUNT).astype(np.int32)
    emission = np.where(rng.random(9) < 0.3, 2.5, 0).astype(np.float32)
    albedo, light, tint = (rng.random((COUNT, 3), np.float32) for _ in range(3))
    glow = emission[triangle][:, None]
    radiance = np.where(glow > 0, albedo * glow, albedo * light)
    expected = np.where(triangle[:, None] >= 0, radiance, SKY) * tint
    assert np.array_equal(kernels.shade(triangle, albedo, emission, light, tint, SKY), expected)


def test_grazing_and_reflect(rng):
    kind = rng.choice([OPAQUE, GLASS, MIRROR], 30).astype(np.int8)
    triangle, gloss = rng.integers(-1, 30, COUNT).astype(np.int32), rng.random(30, np.float32)
    rays, origin, distance = rng.standard_normal((COUNT, 3)), rng.standard_normal((1, 3)), rng.uniform(1, 5, COUNT)
    normals, planes = unit_vectors(rng, COUNT).astype(np.float32), unit_vectors(rng, 30)
    least = 0.2
    normal = np.where((kind == OPAQUE)[triangle][:, None], normals, planes[triangle])
    slant = 1 - np.abs(dot(rays, normal)) / length(rays)
    wanted = (triangle >= 0) & (kind[triangle] != MIRROR) & (gloss[triangle] ** 2 > least)
    rows, found = kernels.grazing(triangle, gloss, kind, rays, normals, planes, least)
    assert np.array_equal(rows, np.flatnonzero(wanted)) and np.array_equal(found, slant[wanted])
    ray, normal = rays[rows] / length(rays[rows])[:, None], normal[rows]
    direction = ray - 2 * dot(ray, normal)[:, None] * normal
    start = origin + rays[rows] * distance[rows, None] - RAY_OFFSET * 3 * ray
    found = kernels.reflect(rows, triangle, distance, kind, origin, rays, normals, planes)
    assert np.array_equal(found[0], start) and np.array_equal(found[1], direction)


def test_sense(rng):
    kind = rng.choice([OPAQUE, GLASS, MIRROR], 30).astype(np.int8)
    triangle, infrared = rng.integers(-1, 30, COUNT).astype(np.int32), rng.random(30, np.float32)
    distance = np.where(triangle < 0, np.inf, rng.uniform(0.3, 9, COUNT))
    path, rays, planes = distance + rng.random(COUNT), rng.standard_normal((COUNT, 3)), unit_vectors(rng, 30)
    planes[:3] = rays[:3] / length(rays[:3])[:, None]
    coarse, fine = (rng.standard_normal(COUNT, np.float32) for _ in range(2))
    threshold, noise = 0.02 * rng.random(COUNT), rng.standard_normal(COUNT)
    seen = np.maximum(triangle, 0)
    cosine = np.abs(dot(rays, planes[seen])) / length(rays)
    depth, behind = (np.where(np.isfinite(values), values, 0) for values in (distance, path))
    signal = infrared[seen] * cosine / np.maximum((depth * length(rays)) ** 2, 0.1)
    surface = np.where(triangle >= 0, kind[seen], OPAQUE)
    clear = surface != OPAQUE
    through = clear & (coarse > np.where(surface == MIRROR, 0.3, 0.9)) & (behind < 5)
    glare = clear & ((cosine > 0.985) & (fine > 0.2) | (fine > 2.2))
    reading = np.where(through, behind, depth)
    reading[(clear & ~through & ~glare) | (~clear & (signal < threshold)) | (reading > 8.0) | (depth == 0)] = 0
    spread = 0.0015 + 0.0006 * reading**2 * np.clip(0.02 / np.maximum(signal, 1e-4), 0.3, 3)
    expected = np.maximum(np.where(reading > 0, reading + spread * noise, 0), 0).astype(np.float32)
    found = kernels.sense(
        triangle, distance, path, rays, planes, kind, infrared, threshold, coarse, fine, noise, 8.0
    )
    assert np.array_equal(found, expected) and 0.1 < (expected > 0).mean() < 0.9


@pytest.mark.parametrize("size", [2, 64, 256])
def test_mean_colour_and_unit_phases(rng, size):
    texture, turns = rng.random((size, size, 3), np.float32), rng.random((size, size))
    assert np.array_equal(kernels.mean_colour(texture), texture.mean((0, 1)))
    assert np.array_equal(kernels.unit_phases(turns), np.exp(2j * np.pi * turns))


def test_look_2_has_the_same_depths_and_nearly_the_same_image():
    rng = np.random.default_rng([0, 3])
    _, room = build_room(rng)
    world = room.world()
    camera = NYU_INTRINSICS.resized(320, 240)
    pose = Pose(np.array([room.width / 2, room.depth / 2, 1.3]), 0.4, -0.1, 0.0)
    first, second = (render(world, camera, pose, np.random.default_rng(1), look=look) for look in (1, 2))
    for name in ("depth", "sensor_depth", "object"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert cv2.absdiff(first.rgb, second.rgb).mean() < 0.1
