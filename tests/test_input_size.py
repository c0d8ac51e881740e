"""A student for 16:9 images, from training to Table III."""

import json
from pathlib import Path

from cli import EXIT_USAGE

import numpy as np
import onnxruntime
import pytest
from small_run import call, exit_code

import benchmark_jetson
import eval_distillation
import export_trt
import predict
import train
from config import IGNORE, Recipe
from dataset.frames import from_network_map
from dataset.manifest import Cameras
from print_model_shapes import complexity
from rooms.data_folder import write_data_folder
from rooms.scenes import SceneOptions
from trainer.checkpoint import build_student, load_student

ROOT = Path(__file__).resolve().parents[1]
WIDE = (368, 208)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rooms through the Femto Bolt's colour camera, a quarter of its size."""
    camera = Cameras.read(ROOT / "cameras/femto_bolt_color.json").common.resized(320, 180)
    folder = tmp_path_factory.mktemp("wide") / "rooms"
    write_data_folder(folder, SceneOptions(1000, 2, camera, view="robot"), 4, 1)
    (folder / "camera.json").write_text(json.dumps(vars(camera)))
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    flags = ["--manifest", data / "manifest.jsonl", "--checkpoint-dir", out / "checkpoints", "--log-dir", out / "runs"]
    flags += ["--epochs", 1, "--batch-size", 2, "--encoder-weights", "none", "--cache-scale", 1, "--device", "cpu"]
    assert call(train.main, *flags, "--input-size", "x".join(map(str, WIDE))) == 0
    return out / "checkpoints/best.pt"


def test_the_recipe_carries_the_size(checkpoint):
    _, recipe, _ = load_student(checkpoint)
    assert (recipe.width, recipe.height) == WIDE


def test_a_wide_input_costs_about_as_much_as_the_default():
    student = build_student(Recipe()).eval()
    wide, default = (
        sum(macs for _, macs in complexity(student, height, width).values()) for width, height in (WIDE, (320, 240))
    )
    assert wide <= 1.02 * default


def test_every_pixel_of_a_wide_image_has_an_answer(data, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--input", data / "rgb", "--camera", data / "camera.json", "--save-maps"]
    assert call(predict.main, *flags, "--output-dir", tmp_path, "--data-limit", 2) == 0
    for depth in tmp_path.rglob("*_depth.npy"):
        metres = np.load(depth)
        classes = np.load(depth.with_name(depth.name.replace("_depth", "_seg")))
        assert metres.shape == classes.shape == (180, 320)
        assert np.isfinite(metres).all() and (classes != IGNORE).all()


def test_columns_that_the_aspect_ratio_cuts_take_the_nearest_answer():
    depth = np.arange(368, dtype=np.float32) * np.ones((208, 1), np.float32)
    full = from_network_map(depth, 1280, 720, 0)
    assert (full[:, :3] == full[:, 3:4]).all() and (full[:, -3:] == full[:, -4:-3]).all()
    assert np.isnan(from_network_map(depth, 1300, 720, 0)).any(), "a wider crop is not invented"


def test_table_4_export_and_table_3(data, checkpoint, tmp_path, capsys):
    manifest = data / "manifest.jsonl"
    flags = ["--checkpoint", checkpoint, "--manifest", manifest]
    assert call(eval_distillation.main, *flags, "--output-dir", tmp_path / "table_4") == 0
    engines = tmp_path / "engines"
    flags += ["--camera", data / "camera.json", "--skip-trt", "--engine-dir", engines, "--calibration-frames", 2]
    assert call(export_trt.main, *flags) == 0
    width, height = WIDE
    session = onnxruntime.InferenceSession(str(engines / "student_fp32.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, height, width]
    assert "368:208" in json.loads((engines / "student.json").read_text())["crop"]
    with np.load(engines / "eval_frames.npz", allow_pickle=False) as archive:
        assert archive["rgb"].shape[1:] == (height, width, 3)
    capsys.readouterr()
    assert call(benchmark_jetson.main, "--engine-dir", engines, "--iterations", 2, "--min-seconds", 0.1) == 0
    assert "fp32" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["368", "368x200", "0x0", "32x32", "368X208", "-368x208", "9e9x16"])
def test_other_sizes_are_a_one_line_error(size, capsys):
    assert exit_code(train.main, f"--input-size={size}") == EXIT_USAGE
    assert "--input-size" in capsys.readouterr().err
