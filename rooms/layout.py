"""Furnished rooms and corridors, with furniture and people in typical places of homes and offices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rooms.furniture import PIECES
from rooms.geometry import Mesh, placement
from rooms.kit import Kit
from rooms.people import person
from rooms.shell import (
    Finish,
    Opening,
    Room,
    add_lamps,
    build_shell,
    decorate_walls,
    draw_finish,
    glass_partition,
    glaze,
    lay_rug,
)
from rooms.textures import Palette


def living_room(room: Room) -> None:
    """Sofas and armchairs around a coffee table and a rug, and a television."""
    sofa = room.place_at_wall("sofa", clearance=1.0, tries=30)
    if sofa:
        frame, (_, d, _) = sofa
        centre = frame @ [0, d + 0.75, 0, 1]
        rotated = abs(frame[0, 0]) < 0.5
        lay_rug(room, centre[0], centre[1], *((1.7, 2.6) if rotated else (2.6, 1.7)))
        room.place("coffee table", frame @ placement(0, d + 0.4))
        for side in (-1, 1):
            heading = side * np.pi / 2 + room.kit.rng.normal(0, 0.2)
            room.place("armchair", frame @ placement(side * 2.0, d + 0.9, heading=heading))
    _furnish(room, ["tv stand", "sofa", "bookshelf", "armchair", "cabinet", "bookshelf", "floor lamp", "plant",
                    "ottoman", "shelves", "plant"])


def bedroom(room: Room) -> None:
    """Bed with night stands, wardrobe, dresser and desk."""
    bed = room.place_at_wall("bed", clearance=0.5, tries=40)
    if bed:
        frame, (w, _, _) = bed
        for side in (-1, 1):
            room.place("night stand", frame @ placement(side * (w / 2 + 0.32), 0))
        centre = frame @ [0, 1.5, 0, 1]
        lay_rug(room, centre[0], centre[1], w + 1.2, w + 1.2)
    _furnish(room, ["wardrobe", "dresser", "armchair", "bookshelf", "cabinet", "desk", "ottoman", "chair", "plant",
                    "floor lamp"])


def office(room: Room) -> None:
    """Desks with swivel chairs, along the walls and free-standing; shelves and cabinets."""
    rng = room.kit.rng
    for _ in range(max(2, int(room.width * room.depth / 6))):
        desk = room.place_at_wall("desk", clearance=0.9) if rng.random() < 0.6 else room.place_in_middle("desk", 0.4)
        if desk:
            frame, (_, d, _) = desk
            heading = np.pi + rng.normal(0, 0.4)
            room.place("office chair", frame @ placement(rng.normal(0, 0.1), d + 0.5, heading=heading))
    _furnish(room, ["bookshelf", "cabinet", "bookshelf", "cabinet", "shelves", "plant", "chair", "armchair", "box"])


def dining_room(room: Room) -> None:
    """A dining table with chairs on all sides, cabinets along the walls."""
    rng = room.kit.rng
    size = PIECES["dining table"].draw_size(rng)
    heading = np.pi / 2 if room.depth > room.width else 0.0
    frame = placement(room.width / 2, room.depth / 2, heading=heading) @ placement(rng.normal(0, 0.2), -size[1] / 2)
    centre = frame @ [0, size[1] / 2, 0, 1]
    along, across = (size[1], size[0]) if heading else (size[0], size[1])
    lay_rug(room, centre[0], centre[1], along + 1.6, across + 1.6)
    if room.place("dining table", frame, size):
        surround_with_chairs(room, frame, size)
    _furnish(room, ["cabinet", "bookshelf", "cabinet", "sofa", "armchair", "plant", "bookshelf", "floor lamp", "chair"])


def surround_with_chairs(room: Room, frame: np.ndarray, size: tuple[float, float, float], name: str = "chair") -> None:
    """Place chairs along both long sides of a table, randomly pulled out, and possibly at its ends."""
    w, d, _ = size
    rng = room.kit.rng
    count = max(1, int(w / 0.62))
    for x in (np.arange(count) + 0.5) * w / count - w / 2:
        for side in (0, 1):
            back = d + 0.4 + rng.uniform(-0.05, 0.2) if side else -0.4 - rng.uniform(-0.05, 0.2)
            room.place(name, frame @ placement(x, back, heading=np.pi * side + rng.normal(0, 0.1)))
    for side in (-1, 1):
        if rng.random() < 0.5:
            heading = side * np.pi / 2 + rng.normal(0, 0.1)
            room.place(name, frame @ placement(side * (w / 2 + 0.45), d / 2, heading=heading))


def kitchen(room: Room) -> None:
    """Counters with wall cabinets, refrigerator, and a table with chairs."""
    for _ in range(3):
        room.place_at_wall("counter", clearance=0.8, tries=30)
    room.place_at_wall("refridgerator", clearance=0.7)
    table = room.place_in_middle("table", 0.45)
    if table:
        surround_with_chairs(room, *table, name=room.kit.pick(["chair", "chair", "stool"]))
    _furnish(room, ["cabinet", "shelves", "garbage bin", "stool", "chair", "plant"])


def classroom(room: Room) -> None:
    """Rows of tables with chairs facing one wall."""
    for y in np.arange(2.0, room.depth - 0.9, 1.55):
        for x in np.arange(1.1, room.width - 0.8, 1.75):
            if room.place("table", placement(x, y), (1.35, 0.6, 0.74)):
                for dx in (-0.33, 0.33):
                    room.place("chair", placement(x + dx, y + 1.08, heading=np.pi + room.kit.rng.normal(0, 0.15)))
    _furnish(room, ["cabinet", "bookshelf", "desk", "shelves", "garbage bin", "bag", "cabinet"])


def lobby(room: Room) -> None:
    """Waiting room: benches, armchairs and sofas, low tables and plants."""
    for _ in range(max(2, int(room.width * room.depth / 9))):
        seat = room.place_in_middle(room.kit.pick(["sofa", "armchair", "bench"]), 0.35)
        if seat:
            frame, (_, d, _) = seat
            room.place("coffee table", frame @ placement(0, d + 0.45))
    _furnish(room, ["sofa", "bench", "armchair", "armchair", "cabinet", "plant", "plant", "sofa", "garbage bin",
                    "bookshelf"])


def corridor(room: Room) -> None:
    """Cabinets, benches and bins along the walls; sometimes a glass wall across the corridor."""
    kit, rng = room.kit, room.kit.rng
    if rng.random() < 0.65:
        y = rng.uniform(0.45, 0.75) * room.depth
        high = min(2.2, room.height)
        with kit.mesh.placed(placement(0, y)):
            glaze(kit, Opening("glass wall", 0, room.width, 0, high), "door frame", "glass pane", 2, kit.metal)
            if room.height > high + 0.01:
                with kit.mesh.object("wall"):
                    kit.box((0, -0.1, high), (room.width, -0.07, room.height), kit.white)
        room.occupied.append((0, y - 0.3, room.width, y + 0.15))
    names = ["cabinet", "bench", "chair", "cabinet", "bookshelf", "plant", "garbage bin", "bench", "box", "chair",
             "shelves", "cabinet"]
    for name in rng.permutation(names):
        room.place_at_wall(str(name), walls=(1, 3), clearance=min(0.8, room.width - 0.9), tries=8)


def _furnish(room: Room, names: Sequence[str]) -> None:
    """Place furniture along the walls, the most important first, then small objects on the floor."""
    rng = room.kit.rng
    count = max(5, int(room.width * room.depth / 2.2))
    for name in names[:count]:
        room.place_at_wall(name, clearance=0.4)
    for name in ("garbage bin", "bag", "box", "box", "plant"):
        if rng.random() < 0.4:
            room.place_at_wall(name, clearance=0.1) or room.place_in_middle(name, 0.1)


def add_people(room: Room, mean: float) -> None:
    """Add a Poisson-distributed number of people, seated or standing; at least one in about two rooms of three."""
    kit, rng = room.kit, room.kit.rng
    count = max(int(rng.poisson(mean)), int(rng.random() < 0.67))
    for _ in range(count):
        if room.seats and rng.random() < 0.5:
            frame, seat = room.seats.pop(rng.integers(len(room.seats)))
            if seat < 0.62:
                with kit.mesh.placed(frame):
                    person(kit, seat)
                continue
        for _ in range(25):
            x, y = rng.uniform(0.4, room.width - 0.4), rng.uniform(0.4, room.depth - 0.4)
            spot = (x - 0.3, y - 0.3, x + 0.3, y + 0.3)
            if room.is_free(spot):
                room.occupied.append(spot)
                frame = placement(x, y, heading=rng.uniform(0, 2 * np.pi))
                room.standing[len(kit.mesh.classes)] = frame
                with kit.mesh.placed(frame):
                    person(kit)
                break


@dataclass
class Plan:
    """A room type: furnishing function, sampling weight, size ranges in metres, and decoration.

    formal: finishes and lamps as in offices. people: mean number of people. pictures: number of pictures
    to hang. mirror, board: probability of a mirror and of a whiteboard.
    """

    furnish: Callable[[Room], None]
    share: float
    width: tuple[float, float]
    depth: tuple[float, float]
    height: tuple[float, float] = (2.4, 2.9)
    formal: bool = False
    people: float = 0.9
    pictures: int = 4
    mirror: float = 0.35
    board: float = 0.0


PLANS = {
    "living_room": Plan(living_room, 0.2, (3.8, 6.5), (3.8, 7.0), mirror=0.6),
    "bedroom": Plan(bedroom, 0.17, (3.2, 4.8), (3.4, 5.2), people=0.6, mirror=0.8),
    "office": Plan(office, 0.16, (3.5, 8.0), (3.5, 8.0), formal=True, people=1.5, pictures=2, mirror=0.05, board=0.6),
    "dining_room": Plan(dining_room, 0.12, (3.4, 5.5), (3.6, 6.0), people=1.4, mirror=0.7),
    "kitchen": Plan(kitchen, 0.12, (3.0, 4.6), (3.2, 5.5), people=0.8, pictures=2, mirror=0.1),
    "classroom": Plan(classroom, 0.08, (5.5, 9.0), (6.0, 9.5), (2.7, 3.3), formal=True, people=4.0, pictures=2,
                      mirror=0.0, board=1.0),
    "lobby": Plan(lobby, 0.05, (4.5, 8.0), (5.0, 9.0), (2.6, 3.4), formal=True, people=2.0, pictures=3, mirror=0.6),
    "corridor": Plan(corridor, 0.10, (1.7, 2.7), (8.0, 18.0), (2.4, 3.0), formal=True, people=1.8, mirror=0.4,
                     board=0.3),
}


def draw_openings(room: Room, plan_name: str) -> None:
    """Draw doors, windows and glass doors on the walls of a room, without overlaps."""
    rng, corridor_like = room.kit.rng, plan_name == "corridor"
    high = 2.05
    wanted = [("door", 0.85, 0.95, 0.0, high)]
    if rng.random() < 0.4:
        wanted.append(("doorway", 0.85, 1.2, 0.0, high))
    if corridor_like:
        wanted += [("door", 0.85, 0.95, 0.0, high)] * int(rng.integers(3, 7))
        wanted += [("glass wall", 1.6, 3.0, float(rng.choice([0.0, 0.0, 0.9])), 2.2)] * int(rng.integers(0, 3))
    else:
        low = rng.uniform(0.75, 1.0)
        top = min(room.height - 0.2, rng.uniform(2.05, 2.3))
        wanted += [("window", 0.9, 2.2, low, top)] * int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))
        if rng.random() < 0.3:
            wanted.append(("glass door", 1.6, 2.6, 0.0, min(2.2, room.height - 0.1)))
        elif room.height > 2.3 and rng.random() < 0.2:
            wanted.append(("glass wall", 1.6, 3.0, 0.0, 2.2))
    for kind, narrow, wide, low, top in wanted[::-1]:
        for _ in range(20):
            index = int(rng.choice([1, 3, 1, 3, 2, 0] if corridor_like else [0, 1, 2, 3]))
            length, width = room.wall(index)[0], rng.uniform(narrow, wide)
            if length < width + 0.8:
                continue
            start = rng.uniform(0.35, length - width - 0.35)
            if all(start > o.end + 0.4 or start + width < o.start - 0.4 for o in room.openings[index]):
                room.openings[index].append(Opening(kind, start, start + width, low, top))
                break


def build_room(
    rng: np.random.Generator,
    plans: Mapping[str, Plan] = PLANS,
    change_finish: Callable[[Kit, Finish], None] | None = None,
    varied: bool = False,
) -> tuple[str, Room]:
    """Build a random furnished room; returns its type, a key of `plans`, and the room.

    change_finish: may replace the materials of floor and walls before anything is built.
    varied: more variety of colours, prints and clutter.
    """
    names = list(plans)
    shares = np.array([plans[name].share for name in names])
    name = names[rng.choice(len(names), p=shares / shares.sum())]
    plan = plans[name]
    kit = Kit(Mesh(), Palette(rng), rng)
    if varied:
        kit.add_variety()
    width, depth, height = (float(rng.uniform(*limits)) for limits in (plan.width, plan.depth, plan.height))
    room = Room(kit, width, depth, height)
    finish = draw_finish(kit, plan.formal)
    if change_finish:
        change_finish(kit, finish)
    draw_openings(room, name)
    build_shell(room, finish)
    if name in ("office", "lobby", "classroom") and rng.random() < 0.5:
        glass_partition(room)
    plan.furnish(room)
    add_lamps(room, plan.formal)
    decorate_walls(room, plan.pictures, plan.mirror, plan.board)
    add_people(room, plan.people)
    if varied:
        kit.palette.recolour(rng)
    return name, room
