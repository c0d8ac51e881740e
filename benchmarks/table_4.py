"""Time of Table IV by step: reading frames, running the student, scoring; and the memory of the process.

Reads   a manifest (--manifest), and a checkpoint or, by default, an untrained student.
Writes  nothing; prints a table.

If the manifest has fewer frames than --frames, they are repeated in order.
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

from tabulate import tabulate

from benchmarks.machine import peak_memory, processor
from config import Recipe, Runtime
from dataset.manifest import read_manifest
from evaluation import comparison
from evaluation.inference import make_predictor
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
    seconds: dict[str, float] = defaultdict(float)

    def timed(step: str, function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                seconds[step] += time.perf_counter() - start

        return call

    predict = timed("student", make_predictor(student.to(device), recipe, device))
    start = time.perf_counter()
    with mock.patch.object(comparison, "read_frame", timed("reading", comparison.read_frame)):
        comparison.compare(predict, rows, {"mean_depth": 3.0, "majority_class": 1}, recipe, [])
    total = time.perf_counter() - start
    seconds["scoring"] = total - sum(seconds.values())
    table = [[step, value, 1000 * value / len(rows)] for step, value in [*seconds.items(), ("all", total)]]
    print(tabulate(table, ["", "seconds", "ms per frame"], floatfmt=".1f"))
    print(f"{len(rows)} frames, device {device}, {processor()}; peak memory {peak_memory():.0f} MB")


if __name__ == "__main__":
    run(main)
