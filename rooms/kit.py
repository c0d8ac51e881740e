"""Materials and helpers shared by the builders of a scene's furniture, people and objects."""

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from rooms import textures
from rooms.geometry import Mesh
from rooms.textures import Palette

Item = TypeVar("Item")

WOODS = [(0.55, 0.36, 0.2), (0.72, 0.53, 0.33), (0.38, 0.22, 0.13), (0.82, 0.68, 0.48), (0.46, 0.28, 0.16)]
CLOTHS = [(0.55, 0.2, 0.2), (0.25, 0.35, 0.5), (0.6, 0.55, 0.45), (0.3, 0.4, 0.3), (0.45, 0.42, 0.4),
          (0.75, 0.7, 0.62), (0.2, 0.22, 0.27), (0.65, 0.45, 0.25), (0.35, 0.25, 0.4), (0.12, 0.12, 0.13)]
BRIGHTS = [(0.66, 0.22, 0.18), (0.2, 0.36, 0.56), (0.8, 0.68, 0.34), (0.26, 0.44, 0.3), (0.85, 0.84, 0.8),
           (0.76, 0.5, 0.3), (0.33, 0.3, 0.44), (0.12, 0.12, 0.13), (0.52, 0.24, 0.32), (0.42, 0.58, 0.6)]
SKINS = [(0.91, 0.72, 0.6), (0.82, 0.6, 0.46), (0.65, 0.44, 0.31), (0.42, 0.27, 0.19), (0.95, 0.79, 0.69)]
HAIRS = [(0.1, 0.08, 0.07), (0.25, 0.16, 0.1), (0.45, 0.3, 0.16), (0.7, 0.55, 0.32), (0.55, 0.53, 0.5)]

CLUTTER, N_PRINTS = (0.5, 6.0), 4  # see Kit.add_variety()


class Kit:
    """The mesh, random generator and material ids of a scene, used by all builders."""

    def __init__(self, mesh: Mesh, palette: Palette, rng: np.random.Generator):
        self.mesh, self.palette, self.rng = mesh, palette, rng
        tones = rng.permutation(len(WOODS))[:2]
        self.woods = [palette.image(textures.wood(rng, WOODS[tone]), (0.5, 0.5), gloss=0.25) for tone in tones]
        self.woods.append(palette.solid(rng.choice([(0.9, 0.9, 0.88), (0.82, 0.8, 0.74), (0.35, 0.36, 0.38)]), 0.2))
        self.metal = palette.solid((0.62, 0.63, 0.65), gloss=0.6)
        self.dark = palette.solid((0.1, 0.1, 0.11), gloss=0.3, infrared=0.05)
        self.white = palette.solid((0.92, 0.92, 0.9), gloss=0.2)
        self.paper = palette.solid((0.93, 0.92, 0.88))
        self.leaf = palette.solid(rng.uniform((0.13, 0.3, 0.1), (0.3, 0.48, 0.18)), 0.15)
        self.shade = palette.light((1.0, 0.88, 0.7), 1.6)
        self.mirror_pane = palette.mirror()
        self.brights = [palette.solid(colour, 0.1) for colour in BRIGHTS]
        colours = [CLOTHS[i] for i in rng.permutation(len(CLOTHS))]
        self.cloths = [palette.cloth(colour, infrared=float(rng.uniform(0.02, 0.6))) for colour in colours[:3]]
        pattern = textures.striped_cloth(rng, colours[3], rng.choice(CLOTHS))
        self.cloths.append(palette.image(pattern, (0.4, 0.4)))
        self.skins = [palette.solid(colour) for colour in SKINS]
        self.hairs = [palette.cloth(colour, infrared=0.03) for colour in HAIRS]
        self.light_wood = self.woods[0]
        self.clutter = 1.0  # factor on the number of small objects on furniture

    def add_variety(self) -> None:
        """Draw the amount of clutter, from bare to crammed, and add printed materials to its colours."""
        self.clutter = float(np.exp(self.rng.uniform(*np.log(CLUTTER))))
        self.brights += [self.palette.image(textures.painting(self.rng), (0.15, 0.15)) for _ in range(N_PRINTS)]

    def pick(self, items: list[Item]) -> Item:
        """Draw one of `items` with the scene's generator."""
        return items[self.rng.integers(len(items))]

    def wood(self) -> int:
        """Draw the material of a wooden or lacquered piece; most pieces in a room match."""
        return self.woods[self.rng.choice(3, p=[0.6, 0.25, 0.15])]

    def box(self, low: ArrayLike, high: ArrayLike, material: int) -> None:
        """Add a box, aligned with the local axes, between two corners."""
        self.mesh.box(low, high, material)

    def legs(
        self, x0: float, x1: float, y0: float, y1: float,
        height: float, radius: float, material: int, square: bool = True,
    ) -> None:  # fmt: skip
        """Add four legs in the corners of a rectangle, either square or round and tapered."""
        for x in (x0 + radius, x1 - radius):
            for y in (y0 + radius, y1 - radius):
                if square:
                    self.box((x - radius, y - radius, 0), (x + radius, y + radius, height), material)
                else:
                    self.mesh.loft([(x, y, 0), (x, y, height)], [radius * 0.6, radius], material, 8)


def lean(angle: float, height: float = 0.0) -> np.ndarray:
    """Transform [4,4] that tilts back by `angle` radians about the x axis at z = height."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0, 0], [0, cos, -sin, sin * height], [0, sin, cos, height - cos * height], [0, 0, 0, 1]])
