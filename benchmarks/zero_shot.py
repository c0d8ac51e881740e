"""Depth accuracy of students on recordings and rooms that they have not seen, by set and by range.

Reads   students (--student: checkpoints, or names of weights/) and sets (--data: recordings that corridor_loader.py
        reads and data folders, all of whose frames are used, or manifests, of which the test split is).
Writes  a temporary folder, removed at the end; prints three tables.

Depth is scored like Table IV's student against the reference: in metres of each set's own camera, without alignment,
pooled over the pixels. The baseline is the mean depth of the set itself, which no student knows. Of several students,
for example of several seeds, the table has the mean over them and the standard deviation.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.machine import processor
from config import IGNORE, INCLUDED_STUDENT, Recipe, student_path
from dataset.frames import read_frame
from dataset.manifest import Row, read_manifest
from evaluation.comparison import frame_references
from evaluation.inference import Predictor, make_predictor
from evaluation.metrics import DepthMetrics
from evaluation.slices import GROUPS, SLICES, SliceSums, depth_metrics
from trainer.checkpoint import load_student

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("rmse", "abs_rel", "delta1")
RANGE_NAMES = GROUPS["range"][:-1]


def read_set(source: Path, folder: Path) -> list[Row]:
    """Rows of a set: a manifest's test split, or all of a data folder or of a recording, imported into `folder`."""
    if source.suffix == ".jsonl":
        rows = [row for row in read_manifest(source) if row.split == "test"]
    elif (source / "manifest.jsonl").is_file():
        rows = read_manifest(source / "manifest.jsonl")
    else:
        manifest = folder / "manifest.jsonl"
        folders = ["--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth", "--output", manifest]
        for script, flags in (
            ("dataset/corridor_loader.py", ["--input", source, "--out", folder, "--gap-frames", 0]),
            ("teacher_infer/build_manifest.py", [*folders, "--allow-missing-teachers"]),
        ):
            command = [sys.executable, ROOT / script, *flags]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        rows = read_manifest(manifest)
    if not rows:
        raise UserError(f"--data {source} has no frames to test on")
    return rows


def mean_depth(rows: Iterable[Row], recipe: Recipe) -> float:
    """Mean of the valid reference depth of all frames, metres."""
    total, count = 0.0, 0
    for row in rows:
        reference = frame_references(read_frame(row), recipe)["reference"]
        if reference.depth is not None:
            valid = reference.depth[reference.depth_mask]
            total, count = total + float(valid.sum(dtype=np.float64)), count + valid.size
    if not count:
        raise UserError("a set of --data has no valid depth to compare with")
    return total / count


def score(predict: Predictor, rows: list[Row], recipe: Recipe) -> dict[str, np.ndarray]:
    """METRICS of each slice of evaluation.slices: {metric: float64 [S]}; NaN without pixels."""
    sums, metrics = SliceSums(len(rows)), DepthMetrics(recipe.min_depth, recipe.max_depth)
    for index, row in enumerate(rows):
        frame = read_frame(row)
        depth, _ = predict(frame.rgb, frame.intrinsics)
        reference = frame_references(frame, recipe)["reference"]
        if reference.depth is not None and reference.cells is not None:
            valid = reference.depth_mask & np.isfinite(depth)  # outside the student's window there is no answer
            errors = metrics.update(*map(torch.from_numpy, (depth, reference.depth, valid)))
            if errors:
                sums.add_depth(index, errors, reference.cells)
    values = depth_metrics(torch.from_numpy(sums.depth.sum(axis=0)))
    return {name: values[name].numpy() for name in METRICS}


def constant(metres: float) -> Predictor:
    """A predictor of one depth for all pixels."""
    return lambda rgb, camera: (
        np.full(rgb.shape[:2], metres, np.float32), np.full(rgb.shape[:2], IGNORE, np.uint8)
    )  # fmt: skip


def cell(values: np.ndarray) -> str:
    """Mean and, of several values, standard deviation."""
    text = f"{values.mean():.3f}"
    return f"{text} ({values.std(ddof=1):.3f})" if len(values) > 1 else text


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="SET")
    parser.add_argument("--student", type=student_path, nargs="+", default=[student_path(INCLUDED_STUDENT)])
    arguments = parser.parse_args()
    students = [load_student(path)[:2] for path in arguments.student]
    overall: list[list] = []
    by_range: dict[str, list[list]] = {metric: [] for metric in ("delta1", "rmse")}
    for source in arguments.data:
        name = source.parent.name if source.suffix == ".jsonl" else source.name
        with tempfile.TemporaryDirectory() as folder:
            rows = read_set(source, Path(folder) / "set")
            scores = []
            for student, recipe in students:
                scores.append(score(make_predictor(student, recipe, torch.device("cpu")), rows, recipe))
            recipe = students[0][1]
            own_mean = score(constant(mean_depth(rows, recipe)), rows, recipe)
        all_pixels = [np.array([scored[metric][0] for scored in scores]) for metric in METRICS]
        overall.append([name, len(rows), *map(cell, all_pixels), own_mean["rmse"][0], own_mean["delta1"][0]])
        for metric, table in by_range.items():
            ranges = [SLICES.index(("range", interval)) for interval in RANGE_NAMES]
            columns = [np.array([scored[metric][index] for scored in scores]) for index in ranges]
            table.append([name, *("" if np.isnan(values).all() else cell(values) for values in columns)])
    print(f"{len(students)} student(s): {', '.join(path.name for path in arguments.student)}; {processor()}\n")
    headers = ["set", "frames", "RMSE m", "AbsRel", "delta1", "its mean: RMSE m", "its mean: delta1"]
    print(tabulate(overall, headers=headers, tablefmt="github", floatfmt=".3f"))
    for metric, table in by_range.items():
        print()
        print(tabulate(table, headers=[metric, *RANGE_NAMES], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    run(main)
