"""The focal rule, seen on the demo's student: metres stay metres through another lens (skips without `make demo`)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from config import NYU_INTRINSICS, Config
from dataset.frames import read_depth, read_image
from dataset.manifest import Cameras
from training.checkpoint import load_student
from training.inference import focal_scale, predict

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "best.pt"
BAND = (0.85, 1.15)
LENSES = (0.8, 1.25)  # factors on NYU's focal length
SCENES = 40
UNSEEN_SEED = 1  # the demo trains on rooms of seed 0


@pytest.fixture(scope="module")
def student():
    if not CHECKPOINT.is_file():
        pytest.skip("no checkpoints/best.pt: `make demo` trains the student that this test is about")
    return load_student(CHECKPOINT)


def median_ratio(student, folder: Path, rule: bool) -> float:
    """Median over frames of each frame's median of predicted / true depth."""
    model, checkpoint = student
    config = Config(reference_focal=checkpoint["reference_focal"])
    camera = Cameras.read(folder / "camera.json").of("") if rule else NYU_INTRINSICS
    ratios = []
    for image in sorted((folder / "rgb").glob("*.png")):
        truth = read_depth(folder / "depth" / f"{image.stem}.npy")
        depth, _ = predict(model, read_image(image), focal_scale(camera, config), config, torch.device("cpu"))
        ratios.append(np.median(depth[truth > 0] / truth[truth > 0]))
    return float(np.median(ratios))


@pytest.fixture(scope="module")
def unseen_rooms(tmp_path_factory) -> dict[float, Path]:
    """{factor on NYU's focal length: rooms that the demo has not seen, through that lens}."""
    folders = {factor: tmp_path_factory.mktemp("rooms") for factor in LENSES}
    for factor, folder in folders.items():
        stages = (
            ("rooms.py", "--out", "r.mat", "--scenes", str(SCENES), "--frames-per-scene", "1",
             "--seed", str(UNSEEN_SEED), "--focal-scale", str(factor)),
            ("nyu_loader.py", "--mat", "r.mat", "--out", "."),
        )  # fmt: skip
        for script, *arguments in stages:
            subprocess.run([sys.executable, str(ROOT / "dataset" / script), *arguments], cwd=folder, check=True)
    return folders


def ratios(student, unseen_rooms, rule: bool) -> dict[float, float]:
    found = {factor: median_ratio(student, folder, rule) for factor, folder in unseen_rooms.items()}
    for factor, ratio in found.items():
        print(f"{'with' if rule else 'without'} the rule, lens x{factor}: predicted / true depth {ratio:.3f}")
    return found


def assert_metric(found: dict[float, float]) -> None:
    for factor, ratio in found.items():
        assert BAND[0] <= ratio <= BAND[1], f"lens x{factor}: predicted / true depth {ratio:.3f}"


def test_depth_is_metric_through_other_lenses(student, unseen_rooms):
    assert_metric(ratios(student, unseen_rooms, rule=True))


@pytest.mark.xfail(
    reason="the demo's student follows a lens by 60 to 75 %, so one run in some stays within the band without the rule"
)
def test_without_the_rule_it_is_not(student, unseen_rooms):
    with pytest.raises(AssertionError, match="predicted / true depth"):
        assert_metric(ratios(student, unseen_rooms, rule=False))
