"""Empty rooms: walls, windows and doors, lamps, wall decoration, and bookkeeping of free space.

A room is the box 0..width x 0..depth x 0..height. Each wall has a local frame with x along it and y into the room.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rooms import textures
from rooms.furniture import PIECES
from rooms.geometry import placement
from rooms.kit import CLOTHS, WOODS, Kit
from rooms.people import person
from rooms.render import Light, World
from rooms.things import wall_clock, wall_mirror, wall_picture

WALL_THICKNESS = 0.16
WALL_PAINTS = [(0.92, 0.9, 0.84), (0.85, 0.87, 0.86), (0.8, 0.84, 0.76), (0.87, 0.78, 0.66), (0.72, 0.79, 0.85),
               (0.93, 0.93, 0.92), (0.9, 0.84, 0.72), (0.75, 0.68, 0.62), (0.78, 0.6, 0.52), (0.62, 0.7, 0.66)]
CARPETS = [(0.5, 0.47, 0.43), (0.35, 0.38, 0.45), (0.55, 0.42, 0.35), (0.4, 0.42, 0.38), (0.65, 0.6, 0.52)]
TILES = [(0.82, 0.8, 0.75), (0.7, 0.66, 0.6), (0.55, 0.54, 0.52), (0.88, 0.87, 0.85), (0.72, 0.58, 0.46)]


@dataclass
class Opening:
    """Opening in a wall, x = start to end, z = low to high; kind: window, glass door, door, doorway or glass wall."""

    kind: str
    start: float
    end: float
    low: float
    high: float


@dataclass
class Room:
    """A room under construction.

    Attributes:
        kit: mesh, materials and random generator.
        width: metres along x.
        depth: metres along y.
        height: metres along z.
        openings: openings of each wall.
        occupied_wall: spans (start, end) of each wall that furniture or decoration covers.
        occupied: occupied floor rectangles (x0, y0, x1, y1).
        seats: free seats as (world frame, seat height).
        lights: light sources.
        standing: {object id: frame, float64 [4,4]} of the people who stand or walk; they face +y of their frame.
    """

    kit: Kit
    width: float
    depth: float
    height: float
    openings: list[list[Opening]] = field(default_factory=lambda: [[], [], [], []])
    occupied_wall: list[list[tuple[float, float]]] = field(default_factory=lambda: [[], [], [], []])
    occupied: list[tuple[float, float, float, float]] = field(default_factory=list)
    seats: list[tuple[np.ndarray, float]] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    standing: dict[int, np.ndarray] = field(default_factory=dict)

    def wall(self, index: int) -> tuple[float, np.ndarray]:
        """Length and local frame, float64 [4,4], of wall 0..3 (south, east, north, west)."""
        w, d = self.width, self.depth
        x, y = ((0, 0), (w, 0), (w, d), (0, d))[index]
        return (w, d, w, d)[index], placement(x, y, heading=index * np.pi / 2)

    def world(self) -> World:
        """Build the finished scene for the renderer."""
        area = 2 * (self.width * self.depth + (self.width + self.depth) * self.height)
        return World(self.kit.mesh.soup(), self.kit.palette, self.lights, area)

    def is_free(self, rectangle: tuple[float, float, float, float], margin: float = 0.0) -> bool:
        """Whether a floor rectangle lies inside the room and overlaps no occupied one."""
        x0, y0, x1, y1 = np.asarray(rectangle) + np.array([-margin, -margin, margin, margin])
        if x0 < -1e-6 or y0 < -1e-6 or x1 > self.width + 1e-6 or y1 > self.depth + 1e-6:
            return False
        return all(x1 <= a or x0 >= c or y1 <= b or y0 >= d for a, b, c, d in self.occupied)

    def place(
        self, name: str, frame: np.ndarray, size: tuple[float, float, float] | None = None, clearance: float = 0.0
    ) -> bool:
        """Build the piece `name` at a frame if its footprint, plus clearance in front, is free; returns whether."""
        piece = PIECES[name]
        size = piece.draw_size(self.kit.rng) if size is None else size
        w, d, h = size
        if not self.is_free(_footprint(frame, w, d + clearance)):
            return False
        self.occupied.append(_footprint(frame, w, d))
        with self.kit.mesh.placed(frame):
            seats = piece.build(self.kit, w, d, h) or []
        self.seats += [(frame @ placement(x, y), seat) for x, y, seat in seats]
        return True

    def place_at_wall(
        self, name: str, walls: Sequence[int] = (0, 1, 2, 3), clearance: float = 0.45, tries: int = 14
    ) -> tuple[np.ndarray, tuple[float, float, float]] | None:
        """Build a piece with its back to a wall; returns its frame and size, or None if there is no space."""
        rng = self.kit.rng
        for _ in range(tries):
            size = PIECES[name].draw_size(rng)
            index = int(rng.choice(walls))
            length, wall_frame = self.wall(index)
            if length < size[0] + 0.1:
                continue
            x = rng.uniform(size[0] / 2 + 0.03, length - size[0] / 2 - 0.03)
            high = 2.15 if name == "counter" else size[2]
            if self._blocks_opening(index, x - size[0] / 2, x + size[0] / 2, high):
                continue
            frame = wall_frame @ placement(x, 0.03)
            if self.place(name, frame, size, clearance):
                if high > 1.2:  # covers the wall where pictures hang
                    self.occupied_wall[index].append((x - size[0] / 2, x + size[0] / 2))
                return frame, size
        return None

    def place_in_middle(
        self, name: str, margin: float = 0.5, tries: int = 20, size: tuple[float, float, float] | None = None
    ) -> tuple[np.ndarray, tuple[float, float, float]] | None:
        """Build a piece away from the walls; returns its frame and size, or None if there is no space."""
        rng = self.kit.rng
        for _ in range(tries):
            w, d, h = PIECES[name].draw_size(rng) if size is None else size
            heading = rng.integers(4) * np.pi / 2 + rng.choice([0, rng.normal(0, 0.15)])
            x, y = rng.uniform(0.3, self.width - 0.3), rng.uniform(0.3, self.depth - 0.3)
            frame = placement(x, y, heading=heading)
            if self.is_free(_footprint(frame, w, d), margin) and self.place(name, frame, (w, d, h)):
                return frame, (w, d, h)
        return None

    def _blocks_opening(self, wall: int, start: float, end: float, height: float) -> bool:
        for opening in self.openings[wall]:
            gap = 0.25 if opening.low == 0 else 0.08
            if start < opening.end + gap and end > opening.start - gap and height > opening.low - 0.02:
                return True
        return False

    def find_wall_gap(self, width: float, tries: int = 12) -> tuple[np.ndarray, float] | None:
        """Find and reserve a free span of wall at eye height; returns (wall frame, x of its centre), or None."""
        rng = self.kit.rng
        for _ in range(tries):
            index = int(rng.integers(4))
            length, frame = self.wall(index)
            if length < width + 0.4:
                continue
            x = rng.uniform(width / 2 + 0.2, length - width / 2 - 0.2)
            spans = self.occupied_wall[index] + [(o.start - 0.25, o.end + 0.25) for o in self.openings[index]]
            if all(x + width / 2 + 0.1 < a or x - width / 2 - 0.1 > b for a, b in spans):
                self.occupied_wall[index].append((x - width / 2, x + width / 2))
                return frame, x
        return None


def _footprint(frame: np.ndarray, width: float, depth: float) -> tuple[float, float, float, float]:
    corners = np.array([[-width / 2, 0], [width / 2, 0], [width / 2, depth], [-width / 2, depth]])
    ground = corners @ frame[:2, :2].T + frame[:2, 3]
    return (*ground.min(0), *ground.max(0))


# ---- the shell -------------------------------------------------------------------------------------------------

@dataclass
class Finish:
    """Material ids of a room's surfaces, and the strength of daylight."""

    floor: int
    walls: list[int]
    ceiling: int
    trim: int
    outside: int
    daylight: float


