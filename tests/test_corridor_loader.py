"""Converting RGB-D recordings to data folders: synthetic recordings and real frames (RGBD_FRAMES)."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from dataset import corridor_loader
from dataset.files import read_json, read_npy
from dataset.frames import find_frames, read_depth
from dataset.manifest import Cameras, read_recordings, read_splits

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "dataset" / "corridor_loader.py"
KITCHEN = Path(os.environ.get("RGBD_FRAMES") or ROOT.parent / "shared" / "rgbd_kitchen")
WIDTH, HEIGHT = 32, 24
FEW = ("--test-frames", 2, "--val-frames", 1, "--gap-frames", 1)


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    depth = rng.integers(500, 4000, (HEIGHT, WIDTH), dtype=np.uint16)
    depth[0, :3] = 0, 65535, 1234
    return rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8), depth


def record(folder: Path, n_frames: int = 12) -> Path:
    """A recording with colour beside depth, and an unrelated subfolder."""
    (folder / "unregistered").mkdir(parents=True)
    for number in range(n_frames):
        colour, depth = draw(number)
        cv2.imwrite(str(folder / f"frame-{number:06d}.color.jpg"), colour)
        cv2.imwrite(str(folder / f"frame-{number:06d}.depth.png"), depth)
    cv2.imwrite(str(folder / "unregistered" / "other.color.jpg"), colour)
    (folder / "camera-intrinsics.txt").write_text("30.0 0.0 15.5\n0.0 31.0 11.5\n0.0 0.0 1.0\n")
    return folder


def record_in_folders(folder: Path, colour_folder: str, n_frames: int = 12) -> Path:
    for name in (colour_folder, "depth"):
        (folder / name).mkdir(parents=True)
    for number in range(n_frames):
        colour, depth = draw(number)
        cv2.imwrite(str(folder / colour_folder / f"{number:04d}.png"), colour)
        cv2.imwrite(str(folder / "depth" / f"{number:04d}.png"), depth)
    return folder


def load(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def loaded(*arguments: object) -> str:
    result = load(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("corridor_loader.py: error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(word in lines[0] for word in words), result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stem(number: int) -> str:
    return f"frame-{number:06d}"


def test_files_are_copied_except_in_gaps(tmp_path):
    recording, out = record(tmp_path / "in"), tmp_path / "out"
    printed = loaded("--input", recording, "--out", out, *FEW)
    assert read_json(out / "splits.json") == {
        "train": [stem(n) for n in range(7)],
        "val": [stem(8)],
        "test": [stem(10), stem(11)],
    }
    assert "12 frames (train 7, val 1, test 2); 2 excluded in the gaps" in printed
    assert sorted(find_frames(out / "rgb")) == sorted(read_splits(out / "splits.json"))
    assert read_recordings(out / "recordings.json") == dict.fromkeys(read_splits(out / "splits.json"), "in")
    assert (out / f"rgb/{stem(3)}.jpg").read_bytes() == (recording / f"{stem(3)}.color.jpg").read_bytes()
    assert (out / f"depth/{stem(3)}.png").read_bytes() == (recording / f"{stem(3)}.depth.png").read_bytes()
    camera = Cameras.read(out / "camera.json").for_frame(stem(0))
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (30, 31, 15.5, 11.5)
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)


def test_npy_is_in_metres_with_zero_for_missing(tmp_path):
    recording = record(tmp_path / "in")
    loaded("--input", recording, "--out", tmp_path / "out", "--depth-format", "npy", *FEW)
    depth = read_npy(tmp_path / f"out/depth/{stem(3)}.npy")
    assert depth.dtype == np.float32
    assert depth[0, :3].tolist() == pytest.approx([0, 0, 1.234])
    np.testing.assert_array_equal(depth, read_depth(recording / f"{stem(3)}.depth.png"))


@pytest.mark.parametrize("colour_folder", ["rgb", "color"])
def test_colour_and_depth_in_folders(tmp_path, colour_folder):
    recording = record_in_folders(tmp_path / "in", colour_folder)
    loaded("--input", recording, "--out", tmp_path / "out", *FEW, "--fx", 30, "--fy", 30, "--cx", 16, "--cy", 12)
    assert list(find_frames(tmp_path / "out/rgb")) == [f"{n:04d}" for n in (*range(7), 8, 10, 11)]
    assert (tmp_path / "out/depth/0010.png").is_file()


def test_flags_override_the_file_with_a_warning(tmp_path):
    recording = record(tmp_path / "in")
    result = load("--input", recording, "--out", tmp_path / "out", *FEW, "--fx", 33, "--fy", 31)
    assert result.returncode == 0
    assert result.stderr.splitlines() == [f"warning: --fx 33 overrides 30 from {recording / 'camera-intrinsics.txt'}"]
    assert read_json(tmp_path / "out/camera.json")["fx"] == 33


def test_off_centre_principal_point_is_warned_about(tmp_path):
    """Intrinsics for 640x360 have a principal point inside images of half that size, too."""
    recording = record(tmp_path / "in")
    result = load("--input", recording, "--out", tmp_path / "out", *FEW, "--cx", 24)
    assert result.returncode == 0
    assert "principal point 24, 11.5 is far from the centre" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["--intrinsics", "--fx"]),
        ("30 0\n0 30\n", ["3x3"]),
        ("30 0 15\n0 thirty 12\n0 0 1\n", ["not a text file of numbers"]),
        ("30 0 15\n0 nan 12\n0 0 1\n", ["3x3"]),
        ("-30 0 15\n0 30 12\n0 0 1\n", ["above 0"]),
        ("15 0 30\n12 30 0\n1 0 0\n", ["camera matrix"]),
        ("100 0 960\n0 100 12\n0 0 1\n", ["a different resolution"]),
        ("100 0 16\n0 100 540\n0 0 1\n", ["a different resolution"]),
        ("0.9 0 0.5\n0 1.2 0.5\n0 0 1\n", ["look normalised"]),
        ("0.0019 0 16\n0 0.0019 12\n0 0 1\n", ["like metres"]),
        ("300 0 16\n0 300 12\n0 0 1\n", ["field of view"]),
    ],
)
def test_invalid_intrinsics_are_rejected(tmp_path, text, words):
    recording = record(tmp_path / "in")
    (recording / "camera-intrinsics.txt").unlink()
    if text is not None:
        (recording / "camera-intrinsics.txt").write_text(text)
    check_refused(load("--input", recording, "--out", tmp_path / "out", *FEW), *words)
    assert not (tmp_path / "out").exists()


def test_two_intrinsics_files_need_a_choice(tmp_path):
    recording = record(tmp_path / "in")
    shutil.copy(recording / "camera-intrinsics.txt", recording / "depth-intrinsics.txt")
    check_refused(load("--input", recording, "--out", tmp_path / "out", *FEW), "choose one with --intrinsics")
    loaded("--input", recording, "--out", tmp_path / "out", *FEW, "--intrinsics", recording / "depth-intrinsics.txt")


def rewrite(path: Path, image: np.ndarray) -> None:
    cv2.imwrite(str(path), image)


def test_invalid_recordings_are_rejected(tmp_path):
    recording, out = record(tmp_path / "in"), tmp_path / "out"
    depth = recording / f"{stem(0)}.depth.png"
    check_refused(load("--input", recording, "--out", recording, *FEW), "--out")
    check_refused(load("--input", recording, "--out", out), "too few frames")
    rewrite(depth, np.zeros((HEIGHT, WIDTH), np.uint8))
    check_refused(load("--input", recording, "--out", out, *FEW), depth.name, "8-bit")
    rewrite(depth, np.zeros((HEIGHT * 2, WIDTH * 2), np.uint16))
    check_refused(load("--input", recording, "--out", out, *FEW), depth.name, "64x48", "32x24", "register depth")
    for number in range(7):
        (recording / f"{stem(number)}.depth.png").unlink()
    check_refused(
        load("--input", recording, "--out", out, *FEW), f"{stem(0)}.color.jpg", "without depth in 7 of 12", depth.name
    )
    (tmp_path / "empty").mkdir()
    check_refused(load("--input", tmp_path / "empty", "--out", out), "not a recording")
    check_refused(load("--input", tmp_path / "none", "--out", out), "none")
    assert not out.exists()


def test_unreadable_frames_are_listed_and_skipped(tmp_path):
    recording, out = record(tmp_path / "in"), tmp_path / "out"
    image = recording / f"{stem(2)}.color.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    (recording / f"{stem(8)}.depth.png").write_bytes(b"no image")
    printed = loaded("--input", recording, "--out", out, *FEW)
    assert "train 6, val 0, test 2" in printed and "2 unreadable" in printed
    failed = [json.loads(line) for line in (out / "failed_frames.jsonl").read_text().splitlines()]
    assert [entry["stem"] for entry in failed] == [stem(2), stem(8)] and all(entry["reason"] for entry in failed)
    assert set(find_frames(out / "rgb")) == set(read_splits(out / "splits.json"))

    shutil.copy(recording / f"{stem(1)}.color.jpg", image)
    shutil.copy(recording / f"{stem(1)}.depth.png", recording / f"{stem(8)}.depth.png")
    assert "train 7, val 1, test 2" in loaded("--input", recording, "--out", out, *FEW)
    assert not (out / "failed_frames.jsonl").exists()


def failed_frames(out: Path) -> dict[str, str]:
    lines = (out / "failed_frames.jsonl").read_text().splitlines()
    return {entry["stem"]: entry["reason"] for entry in map(json.loads, lines)}


def test_unpaired_files_are_listed_and_skipped(tmp_path):
    """Missing depth of a training frame and of a frame in a gap, and a missing colour image."""
    recording, out = record(tmp_path / "in"), tmp_path / "out"
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (f"{stem(3)}.depth.png", f"{stem(7)}.depth.png", f"{stem(5)}.color.jpg"):
        (recording / name).rename(kept / name)
    printed = loaded("--input", recording, "--out", out, *FEW)
    assert "11 frames (train 5, val 1, test 2); 2 excluded in the gaps" in printed
    assert "3 without depth or without colour, listed in failed_frames.jsonl" in printed
    assert failed_frames(out) == {
        stem(3): f"{stem(3)}.color.jpg has no depth image {recording / stem(3)}.depth.png",
        stem(7): f"{stem(7)}.color.jpg has no depth image {recording / stem(7)}.depth.png",
        stem(5): f"{stem(5)}.depth.png has no colour image",
    }
    assert set(find_frames(out / "rgb")) == set(read_splits(out / "splits.json")) and stem(3) not in find_frames(
        out / "rgb"
    )
    (kept / f"{stem(3)}.depth.png").rename(recording / f"{stem(3)}.depth.png")
    assert "train 6, val 1, test 2" in loaded("--input", recording, "--out", out, *FEW)
    assert set(failed_frames(out)) == {stem(7), stem(5)}


def test_unpaired_files_in_folders(tmp_path, monkeypatch, capsys):
    recording, out = record_in_folders(tmp_path / "in", "rgb"), tmp_path / "out"
    (recording / "depth/0003.png").unlink()
    (recording / "depth/0005.png").unlink()
    (recording / "depth/0005.png").symlink_to("/gone/0005.png")
    (recording / "rgb/0004.png").unlink()
    (recording / "depth/.0004.png").touch()
    monkeypatch.setattr(corridor_loader, "MAX_FLAT_FRAMES", 10)
    flags = ["--input", recording, "--out", out, *FEW, "--fx", 30, "--fy", 30, "--cx", 16, "--cy", 12]
    monkeypatch.setattr(sys, "argv", ["corridor_loader.py", *map(str, flags)])
    assert not corridor_loader.main()
    assert "1 unreadable, 2 without depth or without colour" in capsys.readouterr().out
    assert set(failed_frames(out)) == {"0000/0003", "0000/0005", "0004"}
    assert "link to /gone/0005.png" in failed_frames(out)["0000/0005"]


def tag(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)


def test_recordings_with_exif_orientation_are_rejected(tmp_path):
    """The whole recording is rejected, since depth matches none of its images."""
    recording = record(tmp_path / "in")
    tag(recording / f"{stem(4)}.color.jpg", 1)
    loaded("--input", recording, "--out", tmp_path / "out", *FEW)
    tag(recording / f"{stem(4)}.color.jpg", 3)
    check_refused(
        load("--input", recording, "--out", tmp_path / "out2", *FEW),
        f"{stem(4)}.color.jpg",
        "Orientation 3",
        "exiftool",
    )
    assert not (tmp_path / "out2/splits.json").exists()
    for path in recording.glob("*.color.jpg"):
        tag(path, 6)
    check_refused(load("--input", recording, "--out", tmp_path / "out3", *FEW), f"{stem(0)}.color.jpg", "Orientation 6")
    assert not (tmp_path / "out3").exists()


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".TIF", ".JPG"])
def test_other_colour_formats_and_upper_case_suffixes(tmp_path, suffix):
    recording, out = record_in_folders(tmp_path / "in", "rgb"), tmp_path / "out"
    for path in list((recording / "rgb").iterdir()):
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        path.unlink()
    for path in list((recording / "depth").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    loaded("--input", recording, "--out", out, *FEW, "--fx", 30, "--fy", 30, "--cx", 16, "--cy", 12)
    assert [path.suffix for path in find_frames(out / "rgb").values()] == [suffix.lower()] * 10
    assert (out / "depth/0010.png").is_file() and not (out / "failed_frames.jsonl").exists()


def test_unicode_composition_is_ignored_in_pairing(tmp_path):
    recording = record(tmp_path / "in")
    for number in range(12):
        for form, suffix in (("NFC", "color.jpg"), ("NFD", "depth.png")):
            name = unicodedata.normalize(form, f"caf\u00e9-{number:02d}.{suffix}")
            (recording / f"{stem(number)}.{suffix}").rename(recording / name)
    loaded("--input", recording, "--out", tmp_path / "out", *FEW)
    assert list(find_frames(tmp_path / "out/rgb"))[0] == "caf\u00e9-00"
    assert not (tmp_path / "out/failed_frames.jsonl").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_intrinsics_files_from_windows(tmp_path, encoding):
    recording = record(tmp_path / "in")
    (recording / "camera-intrinsics.txt").unlink()
    (recording / "Camera-Intrinsics.TXT").write_bytes("30 0 15.5\r\n0 31 11.5\r\n0 0 1\r\n".encode(encoding))
    loaded("--input", recording, "--out", tmp_path / "out", *FEW)
    assert Cameras.read(tmp_path / "out/camera.json").common.fy == 31


def test_utf16_intrinsics_are_rejected(tmp_path):
    recording = record(tmp_path / "in")
    (recording / "camera-intrinsics.txt").write_text("30 0 15.5\n0 31 11.5\n0 0 1\n", encoding="utf-16")
    check_refused(load("--input", recording, "--out", tmp_path / "out", *FEW), "camera-intrinsics.txt", "UTF-16")


def test_non_utf8_file_name_is_rejected(tmp_path):
    recording = record(tmp_path / "in")
    for suffix in ("color.jpg", "depth.png"):
        shutil.copy(recording / f"{stem(1)}.{suffix}", recording / f"caf\udce9.{suffix}")
    check_refused(load("--input", recording, "--out", tmp_path / "out", *FEW), "caf\\udce9.color", "not UTF-8")


def test_non_utf8_folder_name_is_accepted(tmp_path):
    """OpenCV would abort the process on this path."""
    recording = record(tmp_path / "in").rename(tmp_path / "caf\udce9")
    loaded("--input", recording, "--out", tmp_path / "out\udce9", *FEW)
    assert len(find_frames(tmp_path / "out\udce9/rgb")) == 10


def test_output_inside_the_input_is_rejected(tmp_path):
    recording = record_in_folders(tmp_path / "in", "color")
    check_refused(
        load("--input", recording, "--out", recording / "color/data", *FEW), "is inside the input folder", "next run"
    )


def test_mostly_unreadable_recordings_are_rejected(tmp_path):
    recording, out = record(tmp_path / "in"), tmp_path / "out"
    for number in range(1, 7):
        (recording / f"{stem(number)}.depth.png").write_bytes(b"no image")
    check_refused(load("--input", recording, "--out", out, *FEW), "more than half of the 10 frames")
    assert not (out / "splits.json").exists()


def test_killed_run_resumes_to_the_same_result(tmp_path):
    recording = record(tmp_path / "in")
    loaded("--input", recording, "--out", tmp_path / "whole", *FEW)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("splits.json", "camera.json", f"rgb/{stem(4)}.jpg"):
        (tmp_path / "killed" / name).unlink()
    (tmp_path / f"killed/depth/.{stem(5)}.abc.part.png").write_bytes(b"half")
    loaded("--input", recording, "--out", tmp_path / "killed", *FEW)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_split_needs_another_folder(tmp_path):
    """Otherwise frames in the new gap would remain in rgb/ as training frames."""
    recording, out = record(tmp_path / "in"), tmp_path / "out"
    loaded("--input", recording, "--out", out, *FEW)
    check_refused(load("--input", recording, "--out", out, "--test-frames", 3, "--gap-frames", 1), "another")


def test_unpadded_frame_numbers_are_split_by_time(tmp_path):
    """Sorted as text, 9 comes after 85, which would put test frames next to training frames."""
    for name in ("rgb", "depth"):
        (tmp_path / "recording" / name).mkdir(parents=True)
    for number in range(24):
        colour, depth = draw(number)
        cv2.imwrite(str(tmp_path / f"recording/rgb/{number}.jpg"), colour)
        cv2.imwrite(str(tmp_path / f"recording/depth/{number}.png"), depth)
    camera = ("--fx", 30, "--fy", 30, "--cx", 15, "--cy", 11)
    loaded("--input", tmp_path / "recording", "--out", tmp_path / "out", *camera, *FEW)
    splits = json.loads((tmp_path / "out/splits.json").read_text())
    assert splits == {"train": [str(number) for number in range(19)], "val": ["20"], "test": ["22", "23"]}


def test_split_by_time():
    stems = [f"{n:03d}" for n in range(300)]
    split = corridor_loader.split_by_time(stems, test=50, val=0, gap=10)
    assert split == {"train": stems[:240], "val": [], "test": stems[250:]}
    split = corridor_loader.split_by_time(stems, test=50, val=30, gap=10)
    assert split == {"train": stems[:200], "val": stems[210:240], "test": stems[250:]}
    assert corridor_loader.split_by_time(stems[:4], 1, 1, 0)["train"] == stems[:2]
    for count in (4, 3, 2):
        with pytest.raises(UserError, match="too few"):
            corridor_loader.split_by_time(stems[:count], 1, 1, 1)


@pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no real frames at {KITCHEN} (set RGBD_FRAMES)")
def test_real_recording(tmp_path):
    out = tmp_path / "out"
    printed = loaded("--input", KITCHEN, "--out", out, "--val-frames", 0, "--test-frames", 50, "--gap-frames", 10)
    assert "300 frames (train 240, val 0, test 50); 10 excluded in the gaps" in printed
    split = read_json(out / "splits.json")
    assert split["train"] == [stem(n) for n in range(0, 480, 2)]
    assert split["test"] == [stem(n) for n in range(500, 600, 2)]
    assert len(find_frames(out / "rgb")) == 290
    assert 1 < np.median(read_depth(out / f"depth/{stem(0)}.png")) < 4
    assert read_json(out / "camera.json") == {"fx": 528, "fy": 528, "cx": 323.7, "cy": 240, "width": 640, "height": 480}


def test_long_recording_is_split_into_subfolders(tmp_path, monkeypatch):
    recording, out = record(tmp_path / "recording"), tmp_path / "out"
    frames, _ = corridor_loader.find_recording(recording)
    assert corridor_loader.split_into_subfolders(frames) == frames
    monkeypatch.setattr(corridor_loader, "MAX_FLAT_FRAMES", 11)
    flags = ["--input", recording, "--out", out, *FEW]
    monkeypatch.setattr(sys, "argv", ["corridor_loader.py", *map(str, flags)])
    assert not corridor_loader.main()
    stems = list(read_splits(out / "splits.json"))
    assert stems[0] == "0000/frame-000000" and len(stems) == 10
    assert sorted(find_frames(out / "rgb")) == sorted(stems)
    assert all((out / "depth" / f"{stem}.png").is_file() for stem in stems)
    many = corridor_loader.split_into_subfolders({f"{number:05d}": None for number in range(2500)})
    assert list(many)[-1] == "0002/02499" and list(many) == sorted(many)
