"""Packed frames and batches, and train.py on box rooms: outputs, exact resume, rejected input."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cli import EXIT_STOPPED, StopSignal, UserError

import numpy as np
import pytest
import torch
from small_run import MADE_BY, SIZE, STEMS, call, copy_data, train_flags

import train
from config import CLASS_NAMES, IGNORE, Intrinsics, Recipe, Runtime
from dataset.cache import PackedCache
from dataset.files import read_image, read_npy, write_npy, write_png
from dataset.frames import read_frame, to_network_map, to_network_rgb
from dataset.manifest import Row, read_manifest, select_rows
from models.student import bounded_depth
from trainer import start
from trainer.augment import N_SIZES, augment
from trainer.checkpoint import build_student
from trainer.compilation import compile_for_sizes
from trainer.feed import PackedFrames, depth_target, target_statistics, training_batches
from trainer.validation import best_score

RECIPE = Recipe()
NETWORK = (RECIPE.width, RECIPE.height)
RECIPE_CAMERA = Intrinsics(*[RECIPE.reference_focal / 2] * 2, 80, 60, *SIZE)  # has the reference focal length
CPU = torch.device("cpu")


def pack_rows(rows: list[Row], folder: Path) -> PackedFrames:
    return PackedFrames(PackedCache(rows, folder, NETWORK, RECIPE.reference_focal), workers=2)


def test_packed_frames_equal_resized_frames(manifest, tmp_path):
    rows = read_manifest(manifest)[:3]
    rows[1].da3_depth = rows[1].sam2_seg = rows[1].labels = None
    rows[2].seg_confidence = tmp_path / "seg_confidence.npy"
    seg_confidence = np.random.default_rng(0).integers(0, 256, read_image(rows[2].rgb).shape[:2], dtype=np.uint8)
    np.save(rows[2].seg_confidence, seg_confidence)
    batch = pack_rows(rows, tmp_path).batch([2, 1], CPU)
    frame = read_frame(rows[2])
    rgb = (batch.rgb[0] * 255).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(rgb, to_network_rgb(frame.rgb, *NETWORK))
    np.testing.assert_allclose(batch.depth[0, 0], to_network_map(frame.depth, *NETWORK), atol=0.5001e-3)
    np.testing.assert_allclose(batch.da3_depth[0, 0], to_network_map(frame.da3_depth, *NETWORK), atol=0.5001e-3)
    np.testing.assert_array_equal(batch.confidence[0, 0], to_network_map(frame.confidence, *NETWORK))
    np.testing.assert_array_equal(batch.labels[0], to_network_map(frame.labels, *NETWORK))
    np.testing.assert_array_equal(batch.sam2_seg[0], to_network_map(frame.sam2_seg, *NETWORK))
    expected = to_network_map(seg_confidence / np.float32(255), *NETWORK)
    np.testing.assert_allclose(batch.seg_confidence[0, 0], expected, atol=0.002)
    assert (batch.seg_confidence[1] == 1).all()
    assert not batch.da3_depth[1].any()
    assert (batch.sam2_seg[1] == IGNORE).all() and (batch.labels[1] == IGNORE).all()


def test_missing_arrays_are_not_packed_or_copied(manifest, tmp_path):
    rows = read_manifest(manifest)[:4]
    for row in rows:
        row.da3_depth = row.sam2_seg = row.confidence = None
    frames = pack_rows(rows, tmp_path)
    assert set(frames.arrays) == {"rgb", "depth", "labels"}
    batch = frames.batch([0, 1], CPU)
    assert not batch.da3_depth.any() and (batch.sam2_seg == IGNORE).all() and (batch.confidence == 1).all()
    assert batch.sam2_seg.dtype == batch.labels.dtype == torch.uint8, "uint8 takes an eighth of the memory of int64"
    assert batch.sam2_seg.shape == batch.labels.shape and batch.da3_depth.shape == batch.depth.shape
    size = (RECIPE.height // 2, RECIPE.width // 2)
    changed = augment(batch, (1.0, 1.2), size, seed=0, step=0)
    assert not changed.da3_depth.any() and (changed.sam2_seg == IGNORE).all() and (changed.confidence == 1).all()
    assert changed.sam2_seg.shape == changed.labels.shape and changed.da3_depth.shape == changed.depth.shape
    training_batch = next(training_batches(frames, 2, 0, 0, 0, CPU))
    assert (training_batch.labels == IGNORE).all() and not any(training_batch.labels.stride()[1:]), (
        "training does not load reference labels"
    )
    statistics = target_statistics(frames, RECIPE)
    assert statistics["majority_class"] is None and not any(statistics["class_shares"])


def test_focal_factor(manifest, tmp_path):
    """f_ref / f at the network's input size, whatever image size the intrinsics are given for."""
    rows = read_manifest(manifest)[:3]
    width, height = SIZE
    focal = 1.25 * RECIPE.reference_focal * width / NETWORK[0]
    rows[0].intrinsics = Intrinsics(focal, focal, 80, 60, width, height)
    # the same camera, with intrinsics for a larger image
    rows[1].intrinsics = Intrinsics(2 * focal, 2 * focal, 160, 120, 2 * width, 2 * height)
    rows[2].intrinsics = None
    factor = pack_rows(rows, tmp_path).batch([0, 1, 2], CPU).focal_factor
    assert factor.tolist() == pytest.approx([0.8, 0.8, 1.0])


