"""Fingerprints of data: unchanged by copying and touching, changed by other bytes or splits."""

import os
import shutil

from cli import UserError

import numpy as np
import pytest
from small_run import call, copy_data, train_flags

import train
from config import NYU_INTRINSICS
from dataset.identity import content_sample, fingerprint
from dataset.manifest import Row, read_manifest


def test_fingerprint_depends_on_content_not_times(tmp_path):
    for name in ("1.png", "1.npy"):
        (tmp_path / name).write_bytes(b"data")
    row = Row("1", tmp_path / "1.png", tmp_path / "1.npy", split="train", intrinsics=NYU_INTRINSICS)
    first = fingerprint([row])
    os.utime(tmp_path / "1.npy", ns=(1, 1))
    assert fingerprint([row]) == first
    for name, value in (("split", "test"), ("intrinsics", NYU_INTRINSICS.with_focal_scale(2)), ("da3_scale", 1.1)):
        before = getattr(row, name)
        setattr(row, name, value)
        assert fingerprint([row]) != first, name
        setattr(row, name, before)
    (tmp_path / "1.npy").write_bytes(b"date")
    assert fingerprint([row]) != first, "same length"
    (tmp_path / "1.npy").unlink()
    with pytest.raises(UserError, match="frame 1: there is no file"):
        fingerprint([row])


def test_fingerprint_detects_one_changed_file_among_many(tmp_path):
    """Otherwise an outdated packed cache of a large dataset would be reused."""
    rows = []
    for number in range(1500):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(b"label %d" % number)
        rows.append(Row(str(number), path, path))
    first = fingerprint(rows)
    (tmp_path / "1.npy").write_bytes(b"other 1")
    assert fingerprint(rows) != first


def test_content_sample_covers_ends_middle_and_size(tmp_path):
    content = np.zeros(100_000, np.uint8)
    samples = set()
    for place in (None, 0, 50_000, 99_999):
        changed = content.copy()
        if place is not None:
            changed[place] = 1
        changed.tofile(tmp_path / "file")
        samples.add(content_sample(tmp_path / "file"))
    content[:-1].tofile(tmp_path / "file")
    assert len(samples | {content_sample(tmp_path / "file")}) == 5
    with pytest.raises(UserError, match="can't read"):
        content_sample(tmp_path / "gone")


def test_copied_data_resumes_without_repacking(manifest, trained, tmp_path, monkeypatch):
    copied = copy_data(manifest, tmp_path / "copy")
    shutil.copytree(manifest.parent / ".cache", copied.parent / ".cache")
    for path in copied.parent.rglob("*.*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert fingerprint(read_manifest(copied)) == fingerprint(read_manifest(manifest))
    monkeypatch.setattr("dataset.cache.read_frame", None)  # packing would call it
    last = trained / "checkpoints/last.pt"
    assert call(train.main, *train_flags(copied, tmp_path), "--resume", last) == 0
