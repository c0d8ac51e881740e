"""Rendered rooms as a data folder: content, shards, interruptions, walks."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from cli import EXIT_STOPPED, EXIT_USAGE

import numpy as np
import pytest

from config import NYU_INTRINSICS, Recipe
from dataset.frames import read_frame
from dataset.label_remapper import remap
from dataset.manifest import read_manifest
from rooms import render_rooms
from rooms.data_folder import write_data_folder
from rooms.robot import build_robot_room, choose_robot_poses
from rooms.scenes import SceneOptions, render_scene
from rooms.walks import walk
from trainer.start import open_cache

CAMERA = NYU_INTRINSICS.resized(80, 60)
OPTIONS = SceneOptions(1000, 2, CAMERA, (0.8, 1.25), "mixed")
SCENES = 5


def render(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, render_rooms.__file__, "--width", "80", "--seed", "1000", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "rooms"
    assert write_data_folder(out, OPTIONS, SCENES, 1) == out / "manifest.jsonl"
    return out


def test_rows_are_what_the_renderer_gives(folder):
    rows = read_manifest(folder / "manifest.jsonl")
    frames = [frame for scene in range(SCENES) for frame in render_scene(OPTIONS, scene)]
    assert len(rows) == len(frames) == SCENES * OPTIONS.frames
    for row, frame in zip(rows, frames, strict=True):
        stored = read_frame(row)
        assert np.array_equal(stored.rgb, frame.rgb)
        assert np.array_equal(stored.labels, remap(frame.labels)) and np.array_equal(stored.sam2_seg, stored.labels)
        np.testing.assert_allclose(stored.depth, frame.depth, atol=0.00051)
        assert np.array_equal(stored.da3_depth, stored.depth)
        assert np.array_equal(stored.confidence, (frame.sensor_depth > 0).astype(np.float32))
        assert row.recording == frame.scene and row.intrinsics == frame.camera and row.time is None
        np.testing.assert_allclose(row.pose, frame.pose.matrix())
        assert row.da3_depth == row.depth and row.sam2_seg == row.labels, "no map is stored twice"
    assert {row.split for row in rows} == {"train", "val", "test"}
    by_room = {row.recording: row.split for row in rows}
    assert all(by_room[row.recording] == row.split for row in rows)


def test_packed_frames_store_no_map_twice(folder, tmp_path):
    rows = read_manifest(folder / "manifest.jsonl")
    recipe = Recipe()
    frames = open_cache(rows, folder / "manifest.jsonl", recipe, 1.25, 1, tmp_path)
    assert frames.size == (400, 300) and frames.reference_focal == recipe.reference_focal * 1.25
    stored = {file.stem for file in frames.folder.glob("*.npy")}
    assert stored == {"rgb", "depth", "confidence", "labels", "focal_factor"}
    assert np.array_equal(frames.arrays["da3_depth"], frames.arrays["depth"])
    assert np.array_equal(frames.arrays["sam2_seg"], frames.arrays["labels"])
    scaled = [replace(row, da3_scale=1.1) for row in rows]
    frames = open_cache(scaled, folder / "manifest.jsonl", recipe, 1, 1, tmp_path)
    np.testing.assert_allclose(frames.arrays["da3_depth"], frames.arrays["depth"] * 1.1, atol=1)


def test_shards_write_the_folder_of_a_single_run(folder, tmp_path):
    assert write_data_folder(tmp_path / "rooms", OPTIONS, SCENES, 2, (1, 2)) is None
    assert not (tmp_path / "rooms" / "manifest.jsonl").exists()
    assert write_data_folder(tmp_path / "rooms", OPTIONS, SCENES, 2, (0, 2)) is not None
    assert files_of(tmp_path / "rooms") == files_of(folder)


def test_a_stopped_run_resumes(folder, tmp_path):
    flags = ["--out", "rooms", "--scenes", str(SCENES), "--frames-per-scene", "2", "--view", "mixed", "--focal-scale",
             "0.8", "1.25"]  # fmt: skip
    command = [sys.executable, render_rooms.__file__, "--width", "80", "--seed", "1000", *flags, "--workers", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "rooms").glob("rows/*/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED and errors.count("\n") <= 1
    assert not (tmp_path / "rooms" / "manifest.jsonl").exists()
    (tmp_path / "rooms" / "rgb" / "000" / ".torn.png.part.png").write_bytes(b"half a file")
    assert render(tmp_path, *flags).returncode == 0
    assert files_of(tmp_path / "rooms") == files_of(folder)


def test_a_killed_worker_is_a_one_line_error(tmp_path):
    """The kernel kills a worker for its memory; the others must not wait for it for ever."""
    command = [sys.executable, render_rooms.__file__, "--width", "80", "--seed", "1000", "--out", "rooms", "--scenes",
               "500"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "rooms").glob("rows/*/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        subprocess.run(["kill", "-KILL", workers[0]], check=True)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_USAGE
    assert "a worker process was killed" in errors and errors.count("\n") == 1


def test_other_options_are_refused(folder, tmp_path):
    done = render(folder.parent, "--out", "rooms", "--scenes", str(SCENES), "--frames-per-scene", "3")
    assert done.returncode == EXIT_USAGE and "different settings" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--out rooms --shard 2/2", "--shard"),
        ("--out rooms --shard -1/2", "--shard"),
        ("--out rooms --shard half", "--shard"),
        ("--out rooms.mat --shard 1/2", "data folder"),
        ("--out rooms.mat --walk 5", "data folder"),
        ("--out rooms --preview a.png", "--preview"),
        ("--out rooms --camera missing.json", "missing.json"),
        ("--out rooms --walk 0", "--walk"),
    ],
)
def test_invalid_flags_are_a_one_line_error(tmp_path, flags, words):
    done = render(tmp_path, *flags.split())
    assert done.returncode == EXIT_USAGE and words in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_camera_file_sets_the_image(tmp_path):
    camera = {"fx": 747.84, "fy": 747.48, "cx": 643.36, "cy": 347.86, "width": 1280, "height": 720}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    flags = ["--camera", "camera.json", "--width", "160", "--scenes", "1", "--frames-per-scene", "1", "--workers", "1"]
    command = [sys.executable, render_rooms.__file__, "--out", "rooms", *flags]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (row,) = read_manifest(tmp_path / "rooms" / "manifest.jsonl")
    assert read_frame(row).rgb.shape == (90, 160, 3)
    assert row.intrinsics.fx == pytest.approx(747.84 / 8) and row.intrinsics.cy == pytest.approx(347.86 / 8 - 0.4375)


@pytest.fixture(scope="module")
def walks() -> list[list]:
    options = SceneOptions(1000, 12, CAMERA, view="robot", walk_rate=5)
    return [list(render_scene(options, scene)) for scene in range(6)]


def test_a_walk_moves_at_a_steady_rate(walks):
    for frames in walks:
        np.testing.assert_allclose([frame.time for frame in frames], np.arange(12) / 5)
        steps = np.linalg.norm(np.diff([frame.pose.position for frame in frames], axis=0), axis=1)
        assert steps.max() <= 0.9 / 5 + 1e-9, "metres between two frames at the highest speed"
        assert min(frame.depth.min() for frame in frames) > 0.05, "the camera stands in nothing"
    moved = [np.ptp([frame.pose.position for frame in frames], axis=0).max() for frames in walks]
    assert np.median(moved) > 0.3


def test_frames_of_a_walk_agree_by_their_poses(walks):
    """Points of one frame, seen from the next pose, have the next frame's depth there, but for what moves or hides."""
    for frames in walks:
        for first, second in zip(frames, frames[1:], strict=False):
            v, u = np.indices(first.depth.shape)
            rays = [(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones(u.shape)]
            points = np.stack(rays, -1) * first.depth[..., None]
            world = np.c_[points.reshape(-1, 3), np.ones(points.size // 3)] @ first.pose.matrix().T
            x, y, z, _ = (world @ np.linalg.inv(second.pose.matrix()).T).T
            inside = z > 0.05
            column = np.rint(x[inside] / z[inside] * CAMERA.fx + CAMERA.cx)
            row = np.rint(y[inside] / z[inside] * CAMERA.fy + CAMERA.cy)
            seen = (column >= 0) & (column < CAMERA.width) & (row >= 0) & (row < CAMERA.height)
            found = second.depth[row[seen].astype(int), column[seen].astype(int)]
            relative = np.abs(found / z[inside][seen] - 1)
            assert seen.sum() < 500 or np.median(relative) < 0.02


def test_standing_people_walk_and_nothing_else_moves():
    walked = 0
    for scene in range(8):
        rng = np.random.default_rng([1000, scene])
        _, room = build_robot_room(rng)
        world = room.world()
        pose = choose_robot_poses(world, room, CAMERA, 1, rng)[0]
        *_, (_, _, last) = walk(world, room, pose, 6, 2.0, rng)
        standing = np.isin(world.soup.objects, list(room.standing))
        assert {world.soup.classes[number] for number in room.standing} <= {"person"}
        before, after = world.soup.vertices, last.soup.vertices
        assert np.array_equal(before[~standing], after[~standing])
        np.testing.assert_allclose(before[standing][..., 2], after[standing][..., 2], atol=1e-9)
        for number in room.standing:
            mine = world.soup.objects == number
            distance = np.linalg.norm((after[mine] - before[mine]).reshape(-1, 3).mean(0))
            walked += distance > 0.3
            edges = (np.linalg.norm(soup[mine][:, 0] - soup[mine][:, 1], axis=1) for soup in (before, after))
            np.testing.assert_allclose(*edges, atol=1e-9)
    assert walked >= 2


def test_a_walk_keeps_its_exposure(walks):
    """Else a measure of flicker would measure the camera."""
    brightness = np.array([[frame.rgb.mean() for frame in frames] for frames in walks])
    assert np.median(np.abs(np.diff(brightness, axis=1))) < 6