def draw_finish(kit: Kit, formal: bool) -> Finish:
    """Draw floor, wall and ceiling materials; `formal` rooms, such as offices, get more carpet and ceiling panels."""
    rng, palette = kit.rng, kit.palette
    probabilities = [0.2, 0.35, 0.35, 0.1] if formal else [0.5, 0.2, 0.22, 0.08]
    style = rng.choice(["wood", "tile", "carpet", "chess"], p=probabilities)
    if style == "wood":
        floor = palette.image(textures.planks(rng, kit.pick(WOODS)), (1.2, 0.9), gloss=0.55)
    elif style == "tile":
        colour = np.array(kit.pick(TILES))
        floor = palette.image(textures.tiles(rng, colour, colour * 0.7), (1.6, 1.6), gloss=0.7)
    elif style == "chess":
        floor = palette.image(textures.chessboard(rng, (0.88, 0.86, 0.8), kit.pick(CLOTHS)), (1.4, 1.4), gloss=0.7)
    else:
        second = np.array(kit.pick(CARPETS)) * 0.8 if rng.random() < 0.4 else None
        floor = palette.image(textures.carpet(rng, kit.pick(CARPETS), second), (0.8, 0.8))
    paint = np.array(kit.pick(WALL_PAINTS))
    plain = palette.image(textures.plaster(rng, paint), (1.5, 1.5))
    walls = [plain] * 4
    kind = rng.random()
    if kind < (0.1 if formal else 0.4):
        second = np.clip(paint * rng.uniform(0.75, 1.1, 3), 0, 1)
        paper = palette.image(textures.wallpaper(rng, paint, second), (0.6, 0.6))
        walls = [paper] * 4 if rng.random() < 0.6 else [paper, plain, plain, plain]
    elif kind < 0.6:
        accent = kit.pick([kit.pick(WALL_PAINTS), kit.pick(CLOTHS)])
        walls[rng.integers(4)] = palette.image(textures.plaster(rng, accent), (1.5, 1.5))
    elif kind < 0.7:
        walls[rng.integers(4)] = palette.image(textures.bricks(rng, (0.62, 0.36, 0.28)), (0.75, 0.6))
    panels = formal and rng.random() < 0.75
    ceiling = palette.image(textures.ceiling_tiles(rng), (0.6, 0.6)) if panels else palette.solid((0.93, 0.93, 0.91))
    daylight = float(rng.choice([0.02, rng.uniform(1.0, 3.0)], p=[0.12, 0.88]))
    view = textures.landscape(rng, rng.uniform(0.25, 0.45), size=512)
    outside = palette.image(view, (30.0, 14.0), emission=max(0.03, 0.9 * daylight))
    trim = palette.solid(kit.pick([(0.92, 0.92, 0.9), (0.92, 0.92, 0.9), kit.pick(WOODS)]), 0.2)
    return Finish(floor, walls, ceiling, trim, outside, daylight)


