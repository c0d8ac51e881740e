"""Reads nothing; writes rendered rooms to one file in the layout of nyu_depth_v2_labeled.mat.

Renders furnished rooms and corridors with people, windows, mirrors and glass doors: colour, exact depth, NYU class ids,
instances, and simulated time-of-flight depth. The same seed gives the same arrays for any number of workers.
"""

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import h5py
import numpy as np
from tqdm import tqdm

from config import CLASS_NAMES, NYU_INTRINSICS, Intrinsics
from dataset.files import atomic_path, write_png
from dataset.label_remapper import load_class_table
from rooms.flags import add_room_flags, focal_scale_range
from rooms.layout import Room, build_room
from rooms.render import Pose, World, camera_rays, render
from rooms.robot import build_robot_room, choose_robot_poses, develop_moving
from rooms.tof import simulate_tof

MAX_PITCH, MAX_ROLL = np.radians(15), np.radians(5)
N_CANDIDATE_POSES = 48  # per scene
SCORED_CLASSES = ("furniture", "glass", "person", "floor", "wall")  # of a view; see _score_pose()
PREVIEW_ROWS = 8
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


@cache
def class_table() -> tuple[list[str], dict[str, str]]:
    """Return the 894 class names in the order of their ids, which start at 1, and {name: student class}."""
    rows = load_class_table()
    return [row.name for row in rows], {row.name: CLASS_NAMES[row.class_id] for row in rows}


def render_scene(
    seed: int,
    scene_index: int,
    frames: int,
    camera: Intrinsics,
    focal_scales: tuple[float, float] = (1.0, 1.0),
    view: str = "handheld",
) -> list[RenderedFrame]:
    """Build scene `scene_index` of `seed` and render `frames` views of it; the result depends on the arguments only.

    Args:
        seed: random seed.
        scene_index: number of the scene.
        frames: number of views.
        camera: the camera, before the focal scale.
        focal_scales: range of the factor on the camera's focal length; each scene draws one, log-uniformly.
        view: handheld, robot, or mixed, which makes half of the scenes a robot's.
    """
    camera = camera.with_focal_scale(_draw_focal_scale(seed, scene_index, focal_scales))
    rng = np.random.default_rng([seed, scene_index])
    if view == "robot" or view == "mixed" and np.random.default_rng([seed, scene_index, 2]).random() < 0.5:
        return _render_robot_scene(scene_index, frames, camera, rng)
    scene_type, room = build_room(rng)
    world = room.world()
    poses = choose_poses(world, room, camera, frames, rng)
    scene = f"{scene_type}_{scene_index + 1:04d}"
    return [_render_frame(world, camera, pose, rng, scene, scene_type) for pose in poses]


def _render_robot_scene(
    scene_index: int, frames: int, camera: Intrinsics, rng: np.random.Generator
) -> list[RenderedFrame]:
    """Render views of a robot's room; the sensor depth is that of a time-of-flight camera beside the colour camera."""
    scene_type, room = build_robot_room(rng)
    world = room.world()
    weakness = float(np.exp(rng.uniform(*np.log(TOF_WEAKNESS))))
    rendered = []
    for pose in choose_robot_poses(world, room, camera, frames, rng):
        raw = render(world, camera, pose, rng, develop_moving)
        labels, instances = _number_instances(raw.object, world.soup.classes)
        sensor = simulate_tof(world, camera, pose, rng, weakness)
        scene = f"robot_{scene_type}_{scene_index + 1:04d}"
        rendered.append(RenderedFrame(raw.rgb, raw.depth, sensor, labels, instances, scene, scene_type, pose, camera))
    return rendered


def _draw_focal_scale(seed: int, scene_index: int, focal_scales: tuple[float, float]) -> float:
    low, high = focal_scales
    rng = np.random.default_rng([seed, scene_index, 1])  # separate, so that a scene is the same for any range
    return float(low * (high / low) ** rng.random())


def _render_frame(
    world: World, camera: Intrinsics, pose: Pose, rng: np.random.Generator, scene: str, scene_type: str
) -> RenderedFrame:
    raw = render(world, camera, pose, rng)
    labels, instances = _number_instances(raw.object, world.soup.classes)
    return RenderedFrame(raw.rgb, raw.depth, raw.sensor_depth, labels, instances, scene, scene_type, pose, camera)


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


def _render_job(arguments: tuple[int, int, int, Intrinsics, tuple[float, float], str]) -> list[RenderedFrame]:
    return render_scene(*arguments)


def _ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the workers; the main process ends them


def render_scenes(
    seed: int,
    scenes: int,
    frames: int,
    camera: Intrinsics,
    workers: int = 1,
    focal_scales: tuple[float, float] = (1.0, 1.0),
    view: str = "handheld",
) -> Iterator[RenderedFrame]:
    """Yield all frames of scenes 0 to scenes - 1 in order, rendered by `workers` processes; see render_scene()."""
    jobs = ((seed, index, frames, camera, focal_scales, view) for index in range(scenes))
    if workers == 1:
        for job in jobs:
            yield from _render_job(job)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _ignore_sigint) as pool:
        for rendered in pool.imap(_render_job, jobs):
            yield from rendered