def test_focal_factor_of_a_cropped_image(manifest, tmp_path):
    rows = read_manifest(copy_data(manifest, tmp_path / "data"))[:1]
    rgb, depth = read_image(rows[0].rgb), read_npy(rows[0].depth)
    write_png(rows[0].rgb, rgb[:90])  # 16:9: the network sees only the central 120x90 pixels
    for path in (rows[0].depth, rows[0].da3_depth, rows[0].confidence, rows[0].sam2_seg):
        np.save(path, read_npy(path)[:90])
    rows[0].labels = None
    rows[0].intrinsics = Intrinsics(100, 100, 80, 45, 160, 90)
    frames = pack_rows(rows, tmp_path / "cache")
    assert frames.focal_factor[0] == pytest.approx(RECIPE.reference_focal / (100 * NETWORK[0] / 120))
    np.testing.assert_allclose(frames.batch([0], CPU).depth[0, 0, 0, ::8], depth[0, 20:140:3], atol=1e-3)


def test_target_statistics(manifest, tmp_path):
    rows = read_manifest(manifest)[:4]
    frames = pack_rows(rows, tmp_path)
    batch = frames.batch(range(4), CPU)
    target = depth_target(batch, RECIPE) * batch.focal_factor.view(-1, 1, 1, 1)
    statistics = target_statistics(frames, RECIPE)
    assert statistics["mean_depth"] == pytest.approx(target[target > 0].mean().item(), rel=1e-5)
    counts = batch.sam2_seg[batch.sam2_seg != IGNORE].bincount(minlength=len(CLASS_NAMES))
    assert statistics["majority_class"] == counts.argmax().item()
    assert statistics["class_shares"] == pytest.approx((counts / counts.sum()).tolist())


def test_depth_outside_the_range_is_masked(manifest, tmp_path):
    """One pixel in twenty of the sensor's depth is 65 m, and there is no teacher to replace it."""
    row, outlier_row = read_manifest(manifest)[0], read_manifest(manifest)[0]
    depth = read_npy(row.depth)
    outliers = np.random.default_rng(0).random(depth.shape) < 0.05
    for name, values in (("clean", 0), ("outliers", 65)):
        write_npy(tmp_path / f"{name}.npy", np.where(outliers, values, depth).astype(np.float32))
    row.depth, outlier_row.depth = tmp_path / "clean.npy", tmp_path / "outliers.npy"
    row.da3_depth = outlier_row.da3_depth = row.confidence = outlier_row.confidence = None
    clean, with_outliers = (pack_rows([each], tmp_path) for each in (row, outlier_row))
    assert torch.equal(depth_target(clean.batch([0], CPU), RECIPE), depth_target(with_outliers.batch([0], CPU), RECIPE))
    assert target_statistics(clean, RECIPE) == target_statistics(with_outliers, RECIPE)


