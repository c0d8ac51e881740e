"""A tiny data folder with teachers, and helpers that run scripts inside the test process."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from cli import run

import numpy as np
import pytest
from box_room import CAMERA, FURNITURE, WALL, write_folder

from dataset.files import read_npy, read_png_raw, write_npy
from dataset.manifest import Row, write_manifest

SIZE = (160, 120)
TEACHER_SCALE, TEACHER_HOLE = 1.1, (slice(0, 20), slice(0, 40))
SPLITS = ("train", "train", "train", "train", "val", "test", "test")
STEMS = tuple(f"a/{index:03d}" for index in range(len(SPLITS)))
MADE_BY = {"da3_depth": {"backend": "reference"}, "sam2_seg": {"backend": "reference"}}


def write_data(root: Path, perfect_teachers: bool = False) -> Path:
    """Write box rooms with 4 train, 1 val and 2 test frames; returns the manifest's path.

    The depth teacher predicts 1.1 times the reference and has a hole; the class teacher labels the cupboard as wall. So
    a test notices if the code mixes up teacher and reference. With perfect_teachers both equal the reference.
    """
    write_folder(root, STEMS, SIZE)
    rows = []
    for stem, split in zip(STEMS, SPLITS, strict=True):
        depth, seg = read_npy(root / f"depth/{stem}.npy"), read_png_raw(root / f"labels/{stem}.png")
        if not perfect_teachers:
            depth *= np.float32(TEACHER_SCALE)
            depth[TEACHER_HOLE] = 0
            seg[seg == FURNITURE] = WALL
        write_npy(root / f"da3_depth/{stem}.npy", depth)
        write_npy(root / f"sam2_seg/{stem}.npy", seg)
        maps = {name: root / f"{name}/{stem}.npy" for name in ("depth", "confidence", "da3_depth", "sam2_seg")}
        maps |= {name: root / f"{name}/{stem}.png" for name in ("rgb", "labels")}
        rows.append(Row(stem, **maps, split=split, intrinsics=CAMERA.resized(*SIZE), made_by=MADE_BY))
    write_manifest(root / "manifest.jsonl", rows)
    return root / "manifest.jsonl"


def copy_data(manifest: Path, root: Path) -> Path:
    """Copy a data folder, so that a test may modify it; returns the manifest's path."""
    shutil.copytree(manifest.parent, root, ignore=shutil.ignore_patterns(".cache"))
    return root / manifest.name


def call(main: Callable[[], int | None], *arguments: object) -> int | None:
    """Call main() with command-line arguments; returns its result."""
    with _command_line(main, arguments):
        return main()


def exit_code(main: Callable[[], int | None], *arguments: object) -> int:
    """Run the script with command-line arguments; returns its exit code."""
    with _command_line(main, arguments), pytest.raises(SystemExit) as end:
        run(main)
    return end.value.code


def _command_line(main: Callable, arguments: Sequence[object]):
    return mock.patch.object(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])


def train_flags(manifest: Path, out: Path) -> list[object]:
    """Flags of a short run on the CPU: two epochs of two steps."""
    flags = ["--manifest", manifest, "--checkpoint-dir", out / "checkpoints", "--log-dir", out / "runs"]
    return [*flags, "--epochs", 2, "--batch-size", 2, "--encoder-weights", "none", "--device", "cpu"]


def random_depth(rng: np.random.Generator, shape: tuple[int, ...], holes: float = 0.2) -> np.ndarray:
    """Random float32 depth in 0.3..9 metres; a fraction of `holes` pixels is 0."""
    return np.where(rng.random(shape) < holes, 0, rng.uniform(0.3, 9, shape)).astype(np.float32)
