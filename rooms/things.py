"""Small objects in rendered rooms: clutter on furniture, screens, lamps, plants, and wall decoration.

Each object is built in a local frame: it stands on z = 0, is centred at x = 0, has its back at y = 0 and faces +y.
Clutter is placed at (x, y, z).
"""

import numpy as np

from rooms import textures
from rooms.geometry import placement
from rooms.kit import Kit, lean


def clutter(
    kit: Kit, x0: float, x1: float, y0: float, y1: float, z: float, count: int, clearance: float = 1.0
) -> None:
    """Place up to `count` small objects on a surface, without overlaps; low ones only if `clearance` is small.

    The kit's factor changes the count, and the distance between them to match.
    """
    distance = 0.24 / max(1.0, kit.clutter) ** 0.5
    positions: list[tuple[float, float]] = []
    builders = [_bottle, _cup, _book_stack, _vase, _small_box, _bowl, _papers]
    if clearance > 0.5:
        builders += [_flowers, _laptop]
    for _ in range(round(count * kit.clutter)):
        if x1 <= x0 or y1 <= y0:
            return
        x, y = kit.rng.uniform(x0, x1), kit.rng.uniform(y0, y1)
        if all(np.hypot(x - a, y - b) > distance for a, b in positions):
            positions.append((x, y))
            kit.pick(builders)(kit, x, y, z)


def _bottle(kit: Kit, x: float, y: float, z: float) -> None:
    r, h = kit.rng.uniform(0.03, 0.045), kit.rng.uniform(0.2, 0.3)
    with kit.mesh.object("bottle"):
        body = kit.pick(kit.brights + [kit.leaf])
        kit.mesh.lathe([(r, z), (r, z + 0.6 * h), (r * 0.35, z + 0.78 * h), (r * 0.35, z + h)], body, x, y)
        kit.mesh.lathe([(r * 1.02, z + 0.2 * h), (r * 1.02, z + 0.5 * h)], kit.paper, x, y)


def _cup(kit: Kit, x: float, y: float, z: float) -> None:
    with kit.mesh.object("cup"):
        kit.mesh.lathe([(0.03, z), (0.04, z + 0.09), (0.034, z + 0.09), (0.03, z + 0.02)], kit.pick(kit.brights), x, y)


def _bowl(kit: Kit, x: float, y: float, z: float) -> None:
    with kit.mesh.object("bowl"):
        kit.mesh.lathe([(0.05, z), (0.1, z + 0.04), (0.13, z + 0.09), (0.12, z + 0.09), (0.06, z + 0.03)],
                       kit.pick(kit.brights), x, y, 20)
    with kit.mesh.object("fruit"):
        for _ in range(4):
            dx, dy = kit.rng.uniform(-0.05, 0.05, 2)
            kit.mesh.ellipsoid((x + dx, y + dy, z + 0.09), (0.04, 0.04, 0.038), kit.pick(kit.brights[:4]), 4)


def _book_stack(kit: Kit, x: float, y: float, z: float) -> None:
    with kit.mesh.object("book"), kit.mesh.placed(placement(x, y, z, kit.rng.uniform(0, np.pi))):
        top = 0.0
        for _ in range(kit.rng.integers(1, 5)):
            thick, w = kit.rng.uniform(0.015, 0.04), kit.rng.uniform(0.08, 0.11)
            kit.box((-w, -0.07, top + 0.003), (w - 0.004, 0.068, top + thick - 0.003), kit.paper)
            cover = kit.pick(kit.brights + kit.cloths)
            kit.box((-w, -0.072, top), (w, 0.072, top + 0.003), cover)
            kit.box((-w, -0.072, top + thick - 0.003), (w, 0.072, top + thick), cover)
            kit.box((-w, -0.072, top), (-w + 0.004, 0.072, top + thick), cover)
            top += thick


def _vase(kit: Kit, x: float, y: float, z: float) -> None:
    h = kit.rng.uniform(0.15, 0.3)
    with kit.mesh.object("vase"):
        t = np.linspace(0, 1, 12)
        radii = 0.05 + 0.025 * np.sin(2 * np.pi * (0.95 * t + kit.rng.uniform(-0.1, 0.1)))
        kit.mesh.lathe(np.stack([radii, z + h * t], 1), kit.pick(kit.brights), x, y, 20)


def _flowers(kit: Kit, x: float, y: float, z: float) -> None:
    _vase(kit, x, y, z)
    with kit.mesh.object("plant"):
        _leaves(kit, (x, y, z + 0.2), 10, 0.22, 0.03)