def build_shell(room: Room, finish: Finish) -> None:
    """Build floor, ceiling and four walls with their openings; windows also become lights."""
    kit, (w, d, h) = room.kit, (room.width, room.depth, room.height)
    with kit.mesh.object("floor"):
        kit.mesh.quad((0, 0, 0), (w, 0, 0), (0, d, 0), finish.floor)
    with kit.mesh.object("ceiling"):
        kit.mesh.quad((0, 0, h), (0, d, 0), (w, 0, 0), finish.ceiling)
    with kit.mesh.object("wall"):
        for index in range(4):
            length, frame = room.wall(index)
            with kit.mesh.placed(frame):
                _build_wall(kit, length, h, room.openings[index], finish.walls[index], finish.trim)
    for index in range(4):
        _, frame = room.wall(index)
        with kit.mesh.placed(frame):
            for opening in room.openings[index]:
                _fill_opening(room, opening, finish)
        for opening in room.openings[index]:
            if opening.low == 0:  # keep doors clear of furniture
                room.occupied.append(_footprint(frame @ placement((opening.start + opening.end) / 2, 0), 0.8, 0.7))


def _build_wall(kit: Kit, length: float, height: float, openings: list[Opening], paint: int, trim: int) -> None:
    mesh = kit.mesh

    def panel(x0: float, x1: float, z0: float, z1: float) -> None:
        if x1 - x0 > 1e-6 and z1 - z0 > 1e-6:
            mesh.quad((x1, 0, z0), (x0 - x1, 0, 0), (0, 0, z1 - z0), paint)

    x = 0.0
    for opening in sorted(openings, key=lambda o: o.start):
        panel(x, opening.start, 0, height)
        panel(opening.start, opening.end, 0, opening.low)
        panel(opening.start, opening.end, opening.high, height)
        a, b, low, high = opening.start, opening.end, opening.low, opening.high
        back = np.array([0, -WALL_THICKNESS, 0])
        mesh.quad((a, 0, low), back, (0, 0, high - low), paint)
        mesh.quad((b, 0, low), (0, 0, high - low), back, paint)
        mesh.quad((a, 0, high), back, (b - a, 0, 0), paint)
        mesh.quad((a, 0, low), (b - a, 0, 0), back, paint)
        if low == 0:
            _baseboard(kit, x, a - 0.07, trim)
            x = b + 0.07
        else:
            _baseboard(kit, x, b, trim)
            x = b
        if low == 0:
            panel(b, b + 0.07, 0, height)
    panel(x, length, 0, height)
    _baseboard(kit, x, length, trim)


