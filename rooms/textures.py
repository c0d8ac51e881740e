"""Procedural textures of rendered rooms, and the material table used by the renderer.

Textures are sRGB, float32 [S,S,3] in 0..1, where S is a power of two. Textures that repeat are seamless.
"""

from dataclasses import dataclass
from functools import cache
from typing import TypedDict, Unpack

import cv2
import numpy as np
from numpy.typing import ArrayLike

from rooms import kernels

OPAQUE, GLASS, MIRROR = 0, 1, 2
SIZE = 256
# Standard deviations of the log tint of all channels together and of each; see Palette.recolour().
RECOLOUR_BRIGHTNESS, RECOLOUR_HUE = 0.35, 0.15


def to_linear(srgb: ArrayLike) -> np.ndarray:
    """Convert sRGB values in 0..1 to linear light (gamma 2.2)."""
    return np.asarray(srgb, np.float32) ** np.float32(2.2)


@dataclass
class Material:
    """A surface material.

    Attributes:
        texture: texture id.
        size: metres that one texture tile covers; (1, 1) for textures fitted to a quad.
        tint: linear RGB factor.
        gloss: strength of the reflection, 0..1.
        emission: emitted light as a multiple of the texture's colour.
        kind: OPAQUE, GLASS or MIRROR.
        infrared: albedo at the depth sensor's wavelength, 0..1, which differs from the visible one for black cloth and
            plastic; negative: derived from the colour.
    """

    texture: int
    size: tuple[float, float]
    tint: np.ndarray
    gloss: float = 0.0
    emission: float = 0.0
    kind: int = OPAQUE
    infrared: float = -1.0


class _Options(TypedDict, total=False):
    emission: float
    kind: int
    infrared: float


class Palette:
    """The materials of one scene; each method adds one and returns its id."""

    def __init__(self, rng: np.random.Generator):
        self.textures: list[np.ndarray] = []
        self.materials: list[Material] = []
        self._smooth = self._texture(0.94 + 0.02 * fractal_noise(rng, 64, 1.0)[..., None] * np.ones(3))
        self._fabric = self._texture(_weave(rng))

    def solid(self, colour: ArrayLike, gloss: float = 0.0, **more: Unpack[_Options]) -> int:
        """Add a painted, moulded or metal surface with an sRGB colour."""
        return self._add(Material(self._smooth, (0.4, 0.4), to_linear(colour), gloss, **more))

    def cloth(self, colour: ArrayLike, **more: Unpack[_Options]) -> int:
        """Add a woven surface with an sRGB colour."""
        return self._add(Material(self._fabric, (0.16, 0.16), to_linear(colour), **more))

    def image(
        self, texture: np.ndarray, size: tuple[float, float] = (1.0, 1.0), gloss: float = 0.0, **more: Unpack[_Options]
    ) -> int:
        """Add a surface with its own texture."""
        return self._add(Material(self._texture(texture), size, np.ones(3, np.float32), gloss, **more))

    def glass(self, tint: ArrayLike = (0.93, 0.96, 0.95)) -> int:
        """Add a transparent pane."""
        return self.solid(tint, gloss=1.0, kind=GLASS)

    def mirror(self) -> int:
        """Add a mirror with a slight green tint."""
        return self.solid((0.93, 0.95, 0.94), gloss=1.0, kind=MIRROR)

    def light(self, colour: ArrayLike, strength: float) -> int:
        """Add a light-emitting surface."""
        return self.solid(colour, emission=strength)

    def recolour(self, rng: np.random.Generator) -> None:
        """Change the brightness, hue and gloss of every opaque surface that emits no light."""
        for material in self.materials:
            if material.kind == OPAQUE and not material.emission:
                brightness, hue = rng.normal(0, RECOLOUR_BRIGHTNESS), rng.normal(0, RECOLOUR_HUE, 3)
                material.tint = np.clip(material.tint * np.exp(brightness + hue), 0.004, 1).astype(np.float32)
                material.gloss = float(np.clip(material.gloss * rng.uniform(0.5, 1.5), 0, 1))

    def _texture(self, texture: np.ndarray) -> int:
        texture = np.array(texture, np.float32)
        self.textures.append(np.clip(texture, 0, 1, out=texture))
        return len(self.textures) - 1

    def _add(self, material: Material) -> int:
        self.materials.append(material)
        return len(self.materials) - 1


