"""The sensor's rim is not glass: bands and corners of a registered depth map, in one frame and in many."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from box_room import CAMERA, GLASS, WALL, render, write_folder

from dataset.files import read_json
from teacher_infer.geometry import classify
from teacher_infer.sensor_rim import find_common_rim, find_rim

SCRIPT = Path(__file__).resolve().parents[1] / "teacher_infer" / "run_sam2.py"
SIZE = (CAMERA.height, CAMERA.width)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


def band(side: str, fraction: float, slope: float = 0.0) -> np.ndarray:
    """bool [H,W]: a band along one side; `slope` is the increase in width towards its other end, along a curve."""
    across = {"l": COLUMNS, "r": COLUMNS[:, ::-1], "t": ROWS, "b": ROWS[::-1]}[side]
    along = ROWS if side in "lr" else COLUMNS
    return across < (across.max() + 1) * (fraction + slope * (along / along.max()) ** 1.5)


def circle(fraction: float) -> np.ndarray:
    """bool [H,W]: the outside of a circle whose radius is a fraction of the image's diagonal."""
    return np.hypot(COLUMNS - SIZE[1] / 2, ROWS - SIZE[0] / 2) > fraction * np.hypot(*SIZE)


RIMS = {
    **{f"{side}{fraction}": band(side, fraction) for side in "lrt" for fraction in (0.03, 0.07, 0.15)},
    "bottom": band("b", 0.1),
    "slanted": band("r", 0.05, 0.02),
    "three sides": band("r", 0.07) | band("l", 0.03) | band("t", 0.05),
    "all sides": band("r", 0.06) | band("l", 0.06) | band("t", 0.06) | band("b", 0.06),
    "circle": circle(0.42),
    "circle and band": circle(0.42) | band("t", 0.06),
}


@pytest.mark.parametrize("name", RIMS)
@pytest.mark.parametrize("pitch", [0, 12])
def test_a_rim_is_not_glass_and_the_window_is(name, pitch):
    depth, sensor, labels = render(pitch=pitch)
    rim, window = RIMS[name], labels == GLASS
    classes = classify(depth, CAMERA, np.where(rim, 0, sensor).astype(np.float32)).classes
    assert (classes[rim & ~window] == GLASS).mean() < 0.01
    assert (classes[window & ~rim] == GLASS).mean() > 0.9


def test_stray_readings_on_a_rim_do_not_make_it_glass():
    depth, sensor, _ = render()
    rim = band("r", 0.12)
    stray = np.random.default_rng(0).random(SIZE) < 0.01
    classes = classify(depth, CAMERA, np.where(rim & ~stray, 0, sensor).astype(np.float32)).classes
    assert (classes[rim] == GLASS).mean() < 0.01


def test_walls_on_a_rim_are_wall():
    depth, sensor, labels = render()
    rim = band("r", 0.1)
    classes = classify(depth, CAMERA, np.where(rim, 0, sensor).astype(np.float32)).classes
    assert (classes[rim & (labels == WALL)] == WALL).mean() > 0.95


@pytest.mark.parametrize("rim", [np.zeros(SIZE, bool), band("l", 0.05)], ids=["whole map", "beside a rim"])
def test_a_glass_door_at_the_image_border_is_glass(rim):
    depth, sensor, labels = render()
    door = (COLUMNS < 190) & (ROWS > 150) & (labels == WALL)  # lower than the ceiling
    sensor[door | rim] = 0
    classes = classify(depth, CAMERA, sensor).classes
    assert (classes[door & ~rim] == GLASS).mean() > 0.75
    assert not (classes[rim & ~door] == GLASS).any()


def moving(rim: np.ndarray, count: int = 12) -> list[np.ndarray]:
    """Masks of readings from a rotating camera, with glass in a different place in each frame."""
    frames = []
    for number in range(count):
        _, sensor, _ = render(pitch=-10 + 2 * number, roll=number - count / 2)
        frames.append((sensor > 0) & ~rim)
        frames[-1][:, : 40 * (number % 3)] = False  # a glass wall on the left in some frames
    return frames


def test_many_frames_distinguish_a_glass_wall_at_one_side_from_a_rim():
    depth, sensor, labels = render()
    wall = (COLUMNS < 80) & (labels == WALL)
    sensor[COLUMNS < 80] = 0
    alone = classify(depth, CAMERA, sensor).classes
    common = find_common_rim([*moving(np.zeros(SIZE, bool)), sensor > 0])
    assert not common.any()
    together = classify(depth, CAMERA, sensor, common_rim=common).classes
    assert not (alone[wall] == GLASS).any()
    assert (together[wall] == GLASS).mean() > 0.8


def test_many_frames_distinguish_one_empty_corner_from_glass():
    corner = COLUMNS * 0.3 * SIZE[0] + ROWS * 0.3 * SIZE[1] < 0.09 * SIZE[0] * SIZE[1]  # 0.3 of both sides
    common = find_common_rim(moving(corner))
    found = find_rim(np.where(corner, 0, 2).astype(np.float32), common)
    assert (found & corner).sum() > 0.95 * corner.sum() and (found & ~corner).mean() < 0.02
    pane = np.where(corner, 0, 2).astype(np.float32)
    assert not find_rim(pane).any() and not find_rim(pane, find_common_rim(moving(corner & False))).any()


def test_a_rim_shifts_with_scene_depth():
    near, far = band("r", 0.06), band("r", 0.03)
    common = find_common_rim(moving(far, 11) + moving(near, 1))
    found = find_rim(np.where(near, 0, 1).astype(np.float32), common)
    assert (found & near).sum() > 0.9 * near.sum()


def test_a_map_that_is_half_empty_or_empty_has_no_rim():
    for emptied in (ROWS < 240, COLUMNS > 300, ROWS >= 0):
        assert not find_rim(np.where(emptied, 0, 2).astype(np.float32)).any()
    assert not find_rim(np.full((3, 4), 2, np.float32)).any()


def run_sam2(root: Path) -> subprocess.CompletedProcess:
    flags = ("--input-dir", root / "rgb", "--depth-dir", root / "filled", "--output-dir", root / "seg")
    return subprocess.run(
        [sys.executable, SCRIPT, *flags, "--backend", "reference"], capture_output=True, text=True, cwd="/"
    )


def test_run_sam2_finds_the_rim_of_a_folder_and_records_it(tmp_path):
    root = write_folder(tmp_path, stems=[f"{n:03d}" for n in range(10)])
    (root / "depth").rename(root / "filled")
    (root / "depth").mkdir()
    rim = cv2.resize(band("r", 0.1).astype(np.uint8), (160, 120), interpolation=cv2.INTER_NEAREST) > 0
    for path in (root / "filled").iterdir():
        np.save(root / "depth" / path.name, np.where(rim, 0, np.load(path)).astype(np.float32))
    (root / "depth" / "003.npy").write_bytes(b"broken")
    done = run_sam2(root)
    assert done.returncode == 0, done.stderr
    assert "sensor's rim" in done.stdout
    for stem in ("000", "009"):
        assert not (np.load(root / "seg" / f"{stem}.npy")[rim] == GLASS).any()
    assert (np.load(root / "seg" / "000.npy") == GLASS).any()
    file = root / "seg" / "provenance.json"
    provenance = read_json(file)
    assert provenance["glass_on_sensor_rim"] is False, "older labels may have glass there"
    del provenance["glass_on_sensor_rim"]
    file.write_text(json.dumps(provenance))
    assert run_sam2(root).returncode == 2
