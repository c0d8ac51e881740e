"""The renderer's inner loops, compiled by Numba.

They round as NumPy does, operation by operation and in its order, so that they give the bytes of the plain NumPy
versions in tests/test_render_kernels.py. Three products are summed as NumPy's einsum sums them: float32 from left to
right, float64 the second last. Nothing here uses exp, log or powers, which differ between math libraries.
"""

import math
from collections.abc import Callable

import numpy as np
from numba import njit

from rooms.embree import COHERENT, PACKET, intersect_16, occluded, occluded_16

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


def inlined(function: Callable) -> Callable:
    """Make a part of compiled functions, without the cost of a call."""
    return njit(function, error_model="numpy", forceinline=True)


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
    rays, valid = _packet()
    words = rays.view(np.uint32)
    for start in range(0, count, PACKET):
        filled = min(PACKET, count - start)
        for k in range(filled):
            for axis in range(3):
                rays[axis, k] = _f32(origins[(start + k) * step, axis])
                rays[4 + axis, k] = _f32(directions[start + k, axis])
        _intersect(scene, rays, valid, filled, 0)
        for k in range(filled):
            i, o = start + k, (start + k) * step
            if words[18, k] == MISS:
                triangle[i], distance[i] = -1, np.inf
                continue
            t = np.int64(words[17, k])
            triangle[i], bary[i, 0], bary[i, 1] = t, rays[15, k], rays[16, k]
            x, y, z = planes[t, 0], planes[t, 1], planes[t, 2]
            at = (x * origins[o, 0] + z * origins[o, 2]) + y * origins[o, 1]
            along = (x * directions[i, 0] + z * directions[i, 2]) + y * directions[i, 1]
            exact, approximate = (offsets[t] - at) / along, rays[8, k]
            reliable = abs(exact - approximate) < _f32(1e-3) * max(approximate, _f32(1.0))
            distance[i] = exact if reliable else approximate
    return triangle, distance, bary


@compiled
def _packet() -> tuple[np.ndarray, np.ndarray]:
    """Memory of a packet: RTCRayHit16 as float32 [21,16], which begins with an RTCRay16, and int32 [16], valid rays."""
    return _aligned(21 * PACKET).reshape(21, PACKET), _aligned(PACKET).view(np.int32)


@compiled
def _intersect(scene: int, rays: np.ndarray, valid: np.ndarray, filled: int, arguments: int) -> None:
    """Find the nearest hits of the first `filled` rays of a packet, whose origins and directions are set.

    With `arguments` 0, Embree gives the same triangles as for single rays where two are equally near.
    """
    words = rays.view(np.uint32)
    for k in range(PACKET):
        valid[k] = -1 if k < filled else 0
        rays[3, k], rays[7, k], rays[8, k] = 0, 0, 1e37
        words[9, k], words[10, k], words[11, k] = MISS, 0, 0
        words[17, k], words[18, k], words[19, k] = MISS, MISS, MISS
    intersect_16(valid.ctypes.data, scene, rays.ctypes.data, arguments)


@compiled
def _lookup(
    result: np.ndarray, u: float, v: float, footprint: float, texture: int, extent: np.ndarray, tint: np.ndarray,
    texels: np.ndarray, starts: np.ndarray, levels: np.ndarray, sizes: np.ndarray,
) -> None:  # fmt: skip
    """One point of MaterialTable.lookup(), into `result` float32 [3]; u, v, footprint, extent and tint are float32."""
    ratio = max(np.float64(footprint / min(extent[0], extent[1])) * sizes[texture], 1.0)
    level = min(math.frexp(ratio * _SQRT_2)[1] - 1, levels[texture] - 1)  # round(log2(ratio))
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


@inlined
def _strength(
    normal: np.ndarray, tx: np.float32, ty: np.float32, tz: np.float32, light_normal: np.ndarray
) -> np.float32:
    """Irradiance per unit power from a point on a light, at the vector (tx, ty, tz) from the surface."""
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
            strength = _strength(normal, x, y, z, light_normals[light])
            for c in range(3):
                total[i, c] += strength * powers[light, c]
    return total


