"""What one encoding an image saves: SAM2 with all boxes of a frame at once against one encoding a box.

Reads   nothing; images and boxes are drawn, weights are random, which speed does not depend on.
Writes  a temporary folder, removed at the end; prints a table. Exit code 1 when the gain is below the bound.
"""

import os
import statistics
import sys
import tempfile
import time
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

BOUND = 5.0  # times the speed of one encoding a box, at 8 boxes a frame
SIZE = (480, 640)


def make_backend(folder: Path, size: str, device: str) -> YoloSam2:
    """YOLOv8n and a SAM2 of a size with random weights, through the same path as trained ones."""
    os.environ |= {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    from sam2.build_sam import build_sam2
    from ultralytics import YOLO

    YOLO("yolov8n.yaml").save(folder / "yolov8n.pt")
    checkpoint = folder / f"sam2.1_hiera_{size}.pt"
    torch.save({"model": build_sam2(SAM2_CONFIGS[f"sam2.1_hiera_{size}"], None, device="cpu").state_dict()}, checkpoint)
    return YoloSam2(folder / "yolov8n.pt", checkpoint, None, device)


def draw_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes float32 [count,4], x0 y0 x1 y1, of a fifth to a half of the image's sides."""
    height, width = SIZE
    sides = random.uniform(0.2, 0.5, (count, 2)) * (width, height)
    corner = random.uniform(0, 1, (count, 2)) * ((width, height) - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def main() -> int:
    """Run the script; returns the exit code."""
    parser = ArgumentParser(__doc__)
    sizes = [name.removeprefix("sam2.1_hiera_") for name in SAM2_CONFIGS if name.startswith("sam2.1")]
    parser.add_argument("--size", choices=sizes, default="tiny", help="of SAM2 (default: %(default)s)")
    parser.add_argument("--boxes", type=positive_int, default=8, help="a frame (default: %(default)s)")
    parser.add_argument("--frames", type=positive_int, default=3, help="timed frames (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    arguments = parser.parse_args()
    limit_threads()
    device, random = resolve_device(arguments.device), np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 255, (24, 32, 3), dtype=np.uint8), SIZE[::-1])
    boxes = draw_boxes(random, arguments.boxes)
    with tempfile.TemporaryDirectory() as name:
        backend = make_backend(Path(name), arguments.size, arguments.device)
    ways = {
        "one encoding a frame": lambda: backend.masks_of(image, boxes),
        "one encoding a box": lambda: [backend.masks_of(image, box[None]) for box in boxes],
    }
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.frames + 1):
        rounds.append({})
        for way, work in ways.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rounds[-1][way] = time.perf_counter() - start
    rounds = rounds[1:]  # the first one warms up
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"SAM2-{arguments.size}, {arguments.boxes} boxes a frame, torch {torch.__version__}, {where}")
    rows = [[way, *np.percentile([entry[way] for entry in rounds], (50, 0, 100))] for way in ways]
    print(tabulate(rows, ["", "median s a frame", "fastest", "slowest"], floatfmt=".3f"))
    first, second = ways
    gain = statistics.median(entry[second] / entry[first] for entry in rounds)
    print(f"{gain:.2f} times as fast, bound {BOUND}; peak memory {peak_memory():.0f} MB")
    return EXIT_OK if gain >= BOUND else EXIT_GATE_FAILED


if __name__ == "__main__":
    run(main)
