"""Triangle meshes of a rendered room: primitives with texture coordinates, normals, object and material ids.

Lengths are in metres and world z points up. Primitives are built in a local frame, which `Mesh.placed` transforms to
the world. Furniture faces +y of its local frame.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
        self._frames = [np.eye(4)]
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
        self._frames.append(self._frames[-1] @ matrix)
        yield
        self._frames.pop()

    @property
    def frame(self) -> np.ndarray:
        """Transform from the current local frame to the world, float64 [4,4]."""
        return self._frames[-1]

    def add(self, vertices: ArrayLike, faces: ArrayLike, uvs: ArrayLike, normals: ArrayLike, material: int) -> None:
        """Add indexed triangles: vertices [V,3], faces [F,3], uvs [V,2], normals [V,3], normalised here."""
        rotation, shift = self.frame[:3, :3], self.frame[:3, 3]
        world = np.asarray(vertices, np.float64) @ rotation.T + shift
        normals = np.asarray(normals, np.float64) @ np.linalg.inv(rotation)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        faces = np.asarray(faces)
        uvs = np.asarray(uvs, np.float32)
        self._parts.append((world[faces], uvs[faces], normals[faces].astype(np.float32), material, self._objects[-1]))

    def soup(self) -> Soup:
        """Return all triangles added so far, without degenerate ones."""
        counts = [len(part[0]) for part in self._parts]
        vertices, uvs, normals = (np.concatenate([part[i] for part in self._parts]) for i in range(3))
        materials, objects = (np.repeat([part[i] for part in self._parts], counts).astype(np.int32) for i in (3, 4))
        cross = np.cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0])
        keep = np.linalg.norm(cross, axis=1) > 1e-10
        return Soup(vertices[keep], uvs[keep], normals[keep], materials[keep], objects[keep], self.classes)

    def quad(self, corner: ArrayLike, edge_u: ArrayLike, edge_v: ArrayLike, material: int, fit: bool = False) -> None:
        """Add a parallelogram with normal edge_u x edge_v; `fit` stretches the texture over it, else uvs are metres."""
        corner, edge_u, edge_v = (np.asarray(value, np.float64) for value in (corner, edge_u, edge_v))
        size = (1.0, 1.0) if fit else (np.linalg.norm(edge_u), np.linalg.norm(edge_v))
        vertices = corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.stack([edge_u, edge_v])
        uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
        if not fit:
            uvs = uvs + [corner @ edge_u / size[0], corner @ edge_v / size[1]]  # the pattern continues on neighbours
        self.add(vertices, [[0, 1, 2], [0, 2, 3]], uvs, np.tile(np.cross(edge_u, edge_v), (4, 1)), material)

    def box(self, low: ArrayLike, high: ArrayLike, material: int) -> None:
        """Add a box, aligned with the local axes, between two corners."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        vertices, uvs, normals = [], [], []
        square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        for axis in range(3):
            first, second = ((1, 2), (0, 2), (0, 1))[axis]
            for side, value in ((-1, low[axis]), (1, high[axis])):
                corners = np.empty((4, 3))
                corners[:, axis] = value
                corners[:, first] = low[first] + square[:, 0] * (high - low)[first]
                corners[:, second] = low[second] + square[:, 1] * (high - low)[second]
                vertices.append(corners)
                uvs.append(corners[:, [first, second]])
                normals.append(np.tile(side * np.eye(3)[axis], (4, 1)))
        faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(6)])
        self.add(np.concatenate(vertices), faces, np.concatenate(uvs), np.concatenate(normals), material)

    def cushion(self, low: ArrayLike, high: ArrayLike, material: int, power: float = 6.0, steps: int = 6) -> None:
        """Add a box with rounded edges: the unit ball of the `power` norm (2 = ellipsoid), scaled to two corners."""
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        half, centre = (high - low) / 2, (high + low) / 2
        line = np.tan(np.linspace(-np.pi / 4, np.pi / 4, steps + 1))
        a, b = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
        cell = (np.arange(steps)[:, None] * (steps + 1) + np.arange(steps)).ravel()
        face = np.concatenate([np.stack([cell, cell + steps + 1, cell + steps + 2], 1),
                               np.stack([cell, cell + steps + 2, cell + 1], 1)])
        vertices, uvs, normals, faces = [], [], [], []
        for axis in range(3):
            first, second = ((1, 2), (0, 2), (0, 1))[axis]
            for side in (-1, 1):
                cube = np.empty((len(a), 3))
                cube[:, axis], cube[:, first], cube[:, second] = side, a, b
                ball = cube / np.linalg.norm(cube, ord=power, axis=1, keepdims=True)
                vertices.append(centre + ball * half)
                uvs.append(vertices[-1][:, [first, second]])
                normals.append(np.sign(ball) * np.abs(ball) ** (power - 1) / half)
                faces.append(face + len(a) * (2 * axis + (side > 0)))
        self.add(
            np.concatenate(vertices), np.concatenate(faces), np.concatenate(uvs), np.concatenate(normals), material
        )

    def ellipsoid(self, centre: ArrayLike, radii: ArrayLike, material: int, steps: int = 5) -> None:
        """Add an ellipsoid aligned with the local axes."""
        centre, radii = np.asarray(centre, np.float64), np.asarray(radii, np.float64)
        self.cushion(centre - radii, centre + radii, material, power=2.0, steps=steps)

    def loft(self, centres: ArrayLike, radii: ArrayLike, material: int, segments: int = 14) -> None:
        """Add a tube of elliptical rings along a path, closed at both ends.

        centres: [K,3]. radii: [K], or [K,2] for the two axes of the ellipse (local x and y if the path is vertical).
        """
        centres = np.asarray(centres, np.float64)
        tangents = np.gradient(centres, axis=0)
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
        side = np.cross(helper, tangents)
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        depth = np.cross(tangents, side)
        angle = np.linspace(0, 2 * np.pi, segments + 1)
        cos, sin = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None]
        across, along = radii[:, 0, None, None] * side[:, None], radii[:, 1, None, None] * depth[:, None]
        grid = centres[:, None] + cos * across + sin * along
        normals = np.cross(cos * along - sin * across, np.gradient(grid, axis=0))
        lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(grid[:, 0], axis=0), axis=1))])
        uvs = np.stack(np.broadcast_arrays(angle[None, :] * radii.mean(1).max(), lengths[:, None]), -1)
        columns = segments + 1
        cell = (np.arange(len(grid) - 1)[:, None] * columns + np.arange(segments)).ravel()
        faces = np.concatenate([np.stack([cell, cell + 1, cell + columns + 1], 1),
                                np.stack([cell, cell + columns + 1, cell + columns], 1)])
        self.add(grid.reshape(-1, 3), faces, uvs.reshape(-1, 2), normals.reshape(-1, 3), material)
        for end, sign in ((0, -1), (-1, 1)):
            self._cap(grid[end], centres[end], sign * tangents[end], material)

    def _cap(self, ring: np.ndarray, centre: np.ndarray, normal: np.ndarray, material: int) -> None:
        count = len(ring) - 1
        faces = [[count + 1, i, i + 1] for i in range(count)]
        vertices = np.concatenate([ring, centre[None]])
        self.add(vertices, faces, vertices[:, :2], np.tile(normal, (len(vertices), 1)), material)

    def rod(
        self, start: Sequence[float], end: Sequence[float], radius: float, material: int, segments: int = 8
    ) -> None:
        """Add a cylinder between two points."""
        self.loft([start, end], [radius, radius], material, segments)
