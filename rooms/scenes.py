"""Scenes: furnished rooms and the views of them; the same seed gives the same arrays for any number of workers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from config import CLASS_NAMES, Intrinsics
from dataset.label_remapper import load_class_table
from dataset.parallel import process_map
from rooms.layout import Room, build_room
from rooms.render import Pose, World, camera_rays, develop_image, render
from rooms.robot import build_robot_room, choose_robot_poses, develop_moving
from rooms.tof import simulate_tof
from rooms.walks import walk

MAX_PITCH, MAX_ROLL = np.radians(15), np.radians(5)
N_CANDIDATE_POSES = 48  # per scene
SCORED_CLASSES = ("furniture", "glass", "person", "floor", "wall")  # of a view; see _score_pose()
FREE_PITCH = np.radians((-65, 20))  # limits of look 2
ROLL_DEVIATION, MAX_FREE_ROLL, LARGE_ROLL_SHARE = np.radians(4.5), np.radians(45), 0.2
N_FREE_CANDIDATES, FREE_CLEARANCE = 12, 0.25  # poses per scene; metres
TOF_WEAKNESS = (15.0, 150.0)  # of a robot's sensor, drawn per scene; see simulate_sensor()


@dataclass
class RenderedFrame:
    """One rendered view of H x W pixels.

    Attributes:
        rgb: uint8 [H,W,3].
        depth: float32 [H,W], metres along the optical axis; for glass and mirrors, of their surface.
        sensor_depth: float32 [H,W], metres, 0 = hole.
        labels: uint16 [H,W], NYU class ids, 0 = unlabelled.
        instances: uint8 [H,W], numbered from 1 within each class.
        scene: name of the scene.
        scene_type: a key of layout.PLANS.
        pose: camera pose.
        camera: intrinsics.
        time: seconds since the first frame of a walk; None for separate views.
    """

    rgb: np.ndarray
    depth: np.ndarray
    sensor_depth: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    scene: str
    scene_type: str
    pose: Pose
    camera: Intrinsics
    time: float | None = None


@dataclass(frozen=True)
class SceneOptions:
    """What to render of each scene.

    Attributes:
        seed: random seed.
        frames: number of views.
        camera: the camera, before the focal scale.
        focal_scales: range of the factor on the camera's focal length; each scene draws one, log-uniformly.
        view: handheld, robot, or mixed, which makes half of the scenes a robot's.
        walk_rate: frames per second of a walk; None renders separate views.
        look: version of the images. 1, as in the demo: handheld views are about level and avoid things nearer than
            0.7 m. 2: they look down on desks and floors, rolled, and near, as people film; rooms have more varied
            colours, prints and amounts of clutter; the light is cast faster.
    """

    seed: int
    frames: int
    camera: Intrinsics
    focal_scales: tuple[float, float] = (1.0, 1.0)
    view: str = "handheld"
    walk_rate: float | None = None
    look: int = 1

    def camera_of(self, scene_index: int) -> Intrinsics:
        """The camera of a scene."""
        low, high = self.focal_scales
        rng = np.random.default_rng([self.seed, scene_index, 1])  # separate, so that a scene is the same for any range
        return self.camera.with_focal_scale(float(low * (high / low) ** rng.random()))

    def is_robot(self, scene_index: int) -> bool:
        """Whether a robot sees the scene."""
        mixed = self.view == "mixed" and np.random.default_rng([self.seed, scene_index, 2]).random() < 0.5
        return self.view == "robot" or mixed


@cache
def class_table() -> tuple[list[str], dict[str, str]]:
    """Return the 894 class names in the order of their ids, which start at 1, and {name: student class}."""
    rows = load_class_table()
    return [row.name for row in rows], {row.name: CLASS_NAMES[row.class_id] for row in rows}


def render_scene(options: SceneOptions, scene_index: int) -> Iterator[RenderedFrame]:
    """Build a scene and yield its views; they depend on the arguments only.

    A handheld camera's sensor looks from where the colour camera is, a robot's is a time-of-flight camera beside it.
    """
    rng = np.random.default_rng([options.seed, scene_index])
    camera, robot = options.camera_of(scene_index), options.is_robot(scene_index)
    varied = options.look == 2
    scene_type, room = build_robot_room(rng, varied) if robot else build_room(rng, varied=varied)
    scene = f"{'robot_' if robot else ''}{scene_type}_{scene_index + 1:04d}"
    world = room.world()
    weakness = float(np.exp(rng.uniform(*np.log(TOF_WEAKNESS)))) if robot else 1.0
    choose = choose_robot_poses if robot else (choose_poses if options.look == 1 else choose_free_poses)
    views: Iterable[tuple[float | None, Pose, World]]
    if options.walk_rate is None:
        views = ((None, pose, world) for pose in choose(world, room, camera, options.frames, rng))
    else:
        start = choose(world, room, camera, 1, rng)[0]
        views = walk(world, room, start, options.frames, options.walk_rate, rng)
    for time, pose, now in views:
        # a walk keeps the exposure and the grain of its first frame
        develop_rng = rng if time is None else np.random.default_rng([options.seed, scene_index, 3])
        develop = partial(develop_moving if robot else develop_image, rng=develop_rng)
        raw = render(now, camera, pose, rng, develop, options.look)
        labels, instances = _number_instances(raw.object, now.soup.classes)
        sensor = simulate_tof(now, camera, pose, rng, weakness) if robot else raw.sensor_depth
        yield RenderedFrame(raw.rgb, raw.depth, sensor, labels, instances, scene, scene_type, pose, camera, time)


def _number_instances(objects: np.ndarray, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Convert an image of object ids to labels and instances; instances are numbered from 1 per class and image."""
    names, _ = class_table()
    ids = {name: number for number, name in enumerate(names, 1)}
    label_of, instance_of = np.zeros(len(classes) + 1, np.uint16), np.zeros(len(classes) + 1, np.uint8)
    instance_counts: dict[str, int] = {}
    for number in np.unique(objects[objects >= 0]):
        name = classes[number]
        instance_counts[name] = min(instance_counts.get(name, 0) + 1, 255)
        label_of[number], instance_of[number] = ids[name], instance_counts[name]
    return label_of[objects], instance_of[objects]  # -1, no object, indexes the last entry, which is 0


