"""The packed cache: content, resuming, concurrent builders, full and read-only disks."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cli import EXIT_STOPPED, EXIT_USAGE, Stopped, UserError

import numpy as np
import pytest
import torch
from kill_packing import disk_use
from small_disk import small_disk
from small_run import call, copy_data, exit_code, train_flags

import dataset.cache
import pack
import train
from config import Recipe, Runtime
from dataset.cache import PackedCache
from dataset.files import read_json, read_npy
from dataset.manifest import Row, read_manifest
from trainer.feed import PackedFrames
from trainer.start import open_caches

RECIPE = Recipe()
CPU = torch.device("cpu")
SOURCE = {"manifest": "../manifest.jsonl", "split": "train"}


def packed(rows: list[Row], folder: Path, source: dict | None = None, workers: int = 2) -> PackedFrames:
    size = (RECIPE.width, RECIPE.height)
    return PackedFrames(PackedCache(rows, folder, size, RECIPE.reference_focal, source), workers)


def contents(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def raise_depth(row: Row) -> None:
    np.save(row.depth, read_npy(row.depth) + 1)


def signal_at(monkeypatch, frame: int, action: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)):
    """Send a signal when packing reads frame number `frame`; returns the list of stems read."""
    read, function = [], dataset.cache.read_frame

    def watched(row: Row):
        read.append(row.stem)
        if len(read) == frame + 1:
            action()
        return function(row)

    monkeypatch.setattr(dataset.cache, "read_frame", watched)
    return read


def test_cache_is_reused_until_a_file_changes(manifest, tmp_path, monkeypatch):
    manifest = copy_data(manifest, tmp_path / "data")
    first = packed(read_manifest(manifest), tmp_path / "cache")
    assert stat.S_IMODE(first.folder.stat().st_mode) & 0o055 == 0o055, "a group shares the cache"
    with monkeypatch.context() as patch:
        patch.setattr(PackedCache, "_build", lambda self, workers: pytest.fail("the cache was not reused"))
        assert packed(read_manifest(manifest), tmp_path / "cache").folder == first.folder
    raise_depth(read_manifest(manifest)[0])
    changed = packed(read_manifest(manifest), tmp_path / "cache")
    assert changed.folder != first.folder
    assert (changed.batch([0], CPU).depth - first.batch([0], CPU).depth).min() == pytest.approx(1, abs=2e-3)


def test_cache_of_an_older_revision_is_reused(manifest, tmp_path, monkeypatch):
    """It has only the arrays and the stems."""
    rows = read_manifest(manifest)
    first = packed(rows, tmp_path)
    for name in ("rows.json", "packed.json", "source.json"):
        (first.folder / name).unlink(missing_ok=True)
    monkeypatch.setattr(PackedCache, "_build", lambda self, workers: pytest.fail("the cache was not found"))
    assert packed(rows, tmp_path, SOURCE).folder == first.folder


def test_ten_random_kills_change_no_byte_and_leave_one_cache(manifest, tmp_path):
    many = many_rows(copy_data(manifest, tmp_path / "data"), copies=10)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    open_caches(many, RECIPE, Runtime(cache_dir=killed), None)
    raise_depth(read_manifest(many)[0])  # the existing cache is outdated now
    open_caches(many, RECIPE, Runtime(cache_dir=undisturbed), None)
    command = [sys.executable, Path(__file__).with_name("kill_packing.py"), killed, 10, "--manifest", many]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "kill 10" in done.stdout, "packing finished too early: use more frames or shorter waits"
    assert {"SIGKILL", "SIGTERM"} <= set(re.findall(r"SIG\w+", done.stdout))
    numbers = [int(number) for number in re.findall(r"^kill .* packed \['(\d+)'", done.stdout, flags=re.MULTILINE)]
    assert numbers == sorted(numbers) and len(set(numbers)) > 4, "it did not resume"
    assert contents(killed) == contents(undisturbed)
    most = int(re.search(r"most (\d+)", done.stdout)[1])
    assert most <= 1.02 * disk_use(undisturbed), "one cache per split"


def many_rows(manifest: Path, copies: int) -> Path:
    """Repeat each frame of a manifest under other stems."""
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [json.dumps(entry | {"stem": f"{copy}/{entry['stem']}"}) for copy in range(copies) for entry in entries]
    manifest.write_text("\n".join(lines))
    return manifest


@pytest.mark.parametrize("script", [pack.main, train.main])
def test_packing_resumes_after_a_signal(manifest, tmp_path, monkeypatch, capfd, script):
    many = many_rows(copy_data(manifest, tmp_path / "data"), copies=3)
    flags = [*train_flags(many, tmp_path / "out"), "--num-workers", 1, "--cache-dir", tmp_path / "cache"]
    with monkeypatch.context() as patch:
        first = signal_at(patch, 6)
        assert exit_code(script, *flags) == EXIT_STOPPED
    output, errors = capfd.readouterr()
    assert "frames packed; run the same command to resume" in output and "stopped by SIGTERM" in errors
    (building,) = (tmp_path / "cache").glob(".building-*")
    done = read_json(building / "packed.json")
    assert 0 < done <= len(first) < 12
    second = signal_at(monkeypatch, 999)
    assert exit_code(script, *flags) == 0
    stems = [row.stem for row in read_manifest(many) if row.split == "train"]
    assert second[: 12 - done] == stems[done:], "only missing frames are read"
    assert not list((tmp_path / "cache").glob(".*"))
    monkeypatch.undo()
    open_caches(many, RECIPE, Runtime(cache_dir=tmp_path / "whole"), None)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_signal_after_the_last_frame_completes_the_cache(manifest, tmp_path, monkeypatch):
    rows = read_manifest(manifest)[:3]
    record = PackedCache._save_progress

    def record_then_signal(cache, files, done):
        record(cache, files, done)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PackedCache, "_save_progress", record_then_signal)
    with pytest.raises(Stopped, match="SIGTERM"):
        packed(rows, tmp_path)
    (complete,) = caches(tmp_path)
    assert packed(rows, tmp_path).folder.name == complete


def test_train_uses_the_cache_of_pack(manifest, tmp_path, monkeypatch):
    manifest = copy_data(manifest, tmp_path / "data")
    flags = [*train_flags(manifest, tmp_path / "out"), "--epochs", 1, "--data-limit", 2]
    assert call(pack.main, *flags) == 0
    monkeypatch.setattr(PackedCache, "_build", lambda self, workers: pytest.fail("the cache was not found"))
    assert call(train.main, *flags) == 0
    assert len(caches(tmp_path / "data/.cache")) == 2, "one each for train and val"


def test_outdated_cache_is_replaced(manifest, tmp_path):
    manifest = copy_data(manifest, tmp_path / "data")

    def splits(limit: int | None = None) -> set[str]:
        return {frames.folder.name for frames in open_caches(manifest, RECIPE, Runtime(), limit)}

    first, fewer = splits(), splits(2)
    raise_depth(read_manifest(manifest)[0])  # a training frame
    second = splits()
    assert len(first & second) == 1, "the validation frames are unchanged"
    cache = tmp_path / "data/.cache"
    assert set(caches(cache)) == second | fewer, "a different number of frames has its own cache"
    shutil.move(tmp_path / "data", tmp_path / "moved")
    manifest = tmp_path / "moved/manifest.jsonl"
    raise_depth(read_manifest(manifest)[0])
    third = splits()
    assert set(caches(tmp_path / "moved/.cache")) == third | fewer
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[1:]))
    fourth = splits()
    assert set(caches(tmp_path / "moved/.cache")) == fourth | fewer, "a frame was removed from the manifest"


def test_manifests_share_a_cache_folder(manifest, tmp_path):
    one, other = (copy_data(manifest, tmp_path / name) for name in ("one", "other"))
    raise_depth(read_manifest(other)[0])
    runtime = Runtime(cache_dir=tmp_path / "cache")
    folders = {frames.folder.name for path in (one, other) for frames in open_caches(path, RECIPE, runtime, None)}
    assert set(caches(tmp_path / "cache")) == folders and len(folders) == 3, "both share the validation frames"


def test_packing_resumes_after_a_frame_is_fixed(manifest, tmp_path, monkeypatch):
    rows = read_manifest(copy_data(manifest, tmp_path / "data"))
    whole = rows[3].rgb.read_bytes()
    rows[3].rgb.write_bytes(b"no picture")
    with pytest.raises(UserError, match="not a readable image"):
        packed(rows, tmp_path / "cache", SOURCE, workers=1)
    assert [name[:10] for name in caches(tmp_path / "cache")] == [".building-"]
    rows[3].rgb.write_bytes(whole)
    read = signal_at(monkeypatch, 999)
    frames = packed(rows, tmp_path / "cache", SOURCE, workers=1)
    assert read == [row.stem for row in rows[3:]]
    assert caches(tmp_path / "cache") == [frames.folder.name]
    assert contents(frames.folder) == contents(packed(rows, tmp_path / "whole", SOURCE).folder)


def test_frames_changed_after_a_stop_are_packed_again(manifest, tmp_path, monkeypatch):
    rows = read_manifest(copy_data(manifest, tmp_path / "data"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        signal_at(patch, 5)
        packed(rows, tmp_path / "cache", SOURCE, workers=1)
    raise_depth(rows[1])
    frames = packed(rows, tmp_path / "cache", SOURCE)
    assert contents(frames.folder) == contents(packed(rows, tmp_path / "whole", SOURCE).folder)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_shape(path: Path) -> None:
    np.save(path, np.load(path)[:, :10])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "an array cut short": lambda folder: truncate(folder / "depth.npy"),
    "an empty array": lambda folder: os.truncate(folder / "rgb.npy", 0),
    "different shape": lambda folder: other_shape(folder / "confidence.npy"),
    "a missing array": lambda folder: (folder / "focal_factor.npy").unlink(),
    "no record": lambda folder: (folder / "packed.json").unlink(),
    "half a record": lambda folder: truncate(folder / "rows.json"),
    "different kind of record": lambda folder: (folder / "packed.json").write_text('{"done": 3}'),
    "nothing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_incomplete_cache_is_rebuilt(manifest, tmp_path, monkeypatch, case):
    rows = read_manifest(manifest)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        signal_at(patch, 4)
        packed(rows, tmp_path / "cache", workers=1)
    (building,) = (tmp_path / "cache").glob(".building-*")
    DAMAGE[case](building)
    frames = packed(rows, tmp_path / "cache")
    assert contents(frames.folder) == contents(packed(rows, tmp_path / "whole").folder)


@pytest.mark.parametrize("case", [case for case in DAMAGE if "record" not in case])
def test_damaged_complete_cache_is_rebuilt(manifest, tmp_path, case):
    rows = read_manifest(manifest)[:2]
    first = packed(rows, tmp_path)
    whole = contents(first.folder)
    DAMAGE[case](first.folder)
    assert packed(rows, tmp_path).folder == first.folder
    assert contents(first.folder) == whole and len(caches(tmp_path)) == 1


def test_concurrent_builders_share_one_cache(manifest, tmp_path, capfd):
    rows = read_manifest(manifest)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: packed(rows, tmp_path), range(2)))
    assert both[0].folder == both[1].folder
    assert caches(tmp_path) == [both[0].folder.name]
    assert torch.equal(both[0].batch([0], CPU).rgb, both[1].batch([0], CPU).rgb)


def test_second_builder_waits_and_uses_the_first_ones_cache(manifest, tmp_path, monkeypatch):
    """The first builder is blocked in its first frame until the second process prints that it waits."""
    manifest = copy_data(manifest, tmp_path / "data")
    lines: list[str] = []
    reading, waits = threading.Event(), threading.Event()

    def hold_up() -> None:
        reading.set()
        assert waits.wait(60)

    read = signal_at(monkeypatch, 0, hold_up)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(open_caches, manifest, RECIPE, Runtime(num_workers=1), None)
        assert reading.wait(60)
        command = [sys.executable, pack.__file__, "--manifest", str(manifest)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines.append(second.stdout.readline())
        waits.set()
        folders = [frames.folder for frames in first.result(60)]
        rest, _ = second.communicate(timeout=60)
    lines += rest.splitlines(keepends=True)
    assert len(read) == 5, "the first has packed all frames of both splits"
    assert second.returncode == 0
    assert re.fullmatch(r"waiting for another process, which packs frames of .* \(lock file .*\)\n", lines[0])
    assert [line.rpartition(" ")[2].strip() for line in lines[-2:]] == [str(folder) for folder in folders]
    assert sum("waiting" in line for line in lines) <= 2, "at most one line per cache"
    assert set(caches(tmp_path / "data/.cache")) == {folder.name for folder in folders}


def test_abandoned_caches_are_removed_and_active_ones_kept(manifest, tmp_path):
    for name, age in (("killed", 25), ("busy", 1)):
        file = tmp_path / f".building-{name}" / "frames" / "rgb.npy"
        file.parent.mkdir(parents=True)
        file.touch()
        for path in (file, file.parent, file.parent.parent):
            os.utime(path, (time.time() - age * 3600,) * 2)
    os.utime(tmp_path / ".building-busy", (0, 0))  # only the newest file counts
    (tmp_path / ".removed-half").mkdir()
    packed(read_manifest(manifest)[:1], tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [".building-busy"]


@pytest.mark.parametrize("script", [pack.main, train.main])
def test_unwritable_data_folder_needs_cache_dir(manifest, tmp_path, capfd, script):
    """A file blocks the cache's path, since root may write to any folder."""
    manifest = copy_data(manifest, tmp_path / "data")
    (tmp_path / "data/.cache").touch()
    flags = [*train_flags(manifest, tmp_path / "out"), "--epochs", 1]
    assert exit_code(script, *flags) == EXIT_USAGE
    error = capfd.readouterr().err
    assert "choose another folder for the packed frames with --cache-dir" in error and error.count("\n") == 1
    assert exit_code(script, *flags, "--cache-dir", tmp_path / "elsewhere") == 0
    assert len(caches(tmp_path / "elsewhere")) == 2
    assert sorted(path.name for path in (tmp_path / "data").glob(".*")) == [".cache"]


