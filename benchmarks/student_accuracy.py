"""Depth of our student and of a published one with the same encoder, each with its recipe, on the same real frames.

Reads   an RGB-D recording (--frames, default: environment variable RGBD_FRAMES).
Writes  a temporary folder, removed at the end; prints a table.

Trains on the first frames, chooses the epoch on the next, tests once on the last 50, with depth alone and random
weights at the start; --init adds ours started from a checkpoint. All are tested as predict.py works: at the image's
own size, on pixels with depth. The RMSE on the training frames is in the table, too: far below the test's, it is more
data that is wanted, not a larger student or more steps.
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
from benchmarks.published_student import PublishedTrainer, loader
from config import Recipe
from dataset.files import read_image
from dataset.frames import read_depth
from dataset.manifest import Row, read_manifest, write_manifest
from evaluation.inference import predictor
from evaluation.metrics import DepthMetrics
from evaluation.pixels import scored_depth
from trainer.checkpoint import load_student

ROOT = Path(__file__).resolve().parents[1]
TEST = 50  # frames
METRICS = ("rmse", "image_rmse", "abs_rel", "delta1")


def import_frames(frames: str, folder: Path, train: int, val: int) -> list[Row]:
    """The recording as a data folder whose manifest has this comparison's splits; its rows in the order of time."""
    flags: list[str | Path] = ["--input", frames, "--out", str(folder), "--test-frames", str(TEST)]
    flags += ["--val-frames", str(val), "--gap-frames", "0"]
    subprocess.run([sys.executable, ROOT / "dataset" / "corridor_loader.py", *flags], check=True)
    flags = ["--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth", "--allow-missing-teachers"]
    flags += ["--output", folder / "manifest.jsonl"]
    subprocess.run([sys.executable, ROOT / "teacher_infer" / "build_manifest.py", *map(str, flags)], check=True)
    rows = natsorted(read_manifest(folder / "manifest.jsonl"), key=lambda row: row.stem)
    unused = len(rows) - train - val - TEST
    if unused < 0:
        raise UserError(f"{frames} has {len(rows)} frames, {train + val + TEST} are needed")
    splits = ["train"] * train + ["val"] * val + [None] * unused + ["test"] * TEST
    rows = [replace(row, split=split) for row, split in zip(rows, splits, strict=True) if split]
    write_manifest(folder / "manifest.jsonl", rows)
    return rows


def score(model: torch.nn.Module, rows: list[Row], split: str, scaled: bool, recipe: Recipe) -> dict[str, float]:
    """Depth metrics of a split; `scaled`: the model speaks in metres of the reference camera."""
    metrics = DepthMetrics(recipe.min_depth, recipe.max_depth)
    student = predictor(model.eval(), recipe, torch.device("cpu"))
    for row in rows:
        if row.split == split:
            depth, _ = student(read_image(row.rgb), row.intrinsics if scaled else None)
            depth = np.maximum(depth, recipe.min_depth)  # a ReLU's 0 is an answer, not a missing one
            truth = read_depth(row.depth, row.depth_unit)
            metrics.update(*map(torch.from_numpy, (depth, truth, scored_depth(truth, None, recipe, row.intrinsics))))
    return metrics.compute()


def test_scores(model: torch.nn.Module, rows: list[Row], scaled: bool, recipe: Recipe) -> list[float]:
    """METRICS on the test frames, then the RMSE on the training frames."""
    test = score(model, rows, "test", scaled, recipe)
    return [test[name] for name in METRICS] + [score(model, rows, "train", scaled, recipe)["rmse"]]


def train_published(rows: list[Row], epochs: int, batch_size: int, seed: int, recipe: Recipe) -> list[float]:
    """Scores of the epoch that is best on val, the last one where there is no val."""
    trainer = PublishedTrainer(recipe, torch.device("cpu"), epochs, seed)
    batches = loader([row for row in rows if row.split == "train"], batch_size, seed)
    val = [row for row in rows if row.split == "val"]
    best, weights = float("inf"), {}
    for _ in range(epochs):
        trainer.model.train()
        for rgb, depth in batches:
            trainer.train_step(rgb, depth)
        trainer.schedule.step()
        rmse = score(trainer.model, rows, "val", False, recipe)["rmse"]
        if rmse < best or not val:
            best, weights = rmse, {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(weights)
    return test_scores(trainer.model, rows, False, recipe)


def train_ours(
    rows: list[Row], epochs: int, batch_size: int, seed: int, out: Path, init: Path | None, flags: list[str]
) -> list[float]:
    """Scores of train.py's best.pt, train.py being called as a user calls it; init: its --init.

    out: a folder of its own in the data folder.
    """
    command = [sys.executable, ROOT / "train.py", "--manifest", out.parent / "manifest.jsonl", "--epochs", epochs]
    command += ["--batch-size", batch_size, "--seed", seed, "--device", "cpu"]
    command += ["--init", init] if init else ["--encoder-weights", "none"]
    command += ["--checkpoint-dir", out / f"checkpoints_{seed}", "--log-dir", out / "runs", *flags]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    model, recipe, _ = load_student(out / f"checkpoints_{seed}" / "best.pt")
    return test_scores(model, rows, True, recipe)


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frames", default=os.environ.get("RGBD_FRAMES"), help="default: $RGBD_FRAMES")
    parser.add_argument("--epochs", type=positive_int, default=10, help="default: %(default)s")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="default: %(default)s")
    parser.add_argument("--seeds", type=positive_int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--train-frames", type=positive_int, default=200, help="default: %(default)s")
    parser.add_argument("--val-frames", type=non_negative_int, default=40, help="default: %(default)s")
    parser.add_argument("--only", choices=("published", "ours", "pretrained"), help="leave the others out")
    parser.add_argument("--init", type=Path, help="also start ours from this checkpoint, of rendered rooms, say")
    parser.add_argument("--train-flags", default="", help="further flags of train.py, in one string")
    arguments = parser.parse_args()
    if not arguments.frames:
        raise UserError("--frames names the folder of an RGB-D recording")
    table: list[list[Any]] = []
    flags = arguments.train_flags.split()
    with tempfile.TemporaryDirectory() as name:
        rows = import_frames(arguments.frames, Path(name), arguments.train_frames, arguments.val_frames)
        for seed in range(arguments.seeds):
            common = (rows, arguments.epochs, arguments.batch_size, seed)
            runs: dict[str, Callable[[], list[float]]] = {
                "published": partial(train_published, *common, Recipe()),
                "ours": partial(train_ours, *common, Path(name) / "ours", None, flags),
            }
            if arguments.init:
                runs["pretrained"] = partial(
                    train_ours, *common, Path(name) / "pretrained", arguments.init.resolve(), flags
                )
            for student, train in runs.items():
                if arguments.only in (None, student):
                    start = time.perf_counter()
                    scores = train()
                    table.append([student, seed, *scores, (time.perf_counter() - start) / 60])
                    print(f"{student}, seed {seed}: RMSE {scores[0]:.3f} m", flush=True)
    for student in dict.fromkeys(line[0] for line in table):
        values = np.array([line[2:] for line in table if line[0] == student])
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        table.append([student, "mean", *values.mean(axis=0)])
        table.append([student, "std", *spread])
    headers = ("student", "seed", "RMSE m", "RMSE m, mean of images", "AbsRel", "delta1", "training RMSE m", "minutes")
    print(tabulate(table, headers, floatfmt=".3f"))
    print(f"{arguments.train_frames} frames, {arguments.epochs} epochs at batch {arguments.batch_size}; {processor()}")


if __name__ == "__main__":
    run(main)