def _baseboard(kit: Kit, x0: float, x1: float, trim: int) -> None:
    if x1 > x0:
        kit.box((x0, 0, 0), (x1, 0.014, 0.09), trim)


def _fill_opening(room: Room, opening: Opening, finish: Finish) -> None:
    kit = room.kit
    if opening.kind in ("window", "glass door"):
        _build_window(room, opening, finish)
    elif opening.kind == "door":
        _door_leaf(kit, opening.start, opening.end, opening.high)
    else:
        _adjacent_room(room, opening, finish)
    if opening.kind == "glass wall":
        glaze(kit, opening, "door frame", "glass pane", max(1, round((opening.end - opening.start) / 1.1)), kit.metal)
    if opening.low == 0:
        _door_trim(kit, opening, finish.trim if opening.kind != "glass wall" else kit.metal)


def _build_window(room: Room, opening: Opening, finish: Finish) -> None:
    kit, rng = room.kit, room.kit.rng
    a, b, low, high = opening.start, opening.end, opening.low, opening.high
    sliding = opening.kind == "glass door"
    count = max(1, round((b - a) / 0.9)) if sliding else max(1, round((b - a) / rng.uniform(0.6, 1.2)))
    names = ("door frame", "glass pane") if sliding else ("window", "window")
    glaze(kit, opening, *names, count, finish.trim, bar=not sliding and rng.random() < 0.4)
    with kit.mesh.object("window"):
        if not sliding:
            kit.box((a - 0.05, -WALL_THICKNESS, low - 0.03), (b + 0.05, 0.07, low), finish.trim)
        with kit.mesh.placed(placement((a + b) / 2 - 15, -6, -4)):
            kit.mesh.quad((30, 0, 0), (-30, 0, 0), (0, 0, 14), finish.outside)
    if not sliding:
        _add_window_covering(kit, opening, room.height)
    elif rng.random() < 0.5:
        _curtains(kit, opening, room.height)
    frame = kit.mesh.frame
    power = finish.daylight * (b - a) * (high - low) * 0.5
    room.lights.append(Light((frame @ [(a + b) / 2, 0.03, (low + high) / 2, 1])[:3], frame[:3, 0] * (b - a) / 2,
                             frame[:3, 2] * (high - low) / 2, frame[:3, 1], power * np.array([0.92, 0.97, 1.05])))


