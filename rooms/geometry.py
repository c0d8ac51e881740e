"""Triangle meshes of a rendered room: primitives with texture coordinates, normals, object and material ids.

Lengths are in metres and world z points up. Primitives are built in a local frame, which `Mesh.placed` transforms to
the world. Furniture faces +y of its local frame.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike


def placement(x: float, y: float, z: float = 0.0, heading: float = 0.0) -> np.ndarray:
    """Rigid transform, float64 [4,4]: rotate by `heading` radians about z, then translate to (x, y, z)."""
    cos, sin = np.cos(heading), np.sin(heading)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], np.float64)


@dataclass
class Soup:
    """All F triangles of a scene, in world coordinates.

    Attributes:
        vertices: float64 [F,3,3].
        uvs: float32 [F,3,2], in metres, or in 0..1 for textures fitted to a quad (see Material.size).
        normals: float32 [F,3,3], unit shading normals.
        materials: int32 [F], material ids.
        objects: int32 [F], object ids.
        classes: class name of each object.
    """

    vertices: np.ndarray
    uvs: np.ndarray
    normals: np.ndarray
    materials: np.ndarray
    objects: np.ndarray
    classes: list[str]


class Mesh:
    """Collects primitives; `mesh.object("chair")` and `mesh.placed(matrix)` are contexts for the primitives in them."""

    def __init__(self) -> None:
        self.classes: list[str] = []
        self._objects: list[int] = []
        self._frames = [(np.eye(4), np.eye(3))]  # and the inverse of its rotation
        self._parts: list[tuple] = []

    @contextmanager
    def object(self, class_name: str) -> Iterator[None]:
        """Assign the primitives added in this context to a new instance of `class_name`."""
        self.classes.append(class_name)
        self._objects.append(len(self.classes) - 1)
        yield
        self._objects.pop()

    @contextmanager
    def placed(self, matrix: np.ndarray) -> Iterator[None]:
        """Transform the primitives added in this context by `matrix`, float [4,4]; contexts can be nested."""
        frame = self.frame @ matrix
        self._frames.append((frame, np.linalg.inv(frame[:3, :3])))
        yield
        self._frames.pop()

    @property
    def frame(self) -> np.ndarray:
        """Transform from the current local frame to the world, float64 [4,4]."""
        return self._frames[-1][0]

    def add(self, vertices: ArrayLike, faces: ArrayLike, uvs: ArrayLike, normals: ArrayLike, material: int) -> None:
        """Add indexed triangles: vertices [V,3], faces [F,3], uvs [V,2], normals [V,3], of any length."""
        frame, inverse = self._frames[-1]
        world = np.asarray(vertices, np.float64) @ frame[:3, :3].T + frame[:3, 3]
        normals = np.asarray(normals, np.float64) @ inverse
        uvs = np.asarray(uvs, np.float32)
        self._parts.append((world, np.asarray(faces), uvs, normals, material, self._objects[-1]))

    def soup(self) -> Soup:
        """Return all triangles added so far, without degenerate ones."""
        world, faces, uvs, normals = (np.concatenate([part[i] for part in self._parts]) for i in range(4))
        starts = np.cumsum([0] + [len(part[0]) for part in self._parts[:-1]])
        counts = [len(part[1]) for part in self._parts]
        faces = faces + np.repeat(starts, counts)[:, None]
        materials, objects = (np.repeat([part[i] for part in self._parts], counts).astype(np.int32) for i in (4, 5))
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        vertices = world[faces]
        area = np.linalg.norm(cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0]), axis=1)
        keep = area > 1e-10
        faces = faces[keep]
        return Soup(
            vertices[keep], uvs[faces], normals.astype(np.float32)[faces], materials[keep], objects[keep], self.classes
        )

    def quad(self, corner: ArrayLike, edge_u: ArrayLike, edge_v: ArrayLike, material: int, fit: bool = False) -> None:
        """Add a parallelogram with normal edge_u x edge_v; `fit` stretches the texture over it, else uvs are metres."""
        corner, edge_u, edge_v = (np.asarray(value, np.float64) for value in (corner, edge_u, edge_v))
        size = (1.0, 1.0) if fit else (np.linalg.norm(edge_u), np.linalg.norm(edge_v))
        vertices = corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.stack([edge_u, edge_v])
        uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
        if not fit:
            uvs = uvs + [corner @ edge_u / size[0], corner @ edge_v / size[1]]  # the pattern continues on neighbours
        self.add(vertices, [[0, 1, 2], [0, 2, 3]], uvs, np.tile(cross(edge_u, edge_v), (4, 1)), material)

    def box(self, low: ArrayLike, high: ArrayLike, material: int) -> None:
        """Add a box, aligned with the local axes, between two corners."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        corners, axes, normals, faces = _box()
        vertices = np.stack([low, low + (high - low), high])[corners, [0, 1, 2]]
        self.add(vertices, faces, np.take_along_axis(vertices, axes, 1), normals, material)

    def cushion(self, low: ArrayLike, high: ArrayLike, material: int, power: float = 6.0, steps: int = 6) -> None:
        """Add a box with rounded edges: the unit ball of the `power` norm (2 = ellipsoid), scaled to two corners."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        half, centre = (high - low) / 2, (high + low) / 2
        ball, axes, normals, faces = _ball(power, steps)
        vertices = centre + ball * half
        self.add(vertices, faces, np.take_along_axis(vertices, axes, 1), normals / half, material)

    def ellipsoid(self, centre: ArrayLike, radii: ArrayLike, material: int, steps: int = 5) -> None:
        """Add an ellipsoid aligned with the local axes."""
        centre, radii = np.asarray(centre, np.float64), np.asarray(radii, np.float64)
        self.cushion(centre - radii, centre + radii, material, power=2.0, steps=steps)

    def loft(self, centres: ArrayLike, radii: ArrayLike, material: int, segments: int = 14) -> None:
        """Add a tube of elliptical rings along a path, closed at both ends.

        centres: [K,3]. radii: [K], or [K,2] for the two axes of the ellipse (local x and y if the path is vertical).
        """
        centres = np.asarray(centres, np.float64)
        tangents = _gradient(centres)
        self._rings(centres, tangents / np.linalg.norm(tangents, axis=1, keepdims=True), radii, material, segments)

    def lathe(self, profile: ArrayLike, material: int, x: float = 0.0, y: float = 0.0, segments: int = 14) -> None:
        """Add a solid of revolution about the vertical axis through (x, y); profile [K,2] of (radius, height)."""
        radii, heights = np.asarray(profile, np.float64).T
        centres = np.stack([np.full(len(radii), x), np.full(len(radii), y), heights], 1)
        self._rings(centres, np.tile([0.0, 0.0, 1.0], (len(radii), 1)), radii, material, segments)

    def _rings(self, centres: np.ndarray, tangents: np.ndarray, radii: ArrayLike, material: int, segments: int) -> None:
        radii = np.asarray(radii, np.float64)
        radii = np.stack([radii, radii], 1) if radii.ndim == 1 else radii
        helper = np.where(np.abs(tangents[:, 1:2]) < 0.95, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
        side = cross(helper, tangents)
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        depth = cross(tangents, side)
        angle, faces = _tube(len(centres), segments)
        cos, sin = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None]
        across, along = radii[:, 0, None, None] * side[:, None], radii[:, 1, None, None] * depth[:, None]
        grid = centres[:, None] + cos * across + sin * along
        normals = cross(cos * along - sin * across, _gradient(grid))
        lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(grid[:, 0], axis=0), axis=1))])
        uvs = np.stack(np.broadcast_arrays(angle[None, :] * radii.mean(1).max(), lengths[:, None]), -1)
        self.add(grid.reshape(-1, 3), faces, uvs.reshape(-1, 2), normals.reshape(-1, 3), material)
        for end, sign in ((0, -1), (-1, 1)):
            self._cap(grid[end], centres[end], sign * tangents[end], material)

    def _cap(self, ring: np.ndarray, centre: np.ndarray, normal: np.ndarray, material: int) -> None:
        vertices = np.concatenate([ring, centre[None]])
        self.add(vertices, _fan(len(ring) - 1), vertices[:, :2], np.tile(normal, (len(vertices), 1)), material)

    def rod(
        self, start: Sequence[float], end: Sequence[float], radius: float, material: int, segments: int = 8
    ) -> None:
        """Add a cylinder between two points."""
        self.loft([start, end], [radius, radius], material, segments)


def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cross products of vectors [...,3]; the result of np.cross, which takes long for a few vectors."""
    a, b, c = first[..., 0], first[..., 1], first[..., 2]
    d, e, f = second[..., 0], second[..., 1], second[..., 2]
    return np.stack([b * f - c * e, c * d - a * f, a * e - b * d], -1)


