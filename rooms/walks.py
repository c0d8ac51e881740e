"""Walks: a camera that moves through a room at a steady rate while the standing people walk to and fro."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rooms.geometry import Soup, placement
from rooms.render import Pose, World
from rooms.shell import Room

SPEEDS = (0.3, 0.9)  # of the camera, metres per second, drawn per walk
PEOPLE_SPEEDS = (0.7, 1.4)  # metres per second, drawn per person
TURN_RATE = 0.35  # standard deviation of the camera's turning, radians per second
AVOID_RATE = 1.0  # radians per second when something is ahead
AHEAD = 0.8  # metres: nearer things make the camera turn on the spot
PERSON_RADIUS = 0.35  # metres
SHAKE = np.radians(0.4)  # standard deviation of pitch and roll around those of the first pose


def walk(
    world: World, room: Room, start: Pose, frames: int, rate: float, rng: np.random.Generator
) -> Iterator[tuple[float, Pose, World]]:
    """Yield the time in seconds, the camera's pose and the world of each frame of a walk.

    Args:
        world: the room as it was built.
        room: its standing people walk.
        start: pose of the first frame.
        frames: number of frames.
        rate: frames per second.
        rng: source of speeds, turns and shaking.
    """
    step = 1 / rate
    speed, turn, side = rng.uniform(*SPEEDS), 0.0, rng.choice([-1, 1])
    paths = {number: _free_path(world, frame, rng) for number, frame in room.standing.items()}
    pose = start
    for index in range(frames):
        time = index * step
        now = world.with_geometry(_move_people(world.soup, paths, time)) if paths else world
        yield time, replace(
            pose, pitch=start.pitch + rng.normal(0, SHAKE), roll=start.roll + rng.normal(0, SHAKE)
        ), now
        if _free_distance(now, pose) < AHEAD:
            pose = replace(pose, yaw=pose.yaw + side * AVOID_RATE * step)
            continue
        side = rng.choice([-1, 1])
        turn = 0.8 * turn + 0.6 * rng.normal(0, TURN_RATE)
        forward = np.array([np.cos(pose.yaw), np.sin(pose.yaw), 0.0])
        pose = replace(pose, position=pose.position + speed * step * forward, yaw=pose.yaw + turn * step)


def _free_distance(world: World, pose: Pose) -> float:
    """Metres to the nearest thing in a fan of level rays ahead of the camera."""
    angles = pose.yaw + np.radians(np.linspace(-25, 25, 11))
    rays = np.stack([np.cos(angles), np.sin(angles), np.zeros(len(angles))], 1)
    return float(world.cast(pose.position[None], rays).distance.min())


def _free_path(world: World, frame: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """A person's frame, speed and the metres that are free before it, at the height of knees, hips and head."""
    forward, right = frame[:3, 1], frame[:3, 0]
    start = frame[:3, 3] + PERSON_RADIUS * forward
    origins = np.stack([
        start + side * 0.25 * right + [0, 0, height] for side in (-1, 0, 1) for height in (0.3, 0.9, 1.5)
    ])
    distance = world.cast(origins, np.broadcast_to(forward, origins.shape)).distance.min()
    return frame, float(rng.uniform(*PEOPLE_SPEEDS)), float(np.clip(distance - PERSON_RADIUS, 0, 6))


def _move_people(soup: Soup, paths: dict[int, tuple[np.ndarray, float, float]], time: float) -> Soup:
    """The triangles at a time: people walk to the end of their free path, turn, and walk back."""
    vertices, normals = soup.vertices.copy(), soup.normals.copy()
    for number, (frame, speed, length) in paths.items():
        if length < PERSON_RADIUS:
            continue
        travelled = speed * time % (2 * length)
        turned = travelled > length
        there = placement(0, min(travelled, 2 * length - travelled), heading=np.pi if turned else 0.0)
        moved = frame @ there @ np.linalg.inv(frame)
        rows = soup.objects == number
        vertices[rows] = vertices[rows] @ moved[:3, :3].T + moved[:3, 3]
        normals[rows] = (normals[rows] @ moved[:3, :3].T).astype(np.float32)
    return replace(soup, vertices=vertices, normals=normals)