def glaze(
    kit: Kit, opening: Opening, frame_name: str, pane_name: str, count: int, material: int, bar: bool = False
) -> None:
    """Fill an opening with a frame and `count` panes side by side; if it reaches the floor, add a door handle."""
    a, b, low, high = opening.start, opening.end, opening.low, opening.high
    step, bar_width, y0, y1 = (b - a) / count, 0.045, -0.11, -0.06
    pane = kit.palette.glass(kit.pick([(0.94, 0.97, 0.96), (0.9, 0.95, 0.93), (0.85, 0.9, 0.92)]))
    with kit.mesh.object(frame_name):
        for i in range(count + 1):
            x = a + i * step
            kit.box((max(a, x - bar_width), y0, low), (min(b, x + bar_width), y1, high), material)
        kit.box((a, y0, low), (b, y1, low + bar_width), material)
        kit.box((a, y0, high - bar_width), (b, y1, high), material)
        if bar:
            middle = (low + high) / 2
            kit.box((a, y0 + 0.01, middle - 0.018), (b, y1 - 0.01, middle + 0.018), material)
        if low == 0:
            kit.mesh.rod((a + step - 0.09, y1 + 0.04, 0.8), (a + step - 0.09, y1 + 0.04, 1.25), 0.013, kit.dark)
    with kit.mesh.object(pane_name):
        for i in range(count):
            kit.mesh.quad((a + (i + 1) * step, -0.085, low), (-step, 0, 0), (0, 0, high - low), pane)


def _add_window_covering(kit: Kit, opening: Opening, height: float) -> None:
    style = kit.rng.random()
    if style < 0.4:
        _curtains(kit, opening, height)
    elif style < 0.6:
        drop = opening.low + (opening.high - opening.low) * kit.rng.uniform(0.2, 0.8)
        with kit.mesh.object("blinds"):
            for z in np.arange(drop, opening.high, 0.045):
                kit.mesh.quad((opening.end, -0.05, z), (opening.start - opening.end, 0, 0), (0, 0.03, 0.024), kit.white)
            kit.box((opening.start, -0.055, drop - 0.03), (opening.end, -0.02, drop - 0.01), kit.white)


def _curtains(kit: Kit, opening: Opening, height: float) -> None:
    cloth, top = kit.pick(kit.cloths), min(height - 0.05, opening.high + 0.15)
    bottom = max(0.02, opening.low - 0.15) if opening.low > 0.5 and kit.rng.random() < 0.4 else 0.03
    with kit.mesh.object("curtain"):
        kit.mesh.rod((opening.start - 0.35, 0.09, top), (opening.end + 0.35, 0.09, top), 0.014, kit.dark)
        for x, sign in ((opening.start - 0.25, 1), (opening.end + 0.25, -1)):
            width = (opening.end - opening.start) * kit.rng.uniform(0.18, 0.4)
            s = np.linspace(0, 1, 70)
            y = 0.09 + 0.035 * np.sin(2 * np.pi * s * max(3, round(width / 0.13)))
            points = np.stack([x + sign * width * s, y], 1)
            vertices = np.concatenate([np.c_[points, np.full(70, bottom)], np.c_[points, np.full(70, top)]])
            slope = np.gradient(points, axis=0)
            normals = np.tile(np.c_[-slope[:, 1], slope[:, 0], np.zeros(70)], (2, 1))
            cell = np.arange(69)
            faces = np.concatenate([np.c_[cell, cell + 1, cell + 71], np.c_[cell, cell + 71, cell + 70]])
            kit.mesh.add(vertices, faces, np.c_[np.tile(s * width * 2, 2), vertices[:, 2]], normals, cloth)


def _door_trim(kit: Kit, opening: Opening, trim: int) -> None:
    a, b, high = opening.start, opening.end, opening.high
    with kit.mesh.object("door frame"):
        kit.box((a - 0.07, 0, 0), (a, 0.02, high + 0.07), trim)
        kit.box((b, 0, 0), (b + 0.07, 0.02, high + 0.07), trim)
        kit.box((a - 0.07, 0, high), (b + 0.07, 0.02, high + 0.07), trim)