def choose_poses(world: World, room: Room, camera: Intrinsics, frames: int, rng: np.random.Generator) -> list[Pose]:
    """Choose the best of many random poses by a score on a coarse image, and keep them apart from each other."""
    coarse = camera.resized(64, 48)
    poses = [_draw_pose(room, rng) for _ in range(N_CANDIDATE_POSES)]
    names = world.soup.classes
    students = [class_table()[1][name] for name in names]
    kinds = {name: np.array([student == name for student in students]) for name in SCORED_CLASSES}
    kinds["mirror"] = np.array([name == "mirror" for name in names])
    scores = np.array([_score_pose(world, kinds, coarse, pose) for pose in poses])
    scores += rng.uniform(0, 0.12, N_CANDIDATE_POSES)
    chosen: list[Pose] = []
    for min_distance in (0.8, 0.4, 0.0):
        for index in np.argsort(-scores, kind="stable"):
            pose = poses[index]
            if len(chosen) < frames and all(_distance(pose, other) > min_distance for other in chosen):
                chosen.append(pose)
    return (chosen * frames)[:frames]


def _distance(first: Pose, second: Pose) -> float:
    turn = np.abs((first.yaw - second.yaw + np.pi) % (2 * np.pi) - np.pi)
    return float(np.linalg.norm(first.position - second.position) / 2 + turn)


def _draw_pose(room: Room, rng: np.random.Generator) -> Pose:
    for _ in range(100):
        x, y = rng.uniform(0.25, room.width - 0.25), rng.uniform(0.25, room.depth - 0.25)
        if room.is_free((x, y, x, y), 0.2):
            break
    height = np.clip(rng.normal(1.35, 0.12), 0.9, 1.7)  # metres, hand-held or on a robot
    target = rng.uniform(0.1, 0.9, 2) * [room.width, room.depth]
    yaw = np.arctan2(target[1] - y, target[0] - x)
    pitch = np.clip(rng.normal(-0.13, 0.09), -MAX_PITCH, MAX_PITCH)
    roll = np.clip(rng.normal(0, 0.03), -MAX_ROLL, MAX_ROLL)
    return Pose(np.array([x, y, height]), float(yaw), float(pitch), float(roll))


