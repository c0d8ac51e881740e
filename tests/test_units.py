"""Depth units: given by the user or detected from the values."""

import argparse
import sys
from pathlib import Path

from cli import UserError

import numpy as np
import pytest

from dataset import corridor_loader, frames, units
from dataset.files import read_json, write_json, write_npy, write_png
from dataset.frames import check_depth_unit, read_depth
from dataset.identity import fingerprint
from dataset.manifest import read_manifest
from teacher_infer import build_manifest, verify_teacher_output

SIZE = (480, 640)
ENCODE = {  # how a sensor or a dataset stores metres
    "mm": lambda metres: metres * 1000,
    "tum": lambda metres: metres * 5000,
    "l515": lambda metres: metres * 4000,
    "d405": lambda metres: metres * 10000,
    "sunrgbd": lambda metres: (np.rint(metres * 1000).astype(int) << 3) | (np.rint(metres * 1000).astype(int) >> 13),
    "kitti": lambda metres: metres * 256,
    "cm": lambda metres: metres * 100,
}


def slanted_floor(median: float = 1.9) -> np.ndarray:
    """Depth in metres of a slanted floor with a hole, float32 [H,W]."""
    depth = np.linspace(0.6 * median, 1.4 * median, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    depth[:40, :40] = 0
    return depth


def encode(name: str, median: float = 1.9) -> np.ndarray:
    return np.rint(ENCODE[name](slanted_floor(median))).astype(np.uint16)


@pytest.mark.parametrize("name", ENCODE)
def test_units_are_decoded_to_metres(name):
    assert units.UNITS[name].decode(encode(name)) == pytest.approx(
        slanted_floor(), abs=0.006 if name == "cm" else 0.003
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("TUM", 2e-4), ("1/5000", 2e-4), ("0.0002", 2e-4), ("0.00025", 2.5e-4), ("0.001", 1e-3), ("1/3", 1 / 3)],
)
def test_units_are_parsed_from_names_or_metres(text, expected):
    assert units.parse_depth_unit(text).metres == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "inch", "0", "-0.001", "nan", "inf", "1/0", "5000", "1/5000/2"])
def test_invalid_units_are_rejected(text):
    with pytest.raises(argparse.ArgumentTypeError, match="tum"):
        units.parse_depth_unit(text)


@pytest.mark.parametrize("name", ["tum", "l515", "d405", "sunrgbd", "cm"])
def test_other_units_than_millimetres_are_rejected_with_a_suggestion(tmp_path, name):
    write_png(tmp_path / "1.png", encode(name))
    with pytest.raises(UserError, match=f"--depth-unit {name}: 1.90 m"):
        check_depth_unit(tmp_path, [tmp_path / "1.png"])


@pytest.mark.parametrize(("name", "times"), [("sunrgbd", 8), ("tum", 5)])
def test_bit_patterns_reveal_units_with_a_plausible_median(tmp_path, name, times):
    """0.7 m read as mm is a plausible 5.6 or 3.5 m, but all values are multiples of 8 or 5."""
    numbers = (np.rint(slanted_floor(0.7) * 1000) * times).astype(np.uint16)
    with pytest.raises(UserError, match=f"the bit pattern is that of .*--depth-unit {name}: 0.70 m"):
        units.check_plausible_unit(tmp_path, [numbers])


@pytest.mark.parametrize("median", [0.35, 1.9, 5.5])
def test_millimetres_and_metres_pass(tmp_path, median):
    units.check_plausible_unit(tmp_path, [encode("mm", median)])
    units.check_plausible_unit(tmp_path, [slanted_floor(median)])
    units.check_plausible_unit(tmp_path, [])
    units.check_plausible_unit(tmp_path, [np.zeros(SIZE, np.uint16), np.full(SIZE, 65535, np.uint16)])
    units.check_plausible_unit(tmp_path, [np.full(SIZE, 2000, np.uint16)])  # a single value is not a pattern


def test_npy_is_checked_too(tmp_path):
    with pytest.raises(UserError, match="probably centimetres .*convert the files to metres"):
        units.check_plausible_unit(tmp_path, [slanted_floor(190.0)])


def test_one_outlier_frame_is_accepted(tmp_path):
    maps = [encode("mm")] * 4 + [np.full(SIZE, 20000, np.uint16)]
    units.check_plausible_unit(tmp_path, maps)


