"""Depth accuracy of our student and a published one with the same encoder, trained on the same real frames.

Reads   an RGB-D recording (--frames, default: environment variable RGBD_FRAMES).
Writes  a temporary folder, removed at the end; prints a table.

Each student uses its own training recipe, with depth only and random initial weights. The first frames are the training
set, the next choose the epoch, and the last 50 are tested once. --init adds our student initialised from a checkpoint.
Testing works like predict.py: at the image's own size, on pixels with depth, in metres of each frame's camera. The
table includes the RMSE on the training frames: if it is far below the test RMSE, more data would help rather than a
larger student or more steps. --other adds recordings of other places, which no student was trained on.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

try:
    from cli import ArgumentParser, UserError, non_negative_int, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
import torch
from natsort import natsorted
from tabulate import tabulate

from benchmarks.machine import processor
from benchmarks.published_student import PublishedTrainer, published_loader
from benchmarks.zero_shot import read_set
from config import Recipe, student_path
from dataset.files import read_image
from dataset.frames import read_depth, to_network_camera
from dataset.manifest import Row, read_manifest, write_manifest
from evaluation.inference import make_predictor
from evaluation.metrics import DepthMetrics
from evaluation.pixels import depth_mask
from trainer.checkpoint import load_student

ROOT = Path(__file__).resolve().parents[1]
N_TEST_FRAMES = 50
METRICS = ("rmse", "image_rmse", "abs_rel", "delta1")


def import_frames(frames: str, folder: Path, train: int, val: int) -> list[Row]:
    """Import the recording as a data folder and write a manifest with the splits; returns its rows in order of time."""
    flags: list[str | Path] = ["--input", frames, "--out", str(folder), "--test-frames", str(N_TEST_FRAMES)]
    flags += ["--val-frames", str(val), "--gap-frames", "0"]
    subprocess.run([sys.executable, ROOT / "dataset" / "corridor_loader.py", *flags], check=True)
    flags = ["--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth", "--allow-missing-teachers"]
    flags += ["--output", folder / "manifest.jsonl"]
    subprocess.run([sys.executable, ROOT / "teacher_infer" / "build_manifest.py", *map(str, flags)], check=True)
    rows = natsorted(read_manifest(folder / "manifest.jsonl"), key=lambda row: row.stem)
    unused = len(rows) - train - val - N_TEST_FRAMES
    if unused < 0:
        raise UserError(f"{frames} has {len(rows)} frames; {train + val + N_TEST_FRAMES} are needed")
    splits = ["train"] * train + ["val"] * val + [None] * unused + ["test"] * N_TEST_FRAMES
    rows = [replace(row, split=split) for row, split in zip(rows, splits, strict=True) if split]
    write_manifest(folder / "manifest.jsonl", rows)
    return rows


def compute_metrics(model: torch.nn.Module, rows: list[Row], recipe: Recipe) -> dict[str, float]:
    """Depth metrics on frames; recipe: its reference focal length is the one that the model's depth is for."""
    metrics = DepthMetrics(recipe.min_depth, recipe.max_depth)
    student = make_predictor(model.eval(), recipe, torch.device("cpu"))
    for row in rows:
        depth, _ = student(read_image(row.rgb), row.intrinsics)
        depth = np.maximum(depth, recipe.min_depth)  # a ReLU's 0 is a prediction, not a missing value
        reference = read_depth(row.depth, row.depth_unit)
        mask = depth_mask(reference, None, recipe, row.intrinsics)
        metrics.update(*map(torch.from_numpy, (depth, reference, mask)))
    return metrics.compute()


def in_split(rows: list[Row], split: str) -> list[Row]:
    """The rows of a split."""
    return [row for row in rows if row.split == split]


def evaluate(model: torch.nn.Module, rows: list[Row], others: list[list[Row]], recipe: Recipe) -> list[float]:
    """METRICS on the test frames, the RMSE on the training frames, and RMSE and delta1 on each other recording."""
    test = compute_metrics(model, in_split(rows, "test"), recipe)
    scores = [test[name] for name in METRICS] + [compute_metrics(model, in_split(rows, "train"), recipe)["rmse"]]
    for other in others:
        metrics = compute_metrics(model, other, recipe)
        scores += [metrics["rmse"], metrics["delta1"]]
    return scores