def _small_box(kit: Kit, x: float, y: float, z: float) -> None:
    w, d, h = kit.rng.uniform((0.06, 0.05, 0.05), (0.13, 0.1, 0.22))
    with kit.mesh.object("box"), kit.mesh.placed(placement(x, y, z, kit.rng.uniform(0, 3))):
        kit.box((-w, -d, 0), (w, d, h), kit.pick(kit.brights + kit.woods[:1]))
        kit.box((-w * 0.3, -d - 0.001, h * 0.3), (w * 0.5, d + 0.001, h * 0.7), kit.paper)


def _papers(kit: Kit, x: float, y: float, z: float) -> None:
    sheet = kit.palette.image(textures.scribbles(kit.rng))
    with kit.mesh.object("paper"), kit.mesh.placed(placement(x, y, z + 0.004, kit.rng.uniform(0, 6))):
        kit.mesh.quad((-0.105, -0.148, 0), (0.21, 0, 0), (0, 0.297, 0), sheet, fit=True)


def _laptop(kit: Kit, x: float, y: float, z: float) -> None:
    view = kit.palette.image(textures.screen(kit.rng), emission=0.9, infrared=0.03)
    with kit.mesh.object("laptop"), kit.mesh.placed(placement(x, y - 0.1, z, kit.rng.uniform(-0.4, 0.4))):
        kit.box((-0.17, 0, 0), (0.17, 0.24, 0.016), kit.metal)
        kit.box((-0.15, 0.03, 0.016), (0.15, 0.14, 0.018), kit.dark)
        with kit.mesh.placed(lean(0.3, 0.016)):
            kit.box((-0.17, -0.006, 0.016), (0.17, 0.002, 0.24), kit.metal)
            kit.mesh.quad((0.16, 0.004, 0.026), (-0.32, 0, 0), (0, 0, 0.205), view, fit=True)


def monitor(kit: Kit, x: float, y: float, z: float) -> None:
    """Add a computer monitor that faces +y."""
    on = kit.rng.random() < 0.7
    view = kit.palette.image(textures.screen(kit.rng), emission=0.9, infrared=0.03) if on else kit.dark
    with kit.mesh.object("monitor"):
        screen_on_foot(kit, x, y, z, 0.54, 0.32, view, 0.12)


def screen_on_foot(
    kit: Kit, x: float, y: float, z: float, width: float, height: float, picture: int, lift: float
) -> None:
    """Add a flat screen with the material `picture`, facing +y; the foot stands on z, the lower edge is at z + lift."""
    kit.box((x - 0.12, y - 0.09, z), (x + 0.12, y + 0.09, z + 0.012), kit.dark)
    kit.box((x - 0.03, y - 0.03, z), (x + 0.03, y - 0.01, z + lift + 0.05), kit.dark)
    kit.box((x - width / 2 - 0.015, y - 0.02, z + lift - 0.015),
            (x + width / 2 + 0.015, y + 0.015, z + lift + height + 0.015), kit.dark)
    kit.mesh.quad((x + width / 2, y + 0.018, z + lift), (-width, 0, 0), (0, 0, height), picture, fit=True)


def table_lamp(kit: Kit, x: float, y: float, z: float) -> None:
    """Add a table lamp with a glowing shade."""
    with kit.mesh.object("lamp"):
        kit.mesh.lathe([(0.07, z), (0.06, z + 0.02), (0.02, z + 0.05), (0.05, z + 0.15), (0.012, z + 0.22)],
                       kit.pick(kit.brights), x, y)
        kit.mesh.lathe([(0.15, z + 0.22), (0.1, z + 0.44)], kit.shade, x, y, 20)


def floor_lamp(kit: Kit, w: float, d: float, h: float) -> None:
    """Add a floor lamp."""
    with kit.mesh.object("lamp"):
        kit.mesh.lathe([(w / 2.2, 0), (w / 2.2, 0.02), (0.015, 0.04), (0.012, h - 0.25)], kit.dark, y=d / 2)
        kit.mesh.lathe([(w / 2, h - 0.3), (w / 3.2, h)], kit.shade, y=d / 2, segments=20)


def potted_plant(kit: Kit, w: float, d: float, h: float) -> None:
    """Add a plant in a pot, with a few leafy stems."""
    with kit.mesh.object("plant pot"):
        kit.mesh.lathe([(w * 0.26, 0), (w * 0.36, h * 0.27), (w * 0.33, h * 0.27), (w * 0.3, h * 0.2)],
                       kit.pick(kit.brights + kit.woods), y=d / 2, segments=20)
    with kit.mesh.object("plant"):
        for _ in range(kit.rng.integers(2, 5)):
            x, y = kit.rng.uniform(-0.1, 0.1, 2)
            top = h * kit.rng.uniform(0.55, 0.85)
            kit.mesh.rod((x / 3, d / 2 + y / 3, h * 0.2), (x, d / 2 + y, top), 0.012, kit.woods[0], 6)
            _leaves(kit, (x, d / 2 + y, top * 0.8), 26, w * 0.6, 0.05)


