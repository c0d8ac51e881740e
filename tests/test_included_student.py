"""The student that comes with the code: every script takes it by its name, predict.py without one."""

import json

from cli import EXIT_OK

import numpy as np
import pytest
from small_run import call, exit_code

import eval_distillation
import export_trt
import predict
from config import INCLUDED_STUDENT, WEIGHTS_FOLDER, student_path
from dataset.manifest import read_manifest
from rooms import render_rooms
from trainer.checkpoint import load_student

CAMERA = WEIGHTS_FOLDER.parent / "cameras/femto_bolt_color.json"
INCLUDED = student_path(INCLUDED_STUDENT)


def test_file():
    assert INCLUDED.parent == WEIGHTS_FOLDER and INCLUDED.stat().st_size <= 10e6
    student, recipe, content = load_student(INCLUDED)
    assert sum(weight.numel() for weight in student.parameters()) <= 5.31e6
    assert (recipe.width, recipe.height) == (320, 240)
    notes = content["notes"]
    assert notes["camera"] is None, "it has seen many lenses"
    assert {teacher["da3_depth"]["model"] for teacher in notes["teachers"]} == {"renderer"}
    assert "random" in notes["encoder_start"]


def test_predict_without_a_checkpoint(manifest, tmp_path, capsys):
    image = read_manifest(manifest)[5].rgb
    assert call(predict.main, "--input", image, "--output-dir", tmp_path, "--save-maps", "--device", "cpu") == EXIT_OK
    assert f"student: {INCLUDED}, which has seen rendered rooms alone" in capsys.readouterr().out
    depth = np.load(tmp_path / "005_depth.npy", allow_pickle=False)
    assert np.isfinite(depth).all() and depth.std() > 0


def test_evaluation_by_name(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--manifest", manifest, "--data-limit", 2, "--device", "cpu")
    assert call(eval_distillation.main, "--checkpoint", INCLUDED_STUDENT, *flags) == EXIT_OK
    assert (tmp_path / "table_4/table_4.json").is_file() and not (WEIGHTS_FOLDER / "table_4").exists()
    capsys.readouterr()


@pytest.mark.parametrize("view", ["handheld", "robot"])
def test_export_by_name_is_within_bounds(tmp_path, capsys, view):
    """All precisions stay within their bounds on the test frames of unseen rooms."""
    rooms = ("--scenes", 4, "--frames-per-scene", 6, "--seed", 1, "--width", 320, "--view", view, "--workers", 1)
    assert call(render_rooms.main, "--out", tmp_path / "rooms", *rooms) == EXIT_OK
    flags = ("--engine-dir", tmp_path / "engines", "--camera", CAMERA, "--manifest", tmp_path / "rooms/manifest.jsonl")
    assert call(export_trt.main, "--checkpoint", INCLUDED_STUDENT, "--skip-trt", *flags) == EXIT_OK
    described = json.loads((tmp_path / "engines/student.json").read_text())
    assert described["checkpoint"]["file"] == INCLUDED.name
    assert {entry["precision"] for entry in described["precisions"]} == {"fp32", "fp16", "int8"}
    capsys.readouterr()


@pytest.mark.parametrize("script", [eval_distillation, export_trt])
def test_unknown_name(script):
    assert exit_code(script.main, "--checkpoint", "another") == 2