def _door_leaf(kit: Kit, a: float, b: float, high: float, y: float = -0.06) -> None:
    wood = kit.wood()
    with kit.mesh.object("door"):
        kit.box((a, y - 0.04, 0), (b, y, high), wood)
        for low, top in ((0.15, 0.85), (1.05, high - 0.15)):
            for x0, x1 in ((a + 0.1, (a + b) / 2 - 0.04), ((a + b) / 2 + 0.04, b - 0.1)):
                kit.box((x0, y, low), (x1, y + 0.008, top), wood)
                kit.box((x0 + 0.04, y, low + 0.04), (x1 - 0.04, y + 0.014, top - 0.04), wood)
        kit.mesh.rod((b - 0.08, y, 1.0), (b - 0.08, y + 0.05, 1.0), 0.012, kit.metal)
        kit.mesh.rod((b - 0.08, y + 0.05, 1.0), (b - 0.2, y + 0.05, 1.0), 0.011, kit.metal)


def _adjacent_room(room: Room, opening: Opening, finish: Finish) -> None:
    """Build the adjacent room seen through a doorway or a glass wall: a lit box with a piece of furniture."""
    kit, rng = room.kit, room.kit.rng
    wide = opening.kind == "glass wall"
    a, b = (opening.start - 0.6, opening.end + 0.6) if wide else (opening.start - 0.5, opening.end + 0.5)
    depth, h, mesh = rng.uniform(2.2, 3.5), max(room.height, opening.high + 0.05), kit.mesh
    near, far = -WALL_THICKNESS, -WALL_THICKNESS - depth
    with mesh.object("floor"):
        mesh.quad((a, far, 0), (b - a, 0, 0), (0, depth, 0), finish.floor)
    with mesh.object("ceiling"):
        mesh.quad((a, far, h), (0, depth, 0), (b - a, 0, 0), finish.ceiling)
    with mesh.object("wall"):
        mesh.quad((b, far, 0), (a - b, 0, 0), (0, 0, h), finish.walls[0])
        mesh.quad((a, near, 0), (0, -depth, 0), (0, 0, h), finish.walls[1])
        mesh.quad((b, far, 0), (0, depth, 0), (0, 0, h), finish.walls[2])
    name = rng.choice(["desk", "bookshelf", "cabinet", "sofa"] if wide else ["cabinet", "bookshelf", "plant"])
    w, d, height = PIECES[name].draw_size(rng)
    with mesh.placed(placement((a + b) / 2, far + 0.03)):
        PIECES[name].build(kit, min(w, b - a - 0.1), d, height)
    if wide and rng.random() < 0.6:
        with mesh.placed(placement(rng.uniform(a + 0.5, b - 0.5), far / 2, heading=rng.uniform(0, 6))):
            person(kit)
    centre = (mesh.frame @ [(a + b) / 2, (near + far) / 2, h - 0.1, 1])[:3]
    right, forward, up = np.eye(3)
    room.lights.append(Light(centre, 0.2 * right, 0.2 * forward, -up, np.ones(3)))


# ---- lamps and wall decoration ---------------------------------------------------------------------------------

def add_lamps(room: Room, formal: bool) -> None:
    """Add lamps in a grid: ceiling panels in formal rooms, else pendant and dome lamps."""
    kit, rng, (w, d, h) = room.kit, room.kit.rng, (room.width, room.depth, room.height)
    warm = np.array(kit.pick([(1.0, 0.95, 0.88), (1.0, 0.88, 0.72), (0.95, 0.98, 1.0)]))
    if formal:
        columns, rows = max(1, round(w / 2.6)), max(1, round(d / 2.6))
    else:
        columns, rows = max(1, round(w / 5)), max(1, round(d / 5))
    glow = kit.palette.light(warm, 6.0)
    for x in (np.arange(columns) + 0.5) * w / columns:
        for y in (np.arange(rows) + 0.5) * d / rows:
            with kit.mesh.object("light"):
                low, half = _add_lamp(kit, x, y, h, glow, formal)
            power = (1.7 if formal else 3.2) * warm * rng.uniform(0.7, 1.2)
            right, forward, up = np.eye(3)
            room.lights.append(Light(np.array([x, y, low]), half * right, half * forward, -up, power))


