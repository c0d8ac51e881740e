"""The depth teacher: focal length, the gate's verdict, and the scripts' exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from box_room import CAMERA, render, write_folder

from config import NYU_INTRINSICS, Intrinsics
from dataset.frames import read_depth
from teacher_infer import depth_backends, verify_teacher_output
from teacher_infer.verify_teacher_output import compare, find_problems

SCRIPTS = Path(__file__).resolve().parents[1] / "teacher_infer"
RESIZE = 504 / 640
KITCHEN = Path(os.environ.get("RGBD_FRAMES") or SCRIPTS.parents[1] / "shared" / "rgbd_kitchen")


def script(name, *args):
    return subprocess.run([sys.executable, SCRIPTS / name, *map(str, args)], capture_output=True, text=True, cwd="/")


def test_focal_length_is_of_the_image_that_the_network_sees():
    assert depth_backends.processed_focal(NYU_INTRINSICS, 504, 378) == pytest.approx(519.16375 * 504 / 640)
    assert depth_backends.processed_focal(CAMERA, 504, 350) == pytest.approx(520 * (504 / 640 + 350 / 480) / 2)


class Outputs(dict):
    """Attributes and items alike, as the package's own output is."""

    __getattr__ = dict.__getitem__


def fake_da3(raw, shape=(480, 640), camera=NYU_INTRINSICS, process_res=504, **extra):
    """DA3's depth of a blank image, with the package's own resizing and a network that says `raw` [of (h, w)]."""
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("depth_anything_3.utils.io.input_processor").InputProcessor()

    def model(image, export_feat_layers):
        size = image.shape[-2:]
        maps = {name: value(size) if callable(value) else value for name, value in {"depth": raw, **extra}.items()}
        maps = {name: torch.as_tensor(value).expand(len(image), 1, *size).clone() for name, value in maps.items()}
        return Outputs(maps, is_metric=0)

    backend = depth_backends.DA3.__new__(depth_backends.DA3)
    backend.device, backend.process_resolution, backend.batch_size = torch.device("cpu"), process_res, 1
    backend.model, backend.network = model, SimpleNamespace(input_processor=processor)
    return depth_backends.depth_of(backend, "a", np.zeros((*shape, 3), np.uint8), camera)


def test_da3_gives_metres_at_the_image_size():
    depth = fake_da3(2.0)
    assert depth.shape == (480, 640) and depth.dtype == np.float32
    assert depth == pytest.approx(2.0 * 519.16375 * RESIZE / 300)


@pytest.mark.parametrize("process_res", [504, 630, 756])
@pytest.mark.parametrize("shape", [(480, 640), (720, 1280), (640, 480)], ids=["4:3", "16:9", "upright"])
def test_metres_do_not_depend_on_the_processing_resolution(process_res, shape):
    """A network that is right in its canonical camera of 300 px sees a wall 2.5 m away."""
    camera = Intrinsics(600.0, 606.0, 320, 240, shape[1], shape[0])

    def canonical(size):
        return 2.5 * 300 / ((600 * size[1] / shape[1] + 606 * size[0] / shape[0]) / 2)

    assert fake_da3(canonical, shape, camera, process_res) == pytest.approx(2.5, rel=5e-3)


def test_da3_sky_and_non_finite_become_zero():
    assert not fake_da3(2.0, sky=0.31).any()
    assert fake_da3(2.0, sky=0.29).all()
    assert not fake_da3(float("nan")).any()


