"""Slices of Table IV: they add up, and each pixel is where it belongs."""

import csv
import json

import numpy as np
import pytest
import torch
from box_room import CAMERA, FURNITURE, render
from small_run import SIZE, random_depth

from config import CLASS_NAMES, IGNORE, NYU_INTRINSICS, Recipe
from dataset.files import write_npy, write_png
from dataset.manifest import Row
from evaluation.comparison import Comparison, Maps, Reference, Table, compare
from evaluation.intervals import find_units
from evaluation.pixels import class_mask, depth_mask
from evaluation.report import errors_to_markdown, locate_errors, write_frames
from evaluation.slices import GROUPS, SLICES, SUMS, SliceSums, depth_edges, slice_cells, slice_results

RECIPE = Recipe()
H, W = 60, 80


def random_frame(rng: np.random.Generator) -> tuple[Maps, Reference]:
    """A prediction and a reference with holes, from 0.1 to 12 m, with ignored and missing classes."""
    depth = np.where(rng.random((H, W)) < 0.5, random_depth(rng, (H, W)), rng.uniform(0.05, 12, (H, W)))
    depth, confidence = depth.astype(np.float32), rng.random((H, W)).astype(np.float32)
    labels = rng.choice([*range(len(CLASS_NAMES)), IGNORE], (H, W)).astype(np.uint8)
    cells = torch.from_numpy(slice_cells(depth, confidence, labels, RECIPE))
    reference = Reference(depth, labels, depth_mask(depth, confidence, RECIPE, None), class_mask(labels, RECIPE), cells)
    seg = rng.choice([*range(len(CLASS_NAMES)), IGNORE], (H, W)).astype(np.uint8)
    return Maps(random_depth(rng, (H, W)), seg), reference


@pytest.mark.parametrize("seed", range(20))
def test_slices_of_each_group_add_up_to_the_whole_and_to_the_row(seed):
    rng = np.random.default_rng(seed)
    frames = int(rng.integers(1, 5))
    comparison = Comparison(RECIPE, mask_holes=bool(rng.integers(2)), slices=SliceSums(frames))
    for frame in range(frames):
        comparison.update(*random_frame(rng), frame)
    sums, row = comparison.slices, comparison.results()
    for group, names in GROUPS.items():
        members = [SLICES.index((group, name)) for name in names]
        np.testing.assert_allclose(sums.depth[:, members].sum(axis=1), sums.depth[:, 0], rtol=1e-12)
        np.testing.assert_array_equal(sums.confusion[:, members].sum(axis=1), sums.confusion[:, 0])
    whole = sums.depth[:, 0].sum(axis=0)
    np.testing.assert_allclose(whole[SUMS.index("count")], np.sum([image[0] for image in comparison.depth.sums]))
    np.testing.assert_array_equal(sums.confusion[:, 0].sum(axis=0), comparison.seg.counts.numpy())
    results = slice_results(sums, find_units([Row(str(n), None, None) for n in range(frames)]))["all"]["all"]
    for name in ("rmse", "abs_rel", "delta1"):
        assert results[name] == pytest.approx(row["depth"][name], rel=1e-12)
    assert results["miou"] == pytest.approx(row["seg"]["miou"]) and results["pixels"] == whole[0]


def test_each_pixel_is_in_the_slice_of_its_depth_class_and_reading():
    depth = np.array([[0, 0.05, 0.1, 0.49, 0.5, 0.99, 1, 1.5, 2.9, 3, 6, 10, 10.1]], np.float32)
    labels = np.arange(depth.size, dtype=np.uint8)[None] % 6
    labels[0, -1] = IGNORE
    confidence = np.where(np.arange(depth.size) % 2, 1.0, 0.4).astype(np.float32)[None]
    cells = slice_cells(depth, confidence, labels, RECIPE)
    ranges, classes, _, readings = np.unravel_index(cells.astype(int), [len(names) for names in GROUPS.values()])
    names = [GROUPS["range"][index].removesuffix(" m") for index in ranges[0]]
    assert names[:2] == ["no depth"] * 2 and names[-1] == "no depth"
    assert names[2:-1] == ["0.1-0.5", "0.1-0.5", "0.5-1", "0.5-1", "1-1.5", "1.5-3", "1.5-3", "3-6", "6-10", "6-10"]
    np.testing.assert_array_equal(classes, np.minimum(labels, 6))
    np.testing.assert_array_equal(readings, (confidence >= 0.5) & (depth > 0))


def test_edges_are_at_the_cupboard_and_not_on_the_floor():
    """The floor, seen at a grazing angle, is no edge; the cupboard's outline is, up to a hundredth of the height."""
    depth, _, labels = render(CAMERA, cupboard=True)
    edges, inside = depth_edges(depth), (labels == FURNITURE).astype(np.uint8)
    assert 0.005 < edges.mean() < 0.1
    assert not edges[-40:, :300].any(), "floor left of the cupboard"
    rows = np.flatnonzero(inside[:, 400])
    assert edges[rows[0] - 4 : rows[0] + 4, 400].all() and not edges[rows[0] + 8, 400]


def test_floor_seen_from_a_low_camera_has_no_edges():
    v = np.arange(1, 240) / 519.0
    depth = np.minimum(0.25 / np.maximum(v, 0.025), 10).astype(np.float32)[:, None].repeat(320, axis=1)
    assert not depth_edges(depth).any()


def test_edge_is_at_the_surface_in_front_of_a_shadow():
    """A near surface beside a far one, with a hole between them, as a structured-light sensor leaves it."""
    depth = np.full((240, 320), 3.0, np.float32)
    depth[:, :100], depth[:, 100:106] = 1.0, 0
    edges = depth_edges(depth)
    assert edges[:, 97:100].all() and not edges[:, :96].any() and not edges[:, 110:].any()