def write_mat(path: str | Path, frames: Iterator[RenderedFrame], count: int, width: int, height: int) -> None:
    """Write `count` frames of width x height pixels, one by one, in the layout of nyu_depth_v2_labeled.mat.

    Datasets: images (N,3,W,H) uint8; depths, rawDepths (N,W,H) float32; labels (N,W,H) uint16; instances (N,W,H)
    uint8; names (1,894), scenes, sceneTypes (1,N) references to uint16 characters. Not part of NYU's layout:
    intrinsics (N,4) float64, fx fy cx cy. Raises ValueError if `frames` yields another number of frames.
    """
    layout = {
        "images": ((3, width, height), np.uint8),
        "depths": ((width, height), np.float32),
        "rawDepths": ((width, height), np.float32),
        "labels": ((width, height), np.uint16),
        "instances": ((width, height), np.uint8),
    }
    scenes, types, cameras = [], [], []
    with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        datasets = {
            name: file.create_dataset(
                name, (count, *shape), dtype, chunks=(1, *shape), compression="gzip", compression_opts=1, shuffle=True
            )
            for name, (shape, dtype) in layout.items()
        }
        for index, frame in enumerate(frames):
            datasets["images"][index] = frame.rgb.transpose(2, 1, 0)
            for name, image in (
                ("depths", frame.depth),
                ("rawDepths", frame.sensor_depth),
                ("labels", frame.labels),
                ("instances", frame.instances),
            ):
                datasets[name][index] = image.T
            scenes.append(frame.scene)
            types.append(frame.scene_type)
            cameras.append([frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy])
        if len(scenes) != count:
            raise ValueError(f"expected {count} frames, got {len(scenes)}")
        for name, texts in (("names", class_table()[0]), ("scenes", scenes), ("sceneTypes", types)):
            _write_cell_array(file, name, texts)
        file["intrinsics"] = np.array(cameras)
        file.attrs["rendered"] = 1


def _write_cell_array(file: h5py.File, name: str, texts: list[str]) -> None:
    """Write a MATLAB cell array of strings: (1,n) references to (k,1) character codes in the group #refs#."""
    references = file.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
    references.attrs["MATLAB_class"] = np.bytes_("cell")
    group = file.require_group("#refs#")
    for index, text in enumerate(texts):
        codes = np.array([ord(character) for character in text], np.uint16)[:, None]
        string = group.create_dataset(f"{name}_{index}", data=codes)
        string.attrs["MATLAB_class"] = np.bytes_("char")
        references[0, index] = string.ref


def contact_sheet(frames: list[RenderedFrame]) -> np.ndarray:
    """Draw one row per frame, uint8 RGB: image, depth, labels, sensor depth; near is red, holes are black."""
    rows = []
    for frame in frames:
        max_depth = max(float(np.percentile(frame.depth, 98)), 0.1)
        depth, sensor = (_false_colour(image, max_depth) for image in (frame.depth, frame.sensor_depth))
        palette = np.random.default_rng(3).integers(40, 256, (len(class_table()[0]) + 1, 3)).astype(np.uint8)
        palette[0] = 0
        row = np.concatenate([frame.rgb, depth, palette[frame.labels], sensor], 1)
        rows.append(cv2.resize(row, (1280, 240), interpolation=cv2.INTER_AREA))
    return np.concatenate(rows)


def _false_colour(depth: np.ndarray, max_depth: float) -> np.ndarray:
    scaled = 255 - np.clip(depth / max_depth * 255, 0, 255).astype(np.uint8)
    colour = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.where(depth[..., None] > 0, colour, 0).astype(np.uint8)


def class_shares(labels: np.ndarray) -> dict[str, float]:
    """Share of each student class, 0..1, among the pixels of labels, uint16 [...] NYU class ids."""
    names, class_of = class_table()
    counts = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    total = dict.fromkeys(CLASS_NAMES, 0)
    for name, count in zip(names, counts, strict=True):
        total[class_of[name]] += int(count)
    return {name: count / max(1, labels.size) for name, count in total.items()}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--out", required=True, metavar="MAT", help="file to write, e.g. rooms.mat")
    add_room_flags(parser, scenes=60, frames_per_scene=4)
    parser.add_argument("--workers", type=positive_int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--preview", metavar="PNG", help="also write a contact sheet of the first frames")
    return parser.parse_args()


def main() -> None:
    """Run the script."""
    args = parse_arguments()
    if args.preview and Path(args.preview).suffix.lower() != ".png":
        raise UserError(f"--preview {args.preview}: the name must end in .png")
    focal_scales = focal_scale_range(args.focal_scale)
    camera = NYU_INTRINSICS
    count = args.scenes * args.frames_per_scene
    preview: list[RenderedFrame] = []
    step = args.frames_per_scene

    def with_preview() -> Iterator[RenderedFrame]:
        frames = render_scenes(args.seed, args.scenes, step, camera, args.workers, focal_scales, args.view)
        for index, frame in enumerate(tqdm(frames, total=count, unit="frame", disable=None)):
            if args.preview and index % step == 0 and len(preview) < PREVIEW_ROWS:
                preview.append(frame)
            yield frame

    write_mat(args.out, with_preview(), count, camera.width, camera.height)
    if args.preview:
        write_png(args.preview, contact_sheet(preview))
    focal = " to ".join(f"{factor:g}" for factor in args.focal_scale)
    rooms = f"{args.scenes} rooms, {args.view} view, seed {args.seed}"
    print(f"{args.out}: {count} frames of {rooms}, focal length {focal} times NYU's")


if __name__ == "__main__":
    run(main)
