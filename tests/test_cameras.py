"""Depth of the included student is metric for other focal lengths."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from config import INCLUDED_STUDENT, NYU_INTRINSICS, student_path
from dataset.frames import read_depth, read_image
from dataset.manifest import Cameras
from evaluation.inference import make_predictor
from trainer.checkpoint import load_student

ROOT = Path(__file__).resolve().parents[1]
BAND = (0.85, 1.15)
LENSES = (0.8, 1.25)  # factors on NYU's focal length
SCENES = 80
UNSEEN_SEED = 1  # the student was trained on rooms of seeds from 1000 on


@pytest.fixture(scope="module")
def student():
    model, recipe, _ = load_student(student_path(INCLUDED_STUDENT))
    return make_predictor(model, recipe, torch.device("cpu"))


def test_nyu_camera_file_matches_config():
    assert Cameras.read(ROOT / "cameras" / "nyu.json").common == NYU_INTRINSICS


def median_ratio(student, folder: Path, rule: bool) -> float:
    """Median over frames of the per-frame median of predicted / true depth."""
    camera = Cameras.read(folder / "camera.json").for_frame("") if rule else NYU_INTRINSICS
    ratios = []
    for image in sorted((folder / "rgb").glob("*.png")):
        truth = read_depth(folder / "depth" / f"{image.stem}.npy")
        depth, _ = student(read_image(image), camera)
        ratios.append(np.median(depth[truth > 0] / truth[truth > 0]))
    return float(np.median(ratios))


@pytest.fixture(scope="module")
def unseen_rooms(tmp_path_factory) -> dict[float, Path]:
    """{focal scale relative to NYU: folder of rooms that the student has not seen}."""
    folders = {factor: tmp_path_factory.mktemp("rooms") for factor in LENSES}
    for factor, folder in folders.items():
        stages = (
            ("rooms/render_rooms.py", "--out", "r.mat", "--scenes", str(SCENES), "--frames-per-scene", "1",
             "--seed", str(UNSEEN_SEED), "--focal-scale", str(factor)),
            ("dataset/nyu_loader.py", "--mat", "r.mat", "--out", "."),
        )  # fmt: skip
        for script, *arguments in stages:
            subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=folder, check=True)
    return folders


def ratio_of(student, unseen_rooms, factor: float, rule: bool) -> float:
    ratio = median_ratio(student, unseen_rooms[factor], rule)
    print(f"{'with' if rule else 'without'} focal scaling, focal length x{factor}: predicted / true depth {ratio:.3f}")
    return ratio


@pytest.mark.parametrize("factor", LENSES)
def test_depth_is_metric_for_other_focal_lengths(student, unseen_rooms, factor):
    assert BAND[0] <= ratio_of(student, unseen_rooms, factor, rule=True) <= BAND[1]


def test_focal_scaling_reduces_the_difference_between_lenses(student, unseen_rooms):
    """Holds if the student reproduces more than half of the change in focal length."""
    spread = {}
    for rule in (True, False):
        shorter, longer = (ratio_of(student, unseen_rooms, factor, rule) for factor in LENSES)
        spread[rule] = abs(np.log(shorter / longer))
    assert spread[True] < spread[False]
