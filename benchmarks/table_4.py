"""Time of Table IV by step: reading frames, running the student, scoring, slices; and the memory of the process.

Reads   a manifest (--manifest), and a checkpoint or, by default, an untrained student.
Writes  nothing; prints a table.

If the manifest has fewer frames than --frames, they are repeated in order. All frames are evaluated twice, without
slices and with them. Times are of the processor, so that other processes on the machine disturb them less.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest import mock

try:
    from cli import ArgumentParser, add_flags, positive_int, resolve_device, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
from tabulate import tabulate

from benchmarks.machine import peak_memory, processor
from config import Recipe, Runtime
from dataset.manifest import Row, read_manifest
from evaluation import comparison
from evaluation.inference import Predictor, make_predictor
from evaluation.report import locate_errors
from trainer.checkpoint import build_student, load_student
from trainer.memory import keep_freed_memory


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest of the frames")
    parser.add_argument("--checkpoint", type=Path, help="best.pt of train.py (default: an untrained student)")
    parser.add_argument(
        "--frames", type=positive_int, default=654, help="number of frames (default: %(default)s, as in NYU's test set)"
    )
    add_flags(parser, Runtime(), "device")
    arguments = parser.parse_args()
    keep_freed_memory()  # as in eval_distillation.py
    device = resolve_device(arguments.device or Runtime().device)
    if arguments.checkpoint:
        student, recipe, _ = load_student(arguments.checkpoint)
    else:
        recipe = Recipe()
        student = build_student(recipe).eval()
    rows = list(islice(cycle(read_manifest(arguments.manifest)), arguments.frames))
    predict = make_predictor(student.to(device), recipe, device)
    plain, sliced = (times(predict, rows, recipe, slices) for slices in (False, True))
    headers = ["seconds", "reading", "student", "scoring", "all"]
    print(tabulate([["without slices", *plain], ["with slices", *sliced]], headers, floatfmt=".1f"))
    print(f"with slices {sliced[-1] / plain[-1]:.2f} times as long")
    print(f"{len(rows)} frames, device {device}, {processor()}; peak memory {peak_memory():.0f} MB")


def times(predict: Predictor, rows: list[Row], recipe: Recipe, slices: bool) -> list[float]:
    """Processor seconds of reading, the student, scoring, and all of Table IV."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(step: str, function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args)
            finally:
                seconds[step] += time.process_time() - start

        return call

    read = timed("reading", comparison.read_frame)
    is_sliced = comparison.is_sliced if slices else lambda name: False
    cells = comparison.slice_cells if slices else lambda depth, *rest: np.zeros(depth.shape, np.uint8)
    start = time.process_time()
    with mock.patch.multiple(comparison, read_frame=read, is_sliced=is_sliced, slice_cells=cells):
        notes = {"mean_depth": 3.0, "majority_class": 1}
        table = comparison.compare(timed("student", predict), rows, notes, recipe, [])
        if slices:
            locate_errors(rows, table.slices)
    total = time.process_time() - start
    return [seconds["reading"], seconds["student"], total - sum(seconds.values()), total]


if __name__ == "__main__":
    run(main)
