"""File-system cost of a million frames, in one folder and in sub-folders of a thousand.

Reads   nothing.
Writes  a temporary folder of tiny files, removed at the end; prints a table.

list: find_frames(), which every stage runs first. resume: a teacher stage that finds all frames done. read: time per
file for 10,000 files in random order. All with the page cache as it is right after writing.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from cli import ArgumentParser, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from tabulate import tabulate

from benchmarks.machine import processor
from dataset.frames import find_frames
from teacher_infer.stage import run_stage

N_READ = 10_000
LAYOUTS: dict[str, Callable[[int], str]] = {
    "one folder": lambda number: f"{number:07d}",
    "a thousand to a folder": lambda number: f"{number // 1000:04d}/{number:07d}",
}


def write_files(folder: Path, stem_of: Callable[[int], str], count: int) -> None:
    """Write rgb/<stem>.png and da3_depth/<stem>.npy for `count` frames, 100 bytes each."""
    for name, suffix in (("rgb", ".png"), ("da3_depth", ".npy")):
        for number in range(count):
            path = f"{folder}/{name}/{stem_of(number)}{suffix}"
            if number % 1000 == 0:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(bytes(100))


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time of an action in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(folder: Path, stem_of: Callable[[int], str], count: int) -> list[float]:
    """Return the seconds to write, list and resume, and the milliseconds to read one file."""
    written = seconds(lambda: write_files(folder, stem_of, count))
    frames: dict[str, Path] = {}
    listed = seconds(lambda: frames.update(find_frames(folder / "rgb")))
    no_teacher: Any = None  # all frames are done, so it is never called
    resumed = seconds(lambda: run_stage(frames, folder / "da3_depth", teacher=no_teacher))
    sample = random.Random(0).sample(list(frames.values()), min(N_READ, count))
    read = seconds(lambda: [path.read_bytes() for path in sample])
    return [written, listed, resumed, 1000 * read / len(sample)]


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--frames", type=positive_int, default=1_000_000, help="number of frames (default: %(default)s)"
    )
    arguments = parser.parse_args()
    table = []
    for name, stem_of in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            table.append([name, *measure(Path(folder), stem_of, arguments.frames)])
    headers = ["layout", "write s", "list s", "resume s", "read ms"]
    print(tabulate(table, headers, floatfmt=("", ".0f", ".1f", ".1f", ".3f")))
    print(f"{arguments.frames} frames, two files each; one run; {os.cpu_count()} cores of {processor()}")


if __name__ == "__main__":
    run(main)
