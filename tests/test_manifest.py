"""Reading, validating and writing manifest.jsonl, camera.json and splits.json."""

import json
import re
import unicodedata
from pathlib import Path

from cli import UserError

import pytest

from config import NYU_INTRINSICS, Intrinsics
from dataset import manifest
from dataset.manifest import Cameras, Row, read_manifest, read_recordings, read_splits, write_manifest

CAMERA = {"fx": 500.0, "fy": 501.0, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480}
ROW = {"stem": "000001", "rgb": "rgb/000001.png", "depth": "depth/000001.npy", "split": "train", "intrinsics": CAMERA}


def write(folder: Path, *rows: dict | str) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def without(*names: str) -> dict:
    return {name: value for name, value in ROW.items() if name not in names}


def test_row_fields_are_read(tmp_path):
    maps = {name: f"{name}/000001.npy" for name in ("confidence", "labels", "da3_depth", "sam2_seg")}
    (row,) = read_manifest(write(tmp_path, ROW | maps | {"made_by": {"da3": "large"}}, "", "  "))
    assert row.stem == "000001" and row.split == "train" and row.made_by == {"da3": "large"}
    assert row.intrinsics == Intrinsics(500, 501, 319.5, 239.5, 640, 480)
    assert row.rgb == tmp_path.resolve() / "rgb/000001.png"
    for name, relative in maps.items():
        assert getattr(row, name) == tmp_path.resolve() / relative


def test_minimal_rows_are_read(tmp_path, capsys):
    entry = {"rgb": "rgb/00/000123.jpg", "sensor_depth": "d/7.png", "sam2_seg": "sam2_seg/00/000123_sam2_seg.npy"}
    (row,) = read_manifest(write(tmp_path, entry))
    assert "without a split" in capsys.readouterr().err
    assert row.stem == "00/000123"
    assert row.depth == tmp_path.resolve() / "d/7.png"
    assert row.sam2_seg.name == "000123_sam2_seg.npy"
    assert row.intrinsics is None and row.confidence is None


@pytest.mark.parametrize(
    ("rgb", "stem"), [("rgb/1.png", "1"), ("rgb/00/1.png", "00/1"), ("1.png", "1"), ("rgb/a.b.png", "a.b")]
)
def test_default_stem(rgb, stem):
    assert manifest.default_stem(rgb) == stem


def test_rows_without_split_get_contiguous_blocks(tmp_path, capsys):
    rows = [without("split", "stem") | {"rgb": f"rgb/{n:02d}.png"} for n in range(20)]
    splits = [row.split for row in read_manifest(write(tmp_path, *rows))]
    assert "20 rows without a split" in capsys.readouterr().err
    assert splits == ["train"] * 16 + ["val"] * 2 + ["test"] * 2


