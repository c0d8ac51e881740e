"""How fast frames are packed for training, and what the time goes into.

Reads   a manifest (--manifest), or nothing: rendered rooms with depth, confidence and labels.
Writes  a temporary folder, removed at the end; prints two tables.

The files are in the system's cache, and the packed frames go to the disk before a round ends.
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


def milliseconds(function: Callable[[], object], frames: int) -> float:
    """Time of this process's threads for each of some frames."""
    start = time.process_time()
    function()
    return (time.process_time() - start) / frames * 1000


def parts(rows: list[Row], size: tuple[int, int]) -> dict[str, float]:
    """What one thread does for a frame, in ms of its time."""
    identity._sample.cache_clear()
    read = [read_frame(row) for row in rows]
    image = milliseconds(lambda: [read_image(row.rgb) for row in rows], len(rows))
    return {
        "sampling its files": milliseconds(lambda: [identity.describe_row(row) for row in rows], len(rows)),
        "decoding the image": image,
        "reading and checking the maps": milliseconds(lambda: [read_frame(row) for row in rows], len(rows)) - image,
        "bringing all to the cache's size": milliseconds(lambda: [pack_frame(f, *size) for f in read], len(rows)),
    }


def pack(rows: list[Row], size: tuple[int, int], focal: float, workers: int) -> tuple[float, float]:
    """Frames a second from nothing to a finished cache, and ms of this process's threads for a frame."""
    identity._sample.cache_clear()
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        start, busy = time.perf_counter(), time.process_time()
        PackedCache(rows, Path(name), size, focal).open(workers)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return len(rows) / seconds, busy / len(rows) * 1000


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--manifest", type=Path, help="pack its frames (default: rendered rooms)")
    parser.add_argument("--frames", type=positive_int, default=96, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    recipe = Recipe()
    size, focal = (recipe.width * recipe.cache_scale, recipe.height * recipe.cache_scale), recipe.reference_focal
    threads = sorted({1, 2, cpu_count(), 2 * cpu_count()})
    with ExitStack() as stack:
        manifest = arguments.manifest or rendered_manifest(
            Path(stack.enter_context(tempfile.TemporaryDirectory())), arguments.frames, SEED
        )
        rows = read_manifest(manifest)[: arguments.frames]
        pack(rows, size, focal, cpu_count())  # warms up
        rounds: dict[int, list[tuple[float, float]]] = {workers: [] for workers in threads}
        of_frame: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for workers, found in rounds.items():
                found.append(pack(rows, size, focal, workers))
            for name, value in parts(rows, size).items():
                of_frame.setdefault(name, []).append(value)
    table = [
        [workers, *(f(rate for rate, _ in found) for f in (statistics.median, min, max)),
         statistics.median(busy for _, busy in found)]
        for workers, found in rounds.items()
    ]  # fmt: skip
    headers = ["threads", "frames/s (median)", "least", "most", "ms of processor a frame"]
    print(tabulate(table, headers, floatfmt=".1f"))
    print(tabulate([[n, statistics.median(v)] for n, v in of_frame.items()], ["", "ms of one thread"], floatfmt=".2f"))
    print(f"{len(rows)} frames to {size[0]}x{size[1]}, {arguments.rounds} rounds; {cpu_count()} cores of {processor()}")


if __name__ == "__main__":
    run(main)
