"""The loop shared by both teachers: resuming, shards, failed frames, signals, provenance, cameras."""

import argparse
import json
import os
import signal
import threading

from cli import UserError, parse_shard

import numpy as np
import pytest
from box_room import CAMERA

from config import NYU_SOURCE
from teacher_infer import stage

FRAMES = {f"a/{n}": None for n in range(5)}


def constant(stem):
    return np.full((2, 2), int(stem[-1]), np.float32)


class Fake:
    """A teacher whose model is a function of the stem."""

    provenance = {"backend": "fake"}

    def __init__(self, model=constant):
        self.model, self.batches = model, []

    def prepare(self, stem, path):
        return stem

    def infer(self, prepared):
        self.batches.append(prepared)
        return [self.model(stem) for stem in prepared]

    def finish(self, prepared, output):
        return output


def test_each_frame_runs_once_and_a_rerun_only_does_missing_frames(tmp_path):
    assert stage.run_stage(FRAMES, tmp_path, Fake()) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"{n}.npy" for n in range(5)]
    (tmp_path / "a" / "3.npy").unlink()
    again = Fake()
    assert stage.run_stage(FRAMES, tmp_path, again) == 0
    assert again.batches == [["a/3"]]


def test_batches_are_full_and_outputs_match_their_frames(tmp_path):
    teacher = Fake()
    assert stage.run_stage(FRAMES, tmp_path, teacher, batch_size=2, workers=3) == 0
    assert teacher.batches == [["a/0", "a/1"], ["a/2", "a/3"], ["a/4"]]
    assert all(np.load(tmp_path / f"{stem}.npy").tolist() == constant(stem).tolist() for stem in FRAMES)


def test_shards_cover_every_frame_once(tmp_path):
    done = []
    for index in range(3):
        teacher = Fake()
        stage.run_stage(FRAMES, tmp_path / str(index), teacher, shard=(index, 3))  # own folder: no outputs of others
        done += sum(teacher.batches, [])
    assert sorted(done) == sorted(FRAMES)


@pytest.mark.parametrize("text", ["3/3", "-1/2", "1", "a/b", "1/0"])
def test_invalid_shard_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_shard(text)


def fail_on_one_frame(stem):
    if stem == "a/2":
        raise UserError("not\nreadable")
    return constant(stem)


class Unreadable(Fake):
    def prepare(self, stem, path):
        fail_on_one_frame(stem)
        return stem


class FailsInFinish(Fake):
    def finish(self, prepared, output):
        return fail_on_one_frame(prepared)


@pytest.mark.parametrize(
    "teacher", [Unreadable(), Fake(fail_on_one_frame), FailsInFinish()], ids=["prepare", "infer", "finish"]
)
def test_only_the_failed_frame_is_listed_and_it_is_retried(tmp_path, teacher):
    assert stage.run_stage(FRAMES, tmp_path, teacher, batch_size=4) == 0
    listed = [json.loads(line) for line in (tmp_path / "failed_frames.jsonl").read_text().splitlines()]
    assert listed == [{"stem": "a/2", "reason": "not readable"}]
    assert sorted(p.stem for p in (tmp_path / "a").iterdir()) == ["0", "1", "3", "4"]
    assert stage.run_stage(FRAMES, tmp_path, Fake()) == 0
    assert (tmp_path / "a" / "2.npy").exists() and not (tmp_path / "failed_frames.jsonl").exists()


def test_an_error_is_raised_if_all_frames_fail(tmp_path):
    def broken(stem):
        raise OSError("gone")

    with pytest.raises(UserError, match="all 5 frames failed.*gone"):
        stage.run_stage(FRAMES, tmp_path, Fake(broken))