def test_missing_fields_come_from_splits_and_camera_files(tmp_path, capsys):
    (tmp_path / "splits.json").write_text(json.dumps({"train": [], "val": ["000001"], "test": ["000002"]}))
    (tmp_path / "camera.json").write_text(json.dumps(CAMERA | {"fx": 600}))
    path = write(
        tmp_path,
        without("split", "intrinsics"),
        ROW | {"stem": "000002", "rgb": "rgb/000002.png"},  # the row's own values take precedence
    )
    first, second = read_manifest(path)
    assert not capsys.readouterr().err
    assert (first.split, first.intrinsics.fx) == ("val", 600)
    assert (second.split, second.intrinsics.fx) == ("train", 500)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("not json", "line 1: not JSON"),
        ("[1, 2]", "JSON object"),
        (without("rgb"), "no column 'rgb'"),
        (without("depth"), "no column 'depth'"),
        (ROW | {"rgb": "../secret.png"}, "points outside"),
        (ROW | {"rgb": "/etc/passwd"}, "points outside"),
        (ROW | {"rgb": "."}, "points outside"),
        (ROW | {"labels": "labels/../../x.npy"}, "labels.*points outside"),
        (ROW | {"depth": 7}, "a path must be a string"),
        (ROW | {"depth": "a\0b"}, "a path must be a string"),
        (ROW | {"rgb": "rgb/../rgb/1.png"}, "points outside"),
        (ROW | {"rgb": "//etc/passwd"}, "points outside"),
        (ROW | {"rgb": "rgb/\ud800.png"}, "not UTF-8"),
        (ROW | {"stem": "caf\udce9"}, "not UTF-8"),
        (ROW | {"stem": "../../home/user/x"}, "stem .* points outside"),
        (ROW | {"stem": "/tmp/x"}, "stem .* points outside"),
        (without("stem") | {"rgb": "rgb/../../data/1.png"}, "points outside"),
        (ROW | {"split": "training"}, "split 'training'"),
        (ROW | {"made_by": "me"}, "made_by"),
        (ROW | {"intrinsics": CAMERA | {"fx": 0}}, "above 0"),
        (ROW | {"intrinsics": CAMERA | {"cx": float("nan")}}, "principal point"),
        (ROW | {"intrinsics": CAMERA | {"fx": 0.811, "fy": 1.08}}, "fx .* normalised by the image size"),
        (ROW | {"intrinsics": CAMERA | {"cx": 0.509, "cy": 0.529}}, "point .* normalised"),
        (ROW | {"intrinsics": CAMERA | {"fx": 0.00193, "fy": 0.00193}}, "like metres"),
        (ROW | {"intrinsics": CAMERA | {"fy": 6000}}, "field of view of 4.58 degrees"),
        (ROW | {"intrinsics": CAMERA | {"fx": 20}}, "field of view of 173 degrees"),
        (ROW | {"intrinsics": CAMERA | {"cx": 643.4}}, "principal point 643.4, 239.5 lies outside"),
        (ROW | {"intrinsics": CAMERA | {"cy": -1}}, "principal point 319.5, -1 lies outside"),
        (ROW | {"intrinsics": CAMERA | {"fy": "wide"}}, "need the numbers"),
        (ROW | {"intrinsics": CAMERA | {"width": 10**400}}, "need the numbers"),
        (ROW | {"intrinsics": [1, 2, 3]}, "need the numbers"),
    ],
)
def test_invalid_rows_are_rejected(tmp_path, row, words):
    with pytest.raises(UserError, match=words) as error:
        read_manifest(write(tmp_path, row))
    assert "line 1" in str(error.value)


def linked_data(root: Path) -> tuple[Path, Path]:
    """(data folder, outside folder): a manifest whose image folder and depth map are links to the outside folder."""
    data, outside = root / "data", root / "outside"
    for folder in (data / "depth", outside / "rgb", outside / "depth"):
        folder.mkdir(parents=True)
    for name in ("rgb/000001.png", "depth/000001.npy"):
        (outside / name).touch()
    (data / "rgb").symlink_to(outside / "rgb")
    (data / "depth/000001.npy").symlink_to(outside / "depth/000001.npy")
    write(data, ROW)
    return data, outside


def test_links_outside_the_folder_need_permission(tmp_path):
    data, outside = linked_data(tmp_path)
    folder = re.escape(f"{data / 'rgb'} is a link to {outside / 'rgb'}: ")
    with pytest.raises(UserError, match=f"points outside .*{folder}allow it with --allow-links-to {outside / 'rgb'}$"):
        read_manifest(data / "manifest.jsonl")
    file = re.escape(f"{data / 'depth/000001.npy'} is a link to {outside / 'depth/000001.npy'}: ")
    with pytest.raises(UserError, match=f"{file}.*--allow-links-to {outside / 'depth'}$"):
        read_manifest(data / "manifest.jsonl", [outside / "rgb"])
    for allowed in ([outside], [outside / "depth", outside / "rgb"], [tmp_path]):
        (row,) = read_manifest(data / "manifest.jsonl", allowed)
        assert row.rgb == data / "rgb/000001.png" and row.depth == data / "depth/000001.npy"
    with pytest.raises(UserError, match="--allow-links-to: there is no folder"):
        read_manifest(data / "manifest.jsonl", [tmp_path / "gone"])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="points outside"):  # another folder whose name has the same prefix
        read_manifest(data / "manifest.jsonl", [tmp_path / "out"])


