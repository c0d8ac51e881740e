"""CPU latency of the exported graphs in each precision, and the time of each operator type.

Reads   <engine-dir>/student_{fp32,fp16,int8}.onnx written by export_trt.py, with float32 input.
Writes  a temporary folder of ONNX Runtime profiles, removed at the end; prints two tables.

Latency is measured in interleaved runs without profiling. The operator times come from the profiler, after ONNX
Runtime's graph optimisation. The CPU provider supports few float16 operators, so it adds casts around most operators
to those in the graph, which the first table counts.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
import onnx
import onnxruntime
from tabulate import tabulate

from benchmarks.machine import processor
from benchmarks.student_latency import time_interleaved
from config import NETWORK_HEIGHT, NETWORK_WIDTH, Runtime

PRECISIONS = ("fp32", "fp16", "int8")
N_OPERATORS = 10  # operator types listed; the others are summed up


def open_session(graph: Path, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime; `profile` enables profiling and is the prefix of the profile's file name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # otherwise the threads of the previous session keep spinning while this one is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def operator_times(session: onnxruntime.InferenceSession, image: np.ndarray, rounds: int) -> Counter:
    """Milliseconds per run by operator type; `session` has profiling enabled, which ends here."""
    for _ in range(rounds):
        session.run(None, {"rgb": image})
    times: Counter = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and "op_name" in event["args"]:
            times[event["args"]["op_name"]] += event["dur"] / 1000 / rounds
    return times


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--engine-dir", type=Path, default=Runtime().engine_dir, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive_int, default=100, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="ONNX Runtime threads (default: %(default)s)")
    arguments = parser.parse_args()
    graphs = {name: arguments.engine_dir / f"student_{name}.onnx" for name in PRECISIONS}
    missing = [str(path) for path in graphs.values() if not path.is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)} not found: run export_trt.py to write them")
    image = np.random.default_rng(0).random((1, 3, NETWORK_HEIGHT, NETWORK_WIDTH), dtype=np.float32)

    sessions = {name: open_session(path, arguments.threads) for name, path in graphs.items()}
    if any(session.get_inputs()[0].type != "tensor(float)" for session in sessions.values()):
        raise UserError(f"{arguments.engine_dir}: the graphs expect uint8 input; export them without --uint8-input")
    times = time_interleaved(sessions, image, arguments.rounds)
    rows = [
        [name, *np.percentile(column, (50, 10, 90)), sum(node.op_type == "Cast" for node in onnx.load(path).graph.node)]
        for (name, path), column in zip(graphs.items(), times.T, strict=True)
    ]
    print(tabulate(rows, ["precision", "median ms", "p10", "p90", "casts in the graph"], floatfmt=".2f"))

    with tempfile.TemporaryDirectory() as folder:
        profiles = {
            name: operator_times(open_session(path, arguments.threads, Path(folder) / name), image, arguments.rounds)
            for name, path in graphs.items()
        }
    operators = [operator for operator, _ in sum(profiles.values(), Counter()).most_common()]
    rows = [[operator, *(profile[operator] for profile in profiles.values())] for operator in operators[:N_OPERATORS]]
    rows.append(
        ["others", *(sum(profile[operator] for operator in operators[N_OPERATORS:]) for profile in profiles.values())]
    )
    rows.append(["all", *(profile.total() for profile in profiles.values())])
    print(tabulate(rows, ["ms per run, profiled", *profiles], floatfmt=".2f"))
    print(
        f"ONNX Runtime {onnxruntime.__version__}, {processor()}, {arguments.threads} threads, {arguments.rounds} rounds"
    )


if __name__ == "__main__":
    run(main)