def test_full_class_balance_gives_equal_total_weights(manifest, tmp_path):
    rows = read_manifest(manifest)[:4]
    rows[0].sam2_seg = None
    frames = pack_rows(rows, tmp_path)
    trainer = train.Trainer(Recipe(class_balance=1), Runtime(), CPU, frames, {"set": frames}, "data")
    _, classes, weight = trainer.targets(frames.batch(range(4), CPU))
    totals = [weight[:, 0][classes == number].sum().item() for number in classes.unique() if number != IGNORE]
    assert len(totals) > 2
    assert totals == pytest.approx([totals[0]] * len(totals))
    assert not weight[:, 0][classes == IGNORE].any()


def test_batches_of_an_epoch(manifest, tmp_path):
    rows = read_manifest(manifest)
    frames = pack_rows(rows, tmp_path)

    def epoch(number: int, batch_size: int = 3, skip: int = 0) -> list[torch.Tensor]:
        return [batch.depth for batch in training_batches(frames, batch_size, 0, number, skip, CPU)]

    first = epoch(0)
    assert [len(depth) for depth in first] == [3, 3]
    assert torch.unique(torch.cat(first), dim=0).shape[0] == 6, "no frame twice"
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0), strict=True))
    assert torch.equal(epoch(0, skip=1)[0], first[1])
    assert not torch.equal(torch.cat(epoch(1)), torch.cat(first))
    assert [len(depth) for depth in epoch(0, batch_size=20)] == [len(rows)], "fewer frames than a batch"


def test_select_rows():
    rows = [Row(str(n), Path(), Path(), split="train" if n < 9 else "val") for n in range(10)]
    assert [row.stem for row in select_rows(rows, "train", 3)] == ["0", "4", "8"]
    assert [row.stem for row in select_rows(rows, "val", 3)] == ["9"]
    assert select_rows(rows, "test", None) == []
    with pytest.raises(UserError, match="train"):
        select_rows(rows[9:], "train", None)


def checkpoint(folder: Path, name: str = "last.pt") -> dict:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def test_what_a_run_writes(manifest, trained):
    content = checkpoint(trained)
    assert content["step"] == 4
    assert content["class_names"] == list(CLASS_NAMES)
    assert content["reference_focal"] == RECIPE.reference_focal
    metadata = content["notes"]
    assert metadata["encoder_start"] == "random"
    assert metadata["train_stems"] == list(STEMS[:4])
    assert metadata["teachers"] == [MADE_BY]
    assert metadata["camera"]["width"] == NETWORK[0]
    best = checkpoint(trained, "best.pt")
    assert best["step"] == 4, "the only epoch that ends with frozen batch norm"
    assert best["notes"]["best_score"] == metadata["best_score"] == metadata["history"][1]["score"]
    (run_dir,) = (trained / "runs").iterdir()
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.json", "history.csv", "curves.png", "validation.png"} < names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((run_dir / "config.json").read_text())["epochs"] == 2
    with open(run_dir / "history.csv", newline="") as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file)]
    assert losses == [entry["loss"] for entry in metadata["history"]]
    decays = [entry["ema_decay"] for entry in metadata["history"]]
    assert decays == [2 / 11, 4 / 13], "the decay at the end of each epoch"
    assert all(np.isfinite(losses))


def test_batch_norm_is_frozen_in_the_last_steps(manifest, tmp_path):
    frames = pack_rows(read_manifest(manifest)[:2], tmp_path)
    recipe = Recipe(epochs=2, batch_size=1, freeze_bn_fraction=0.25)
    trainer = train.Trainer(recipe, Runtime(), CPU, frames, {"set": frames}, "data")
    norm = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    updated, train_step = [], trainer.train_step

    def train_step_and_record(batch):
        before, weight = norm.running_mean.clone(), norm.weight.detach().clone()
        loss = train_step(batch)
        updated.append(not torch.equal(before, norm.running_mean))
        assert not torch.equal(weight, norm.weight), "its weights are still trained"
        return loss

    trainer.train_step = train_step_and_record
    with StopSignal() as stop:
        for epoch in range(2):
            trainer.train_epoch(epoch, stop)
    assert updated == [True, True, True, False]


def test_epochs_with_frozen_batch_norm_take_precedence():
    history = [{"step": step, "score": score} for step, score in ((10, 0.8), (20, 0.9), (30, 0.6), (40, math.nan))]
    assert best_score(history[:2], 20) == 0.9
    assert best_score(history[:3], 20) == best_score(history, 20) == 0.6
    assert best_score([], 20) == -math.inf