def test_complete_cache_is_read_from_a_read_only_disk(manifest, tmp_path):
    rows = read_manifest(manifest)[:2]
    first = packed(rows, tmp_path / "cache")
    with small_disk(tmp_path / "disk", "16m", shutil.copytree, tmp_path / "cache", "cache", read_only=True) as disk:
        again = packed(rows, disk / "cache")
        assert torch.equal(again.batch([0], CPU).rgb, first.batch([0], CPU).rgb)
        with pytest.raises(UserError, match=r"Read-only file system\): choose another folder .* --cache-dir"):
            packed(read_manifest(manifest)[:1], disk / "cache")


def test_too_small_disk_is_one_line_and_leaves_nothing(manifest, tmp_path, capfd):
    manifest = copy_data(manifest, tmp_path / "data")
    with small_disk(tmp_path / "disk", "1m") as disk:
        code = exit_code(pack.main, "--manifest", manifest, "--cache-dir", disk / "cache")
        error = capfd.readouterr().err
        assert code == EXIT_USAGE and error.count("\n") == 1
        assert re.search(r"disk full: the packed frames need 0\.\d+ GB, 0\.001 GB are free", error), error
        assert "--cache-dir" in error and not list((disk / "cache").iterdir())


def test_disk_full_while_packing_is_one_line_and_keeps_the_progress(manifest, tmp_path, capfd, monkeypatch):
    """On a file system that can't preallocate space."""
    manifest = copy_data(manifest, tmp_path / "data")
    monkeypatch.delattr(os, "posix_fallocate")
    with small_disk(tmp_path / "disk", "8m") as disk:
        code = exit_code(pack.main, "--manifest", manifest, "--cache-dir", disk / "cache", "--num-workers", 1)
        error = capfd.readouterr().err
        assert code == EXIT_USAGE and error.count("\n") == 1
        assert re.search(r"can't write .*/\.building-\w+/.*: disk full$", error), error
        (building,) = (disk / "cache").glob(".building-*")
        assert building.is_dir()
