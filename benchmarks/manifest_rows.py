"""Time and memory of build_manifest.py for many frames.

Reads   nothing; a few 640x480 frames of noise are hard-linked under many names, so that each stem has its own files.
Writes  a temporary folder, removed at the end; prints a table.

The files are in the page cache, as they are right after the teachers wrote them.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from cli import ArgumentParser, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
from tabulate import tabulate

from benchmarks.machine import processor
from config import CLASS_NAMES, NYU_INTRINSICS
from dataset.files import write_json, write_npy, write_png

SCRIPT = Path(__file__).resolve().parents[1] / "teacher_infer" / "build_manifest.py"
MAPS = ("depth", "confidence", "da3_depth", "sam2_seg", "seg_confidence")
N_DISTINCT = 5
FRAMES_PER_FOLDER = 1000


def write_frame(folder: Path, number: int) -> dict[str, Path]:
    """Write one frame of noise; returns its files as {name of the folder: path}."""
    random = np.random.default_rng(number)
    size = (NYU_INTRINSICS.height, NYU_INTRINSICS.width)
    depth = random.uniform(1, 5, size).astype(np.float32)
    arrays: dict[str, np.ndarray] = {
        "depth": depth,
        "confidence": np.ones(size, np.float32),
        "da3_depth": depth,
        "sam2_seg": random.integers(0, len(CLASS_NAMES), size, dtype=np.uint8),
        "seg_confidence": np.full(size, 255, np.uint8),
    }
    files = {name: folder / name / f"{number}.npy" for name in MAPS}
    for name, array in arrays.items():
        write_npy(files[name], array)
    files["rgb"] = folder / "rgb" / f"{number}.png"
    write_png(files["rgb"], random.integers(0, 255, (*size, 3), dtype=np.uint8))
    return files


def write_data_folder(folder: Path, count: int) -> None:
    """Write a data folder with `count` frames and the files that loaders and teachers write beside them."""
    frames = [write_frame(folder / "distinct", number) for number in range(N_DISTINCT)]
    for number in range(count):
        stem = f"{number // FRAMES_PER_FOLDER:03d}/{number:06d}"
        for name, path in frames[number % N_DISTINCT].items():
            target = folder / name / f"{stem}{path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    stems = [f"{number // FRAMES_PER_FOLDER:03d}/{number:06d}" for number in range(count)]
    write_json(folder / "splits.json", {"train": stems[: -count // 10], "val": [], "test": stems[-count // 10 :]})
    write_json(folder / "camera.json", vars(NYU_INTRINSICS))
    for name in ("da3_depth", "sam2_seg"):
        write_json(folder / name / "provenance.json", {"backend": "noise", "model": "noise", "versions": {}})


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rows", type=positive_int, nargs="+", default=[1000, 10000], help="default: 1000 10000")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed runs of each (default: %(default)s)")
    arguments = parser.parse_args()
    table = []
    for count in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data_folder(folder, count)
            command = [sys.executable, SCRIPT, "--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth"]
            command += ["--da3-dir", folder / "da3_depth", "--sam2-dir", folder / "sam2_seg"]
            command += ["--output", folder / "manifest.jsonl"]
            seconds = []
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                subprocess.run([str(argument) for argument in command], check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - start)
            table.append([count, statistics.median(seconds), min(seconds), max(seconds)])
    print(tabulate(table, ["rows", "seconds (median)", "min", "max"], floatfmt=(".0f", ".1f", ".1f", ".1f")))
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{arguments.rounds} runs each; peak memory {memory:.0f} MB; {os.cpu_count()} cores of {processor()}")


if __name__ == "__main__":
    run(main)
