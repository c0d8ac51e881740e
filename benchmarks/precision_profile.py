"""Where the time of each precision goes on the CPU: latency of the exported graphs, and their operators' shares.

Reads   <engine-dir>/student_{fp32,fp16,int8}.onnx of export_trt.py, with float32 input.
Writes  a temporary folder of ONNX Runtime's profiles, removed at the end; prints two tables.

Latency is measured in turns and without the profile; the shares are the profiler's, after ONNX Runtime's own
optimisation of the graph. Its CPU provider has hardly any float16 arithmetic, so to the graph's own casts, counted in
the first table, it adds some around most operators.
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
from benchmarks.student_latency import interleaved
from config import NETWORK_HEIGHT, NETWORK_WIDTH, Runtime

PRECISIONS = ("fp32", "fp16", "int8")
SHOWN = 10  # kinds of operators; the others are summed


def open_session(graph: Path, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime; profile: what the names of its profile's files begin with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # else the threads of the session that has just run keep spinning while the other one is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def operator_times(session: onnxruntime.InferenceSession, image: np.ndarray, rounds: int) -> Counter:
    """Milliseconds a run by kind of operator; the session profiles, and ends doing so."""
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
    parser.add_argument("--threads", type=positive_int, default=2, help="of ONNX Runtime (default: %(default)s)")
    arguments = parser.parse_args()
    graphs = {name: arguments.engine_dir / f"student_{name}.onnx" for name in PRECISIONS}
    missing = [str(path) for path in graphs.values() if not path.is_file()]
    if missing:
        raise UserError(f"{', '.join(missing)} not found: export_trt.py writes them")
    image = np.random.default_rng(0).random((1, 3, NETWORK_HEIGHT, NETWORK_WIDTH), dtype=np.float32)

    sessions = {name: open_session(path, arguments.threads) for name, path in graphs.items()}
    if any(session.get_inputs()[0].type != "tensor(float)" for session in sessions.values()):
        raise UserError(f"{arguments.engine_dir}: these graphs take uint8; export them without --uint8-input")
    times = interleaved(sessions, image, arguments.rounds)
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
    kinds = [kind for kind, _ in sum(profiles.values(), Counter()).most_common()]
    rows = [[kind, *(profile[kind] for profile in profiles.values())] for kind in kinds[:SHOWN]]
    rows.append(["others", *(sum(profile[kind] for kind in kinds[SHOWN:]) for profile in profiles.values())])
    rows.append(["all", *(profile.total() for profile in profiles.values())])
    print(tabulate(rows, ["milliseconds a run, profiled", *profiles], floatfmt=".2f"))
    print(
        f"ONNX Runtime {onnxruntime.__version__}, {processor()}, {arguments.threads} threads, {arguments.rounds} rounds"
    )


if __name__ == "__main__":
    run(main)