@compiled
def sample_lights(
    scene: int, points: np.ndarray, normals: np.ndarray, positions: np.ndarray, light_normals: np.ndarray,
    height: int, width: int, beams: bool,
) -> np.ndarray:  # fmt: skip
    """Irradiance of each pixel from its light samples, without and with shadows: float32 [2,N].

    Pixels whose surface faces away from a sample get nothing from it and cast no shadow ray.

    Args:
        scene: handle of the EmbreeScene that casts shadows.
        points: of the surface, float32 [N,3] for N = height * width pixels.
        normals: of the surface, float32 [N,3].
        positions: of the samples on the lights, float32 [16,S,3] for the pixels of a block.
        light_normals: float32 [16,S,3].
        height: of the image.
        width: of the image.
        beams: cast packets of rays, faster than single rays; rounding differs for rays that graze an edge.
    """
    result = np.zeros((2, len(points)), np.float32)
    rays, valid = _packet()
    single = _aligned(12)
    pixels, strengths = np.empty(PACKET, np.int64), np.empty(PACKET, np.float32)
    for member in range(BLOCK * BLOCK):  # rays of one sample are nearly parallel, which is faster
        for sample in range(positions.shape[1]):
            position, light_normal = positions[member, sample], light_normals[member, sample]
            filled = 0
            for y in range(member // BLOCK, height, BLOCK):
                for x in range(member % BLOCK, width, BLOCK):
                    i = y * width + x
                    tx, ty, tz = position[0] - points[i, 0], position[1] - points[i, 1], position[2] - points[i, 2]
                    strength = _strength(normals[i], tx, ty, tz, light_normal)
                    if strength == 0:
                        continue
                    for axis in range(3):
                        rays[axis, filled] = points[i, axis] + _f32(3 * RAY_OFFSET) * normals[i, axis]
                    rays[4, filled], rays[5, filled], rays[6, filled] = tx, ty, tz
                    pixels[filled], strengths[filled] = i, strength
                    filled += 1
                    if filled == PACKET:
                        _find_blocked(scene, rays, valid, filled, single, beams)
                        _add_samples(result, rays, filled, pixels, strengths)
                        filled = 0
            _find_blocked(scene, rays, valid, filled, single, beams)
            _add_samples(result, rays, filled, pixels, strengths)
    return result


@compiled
def _find_blocked(
    scene: int, rays: np.ndarray, valid: np.ndarray, filled: int, single: np.ndarray, beams: bool
) -> None:
    """Set the length of the rays of a packet that hit something to -inf; only the first `filled` rays are cast.

    beams: cast them as a packet; else one by one, with `single` as the memory of an RTCRay, float32 [12].
    """
    words = rays.view(np.uint32)
    for k in range(PACKET):
        valid[k] = -1 if k < filled else 0
        rays[3, k], rays[7, k], rays[8, k] = 0, 0, 0.995
        words[9, k], words[10, k], words[11, k] = MISS, 0, 0
    if beams:
        occluded_16(valid.ctypes.data, scene, rays.ctypes.data, COHERENT.ctypes.data)
        return
    for k in range(filled):
        for row in range(12):
            single[row] = rays[row, k]
        occluded(scene, single.ctypes.data, 0)
        rays[8, k] = single[8]


@compiled
def _add_samples(
    result: np.ndarray, rays: np.ndarray, filled: int, pixels: np.ndarray, strengths: np.ndarray
) -> None:
    for k in range(filled):
        result[0, pixels[k]] += strengths[k]
        if rays[8, k] >= 0:
            result[1, pixels[k]] += strengths[k]


@compiled
def sample_bounce(
    scene: int, points: np.ndarray, normals: np.ndarray, hemisphere: np.ndarray, colours: np.ndarray, sky: np.ndarray,
    ambient: np.float32, height: int, width: int, beams: bool,
) -> np.ndarray:  # fmt: skip
    """Indirect irradiance of each pixel from one ray, float32 [3,N].

    Args:
        scene: handle of the EmbreeScene of F triangles that reflect light.
        points: of the surface, float32 [N,3].
        normals: of the surface, float32 [N,3].
        hemisphere: directions about +z for the pixels of a block, float32 [16,3].
        colours: mean albedo of the triangles, float32 [F,3].
        sky: colour of rays that hit nothing, float32 [3].
        ambient: irradiance of a white triangle.
        height: of the image.
        width: of the image.
        beams: as in sample_lights().
    """
    one = _f32(1)
    result = np.empty((3, len(points)), np.float32)
    rays, valid = _packet()
    words = rays.view(np.uint32)
    pixels = _by_sample(height, width)
    for start in range(0, len(pixels), PACKET):
        filled = min(PACKET, len(pixels) - start)
        for k in range(filled):
            i = pixels[start + k]
            member = i // width % BLOCK * BLOCK + i % width % BLOCK
            across, along, up = hemisphere[member, 0], hemisphere[member, 1], hemisphere[member, 2]
            nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
            # orthonormal basis from Duff et al., Building an Orthonormal Basis, Revisited, 2017
            sign = one if nz >= 0 else -one
            a = -one / (sign + nz)
            b = nx * ny * a
            rays[4, k] = across * (one + sign * (nx * nx) * a) + along * b + up * nx
            rays[5, k] = across * (sign * b) + along * (sign + ny * ny * a) + up * ny
            rays[6, k] = across * (-sign * nx) + along * -ny + up * nz
            for axis in range(3):
                rays[axis, k] = points[i, axis] + _f32(3 * RAY_OFFSET) * normals[i, axis]
        _intersect(scene, rays, valid, filled, COHERENT.ctypes.data if beams else 0)
        for k in range(filled):
            hit = words[18, k] != MISS
            near = _f32(0.15) + _f32(0.85) * min(rays[8, k] / _f32(1.3), one)
            for c in range(3):
                result[c, pixels[start + k]] = ambient * (colours[words[17, k], c] * near if hit else sky[c])
    return result


@compiled
def _by_sample(height: int, width: int) -> np.ndarray:
    """All pixels, int64 [height*width], those of one sample together and tile by tile, as their rays are parallel."""
    pixels = np.empty(height * width, np.int64)
    count, tile = 0, BLOCK * BLOCK
    for member in range(BLOCK * BLOCK):
        for y in range(member // BLOCK, height, tile):
            for x in range(member % BLOCK, width, tile):
                for row in range(y, min(y + tile, height), BLOCK):
                    for column in range(x, min(x + tile, width), BLOCK):
                        pixels[count] = row * width + column
                        count += 1
    return pixels


@compiled
def filter_blocks(
    values: np.ndarray, points: np.ndarray, normals: np.ndarray, objects: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Average `values` over the pixels of the same surface in a 4x4 window, in two separable passes: float32 [C,N].

    Args:
        values: float32 [C,N] for N = height * width pixels.
        points: of the surface, float32 [N,3].
        normals: of the surface, float32 [N,3].
        objects: ids int32 [N].
        height: of the image.
        width: of the image.
    """
    channels, count = values.shape
    image = np.ones((channels + 1, count), np.float32)
    image[:channels] = values
    place, normal = np.ascontiguousarray(points.T), np.ascontiguousarray(normals.T)
    same = np.empty(width, np.float32)
    for down, right in ((0, 1), (1, 0)):
        total = np.zeros_like(image)
        for y in range(height):
            for step in range(-BLOCK // 2, BLOCK // 2):
                if not 0 <= y + down * step < height:
                    continue
                start, end = y * width + max(0, -right * step), (y + 1) * width - max(0, right * step)
                shift = (down * width + right) * step
                other, stop = start + shift, end + shift
                _compare(same, place[:, start:end], normal[:, start:end], place[:, other:stop], normal[:, other:stop])
                _mask(same, objects[start:end], objects[other:stop])
                for c in range(channels + 1):
                    _add_product(total[c, start:end], image[c, other:stop], same)
        image = total
    for c in range(channels):
        for i in range(count):
            image[c, i] /= image[channels, i]
    return image[:channels]


@compiled
def _compare(
    same: np.ndarray, point: np.ndarray, normal: np.ndarray, other_point: np.ndarray, other_normal: np.ndarray
) -> None:
    """Set `same`, float32 [>= W], to 1 where two rows of W pixels, points and normals [3,W], lie on one plane, or 0."""
    px, py, pz = point[0], point[1], point[2]
    qx, qy, qz = other_point[0], other_point[1], other_point[2]
    nx, ny, nz = normal[0], normal[1], normal[2]
    mx, my, mz = other_normal[0], other_normal[1], other_normal[2]
    for x in range(len(px)):
        cosine = nx[x] * mx[x] + ny[x] * my[x] + nz[x] * mz[x]
        apart = abs(nx[x] * (px[x] - qx[x]) + ny[x] * (py[x] - qy[x]) + nz[x] * (pz[x] - qz[x]))
        near = _f32(1) if cosine > _f32(0.9) else _f32(0)
        same[x] = near if apart < _f32(0.03) else _f32(0)


@compiled
def _mask(same: np.ndarray, objects: np.ndarray, others: np.ndarray) -> None:
    """Set `same` to 0 where two rows of object ids differ."""
    for x in range(len(objects)):
        same[x] = same[x] if objects[x] == others[x] else _f32(0)


@compiled
def _add_product(total: np.ndarray, values: np.ndarray, weights: np.ndarray) -> None:
    for x in range(len(total)):
        total[x] += values[x] * weights[x]


@compiled
def combine(direct: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """Irradiance, float32 [N,3], of light without shadows [N,3] and filtered samples [5,N].

    The samples are: irradiance without and with shadows, and indirect irradiance.
    """
    result = np.empty_like(direct)
    for i in range(len(direct)):
        clear = min(filtered[1, i] / max(filtered[0, i], _f32(1e-6)), _f32(1))
        for c in range(3):
            result[i, c] = direct[i, c] * clear + filtered[2 + c, i]
    return result


@compiled
def shade(
    triangle: np.ndarray, albedo: np.ndarray, emission: np.ndarray, irradiance: np.ndarray, tint: np.ndarray,
    sky: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Radiance, float32 [N,3], of surfaces seen through glass or in mirrors of a tint; the sky where there is none.

    triangle: int32 [N], -1 = none. emission: of the triangles, float32 [F]. albedo, irradiance, tint: float32 [N,3].
    """
    result = np.empty_like(albedo)
    for i in range(len(triangle)):
        glow = emission[triangle[i]]
        for c in range(3):
            radiance = albedo[i, c] * (glow if glow > 0 else irradiance[i, c])
            result[i, c] = (radiance if triangle[i] >= 0 else sky[c]) * tint[i, c]
    return result


@compiled
def grazing(
    triangle: np.ndarray, gloss: np.ndarray, kind: np.ndarray, rays: np.ndarray, normals: np.ndarray,
    planes: np.ndarray, least: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Find pixels that may reflect more than `least`: rows int64 [R], and 1 - cosine of incidence, float64 [R].

    Args:
        triangle: int32 [N], -1 = none.
        gloss: of the triangles, float32 [F].
        kind: of the triangles, 0 = opaque, 1 = glass, 2 = mirror [F]; a mirror's light is traced elsewhere.
        rays: float64 [N,3].
        normals: of the surface, float32 [N,3], for opaque triangles.
        planes: normals of the triangles, float64 [F,3], for glass.
        least: share of the light, 0..1.
    """
    rows, slant = np.empty(len(triangle), np.int64), np.empty(len(triangle))
    found = 0
    for i in range(len(triangle)):
        t = triangle[i]
        if t < 0 or kind[t] == 2 or not gloss[t] * gloss[t] > least:
            continue
        x, y, z = planes[t, 0], planes[t, 1], planes[t, 2]
        if kind[t] == 0:
            x, y, z = np.float64(normals[i, 0]), np.float64(normals[i, 1]), np.float64(normals[i, 2])
        rx, ry, rz = rays[i, 0], rays[i, 1], rays[i, 2]
        length = np.sqrt((rx * rx + rz * rz) + ry * ry)
        rows[found], slant[found] = i, 1 - abs((rx * x + rz * z) + ry * y) / length
        found += 1
    return rows[:found].copy(), slant[:found].copy()


@compiled
def reflect(
    rows: np.ndarray, triangle: np.ndarray, distance: np.ndarray, kind: np.ndarray, origin: np.ndarray,
    rays: np.ndarray, normals: np.ndarray, planes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Origins and unit directions of the rays reflected at some pixels, float64 [R,3]; see grazing().

    rows: pixels int64 [R]. distance: of the hits, float64 [N]. origin: of all rays, float64 [1,3].
    """
    start, direction = np.empty((len(rows), 3)), np.empty((len(rows), 3))
    for k in range(len(rows)):
        i = rows[k]
        t = triangle[i]
        rx, ry, rz = rays[i, 0], rays[i, 1], rays[i, 2]
        length = np.sqrt((rx * rx + rz * rz) + ry * ry)
        x, y, z = planes[t, 0], planes[t, 1], planes[t, 2]
        if kind[t] == 0:
            x, y, z = np.float64(normals[i, 0]), np.float64(normals[i, 1]), np.float64(normals[i, 2])
        ux, uy, uz = rx / length, ry / length, rz / length
        twice = 2 * ((ux * x + uz * z) + uy * y)
        direction[k, 0], direction[k, 1], direction[k, 2] = ux - twice * x, uy - twice * y, uz - twice * z
        start[k, 0] = origin[0, 0] + rx * distance[i] - 3 * RAY_OFFSET * ux
        start[k, 1] = origin[0, 1] + ry * distance[i] - 3 * RAY_OFFSET * uy
        start[k, 2] = origin[0, 2] + rz * distance[i] - 3 * RAY_OFFSET * uz
    return start, direction


@compiled
def sense(
    triangle: np.ndarray, distance: np.ndarray, path: np.ndarray, rays: np.ndarray, planes: np.ndarray,
    kind: np.ndarray, infrared: np.ndarray, threshold: np.ndarray, coarse: np.ndarray, fine: np.ndarray,
    noise: np.ndarray, reach: float,
) -> np.ndarray:  # fmt: skip
    """Readings of a time-of-flight sensor before its errors at edges, float32 [N] metres, 0 = hole.

    Args:
        triangle: int32 [N], -1 = none.
        distance: depth of the hits, float64 [N].
        path: depth of what is seen through glass and in mirrors, float64 [N].
        rays: float64 [N,3], of a camera z of 1.
        planes: normals of the triangles, float64 [F,3].
        kind: of the triangles [F]; 0 = opaque, 1 = glass, 2 = mirror.
        infrared: albedo of the triangles, float32 [F].
        threshold: of the signal, float64 [N].
        coarse: smooth noise, float32 [N].
        fine: smooth noise, float32 [N].
        noise: of unit variance, float64 [N].
        reach: of the sensor, metres.
    """
    result = np.zeros(len(triangle), np.float32)
    for i in range(len(triangle)):
        t = max(triangle[i], 0)
        depth = distance[i] if np.isfinite(distance[i]) else 0.0
        behind = path[i] if np.isfinite(path[i]) else 0.0
        x, y, z = rays[i, 0], rays[i, 1], rays[i, 2]
        length = np.sqrt((x * x + z * z) + y * y)
        cosine = abs((x * planes[t, 0] + z * planes[t, 2]) + y * planes[t, 1]) / length
        far = depth * length
        signal = infrared[t] * cosine / max(far * far, 0.1)
        reading = depth
        if triangle[i] >= 0 and kind[t] != 0:
            if coarse[i] > (0.3 if kind[t] == 2 else 0.9) and behind < 5:
                reading = behind
            elif not (cosine > 0.985 and fine[i] > _f32(0.2) or fine[i] > _f32(2.2)):  # frontal or smeared glass
                reading = 0.0
        elif signal < threshold[i]:
            reading = 0.0
        if reading > reach or depth == 0 or not reading > 0:
            continue
        spread = 0.0015 + 0.0006 * (reading * reading) * min(max(0.02 / max(signal, 1e-4), 0.3), 3.0)
        result[i] = max(reading + spread * noise[i], 0.0)
    return result


@compiled
def mean_colour(texture: np.ndarray) -> np.ndarray:
    """Mean over the pixels, float32 [3], of a texture float32 [S,S,3]; summed one by one, as NumPy does."""
    red, green, blue = _f32(0), _f32(0), _f32(0)
    height, width, _ = texture.shape
    for y in range(height):
        for x in range(width):
            red, green, blue = red + texture[y, x, 0], green + texture[y, x, 1], blue + texture[y, x, 2]
    return np.array([red, green, blue], np.float32) / _f32(height * width)


@compiled
def unit_phases(turns: np.ndarray) -> np.ndarray:
    """exp(2 pi i x) of float64 [N,M], complex128 [N,M]; NumPy's, too, takes sine and cosine from the C library."""
    result = np.empty(turns.shape, np.complex128)
    for y in range(turns.shape[0]):
        for x in range(turns.shape[1]):
            angle = 2 * np.pi * turns[y, x]
            result[y, x] = complex(math.cos(angle), math.sin(angle))
    return result
