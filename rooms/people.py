"""People in rendered rooms: standing, walking or sitting bodies made of tapered tubes and ellipsoids."""

from collections.abc import Sequence

import numpy as np

from rooms.geometry import Mesh
from rooms.kit import Kit

TROUSERS = [(0.15, 0.18, 0.28), (0.2, 0.2, 0.2), (0.45, 0.4, 0.32), (0.25, 0.32, 0.45)]

Joints = list[tuple[float, float, float]]  # of a limb, starting at the trunk


def person(kit: Kit, seat: float | None = None) -> None:
    """Add a person facing +y: standing or walking at the origin, or sitting there on a seat of height `seat`."""
    rng = kit.rng
    size = rng.uniform(0.9, 1.08)
    transform = np.diag([size * rng.uniform(0.92, 1.12), size, size, 1.0])
    with kit.mesh.object("person"):
        if seat is None:
            with kit.mesh.placed(transform):
                _body(kit, 0.88, *_standing_legs(rng), _hanging_arms(rng))
        else:
            transform[2, 3] = seat + 0.10 - 0.88 * size
            with kit.mesh.placed(transform):
                _body(kit, 0.88, *_sitting_legs(rng, (seat + 0.10) / size), _resting_arms(rng))


def _standing_legs(rng: np.random.Generator) -> tuple[list[Joints], float]:
    stride = rng.choice([0.0, rng.uniform(0.08, 0.25)])
    paths = []
    for side in (-1, 1):
        knee, ankle = 0.03 + side * stride * 0.6, side * stride - 0.03
        paths.append([(side * 0.09, 0, 0.9), (side * 0.1, knee, 0.48), (side * 0.1, ankle, 0.07)])
    return paths, 0.0


def _sitting_legs(rng: np.random.Generator, hip: float) -> tuple[list[Joints], float]:
    spread, knee = rng.uniform(0.1, 0.16), 0.46
    floor = 0.88 - hip
    paths = []
    for side in (-1, 1):
        ankle = knee + rng.uniform(-0.1, 0.08)
        paths.append([(side * 0.09, 0, 0.88), (side * spread, knee, 0.88), (side * spread, ankle, floor + 0.07)])
    return paths, floor


def _hanging_arms(rng: np.random.Generator) -> list[Joints]:
    if rng.random() < 0.35:
        return [[(side * 0.168, 0, 1.385), (side * 0.25, -0.03, 1.14), (side * 0.1, 0.25, 1.2)] for side in (-1, 1)]
    swing = rng.uniform(-0.15, 0.2, 2)
    return [[(side * 0.168, 0, 1.385), (side * 0.26, swing[i] / 3 - 0.02, 1.14), (side * 0.25, swing[i] + 0.06, 0.9)]
            for i, side in enumerate((-1, 1))]


def _resting_arms(rng: np.random.Generator) -> list[Joints]:
    reach = rng.uniform(0.25, 0.4)
    return [[(side * 0.168, 0, 1.385), (side * 0.26, 0.04, 1.15), (side * 0.13, reach, 1.03)] for side in (-1, 1)]


def _body(kit: Kit, hip: float, legs: list[Joints], floor: float, arms: list[Joints]) -> None:
    mesh, rng = kit.mesh, kit.rng
    shirt, trousers = kit.pick(kit.cloths + kit.brights), kit.palette.cloth(kit.pick(TROUSERS), infrared=0.25)
    skin = kit.pick(kit.skins)
    heights = np.array([hip - 0.09, hip - 0.03, hip + 0.05, 1.02, 1.15, 1.30, 1.38, 1.43, 1.46, 1.49])
    widths = np.array([(0.09, 0.075), (0.158, 0.118), (0.165, 0.122), (0.145, 0.11), (0.155, 0.115), (0.18, 0.125),
                       (0.178, 0.11), (0.14, 0.09), (0.085, 0.07), (0.055, 0.055)])
    spine = np.stack([np.zeros(10), -0.02 * np.sin((heights - hip) * 3), heights], 1)
    mesh.loft(spine[2:], widths[2:], shirt, 20)
    mesh.loft(spine[:4], widths[:4] * 1.012, trousers, 20)
    for path in legs:
        _limb(mesh, path, (0.083, 0.06, 0.045), trousers)
        mesh.ellipsoid(path[0], (0.083, 0.083, 0.09), trousers)
        x, y, _ = path[-1]
        mesh.cushion((x - 0.048, y - 0.08, floor), (x + 0.048, y + 0.19, floor + 0.09), kit.dark, power=3)
    short = rng.random() < 0.5
    for path in arms:
        mesh.ellipsoid(path[0], (0.054, 0.056, 0.052), shirt)
        _limb(mesh, path, (0.052, 0.044, 0.032), shirt, skin if short else shirt)
        mesh.ellipsoid(np.asarray(path[-1]) + 0.05 * _direction(path[-2], path[-1]), (0.04, 0.045, 0.06), skin)
    _head(kit, skin)


def _limb(mesh: Mesh, path: Joints, radii: tuple[float, float, float], upper: int, lower: int | None = None) -> None:
    start, joint, end = (np.asarray(point, float) for point in path)
    thick, middle, thin = radii
    mesh.loft([start, start + 0.5 * (joint - start), joint], [thick, (thick + middle) / 2 * 1.04, middle], upper)
    mesh.ellipsoid(joint, [middle * 1.02] * 3, upper)
    lower = upper if lower is None else lower
    mesh.loft([joint, joint + 0.3 * (end - joint), end], [middle, middle * 1.02, thin], lower)


def _head(kit: Kit, skin: int) -> None:
    mesh, rng, hair = kit.mesh, kit.rng, kit.pick(kit.hairs)
    mesh.loft([(0, -0.015, 1.42), (0, 0, 1.56)], [0.052, 0.05], skin)
    mesh.ellipsoid((0, 0.012, 1.625), (0.075, 0.092, 0.112), skin, 8)
    mesh.ellipsoid((0, 0.008, 1.565), (0.052, 0.07, 0.06), skin)
    mesh.ellipsoid((0, -0.018, 1.66), (0.084, 0.094, 0.095), hair, 8)
    if rng.random() < 0.45:
        mesh.cushion((-0.085, -0.115, 1.42), (0.085, -0.01, 1.68), hair, power=3)
    mesh.ellipsoid((0, 0.108, 1.615), (0.012, 0.018, 0.02), skin, 3)
    mesh.ellipsoid((0, 0.093, 1.572), (0.022, 0.009, 0.006), kit.brights[8], 3)
    for side in (-1, 1):
        mesh.ellipsoid((side * 0.032, 0.093, 1.64), (0.012, 0.008, 0.007), kit.dark, 3)
        mesh.ellipsoid((side * 0.076, 0.005, 1.62), (0.012, 0.022, 0.03), skin, 3)


def _direction(start: Sequence[float], end: Sequence[float]) -> np.ndarray:
    step = np.asarray(end, float) - np.asarray(start, float)
    return step / np.linalg.norm(step)
