"""What the demo's student makes of other cameras: other lenses, blur, noise (skips without `make demo`)."""

import subprocess
import sys
from pathlib import Path

import cv2
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


def test_without_the_rule_it_is_not(student, unseen_rooms):
    with pytest.raises(AssertionError, match="predicted / true depth"):
        assert_metric(ratios(student, unseen_rooms, rule=False))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("blur of one pixel", lambda image, rng: cv2.GaussianBlur(image, (0, 0), 1)),
        ("noise of 3 %", lambda image, rng: np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)),
    ],
)
def test_distance_is_not_read_off_sharpness(student, unseen_rooms, name, spoil):
    model, checkpoint = student
    config, rng, ratios = Config(reference_focal=checkpoint["reference_focal"]), np.random.default_rng(0), []
    for path in sorted((unseen_rooms[LENSES[0]] / "rgb").glob("*.png")):
        image = read_image(path)
        plain, spoilt = (predict(model, i, 1.0, config, torch.device("cpu"))[0] for i in (image, spoil(image, rng)))
        ratios.append(np.median(spoilt / plain))
    print(f"{name}: distance times {np.median(ratios):.3f}")
    assert 0.9 < np.median(ratios) < 1.1