def test_what_the_network_fills_sky_with_does_not_reach_its_rim():
    def half(size, left, right):
        row = np.where(np.arange(size[1]) < size[1] // 2, left, right).astype(np.float32)
        return np.broadcast_to(row, size).copy()

    depth = fake_da3(lambda size: half(size, 2.0, 400.0), sky=lambda size: half(size, 0.0, 1.0))
    near = 2.0 * 519.16375 * RESIZE / 300
    assert depth[:, :310] == pytest.approx(near) and not depth[:, 330:].any()
    assert depth[depth > 0] == pytest.approx(near)


def frame_of(shape, value):
    torch = pytest.importorskip("torch")
    return depth_backends.Prepared(torch.full(shape, float(value)), shape[1:], None)


def test_batches_hold_one_size_and_keep_the_order():
    seen = []

    def forward(batch):
        seen.append([tuple(p.image.shape) for p in batch])
        return [p.image.mean().item() for p in batch]

    frames = [frame_of((3, 4, 4) if n % 2 else (3, 2, 4), n) for n in range(5)]
    assert depth_backends.in_batches(frames, 2, forward) == [0, 1, 2, 3, 4]
    assert seen == [[(3, 2, 4)] * 2] * 2 + [[(3, 4, 4)] * 2]  # the second is filled up


REFERENCE = render(pitch=10)[0]


def problems_of(*teachers):
    return find_problems({str(n): compare(t, REFERENCE, REFERENCE.shape) for n, t in enumerate(teachers)}, RESIZE)


def test_a_good_teacher_passes():
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(REFERENCE.shape)
    assert problems_of((REFERENCE * noise).astype(np.float32)) == []


@pytest.mark.parametrize(
    ("teacher", "cause"),
    [
        (REFERENCE / np.float32(RESIZE), "not scaled to the network's input"),
        (REFERENCE * np.float32(RESIZE), "twice"),
        (REFERENCE * 1000, "millimetres"),
        (REFERENCE / 1000, "millimetres"),
        (REFERENCE * np.float32(1.5), "intrinsics"),
        (3 / REFERENCE, "inverse depth"),
        (REFERENCE.max() + 1 - REFERENCE, "inverse depth"),
        (np.zeros_like(REFERENCE), "all zero"),
        (np.full_like(REFERENCE, np.nan), "NaN"),
        (REFERENCE[:-1], "size"),
        (REFERENCE.astype(np.float64), "float32"),
        (np.where(np.median(REFERENCE) - 0.1 < REFERENCE, 0, REFERENCE), "pixels have depth"),
    ],
)
def test_the_gate_names_the_cause(teacher, cause):
    assert any(cause in problem for problem in problems_of(teacher))


@pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no real frames at {KITCHEN} (set RGBD_FRAMES)")
@pytest.mark.parametrize("offset", [0, 60, 100, 150, 220])
def test_depth_of_other_frames_is_named(offset):
    files = sorted(KITCHEN.glob("*.depth.png"))
    depths = {n: read_depth(files[n % len(files)]) for i in range(0, 300, 60) for n in (i, i + offset)}
    comparisons = {str(n): compare(depths[n + offset], depths[n], (480, 640)) for n in range(0, 300, 60)}
    problems = find_problems(comparisons, RESIZE)
    assert any("belong to different frames" in problem for problem in problems) == bool(offset), problems


def test_a_flat_wall_is_not_mistaken_for_another_frame():
    noise = np.random.default_rng(0).standard_normal((2, *REFERENCE.shape)).astype(np.float32)
    teacher, reference = 2 + 0.02 * noise
    comparison = compare(teacher, reference, reference.shape)
    assert abs(comparison.correlation) < 0.1 and find_problems({"0": comparison}, RESIZE) == []


def test_ratio_range_can_be_set():
    far = {"0": compare(REFERENCE * np.float32(1.15), REFERENCE, REFERENCE.shape)}
    assert find_problems(far, RESIZE) == []
    assert "scale" in find_problems(far, RESIZE, (0.9, 1.1))[0]


def test_spearman_detects_inverse_depth_where_pearson_is_weak():
    disparity = 1 / REFERENCE**4
    comparison = compare(disparity, REFERENCE, REFERENCE.shape)
    assert comparison.spearman == pytest.approx(-1, abs=1e-3) and comparison.correlation > comparison.spearman


def test_one_bad_frame_in_five_passes_and_two_fail():
    bad = REFERENCE * np.float32(1.3)
    assert problems_of(REFERENCE, REFERENCE, REFERENCE, REFERENCE, bad) == []
    assert "2 of 5 frames" in " ".join(problems_of(REFERENCE, REFERENCE, REFERENCE, bad, bad))


def test_chosen_frames_are_evenly_spaced():
    frames = {f"{n:02d}": Path("x") for n in range(11)}
    assert verify_teacher_output.choose_frames(frames, None, 3) == ["00", "05", "10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("rooms"))


def test_run_da3_reference(folder, tmp_path):
    done = script("run_da3.py", "--input-dir", folder / "rgb", "--output-dir", tmp_path, "--backend", "reference")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "a" / "001.npy"), np.load(folder / "depth" / "a" / "001.npy"))
    assert json.loads((tmp_path / "provenance.json").read_text())["backend"] == "reference"


def test_gate_passes_and_fails_by_exit_code(folder, tmp_path):
    common = [
        "verify_teacher_output.py",
        "--input-dir",
        folder / "rgb",
        "--gt-depth-dir",
        folder / "depth",
        "--backend",
        "reference",
        "--n-frames",
        2,
    ]
    passed = script(*common, "--output-dir", tmp_path / "good")
    assert passed.returncode == 0, passed.stderr
    assert json.loads((tmp_path / "good" / "gate.json").read_text())["passed"] is True
    assert len(list((tmp_path / "good").rglob("*.png"))) == 2
    for path in (folder / "depth").rglob("*.npy"):
        target = tmp_path / "scaled" / path.relative_to(folder / "depth")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, np.load(path) * np.float32(1.27))
    failed = script(*common, "--output-dir", tmp_path / "bad", "--reference-depth-dir", tmp_path / "scaled")
    assert failed.returncode == 1 and "FAILED" in failed.stdout
    unchecked = script(*common[:3], "--backend", "reference", "--output-dir", tmp_path / "alone")
    assert unchecked.returncode == 0 and "could not check" in unchecked.stdout


@pytest.mark.parametrize("name", ["run_da3.py", "verify_teacher_output.py"])
def test_wrong_input_is_a_one_line_error(name, folder, tmp_path):
    for args in (
        ["--input-dir", tmp_path / "absent"],
        ["--input-dir", folder / "rgb", "--model-id", tmp_path],
    ):
        failed = script(name, *args, "--output-dir", tmp_path / "out")
        assert failed.returncode == 2 and failed.stderr.strip().count("\n") == 0, failed.stderr
        assert not (tmp_path / "out").exists()