def recording(folder: Path, name: str) -> Path:
    for number in range(12):
        write_png(folder / f"rgb/{number}.png", np.full((*SIZE, 3), 20 * number, np.uint8))
        write_png(folder / f"depth/{number}.png", encode(name))
    (folder / "camera-intrinsics.txt").write_text("500 0 320\n0 500 240\n0 0 1\n")
    return folder


def load(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["corridor_loader.py", *map(str, arguments), "--gap-frames", "0"])
    return corridor_loader.main()


@pytest.mark.parametrize("name", ["tum", "l515", "d405", "sunrgbd"])
@pytest.mark.parametrize("depth_format", ["png", "npy"])
def test_recording_is_converted_to_metres(tmp_path, monkeypatch, capsys, name, depth_format):
    folder, out = recording(tmp_path / "in", name), tmp_path / "out"
    with pytest.raises(UserError, match=f"--depth-unit {name}"):
        load(monkeypatch, "--input", folder, "--out", out)
    assert not out.exists()
    flags = ("--input", folder, "--out", out, "--depth-unit", name, "--depth-format", depth_format)
    assert load(monkeypatch, *flags) == 0
    assert units.UNITS[name].what in capsys.readouterr().out
    assert read_depth(out / f"depth/3.{depth_format}") == pytest.approx(slanted_floor(), abs=0.0011)
    assert read_json(out / "source.json")["depth_unit"] == name
    with pytest.raises(UserError, match="different settings"):
        load(monkeypatch, "--input", folder, "--out", out, "--depth-unit", "mm", "--depth-format", depth_format)


def test_loader_output_is_not_checked(tmp_path):
    write_png(tmp_path / "depth/1.png", encode("mm", 0.2))
    with pytest.raises(UserError, match="0.20 m"):
        check_depth_unit(tmp_path / "depth", [tmp_path / "depth/1.png"])
    write_json(tmp_path / "source.json", {"what": "RGB-D recording"})
    check_depth_unit(tmp_path / "depth", [tmp_path / "depth/1.png"])


def test_manifest_rows_store_the_unit(tmp_path, monkeypatch):
    write_png(tmp_path / "rgb/1.png", np.zeros((*SIZE, 3), np.uint8))
    write_png(tmp_path / "depth/1.png", encode("tum"))

    def build(*flags: str) -> None:
        paths = ("--rgb-dir", "rgb", "--depth-dir", "depth", "--output", "manifest.jsonl", "--allow-missing-teachers")
        monkeypatch.setattr(sys, "argv", ["build_manifest.py", *paths, *flags])
        build_manifest.main()

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--depth-unit tum: 1.90 m"):
        build()
    build("--depth-unit", "tum")
    (row,) = read_manifest("manifest.jsonl")
    assert frames.read_frame(row).depth == pytest.approx(slanted_floor(), abs=0.001)
    as_tum = fingerprint([row])
    build("--depth-unit", "mm")
    (row,) = read_manifest("manifest.jsonl")
    assert np.median(frames.read_frame(row).depth) == pytest.approx(9.5, abs=0.1)
    assert fingerprint([row]) != as_tum
    line = Path("manifest.jsonl").read_text().replace('"depth_unit": "mm"', '"depth_unit": "inch"')
    Path("manifest.jsonl").write_text(line)
    with pytest.raises(UserError, match="line 1: depth_unit 'inch'"):
        read_manifest("manifest.jsonl")


RATIOS = [(0.1, "d405"), (0.125, "sunrgbd"), (0.2, "tum"), (0.25, "l515"), (10, "cm")]


@pytest.mark.parametrize(("ratio", "name"), RATIOS)
def test_gate_suggests_the_unit_of_a_reference_read_as_millimetres(ratio, name):
    compared = verify_teacher_output.compare(slanted_floor() * np.float32(ratio), slanted_floor(), SIZE)
    compared = {"1": compared}
    problems = verify_teacher_output.find_problems(compared, 504 / 640)
    assert any(f"--depth-unit {name}" in problem for problem in problems), problems


def test_gate_reads_the_reference_in_its_unit(tmp_path):
    write_npy(tmp_path / "2.npy", slanted_floor())
    write_png(tmp_path / "1.png", encode("tum"))
    tum = units.UNITS["tum"]
    for stem in ("1", "2"):
        assert verify_teacher_output.read_reference(tmp_path, stem, SIZE, tum) == pytest.approx(
            slanted_floor(), abs=1e-3
        )
