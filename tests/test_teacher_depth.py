"""The depth teacher: focal length, the gate's judgement, and the scripts' exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from box_room import CAMERA, render, write_folder

from config import NYU_INTRINSICS, Intrinsics
from teacher_infer import depth_backends, verify_teacher_output
from teacher_infer.verify_teacher_output import compare, find_problems

SCRIPTS = Path(__file__).resolve().parents[1] / "teacher_infer"
RESIZE = 504 / 640


def script(name, *args):
    return subprocess.run([sys.executable, SCRIPTS / name, *map(str, args)], capture_output=True, text=True, cwd="/")


def test_focal_length_is_of_the_image_that_the_network_sees():
    assert depth_backends.processed_focal(NYU_INTRINSICS, 504, 378) == pytest.approx(519.16375 * 504 / 640)
    assert depth_backends.processed_focal(CAMERA, 504, 350) == pytest.approx(520 * (504 / 640 + 350 / 480) / 2)


class Outputs(dict):
    """Attributes and items alike, as the package's own output is."""

    __getattr__ = dict.__getitem__


def fake_da3(raw, **extra):
    torch = pytest.importorskip("torch")

    def model(image, export_feat_layers):
        shape = (*image.shape[:2], *image.shape[-2:])
        maps = {name: torch.as_tensor(value).expand(shape).clone() for name, value in {"depth": raw, **extra}.items()}
        return Outputs(maps, is_metric=0)

    backend = depth_backends.DA3.__new__(depth_backends.DA3)
    backend.device = torch.device("cpu")
    backend.network = SimpleNamespace(
        model=model,
        input_processor=lambda images, process_res, sequential: (torch.zeros(1, 3, 378, 504), None, None),
    )
    return backend("a", np.zeros((480, 640, 3), np.uint8), NYU_INTRINSICS)


def test_da3_gives_metres_at_the_image_size():
    depth = fake_da3(2.0)
    assert depth.shape == (480, 640) and depth.dtype == np.float32
    assert depth == pytest.approx(2.0 * 519.16375 * RESIZE / 300)


def test_da3_sky_and_non_finite_become_zero():
    assert not fake_da3(2.0, sky=0.31).any()
    assert fake_da3(2.0, sky=0.29).all()
    assert not fake_da3(float("nan")).any()


def test_real_da3_with_random_weights(tmp_path, monkeypatch):
    api = pytest.importorskip("depth_anything_3.api", reason="depth-anything-3 is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    api.DepthAnything3(model_name="da3-small").save_pretrained(tmp_path / "weights")
    backend = depth_backends.DA3(str(tmp_path / "weights"), "cpu")
    monkeypatch.setattr(depth_backends, "PROCESS_RESOLUTION", 112)
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    near = backend("a", rgb, Intrinsics(130, 130, 80, 60, 160, 120))
    assert near.shape == (120, 160) and near.dtype == np.float32 and (near > 0).all()
    assert backend("a", rgb, Intrinsics(260, 260, 80, 60, 160, 120)) == pytest.approx(near * 2, rel=1e-5)
    assert len(backend.provenance["weights_sha256"]) == 64


REFERENCE = render(pitch=10)[0]


def problems_of(*teachers):
    return find_problems({str(n): compare(t, REFERENCE, REFERENCE.shape) for n, t in enumerate(teachers)}, RESIZE)


def test_a_good_teacher_passes():
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(REFERENCE.shape)
    assert problems_of((REFERENCE * noise).astype(np.float32)) == []


@pytest.mark.parametrize(
    ("teacher", "cause"),
    [
        (REFERENCE / np.float32(RESIZE), "not brought to the network's size"),
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


def test_one_bad_frame_of_five_passes_two_do_not():
    bad = REFERENCE * np.float32(1.3)
    assert problems_of(REFERENCE, REFERENCE, REFERENCE, REFERENCE, bad) == []
    assert "2 of 5 frames" in " ".join(problems_of(REFERENCE, REFERENCE, REFERENCE, bad, bad))


def test_frames_are_spread_evenly():
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
def test_wrong_input_is_one_line(name, folder, tmp_path):
    for args in (
        ["--input-dir", tmp_path / "absent"],
        ["--input-dir", folder / "rgb", "--model-id", tmp_path],
    ):
        failed = script(name, *args, "--output-dir", tmp_path / "out")
        assert failed.returncode == 2 and failed.stderr.strip().count("\n") == 0, failed.stderr
        assert not (tmp_path / "out").exists()
