"""Data is told by its content: a copy or a touch changes nothing, another byte or split does."""

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


def test_fingerprint_changes_with_the_data_and_not_with_its_times(tmp_path):
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
    assert fingerprint([row]) != first, "as long as before"
    (tmp_path / "1.npy").unlink()
    with pytest.raises(UserError, match="frame 1: there is no file"):
        fingerprint([row])


def test_one_label_among_many_frames_is_seen(tmp_path):
    """Else the packed cache of a large data set would go on with the old one."""
    rows = []
    for number in range(1500):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(b"label %d" % number)
        rows.append(Row(str(number), path, path))
    first = fingerprint(rows)
    (tmp_path / "1.npy").write_bytes(b"other 1")
    assert fingerprint(rows) != first


def test_samples_see_both_ends_the_middle_and_the_size(tmp_path):
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


def test_a_copy_of_the_data_resumes_and_is_not_packed_again(manifest, trained, tmp_path, monkeypatch):
    copied = copy_data(manifest, tmp_path / "copy")
    shutil.copytree(manifest.parent / ".cache", copied.parent / ".cache")
    for path in copied.parent.rglob("*.*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert fingerprint(read_manifest(copied)) == fingerprint(read_manifest(manifest))
    monkeypatch.setattr("dataset.cache.read_frame", None)  # what packs would call
    last = trained / "checkpoints/last.pt"
    assert call(train.main, *train_flags(copied, tmp_path), "--resume", last) == 0
