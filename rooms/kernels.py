"""The renderer's inner loops, compiled by Numba.

They round as NumPy does, operation by operation and in its order, so that they give the bytes of the plain NumPy
versions in tests/test_render_kernels.py. Three products are summed as NumPy's einsum sums them: float32 from left to
right, float64 the second last. Nothing here uses exp, log, powers or angles, which differ between math libraries.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from rooms.embree import COHERENT, PACKET, intersect, occluded_16

BLOCK = 4
RAY_OFFSET = 1e-3  # metres from a surface to the origin of a secondary ray
MISS = np.uint32(0xFFFFFFFF)
_SQRT_2 = 2**0.5
_f32 = np.float32


def compiled(function: Callable) -> Callable:
    """Compile with NumPy's rules for division by zero; kept on disk where a folder can be written."""
    try:
        return njit(function, cache=True, error_model="numpy")
    except RuntimeError:  # there is none
        return njit(function, error_model="numpy")


@compiled
def camera_rays(
    width: int, height: int, fx: float, fy: float, cx: float, cy: float, rotation: np.ndarray
) -> np.ndarray:
    """Rays of render.camera_rays(): float64 [height*width,3]; rotation float64 [3,3]."""
    rays = np.empty((height * width, 3))
    for v in range(height):
        y = (v - cy) / fy
        for u in range(width):
            x = (u - cx) / fx
            for axis in range(3):
                rays[v * width + u, axis] = (x * rotation[axis, 0] + rotation[axis, 2]) + y * rotation[axis, 1]
    return rays


@compiled
def _aligned(count: int) -> np.ndarray:
    """`count` zeros, float32, at an address that Embree's packets accept."""
    memory = np.zeros(count + 16, np.float32)
    start = (-memory.ctypes.data % 64) // 4
    return memory[start : start + count]


