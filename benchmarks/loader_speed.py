"""Speed of dataset/nyu_loader.py, and the time of its steps.

Reads   nothing (renders rooms in NYU's layout), or a .mat file (--mat).
Writes  a temporary folder, removed at the end; prints a table.

The steps are timed one by one in a single thread; the script itself reads while other threads convert and write.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from cli import ArgumentParser, existing_file, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
from tabulate import tabulate

from benchmarks.machine import processor
from dataset.files import write_npy
from dataset.nyu_loader import NyuFile, frame_files, stem_of

ROOT = Path(__file__).resolve().parents[1]


def run_script(name: str, *arguments: str | Path) -> float:
    """Run a script of the project; returns its wall-clock time in seconds."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def time_steps(source: NyuFile, index: int, out: Path) -> dict[str, float]:
    """Time the steps of converting one frame; returns {step: seconds}."""
    times = [time.perf_counter()]
    raw = source.read_raw(index)
    times.append(time.perf_counter())
    maps = vars(source.convert(index, raw))
    times.append(time.perf_counter())
    files = frame_files(out, stem_of(index), source.has("instances"))
    pictures = {file: maps[name] for name, file in files.items() if file.suffix == ".png"}
    encoded = {file: cv2.imencode(".png", picture)[1].tobytes() for file, picture in pictures.items()}
    times.append(time.perf_counter())
    for name, file in files.items():
        if file in encoded:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded[file])
        else:
            write_npy(file, maps[name])
    times.append(time.perf_counter())
    names = ("reading HDF5", "converting", "encoding PNG", "writing to disk")
    return {name: end - start for name, start, end in zip(names, times[:-1], times[1:], strict=True)}


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--mat", type=Path, help="file in NYU's layout (default: 60 rendered rooms, 240 frames)")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed runs (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mat = existing_file(arguments.mat, "--mat") if arguments.mat else folder / "rooms.mat"
        if not arguments.mat:
            run_script("rooms/render_rooms.py", "--out", mat)
        with NyuFile(mat) as source:
            count = len(source)
            step_times = [time_steps(source, index, folder / "parts") for index in range(count)]
        medians = {step: statistics.median(frame[step] for frame in step_times) for step in step_times[0]}
        seconds = [
            run_script("dataset/nyu_loader.py", "--mat", mat, "--out", folder / f"round_{number}")
            for number in range(arguments.rounds)
        ]
    rows = [[step, 1000 * value, value / sum(medians.values())] for step, value in medians.items()]
    print(tabulate(rows, ["one thread", "ms per frame (median)", "fraction"], floatfmt=("", ".1f", ".0%")))
    rates = sorted(count / value for value in seconds)
    print(
        f"nyu_loader.py: {statistics.median(rates):.1f} frames/s ({rates[0]:.1f} to {rates[-1]:.1f}, "
        f"{arguments.rounds} runs of {count} frames); {os.cpu_count()} cores of {processor()}"
    )


if __name__ == "__main__":
    run(main)
