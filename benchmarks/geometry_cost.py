"""Cost of floor, wall and glass from depth geometry: time per frame on one core, and memory of the process.

Reads   nothing, or a data folder (--data).
Writes  a temporary folder of rendered rooms, removed at the end; prints a table.

No network is loaded, so the memory is that of the geometry.
"""

import os
import sys
import time

try:
    from cli import ArgumentParser, UserError, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported
import cv2
import numpy as np
from tabulate import tabulate

from benchmarks.machine import peak_memory, processor
from benchmarks.rendered import data_folder
from dataset.frames import find_frames, find_map, read_confidence, read_depth
from dataset.manifest import Cameras
from teacher_infer.geometry import classify

SEED = 2026


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data", help="a data folder with depth, confidence and camera.json (default: render one)")
    parser.add_argument("--scenes", type=positive_int, default=10, help="rendered rooms, 2 frames each (default: 10)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timed runs per frame (default: %(default)s)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with data_folder(arguments.data, arguments.scenes, SEED) as folder:
        cameras, seconds, before = Cameras.read(folder / "camera.json"), [], peak_memory()
        frames = find_frames(folder / "rgb")
        for stem in frames:
            depth_map, confidence = find_map(folder / "depth", stem), find_map(folder / "confidence", stem)
            if depth_map is None:
                raise UserError(f"{folder}: frame {stem} has no depth")
            depth = read_depth(depth_map)
            sensor = depth if confidence is None else np.where(read_confidence(confidence) > 0, depth, 0)
            for _ in range(arguments.rounds):
                start = time.process_time()
                classify(depth, cameras.for_frame(stem), sensor)
                seconds.append(time.process_time() - start)
    low, median, high = np.percentile(seconds, (5, 50, 95)) * 1000
    print(tabulate([[median, low, high, peak_memory(), before]], floatfmt=".0f", headers=(
        "ms per frame (median)", "p5", "p95", "peak memory MB", "before the first frame MB"
    )))  # fmt: skip
    print(
        f"{len(frames)} frames of {depth.shape[1]}x{depth.shape[0]}, {arguments.rounds} rounds, one core, {processor()}"
    )


if __name__ == "__main__":
    run(main)