def test_moving_average_lags_behind_the_weights(trained):
    content = checkpoint(trained)
    name = "depth_decoder.head.weight"
    assert content["ema"].keys() == content["model"].keys()
    assert 0 < (content["ema"][name] - content["model"][name]).abs().max() < 0.1


def is_equal(first, second) -> bool:
    """Whether the contents of two checkpoints are equal to the last bit, except timings and run names."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        ignored = {"run", "images_per_second"}
        return first.keys() == second.keys() and all(
            is_equal(first[key], second[key]) for key in first if key not in ignored
        )
    if isinstance(first, list):
        return len(first) == len(second) and all(is_equal(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def test_stopped_and_resumed_run_equals_an_uninterrupted_run(manifest, trained, tmp_path, monkeypatch):
    """SIGUSR1 during the first epoch, SIGTERM after the very last step, before validation."""
    signal_after_step = {1: signal.SIGUSR1, 4: signal.SIGTERM}
    train_step = train.Trainer.train_step

    def train_step_then_signal(trainer, batch):
        loss = train_step(trainer, batch)
        if trainer.step in signal_after_step:
            os.kill(os.getpid(), signal_after_step[trainer.step])
        return loss

    monkeypatch.setattr(train.Trainer, "train_step", train_step_then_signal)
    flags = [*train_flags(manifest, tmp_path), "--resume", "auto"]
    for stopped_at in signal_after_step:
        assert call(train.main, *flags) == EXIT_STOPPED
        assert checkpoint(tmp_path)["step"] == stopped_at
    assert call(train.main, *flags) == 0
    resumed, uninterrupted = checkpoint(tmp_path), checkpoint(trained)
    for part in ("model", "ema", "optimizer", "schedule", "step", "notes"):
        assert is_equal(resumed[part], uninterrupted[part]), part
    assert is_equal(checkpoint(tmp_path, "best.pt")["ema"], checkpoint(trained, "best.pt")["ema"])
    assert len(list((tmp_path / "runs").iterdir())) == 1, "a resumed run keeps its folder"
    assert call(train.main, *flags) == 0, "resuming a finished run does nothing"


def test_run_killed_twenty_times_equals_an_uninterrupted_run(manifest, tmp_path):
    results = []
    for name, kills in (("uninterrupted", 0), ("killed", 20)):
        out = tmp_path / name
        command = [sys.executable, Path(__file__).with_name("kill_training.py"), out / "checkpoints", kills]
        command += [*train_flags(manifest, out), "--epochs", 40]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
        results.append((checkpoint(out), checkpoint(out, "best.pt")))
    print(done.stdout)
    steps = [int(number) for number in re.findall(r"^kill .*'last.pt': (\d+)", done.stdout, flags=re.MULTILINE)]
    assert "kill 20" in done.stdout, "the run ended before the last kill: use more epochs or shorter delays"
    assert len(set(steps)) > 3 and any(step % 2 for step in steps), "the kills came too early: use longer delays"
    for uninterrupted, killed in zip(*results, strict=True):
        for part in ("model", "ema", "optimizer", "schedule", "guard", "step", "notes"):
            assert is_equal(killed[part], uninterrupted[part]), part


def test_keep_freed_memory():
    """In a separate process, because the setting cannot be undone."""
    script = """
import resource
from trainer.memory import keep_freed_memory
keep_freed_memory()
for _ in range(2):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=train.__file__.rpartition("/")[0], capture_output=True)
    assert int(done.stdout) < 1000, "a new allocation would fault 16384 pages"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr", "0.001"], f"lr {RECIPE.lr}, not 0.001"),
        (["--epochs", "3"], "epochs 2, not 3"),
        (["--seed", "1"], "seed 0, not 1"),
        (["--data-limit", "2"], "different data"),
    ],
)
def test_resume_rejects_different_settings_or_data(manifest, trained, tmp_path, flags, words):
    last = trained / "checkpoints/last.pt"
    with pytest.raises(UserError, match=words):
        call(train.main, *train_flags(manifest, tmp_path), "--resume", last, *flags)


