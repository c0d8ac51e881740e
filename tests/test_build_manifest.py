"""Building the manifest: checks of the maps, skipped frames, links, written rows."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest
from box_room import write_folder
from PIL import ExifTags, Image

from dataset.manifest import read_manifest
from teacher_infer import build_manifest

SCRIPT = Path(__file__).resolve().parents[1] / "teacher_infer" / "build_manifest.py"


@pytest.fixture
def folder(tmp_path):
    root = write_folder(tmp_path / "data")
    shutil.copytree(root / "depth", root / "da3_depth")
    for path in (root / "labels").rglob("*.png"):
        target = root / "sam2_seg" / path.relative_to(root / "labels").with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    for name, model in (("da3_depth", "DA3"), ("sam2_seg", "SAM2")):
        (root / name / "provenance.json").write_text(json.dumps({"backend": name, "model": model, "versions": {}}))
    return root


def build(root, *extra):
    args = [
        "--rgb-dir",
        root / "rgb",
        "--depth-dir",
        root / "depth",
        "--da3-dir",
        root / "da3_depth",
        "--sam2-dir",
        root / "sam2_seg",
        "--output",
        root / "manifest.jsonl",
        *extra,
    ]
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, cwd="/")


def refused(root, *extra):
    """Run a build that must fail and write nothing; returns its one-line error."""
    result = build(root, *extra)
    assert result.returncode == 2 and result.stderr.strip().count("\n") == 0, result.stderr
    assert not (root / "manifest.jsonl").exists() and not (root / "manifest.json").exists()
    return result.stderr


def test_rows_contain_all_columns(folder):
    done = build(folder)
    assert done.returncode == 0, done.stderr
    rows = read_manifest(folder / "manifest.jsonl")
    assert [(r.stem, r.split) for r in rows] == [
        ("a/000", "train"),
        ("a/001", "train"),
        ("b/000", "val"),
        ("b/001", "test"),
    ]
    assert all(r.confidence and r.labels and r.da3_depth and r.sam2_seg for r in rows)
    assert rows[0].intrinsics.fx == pytest.approx(130)
    assert rows[0].made_by == {
        "da3_depth": {"backend": "da3_depth", "model": "DA3"},
        "sam2_seg": {"backend": "sam2_seg", "model": "SAM2"},
    }
    assert json.loads((folder / "manifest.json").read_text())["frames"] == 4
    first = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])
    assert first["depth"] == "depth/a/000.npy"


def test_rebuilding_gives_the_same_bytes(folder):
    build(folder)
    before = [(folder / name).read_bytes() for name in ("manifest.jsonl", "manifest.json")]
    build(folder)
    assert before == [(folder / name).read_bytes() for name in ("manifest.jsonl", "manifest.json")]


def test_missing_teacher_map_must_be_allowed(folder):
    (folder / "sam2_seg" / "a" / "001.npy").unlink()
    assert "a/001" in refused(folder)
    assert build(folder, "--allow-missing-teachers").returncode == 0
    row = next(r for r in read_manifest(folder / "manifest.jsonl") if r.stem == "a/001")
    assert row.sam2_seg is None and "sam2_seg" not in row.made_by


def test_missing_teacher_folder_must_be_allowed(folder):
    shutil.rmtree(folder / "da3_depth")
    assert "--da3-dir" in refused(folder)
    assert build(folder, "--allow-missing-teachers").returncode == 0


def test_confidence_of_another_class_folder_is_refused(folder):
    (folder / "seg_confidence").mkdir()
    (folder / "seg_confidence" / "provenance.json").write_text('{"of": "other_seg"}')
    assert "confidence of other_seg" in refused(folder)
    (folder / "seg_confidence" / "provenance.json").write_text('{"of": "sam2_seg"}')
    assert build(folder).returncode == 0


def test_missing_depth_is_an_error(folder):
    (folder / "depth" / "b" / "000.npy").unlink()
    assert "b/000 has no depth" in refused(folder, "--allow-missing-teachers")


@pytest.mark.parametrize(
    ("name", "array", "word"),
    [
        ("da3_depth", np.ones((60, 80), np.float32), "80x60"),
        ("da3_depth", np.ones((120, 160), np.int32), "int32"),
        ("da3_depth", np.full((120, 160), 2000, np.float32), "metres"),
        ("da3_depth", np.zeros((120, 160), np.float32), "no depth"),
        ("da3_depth", np.full((120, 160), np.nan, np.float32), "no depth"),
        ("da3_depth", np.full((120, 160), -1, np.float32), "no depth"),
        ("sam2_seg", np.full((120, 160), 6, np.uint8), "class 6"),
        ("confidence", np.full((120, 160), 2, np.float32), "0..1"),
        ("labels", np.full((120, 160), 7, np.uint8), "class 7"),
    ],
)
def test_invalid_maps_are_refused(folder, name, array, word):
    (folder / name / "a" / "001.png").unlink(missing_ok=True)
    np.save(folder / name / "a" / "001.npy", array)
    assert word in refused(folder)


@pytest.mark.parametrize("name", ["da3_depth/a/001.npy", "rgb/a/001.png"])
def test_truncated_files_are_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert "001" in refused(folder)


def test_stems_without_split_are_skipped_and_printed(folder):
    (folder / "splits.json").write_text(json.dumps({"train": ["a/000", "gone"], "val": [], "test": ["b/000"]}))
    done = build(folder)
    assert done.returncode == 0 and "2 images in no split" in done.stdout and "gone" in done.stdout
    assert [r.stem for r in read_manifest(folder / "manifest.jsonl")] == ["a/000", "b/000"]


def test_rows_name_their_recording(folder):
    (folder / "recordings.json").write_text(json.dumps({"a/000": "kitchen", "b/000": "hall"}))
    assert build(folder).returncode == 0
    recordings = {row.stem: row.recording for row in read_manifest(folder / "manifest.jsonl")}
    assert recordings["a/000"] == "kitchen" and recordings["b/000"] == "hall" and recordings["a/001"] is None


def test_rows_have_times_poses_gravity_and_png_confidence(folder):
    pose = [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
    for name, value in (("times", 0.25), ("poses", pose), ("gravity", [0, 9.81, 0])):
        (folder / f"{name}.json").write_text(json.dumps({"a/000": value}))
    (folder / "confidence/a/000.npy").unlink()
    size = cv2.imread(str(folder / "labels/a/000.png"), cv2.IMREAD_UNCHANGED).shape
    cv2.imwrite(str(folder / "confidence/a/000.png"), np.full(size, 51, np.uint8))
    done = build(folder)
    assert done.returncode == 0, done.stderr
    rows = {row.stem: row for row in read_manifest(folder / "manifest.jsonl")}
    assert (rows["a/000"].time, rows["a/000"].gravity) == (0.25, (0, 9.81, 0))
    assert rows["a/000"].pose == tuple(map(tuple, pose)) and rows["a/000"].confidence.suffix == ".png"
    assert rows["a/001"].time is rows["a/001"].pose is rows["a/001"].gravity is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("times", '{"a/000": "soon"}'),
        ("times", '{"a/000": NaN}'),
        ("poses", '{"a/000": [[1, 0, 0, 0]]}'),
        ("poses", "[]"),
        ("gravity", '{"a/000": [0, 0, 0]}'),
        ("gravity", '{"a/000": [0, 1]}'),
    ],
)
def test_invalid_times_poses_and_gravity_are_refused(folder, name, text):
    (folder / f"{name}.json").write_text(text)
    assert f"{name}.json" in refused(folder)


def test_orphans_are_printed(folder):
    np.save(folder / "da3_depth" / "a" / "777.npy", np.zeros((2, 2), np.float32))
    assert "1 da3_depth maps without an image: a/777.npy" in build(folder).stdout


def test_camera_json_that_lacks_a_frame_is_refused(folder):
    camera = json.loads((folder / "camera.json").read_text())
    (folder / "camera.json").write_text(json.dumps({"a/000": camera}))
    assert "a/001" in refused(folder)


def test_manifest_inside_a_data_folder_is_refused(folder):
    result = build(folder, "--output", folder / "rgb" / "manifest.jsonl")
    assert result.returncode == 2 and "above all data" in result.stderr


def move_out(folder, name, outside):
    """Move a file or folder of the data to `outside` and leave a link in its place."""
    (outside / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder / name, outside / name)
    (folder / name).symlink_to(outside / name)


def test_links_out_of_the_data_folder_must_be_allowed(folder, tmp_path):
    outside = tmp_path / "disk2"
    for name in ("rgb/b", "depth/a/000.npy", "sam2_seg"):
        move_out(folder, name, outside)
    (folder / "labels/a").rename(folder / "pool")
    (folder / "labels/a").symlink_to("../pool")  # inside the data folder, so always allowed
    error = refused(folder)
    assert f"{folder / 'depth/a/000.npy'} is a link to {outside / 'depth/a/000.npy'}" in error
    assert f"allow it with --allow-links-to {outside / 'depth/a'}" in error
    assert "rgb/b is a link to" in refused(
        folder, "--allow-links-to", outside / "depth", "--allow-links-to", outside / "sam2_seg"
    )
    done = build(folder, "--allow-links-to", outside)
    assert done.returncode == 0, done.stderr
    assert "4 frames have files that are links out of" in done.stdout
    rows = read_manifest(folder / "manifest.jsonl", [outside])
    assert [row.stem for row in rows] == ["a/000", "a/001", "b/000", "b/001"]
    assert all(row.made_by["links_to"] == [str(outside)] and row.labels and row.confidence for row in rows)
    assert json.loads((folder / "manifest.jsonl").read_text().splitlines()[2])["rgb"] == "rgb/b/000.png"
    assert str(outside) not in json.dumps([row.made_by["sam2_seg"] for row in rows])


def test_links_inside_the_data_folder_are_not_recorded(folder):
    (folder / "rgb/a").rename(folder / "pool")
    (folder / "rgb/a").symlink_to(folder / "pool")
    assert build(folder).returncode == 0
    assert all("links_to" not in row.made_by for row in read_manifest(folder / "manifest.jsonl"))


def test_folders_beside_a_linked_image_folder_are_found(folder, tmp_path):
    """Confidence and labels were searched beside the link's target."""
    move_out(folder, "rgb", tmp_path / "disk2")
    done = build(folder, "--allow-links-to", tmp_path / "disk2")
    assert done.returncode == 0, done.stderr
    assert all(row.confidence and row.labels for row in read_manifest(folder / "manifest.jsonl", [tmp_path / "disk2"]))


