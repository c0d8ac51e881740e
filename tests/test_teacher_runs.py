"""The teacher scripts as processes: kills and restarts, shards, invalid image files, a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from box_room import write_folder
from PIL import Image

from dataset import files
from dataset.files import read_image
from dataset.frames import find_frames
from teacher_infer import depth_backends, run_da3, stage

SCRIPTS = Path(__file__).resolve().parents[1] / "teacher_infer"
KILLS = 20
NOBODY = 65534


def command(rgb, out, *flags, script="run_da3.py"):
    return [sys.executable, str(SCRIPTS / script), "--input-dir", str(rgb), "--output-dir", str(out), *map(str, flags)]


def call(rgb, out, *flags, script="run_da3.py"):
    return subprocess.run(command(rgb, out, *flags, script=script), capture_output=True, text=True)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stage:
    """A teacher script with the reference backend on enough frames to kill it midway, and its expected outputs."""

    def __init__(self, script, root):
        count, size = {"run_da3.py": (150, (320, 240)), "run_sam2.py": (40, (160, 120))}[script]
        folder = write_folder(root / "data", [f"{n // 50}/{n:03d}" for n in range(count)], size)
        self.script, self.rgb = script, folder / "rgb"
        self.flags = ["--backend", "reference", "--batch-size", 2]
        self.flags += ["--depth-dir", folder / "depth"] if script == "run_sam2.py" else []
        start = time.monotonic()
        assert self.start(root / "whole").wait() == 0
        self.seconds = time.monotonic() - start
        self.expected = files_of(root / "whole")

    def start(self, root, *flags):
        """Start the script with --output-dir root/out; it also writes beside that folder."""
        line = command(self.rgb, root / "out", *self.flags, *flags, script=self.script)
        return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", params=["run_da3.py", "run_sam2.py"])
def stage_run(request, tmp_path_factory):
    return Stage(request.param, tmp_path_factory.mktemp("stage"))


def test_killed_at_random_moments_and_restarted_it_writes_the_same_files(stage_run, tmp_path):
    rng = random.Random(0)
    for _ in range(KILLS):
        process = stage_run.start(tmp_path)
        time.sleep(rng.uniform(0.2, 1) * stage_run.seconds)
        process.kill()
        process.wait()
        for name, content in files_of(tmp_path).items():
            expected = ".part." in name or content == stage_run.expected[name]
            assert expected, f"{name} differs from that of an uninterrupted run"
        for done in sorted((tmp_path / "out").rglob("[0-9]*.npy"))[10:]:  # leave work for the next restart
            done.unlink()
    assert stage_run.start(tmp_path).wait() == 0
    assert files_of(tmp_path) == stage_run.expected


def test_two_parallel_shards_equal_one_run(stage_run, tmp_path):
    shards = [stage_run.start(tmp_path, "--shard", f"{n}/2") for n in range(2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    assert files_of(tmp_path) == stage_run.expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_it_with_exit_code_75(stage_run, tmp_path, number):
    process = stage_run.start(tmp_path)
    while not any((tmp_path / "out").rglob("*.npy")):
        time.sleep(0.005)
    process.send_signal(number)
    printed, _ = process.communicate()
    assert process.returncode == 75 and "left" in printed


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """DA3's smallest architecture with random weights."""
    api = pytest.importorskip("depth_anything_3.api", reason="depth-anything-3 is not installed")
    folder = tmp_path_factory.mktemp("da3-small")
    api.DepthAnything3(model_name="da3-small").save_pretrained(folder)
    return folder


DA3 = ("--device", "cpu", "--process-res", 112, "--fx", 100, "--num-workers", 1)


