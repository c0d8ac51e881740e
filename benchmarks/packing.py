"""Speed of packing frames for training, and the time of its steps.

Reads   a manifest (--manifest), or nothing (renders rooms with depth, confidence and labels).
Writes  a temporary folder, removed at the end; prints two tables.

The files are in the page cache; a round includes writing the packed frames to disk.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

try:
    from cli import ArgumentParser, cpu_count, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from tabulate import tabulate

from benchmarks.machine import processor
from benchmarks.rendered import rendered_manifest
from config import Recipe
from dataset import identity
from dataset.cache import PackedCache
from dataset.files import read_image
from dataset.frames import read_frame
from dataset.manifest import Row, read_manifest
from dataset.packing import pack_frame

SEED = 0


def cpu_milliseconds(function: Callable[[], object], frames: int) -> float:
    """CPU time of this process per frame, in ms, when `function` handles that many frames."""
    start = time.process_time()
    function()
    return (time.process_time() - start) / frames * 1000


def time_steps(rows: list[Row], size: tuple[int, int]) -> dict[str, float]:
    """Time the steps of packing in one thread; returns {step: ms per frame}."""
    identity._sample.cache_clear()
    frames_read = [read_frame(row) for row in rows]
    image = cpu_milliseconds(lambda: [read_image(row.rgb) for row in rows], len(rows))
    return {
        "sampling the files": cpu_milliseconds(lambda: [identity.describe_row(row) for row in rows], len(rows)),
        "decoding the image": image,
        "reading and checking the maps": cpu_milliseconds(lambda: [read_frame(row) for row in rows], len(rows)) - image,
        "resizing to the cache's size": cpu_milliseconds(
            lambda: [pack_frame(f, *size) for f in frames_read], len(rows)
        ),
    }


def pack(rows: list[Row], size: tuple[int, int], focal: float, workers: int) -> tuple[float, float]:
    """Pack all rows into a new cache; returns frames per second and CPU time of this process per frame in ms."""
    identity._sample.cache_clear()
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        start, busy = time.perf_counter(), time.process_time()
        PackedCache(rows, Path(name), size, focal).open(workers)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return len(rows) / seconds, busy / len(rows) * 1000


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--manifest", type=Path, help="manifest of the frames to pack (default: rendered rooms)")
    parser.add_argument("--frames", type=positive_int, default=96, help="number of frames (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timed runs of each (default: %(default)s)")
    arguments = parser.parse_args()
    recipe = Recipe()
    size = (round(recipe.width * recipe.cache_scale), round(recipe.height * recipe.cache_scale))
    focal = recipe.reference_focal
    threads = sorted({1, 2, cpu_count(), 2 * cpu_count()})
    with ExitStack() as stack:
        manifest = arguments.manifest or rendered_manifest(
            Path(stack.enter_context(tempfile.TemporaryDirectory())), arguments.frames, SEED
        )
        rows = read_manifest(manifest)[: arguments.frames]
        pack(rows, size, focal, cpu_count())  # warm-up
        rounds: dict[int, list[tuple[float, float]]] = {workers: [] for workers in threads}
        step_times: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for workers, results in rounds.items():
                results.append(pack(rows, size, focal, workers))
            for name, value in time_steps(rows, size).items():
                step_times.setdefault(name, []).append(value)
    table = [
        [workers, *(f(rate for rate, _ in results) for f in (statistics.median, min, max)),
         statistics.median(busy for _, busy in results)]
        for workers, results in rounds.items()
    ]  # fmt: skip
    headers = ["threads", "frames/s (median)", "min", "max", "CPU ms per frame"]
    print(tabulate(table, headers, floatfmt=".1f"))
    print(
        tabulate(
            [[n, statistics.median(v)] for n, v in step_times.items()], ["one thread", "ms per frame"], floatfmt=".2f"
        )
    )
    print(f"{len(rows)} frames to {size[0]}x{size[1]}, {arguments.rounds} rounds; {cpu_count()} cores of {processor()}")


if __name__ == "__main__":
    run(main)
