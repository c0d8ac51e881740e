"""Listing data files below a folder, and comparing names."""

import os
import unicodedata
from pathlib import Path

from cli import UserError

import pytest

from dataset import listing
from dataset.frames import find_frames, find_map

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_linked_files_and_folders_are_listed(tmp_path):
    touch(tmp_path / "elsewhere", "1.png", "deep/2.png")
    rgb = touch(tmp_path / "rgb", "0.png")
    link(rgb / "more", tmp_path / "elsewhere")
    link(rgb / "3.png", tmp_path / "elsewhere/1.png")
    assert list(find_frames(rgb)) == ["0", "3", "more/1", "more/deep/2"]
    link(tmp_path / "linked", rgb)
    assert list(find_frames(tmp_path / "linked")) == list(find_frames(rgb))


def test_link_cycles_end(tmp_path, capsys):
    rgb = touch(tmp_path / "data/rgb", "1.png", "a/2.png")
    touch(tmp_path / "data/depth", "1.png")
    link(rgb / "a/again", rgb / "a")
    link(rgb / "up", tmp_path / "data")
    link(rgb / "self", ".")
    touch(tmp_path / "other", "3.png")
    link(tmp_path / "other/back", rgb)
    link(rgb / "other", tmp_path / "other")
    assert list(find_frames(rgb)) == ["1", "a/2", "other/3"]
    notices = capsys.readouterr().err
    assert all(f"{rgb / name} is a link to" in notices for name in ("a/again", "up", "self", "other/back"))


def test_folder_reachable_twice_is_listed_once(tmp_path, capsys):
    """Otherwise the same frames could end up in both train and test."""
    rgb = touch(tmp_path / "rgb", "b/1.png")
    link(rgb / "a", "b")
    assert list(find_frames(rgb)) == ["b/1"]
    assert f"{rgb / 'a'} is a link to {rgb / 'b'}, which is already listed" in capsys.readouterr().err


def test_broken_links_are_reported(tmp_path):
    rgb = touch(tmp_path / "rgb", "1.png")
    link(rgb / "2.png", "/gone/2.png")
    assert list(find_frames(rgb)) == ["1", "2"], "reading it reports the broken link"
    link(rgb / "disk2", "/gone/disk2")
    with pytest.raises(UserError, match="disk2 is a link to /gone/disk2, which does not exist"):
        find_frames(rgb)
    (rgb / "disk2").unlink()
    link(rgb / "circle", "circle")
    with pytest.raises(UserError, match="circle is a link to circle"):
        find_frames(rgb)


@pytest.mark.parametrize(
    "name",
    [
        ".1.png",
        "._1.png",
        ".ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/1.png",
        "__MACOSX/rgb/._1.png",
        "a/.thumbnails/x.jpg",
        "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/1.png",
        ".Trash-1000/files/1.png",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
    ],
)
def test_system_files_are_ignored(tmp_path, capsys, name):
    touch(tmp_path, "1.jpg", name)
    assert list(find_frames(tmp_path)) == ["1"]
    assert capsys.readouterr().err == ""


def test_other_files_are_counted(tmp_path, capsys):
    touch(tmp_path, "1.png", "2.JPG", "3.heic", "4.HEIC", "a/5.gif", "README")
    assert list(find_frames(tmp_path)) == ["1", "2"]
    line = f"{tmp_path}: skipped 4 of 6 files, which are not supported images (.heic, .gif, no suffix)\n"
    assert capsys.readouterr().err == line
    touch(tmp_path / "numbers", "1.png", *(f"frame.{n:03d}" for n in range(200)))
    assert len(find_frames(tmp_path / "numbers")) == 1
    assert capsys.readouterr().err.endswith("images (.000, .001, .002, .003, .004, ...)\n")
    touch(tmp_path / "phone", "1.heic")
    with pytest.raises(UserError, match=r"contains no images .*, only 1 other files \(.heic\)"):
        find_frames(tmp_path / "phone")


def test_formats_and_duplicate_stems(tmp_path):
    names = ["1.png", "2.jpg", "3.JPEG", "4.bmp", "5.WebP", "6.tif", "7.TIFF"]
    assert list(find_frames(touch(tmp_path, *names))) == [*"1234567"]
    with pytest.raises(UserError, match="share the stem 4"):
        find_frames(touch(tmp_path, "4.tiff"))


def test_non_utf8_names_are_rejected(tmp_path):
    for name in ("caf\udce9.png", "caf\udce9/1.png"):
        folder = touch(tmp_path / str(len(name)), name)
        with pytest.raises(UserError, match=r"'caf\\udce9.*not UTF-8: rename it"):
            find_frames(folder)


