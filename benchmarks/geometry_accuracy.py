"""Accuracy of floor, wall and glass from depth geometry, compared with simple rules on image rows.

Reads   nothing, or a data folder with reference labels (--data).
Writes  a temporary folder of rendered rooms, removed at the end; prints a table of IoU.

The seed of the rooms was fixed before the rules were tuned. Both are run on the reference depth and on a version with
a teacher's errors: 1 % noise, blurred edges, and a scale that drifts smoothly by up to 10 % over the image.
"""

import sys
from collections.abc import Callable
from pathlib import Path

try:
    from cli import ArgumentParser, non_negative_int, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.rendered import data_folder
from config import CLASS_NAMES, IGNORE, Intrinsics
from dataset.files import read_image
from dataset.frames import find_frames, read_classes, read_confidence, read_depth
from dataset.manifest import Cameras
from evaluation.metrics import ConfusionMatrix
from teacher_infer.geometry import FLOOR, GLASS, OTHER, WALL, GeometryResult, classify
from teacher_infer.object_backends import Reference
from teacher_infer.run_sam2 import merge

SEED = 2026
CLASSES = {"floor": FLOOR, "wall": WALL, "glass": GLASS}


def disturb(depth: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Add a teacher's errors to depth, float32 [H,W] metres."""
    height, width = depth.shape
    drift = cv2.resize(random.uniform(-0.1, 0.1, (3, 4)), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = 1 + 0.01 * random.standard_normal(depth.shape)
    return (cv2.GaussianBlur(depth, (0, 0), 2) * (1 + drift.clip(-0.1, 0.1)) * noise).astype(np.float32)


def simple_rules(rgb: np.ndarray, depth: np.ndarray, sensor: np.ndarray, *_: object) -> np.ndarray:
    """Label near pixels in the lower half as floor, small depth gradients as wall, holes at image edges as glass."""
    gradient = np.hypot(cv2.Sobel(depth, cv2.CV_32F, 1, 0), cv2.Sobel(depth, cv2.CV_32F, 0, 1))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    edges = cv2.blur(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), (15, 15))
    lower = np.arange(len(depth))[:, None] > len(depth) / 2
    classes = np.full(depth.shape, OTHER, np.uint8)
    classes[gradient < 0.05 * depth] = WALL
    classes[lower & (depth < np.median(depth))] = FLOOR
    classes[(sensor == 0) & (edges > np.median(edges))] = GLASS
    return classes


def geometry_rules(rgb: np.ndarray, depth: np.ndarray, sensor: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Label pixels with teacher_infer/geometry.py."""
    return classify(depth, camera, sensor).classes


def evaluate(folder: Path, limit: int | None, seed: int) -> dict[str, ConfusionMatrix]:
    """Return {row of the table: confusion matrix}; `seed` determines the errors added to the depth."""
    cameras, objects = Cameras.read(folder / "camera.json"), Reference(folder)
    methods: dict[str, Callable] = {"simple rules": simple_rules, "geometry": geometry_rules}
    matrices: dict[str, ConfusionMatrix] = {}
    frames = list(find_frames(folder / "rgb").items())[:limit]
    for number, (stem, path) in enumerate(tqdm(frames, disable=None)):
        rgb, labels = read_image(path), read_classes(folder / "labels" / f"{stem}.png")
        reference, confidence = (
            read(folder / name / f"{stem}.npy")
            for read, name in ((read_depth, "depth"), (read_confidence, "confidence"))
        )
        sensor = np.where(confidence > 0, reference, 0)
        (found,) = objects.find([(stem, rgb)])
        disturbed = disturb(reference, np.random.default_rng((seed, number)))
        for depth, kind in ((reference, "reference depth"), (disturbed, "disturbed depth")):
            for method, classify_frame in methods.items():
                classes = classify_frame(rgb, depth, sensor, cameras.for_frame(stem))
                surfaces = GeometryResult(classes, np.zeros(3), np.ones(classes.shape, np.float32))
                merged = merge(surfaces, found, depth)[0]
                for class_map, variant in ((classes, "alone"), (merged, "with reference objects")):
                    matrix = matrices.setdefault(f"{kind}, {method}, {variant}", ConfusionMatrix(len(CLASS_NAMES)))
                    matrix.update(*map(torch.from_numpy, (class_map, labels, labels != IGNORE)))
    return matrices


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data", help="a data folder with labels, instances and camera.json (default: render one)")
    parser.add_argument("--scenes", type=positive_int, default=100, help="rendered rooms, 2 frames each (default: 100)")
    parser.add_argument("--seed", type=non_negative_int, default=SEED, help="of the rooms (default: %(default)s)")
    parser.add_argument("--data-limit", type=non_negative_int, help="number of frames to use (default: all)")
    arguments = parser.parse_args()
    with data_folder(arguments.data, arguments.scenes, arguments.seed) as folder:
        matrices = evaluate(folder, arguments.data_limit, arguments.seed)
    rows = []
    for name, matrix in matrices.items():
        iou = matrix.compute()["iou"]
        assert isinstance(iou, list)
        rows.append([name, *(iou[class_id] for class_id in CLASSES.values())])
    print(tabulate(rows, ["IoU", *CLASSES], floatfmt=".3f"))


if __name__ == "__main__":
    run(main)
