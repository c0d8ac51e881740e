"""What the neck and the decoders cost: latency of the whole student against its encoder alone.

Reads   nothing; weights are random, which latency does not depend on.
Writes  nothing; prints a table.

Both run in ONNX Runtime on the CPU at 320x240, two threads by default, in turns: whatever else the machine does in the
meantime slows both alike, so the ratio is steadier than the latencies. Exit code 1 when it is above the bound.
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

BOUND = 1.15  # student / encoder: what a robot may pay for depth and classes on top of the features


def to_session(model: nn.Module, image: torch.Tensor, threads: int) -> onnxruntime.InferenceSession:
    """A module with one image [1,3,H,W] as input in ONNX Runtime, exported and simplified as export_trt.py does."""
    buffer: Any = io.BytesIO()  # the exporter takes it, though annotated for paths alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (image,), buffer, input_names=["rgb"], opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # else the threads of the session that has just run keep spinning while the other one is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = onnxslim.slim(onnx.load_from_string(buffer.getvalue())).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def interleaved(sessions: dict[str, onnxruntime.InferenceSession], image: np.ndarray, rounds: int) -> np.ndarray:
    """Milliseconds [rounds, sessions] of runs in turns, after a tenth of the rounds to warm up."""
    times = np.empty((rounds + rounds // 10 + 1, len(sessions)))
    for row in times:
        for column, session in enumerate(sessions.values()):
            start = time.perf_counter()
            session.run(None, {"rgb": image})
            row[column] = 1000 * (time.perf_counter() - start)
    return times[-rounds:]


def main() -> int:
    """Run the script; returns the exit code."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--rounds", type=positive_int, default=200, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="of ONNX Runtime (default: %(default)s)")
    arguments = parser.parse_args()
    recipe = Recipe()
    student = build_student(recipe)
    image = torch.rand(1, 3, recipe.height, recipe.width)
    models = {"encoder alone": student.encoder, "whole student": student}
    sessions = {name: to_session(model, image, arguments.threads) for name, model in models.items()}
    times = interleaved(sessions, image.numpy(), arguments.rounds)

    rows = [[name, *np.percentile(column, (50, 10, 90))] for name, column in zip(sessions, times.T, strict=True)]
    # of each round's pair: what disturbs the machine for longer than a round falls out of it
    ratios = times[:, 1] / times[:, 0]
    rows.append(["student / encoder", *np.percentile(ratios, (50, 10, 90))])
    print(
        f"ONNX Runtime {onnxruntime.__version__}, {processor()}, {arguments.threads} threads, "
        f"{recipe.width}x{recipe.height}, {arguments.rounds} rounds"
    )
    print(tabulate(rows, ["", "median ms", "p10", "p90"], floatfmt=".2f"))
    ratio = float(np.median(ratios))
    print(f"ratio {ratio:.3f}, bound {BOUND}")
    return EXIT_OK if ratio <= BOUND else EXIT_GATE_FAILED


if __name__ == "__main__":
    run(main)
