"""Latency of the whole student relative to its encoder: the cost of the neck and the decoders.

Reads   nothing; the weights are random, which does not affect latency.
Writes  nothing; prints a table.

Both run in ONNX Runtime on the CPU at 320x240, with two threads by default. Their runs are interleaved, so that other
load on the machine affects both and the ratio is more stable than the latencies. Exit code 1 if it exceeds the bound.
"""

import io
import sys
import time
import warnings
from typing import Any

try:
    from cli import EXIT_GATE_FAILED, EXIT_OK, ArgumentParser, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from tabulate import tabulate
from torch import nn

from benchmarks.machine import processor
from config import Recipe
from trainer.checkpoint import build_student

MAX_RATIO = 1.15  # student / encoder


def to_session(model: nn.Module, image: torch.Tensor, threads: int) -> onnxruntime.InferenceSession:
    """Load a module with an image [1,3,H,W] as input into ONNX Runtime, exported and simplified as in export_trt.py."""
    buffer: Any = io.BytesIO()  # accepted by the exporter, although its annotation allows only paths
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (image,), buffer, input_names=["rgb"], opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # otherwise the threads of the previous session keep spinning while this one is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = onnxslim.slim(onnx.load_from_string(buffer.getvalue())).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def time_interleaved(sessions: dict[str, onnxruntime.InferenceSession], image: np.ndarray, rounds: int) -> np.ndarray:
    """Time interleaved runs after a warm-up of a tenth of the rounds; returns milliseconds [rounds, sessions]."""
    times = np.empty((rounds + rounds // 10 + 1, len(sessions)))
    for row in times:
        for column, session in enumerate(sessions.values()):
            start = time.perf_counter()
            session.run(None, {"rgb": image})
            row[column] = 1000 * (time.perf_counter() - start)
    return times[-rounds:]


def main() -> int:
    """Run the script and return the exit code."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rounds", type=positive_int, default=200, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="ONNX Runtime threads (default: %(default)s)")
    arguments = parser.parse_args()
    recipe = Recipe()
    student = build_student(recipe)
    image = torch.rand(1, 3, recipe.height, recipe.width)
    models = {"encoder alone": student.encoder, "whole student": student}
    sessions = {name: to_session(model, image, arguments.threads) for name, model in models.items()}
    times = time_interleaved(sessions, image.numpy(), arguments.rounds)

    rows = [[name, *np.percentile(column, (50, 10, 90))] for name, column in zip(sessions, times.T, strict=True)]
    # ratio per round: load that lasts longer than a round cancels out
    ratios = times[:, 1] / times[:, 0]
    rows.append(["student / encoder", *np.percentile(ratios, (50, 10, 90))])
    print(
        f"ONNX Runtime {onnxruntime.__version__}, {processor()}, {arguments.threads} threads, "
        f"{recipe.width}x{recipe.height}, {arguments.rounds} rounds"
    )
    print(tabulate(rows, ["", "median ms", "p10", "p90"], floatfmt=".2f"))
    ratio = float(np.median(ratios))
    print(f"ratio {ratio:.3f}, bound {MAX_RATIO}")
    return EXIT_OK if ratio <= MAX_RATIO else EXIT_GATE_FAILED


if __name__ == "__main__":
    run(main)
