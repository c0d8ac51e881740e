"""All stages treat a checkpoint of the first format as the revision that wrote it did.

Revision 8c584c8 wrote tests/data/format_1.pt: a small student (timm's test_efficientnet) after one of three epochs on
the box rooms of small_run.write_data(). format_1.json holds that revision's results: the history of the resumed run,
Table IV, and the outputs of the exported float32 graph.
"""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from cli import UserError

import numpy as np
import onnxruntime
import pytest
import torch
from small_run import call, write_data

import eval_distillation
import export_trt
import predict
import train
from config import Recipe, Runtime
from dataset.files import read_json
from trainer.checkpoint import load_checkpoint, load_student, recipe_from_checkpoint
from trainer.distributed import Processes
from trainer.mixture import WeightedManifest

CHECKPOINT = Path(__file__).with_name("data") / "format_1.pt"
EXPECTED = json.loads(CHECKPOINT.with_suffix(".json").read_text())
RECIPE = Recipe(
    encoder="test_efficientnet.r160_in1k", neck_channels=8, epochs=3, batch_size=2, zoom=(0.8, 1.3),
    output_range=(0.05, 20.0),
)  # fmt: skip
CAMERA = Path(__file__).resolve().parents[1] / "cameras/nyu.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The manifest that the checkpoint was trained on."""
    return write_data(tmp_path_factory.mktemp("format_1") / "data", perfect_teachers=True)


def resume(data: Path, out: Path, recipe: Recipe) -> int:
    flags = {"data_root": None, "require_data": True}
    arguments = Namespace(manifest=[WeightedManifest(data)], **flags, data_limit=None, resume=CHECKPOINT, init=None)
    runtime = Runtime(checkpoint_dir=out / "checkpoints", log_dir=out / "runs", num_workers=1)
    return train.train(arguments, recipe, runtime, Processes(), torch.device("cpu"))


def test_old_recipe_is_read():
    assert recipe_from_checkpoint(load_checkpoint(CHECKPOINT), CHECKPOINT) == RECIPE


def test_renamed_settings_are_read_under_their_old_names():
    content = load_checkpoint(CHECKPOINT)
    assert "freeze_bn_fraction" not in content["config"]
    content["config"] |= {"frozen_statistics": 0.7, "pretrained_encoder_lr": 0.2}
    recipe = recipe_from_checkpoint(content, CHECKPOINT)
    assert (recipe.freeze_bn_fraction, recipe.pretrained_encoder_lr_factor) == (0.7, 0.2)


def test_resumed_run_ends_like_the_old_revision(data, tmp_path, capsys):
    assert resume(data, tmp_path, RECIPE) == 0
    assert capsys.readouterr().out.count("WARNING") == 1, "it identifies its data by file times"
    history = load_checkpoint(tmp_path / "checkpoints/last.pt")["notes"]["history"]
    for entry, expected in zip(history, EXPECTED["resumed"]["history"], strict=True):
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    resumed_recipe = load_student(tmp_path / "checkpoints/last.pt")[1]
    assert resumed_recipe == RECIPE, "the same recipe in the current format"


@pytest.mark.parametrize("changed", [{"zoom": (0.8, 1.4)}, {"weight_decay": 0.1}, {"width": 160, "height": 120}])
def test_resume_rejects_a_different_recipe(data, tmp_path, changed):
    (name, *_) = changed
    with pytest.raises(UserError, match=f"was trained with {name} "):
        resume(data, tmp_path, replace(RECIPE, **changed))


def test_table_4_equals_the_old_revision(data, tmp_path):
    flags = ("--checkpoint", CHECKPOINT, "--manifest", data, "--output-dir", tmp_path, "--device", "cpu")
    assert call(eval_distillation.main, *flags) == 0
    rows = read_json(tmp_path / "table_4.json")["rows"]
    assert list(rows) == list(EXPECTED["table_4"])
    for row, parts in EXPECTED["table_4"].items():
        if row.endswith("reference"):
            del parts["depth"]  # that revision did not mask depth of low confidence
        for part, metrics in parts.items():
            for name, expected in metrics.items():
                found = rows[row][part][name]
                assert found == expected or np.allclose(
                    np.array(found, float), np.array(expected, float), rtol=1e-4, equal_nan=True
                ), (row, part, name)


def test_exported_graph_equals_the_old_revision(data, tmp_path):
    flags = ("--checkpoint", CHECKPOINT, "--manifest", data, "--camera", CAMERA, "--engine-dir", tmp_path)
    assert call(export_trt.main, *flags, "--skip-trt", "--calibration-frames", 2) == 0
    session = onnxruntime.InferenceSession(tmp_path / "student_fp32.onnx", providers=["CPUExecutionProvider"])
    images = np.load(tmp_path / "eval_frames.npz")["rgb"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    answers = [session.run(["depth", "seg"], {"rgb": image[None]}) for image in images]
    step = EXPECTED["graph"]["step"]
    for name, maps in zip(("depth", "seg"), zip(*answers, strict=True), strict=True):
        sampled = np.concatenate(maps)[:, :, ::step, ::step]
        np.testing.assert_allclose(sampled, EXPECTED["graph"][name], rtol=1e-4, atol=1e-4)


def test_prediction_runs(data, tmp_path):
    flags = ("--checkpoint", CHECKPOINT, "--input", data.parent / "rgb", "--data-limit", 1, "--output-dir", tmp_path)
    assert call(predict.main, *flags, "--device", "cpu") == 0
    assert list(tmp_path.rglob("*.png"))


def test_missing_or_invalid_settings_are_rejected(tmp_path):
    content = torch.load(CHECKPOINT, weights_only=True)
    for change, words in (({"lr": "fast"}, "lr is 'fast'"), ({"lr": None}, "lr is None"), ("lr", "no setting 'lr'")):
        config = dict(content["config"])
        if isinstance(change, str):
            del config[change]
        else:
            config |= change
        torch.save(content | {"config": config}, tmp_path / "changed.pt")
        with pytest.raises(UserError, match=words):
            load_student(tmp_path / "changed.pt")
