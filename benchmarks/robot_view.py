"""The robot's view of rendered rooms in figures: ranges, the time-of-flight sensor's holes, registration, geometry.

Reads   nothing.
Writes  a sheet of frames (--sheet); prints three tables.

Published and intended figures: arXiv 2603.28890 reports 79.7 % of the pixels dead in a corridor, and 62 % of the valid
ones nearer than 1 m. Depth nearer than 1 m made up 4.7 % of the handheld rooms' pixels, nearer than 0.5 m 0.13 %.
"""

import sys
from pathlib import Path

try:
    from cli import ArgumentParser, existing_file, non_negative_int, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.geometry_accuracy import CLASSES
from config import CLASS_NAMES, IGNORE, NYU_INTRINSICS, Intrinsics
from dataset.files import write_png
from dataset.label_remapper import remap
from dataset.manifest import Cameras
from evaluation.metrics import ConfusionMatrix
from rooms.render import World, camera_rays
from rooms.robot import build_robot_room, choose_robot_poses
from rooms.scenes import RenderedFrame, SceneOptions, render_scenes
from rooms.tof import BASELINE, beside, register, tof_camera
from teacher_infer.geometry import classify

COLUMNS = 6  # of the sheet
EDGE = 0.06  # relative range of depth in 9x9 pixels above which a pixel lies at a depth edge


def describe_ranges(frames: list[RenderedFrame]) -> list[list[object]]:
    """Rows of the first table: figure, all frames, corridors, published or intended."""
    rows: list[list[object]] = []
    corridors = [frame for frame in frames if frame.scene_type == "corridor"]
    measures = (
        ("depth nearer than 1 m", lambda f: (f.depth < 1, f.depth > 0), "much more than 4.7 %"),
        ("depth nearer than 0.5 m", lambda f: (f.depth < 0.5, f.depth > 0), "much more than 0.13 %"),
        ("sensor dead", lambda f: (f.sensor_depth == 0, f.depth > 0), "70 to 85 % in corridors, 79.7 % published"),
        ("readings nearer than 1 m", lambda f: (f.sensor_depth < 1, f.sensor_depth > 0), "about 60 %, 62 % published"),
        ("sensor dead on floors", lambda f: (f.sensor_depth == 0, remap(f.labels) == CLASSES["floor"]), "most"),
        ("sensor dead on glass", lambda f: (f.sensor_depth == 0, remap(f.labels) == CLASSES["glass"]), "nearly all"),
        ("sensor dead elsewhere", lambda f: (f.sensor_depth == 0, ~np.isin(remap(f.labels), (0, 4))), "fewer"),
    )
    for name, measure, intended in measures:
        shares = []
        for group in (frames, corridors):
            counts = np.sum([[np.sum(hit & of), np.sum(of)] for hit, of in map(measure, group)], axis=0)
            shares.append(f"{counts[0] / max(counts[1], 1):.1%}")
        rows.append([name, *shares, intended])
    return rows


def registration_errors(camera: Intrinsics, seed: int, rooms: int) -> np.ndarray:
    """Relative errors of exact depth, registered from the sensor to colour, away from depth edges."""
    errors = []
    for scene in range(rooms):
        rng = np.random.default_rng([seed, scene])
        _, room = build_robot_room(rng)
        world = room.world()
        pose = choose_robot_poses(world, room, camera, 1, rng)[0]
        sensor = tof_camera(camera)
        truth = _cast(world, camera, camera_rays(camera, pose), pose.position)
        placed = beside(pose)
        depth = _cast(world, sensor, camera_rays(sensor, placed), placed.position)
        found = register(depth, sensor, camera, np.array([BASELINE, 0, 0]))
        both = ~_depth_edges(truth) & (found > 0) & (truth > 0)
        errors.append(np.abs(found[both] / truth[both] - 1))
    return np.concatenate(errors)


def _cast(world: World, camera: Intrinsics, rays: np.ndarray, position: np.ndarray) -> np.ndarray:
    distance = world.cast(position[None], rays).distance
    return np.where(np.isfinite(distance), distance, 0).astype(np.float32).reshape(camera.height, camera.width)


def _depth_edges(depth: np.ndarray) -> np.ndarray:
    kernel = np.ones((9, 9), np.uint8)
    return cv2.dilate(depth, kernel) - cv2.erode(depth, kernel) > EDGE * depth


def geometry_iou(frames: list[RenderedFrame]) -> list[list[object]]:
    """Rows of the third table: sensor, IoU of floor, wall and glass by depth geometry."""
    rows = []
    sensors = {
        "no sensor": lambda frame: None,
        "holes on glass alone": lambda frame: np.where(remap(frame.labels) == CLASSES["glass"], 0, frame.depth),
        "time of flight": lambda frame: frame.sensor_depth,
    }
    for name, sensor in sensors.items():
        matrix = ConfusionMatrix(len(CLASS_NAMES))
        for frame in tqdm(frames, name, leave=False, disable=None):
            labels = remap(frame.labels)
            classes = classify(frame.depth, frame.camera, sensor(frame)).classes
            matrix.update(*map(torch.from_numpy, (classes, labels, labels != IGNORE)))
        iou = matrix.compute()["iou"]
        assert isinstance(iou, list)
        rows.append([name, *(iou[class_id] for class_id in CLASSES.values())])
    return rows


def draw_sheet(frames: list[RenderedFrame], count: int) -> np.ndarray:
    """`count` evenly spaced images, 320 pixels wide, in rows of COLUMNS."""
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, count).astype(int)]
    height = round(320 * chosen[0].camera.height / chosen[0].camera.width)
    images = [cv2.resize(frame.rgb, (320, height), interpolation=cv2.INTER_AREA) for frame in chosen]
    return np.concatenate([np.concatenate(images[i : i + COLUMNS], 1) for i in range(0, count, COLUMNS)])


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frames", type=positive_int, default=200, help="one per room (default: %(default)s)")
    parser.add_argument("--seed", type=non_negative_int, default=2000, help="of the rooms (default: %(default)s)")
    parser.add_argument("--camera", metavar="FILE", help="camera.json of the colour camera (default: NYU's)")
    parser.add_argument("--workers", type=positive_int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="write 24 of the frames to this PNG")
    arguments = parser.parse_args()
    camera = NYU_INTRINSICS
    if arguments.camera:
        camera = Cameras.read(existing_file(arguments.camera, "--camera")).common or camera
    options = SceneOptions(arguments.seed, 1, camera, view="robot")
    rendered = render_scenes(options, arguments.frames, arguments.workers)
    frames = list(tqdm(rendered, total=arguments.frames, unit="frame", disable=None))
    if arguments.sheet:
        write_png(arguments.sheet, draw_sheet(frames, 24))
    print(tabulate(describe_ranges(frames), ["share of pixels", "all", "corridors", "published or intended"]))
    errors = registration_errors(camera, arguments.seed, min(arguments.frames, 40))
    percentiles = np.percentile(errors, (50, 95))
    print("\nregistration of exact depth, away from depth edges: relative error, median and 95th percentile: "
          f"{percentiles[0]:.3%}, {percentiles[1]:.3%}\n")  # fmt: skip
    print(tabulate(geometry_iou(frames), ["IoU of the geometry rules", *CLASSES], floatfmt=".3f"))


if __name__ == "__main__":
    run(main)
