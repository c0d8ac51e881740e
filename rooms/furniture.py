"""Furniture of rendered rooms.

Each piece is built in a local frame: it stands on z = 0, is centred at x = 0, has its back at y = 0 and faces +y.
Builders take a Kit and the width, depth and height in metres. Builders of seating return its seats as (x, y, height).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rooms import textures
from rooms.geometry import placement
from rooms.kit import Kit, lean
from rooms.things import (
    bag,
    cardboard_box,
    clutter,
    floor_lamp,
    garbage_bin,
    monitor,
    potted_plant,
    screen_on_foot,
    table_lamp,
    wall_mirror,
)

Seats = list[tuple[float, float, float]]


@dataclass
class Piece:
    """A type of furniture: its builder and its ranges of width, depth and height in metres."""

    build: Callable[[Kit, float, float, float], Seats | None]
    width: tuple[float, float]
    depth: tuple[float, float]
    height: tuple[float, float]

    def draw_size(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Draw (width, depth, height) uniformly from the ranges."""
        w, d, h = (float(rng.uniform(*limits)) for limits in (self.width, self.depth, self.height))
        return w, d, h


# ---- seats -----------------------------------------------------------------------------------------------------

def sofa(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Upholstered sofa with seat and back cushions, or an armchair if it is narrow."""
    mesh, rng = kit.mesh, kit.rng
    cloth, arm = kit.pick(kit.cloths), rng.uniform(0.12, 0.22)
    seat, arm_height = rng.uniform(0.40, 0.46), rng.uniform(0.55, 0.66)
    count = max(1, round((w - 2 * arm) / 0.65))
    step = (w - 2 * arm) / count
    with mesh.object("sofa" if count > 1 else "chair"):
        kit.legs(-w / 2 + 0.04, w / 2 - 0.04, 0.04, d - 0.04, 0.12, 0.03, kit.dark)
        mesh.cushion((-w / 2, 0, 0.1), (w / 2, d - 0.03, seat - 0.12), cloth, power=16)
        mesh.cushion((-w / 2, 0, 0.1), (w / 2, 0.26, h - 0.06), cloth, power=10)
        for side in (-1, 1):
            mesh.cushion((side * w / 2, 0, 0.1), (side * (w / 2 - arm), d, arm_height), cloth, power=8)
        for i in range(count):
            x = -w / 2 + arm + i * step
            mesh.cushion((x + 0.005, 0.18, seat - 0.15), (x + step - 0.005, d + 0.01, seat + 0.02), cloth, power=7)
            mesh.cushion((x + 0.01, 0.16, seat), (x + step - 0.01, 0.4, h), cloth, power=5)
    pillows = rng.uniform(-1, 1, rng.integers(0, 2 + count)) * max(0.0, w / 2 - arm - 0.25)
    for x in pillows:
        turned = placement(x, 0.40, seat + 0.02, rng.uniform(-0.2, 0.2))
        with mesh.object("pillow"), mesh.placed(turned @ lean(-0.35)):
            mesh.cushion((-0.22, -0.06, 0), (0.22, 0.08, 0.4), kit.pick(kit.cloths), power=3)
    seats = -w / 2 + arm + (np.arange(count) + 0.5) * step
    return [(x, 0.42, seat) for x in seats if all(np.abs(pillows - x) > 0.35)]


def chair(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Dining chair of wood or moulded plastic with a slatted, solid or padded back."""
    mesh, rng = kit.mesh, kit.rng
    material = kit.wood() if rng.random() < 0.7 else kit.pick(kit.brights)
    padded = kit.pick(kit.cloths) if rng.random() < 0.6 else material
    seat, post = 0.45, 0.02
    with mesh.object("chair"):
        kit.legs(-w / 2, w / 2, 0, d, seat, post, material, square=rng.random() < 0.5)
        kit.box((-w / 2, 0, seat - 0.06), (w / 2, d, seat - 0.02), material)
        mesh.cushion((-w / 2, 0.02, seat - 0.03), (w / 2, d + 0.02, seat + 0.03), padded, power=8)
        with mesh.placed(lean(0.12, seat)):
            for side in (-1, 1):
                kit.box((side * w / 2, 0, seat), (side * (w / 2 - 2 * post), 2 * post, h), material)
            style = rng.integers(3)
            if style == 0:
                mesh.cushion((-w / 2, -0.01, h - 0.34), (w / 2, 0.06, h), padded, power=8)
            else:
                kit.box((-w / 2, 0.005, h - 0.09), (w / 2, 0.035, h), material)
                kit.box((-w / 2, 0.005, seat + 0.1), (w / 2, 0.03, seat + 0.14), material)
                bars = np.linspace(-w / 2 + 0.09, w / 2 - 0.09, 4) if style == 1 else (0.0,)
                half = 0.013 if style == 1 else 0.07
                for x in bars:
                    kit.box((x - half, 0.01, seat + 0.1), (x + half, 0.028, h - 0.05), material)
        for side in (-1, 1):
            kit.box((side * w / 2, 0.03, 0.18), (side * (w / 2 - 0.02), d - 0.03, 0.21), material)
    return [(0.0, d * 0.5, seat)]


def office_chair(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Swivel chair on a five-armed base with castors, armrests and a curved back."""
    mesh, rng = kit.mesh, kit.rng
    cloth = kit.pick(kit.cloths + [kit.dark])
    seat, y = rng.uniform(0.45, 0.52), d / 2
    with mesh.object("chair"):
        for angle in np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1):
            tip = (0.3 * np.cos(angle), y + 0.3 * np.sin(angle), 0.07)
            mesh.loft([(0, y, 0.12), tip], [0.03, 0.02], kit.dark, 8)
            mesh.ellipsoid((tip[0], tip[1], 0.035), (0.03, 0.03, 0.035), kit.dark, 3)
        mesh.rod((0, y, 0.1), (0, y, seat - 0.05), 0.03, kit.metal)
        mesh.cushion((-w / 2, 0.04, seat - 0.07), (w / 2, d, seat + 0.03), cloth, power=5)
        kit.box((-0.04, 0.0, seat - 0.06), (0.04, 0.05, seat + 0.2), kit.dark)
        with mesh.placed(lean(0.12, seat)):
            mesh.cushion((-w / 2 + 0.02, -0.03, seat + 0.12), (w / 2 - 0.02, 0.06, h), cloth, power=5)
        for side in (-1, 1):
            x = side * (w / 2 + 0.02)
            kit.box((x - 0.02, y - 0.03, seat - 0.04), (x + 0.02, y + 0.03, seat + 0.2), kit.dark)
            mesh.cushion((x - 0.035, y - 0.14, seat + 0.19), (x + 0.035, y + 0.14, seat + 0.23), kit.dark)
    return [(0.0, d * 0.5, seat)]


def stool(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Round stool with four legs."""
    material = kit.wood()
    with kit.mesh.object("stool"):
        for angle in np.arange(4) * np.pi / 2 + np.pi / 4:
            x, y = np.cos(angle) * w / 2, np.sin(angle) * w / 2
            kit.mesh.rod((x, d / 2 + y, 0), (x * 0.7, d / 2 + y * 0.7, h - 0.03), 0.017, material)
        kit.mesh.lathe([(w / 2, h - 0.04), (w / 2, h)], kit.pick([material, *kit.cloths]), y=d / 2)
    return [(0.0, d * 0.5, h)]


def bench(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Bench with a slatted wooden seat on metal frames."""
    material = kit.wood()
    with kit.mesh.object("bench"):
        for x in (-w / 2 + 0.15, w / 2 - 0.15):
            kit.box((x - 0.025, 0.03, 0), (x + 0.025, 0.08, h - 0.05), kit.metal)
            kit.box((x - 0.025, d - 0.08, 0), (x + 0.025, d - 0.03, h - 0.05), kit.metal)
        for i in range(4):
            y = i * d / 4
            kit.box((-w / 2, y + 0.008, h - 0.06), (w / 2, y + d / 4 - 0.008, h), material)
    return [(x, d / 2, h) for x in np.arange(-w / 2 + 0.35, w / 2 - 0.2, 0.6)]


def ottoman(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Padded ottoman."""
    with kit.mesh.object("ottoman"):
        kit.legs(-w / 2 + 0.03, w / 2 - 0.03, 0.03, d - 0.03, 0.1, 0.02, kit.dark)
        kit.mesh.cushion((-w / 2, 0, 0.08), (w / 2, d, h), kit.pick(kit.cloths), power=8)
    return [(0.0, d / 2, h)]


# ---- tables ----------------------------------------------------------------------------------------------------

def table(kit: Kit, w: float, d: float, h: float, class_name: str = "table", things: int = 5) -> None:
    """Table with four legs, or round with a central one; clutter on top."""
    rng, wood = kit.rng, kit.wood()
    with kit.mesh.object(class_name):
        if rng.random() < 0.2 and abs(w - d) < 0.5:
            radius = min(w, d) / 2
            kit.mesh.lathe([(0.26, 0), (0.24, 0.04), (0.05, 0.08), (0.05, h - 0.04)], wood, y=d / 2)
            kit.mesh.lathe([(radius, h - 0.035), (radius, h)], wood, y=d / 2, segments=32)
            w, inset = w * 0.7, d * 0.15
        else:
            kit.legs(-w / 2 + 0.02, w / 2 - 0.02, 0.02, d - 0.02, h - 0.03, 0.032, wood, rng.random() < 0.6)
            kit.box((-w / 2, 0, h - 0.035), (w / 2, d, h), wood)
            kit.box((-w / 2 + 0.05, 0.05, h - 0.11), (w / 2 - 0.05, d - 0.05, h - 0.035), wood)
            inset = 0.08
    clutter(kit, -w / 2 + 0.12, w / 2 - 0.12, inset, d - inset, h, things)


def coffee_table(kit: Kit, w: float, d: float, h: float) -> None:
    """Low table, sometimes with a shelf under its top."""
    table(kit, w, d, h, "coffee table", 3)
    if kit.rng.random() < 0.5:
        with kit.mesh.object("coffee table"):
            kit.box((-w / 2 + 0.06, 0.06, 0.12), (w / 2 - 0.06, d - 0.06, 0.14), kit.wood())


def desk(kit: Kit, w: float, d: float, h: float) -> None:
    """Office desk with a drawer block and a computer; the worker sits at +y."""
    rng, wood = kit.rng, kit.wood()
    side = rng.choice([-1, 1])
    with kit.mesh.object("desk"):
        kit.box((-w / 2, 0, h - 0.03), (w / 2, d, h), wood)
        for x in (-w / 2, w / 2 - 0.03):
            kit.box((x, 0.02, 0), (x + 0.03, d - 0.02, h - 0.03), kit.pick([wood, kit.metal]))
        kit.box((-w / 2, 0.05, h - 0.4), (w / 2, 0.07, h - 0.03), wood)
        x0, x1 = sorted((side * (w / 2 - 0.03), side * (w / 2 - 0.45)))
        _drawers(kit, x0, x1, 0.1, d - 0.02, 0.05, h - 0.05, 3, wood)
    for x in (0.0,) if w < 1.5 or rng.random() < 0.5 else (-0.3, 0.3):
        monitor(kit, x, 0.16, h)
    with kit.mesh.object("keyboard"):
        kit.box((-0.22, d - 0.3, h), (0.22, d - 0.16, h + 0.02), kit.pick([kit.dark, kit.white]))
    clutter(kit, -w / 2 + 0.1, -0.35, 0.1, d - 0.1, h, int(rng.integers(1, 4)))
    clutter(kit, 0.35, w / 2 - 0.1, 0.1, d - 0.1, h, int(rng.integers(1, 4)))


def counter(kit: Kit, w: float, d: float, h: float) -> None:
    """Kitchen counter with cabinet doors, a sink or stove, and wall cabinets above it."""
    rng, wood = kit.rng, kit.wood()
    top = kit.palette.solid(rng.choice([(0.25, 0.25, 0.26), (0.8, 0.78, 0.74), (0.5, 0.4, 0.3)]), 0.5)
    with kit.mesh.object("cabinet"):
        kit.box((-w / 2, 0, 0), (w / 2, d - 0.07, 0.1), kit.dark)
        kit.box((-w / 2, 0, 0.1), (w / 2, d - 0.03, h - 0.04), wood)
        _doors(kit, -w / 2, w / 2, d - 0.03, 0.12, h - 0.06, 0.5, wood)
    with kit.mesh.object("counter"):
        kit.box((-w / 2, 0, h - 0.04), (w / 2, d, h), top)
    x = rng.uniform(-w / 2 + 0.45, w / 2 - 0.45)
    if rng.random() < 0.5:
        with kit.mesh.object("sink"):
            kit.box((x - 0.27, 0.1, h), (x + 0.27, d - 0.1, h + 0.008), kit.metal)
            kit.box((x - 0.22, 0.15, h), (x + 0.22, d - 0.15, h + 0.009), kit.dark)
            kit.mesh.loft([(x, 0.1, h), (x, 0.1, h + 0.25), (x, 0.2, h + 0.28), (x, 0.25, h + 0.2)],
                          [0.014] * 4, kit.metal, 8)
    else:
        with kit.mesh.object("stove"):
            kit.box((x - 0.3, 0.03, 0.12), (x + 0.3, d - 0.015, h + 0.01), kit.white)
            kit.box((x - 0.24, d - 0.02, 0.25), (x + 0.24, d - 0.008, 0.62), kit.dark)
            kit.mesh.rod((x - 0.24, d + 0.02, 0.7), (x + 0.24, d + 0.02, 0.7), 0.012, kit.metal)
            for dx in (-0.15, 0.15):
                for y in (0.18, 0.42):
                    kit.mesh.lathe([(0.09, h + 0.01), (0.09, h + 0.022)], kit.dark, x + dx, y)
    clutter(kit, -w / 2 + 0.1, w / 2 - 0.1, 0.08, d - 0.15, h, int(3 + 3 * w))
    with kit.mesh.object("cabinet"):
        kit.box((-w / 2, 0, 1.45), (w / 2, 0.33, 2.15), wood)
        _doors(kit, -w / 2, w / 2, 0.33, 1.46, 2.14, 0.45, wood)


# ---- storage ---------------------------------------------------------------------------------------------------

def bookshelf(kit: Kit, w: float, d: float, h: float) -> None:
    """Open shelves filled with books, boxes and vases."""
    rng, wood = kit.rng, kit.wood()
    levels = max(2, round(h / 0.36))
    step = (h - 0.08) / levels
    with kit.mesh.object("bookshelf"):
        for x in (-w / 2, w / 2 - 0.025):
            kit.box((x, 0, 0), (x + 0.025, d, h), wood)
        kit.box((-w / 2, 0, 0), (w / 2, 0.015, h), wood)
        for i in range(levels + 1):
            kit.box((-w / 2, 0, 0.05 + i * step), (w / 2, d, 0.075 + i * step), wood)
    for i in range(levels):
        z = 0.075 + i * step
        if rng.random() < 0.75:
            end = rng.uniform(0.0, w / 2 - 0.05)
            book_row(kit, -w / 2 + 0.04, end, d, z, step - 0.05)
            clutter(kit, end + 0.1, w / 2 - 0.12, 0.1, d - 0.08, z, 1, step - 0.06)
        else:
            clutter(kit, -w / 2 + 0.12, w / 2 - 0.12, 0.1, d - 0.08, z, int(rng.integers(1, 4)), step - 0.06)


def book_row(kit: Kit, x0: float, x1: float, depth: float, z: float, height: float) -> None:
    """Books standing side by side between x0 and x1."""
    with kit.mesh.object("books"):
        x = x0
        while x < x1:
            thick = kit.rng.uniform(0.018, 0.05)
            tall = height * kit.rng.uniform(0.65, 0.98)
            front = depth - kit.rng.uniform(0.02, 0.06)
            kit.box((x, 0.03, z), (x + thick - 0.002, front, z + tall), kit.pick(kit.brights + kit.cloths))
            kit.box((x, front, z + tall * 0.75), (x + thick - 0.002, front + 0.001, z + tall * 0.85), kit.paper)
            x += thick


def cabinet(kit: Kit, w: float, d: float, h: float, class_name: str = "cabinet") -> None:
    """Cabinet with doors, or with drawers if it is low; clutter on top of low ones."""
    rng, wood = kit.rng, kit.wood()
    with kit.mesh.object(class_name):
        kit.box((-w / 2 + 0.02, 0.02, 0), (w / 2 - 0.02, d - 0.04, 0.08), kit.dark)
        kit.box((-w / 2, 0, 0.08), (w / 2, d - 0.02, h), wood)
        if h < 1.3 and rng.random() < 0.6:
            columns = max(1, round(w / 0.6))
            for i in range(columns):
                x = -w / 2 + i * w / columns
                _drawers(kit, x, x + w / columns, 0, d - 0.02, 0.08, h - 0.02, max(2, round(h / 0.25)), wood)
        else:
            _doors(kit, -w / 2, w / 2, d - 0.02, 0.1, h - 0.02, 0.5, wood)
    if h < 1.5:
        clutter(kit, -w / 2 + 0.1, w / 2 - 0.1, 0.08, d - 0.1, h, int(rng.integers(1, int(3 + 2 * w))))


def dresser(kit: Kit, w: float, d: float, h: float) -> None:
    """Chest of drawers, sometimes with a mirror above it."""
    cabinet(kit, w, d, h, "dresser")
    if kit.rng.random() < 0.6:
        wall_mirror(kit, w * 0.7, h + 0.08, min(h + 1.0, 2.1))


def wardrobe(kit: Kit, w: float, d: float, h: float) -> None:
    """Tall wardrobe with plain or mirrored doors."""
    rng, wood = kit.rng, kit.wood()
    with kit.mesh.object("wardrobe"):
        kit.box((-w / 2, 0, 0), (w / 2, d - 0.02, h), wood)
        if rng.random() < 0.55:
            _doors(kit, -w / 2, w / 2, d - 0.02, 0.06, h - 0.03, 0.5, wood)
            return
    doors = max(2, round(w / 0.7))
    for i in range(doors):
        x0, x1 = -w / 2 + i * w / doors + 0.01, -w / 2 + (i + 1) * w / doors - 0.01
        with kit.mesh.object("mirror"):
            kit.mesh.quad((x1, d, 0.1), (x0 - x1, 0, 0), (0, 0, h - 0.15), kit.mirror_pane)
        with kit.mesh.object("wardrobe"):
            for low, high in (((x0 - 0.01, 0.05), (x0 + 0.02, h - 0.02)), ((x1 - 0.02, 0.05), (x1 + 0.01, h - 0.02)),
                              ((x0, 0.05), (x1, 0.1)), ((x0, h - 0.06), (x1, h - 0.02))):
                kit.box((low[0], d - 0.02, low[1]), (high[0], d + 0.012, high[1]), kit.metal)


def shelves(kit: Kit, w: float, d: float, h: float) -> None:
    """Metal shelves with clutter."""
    with kit.mesh.object("shelves"):
        kit.legs(-w / 2, w / 2, 0, d, h, 0.015, kit.metal)
        levels = np.arange(0.12, h, 0.45)
        for z in levels:
            kit.box((-w / 2, 0, z), (w / 2, d, z + 0.02), kit.metal)
    for z in levels:
        clutter(kit, -w / 2 + 0.15, w / 2 - 0.15, 0.12, d - 0.12, z + 0.02, int(1 + 3 * w), 0.38)


def refrigerator(kit: Kit, w: float, d: float, h: float) -> None:
    """Two-door refrigerator."""
    body = kit.palette.solid(kit.pick([(0.9, 0.9, 0.9), (0.65, 0.66, 0.68), (0.15, 0.15, 0.16)]), 0.4)
    with kit.mesh.object("refridgerator"):
        kit.box((-w / 2, 0, 0.03), (w / 2, d - 0.06, h), body)
        for low, high in ((0.05, h * 0.62), (h * 0.63, h)):
            kit.mesh.cushion((-w / 2, d - 0.055, low), (w / 2, d, high), body, power=30)
            kit.mesh.rod((-w / 2 + 0.06, d + 0.03, low + 0.1), (-w / 2 + 0.06, d + 0.03, high - 0.1), 0.012, kit.metal)


def tv_stand(kit: Kit, w: float, d: float, h: float) -> None:
    """Low cabinet with a television."""
    cabinet(kit, w, d, h, "tv stand")
    size = min(w * 0.8, kit.rng.uniform(0.9, 1.4))
    on = kit.rng.random() < 0.4
    picture = kit.palette.image(textures.landscape(kit.rng), emission=0.8, infrared=0.03) if on else kit.dark
    with kit.mesh.object("television"):
        screen_on_foot(kit, 0.0, d * 0.4, h, size, size * 0.56, picture, 0.06)


def bed(kit: Kit, w: float, d: float, h: float) -> Seats:
    """Bed with headboard, mattress, blanket and pillows; the headboard is at y = 0."""
    mesh, rng, wood = kit.mesh, kit.rng, kit.wood()
    sheet = kit.palette.cloth(rng.choice([(0.9, 0.9, 0.88), (0.8, 0.82, 0.88), (0.9, 0.84, 0.75)]))
    cover = kit.pick(kit.cloths)
    with mesh.object("bed"):
        kit.legs(-w / 2, w / 2, 0.02, d, 0.2, 0.04, wood)
        kit.box((-w / 2, 0.05, 0.16), (w / 2, d, 0.3), wood)
        kit.box((-w / 2, 0, 0.1), (w / 2, 0.06, h), wood)
        mesh.cushion((-w / 2 + 0.02, 0.07, 0.26), (w / 2 - 0.02, d - 0.02, 0.52), sheet, power=14)
        mesh.cushion((-w / 2 - 0.02, 0.75, 0.24), (w / 2 + 0.02, d + 0.02, 0.56), cover, power=14)
        mesh.cushion((-w / 2 - 0.02, 0.62, 0.45), (w / 2 + 0.02, 0.9, 0.585), sheet, power=5)
    for x in (0.0,) if w < 1.25 else (-w / 4, w / 4):
        with mesh.object("pillow"), mesh.placed(placement(x, 0.1, 0.5, rng.uniform(-0.1, 0.1)) @ lean(0.5)):
            mesh.cushion((-0.32, 0, 0), (0.32, 0.16, 0.44), kit.pick([sheet, sheet, cover]), power=3)
    return [(side * (w / 2 - 0.3), d - 0.25, 0.55) for side in (-1, 1)]


def night_stand(kit: Kit, w: float, d: float, h: float) -> None:
    """Night stand with a lamp."""
    wood = kit.wood()
    with kit.mesh.object("night stand"):
        kit.box((-w / 2, 0, 0), (w / 2, d - 0.02, h), wood)
        _drawers(kit, -w / 2, w / 2, 0, d - 0.02, 0.03, h - 0.03, 2, wood)
    table_lamp(kit, 0.0, d / 2, h)


def _drawers(kit: Kit, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, count: int, wood: int) -> None:
    kit.box((x0, y0, z0), (x1, y1, z1), wood)
    step = (z1 - z0) / count
    for i in range(count):
        kit.box((x0 + 0.012, y1, z0 + i * step + 0.01), (x1 - 0.012, y1 + 0.018, z0 + (i + 1) * step - 0.01), wood)
        z, x = z0 + (i + 0.5) * step, (x0 + x1) / 2
        kit.box((x - 0.06, y1 + 0.018, z - 0.008), (x + 0.06, y1 + 0.035, z + 0.008), kit.metal)


def _doors(kit: Kit, x0: float, x1: float, y: float, z0: float, z1: float, width: float, wood: int) -> None:
    count = max(2, round((x1 - x0) / width))
    step = (x1 - x0) / count
    for i in range(count):
        left, right = x0 + i * step + 0.006, x0 + (i + 1) * step - 0.006
        kit.box((left, y, z0), (right, y + 0.018, z1), wood)
        kit.box((left + 0.07, y + 0.018, z0 + 0.07), (right - 0.07, y + 0.026, z1 - 0.07), wood)
        x = right - 0.035 if i % 2 == 0 else left + 0.035
        middle = (z0 + z1) / 2
        kit.box((x - 0.008, y + 0.018, middle - 0.07), (x + 0.008, y + 0.05, middle + 0.07), kit.metal)


PIECES = {
    "sofa": Piece(sofa, (1.6, 2.4), (0.85, 1.0), (0.8, 0.95)),
    "armchair": Piece(sofa, (0.8, 0.98), (0.8, 0.95), (0.8, 1.0)),
    "chair": Piece(chair, (0.42, 0.5), (0.42, 0.5), (0.85, 1.02)),
    "office chair": Piece(office_chair, (0.46, 0.52), (0.48, 0.54), (0.95, 1.15)),
    "stool": Piece(stool, (0.32, 0.4), (0.36, 0.4), (0.45, 0.7)),
    "bench": Piece(bench, (1.1, 2.0), (0.4, 0.5), (0.42, 0.47)),
    "ottoman": Piece(ottoman, (0.5, 0.8), (0.45, 0.6), (0.38, 0.46)),
    "table": Piece(table, (0.9, 1.6), (0.8, 0.95), (0.72, 0.78)),
    "dining table": Piece(table, (1.2, 2.2), (0.85, 1.1), (0.72, 0.78)),
    "coffee table": Piece(coffee_table, (0.8, 1.3), (0.5, 0.75), (0.38, 0.5)),
    "desk": Piece(desk, (1.2, 1.7), (0.65, 0.85), (0.7, 0.78)),
    "counter": Piece(counter, (1.6, 3.2), (0.6, 0.66), (0.88, 0.94)),
    "bookshelf": Piece(bookshelf, (0.7, 1.4), (0.26, 0.36), (1.1, 2.1)),
    "cabinet": Piece(cabinet, (0.8, 1.6), (0.4, 0.55), (0.75, 1.9)),
    "dresser": Piece(dresser, (0.9, 1.5), (0.45, 0.55), (0.75, 1.1)),
    "wardrobe": Piece(wardrobe, (1.2, 2.2), (0.55, 0.65), (1.95, 2.25)),
    "shelves": Piece(shelves, (0.9, 1.6), (0.4, 0.5), (1.4, 2.0)),
    "refridgerator": Piece(refrigerator, (0.6, 0.85), (0.65, 0.75), (1.6, 1.85)),
    "tv stand": Piece(tv_stand, (1.2, 1.9), (0.4, 0.5), (0.4, 0.6)),
    "bed": Piece(bed, (1.0, 1.9), (2.0, 2.15), (0.9, 1.25)),
    "night stand": Piece(night_stand, (0.4, 0.55), (0.38, 0.45), (0.45, 0.6)),
    "floor lamp": Piece(floor_lamp, (0.38, 0.45), (0.38, 0.45), (1.45, 1.8)),
    "plant": Piece(potted_plant, (0.5, 0.7), (0.5, 0.7), (0.9, 1.7)),
    "garbage bin": Piece(garbage_bin, (0.25, 0.38), (0.25, 0.38), (0.3, 0.7)),
    "box": Piece(cardboard_box, (0.35, 0.6), (0.3, 0.5), (0.25, 0.5)),
    "bag": Piece(bag, (0.3, 0.38), (0.18, 0.25), (0.4, 0.5)),
}