def test_resume_rejects_checkpoint_of_a_different_model(manifest, trained, tmp_path):
    content = checkpoint(trained)
    content["model"] = {name: weight[:1] for name, weight in content["model"].items() if weight.ndim}
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="a different model"):
        call(train.main, *train_flags(manifest, tmp_path), "--resume", tmp_path / "other.pt")


def test_resume_auto_needs_no_checkpoint_but_a_path_does(manifest, tmp_path):
    frames = pack_rows(read_manifest(manifest)[:2], tmp_path / "cache")
    trainer = train.Trainer(Recipe(epochs=1, batch_size=2), Runtime(), CPU, frames, {"set": frames}, "data")
    assert start.find_checkpoint("auto", tmp_path) is None and start.find_checkpoint(None, tmp_path) is None
    with pytest.raises(UserError, match=r"no checkpoint .*gone\.pt"):
        trainer.resume(tmp_path / "gone.pt", {})


def test_data_limit_without_validation_frames(manifest, tmp_path):
    """best.pt is then the last epoch; --data-limit picks frames spread over the split."""
    manifest = copy_data(manifest, tmp_path / "data")
    lines = [line for line in manifest.read_text().splitlines() if '"val"' not in line]
    manifest.write_text("\n".join(lines))
    flags = [*train_flags(manifest, tmp_path), "--data-limit", 2, "--epochs", 1]
    assert call(train.main, *flags) == 0
    best = checkpoint(tmp_path, "best.pt")
    assert best["step"] == 1
    assert best["notes"]["train_stems"] == [STEMS[0], STEMS[3]]
    assert is_equal(best["model"], checkpoint(tmp_path)["model"])


def test_frames_without_teachers_train_on_sensor_depth(manifest, tmp_path):
    """In a mixed batch, missing targets are masked and nothing becomes NaN."""
    rows = read_manifest(manifest)[:2]
    rows[0].da3_depth = rows[0].sam2_seg = None
    frames = pack_rows(rows, tmp_path / "cache")
    trainer = train.Trainer(Recipe(epochs=1, batch_size=2), Runtime(), CPU, frames, {"set": frames}, "data")
    trainer.model.train()
    assert np.isfinite(trainer.train_step(frames.batch([0, 1], CPU)).item())
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())


def test_decoder_without_targets_is_frozen(manifest, tmp_path):
    rows = read_manifest(manifest)[:2]
    for row in rows:
        row.sam2_seg = None
    frames = pack_rows(rows, tmp_path / "cache")
    trainer = train.Trainer(Recipe(epochs=1, batch_size=2), Runtime(), CPU, frames, {"set": frames}, "data")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.model.train()
    trainer.train_step(frames.batch([0, 1], CPU))
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("seg_decoder."), name