def _leaves(kit: Kit, root: tuple[float, float, float], count: int, length: float, width: float) -> None:
    angle = kit.rng.uniform(0, 2 * np.pi, count)
    rise = kit.rng.uniform(-0.2, 1.3, count)
    reach = length * kit.rng.uniform(0.5, 1.0, count)
    out = np.stack([np.cos(angle) * np.cos(rise), np.sin(angle) * np.cos(rise), np.sin(rise)], 1)
    side = np.stack([-np.sin(angle), np.cos(angle), np.zeros(count)], 1) * width
    base = np.asarray(root) + out * reach[:, None] * 0.15
    middle = np.asarray(root) + out * reach[:, None] * 0.6
    tip = np.asarray(root) + out * reach[:, None] - [0, 0, 0.3] * reach[:, None]
    vertices = np.stack([base, middle + side, tip, middle - side], 1).reshape(-1, 3)
    faces = np.concatenate([[[4 * i, 4 * i + 1, 4 * i + 2], [4 * i, 4 * i + 2, 4 * i + 3]] for i in range(count)])
    normals = np.repeat(np.cross(out, side), 4, axis=0)
    kit.mesh.add(vertices, faces, vertices[:, :2], normals, kit.leaf)


def garbage_bin(kit: Kit, w: float, d: float, h: float) -> None:
    """Add an open waste bin."""
    with kit.mesh.object("garbage bin"):
        profile = [(w * 0.38, 0), (w / 2, h), (w * 0.47, h), (w * 0.36, 0.05)]
        kit.mesh.lathe(profile, kit.pick(kit.brights + [kit.metal, kit.dark]), y=d / 2, segments=20)


def cardboard_box(kit: Kit, w: float, d: float, h: float) -> None:
    """Add a taped moving box."""
    card = kit.palette.solid((0.68, 0.52, 0.35))
    tape = kit.palette.solid((0.78, 0.68, 0.5), 0.3)
    with kit.mesh.object("box"):
        kit.box((-w / 2, 0, 0), (w / 2, d, h), card)
        kit.box((-w / 2 - 0.001, d / 2 - 0.03, h - 0.1), (w / 2 + 0.001, d / 2 + 0.03, h + 0.001), tape)


def bag(kit: Kit, w: float, d: float, h: float) -> None:
    """Add a backpack on the floor."""
    cloth = kit.pick(kit.cloths)
    with kit.mesh.object("backpack"):
        kit.mesh.cushion((-w / 2, 0, 0), (w / 2, d, h), cloth, power=4)
        kit.mesh.cushion((-w / 3, d * 0.7, 0.04), (w / 3, d * 1.15, h * 0.55), kit.pick(kit.cloths), power=4)
        low, high = h - 0.02, h + 0.05
        handle = [(-0.05, d / 3, low), (-0.04, d / 3, high), (0.04, d / 3, high), (0.05, d / 3, low)]
        kit.mesh.loft(handle, [0.01] * 4, kit.dark, 6)


def wall_mirror(kit: Kit, width: float, low: float, high: float) -> None:
    """Hang a framed mirror on the wall at y = 0."""
    with kit.mesh.object("mirror"):
        frame = kit.wood()
        kit.box((-width / 2 - 0.04, 0.002, low - 0.04), (width / 2 + 0.04, 0.018, high + 0.04), frame)
        kit.mesh.quad((width / 2, 0.0195, low), (-width, 0, 0), (0, 0, high - low), kit.mirror_pane)


def wall_picture(kit: Kit, width: float, low: float, high: float, class_name: str = "picture") -> None:
    """Hang a framed picture or a whiteboard on the wall at y = 0."""
    board = class_name == "whiteboard"
    canvas = kit.palette.image(textures.scribbles(kit.rng) if board else textures.painting(kit.rng), gloss=0.3 * board)
    frame = kit.metal if board else kit.pick([*kit.woods, kit.dark, kit.white])
    border = 0.03
    with kit.mesh.object(class_name):
        kit.box((-width / 2 - border, 0.002, low - border), (width / 2 + border, 0.02, high + border), frame)
        kit.mesh.quad((width / 2, 0.0225, low), (-width, 0, 0), (0, 0, high - low), canvas, fit=True)


def wall_clock(kit: Kit, z: float) -> None:
    """Hang a round clock on the wall at y = 0."""
    upright = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, z], [0, 0, 0, 1.0]])
    with kit.mesh.object("clock"), kit.mesh.placed(upright):
        kit.mesh.lathe([(0.15, 0.002), (0.15, 0.04)], kit.dark, segments=24)
        kit.mesh.lathe([(0.135, 0.03), (0.135, 0.042)], kit.white, segments=24)
        kit.box((-0.006, -0.11, 0.042), (0.006, 0, 0.046), kit.dark)
        kit.box((0, -0.006, 0.042), (0.08, 0.006, 0.046), kit.dark)