def train_published(rows: list[Row], others: list[list[Row]], epochs: int, batch_size: int, seed: int) -> list[float]:
    """Train the published student; returns the scores of the best epoch on val, or of the last one without val.

    It predicts metres of the camera that it was trained with.
    """
    camera = rows[0].intrinsics
    assert camera is not None
    recipe = Recipe()
    recipe = replace(recipe, reference_focal=to_network_camera(camera, recipe.width, recipe.height).focal)
    trainer = PublishedTrainer(recipe, torch.device("cpu"), epochs, seed)
    batches = published_loader(in_split(rows, "train"), batch_size, seed)
    val = in_split(rows, "val")
    best_rmse, best_weights = float("inf"), {}
    for _ in range(epochs):
        trainer.model.train()
        for rgb, depth in batches:
            trainer.train_step(rgb, depth)
        trainer.schedule.step()
        rmse = compute_metrics(trainer.model, val, recipe)["rmse"] if val else 0.0
        if rmse < best_rmse or not val:
            best_rmse = rmse
            best_weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(best_weights)
    return evaluate(trainer.model, rows, others, recipe)


def train_ours(
    rows: list[Row],
    others: list[list[Row]],
    epochs: int,
    batch_size: int,
    seed: int,
    out: Path,
    init: Path | None,
    flags: list[str],
) -> list[float]:
    """Run train.py as a user would; returns the scores of its best.pt.

    out: output folder of this run, inside the data folder. init: --init of train.py. flags: further flags.
    """
    command = [sys.executable, ROOT / "train.py", "--manifest", out.parent / "manifest.jsonl", "--epochs", epochs]
    command += ["--batch-size", batch_size, "--seed", seed, "--device", "cpu"]
    command += ["--init", init] if init else ["--encoder-weights", "none"]
    command += ["--checkpoint-dir", out / f"checkpoints_{seed}", "--log-dir", out / "runs", *flags]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    model, recipe, _ = load_student(out / f"checkpoints_{seed}" / "best.pt")
    return evaluate(model, rows, others, recipe)


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frames", default=os.environ.get("RGBD_FRAMES"), help="default: $RGBD_FRAMES")
    parser.add_argument("--epochs", type=positive_int, default=10, help="default: %(default)s")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="default: %(default)s")
    parser.add_argument("--seeds", type=positive_int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--train-frames", type=positive_int, default=200, help="first frames (default: %(default)s)")
    parser.add_argument(
        "--val-frames", type=non_negative_int, default=40, help="the frames after them (default: %(default)s)"
    )
    parser.add_argument("--only", choices=("published", "ours", "pretrained"), help="run only this student")
    parser.add_argument(
        "--init", type=student_path, help="also train ours from this student, e.g. rooms, which comes with the code"
    )
    parser.add_argument(
        "--other", type=Path, nargs="*", default=[], metavar="FRAMES", help="recordings of other places to test on"
    )
    parser.add_argument("--train-flags", default="", help="further flags for train.py, in one string")
    arguments = parser.parse_args()
    if not arguments.frames:
        raise UserError("give --frames, the folder of an RGB-D recording, or set RGBD_FRAMES")
    table: list[list[Any]] = []
    flags = arguments.train_flags.split()
    with tempfile.TemporaryDirectory() as folder:
        rows = import_frames(arguments.frames, Path(folder), arguments.train_frames, arguments.val_frames)
        others = [read_set(other, Path(folder) / f"other_{n}") for n, other in enumerate(arguments.other)]
        for seed in range(arguments.seeds):
            common = (rows, others, arguments.epochs, arguments.batch_size, seed)
            runs: dict[str, Callable[[], list[float]]] = {
                "published": partial(train_published, *common),
                "ours": partial(train_ours, *common, Path(folder) / "ours", None, flags),
            }
            if arguments.init:
                runs["pretrained"] = partial(
                    train_ours, *common, Path(folder) / "pretrained", arguments.init.resolve(), flags
                )
            for student, train in runs.items():
                if arguments.only in (None, student):
                    start = time.perf_counter()
                    scores = train()
                    table.append([student, seed, *scores, (time.perf_counter() - start) / 60])
                    print(f"{student}, seed {seed}: RMSE {scores[0]:.3f} m", flush=True)
    for student in dict.fromkeys(row[0] for row in table):
        values = np.array([row[2:] for row in table if row[0] == student])
        std = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        table.append([student, "mean", *values.mean(axis=0)])
        table.append([student, "std", *std])
    headers = (
        "student",
        "seed",
        "RMSE m",
        "RMSE m, mean over images",
        "AbsRel",
        "delta1",
        "training RMSE m",
        *(f"{other.name}: {metric}" for other in arguments.other for metric in ("RMSE m", "delta1")),
        "minutes",
    )
    print(tabulate(table, headers, floatfmt=".3f"))
    print(f"{arguments.train_frames} frames, {arguments.epochs} epochs at batch {arguments.batch_size}; {processor()}")


if __name__ == "__main__":
    run(main)