def constant(depth: float):
    def predict(rgb, camera):
        return np.full(rgb.shape[:2], depth, np.float32), np.ones(rgb.shape[:2], np.uint8)

    return predict


def write_rows(folder, depths, recording=None, camera=None, labels=None, confidence=None) -> list[Row]:
    rows = []
    for index, depth in enumerate(depths):
        write_npy(folder / f"depth/{index}.npy", depth)
        write_png(folder / f"rgb/{index}.png", np.full((*depth.shape, 3), 100, np.uint8))
        row = Row(f"a/{index}", folder / f"rgb/{index}.png", folder / f"depth/{index}.npy", intrinsics=camera)
        row.recording = None if recording is None else recording(index)
        for name, value in (("labels", labels), ("confidence", confidence)):
            if value is not None:
                write_npy(folder / f"{name}/{index}.npy", value)
                setattr(row, name, folder / f"{name}/{index}.npy")
        rows.append(row)
    return rows


def evaluate_constant(rows, depth: float, other: float | None = None) -> Table:
    return compare(constant(depth), rows, {}, RECIPE, [], None if other is None else constant(other))


def test_slices_show_what_the_mean_hides(tmp_path):
    """2 m is right where the reference is 2 m and wrong at 0.4 m, and is 5 times too far there."""
    depth = np.full((120, 160), 2.0, np.float32)
    depth[90:] = 0.4
    rows = write_rows(tmp_path, [depth] * 2)
    content = locate_errors(rows, evaluate_constant(rows, 2.0).slices)
    ranges = content["slices"]["student vs reference"]["range"]
    assert ranges["0.1-0.5 m"]["delta1"] == 0 and ranges["0.1-0.5 m"]["abs_rel"] == pytest.approx(4)
    assert ranges["1.5-3 m"]["delta1"] == 1 and set(ranges) == {"0.1-0.5 m", "1.5-3 m"}
    text = "\n".join(errors_to_markdown(content))
    assert "| 0.1-0.5 m" in text and "No intervals: they need 5 units" in text and "Worst frames by RMSE: a/0" in text


def test_alignment_removes_the_scale_alone(tmp_path):
    """A prediction 1.5 times too far everywhere is perfect once aligned; a clipped or missing one is not."""
    depth = np.linspace(1, 3, 160, dtype=np.float32)[None].repeat(120, axis=0)
    rows = write_rows(tmp_path, [depth])

    def mostly_missing(rgb, camera):
        predicted = depth * np.float32(1.5)
        predicted[:80] = np.nan
        return predicted, np.ones(depth.shape, np.uint8)

    for predict, right in ((lambda rgb, camera: (depth * np.float32(1.5), None), 1.0), (mostly_missing, 1 / 3)):
        sums = compare(predict, rows, {}, RECIPE, []).slices["student vs reference"]
        results = slice_results(sums, find_units(rows))["all"]["all"]
        assert results["delta1"] == 0 and results["aligned_delta1"] == pytest.approx(right)
        assert results["abs_rel"] >= 0.5 - 1e-6 and (results["aligned_abs_rel"] < 1e-6) == (right == 1)


def test_filled_reference_tells_pixels_with_and_without_a_reading(tmp_path):
    """NYU's depth is filled: 2 m is right with a reading, and half the truth without."""
    confidence = np.ones((480, 640), np.float32)
    confidence[:, 320:] = 0
    depth = np.where(confidence > 0, 2, 4).astype(np.float32)
    rows = write_rows(tmp_path, [depth], camera=NYU_INTRINSICS, confidence=confidence)
    content = locate_errors(rows, evaluate_constant(rows, 2.0).slices)
    sensor = content["slices"]["student vs filled reference"]["sensor"]
    assert sensor["sensor reading"]["abs_rel"] == 0
    assert sensor["no sensor reading"]["abs_rel"] == pytest.approx(0.5)
    assert "| no sensor reading (filled)" in errors_to_markdown(content)[0]


def test_csv_has_a_line_a_frame(tmp_path):
    depths = [np.full((120, 160), depth, np.float32) for depth in (1.0, 2.0, 0.0)]
    rows = write_rows(tmp_path, depths, recording=lambda index: "room, with a comma")
    table = evaluate_constant(rows, 2.0, other=1.0)
    write_frames(tmp_path / "frames.csv", rows, table.slices)
    with open(tmp_path / "frames.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["stem"] for line in lines] == ["a/0", "a/1", "a/2"] and lines[0]["recording"] == "room, with a comma"
    assert [line["student_rmse"] for line in lines] == ["1", "0", ""]
    assert [line["other_student_rmse"] for line in lines] == ["0", "1", ""]
    assert lines[0]["student_median_ratio"] == "2" and lines[2]["student_pixels"] == "0"
    worst = locate_errors(rows, table.slices)["worst_frames"]
    assert [frame["stem"] for frame in worst] == ["a/0", "a/1"]
    json.dumps(worst)


def test_box_room_slices_have_their_classes(tmp_path):
    depth, sensor, labels = render(CAMERA.resized(*SIZE), cupboard=True)
    rows = write_rows(tmp_path, [depth], labels=labels, confidence=(sensor > 0).astype(np.float32))
    slices = locate_errors(rows, evaluate_constant(rows, 2.0).slices)["slices"]["student vs reference"]
    assert set(slices["class"]) == {name for index, name in enumerate(CLASS_NAMES) if (labels == index).any()}
    assert slices["class"]["furniture"]["pixels"] == (labels == FURNITURE).sum()