class MaterialTable:
    """A palette as flat arrays for vectorised lookups, with a mipmap of every texture.

    Attributes:
        colour: mean linear albedo of each material, float32 [M,3].
        infrared: albedo for the depth sensor [M].
        gloss: [M], see Material.
        emission: [M], see Material.
        kind: [M], see Material.
    """

    def __init__(self, palette: Palette):
        materials = palette.materials
        starts, levels, texels, means = [], [], [], []
        cursor = 0
        for texture in palette.textures:
            pyramid = [to_linear(texture)]
            means.append(kernels.mean_colour(pyramid[0]))
            while pyramid[-1].shape[0] > 2:
                pyramid.append(cv2.resize(pyramid[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
            offsets = np.cumsum([cursor] + [level.shape[0] ** 2 for level in pyramid])
            starts.append(np.pad(offsets[:-1], (0, 12 - len(pyramid)), mode="edge"))
            levels.append(len(pyramid))
            cursor = offsets[-1]
            texels += [level.reshape(-1, 3) for level in pyramid]
        self._texels = np.concatenate(texels)
        self._starts = np.array(starts, np.int64)
        self._levels = np.array(levels, np.int64)
        self._sizes = np.array([texture.shape[0] for texture in palette.textures], np.int64)
        self._texture = np.array([material.texture for material in materials])
        self._extent = np.array([material.size for material in materials], np.float32)
        self._tint = np.stack([material.tint for material in materials]).astype(np.float32)
        self.gloss = np.array([material.gloss for material in materials], np.float32)
        self.emission = np.array([material.emission for material in materials], np.float32)
        self.kind = np.array([material.kind for material in materials], np.int8)
        self.colour = (np.array(means)[self._texture] * self._tint).astype(np.float32)
        given = np.array([material.infrared for material in materials], np.float32)
        # most paints, woods and fabrics reflect more near-infrared than visible light
        self.infrared = np.where(given >= 0, given, self.colour.mean(1) ** 0.7)

    def lookup(self, material: np.ndarray, uv: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Linear albedo, float32 [N,3], of material [N] at uv [N,2]; footprint [N] is a pixel's width in uv units."""
        return kernels.look_up(
            material, uv, footprint, self._texture, self._extent, self._tint, self._texels, self._starts, self._levels,
            self._sizes,
        )  # fmt: skip


def fractal_noise(
    rng: np.random.Generator, size: int = SIZE, slope: float = 1.5, stretch: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Seamless noise, float32 [size,size], mean 0, standard deviation 1, amplitude proportional to frequency^-slope.

    stretch: vertical and horizontal scale of the frequencies; a larger value gives finer structure along that axis.
    """
    amplitude = _amplitude(size, slope, stretch)
    noise = np.fft.irfft2(amplitude * kernels.unit_phases(rng.random(amplitude.shape)), s=(size, size))
    return (noise / noise.std()).astype(np.float32)


@cache
def _amplitude(size: int, slope: float, stretch: tuple[float, float]) -> np.ndarray:
    fy, fx = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None] * size
    amplitude = (1 + (fy / stretch[0]) ** 2 + (fx / stretch[1]) ** 2) ** (-slope / 2)
    amplitude[0, 0] = 0
    return amplitude


def wood(rng: np.random.Generator, colour: ArrayLike, contrast: float = 0.16) -> np.ndarray:
    """Wood with vertical grain."""
    rings = fractal_noise(rng, SIZE, 1.6, (0.15, 3.0))
    grain = np.sin(3.0 * rings) * 0.6 + 0.3 * fractal_noise(rng, SIZE, 0.6, (0.05, 6.0))
    return np.asarray(colour) * (1 + contrast * grain[..., None] * [0.8, 1.0, 1.2])


def planks(rng: np.random.Generator, colour: ArrayLike, rows: int = 6) -> np.ndarray:
    """Horizontal floor boards, `rows` per texture."""
    size = 2 * SIZE
    grain = fractal_noise(rng, size, 1.2, (5.0, 0.12))
    image = np.ones((size, size, 3)) * np.asarray(colour)
    edges = np.linspace(0, size, rows + 1).astype(int)
    for top, bottom in zip(edges[:-1], edges[1:], strict=True):
        joint = rng.integers(size)
        shift = rng.integers(size)
        row = np.roll(grain, shift, axis=0)[top:bottom]
        half = (np.arange(size) + joint) % size < size // 2
        tone = np.where(half, rng.uniform(0.8, 1.15), rng.uniform(0.8, 1.15))[None, :, None]
        image[top:bottom] *= tone * (1 + 0.09 * row[..., None])
        image[top:top + 2] *= 0.55
        for place in (-joint, size // 2 - joint):
            image[top:bottom, place % size] *= 0.55
    return image


def tiles(
    rng: np.random.Generator, colour: ArrayLike, grout: ArrayLike, count: int = 4, marble: float = 0.06
) -> np.ndarray:
    """Square tiles with grout lines, `count` per side, each with its own shade."""
    size = 2 * SIZE
    cell = size // count
    tone = np.kron(rng.uniform(0.93, 1.05, (count, count)), np.ones((cell, cell)))
    veins = fractal_noise(rng, size, 1.7)
    image = np.asarray(colour) * (tone * (1 + marble * veins))[..., None]
    line = (np.arange(size) % cell) < 4
    image[line[:, None] | line[None]] = grout
    return image


def chessboard(rng: np.random.Generator, light: ArrayLike, dark: ArrayLike) -> np.ndarray:
    """Tiles of alternating colours."""
    image = tiles(rng, light, np.asarray(dark) * 0.8, 4)
    odd = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((SIZE // 2, SIZE // 2)))[..., None] > 0
    return np.where(odd, image * (np.asarray(dark) / np.asarray(light)), image)


def carpet(rng: np.random.Generator, colour: ArrayLike, second: ArrayLike | None = None) -> np.ndarray:
    """Carpet pile, plain or with a pattern in a second colour."""
    pile = 0.10 * fractal_noise(rng, SIZE, 0.1) + 0.05 * fractal_noise(rng, SIZE, 1.5)
    image = np.ones((SIZE, SIZE, 3)) * np.asarray(colour)
    if second is not None:
        y, x = np.indices((SIZE, SIZE)) * (2 * np.pi / SIZE)
        k = rng.integers(1, 4)
        image[np.sin(k * x) * np.sin(k * y) + 0.5 * np.sin(2 * k * (x + y)) > 0.35] = second
    return image * (1 + pile[..., None])


def plaster(rng: np.random.Generator, colour: ArrayLike) -> np.ndarray:
    """Painted wall with fine roller texture and faint stains."""
    grain, stains = fractal_noise(rng, SIZE, 0.3), fractal_noise(rng, SIZE, 2.0)
    return np.asarray(colour) * (1 + 0.018 * grain + 0.022 * stains)[..., None]


def wallpaper(rng: np.random.Generator, colour: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Two-coloured stripes, dots, waves or a lattice."""
    y, x = np.indices((SIZE, SIZE)) / SIZE
    style = rng.integers(4)
    k = int(rng.integers(2, 5))
    if style == 0:
        mask = (x * k * 2) % 1 < rng.uniform(0.2, 0.6)
    elif style == 1:
        mask = ((x * k + 0.5 * np.floor(y * 2 * k)) % 1 - 0.5) ** 2 + ((y * 2 * k) % 1 - 0.5) ** 2 / 4 < 0.03
    elif style == 2:
        wave = np.sin(2 * np.pi * k * x + 1.6 * np.sin(2 * np.pi * k * y)) * np.cos(2 * np.pi * k * y)
        mask = np.abs(wave) < 0.3
    else:
        mask = np.minimum((x * k + y * k) % 1, (x * k - y * k) % 1) < 0.12
    mask = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None]
    return (np.asarray(colour) * (1 - mask) + np.asarray(second) * mask) * (1 + 0.02 * fractal_noise(rng)[..., None])


def bricks(rng: np.random.Generator, colour: ArrayLike, mortar: ArrayLike = (0.75, 0.73, 0.7)) -> np.ndarray:
    """Bricks in running bond, 8 courses of 3."""
    y, x = np.indices((SIZE, SIZE))
    course = y // 32
    column = (x + 43 * (course % 2)) % SIZE // 86
    tone = rng.uniform(0.75, 1.15, (8, 3))[course, np.minimum(column, 2)]
    image = np.asarray(colour) * (tone * (1 + 0.08 * fractal_noise(rng, SIZE, 0.8)))[..., None]
    joint = (y % 32 < 4) | ((x + 43 * (course % 2)) % SIZE % 86 < 4)
    image[joint] = mortar
    return image


def ceiling_tiles(rng: np.random.Generator) -> np.ndarray:
    """One square panel of a suspended ceiling, with specks and a metal rail."""
    image = np.ones((SIZE, SIZE, 3)) * rng.uniform(0.82, 0.92)
    image[rng.random((SIZE, SIZE)) < 0.04] *= 0.85
    image[:5], image[:, :5] = 0.72, 0.72
    return image


def striped_cloth(rng: np.random.Generator, colour: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Striped, plaid or printed fabric."""
    y, x = np.indices((SIZE, SIZE)) / SIZE
    style = rng.integers(3)
    k = int(rng.integers(3, 8))
    mask = ((x * k) % 1 < 0.4).astype(float)
    if style == 1:
        mask = 0.5 * mask + 0.5 * ((y * k) % 1 < 0.4)
    elif style == 2:
        mask = (np.sin(2 * np.pi * k * x) * np.sin(2 * np.pi * k * y) > 0.3).astype(float)
    weave = 1 + 0.06 * fractal_noise(rng, SIZE, 0.2)
    return (np.asarray(colour) * (1 - mask[..., None]) + np.asarray(second) * mask[..., None]) * weave[..., None]


def rug(rng: np.random.Generator, colour: ArrayLike, second: ArrayLike, third: ArrayLike) -> np.ndarray:
    """Rug with a border and a medallion; to be fitted to a quad."""
    y, x = np.abs(np.indices((SIZE, SIZE)) / (SIZE / 2) - 1)
    image = np.ones((SIZE, SIZE, 3)) * np.asarray(colour)
    petals = np.cos(rng.integers(3, 9) * np.arctan2(y, x))
    image[np.hypot(x, y) < 0.45 + 0.12 * petals] = third
    image[np.hypot(x, y) < 0.25 + 0.08 * petals] = second
    image[((x * 16).astype(int) + (y * 16).astype(int)) % 5 == 0] *= 0.8
    edge = np.maximum(x, y)
    image[(edge > 0.78) & (edge < 0.92)] = second
    image[edge > 0.96] = third
    return image * (1 + 0.1 * fractal_noise(rng, SIZE, 0.2)[..., None])


def painting(rng: np.random.Generator) -> np.ndarray:
    """Picture for a wall: a landscape, or overlapping ellipses or rectangles."""
    y, x = np.indices((SIZE, SIZE)) / SIZE
    style = rng.integers(3)
    if style == 0:
        return landscape(rng, horizon=rng.uniform(0.35, 0.65), town=False)
    image = np.ones((SIZE, SIZE, 3)) * rng.uniform(0.5, 0.95, 3)
    for _ in range(rng.integers(4, 12)):
        cx, cy, rx, ry = rng.uniform(0, 1, 2).tolist() + rng.uniform(0.05, 0.35, 2).tolist()
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1 if style == 1 else (
            (np.abs(x - cx) < rx) & (np.abs(y - cy) < ry))
        image[inside] = rng.uniform(0.05, 0.95, 3)
    return image * (1 + 0.05 * fractal_noise(rng)[..., None])


def landscape(rng: np.random.Generator, horizon: float = 0.5, town: bool = True, size: int = SIZE) -> np.ndarray:
    """View from a window, row 0 at the bottom: ground, hills, buildings, trees, sky with clouds."""
    y = np.linspace(0, 1, size)[:, None, None]
    x = np.linspace(0, 1, size)
    haze, zenith = np.array([0.85, 0.9, 0.95]), np.array([0.35, 0.55, 0.85]) + rng.uniform(-0.1, 0.1)
    sky = haze + (zenith - haze) * np.clip((y - horizon) / (1 - horizon), 0, 1)
    clouds = np.clip(fractal_noise(rng, size, 1.8, (1.6, 0.8)), 0, 1.2)[..., None] * 0.8
    image = sky * (1 - clouds) + 0.97 * clouds
    for depth in range(3):
        ridge = horizon + (0.10 - 0.05 * depth) * (1 + np.sin(x * rng.uniform(4, 12) + rng.uniform(0, 6)))
        hill = np.array([0.30, 0.42, 0.30]) * (1.25 - 0.25 * depth) + 0.12 * (2 - depth) * np.array([0.5, 0.6, 0.9])
        top = int(np.searchsorted(y.ravel(), ridge.max()))
        image[:top][y[:top, :, 0] < ridge] = hill
    if town:
        _buildings(rng, image, horizon)
    ground = rng.choice([[0.34, 0.45, 0.22], [0.5, 0.5, 0.5], [0.55, 0.5, 0.4]])
    low = int(np.searchsorted(y.ravel(), horizon))
    image[:low] = ground * (0.75 + 0.5 * y[:low] / horizon)
    _trees(rng, image, horizon)
    image *= 1 + 0.06 * fractal_noise(rng, size, 0.8)[..., None]
    return image


def _buildings(rng: np.random.Generator, image: np.ndarray, horizon: float) -> None:
    size = len(image)
    for _ in range(rng.integers(3, 8)):
        left, width = int(rng.integers(size)), int(rng.integers(size // 12, size // 4))
        top = int(size * min(0.97, horizon + rng.uniform(0.1, 0.45)))
        bottom, right = int(size * horizon), min(left + width, size)
        front = rng.choice([[0.7, 0.66, 0.6], [0.6, 0.42, 0.35], [0.8, 0.8, 0.78]])
        image[bottom:top, left:right] = front * rng.uniform(0.8, 1.1)
        step = int(rng.integers(10, 18))
        for row in range(bottom + 4, top - step // 2, step):
            for column in range(left + 4, right - step // 2, step):
                image[row:row + step // 2, column:column + step // 2] = rng.choice([0.25, 0.35, 0.55])


def _trees(rng: np.random.Generator, image: np.ndarray, horizon: float) -> None:
    size = len(image)
    canvas = np.ascontiguousarray(image, np.float32)
    for _ in range(rng.integers(2, 9)):
        x, base = int(rng.integers(size)), int(size * (horizon - rng.uniform(0, 0.12)))
        height = int(size * rng.uniform(0.08, 0.3))
        green = np.array([0.2, 0.38, 0.16]) * rng.uniform(0.7, 1.3)
        cv2.line(canvas, (x, base), (x, base + height), (0.3, 0.22, 0.15), max(2, size // 90))
        for _ in range(25):
            where = (int(x + rng.normal(0, height / 5)), int(base + height + rng.normal(0, height / 5)))
            radius, shade = max(2, int(height * rng.uniform(0.06, 0.18))), green * rng.uniform(0.7, 1.25)
            cv2.circle(canvas, where, radius, shade.tolist(), -1)
    image[:] = canvas


def screen(rng: np.random.Generator) -> np.ndarray:
    """Computer screen with windows of text, row 0 at the bottom."""
    image = np.ones((SIZE, SIZE, 3), np.float32) * rng.uniform(0.1, 0.6, 3)
    for _ in range(rng.integers(1, 4)):
        left, low = rng.integers(0, SIZE // 2, 2)
        width, height = rng.integers(SIZE // 3, SIZE // 2 + 20, 2)
        image[low:low + height, left:left + width] = rng.choice([0.95, 0.15])
        image[low + height - 10:low + height, left:left + width] = rng.uniform(0.2, 0.8, 3)
        for row in range(low + 8, min(low + height - 18, SIZE), 8):
            image[row:row + 3, left + 8:left + 8 + int(width * rng.uniform(0.2, 0.85))] = rng.choice([0.4, 0.6])
    return image


def scribbles(rng: np.random.Generator, ground: float = 0.95) -> np.ndarray:
    """Whiteboard or sheet of paper with lines of writing, row 0 at the bottom."""
    image = np.ones((SIZE, SIZE, 3), np.float32) * ground
    ink = [(0.1, 0.15, 0.5), (0.6, 0.1, 0.1), (0.1, 0.1, 0.1)]
    for row in range(SIZE - 30, 20, -22):
        if rng.random() < 0.3:
            continue
        count = int(rng.integers(8, 40))
        x = 20 + np.arange(count) * 5
        y = row + rng.integers(-6, 7, count)
        cv2.polylines(image, [np.stack([x, y], 1).astype(np.int32)], False, ink[rng.integers(3)], 2)
    return image


def _weave(rng: np.random.Generator) -> np.ndarray:
    y, x = np.indices((64, 64))
    threads = 0.85 + 0.05 * ((x // 2 + y // 2) % 2) + 0.04 * fractal_noise(rng, 64, 0.3)
    return threads[..., None] * np.ones(3)