def choose_free_poses(
    world: World, room: Room, camera: Intrinsics, frames: int, rng: np.random.Generator
) -> list[Pose]:
    """Choose poses of a camera that looks anywhere, mostly down; none has something right before the lens."""
    coarse = camera.resized(64, 48)
    poses = [_draw_free_pose(room, rng) for _ in range(N_FREE_CANDIDATES)]
    scores = np.array([_score_free_pose(world, coarse, pose) for pose in poses]) + rng.uniform(0, 0.4, len(poses))
    best = [poses[index] for index in np.argsort(-scores, kind="stable")[:frames]]
    return (best * frames)[:frames]


def _draw_free_pose(room: Room, rng: np.random.Generator) -> Pose:
    pose = _draw_pose(room, rng)
    height = np.clip(rng.normal(1.4, 0.25), 0.6, 2.0)
    pitch = np.clip(rng.normal(-0.35, 0.27), *FREE_PITCH)
    large = rng.random() < LARGE_ROLL_SHARE
    roll = rng.uniform(-MAX_FREE_ROLL, MAX_FREE_ROLL) if large else rng.normal(0, ROLL_DEVIATION)
    return Pose(np.array([*pose.position[:2], height]), pose.yaw, float(pitch), float(roll))


def _score_free_pose(world: World, coarse: Intrinsics, pose: Pose) -> float:
    """Higher with things than with bare walls and floors, far below 0 with something nearer than FREE_CLEARANCE."""
    hits = world.cast(pose.position[None], camera_rays(coarse, pose))
    _, class_of = class_table()
    classes = np.array([class_of[name] for name in world.soup.classes])[world.soup.objects[hits.triangle]]
    bare = float((classes == "wall").mean()) + 0.5 * float((classes == "floor").mean())
    return -bare - 5.0 * float(np.percentile(hits.distance, 1) < FREE_CLEARANCE)


def _score_pose(world: World, kinds: dict[str, np.ndarray], coarse: Intrinsics, pose: Pose) -> float:
    """Score a view: higher with furniture, glass, people, mirrors and floor, far below 0 if something is too close.

    kinds: {kind: which objects are of it, bool [objects]}.
    """
    rays = camera_rays(coarse, pose)
    hits = world.cast(pose.position[None], rays)
    pixels = np.bincount(world.soup.objects[hits.triangle], minlength=len(world.soup.classes))
    share = {name: float(pixels[objects].sum() / len(rays)) for name, objects in kinds.items()}
    depth = hits.distance.reshape(coarse.height, coarse.width)
    centre = depth[coarse.height // 4 : -coarse.height // 4, coarse.width // 4 : -coarse.width // 4]
    score = 1.2 * min(share["furniture"], 0.5) + min(share["glass"], 0.12) + 1.2 * min(share["person"], 0.1)
    score += 0.9 * min(share["floor"], 0.2) - max(0.0, share["wall"] - 0.45) + 1.5 * min(share["mirror"], 0.1)
    near = float(depth.min() < 0.35) + float((depth < 0.7).mean() > 0.1) + float(np.median(centre) < 1.3)
    return score - 0.6 * near - 5.0 * float(centre.min() < 0.4)


def render_scenes(options: SceneOptions, scenes: int, workers: int = 1) -> Iterator[RenderedFrame]:
    """Yield all frames of scenes 0 to scenes - 1 in order, rendered by `workers` processes; see render_scene()."""
    if workers == 1:
        for index in range(scenes):
            yield from render_scene(options, index)
        return
    for rendered in process_map(partial(_render_all, options), range(scenes), workers):
        yield from rendered


def _render_all(options: SceneOptions, scene_index: int) -> list[RenderedFrame]:
    return list(render_scene(options, scene_index))


def class_shares(labels: np.ndarray) -> dict[str, float]:
    """Share of each student class, 0..1, among the pixels of labels, uint16 [...] NYU class ids."""
    names, class_of = class_table()
    counts = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    total = dict.fromkeys(CLASS_NAMES, 0)
    for name, count in zip(names, counts, strict=True):
        total[class_of[name]] += int(count)
    return {name: count / max(1, labels.size) for name, count in total.items()}
