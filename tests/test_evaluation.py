"""Table IV on box rooms whose teachers are the reference."""

import json
import math

from cli import UserError

import cv2
import numpy as np
import pytest
import torch
from box_room import CAMERA, FLOOR, FURNITURE, WALL, render
from small_run import SIZE, call, copy_data

import eval_distillation
import export_trt
import predict
from config import NYU_INTRINSICS, Intrinsics, Recipe
from dataset.cache import PackedCache
from dataset.files import read_image, read_json, write_npy, write_png
from dataset.frames import read_frame, to_network_map
from dataset.manifest import Row, read_manifest
from evaluation import report
from evaluation.comparison import ROWS, Comparison, Maps, Reference, compare
from evaluation.inference import focal_scale, make_predictor
from evaluation.pixels import class_mask, depth_mask
from models.student import Student
from trainer.checkpoint import build_student, load_student, save_checkpoint
from trainer.feed import PackedFrames

CPU = torch.device("cpu")
RECIPE = Recipe()


def evaluate(manifest, trained, output, *flags) -> dict:
    checkpoint = trained / "checkpoints/best.pt"
    flags = ("--checkpoint", checkpoint, "--manifest", manifest, "--output-dir", output, "--device", "cpu", *flags)
    assert call(eval_distillation.main, *flags) == 0
    return json.loads((output / "table_4.json").read_text())