def test_out_of_gpu_memory_ends_the_stage_and_keeps_finished_frames(tmp_path):
    """A batch of one is padded to the full size, so retrying frame by frame would fail every frame in turn."""
    torch = pytest.importorskip("torch")
    tried = []

    def out_of_memory(stem):
        tried.append(stem)
        if stem == "a/2":
            with stage.gpu_memory():
                raise torch.OutOfMemoryError("CUDA out of memory")
        return constant(stem)

    with pytest.raises(UserError, match="--batch-size"):
        stage.run_stage(FRAMES, tmp_path, Fake(out_of_memory))
    assert tried == ["a/0", "a/1", "a/2"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["0.npy", "1.npy"]


def test_many_consecutive_failures_with_the_same_reason_end_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MAX_CONSECUTIVE_FAILURES", 2)

    def broken(stem):
        if stem != "a/0":
            raise UserError(f"{stem}: the driver is gone")
        return constant(stem)

    with pytest.raises(UserError, match="2 frames in a row failed for the same reason, last a/2: a/2: the driver is"):
        stage.run_stage(FRAMES, tmp_path, Fake(broken))
    listed = [json.loads(line)["stem"] for line in (tmp_path / "failed_frames.jsonl").read_text().splitlines()]
    assert listed == ["a/1", "a/2"] and (tmp_path / "a/0.npy").is_file()

    class WrongSize(Fake):
        def finish(self, prepared, output):
            raise UserError(f"{prepared} is 1x4")

    with pytest.raises(UserError, match="2 frames in a row failed for the same reason, last a/1"):
        stage.run_stage(FRAMES, tmp_path / "finish", WrongSize())

    def different_reasons(stem):
        raise UserError(f"{stem}: {hash(stem)}")

    with pytest.raises(UserError, match="all 5 frames failed"):
        stage.run_stage(FRAMES, tmp_path / "different", Fake(different_reasons))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_loop_after_the_current_batch(tmp_path, number):
    def interrupted(stem):
        if stem == "a/1":
            os.kill(os.getpid(), number)
        return constant(stem)

    assert stage.run_stage(FRAMES, tmp_path, Fake(interrupted)) == 75
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["0.npy", "1.npy"]
    assert stage.run_stage(FRAMES, tmp_path, Fake()) == 0


def test_number_of_frames_in_memory_is_bounded(tmp_path):
    held, counts, lock = set(), [], threading.Lock()

    class Counting(Fake):
        def prepare(self, stem, path):
            with lock:
                held.add(stem)
                counts.append(len(held))
            return stem

        def finish(self, prepared, output):
            with lock:
                held.discard(prepared)
            return output

    frames = {f"{n:03d}": None for n in range(100)}
    stage.run_stage(frames, tmp_path, Counting(lambda stem: np.zeros(1)), batch_size=2, workers=4)
    assert max(counts) <= 2 * (2 * stage.BATCHES_AHEAD + 2)


def test_half_written_files_are_removed_except_those_of_other_shards(tmp_path):
    (tmp_path / "a").mkdir()
    own, other = tmp_path / "a" / ".0.x1y2z3_0.part.npy", tmp_path / "a" / ".1.x1y2z3_0.part.npy"
    own.write_bytes(b"half"), other.write_bytes(b"half")
    assert stage.run_stage(FRAMES, tmp_path, Fake(), shard=(0, 2)) == 0
    assert not own.exists() and other.exists()
    assert sorted(p.name for p in (tmp_path / "a").glob("[0-9]*")) == ["0.npy", "2.npy", "4.npy"]


def test_outputs_made_with_other_settings_are_refused(tmp_path):
    stage.claim_output(tmp_path, {"model": "a", "versions": {"torch": "1"}}, overwrite=False)
    stage.claim_output(tmp_path, {"model": "a", "versions": {"torch": "2"}}, overwrite=False)
    with pytest.raises(UserError, match="model"):
        stage.claim_output(tmp_path, {"model": "b", "versions": {}}, overwrite=False)
    stage.claim_output(tmp_path, {"model": "b", "versions": {}}, overwrite=True)
    assert json.loads((tmp_path / "provenance.json").read_text())["model"] == "b"


@pytest.mark.parametrize("name", ["1.npy", "a/1.png"])
def test_maps_of_unknown_origin_are_kept_apart(tmp_path, name):
    """A teacher's .npy beside a sensor's .png would take its place."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="contains maps but no provenance.json"):
        stage.claim_output(tmp_path, {"model": "a"}, overwrite=False)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [name]


def test_outputs_without_provenance_are_refused(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros(1))
    with pytest.raises(UserError, match="provenance"):
        stage.claim_output(tmp_path, {"model": "a"}, overwrite=False)


def rgb_folder(root, camera=None):
    (root / "rgb").mkdir(parents=True)
    if camera:
        (root / "camera.json").write_text(json.dumps(camera))
    return root / "rgb", np.zeros((240, 320, 3), np.uint8)


def test_intrinsics_are_scaled_to_the_image_size(tmp_path):
    folder, rgb = rgb_folder(tmp_path, CAMERA.__dict__)
    assert stage.FrameCameras(folder, None, None).get("a", rgb).fx == pytest.approx(260)


def test_flags_override_camera_json_with_one_warning(tmp_path, capsys):
    folder, rgb = rgb_folder(tmp_path, {"a": CAMERA.__dict__, "b": CAMERA.__dict__})
    cameras = stage.FrameCameras(folder, 300.0, None)
    assert (cameras.get("a", rgb).fx, cameras.get("b", rgb).fy) == (300, 300)
    assert capsys.readouterr().err.count("warning") == 1


def test_flags_that_agree_do_not_warn(tmp_path, capsys):
    folder, rgb = rgb_folder(tmp_path, CAMERA.__dict__)
    stage.FrameCameras(folder, 260.0, 260.0).get("a", rgb)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("camera", [None, CAMERA.__dict__])
@pytest.mark.parametrize("focal", [0.825, 0.00193, 3000.0])
def test_implausible_focal_lengths_are_refused(tmp_path, camera, focal):
    folder, rgb = rgb_folder(tmp_path, camera)
    with pytest.raises(UserError, match="--fx/--fy: fx .* field of view"):
        stage.FrameCameras(folder, focal, focal).get("a", rgb)


def test_only_source_json_selects_the_intrinsics_of_nyu(tmp_path, capsys):
    """A path with "nyu" in it may belong to the lab, whose robot has another camera."""
    folder, _ = rgb_folder(tmp_path / "frames")
    (folder.parent / "source.json").write_text(json.dumps({"what": NYU_SOURCE}))
    camera = stage.FrameCameras(folder, None, None).get("a", np.zeros((480, 640, 3), np.uint8))
    assert camera.fx == pytest.approx(518.8579) and "NYU" in capsys.readouterr().out
    folder, _ = rgb_folder(tmp_path / "nyu-robotics-lab/nyu_teacher_data")
    for source in (None, {"what": "frames of a robot", "kind": "nyu"}, ["nyu"]):
        if source is not None:
            (folder.parent / "source.json").write_text(json.dumps(source))
        with pytest.raises(UserError, match="--fx"):
            stage.FrameCameras(folder, None, None)
