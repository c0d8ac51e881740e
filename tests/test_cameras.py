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


@pytest.mark.parametrize("focal_scale", [0.8, 1.25])
def test_depth_is_metric_through_another_lens(student, tmp_path, focal_scale):
    stages = (
        ("rooms.py", "--out", "r.mat", "--scenes", "10", "--frames-per-scene", "2", "--seed", str(UNSEEN_SEED),
         "--focal-scale", str(focal_scale)),
        ("nyu_loader.py", "--mat", "r.mat", "--out", "."),
    )  # fmt: skip
    for script, *arguments in stages:
        subprocess.run([sys.executable, str(ROOT / "dataset" / script), *arguments], cwd=tmp_path, check=True)
    with_rule, without = median_ratio(student, tmp_path, True), median_ratio(student, tmp_path, False)
    print(f"focal length x{focal_scale}: predicted / true depth {with_rule:.3f}, without the rule {without:.3f}")
    assert BAND[0] <= with_rule <= BAND[1]
    assert not BAND[0] <= without <= BAND[1]