def write_bad_files(rgb):
    """Write two valid frames, a and z, and files that are not 8-bit RGB images; {stem of an invalid file: reason}."""
    rgb.mkdir()
    picture = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8), (160, 120))
    for name in ("a.png", "z.jpg"):
        cv2.imwrite(str(rgb / name), picture)
    for name in ("truncated_png.png", "truncated_jpg.jpg"):
        cv2.imwrite(str(rgb / name), picture)
        content = (rgb / name).read_bytes()
        (rgb / name).write_bytes(content[: len(content) // 2])
    (rgb / "empty.png").touch()
    (rgb / "text.jpg").write_text("no picture")
    (rgb / "folder.png").mkdir()
    cv2.imwrite(str(rgb / "one_pixel.png"), picture[:1, :1])
    cv2.imwrite(str(rgb / "grey.png"), picture[..., 0])
    cv2.imwrite(str(rgb / "depth16.png"), picture[..., 0].astype(np.uint16) * 20)
    cv2.imwrite(str(rgb / "rgb16.png"), picture.astype(np.uint16) * 257)
    Image.fromarray(picture).convert("CMYK").save(rgb / "cmyk.jpg")
    return {
        "truncated_png": "not a readable image",
        "truncated_jpg": "is truncated",
        "empty": "not a readable image",
        "text": "not a readable image",
        "folder": "no file",
        "one_pixel": "field of view",
        "grey": "not an 8-bit RGB",
        "depth16": "not an 8-bit RGB",
        "rgb16": "not an 8-bit RGB",
        "cmyk": "not an 8-bit RGB",
    }


def test_bad_files_are_listed_and_the_rest_is_done(weights, tmp_path):
    reasons = write_bad_files(tmp_path / "rgb")
    done = call(tmp_path / "rgb", tmp_path / "out", "--model-id", weights, *DA3, "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    listed = [json.loads(line) for line in (tmp_path / "out" / "failed_frames.jsonl").read_text().splitlines()]
    assert {entry["stem"] for entry in listed} == set(reasons)
    assert all(reasons[entry["stem"]] in entry["reason"] for entry in listed), listed
    assert sorted(path.name for path in (tmp_path / "out").glob("*.npy")) == ["a.npy", "z.npy"]


def test_two_files_of_one_stem_are_refused(weights, tmp_path):
    write_bad_files(tmp_path / "rgb")
    shutil.copy(tmp_path / "rgb" / "z.jpg", tmp_path / "rgb" / "a.jpg")
    refused = call(tmp_path / "rgb", tmp_path / "out", "--model-id", weights, *DA3)
    assert refused.returncode == 2 and "share the stem a" in refused.stderr and refused.stderr.count("\n") == 1


def run_as_nobody(function):
    """Exit code of a function run in a child process as user nobody, since root ignores file modes."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        code = 1
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a process as another user")
def test_an_unreadable_file_is_listed_as_failed():
    with tempfile.TemporaryDirectory() as name:  # other users can't enter pytest's own folders
        folder = write_folder(Path(name), size=(64, 48))
        folder.chmod(0o755)
        (folder / "da3_depth").mkdir(mode=0o777)
        (folder / "da3_depth").chmod(0o777)
        frames = find_frames(folder / "rgb")
        frames["a/001"].chmod(0o600)
        teacher = run_da3.DepthTeacher(depth_backends.Reference(folder / "depth"), None)
        read_image(frames["a/000"])  # loads Pillow's PNG reader, which the other user may not be allowed to read
        assert run_as_nobody(lambda: stage.run_stage(frames, folder / "da3_depth", teacher)) == 0
        (entry,) = [json.loads(t) for t in (folder / "da3_depth" / "failed_frames.jsonl").read_text().splitlines()]
        assert entry["stem"] == "a/001" and "Permission denied" in entry["reason"]
        assert len(list((folder / "da3_depth").rglob("*.npy"))) == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path]).returncode:
        pytest.skip("no right to mount a small file system")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_a_one_line_error_and_keeps_complete_files(tmp_path_factory, small_disk):
    folder = write_folder(tmp_path_factory.mktemp("rooms"), [f"{n:03d}" for n in range(12)], (320, 240))
    stopped = call(folder / "rgb", small_disk / "out", "--backend", "reference")  # 300 kB a frame
    assert stopped.returncode == 2 and stopped.stderr.count("\n") == 1 and "can't write" in stopped.stderr
    kept = sorted((small_disk / "out").rglob("[0-9]*.npy"))
    assert 2 < len(kept) < 12
    for path in kept:
        assert np.array_equal(np.load(path), np.load(folder / "depth" / path.name))


@pytest.mark.parametrize("output", ["rgb/out", "depth/out"])
def test_outputs_among_the_inputs_are_refused(tmp_path, output):
    """The next run would read the gate's visualisations as images, or the labels as depth."""
    folder = write_folder(tmp_path / "data")
    before = files_of(folder)
    depth = {
        "run_sam2.py": ("--depth-dir", folder / "depth"),
        "verify_teacher_output.py": ("--gt-depth-dir", folder / "depth"),
    }
    for script in ("run_da3.py", "run_sam2.py", "verify_teacher_output.py"):
        if script == "run_da3.py" and output.startswith("depth"):
            continue
        done = call(folder / "rgb", folder / output, "--backend", "reference", *depth.get(script, ()), script=script)
        assert done.returncode == 2 and "is inside the input folder" in done.stderr, done.stderr
    assert files_of(folder) == before


def test_rotated_exif_images_are_listed_as_failed_or_stop_the_gate(tmp_path):
    folder = write_folder(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "rgb/a/000.png") as image:
        image.save(folder / "rgb/a/000.png", exif=exif)
    done = call(folder / "rgb", tmp_path / "out", "--backend", "reference")
    assert done.returncode == 0 and "3 frames done" in done.stdout and "1 failed" in done.stdout
    failed = json.loads((tmp_path / "out/failed_frames.jsonl").read_text())
    assert failed["stem"] == "a/000" and "Orientation 6" in failed["reason"]
    depth = ("--gt-depth-dir", folder / "depth")
    done = call(folder / "rgb", tmp_path / "gate", "--backend", "reference", *depth, script="verify_teacher_output.py")
    assert done.returncode == 2 and "Orientation 6" in done.stderr


def test_linked_images_and_long_names_are_processed_once(tmp_path):
    """Outputs in a linked folder did not count as finished, and a temporary name could exceed the length limit."""
    long_name = "x" * 250
    folder = write_folder(tmp_path / "data", ("a/000", f"b/{long_name}"))
    shutil.move(folder / "rgb/a", tmp_path / "disk2")
    (folder / "rgb/a").symlink_to(tmp_path / "disk2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out_a").mkdir()
    (tmp_path / "out/a").symlink_to(tmp_path / "out_a")
    done = call(folder / "rgb", tmp_path / "out", "--backend", "reference")
    assert done.returncode == 0 and "2 frames done" in done.stdout, done.stderr
    (tmp_path / f"out/b/.{files.shorten_stem(long_name)}.abc.part.npy").touch()
    done = call(folder / "rgb", tmp_path / "out", "--backend", "reference")
    assert "2 already done" in done.stdout
    assert [path.name for path in (tmp_path / "out/b").iterdir()] == [f"{long_name}.npy"]


def test_paths_that_are_not_valid_utf8(tmp_path):
    """OpenCV aborted the process, and printing such a name raised an error."""
    folder = write_folder(tmp_path / "data").rename(tmp_path / "caf\udce9")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    for script in ("run_da3.py", "run_sam2.py", "verify_teacher_output.py"):
        depth = {
            "run_sam2.py": ("--depth-dir", folder / "depth"),
            "verify_teacher_output.py": ("--gt-depth-dir", folder / "depth"),
        }
        line = command(folder / "rgb", folder / script, "--backend", "reference", *depth.get(script, ()), script=script)
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    (folder / "rgb/a/000.png").rename(folder / "rgb/a/\udce9.png")
    done = call(folder / "rgb", tmp_path / "out", "--backend", "reference")
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "the name 'a/\\udce9.png' is not UTF-8" in done.stderr
    )