def test_chained_links_are_checked_by_their_final_target(tmp_path):
    data, outside = linked_data(tmp_path)
    (outside / "rgb/000001.png").unlink()
    (tmp_path / "farther.png").touch()
    (outside / "rgb/000001.png").symlink_to(tmp_path / "farther.png")
    with pytest.raises(UserError, match=f"000001.png is a link to {tmp_path}/farther.png"):
        read_manifest(data / "manifest.jsonl", [outside])
    (outside / "rgb/000001.png").unlink()
    (outside / "rgb/000001.png").symlink_to("000001.png")
    assert read_manifest(data / "manifest.jsonl", [outside])  # broken links are reported on reading


def test_links_inside_the_folder_are_kept(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/x.png").touch()
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb/1.png").symlink_to("../pool/x.png")
    write_manifest(tmp_path / "manifest.jsonl", [Row("1", tmp_path / "rgb/1.png", tmp_path / "d.npy", split="test")])
    assert json.loads((tmp_path / "manifest.jsonl").read_text())["rgb"] == "rgb/1.png"
    (row,) = read_manifest(tmp_path / "manifest.jsonl")
    assert row.rgb == tmp_path / "rgb/1.png"


def test_folder_with_two_paths(tmp_path, monkeypatch):
    """$SCRATCH is often a link: images and manifest may be given by different paths."""
    (tmp_path / "disk/data").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to(tmp_path / "disk")
    names = [tmp_path / "scratch/data", tmp_path / "disk/data", Path("scratch/data"), tmp_path / "disk/x/../data"]
    monkeypatch.chdir(tmp_path)
    for manifest_folder in names[:3]:
        for folder in names:
            rows = [Row("1", folder / "rgb/1.png", folder / "1.npy")]
            write_manifest(manifest_folder / "manifest.jsonl", rows)
            assert '"rgb/1.png", "depth": "1.npy"' in (tmp_path / "disk/data/manifest.jsonl").read_text()


def test_unicode_composition_is_ignored(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))
    (tmp_path / "rgb").mkdir()
    (tmp_path / f"rgb/{decomposed}.PNG").touch()
    row = without("stem", "split", "intrinsics") | {"rgb": f"rgb/{composed}.PNG"}
    (tmp_path / "splits.json").write_text(json.dumps({"val": [decomposed]}))
    (tmp_path / "camera.json").write_text(json.dumps({decomposed: CAMERA}))
    (found,) = read_manifest(write(tmp_path, row))
    assert (found.stem, found.split, found.intrinsics.fx) == (composed, "val", 500)
    assert found.rgb == tmp_path / f"rgb/{decomposed}.PNG"
    (tmp_path / "recordings.json").write_text(json.dumps({decomposed: "hall"}))
    assert read_recordings(tmp_path / "recordings.json") == {composed: "hall"}
    with pytest.raises(UserError, match="listed twice"):
        read_manifest(write(tmp_path, ROW | {"stem": composed}, ROW | {"stem": decomposed}))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_line_endings(tmp_path, ending):
    lines = [json.dumps(ROW), "\ufeff" + json.dumps(ROW | {"stem": "2"}), ""]  # two concatenated files from Windows
    (tmp_path / "manifest.jsonl").write_bytes(ending.join(lines).encode("utf-8-sig"))
    assert [row.stem for row in read_manifest(tmp_path / "manifest.jsonl")] == ["000001", "2"]
    (tmp_path / "camera.json").write_bytes(json.dumps(CAMERA, indent=1).replace("\n", ending).encode("utf-8-sig"))
    assert Cameras.read(tmp_path / "camera.json").common.fx == 500
    (tmp_path / "manifest.jsonl").write_bytes(ending.join(lines[:1]).encode("utf-16"))
    with pytest.raises(UserError, match="not a text file: it is UTF-16.*save it as UTF-8"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_invalid_manifests_are_rejected(tmp_path):
    with pytest.raises(UserError, match="no manifest"):
        read_manifest(tmp_path / "manifest.jsonl")
    with pytest.raises(UserError, match="lists no frames"):
        read_manifest(write(tmp_path, "", " "))
    with pytest.raises(UserError, match="000001 is listed twice"):
        read_manifest(write(tmp_path, ROW, ROW))
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_line_separators_inside_strings(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(ROW | {"stem": "a\u2028b"}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_manifest(path)[0].stem == "a\u2028b"


def test_written_manifests_can_be_read_and_moved(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        Row("00/1", folder / "rgb/00/1.png", folder / "depth/00/1.npy", split="test", intrinsics=NYU_INTRINSICS),
        Row("2", folder / "rgb/2.png", folder / "depth/2.png", sam2_seg=folder / "s/2.npy", made_by={"sam2": "x"}),
    ]
    write_manifest(folder / "manifest.jsonl", rows)
    first = (folder / "manifest.jsonl").read_bytes()
    write_manifest(folder / "manifest.jsonl", rows)
    assert (folder / "manifest.jsonl").read_bytes() == first
    assert str(tmp_path) not in first.decode()

    moved = folder.rename(tmp_path / "moved").resolve()
    back = read_manifest(moved / "manifest.jsonl")
    assert back[0] == Row("00/1", moved / "rgb/00/1.png", moved / "depth/00/1.npy", split="test",
                          intrinsics=NYU_INTRINSICS)  # fmt: skip
    assert back[1].sam2_seg == moved / "s/2.npy" and back[1].made_by == {"sam2": "x"}


def test_rows_outside_the_folder_are_rejected(tmp_path):
    path = tmp_path / "data/manifest.jsonl"
    with pytest.raises(UserError, match="outside"):
        write_manifest(path, [Row("1", tmp_path / "1.png", tmp_path / "data/1.npy")])
    assert not path.exists()


def test_cameras(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(CAMERA))
    assert Cameras.read(path).for_frame("any").fx == 500
    path.write_text(json.dumps({"1": CAMERA}))
    assert Cameras.read(path).for_frame("1").fy == 501
    with pytest.raises(UserError, match="no entry for frame 2"):
        Cameras.read(path).for_frame("2")
    for text, words in (("[]", "JSON object"), ("{", "not readable JSON"), ('{"1": 5}', "need the numbers")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            Cameras.read(path)
    with pytest.raises(UserError, match="no file"):
        Cameras.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "under the keys"),
        ({"training": []}, "under the keys"),
        ({"train": ["1"], "test": ["1"]}, "frame 1 is in both train and test"),
        ({"train": "1"}, "list of stems"),
        ({"train": [1, 2]}, "list of stems"),
        ({"train": None}, "list of stems"),
    ],
)
def test_invalid_splits_are_rejected(tmp_path, content, words):
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_splits(tmp_path / "splits.json")


@pytest.mark.parametrize("frames", [3, 7, 10])
def test_recordings_are_not_split(tmp_path, capsys, frames):
    """30 frames in ten, five and three recordings."""
    paths = [tmp_path / f"{n}.png" for n in range(30)]
    rows = [Row(str(n), path, path, recording=f"room {n // frames}") for n, path in enumerate(paths)]
    write_manifest(tmp_path / "manifest.jsonl", rows)
    found = read_manifest(tmp_path / "manifest.jsonl")
    assert [row.recording for row in found] == [row.recording for row in rows]
    splits = {}
    for row in found:
        splits.setdefault(row.recording, set()).add(row.split)
    assert all(len(split) == 1 for split in splits.values()), splits
    assert {row.split for row in found} == {"train", "val", "test"} and "whole recordings" in capsys.readouterr().err


@pytest.mark.parametrize("content", [[], {"1": 3}, {"1": ""}])
def test_invalid_recordings_are_rejected(tmp_path, content):
    (tmp_path / "recordings.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the name of its recording"):
        read_recordings(tmp_path / "recordings.json")


def test_splits(tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["1", "2"], "test": ["3"]}))
    assert read_splits(tmp_path / "splits.json") == {"1": "train", "2": "train", "3": "test"}


def test_camera_of_squeezed_images_is_rejected():
    """Cameras have square pixels, so fx and fy are nearly equal; the student crops instead of squeezing."""
    camera = {"cx": 320, "cy": 240, "width": 640, "height": 480}
    assert manifest.parse_intrinsics({"fx": 528, "fy": 500, **camera}, "camera.json").fy == 500
    for fx, fy in ((528, 1056), (396, 528)):
        with pytest.raises(UserError, match=r"camera\.json: fx .* differ by a factor above 1.25"):
            manifest.parse_intrinsics({"fx": fx, "fy": fy, **camera}, "camera.json")