def _add_lamp(kit: Kit, x: float, y: float, h: float, glow: int, formal: bool) -> tuple[float, float]:
    mesh = kit.mesh
    if formal:
        kit.box((x - 0.32, y - 0.32, h - 0.03), (x + 0.32, y + 0.32, h - 0.001), kit.metal)
        mesh.quad((x - 0.29, y - 0.29, h - 0.031), (0, 0.58, 0), (0.58, 0, 0), glow)
        return h - 0.04, 0.28
    if kit.rng.random() < 0.5:
        mesh.lathe([(0.05, h - 0.12), (0.2, h - 0.07), (0.22, h)], glow, x, y, 24)
        return h - 0.14, 0.15
    drop = min(0.6, h - 2.05)
    mesh.rod((x, y, h - drop), (x, y, h), 0.008, kit.dark)
    mesh.lathe([(0.19, h - drop - 0.14), (0.05, h - drop)], kit.pick(kit.brights), x, y, 24)
    mesh.ellipsoid((x, y, h - drop - 0.13), (0.07, 0.07, 0.06), glow)
    return h - drop - 0.21, 0.1


def decorate_walls(room: Room, pictures: int, mirror: float, board: float) -> None:
    """Hang pictures, with the given probabilities a mirror and a whiteboard, and sometimes a clock."""
    kit, rng = room.kit, room.kit.rng
    if rng.random() < board:
        _hang(room, rng.uniform(1.2, 2.2), lambda w: wall_picture(kit, w, 0.9, 1.9, "whiteboard"))
    if rng.random() < mirror:
        low, high = (0.3, 1.9) if rng.random() < 0.5 else (0.95, 1.8)
        _hang(room, rng.uniform(0.6, 1.5), lambda w: wall_mirror(kit, w, low, high))
    for _ in range(pictures):
        width, low = rng.uniform(0.35, 1.1), rng.uniform(1.25, 1.5)
        tall = width * rng.uniform(0.65, 1.3)
        _hang(room, width, partial(wall_picture, kit, low=low, high=min(low + tall, room.height - 0.2)))
    if rng.random() < 0.4:
        _hang(room, 0.4, lambda w: wall_clock(kit, min(2.05, room.height - 0.3)))


def _hang(room: Room, width: float, build: Callable[[float], None]) -> None:
    gap = room.find_wall_gap(width)
    if gap is not None:
        with room.kit.mesh.placed(gap[0] @ placement(gap[1], 0)):
            build(width)


def glass_partition(room: Room) -> None:
    """Build a glass partition with metal posts that starts at one side of the room."""
    kit, rng = room.kit, room.kit.rng
    along = rng.uniform(1.6, max(1.7, 0.6 * room.width))
    y = rng.uniform(0.35, 0.65) * room.depth
    left = rng.random() < 0.5
    x0 = 0.0 if left else room.width - along
    high = min(room.height, rng.choice([2.2, room.height]))
    with kit.mesh.placed(placement(x0, y + 0.085)):
        opening = Opening("glass wall", 0, along, 0, high)
        glaze(kit, opening, "door frame", "glass pane", max(1, round(along)), kit.metal)
    room.occupied.append((x0, y - 0.15, x0 + along, y + 0.15))
    side = 3 if left else 1
    room.occupied_wall[side].append((room.depth - y - 0.2, room.depth - y + 0.2) if left else (y - 0.2, y + 0.2))


def lay_rug(room: Room, x: float, y: float, width: float, depth: float) -> None:
    """Lay a patterned rug, 1 cm above the floor, centred at (x, y)."""
    kit = room.kit
    colours = [np.array(CLOTHS[i]) for i in kit.rng.permutation(len(CLOTHS))[:3]]
    pattern = kit.palette.image(textures.rug(kit.rng, *colours))
    half_w, half_d = min(width / 2, x - 0.05, room.width - x - 0.05), min(depth / 2, y - 0.05, room.depth - y - 0.05)
    if min(half_w, half_d) > 0.3:
        with kit.mesh.object("rug"):
            kit.mesh.quad((x - half_w, y - half_d, 0.01), (2 * half_w, 0, 0), (0, 2 * half_d, 0), pattern, fit=True)
