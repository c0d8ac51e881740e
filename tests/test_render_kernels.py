"""The renderer's compiled kernels give the bytes of plain NumPy versions, which say what they compute."""

import numpy as np
import pytest

from config import NYU_INTRINSICS
from rooms import kernels
from rooms.embree import EmbreeScene
from rooms.geometry import cross
from rooms.kernels import BLOCK, RAY_OFFSET
from rooms.textures import MaterialTable, Palette

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


def test_filter_blocks(rng):
    points, normals, objects = bumpy_floor(rng)
    values = rng.random((5, COUNT), np.float32)
    image = np.concatenate([values.T, np.ones((COUNT, 1), np.float32)], 1).reshape(HEIGHT, WIDTH, -1)
    point, normal, object_id = points.reshape(HEIGHT, WIDTH, 3), normals.reshape(HEIGHT, WIDTH, 3), objects.reshape(HEIGHT, WIDTH)
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