@pytest.fixture(scope="module")
def output(manifest, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "table_4"
    evaluate(manifest, trained, folder)
    return folder


@pytest.fixture(scope="module")
def table(output) -> dict:
    return json.loads((output / "table_4.json").read_text())["rows"]


def test_each_row_compares_its_own_prediction_and_reference(table, manifest):
    """The depth teacher predicts 1.1 times the reference and has a hole; the class teacher labels cupboards as wall."""
    depth, seg = table["teacher vs reference"]["depth"], table["teacher vs reference"]["seg"]
    assert depth["abs_rel"] == pytest.approx(0.1, rel=1e-5) and depth["median_ratio"] == pytest.approx(1.1)
    assert depth["delta1"] == 1 and depth["coverage"] < 1 and seg["coverage"] == 1
    assert seg["iou"][FURNITURE] == 0 and seg["iou"][WALL] < 1 and seg["iou"][FLOOR] == 1
    ratios = [table[f"student vs {reference}"]["depth"]["median_ratio"] for reference in ("reference", "teacher")]
    assert ratios[0] / ratios[1] == pytest.approx(1.1, rel=0.1)
    assert table["student vs teacher"]["seg"] != table["student vs reference"]["seg"]


def test_title_says_reference_teachers(manifest, output, tmp_path):
    content = json.loads((output / "table_4.json").read_text())
    assert content["title"] == "Table IV: distillation, 2 frames of split 'test'; REFERENCE TEACHERS, not learned ones"
    assert content["title"] in (output / "table_4.md").read_text()
    rows = read_manifest(manifest)
    for row in rows:
        row.made_by = {"da3_depth": {"backend": "da3", "model": "DA3METRIC-LARGE"}}
    assert "REFERENCE" not in report.table_title(rows, "val")


def test_json_and_markdown_agree(output, table):
    lines = (output / "table_4.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    trained_recipe = 0
    for row in cells:
        if row[0] not in table:
            continue
        depth, seg = table[row[0]]["depth"], table[row[0]]["seg"]
        if len(row) == 1 + len(report.DEPTH_COLUMNS):
            values = [depth[name] for name in report.DEPTH_COLUMNS]
        else:
            values = [seg["miou"], seg["pixel_accuracy"], *seg["iou"], seg["coverage"]]
        values = [float("nan") if value is None else value for value in values]  # JSON has no NaN
        assert [float(cell) for cell in row[1:]] == pytest.approx(values, abs=0.00051, nan_ok=True)
        trained_recipe += 1
    assert trained_recipe == 2 * len(ROWS), "each row is in both tables"


def test_pictures_are_drawn(output):
    assert sorted(path.name for path in output.glob("*.png")) == ["frame_0.png", "frame_1.png"]
    assert read_image(output / "frame_0.png").std() > 10


def test_baselines_are_constant_predictions(manifest, trained, table):
    """The training data's mean depth, at the test frames' focal length, and its most frequent class."""
    rows = read_manifest(manifest)
    scale = CAMERA.resized(RECIPE.width, RECIPE.height).focal / RECIPE.reference_focal
    frames = [read_frame(row) for row in rows[:4]]
    targets = [np.where(frame.confidence >= 0.5, frame.depth, frame.da3_depth) for frame in frames]  # 0 = invalid
    depth = np.concatenate([target[target > 0] for target in targets])
    classes = np.concatenate([read_frame(row).sam2_seg.ravel() for row in rows[:4]])
    constant, majority = depth.mean(dtype=np.float64) / scale, np.bincount(classes).argmax()
    metadata = load_student(trained / "checkpoints/best.pt")[2]["notes"]
    assert metadata["mean_depth"] == pytest.approx(constant, rel=1e-3)
    assert metadata["majority_class"] == majority

    frames = [read_frame(row) for row in rows[5:]]
    reference = np.concatenate([frame.depth[frame.confidence >= 0.5] for frame in frames]).astype(np.float64)
    labels = np.concatenate([read_frame(row).labels.ravel() for row in rows[5:]])
    results = table["baseline vs reference"]
    error = np.abs(metadata["mean_depth"] * scale - reference)
    assert results["depth"]["mae"] == pytest.approx(error.mean(), rel=1e-5)
    assert results["depth"]["rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=1e-5)
    assert results["depth"]["abs_rel"] == pytest.approx((error / reference).mean(), rel=1e-5)
    assert results["seg"]["pixel_accuracy"] == pytest.approx((labels == majority).mean())
    assert results["seg"]["iou"][majority] == pytest.approx((labels == majority).mean())


def test_predictions_scale_with_the_focal_length_in_table_4(manifest, trained, tmp_path, table):
    """With 1.25 times the focal length in the manifest, predictions and baseline are 1.25 times as far."""
    manifest = copy_data(manifest, tmp_path / "data")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        entry["intrinsics"] = vars(CAMERA.resized(*SIZE).with_focal_scale(1.25))
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    far = evaluate(manifest, trained, tmp_path / "table")["rows"]
    for name in ("student vs reference", "baseline vs reference"):
        assert far[name]["depth"]["median_ratio"] == pytest.approx(1.25 * table[name]["depth"]["median_ratio"])
        assert far[name]["seg"]["iou"] == pytest.approx(table[name]["seg"]["iou"], nan_ok=True)


def test_predictions_scale_exactly_with_the_focal_length(manifest, trained):
    student = make_predictor(load_student(trained / "checkpoints/best.pt")[0], RECIPE, CPU)
    rgb = read_image(read_manifest(manifest)[0].rgb)
    reference = Intrinsics(*[RECIPE.reference_focal / 2] * 2, 80, 60, *SIZE)
    assert focal_scale(reference, RECIPE) == focal_scale(None, RECIPE) == 1
    assert focal_scale(reference.with_focal_scale(1.25), RECIPE) == 1.25
    near, seg = student(rgb, reference)
    far, same_seg = student(rgb, reference.with_focal_scale(1.25))
    np.testing.assert_allclose(far, near * 1.25, rtol=1e-6)
    np.testing.assert_array_equal(seg, same_seg)
    assert (near.shape, near.dtype, seg.shape, seg.dtype) == (rgb.shape[:2], np.float32, rgb.shape[:2], np.uint8)


def test_student_runs_at_the_size_of_its_recipe(manifest, tmp_path, monkeypatch):
    """In evaluation, prediction and export; at 320x240 its depth would have the scale of another lens."""
    recipe = Recipe(width=160, height=120, reference_focal=RECIPE.reference_focal / 2)
    student = build_student(recipe)
    content = {"model": {}, "ema": student.state_dict(), "step": 0, "notes": {}}
    save_checkpoint(tmp_path / "checkpoints/best.pt", recipe, content)
    sizes, forward = set(), Student.forward

    def forward_and_record(self, rgb):
        sizes.add(tuple(rgb.shape[2:]))
        return forward(self, rgb)

    monkeypatch.setattr(Student, "forward", forward_and_record)
    evaluate(manifest, tmp_path, tmp_path / "table")
    flags = ("--checkpoint", tmp_path / "checkpoints/best.pt", "--device", "cpu")
    camera = manifest.parent / "camera.json"
    images = ("--input", manifest.parent / "rgb", "--camera", camera, "--output-dir", tmp_path / "predictions")
    assert call(predict.main, *flags, *images) == 0
    assert sizes == {(120, 160)}
    monkeypatch.undo()
    out = ("--camera", camera, "--engine-dir", tmp_path / "engines", "--skip-trt", "--calibration-frames", 1)
    assert call(export_trt.main, *flags[:2], "--manifest", manifest, *out) == 0
    assert read_json(tmp_path / "engines/student.json")["input"]["shape"] == [1, 3, 120, 160]
    trained_recipe = load_student(tmp_path / "checkpoints/best.pt")[1]
    assert focal_scale(CAMERA.resized(160, 120), trained_recipe) == pytest.approx(focal_scale(CAMERA, RECIPE))


def test_depth_survives_conversion_to_the_reference_camera_and_back(manifest, tmp_path):
    """Converting depth to the reference camera and back restores it, to the millimetres of the packed cache."""
    row = read_manifest(manifest)[0]
    row.intrinsics = row.intrinsics.with_focal_scale(1.37)
    size = (RECIPE.width, RECIPE.height)
    batch = PackedFrames(PackedCache([row], tmp_path, size, RECIPE.reference_focal), workers=1).batch([0], CPU)
    at_reference = batch.depth * batch.focal_factor.view(-1, 1, 1, 1)
    back = at_reference[0, 0].numpy() * focal_scale(row.intrinsics, RECIPE)
    np.testing.assert_allclose(back, to_network_map(read_frame(row).depth, *size), atol=0.51e-3)


class ConstantStudent(torch.nn.Module):
    """A student that predicts 3 m and class 1 everywhere."""

    def forward(self, rgb):
        depth = torch.full_like(rgb[:, :1], 3.0)
        return depth, torch.nn.functional.one_hot(torch.ones(rgb[:, 0].shape, dtype=torch.long), 6).movedim(
            -1, 1
        ).float()


@pytest.mark.parametrize(("camera", "cropped"), [(NYU_INTRINSICS, True), (CAMERA, False)])
def test_eigen_crop_applies_to_nyu_only(tmp_path, camera, cropped):
    depth = np.full((480, 640), 3.0, np.float32) * np.float32(focal_scale(camera, RECIPE))
    inside = np.zeros(depth.shape, dtype=bool)
    inside[45:471, 41:601] = True
    depth[~inside] *= 2
    write_npy(tmp_path / "depth.npy", depth)
    write_png(tmp_path / "rgb.png", np.full((480, 640, 3), 100, np.uint8))
    row = Row("frame", tmp_path / "rgb.png", tmp_path / "depth.npy", split="test", intrinsics=camera)
    results = compare(make_predictor(ConstantStudent(), RECIPE, CPU), [row], {}, RECIPE, []).rows
    expected = 0 if cropped else (~inside).mean() / 2
    assert results["student vs reference"]["depth"]["abs_rel"] == pytest.approx(expected, abs=1e-6)
    assert results["student vs teacher"] == results["baseline vs reference"] == {}
    assert ("student vs filled reference" in results) == cropped


def test_rows_without_labels_or_teachers_are_empty(manifest, trained, tmp_path):
    manifest = copy_data(manifest, tmp_path / "data")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        for name in ("labels", "da3_depth", "made_by"):
            del entry[name]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    rows = evaluate(manifest, trained, tmp_path / "table", "--split", "val")["rows"]
    parts = {name: set(results) for name, results in rows.items()}
    assert parts["student vs reference"] == {"depth"}
    assert parts["student vs teacher"] == {"seg"}
    assert parts["teacher vs reference"] == set()


def test_perfect_prediction_gets_perfect_scores():
    """A box room compared with itself, with holes in the reference."""
    depth, sensor, labels = render(CAMERA.resized(*SIZE))
    comparison = Comparison(RECIPE)
    counts = (depth_mask(sensor, None, RECIPE, None), class_mask(labels, RECIPE))
    comparison.update(Maps(depth, labels), Reference(sensor, labels, *counts))
    results = comparison.results()
    assert results["depth"]["rmse"] == 0 and results["seg"]["miou"] == 1


def test_frames_without_depth_and_classes_are_an_error(manifest, trained, tmp_path):
    manifest = copy_data(manifest, tmp_path / "data")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        write_npy(manifest.parent / entry["depth"], np.full(SIZE[::-1], np.nan, np.float32))
        kept = {name: entry[name] for name in ("stem", "rgb", "depth", "split", "intrinsics")}
        entry.clear()
        entry.update(kept)
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(UserError, match="neither depth nor classes"):
        evaluate(manifest, trained, tmp_path / "table")
    assert not (tmp_path / "table/table_4.md").exists()


def test_data_limit_and_mixed_sizes(manifest, trained, tmp_path):
    manifest = copy_data(manifest, tmp_path / "data")
    row = read_manifest(manifest)[5]
    write_png(row.rgb, cv2.resize(read_image(row.rgb), (320, 240)))
    for path in (row.depth, row.confidence, row.da3_depth, row.sam2_seg):
        write_npy(path, cv2.resize(np.load(path), (320, 240), interpolation=cv2.INTER_NEAREST))
    write_png(row.labels, cv2.resize(cv2.imread(str(row.labels), -1), (320, 240), interpolation=cv2.INTER_NEAREST))
    content = evaluate(manifest, trained, tmp_path / "table", "--data-limit", 1)
    assert "1 frames" in content["title"]
    assert content["rows"]["teacher vs reference"]["depth"]["abs_rel"] == pytest.approx(0.1, rel=1e-5)
