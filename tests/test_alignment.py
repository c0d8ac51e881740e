"""Aligning the teacher's depth to the sensor: scale factor, seam, manifest and packed cache."""

import dataclasses
import json

from cli import UserError

import numpy as np
import pytest
from box_room import render, write_folder

from dataset.alignment import seam_step, sensor_scale
from dataset.manifest import read_manifest
from teacher_infer import build_manifest

TRUTH, SENSOR, _ = render(pitch=10)
CONFIDENCE = (SENSOR > 0).astype(np.float32)


def test_scale_is_a_robust_median():
    teacher = TRUTH / np.float32(1.2)
    assert sensor_scale(SENSOR, CONFIDENCE, teacher, 0.5) == pytest.approx(1.2)
    sensor, confidence = SENSOR.copy(), CONFIDENCE.copy()
    sensor[:, :200] = 9.0  # a third is wrong
    assert sensor_scale(sensor, confidence, teacher, 0.5) == pytest.approx(1.2, rel=0.06)
    confidence[:, :200] = 0.4  # with low confidence
    assert sensor_scale(sensor, confidence, teacher, 0.5) == pytest.approx(1.2)


def test_scale_is_none_without_common_pixels():
    assert sensor_scale(SENSOR, np.zeros_like(SENSOR), TRUTH, 0.5) is None
    assert sensor_scale(SENSOR, CONFIDENCE, np.zeros_like(TRUTH), 0.5) is None


def test_seam_step_is_measured_between_sensor_and_teacher():
    assert seam_step(SENSOR, CONFIDENCE, TRUTH, 0.5) < 0.01
    assert seam_step(SENSOR, CONFIDENCE, TRUTH * np.float32(1.2), 0.5) == pytest.approx(0.2, abs=0.01)
    assert seam_step(TRUTH, np.ones_like(TRUTH), TRUTH, 0.5) is None


@pytest.fixture
def folder(tmp_path):
    """A data folder whose teacher is too near by a factor of 1.25 and whose sensor has no depth in the left half."""
    write_folder(tmp_path)
    for path in (tmp_path / "depth").rglob("*.npy"):
        depth = np.load(path)
        teacher = tmp_path / "da3_depth" / path.relative_to(tmp_path / "depth")
        teacher.parent.mkdir(parents=True, exist_ok=True)
        np.save(teacher, depth / np.float32(1.25))
        depth[:, :80] = 0
        np.save(path, depth)
    return tmp_path


def build(folder, monkeypatch, *flags):
    arguments = ["--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth", "--da3-dir", folder / "da3_depth"]
    arguments += ["--output", folder / "manifest.jsonl", "--allow-missing-teachers", *flags]
    monkeypatch.setattr("sys.argv", ["build_manifest.py", *map(str, arguments)])
    build_manifest.main()
    return read_manifest(folder / "manifest.jsonl")


def test_align_to_sensor_stores_the_factor_in_the_manifest(folder, monkeypatch, capsys):
    assert all(row.da3_scale is None for row in build(folder, monkeypatch))
    rows = build(folder, monkeypatch, "--align-to-sensor")
    assert [row.da3_scale for row in rows] == pytest.approx([1.25] * 4)
    assert "4 of 4 frames: factor 1.250" in capsys.readouterr().out


def test_packed_teacher_depth_has_the_sensor_scale(folder, monkeypatch):
    pytest.importorskip("torch")
    from dataset.cache import PackedCache
    from trainer.feed import PackedFrames

    rows = build(folder, monkeypatch, "--align-to-sensor")
    aligned = PackedFrames(PackedCache(rows, folder / ".cache", (160, 120), 100.0), workers=1)
    unscaled = [dataclasses.replace(row, da3_scale=None) for row in rows]
    raw = PackedFrames(PackedCache(unscaled, folder / ".cache", (160, 120), 100.0), workers=1)
    assert aligned.folder != raw.folder
    teacher, before = (np.asarray(f.arrays["da3_depth"], np.float64) for f in (aligned, raw))
    assert teacher[before > 0] / before[before > 0] == pytest.approx(1.25, rel=2e-3)
    sensor = aligned.arrays["depth"]
    assert np.abs(teacher - sensor)[sensor > 0].max() <= 1  # millimetre


@pytest.mark.parametrize("value", [0, -1, "2", True, [1], 1e9])
def test_invalid_scale_is_rejected(folder, monkeypatch, value):
    build(folder, monkeypatch, "--align-to-sensor")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[0]["da3_scale"] = value
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="da3_scale"):
        read_manifest(folder / "manifest.jsonl")