def test_broken_links_are_named(folder):
    (folder / "rgb/b/001.png").unlink()
    (folder / "rgb/b/001.png").symlink_to("/gone/001.png")
    assert "b/001.png" in refused(folder)
    (folder / "rgb/more").symlink_to("/gone/more")
    assert "more is a link to /gone/more, which does not exist" in refused(folder)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_images_with_exif_rotation_are_refused(folder, monkeypatch, suffix):
    """Checked in every header, so that one rotated image in a million is found before training."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    with Image.open(folder / "rgb/a/001.png") as image:
        image.save((folder / "rgb/a/001.png").with_suffix(suffix), exif=exif)
    if suffix != ".png":
        (folder / "rgb/a/001.png").unlink()
    monkeypatch.setattr(build_manifest, "read_image", lambda path: None)
    error = exit_error(folder, monkeypatch)
    assert f"001{suffix} has the EXIF tag Orientation 3" in error


def exit_error(folder, monkeypatch):
    flags = {"--rgb-dir": "rgb", "--depth-dir": "depth", "--da3-dir": "da3_depth", "--sam2-dir": "sam2_seg"}
    flags["--output"] = "manifest.jsonl"
    words = [word for flag, name in flags.items() for word in (flag, str(folder / name))]
    monkeypatch.setattr(sys, "argv", ["build_manifest.py", *words])
    with pytest.raises(UserError) as error:
        build_manifest.main()
    return str(error.value)


def test_unicode_forms_upper_case_suffixes_and_system_files(folder):
    composed, decomposed = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))
    for name, suffix in (("rgb", ".PNG"), ("depth", ".NPY"), ("labels", ".PNG"), ("sam2_seg", ".npy")):
        (old,) = (folder / name / "a").glob("001.*")
        old.rename(folder / name / "a" / f"{composed if name == 'rgb' else decomposed}{suffix}")
    for name in ("confidence", "da3_depth"):
        (folder / name / "a/001.npy").rename(folder / name / f"a/{composed}.npy")
    splits = json.loads((folder / "splits.json").read_text())
    splits["train"] = ["a/000", f"a/{decomposed}"]
    (folder / "splits.json").write_text(json.dumps(splits), encoding="utf-8-sig")
    for junk in ("rgb/.ipynb_checkpoints/000-checkpoint.png", "depth/__MACOSX/a/._000.npy", "depth/.cache/x.npy"):
        (folder / junk).parent.mkdir(parents=True)
        (folder / junk).touch()
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "without an image" not in done.stdout and "in no split" not in done.stdout
    rows = read_manifest(folder / "manifest.jsonl")
    assert [row.stem for row in rows] == ["a/000", f"a/{composed}", "b/000", "b/001"]
    assert all(file.is_file() for row in rows for file in row.files().values())
    assert all(row.labels and row.confidence for row in rows)