def test_step_with_non_finite_loss_is_skipped_and_counted(manifest, tmp_path, monkeypatch):
    frames = pack_rows(read_manifest(manifest)[:2], tmp_path)
    trainer = train.Trainer(Recipe(epochs=5, batch_size=2), Runtime(), CPU, frames, {"set": frames}, "data")
    trainer.model.train()
    batch = frames.batch([0, 1], CPU)
    trainer.train_step(batch)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in trainer.optimizer.state.values()]
    loss = train.distillation_loss
    with monkeypatch.context() as patch:
        patch.setattr(train, "distillation_loss", lambda *inputs: {"total": loss(*inputs)["total"] * math.nan})
        assert trainer.train_step(batch).item() == 0
    counters = {name for name in before if name.endswith("num_batches_tracked")}
    after_skip = {name: value for name, value in trainer.model.state_dict().items() if name not in counters}
    assert all(torch.equal(value, before[name]) for name, value in after_skip.items())
    after = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    assert trainer.guard.skipped == 1 and trainer.guard.last_skipped_step == 1 and not trainer.guard.diverged
    assert trainer.train_step(batch).item() > 0
    assert not torch.equal(trainer.model.state_dict()["depth_decoder.head.weight"], before["depth_decoder.head.weight"])
    with monkeypatch.context() as patch:
        patch.setattr(train, "distillation_loss", lambda *inputs: {"total": loss(*inputs)["total"] / 0})
        for consecutive in (1, 2, 3):
            assert not trainer.guard.diverged
            trainer.train_step(batch)
            assert trainer.guard.skipped == 1 + consecutive
    assert trainer.guard.diverged


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 20])
def test_learning_rate_schedule_for_any_number_of_steps(manifest, tmp_path, steps):
    frames = pack_rows(read_manifest(manifest)[:2], tmp_path)
    recipe = Recipe(epochs=steps, batch_size=2, lr=0.01)
    trainer = train.Trainer(recipe, Runtime(), CPU, frames, {"set": frames}, "data")
    rates = [trainer.optimizer.param_groups[0]["lr"]]
    for _ in range(trainer.total_steps):
        trainer.optimizer.step()
        trainer.lr_schedule.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    peak_step = int(np.argmax(rates))
    assert 0.0099 < rates[peak_step] <= 0.01
    assert 1 <= peak_step <= max(1, steps // 4)
    assert rates[0] < 0.001 and (steps == 1 or rates[-1] < 1e-6)


def test_missing_data_falls_back_to_rendered_rooms_with_a_notice(tmp_path, monkeypatch, capsys):
    rooms = tmp_path / "rooms/manifest.jsonl"
    monkeypatch.setattr(start, "prepare_rooms", lambda out: rooms)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "nothing"))

    (found,), notice = start.find_manifests(None, Runtime(), required=False)
    assert found.path == rooms
    assert "RENDERED ROOMS" in notice
    assert "RENDERED ROOMS" in capsys.readouterr().out
    for flags in (["--require-data"], ["--data-root", str(tmp_path)]):
        with pytest.raises(UserError, match="run the teachers first"):
            call(train.main, *flags)
    monkeypatch.setenv("USE_CORRIDOR_DATA", "1")
    with pytest.raises(UserError, match="corridor_teacher_data"):
        start.find_manifests(None, Runtime(), required=False)