def test_unusual_names(tmp_path):
    names = ["a\nb", 'it\'s "x"', "a.b.c", "a b", "x" * 251, "dots..", "%s {0}"]
    assert set(find_frames(touch(tmp_path, *(f"{name}.png" for name in names)))) == set(names)


@pytest.mark.parametrize(("image", "map_"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_unicode_composition_is_ignored(tmp_path, image, map_):
    touch(tmp_path, f"rgb/{image}/{image}.png", f"depth/{map_}/{map_}.npy", f"seg/{map_}/{map_}_seg.NPY")
    assert list(find_frames(tmp_path / "rgb")) == [f"{COMPOSED}/{COMPOSED}"]
    (stem,) = find_frames(tmp_path / "rgb")
    assert find_map(tmp_path / "depth", stem) == tmp_path / f"depth/{map_}/{map_}.npy"
    assert find_map(tmp_path / "seg", stem) == tmp_path / f"seg/{map_}/{map_}_seg.NPY"


def test_duplicate_name_variants_are_rejected(tmp_path):
    touch(
        tmp_path,
        f"rgb/{COMPOSED}.png",
        f"rgb/{DECOMPOSED}.png",
        "depth/1.NPY",
        "depth/1.Npy",
        "depth/2.npy",
        "depth/2.NPY",
    )
    with pytest.raises(UserError, match=r"e\\u0301.*\\xe9|\\xe9.*e\\u0301"):
        find_frames(tmp_path / "rgb")
    with pytest.raises(UserError, match="differ only in suffix case or Unicode composition"):
        find_map(tmp_path / "depth", "1")
    assert find_map(tmp_path / "depth", "2") == tmp_path / "depth/2.npy"
    with pytest.raises(UserError, match="x.json: two stems"):
        listing.normalize_stems({COMPOSED: 1, DECOMPOSED: 2}, "x.json")


def test_upper_case_suffixes_of_maps(tmp_path):
    touch(tmp_path, "depth/a/1.NPY", "depth/2.PNG", "depth/3.npy/x", "depth/4.Npy")
    for stem, name in (("a/1", "a/1.NPY"), ("2", "2.PNG"), ("4", "4.Npy")):
        assert find_map(tmp_path / "depth", stem) == tmp_path / "depth" / name
    assert [find_map(tmp_path / "depth", stem) for stem in ("1", "3", "A/1", "a/2", "b/1")] == [None] * 5
    assert find_map(tmp_path / "none", "1") is None and find_map(tmp_path / "depth", "x" * 252) is None


def test_map_added_later_is_found(tmp_path):
    """Listings are cached, but refreshed when the folder changes."""
    touch(tmp_path, "depth/1.NPY")
    assert find_map(tmp_path / "depth", "2") is None
    touch(tmp_path, "depth/2.NPY")
    os.utime(tmp_path / "depth", ns=(1, 1))  # file systems' clocks tick in milliseconds
    assert find_map(tmp_path / "depth", "2") == tmp_path / "depth/2.NPY"
    (tmp_path / "depth/2.NPY").unlink()
    os.utime(tmp_path / "depth", ns=(2, 2))
    assert find_map(tmp_path / "depth", "2") is None


def test_data_folder_of_linked_images(tmp_path):
    touch(tmp_path, "big/rgb/1.png", "data/camera.json", "bare/x")
    link(tmp_path / "data/rgb", tmp_path / "big/rgb")
    link(tmp_path / "bare/rgb", tmp_path / "big/rgb")
    assert listing.find_data_folder(tmp_path / "data/rgb") == tmp_path / "data"
    assert (
        listing.find_data_folder(tmp_path / "bare/rgb")
        == listing.find_data_folder(tmp_path / "big/rgb/.")
        == tmp_path / "big"
    )


def test_output_inside_the_input_is_rejected(tmp_path):
    touch(tmp_path, "rgb/1.png")
    link(tmp_path / "linked", tmp_path / "rgb")
    for output in ("rgb", "rgb/out", "rgb/a/b", "linked/out", "x/../rgb/out"):
        with pytest.raises(UserError, match=f"--out {tmp_path / output} is inside the input folder {tmp_path / 'rgb'}"):
            listing.require_separate_output(tmp_path / output, "--out", None, tmp_path / "rgb")
    for output in ("rgb2", "out", "."):
        listing.require_separate_output(tmp_path / output, "--out", tmp_path / "rgb")
