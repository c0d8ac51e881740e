"""Students to share: half-precision weights in a .safetensors file, read wherever a checkpoint is read."""

import json

from cli import UserError

import pytest
import torch
from safetensors.torch import save_file
from small_run import call, exit_code, train_flags

import config
import eval_distillation
import train
from deployment import share_weights
from evaluation.held_out import find_test_rows
from trainer.checkpoint import load_checkpoint, load_student
from trainer.shared_weights import FORMAT, write_shared_weights


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "checkpoints/best.pt"


@pytest.fixture(scope="module")
def shared(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "box.safetensors"
    assert call(share_weights.main, "--checkpoint", checkpoint, "--out", out) == 0
    return out


def test_weights_are_rounded_to_half_and_nothing_else_is_lost(checkpoint, shared):
    original, recipe, content = load_student(checkpoint)
    student, shared_recipe, shared_content = load_student(shared)
    assert shared_recipe == recipe and shared_content["step"] == content["step"]
    for (name, first), second in zip(original.state_dict().items(), student.state_dict().values(), strict=True):
        expected = first if "running_" in name or not first.is_floating_point() else first.half().float()
        assert torch.equal(second, expected), name
    for name in ("train_images", "camera", "teachers", "data_fingerprint", "history"):
        assert shared_content["notes"][name] == content["notes"][name]


def test_file_is_half_as_large_as_the_weights(checkpoint, shared):
    floats = sum(value.numel() for value in load_checkpoint(checkpoint)["ema"].values())
    assert shared.stat().st_size < 2.1 * floats + 50_000


def test_training_images_stay_out_of_the_test(manifest, shared, tmp_path):
    notes = load_student(shared)[2]["notes"]
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    expected = {line["stem"] for line in lines if line["split"] == "test"}
    for line in lines:
        line["split"] = "test" if line["split"] in ("train", "test") else "val"
    mixed = manifest.with_name("all_test.jsonl")
    try:
        mixed.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows, _ = find_test_rows(mixed, notes, limit=100)
    finally:
        mixed.unlink()
    assert {row.stem for row in rows} == expected


def test_evaluation_reads_it(manifest, shared, tmp_path, capsys):
    flags = ("--manifest", manifest, "--output-dir", tmp_path, "--device", "cpu", "--data-limit", 2)
    assert call(eval_distillation.main, "--checkpoint", shared, *flags) == 0
    assert "student vs" in capsys.readouterr().out


def test_training_starts_from_it_but_does_not_resume_it(manifest, shared, tmp_path, monkeypatch):
    flags = train_flags(manifest, tmp_path)
    with pytest.raises(UserError, match="can't be resumed: start from it with --init"):
        call(train.main, *flags, "--resume", shared)
    monkeypatch.setattr(config, "WEIGHTS_FOLDER", shared.parent)  # train.py --init box
    begin = [flag for flag in flags if flag not in ("--encoder-weights", "none")]
    assert call(train.main, *begin, "--init", config.student_path("box")) == 0
    start = load_checkpoint(tmp_path / "checkpoints/last.pt")["notes"]["encoder_start"]
    assert start.startswith(f"student of {shared}")


def test_names_of_included_students(shared, monkeypatch):
    monkeypatch.setattr(config, "WEIGHTS_FOLDER", shared.parent)
    assert config.student_path("box") == shared
    for text in ("another", "../box", "box.safetensors", "checkpoints/best.pt"):
        assert str(config.student_path(text)) == text


def test_weights_beyond_half_precision_are_refused(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    content["ema"]["neck.lateral.0.0.weight"].view(-1)[0] = 1e5
    torch.save(content, tmp_path / "large.pt")
    out = tmp_path / "large.safetensors"
    out.write_text("an earlier student")
    with pytest.raises(UserError, match="neck.lateral.0.0.weight has weights beyond half precision"):
        call(share_weights.main, "--checkpoint", tmp_path / "large.pt", "--out", out)
    assert out.read_text() == "an earlier student"


@pytest.mark.parametrize(
    "damage",
    ["cut", "empty", "garbage", "another project", "no metadata", "not JSON", "a list", "no notes", "missing tensor"],
)
def test_damaged_files_are_one_line(checkpoint, shared, tmp_path, damage):
    path = tmp_path / "student.safetensors"
    content = shared.read_bytes()
    tensors = {"weight": torch.ones(2)}
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 1000)
    elif damage == "no metadata":
        save_file(tensors, path)
    elif damage == "missing tensor":
        broken = load_checkpoint(checkpoint)
        broken["ema"].pop("neck.lateral.0.0.weight")
        write_shared_weights(path, broken)
    else:
        description = {"not JSON": "{", "a list": "[]", "no notes": "{}", "another project": "{}"}[damage]
        name = "else" if damage == "another project" else FORMAT
        save_file(tensors, path, {"format": name, "description": description})
    with pytest.raises(UserError) as error:
        load_student(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_wrong_suffix(checkpoint, tmp_path, capsys):
    assert exit_code(share_weights.main, "--checkpoint", checkpoint, "--out", tmp_path / "student.pt") == 2
    assert "the suffix must be .safetensors" in capsys.readouterr().err