def test_encoder_weights(manifest, tmp_path):
    frames = pack_rows(read_manifest(manifest)[:2], tmp_path / "cache")
    recipe, runtime = Recipe(epochs=1, batch_size=2), Runtime(log_dir=tmp_path / "runs")
    trainer = train.Trainer(recipe, runtime, CPU, frames, {"set": frames}, "data")
    weights = {name: torch.full_like(weight, 0.5) for name, weight in trainer.model.encoder.state_dict().items()}
    torch.save(weights, tmp_path / "encoder.pt")
    trainer.start(str(tmp_path / "encoder.pt"), {})
    assert trainer.metadata["encoder_start"] == str(tmp_path / "encoder.pt")
    assert all((weight == 0.5).all() for weight in trainer.model.encoder.parameters())
    assert all((weight == 0.5).all() for weight in trainer.ema.model.encoder.parameters())
    encoder_group, other_group = trainer.optimizer.param_groups
    for _ in range(trainer.total_steps):
        assert encoder_group["lr"] == pytest.approx(recipe.pretrained_encoder_lr_factor * other_group["lr"])
        trainer.optimizer.step()
        trainer.lr_schedule.step()
    torch.save(dict(list(weights.items())[5:]), tmp_path / "part.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("404 not found")
    torch.save([1.0], tmp_path / "list.pt")
    for name in ("part", "empty", "text", "list", "gone"):
        with pytest.raises(UserError, match=f"--encoder-weights .*{name}.pt"):
            trainer.start(str(tmp_path / f"{name}.pt"), {})


def test_init_loads_another_runs_student(manifest, trained, tmp_path):
    best = trained / "checkpoints/best.pt"
    frames = pack_rows(read_manifest(manifest)[:2], tmp_path / "cache")
    recipe, runtime = Recipe(epochs=1, batch_size=2), Runtime(log_dir=tmp_path / "runs")
    trainer = train.Trainer(recipe, runtime, CPU, frames, {"set": frames}, "data")
    trainer.start(best, {})
    for name, weight in checkpoint(trained, "best.pt")["ema"].items():
        assert torch.equal(trainer.model.state_dict()[name], weight)
        assert torch.equal(trainer.ema.model.state_dict()[name], weight)
    assert str(best) in trainer.metadata["encoder_start"] and trainer.step == 0
    flags = train_flags(manifest, tmp_path / "next")
    with pytest.raises(UserError, match="--encoder-weights"):
        call(train.main, *flags, "--init", best)
    choice = flags.index("--encoder-weights")
    assert call(train.main, *flags[:choice], *flags[choice + 2 :], "--epochs", 1, "--init", best) == 0
    for changed, words in (
        ({"neck_channels": 8}, "different encoder or width"),
        ({"reference_focal": 100.0}, "reference focal length"),
        ({"output_range": (0.05, 30.0)}, "output range, .* differs"),
    ):
        changed_trainer = train.Trainer(replace(recipe, **changed), runtime, CPU, frames, {"set": frames}, "data")
        with pytest.raises(UserError, match=words):
            changed_trainer.start(best, {})
    with pytest.raises(UserError, match="no checkpoint"):
        trainer.start(tmp_path / "gone.pt", {})


def test_compile_makes_a_graph_per_image_size():
    graphs = []

    def counting_backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    compile_for_sizes(model, N_SIZES, counting_backend)
    for frozen in (False, True):
        model[1].train(not frozen)
        for tenths in range(1, N_SIZES + 1):
            model(torch.rand(1, 3, 24 * tenths, 32 * tenths))
    assert len(graphs) == 2 * N_SIZES


def test_output_range_covers_all_focal_lengths_of_the_data(manifest, trained, tmp_path):
    """10 m through 0.3 times the focal length is 33 m at the reference focal length; the zoom extends it to 42 m."""
    rows = read_manifest(manifest)[:2]
    rows[0].intrinsics = RECIPE_CAMERA.with_focal_scale(0.3)
    rows[1].intrinsics = RECIPE_CAMERA.with_focal_scale(3.0)
    frames = pack_rows(rows, tmp_path)
    nearest, farthest = start.with_output_range(RECIPE, frames, None, None).output_range
    assert nearest == pytest.approx(0.1 / 3.0 / 1.4) and farthest == pytest.approx(10 / 0.3 / 0.8)
    student = build_student(replace(RECIPE, output_range=(nearest, farthest)))
    extremes = bounded_depth(torch.tensor([-30.0, 30.0]), student.output_range)
    assert extremes.tolist() == pytest.approx([nearest, farthest])
    default_frames = pack_rows(read_manifest(manifest)[2:4], tmp_path)
    assert start.with_output_range(RECIPE, default_frames, None, None) == RECIPE
    best = trained / "checkpoints/best.pt"
    assert start.with_output_range(replace(RECIPE, output_range=(1, 2)), frames, best, None) == RECIPE, (
        "a resumed run keeps its range"
    )
    assert start.with_output_range(RECIPE, default_frames, None, best) == RECIPE
    with pytest.raises(UserError, match="needs 0.02 to 41.7 m"):
        start.with_output_range(RECIPE, frames, None, best)


def test_training_cache_is_larger_with_the_same_focal_factor(manifest, tmp_path):
    """The training cache has more pixels, so that zoomed crops stay sharp; the metric scale is the same."""
    rows, scale = read_manifest(manifest)[:2], RECIPE.cache_scale
    large = start.open_cache(rows, tmp_path / "manifest.jsonl", RECIPE, scale, workers=1)
    small = start.open_cache(rows, tmp_path / "manifest.jsonl", RECIPE, 1, workers=1)
    assert large.arrays["rgb"].shape[1:3] == (RECIPE.height * scale, RECIPE.width * scale)
    assert small.arrays["rgb"].shape[1:3] == (RECIPE.height, RECIPE.width)
    np.testing.assert_allclose(large.focal_factor, small.focal_factor, rtol=1e-6)


def test_compile_without_a_compiler_fails_with_one_line(manifest, tmp_path):
    """The error comes before frames are packed, and replaces a traceback of ninety lines."""
    flags = [*train_flags(manifest, tmp_path), "--compile", "--device", "cpu"]
    environment = os.environ | {"CXX": str(tmp_path / "absent"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    command = [sys.executable, train.__file__, *map(str, flags)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--compile failed" in done.stderr and "install a C++ compiler" in done.stderr
    assert not (tmp_path / "checkpoints" / "last.pt").exists()
