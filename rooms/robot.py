"""What a low robot meets: narrow corridors, dark and glossy floors, things that lie on them, legs that pass close by.

It also has the poses of a camera 0.15 to 0.4 m above the floor. Handheld rooms are layout.py's.
"""

import math

import cv2
import numpy as np

from config import Intrinsics
from rooms import textures
from rooms.geometry import placement
from rooms.kit import Kit
from rooms.layout import PLANS, Plan, add_people, build_room, corridor
from rooms.render import Pose, World, camera_rays, develop_image
from rooms.shell import Finish, Room
from rooms.things import clutter

LOWEST, HIGHEST = 0.15, 0.4  # metres of the camera above the floor
MAX_PITCH, MAX_ROLL = np.radians(12), np.radians(3)
CLEARANCE = 0.12  # metres in front of the camera: nearer, the robot would have bumped into it
NEAR = 1.0  # metres: what a robot must see well
DARK_FLOORS = [(0.12, 0.12, 0.13), (0.2, 0.19, 0.18), (0.3, 0.22, 0.16), (0.16, 0.2, 0.24), (0.35, 0.35, 0.36)]
CANDIDATES = 24  # poses tried for the views of one room


def narrow_corridor(room: Room) -> None:
    """A corridor of 0.8 to 2.5 m: as layout.corridor() where a bench fits beside a robot, else bags, bins and boxes."""
    if room.width > 1.7:
        corridor(room)
        return
    rng = room.kit.rng
    for name in rng.choice(["box", "bag", "garbage bin", "plant", "stool"], size=int(room.depth / 2.5)):
        room.place_at_wall(str(name), walls=(1, 3), clearance=0.3, tries=6)


ROBOT_PLANS = {
    **PLANS,
    "corridor": Plan(
        narrow_corridor, 1.0, (0.8, 2.5), (3.0, 15.0), (2.3, 3.0), formal=True, people=1.5, pictures=2, board=0.2
    ),
}


def build_robot_room(rng: np.random.Generator, varied: bool = False) -> tuple[str, Room]:
    """A furnished room as a robot finds it: its type, a key of ROBOT_PLANS, and the room; see build_room()."""
    name, room = build_room(rng, ROBOT_PLANS, robot_floor, varied)
    litter(room)
    add_people(room, 0.5)
    return name, room


def robot_floor(kit: Kit, finish: Finish) -> None:
    """Make half of the floors dark and glossy, as in corridors: a sensor gets little of its light back from them."""
    rng = kit.rng
    if rng.random() < 0.5:
        return
    colour = np.array(kit.pick(DARK_FLOORS)) * rng.uniform(0.7, 1.6)
    gloss, infrared = float(rng.uniform(0.4, 0.95)), float(rng.uniform(0.02, 0.15))
    if rng.random() < 0.5:
        pattern = textures.tiles(rng, colour, colour * rng.uniform(0.6, 1.3), marble=0.12)
        finish.floor = kit.palette.image(pattern, (1.6, 1.6), gloss=gloss, infrared=infrared)
    else:  # linoleum or polished concrete
        speckles = 0.08 * textures.fractal_noise(rng, slope=0.4) + 0.05 * textures.fractal_noise(rng, slope=1.8)
        finish.floor = kit.palette.image(colour * (1 + speckles[..., None]), (1.2, 1.2), gloss=gloss, infrared=infrared)


def litter(room: Room) -> None:
    """Things on the floor: thresholds in doorways, cables, shoes, and what has fallen off a table."""
    kit, rng = room.kit, room.kit.rng
    for index, openings in enumerate(room.openings):
        _, frame = room.wall(index)
        for opening in openings:
            if opening.low == 0 and rng.random() < 0.5:
                with kit.mesh.placed(frame), kit.mesh.object("door frame"):
                    high = rng.uniform(0.008, 0.03)
                    kit.box((opening.start, -0.09, 0), (opening.end, 0.02, high), kit.pick([kit.metal, *kit.woods]))
    for _ in range(rng.poisson(1.2)):
        _cable(room)
    for _ in range(rng.poisson(2.5)):
        x, y = rng.uniform(0.2, room.width - 0.2), rng.uniform(0.2, room.depth - 0.2)
        if room.is_free((x, y, x, y), 0.15):
            build = rng.choice(["shoes", "things"], p=[0.35, 0.65])
            if build == "shoes":
                _shoes(kit, x, y)
            else:
                clutter(kit, x - 0.15, x + 0.15, y - 0.15, y + 0.15, 0.001, int(rng.integers(1, 3)))