def _gradient(values: np.ndarray) -> np.ndarray:
    """Central differences along the first axis, one-sided at its ends; the result of np.gradient, only faster."""
    result = np.empty_like(values)
    result[1:-1] = (values[2:] - values[:-2]) / 2
    result[0], result[-1] = values[1] - values[0], values[-1] - values[-2]
    return result


@cache
def _box() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shape of every box: 24 vertices, 4 per side, and 12 triangles.

    Returns the vertices' coordinates [24,3], 0 = low, 1 = high as an edge from low, 2 = high; the axes of their texture
    coordinates [24,2]; normals [24,3]; faces [12,3].
    """
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    corners, axes, normals = np.empty((6, 4, 3), int), np.empty((6, 4, 2), int), np.zeros((6, 4, 3))
    for side in range(6):
        axis = side // 2
        axes[side] = ((1, 2), (0, 2), (0, 1))[axis]
        corners[side, :, axes[side, 0]], corners[side, :, axis] = square.T, (0, 2)[side % 2]
        normals[side, :, axis] = (-1, 1)[side % 2]
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * side for side in range(6)])
    return corners.reshape(24, 3), axes.reshape(24, 2), normals.reshape(24, 3), faces


@cache
def _ball(power: float, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit ball of a norm: vertices [V,3], axes of their texture coordinates [V,2], normals [V,3], faces [F,3]."""
    line = np.tan(np.linspace(-np.pi / 4, np.pi / 4, steps + 1))
    a, b = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
    cell = (np.arange(steps)[:, None] * (steps + 1) + np.arange(steps)).ravel()
    face = np.concatenate([np.stack([cell, cell + steps + 1, cell + steps + 2], 1),
                           np.stack([cell, cell + steps + 2, cell + 1], 1)])
    balls, axes, faces = [], [], []
    for side in range(6):
        axis = side // 2
        first, second = ((1, 2), (0, 2), (0, 1))[axis]
        cube = np.empty((len(a), 3))
        cube[:, axis], cube[:, first], cube[:, second] = (-1, 1)[side % 2], a, b
        balls.append(cube / np.linalg.norm(cube, ord=power, axis=1, keepdims=True))
        axes.append(np.tile([first, second], (len(a), 1)))
        faces.append(face + len(a) * side)
    ball = np.concatenate(balls)
    return ball, np.concatenate(axes), np.sign(ball) * np.abs(ball) ** (power - 1), np.concatenate(faces)


@cache
def _tube(rings: int, segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles of the vertices of each ring of a tube [segments + 1], and the faces between the rings [F,3]."""
    columns = segments + 1
    cell = (np.arange(rings - 1)[:, None] * columns + np.arange(segments)).ravel()
    faces = np.concatenate([np.stack([cell, cell + 1, cell + columns + 1], 1),
                            np.stack([cell, cell + columns + 1, cell + columns], 1)])
    return np.linspace(0, 2 * np.pi, columns), faces


@cache
def _fan(count: int) -> np.ndarray:
    """Faces [count,3] between a closed ring of `count` + 1 vertices and the vertex after them."""
    return np.array([[count + 1, i, i + 1] for i in range(count)])
