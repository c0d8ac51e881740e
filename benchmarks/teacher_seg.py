"""Speedup of SAM2 from encoding each image once for all its boxes instead of once per box.

YOLO's boxes are timed, too, for the frames per second of both networks together.

Reads   nothing; images, boxes and weights are random, which does not affect speed.
Writes  a temporary folder, removed at the end; prints a table. Exit code 1 if the speedup is below the bound.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

try:
    from cli import EXIT_GATE_FAILED, EXIT_OK, ArgumentParser, positive_int, resolve_device, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np
import torch
from tabulate import tabulate

from benchmarks.machine import peak_memory, processor
from teacher_infer.object_backends import SAM2_CONFIGS, YoloSam2
from teacher_infer.stage import limit_threads

MIN_SPEEDUP = 5.0  # over one encoding per box, with 8 boxes per frame
SIZE = (480, 640)


def make_backend(folder: Path, detector: str, size: str, device: str) -> YoloSam2:
    """Save YOLO and SAM2 of the given size with random weights, and load them like trained ones."""
    os.environ |= {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    from sam2.build_sam import build_sam2
    from ultralytics import YOLO

    YOLO(f"{detector}.yaml").save(folder / f"{detector}.pt")
    checkpoint = folder / f"sam2.1_hiera_{size}.pt"
    torch.save({"model": build_sam2(SAM2_CONFIGS[f"sam2.1_hiera_{size}"], None, device="cpu").state_dict()}, checkpoint)
    return YoloSam2(folder / f"{detector}.pt", checkpoint, None, device)


def draw_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw boxes, float32 [count,4], x0 y0 x1 y1, whose sides are a fifth to a half of the image's."""
    height, width = SIZE
    sides = random.uniform(0.2, 0.5, (count, 2)) * (width, height)
    corner = random.uniform(0, 1, (count, 2)) * ((width, height) - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def main() -> int:
    """Run the script and return the exit code."""
    parser = ArgumentParser(__doc__)
    sizes = [name.removeprefix("sam2.1_hiera_") for name in SAM2_CONFIGS if name.startswith("sam2.1")]
    parser.add_argument("--size", choices=sizes, default="tiny", help="size of SAM2 (default: %(default)s)")
    parser.add_argument("--detector", default="yolov8n", help="architecture of YOLO (default: %(default)s)")
    parser.add_argument("--boxes", type=positive_int, default=8, help="boxes per frame (default: %(default)s)")
    parser.add_argument("--frames", type=positive_int, default=3, help="timed frames (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    arguments = parser.parse_args()
    limit_threads()
    device, random = resolve_device(arguments.device), np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 255, (24, 32, 3), dtype=np.uint8), SIZE[::-1])
    boxes = draw_boxes(random, arguments.boxes)
    with tempfile.TemporaryDirectory() as name:
        backend = make_backend(Path(name), arguments.detector, arguments.size, arguments.device)
    methods: dict[str, Callable[[], object]] = {
        "one encoding per frame": lambda: backend.masks_of(image, boxes),
        "one encoding per box": lambda: [backend.masks_of(image, box[None]) for box in boxes],
        "boxes alone": lambda: backend.find([("", image)]),  # random weights find none, so there is nothing to segment
    }
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.frames + 1):
        rounds.append({})
        for method, work in methods.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rounds[-1][method] = time.perf_counter() - start
    rounds = rounds[1:]  # the first round is the warm-up
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"SAM2-{arguments.size}, {arguments.boxes} boxes per frame, torch {torch.__version__}, {where}")
    rows = [[method, *np.percentile([entry[method] for entry in rounds], (50, 0, 100))] for method in methods]
    print(tabulate(rows, ["", "median s per frame", "min", "max"], floatfmt=".3f"))
    batched, one_by_one, detection = methods
    whole = statistics.median(entry[detection] + entry[batched] for entry in rounds)
    print(f"boxes of {arguments.detector} and one encoding per frame: {1 / whole:.2f} frames/s")
    speedup = statistics.median(entry[one_by_one] / entry[batched] for entry in rounds)
    print(f"speedup {speedup:.2f}, bound {MIN_SPEEDUP}; peak memory {peak_memory():.0f} MB")
    return EXIT_OK if speedup >= MIN_SPEEDUP else EXIT_GATE_FAILED


if __name__ == "__main__":
    run(main)