def _cable(room: Room) -> None:
    kit, rng = room.kit, room.kit.rng
    start = rng.uniform((0.1, 0.1), (room.width - 0.1, room.depth - 0.1))
    turns = np.cumsum(rng.normal(0, 0.5, 12)) + rng.uniform(0, 2 * np.pi)
    steps = np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(0.08, 0.2)
    path = np.clip(start + np.cumsum(steps, axis=0), 0.03, (room.width - 0.03, room.depth - 0.03))
    path = path[np.r_[True, np.linalg.norm(np.diff(path, axis=0), axis=1) > 0.02]]
    if len(path) < 3:
        return
    radius = rng.uniform(0.003, 0.008)
    with kit.mesh.object("cables"):
        kit.mesh.loft(np.c_[path, np.full(len(path), radius)], np.full(len(path), radius), kit.dark, 6)


def _shoes(kit: Kit, x: float, y: float) -> None:
    rng = kit.rng
    material, heading = kit.pick([kit.dark, *kit.cloths, *kit.brights]), rng.uniform(0, 2 * np.pi)
    for side in (-1, 1):
        turned = placement(x, y, heading=heading + rng.normal(0, 0.2)) @ placement(side * rng.uniform(0.06, 0.12), 0)
        with kit.mesh.placed(turned), kit.mesh.object("shoe"):
            kit.mesh.cushion((-0.045, -0.14, 0), (0.045, 0.14, 0.06), material, power=3)
            kit.mesh.cushion((-0.04, -0.14, 0.03), (0.04, -0.02, 0.11), material, power=3)


def choose_robot_poses(
    world: World, room: Room, camera: Intrinsics, frames: int, rng: np.random.Generator
) -> list[Pose]:
    """Poses of a robot's camera, those that see near things, people and glass preferred; none stands in something."""
    coarse = camera.resized(64, 48)
    poses = [_draw_robot_pose(room, rng) for _ in range(CANDIDATES)]
    scores = np.array([_score(world, coarse, pose) for pose in poses]) + rng.uniform(0, 0.4, CANDIDATES)
    return [poses[index] for index in np.argsort(-scores, kind="stable")[:frames]]


def _draw_robot_pose(room: Room, rng: np.random.Generator) -> Pose:
    x, y = room.width / 2, room.depth / 2
    for _ in range(100):
        x, y = rng.uniform(0.15, room.width - 0.15), rng.uniform(0.15, room.depth - 0.15)
        if room.is_free((x, y, x, y), 0.12):
            break
    along = rng.random() < 0.5 and max(room.width, room.depth) > 2 * min(room.width, room.depth)
    yaw = rng.uniform(-np.pi, np.pi)
    if along:  # a corridor is driven along
        yaw = (np.pi / 2 if room.depth > room.width else 0.0) + rng.choice([0, np.pi]) + rng.normal(0, 0.25)
    pitch = np.clip(rng.normal(0, np.radians(3)), -MAX_PITCH, MAX_PITCH)
    roll = np.clip(rng.normal(0, np.radians(0.8)), -MAX_ROLL, MAX_ROLL)
    return Pose(np.array([x, y, rng.uniform(LOWEST, HIGHEST)]), float(yaw), float(pitch), float(roll))


def _score(world: World, coarse: Intrinsics, pose: Pose) -> float:
    rays = camera_rays(coarse, pose)
    hits = world.cast(pose.position[None], rays)
    names = np.array(world.soup.classes)[world.soup.objects[hits.triangle]]
    depth = hits.distance
    near, people, floor = (float(seen.mean()) for seen in (depth < NEAR, names == "person", names == "floor"))
    glass = float(np.isin(names, ("glass pane", "window", "mirror")).mean())
    score = min(near, 0.3) + min(people, 0.15) + min(glass, 0.1) + min(floor, 0.25)
    return score - max(0.0, near - 0.5) - 5.0 * float(np.percentile(depth, 1) < CLEARANCE)


def develop_moving(radiance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Develop the image of a moving camera in any light: develop_image() with motion blur and dim, noisy exposures."""
    height, width = radiance.shape[:2]
    if rng.random() < 0.5:
        length, angle = rng.uniform(0.002, 0.015) * width, rng.normal(0, 0.4)
        steps = np.linspace(-0.5, 0.5, max(3, int(2 * length))) * length
        kernel = np.zeros((2 * math.ceil(length) + 1,) * 2, np.float32)
        middle = math.ceil(length)
        for step in steps:
            kernel[round(middle + step * math.sin(angle)), round(middle + step * math.cos(angle))] += 1
        radiance = cv2.filter2D(radiance, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    rgb = develop_image(radiance, rng).astype(np.float32) / 255
    dim = float(rng.uniform(0.35, 1.0)) if rng.random() < 0.4 else 1.0
    noise = rng.standard_normal(rgb.shape, np.float32) * np.float32(rng.uniform(0, 0.03) / dim)
    return (np.clip(rgb * dim**0.45 + noise * np.sqrt(rgb + 0.02), 0, 1) * 255 + 0.5).astype(np.uint8)