@compiled
def cast(
    scene: int, planes: np.ndarray, offsets: np.ndarray, origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest hits of rays: triangle int32 [N], -1 = none; distance float64 [N]; barycentrics float32 [N,2].

    Embree computes in float32; the distance is that to the triangle's plane, unless the triangle is seen edge-on.

    Args:
        scene: handle of an EmbreeScene.
        planes: unit normals of its triangles, float64 [F,3].
        offsets: of the planes from the origin, float64 [F].
        origins: float64 [N,3], or [1,3] for all rays.
        directions: float64 [N,3].
    """
    count, step = len(directions), 0 if len(origins) == 1 else 1
    triangle, distance = np.empty(count, np.int32), np.empty(count)
    bary = np.zeros((count, 2), np.float32)
    ray = _aligned(24)
    words = ray.view(np.uint32)
    for i in range(count):
        o = i * step
        for axis in range(3):
            ray[axis], ray[4 + axis] = _f32(origins[o, axis]), _f32(directions[i, axis])
        _reset(ray, words)
        intersect(scene, ray.ctypes.data, 0)
        if words[18] == MISS:
            triangle[i], distance[i] = -1, np.inf
            continue
        t = np.int64(words[17])
        triangle[i], bary[i, 0], bary[i, 1] = t, ray[15], ray[16]
        x, y, z = planes[t, 0], planes[t, 1], planes[t, 2]
        at = (x * origins[o, 0] + z * origins[o, 2]) + y * origins[o, 1]
        along = (x * directions[i, 0] + z * directions[i, 2]) + y * directions[i, 1]
        exact = (offsets[t] - at) / along
        reliable = abs(exact - ray[8]) < _f32(1e-3) * max(ray[8], _f32(1.0))
        distance[i] = exact if reliable else ray[8]
    return triangle, distance, bary


@compiled
def _reset(ray: np.ndarray, words: np.ndarray) -> None:
    """Prepare an RTCRayHit, float32 [24] and the same memory as uint32, for a ray without end."""
    ray[3], ray[7], ray[8] = 0, 0, 1e37
    words[9], words[10], words[11] = MISS, 0, 0
    words[17], words[18], words[19] = MISS, MISS, MISS


@compiled
def _lookup(
    result: np.ndarray, u: float, v: float, footprint: float, texture: int, extent: np.ndarray, tint: np.ndarray,
    texels: np.ndarray, starts: np.ndarray, levels: np.ndarray, sizes: np.ndarray,
) -> None:  # fmt: skip
    """One point of MaterialTable.lookup(), into `result` float32 [3]; u, v, footprint, extent and tint are float32."""
    ratio = max(np.float64(footprint / min(extent[0], extent[1])) * sizes[texture], 1.0)
    level, bound = 0, _SQRT_2  # the nearest power of two
    while ratio >= bound and level < levels[texture] - 1:
        level, bound = level + 1, bound * 2
    start, side = starts[texture, level], sizes[texture] >> level
    x, y = np.float64(u / extent[0]) * side - 0.5, np.float64(v / extent[1]) * side - 0.5
    left, low = np.floor(x), np.floor(y)
    fx, fy = _f32(x - left), _f32(y - low)
    gx, gy = _f32(1) - fx, _f32(1) - fy
    x0, x1, y0, y1 = np.int64(left), np.int64(left) + 1, np.int64(low), np.int64(low) + 1
    x0, x1, y0, y1 = x0 & (side - 1), x1 & (side - 1), y0 & (side - 1), y1 & (side - 1)  # sides are powers of two
    for c in range(3):
        bottom = texels[start + y0 * side + x0, c] * gx + texels[start + y0 * side + x1, c] * fx
        top = texels[start + y1 * side + x0, c] * gx + texels[start + y1 * side + x1, c] * fx
        result[c] = (bottom * gy + top * fy) * tint[c]


@compiled
def look_up(
    material: np.ndarray, uv: np.ndarray, footprint: np.ndarray, texture: np.ndarray, extent: np.ndarray,
    tint: np.ndarray, texels: np.ndarray, starts: np.ndarray, levels: np.ndarray, sizes: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Albedo of N points, float32 [N,3]; see MaterialTable.lookup(), whose table the last arguments are."""
    result = np.empty((len(material), 3), np.float32)
    for i in range(len(material)):
        m = material[i]
        _lookup(
            result[i], uv[i, 0], uv[i, 1], footprint[i], texture[m], extent[m], tint[m], texels, starts, levels, sizes
        )
    return result


@compiled
def surface(
    triangle: np.ndarray, distance: np.ndarray, bary: np.ndarray, origins: np.ndarray, directions: np.ndarray,
    footprint: np.ndarray, normals: np.ndarray, uvs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Points [N,3], unit normals towards the ray [N,3], texture coordinates [N,2] and widths of a pixel [N], float32.

    Args:
        triangle: int32 [N], -1 = none, which gets the last triangle's values.
        distance: float64 [N] in lengths of the direction vector.
        bary: float32 [N,2].
        origins: float64 [N,3], or [1,3] for all rays.
        directions: float64 [N,3].
        footprint: width of a pixel at the point, float64 [N].
        normals: shading normals of the triangles' corners, float32 [F,3,3].
        uvs: texture coordinates of the triangles' corners, float32 [F,3,2].
    """
    count, step = len(triangle), 0 if len(origins) == 1 else 1
    point, normal = np.empty((count, 3), np.float32), np.empty((count, 3), np.float32)
    uv, width = np.empty((count, 2), np.float32), np.empty(count, np.float32)
    for i in range(count):
        t = triangle[i]
        reach = distance[i] if np.isfinite(distance[i]) else 0.0
        b, c = bary[i, 0], bary[i, 1]
        a = _f32(1) - b - c
        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
        length = np.sqrt((dx * dx + dz * dz) + dy * dy)
        for k in range(3):
            point[i, k] = _f32(origins[i * step, k] + directions[i, k] * reach)
            normal[i, k] = (normals[t, 0, k] * a + normals[t, 1, k] * b) + normals[t, 2, k] * c
        for k in range(2):
            uv[i, k] = (uvs[t, 0, k] * a + uvs[t, 1, k] * b) + uvs[t, 2, k] * c
        nx, ny, nz = normal[i, 0], normal[i, 1], normal[i, 2]
        size = max(np.sqrt((nx * nx + ny * ny) + nz * nz), _f32(1e-6))
        for k in range(3):
            normal[i, k] /= size
        facing = normal[i, 0] * _f32(dx / length) + normal[i, 1] * _f32(dy / length)
        facing += normal[i, 2] * _f32(dz / length)
        if facing > 0:
            for k in range(3):
                normal[i, k] = -normal[i, k]
        slant = np.sqrt(max(abs(facing), _f32(0.04)))
        width[i] = _f32((footprint[i] if np.isfinite(footprint[i]) else 1.0) / slant)
    return point, normal, uv, width


@compiled
def _strength(
    point: np.ndarray, normal: np.ndarray, tx: np.float32, ty: np.float32, tz: np.float32, light_normal: np.ndarray
) -> np.float32:
    """Irradiance per unit power, float32, from a point on a light at (tx, ty, tz), float32, from the surface point."""
    cosine = tx * normal[0] + ty * normal[1] + tz * normal[2]
    if not cosine > 0:
        return _f32(0)
    squared = max(tx * tx + ty * ty + tz * tz, _f32(0.04))
    emitted = max(-(tx * light_normal[0] + ty * light_normal[1] + tz * light_normal[2]), _f32(0))
    return cosine * (_f32(0.8) * emitted + _f32(0.2) * np.sqrt(squared)) / (squared * squared)


@compiled
def unshadowed(
    points: np.ndarray, normals: np.ndarray, centres: np.ndarray, light_normals: np.ndarray, powers: np.ndarray
) -> np.ndarray:
    """Irradiance from the centres of all L lights without shadows, float32 [N,3]; all arguments float32 [N or L,3]."""
    total = np.zeros(points.shape, np.float32)
    for i in range(len(points)):
        point, normal = points[i], normals[i]
        for light in range(len(centres)):
            x, y, z = centres[light, 0] - point[0], centres[light, 1] - point[1], centres[light, 2] - point[2]
            strength = _strength(point, normal, x, y, z, light_normals[light])
            for c in range(3):
                total[i, c] += strength * powers[light, c]
    return total


@compiled
def sample_lights(
    scene: int, points: np.ndarray, normals: np.ndarray, positions: np.ndarray, light_normals: np.ndarray,
    height: int, width: int,
) -> np.ndarray:  # fmt: skip
    """Irradiance of each pixel from its light samples, without and with shadows: float32 [N,2].

    Pixels whose surface faces away from a sample get nothing from it and cast no shadow ray.

    Args:
        scene: handle of the EmbreeScene that casts shadows.
        points: of the surface, float32 [N,3] for N = height * width pixels.
        normals: of the surface, float32 [N,3].
        positions: of the samples on the lights, float32 [16,S,3] for the pixels of a block.
        light_normals: float32 [16,S,3].
        height: of the image.
        width: of the image.
    """
    result = np.zeros((len(points), 2), np.float32)
    rays = _aligned(12 * PACKET).reshape(12, PACKET)
    valid = _aligned(PACKET).view(np.int32)
    pixels, strengths = np.empty(PACKET, np.int64), np.empty(PACKET, np.float32)
    for member in range(BLOCK * BLOCK):
        for sample in range(positions.shape[1]):
            position, light_normal = positions[member, sample], light_normals[member, sample]
            filled = 0
            for y in range(member // BLOCK, height, BLOCK):
                for x in range(member % BLOCK, width, BLOCK):
                    i = y * width + x
                    p, n = points[i], normals[i]
                    tx, ty, tz = position[0] - p[0], position[1] - p[1], position[2] - p[2]
                    strength = _strength(p, n, tx, ty, tz, light_normal)
                    if strength == 0:
                        continue
                    pixels[filled], strengths[filled] = i, strength
                    for axis in range(3):
                        rays[axis, filled] = p[axis] + _f32(3 * RAY_OFFSET) * n[axis]
                    rays[4, filled], rays[5, filled], rays[6, filled] = tx, ty, tz
                    filled += 1
                    if filled == PACKET:
                        _add_samples(scene, rays, valid, filled, pixels, strengths, result)
                        filled = 0
            _add_samples(scene, rays, valid, filled, pixels, strengths, result)
    return result


@compiled
def _add_samples(
    scene: int, rays: np.ndarray, valid: np.ndarray, filled: int, pixels: np.ndarray, strengths: np.ndarray,
    result: np.ndarray,
) -> None:  # fmt: skip
    """Cast the first `filled` shadow rays of a packet, RTCRay16 as float32 [12,16], and add what arrives."""
    words = rays.view(np.uint32)
    for k in range(PACKET):
        valid[k] = -1 if k < filled else 0
        rays[3, k], rays[7, k], rays[8, k] = 0, 0, 0.995
        words[9, k], words[10, k], words[11, k] = MISS, 0, 0
    occluded_16(valid.ctypes.data, scene, rays.ctypes.data, COHERENT.ctypes.data)
    for k in range(filled):
        result[pixels[k], 0] += strengths[k]
        if rays[8, k] >= 0:  # Embree sets it to -inf if something is in the way
            result[pixels[k], 1] += strengths[k]


@compiled
def sample_bounce(
    scene: int, points: np.ndarray, normals: np.ndarray, hemisphere: np.ndarray, colours: np.ndarray, sky: np.ndarray,
    ambient: float, height: int, width: int,
) -> np.ndarray:  # fmt: skip
    """Indirect irradiance of each pixel from one ray, float32 [N,3].

    Args:
        scene: handle of the EmbreeScene of F triangles that reflect light.
        points: of the surface, float32 [N,3] for N = height * width pixels.
        normals: of the surface, float32 [N,3].
        hemisphere: directions about +z for the pixels of a block, float32 [16,3].
        colours: mean albedo of the triangles, float32 [F,3].
        sky: colour of rays that hit nothing, float32 [3].
        ambient: irradiance of a white triangle, float32.
        height: of the image.
        width: of the image.
    """
    result = np.empty((len(points), 3), np.float32)
    ray = _aligned(24)
    words = ray.view(np.uint32)
    one = _f32(1)
    for member in range(BLOCK * BLOCK):  # rays of one sample are nearly parallel, which is faster
        across, along, up = hemisphere[member, 0], hemisphere[member, 1], hemisphere[member, 2]
        for y in range(member // BLOCK, height, BLOCK):
            for x in range(member % BLOCK, width, BLOCK):
                i = y * width + x
                nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
                # orthonormal basis from Duff et al., Building an Orthonormal Basis, Revisited, 2017
                sign = one if nz >= 0 else -one
                a = -one / (sign + nz)
                b = nx * ny * a
                ray[4] = across * (one + sign * (nx * nx) * a) + along * b + up * nx
                ray[5] = across * (sign * b) + along * (sign + ny * ny * a) + up * ny
                ray[6] = across * (-sign * nx) + along * -ny + up * nz
                for axis in range(3):
                    ray[axis] = points[i, axis] + _f32(3 * RAY_OFFSET) * normals[i, axis]
                _reset(ray, words)
                intersect(scene, ray.ctypes.data, 0)
                if words[18] == MISS:
                    for c in range(3):
                        result[i, c] = ambient * sky[c]
                    continue
                near = _f32(0.15) + _f32(0.85) * min(ray[8] / _f32(1.3), one)
                for c in range(3):
                    result[i, c] = ambient * (colours[words[17], c] * near)
    return result


@compiled
def filter_blocks(
    values: np.ndarray, points: np.ndarray, normals: np.ndarray, objects: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Average `values` over the pixels of the same surface in a 4x4 window, in two separable passes: float32 [N,C].

    Args:
        values: float32 [N,C] for N = height * width pixels.
        points: of the surface, float32 [N,3].
        normals: of the surface, float32 [N,3].
        objects: ids int32 [N].
        height: of the image.
        width: of the image.
    """
    count, channels = values.shape
    image = np.ones((count, channels + 1), np.float32)
    image[:, :channels] = values
    for stride, line in ((1, True), (width, False)):
        total = np.zeros_like(image)
        for y in range(height):
            for x in range(width):
                i = y * width + x
                place, end = (x, width) if line else (y, height)
                for step in range(max(-BLOCK // 2, -place), min(BLOCK // 2, end - place)):
                    j = i + step * stride
                    if objects[i] != objects[j] or not _same_plane(points, normals, i, j):
                        continue
                    for c in range(channels + 1):
                        total[i, c] += image[j, c]
        image = total
    return image[:, :channels] / image[:, channels:]


@compiled
def _same_plane(points: np.ndarray, normals: np.ndarray, i: int, j: int) -> bool:
    nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
    if not nx * normals[j, 0] + ny * normals[j, 1] + nz * normals[j, 2] > _f32(0.9):
        return False
    x, y, z = points[i, 0] - points[j, 0], points[i, 1] - points[j, 1], points[i, 2] - points[j, 2]
    return abs(nx * x + ny * y + nz * z) < _f32(0.03)


@compiled
def distances(scene: int, directions: np.ndarray) -> np.ndarray:
    """Distances of the nearest hits of rays from the origin, float32 [N], 0 = none; directions float64 [N,3]."""
    result = np.zeros(len(directions), np.float32)
    ray = _aligned(24)
    words = ray.view(np.uint32)
    for i in range(len(directions)):
        for axis in range(3):
            ray[axis], ray[4 + axis] = 0, _f32(directions[i, axis])
        _reset(ray, words)
        intersect(scene, ray.ctypes.data, 0)
        if words[18] != MISS:
            result[i] = ray[8]
    return result
