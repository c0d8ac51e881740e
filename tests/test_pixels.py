"""Which pixels count, in Table IV, in validation and in what Table III is scored on: the same ones."""

import numpy as np
import pytest
import torch
from small_run import SIZE

from config import NYU_INTRINSICS, Intrinsics, Recipe
from dataset.cache import PackedCache
from dataset.files import write_npy, write_png
from dataset.manifest import Row
from evaluation.comparison import compare
from evaluation.held_out import evaluation_frames
from evaluation.inference import make_predictor
from evaluation.pixels import EIGEN_CROP, class_mask, depth_mask, is_nyu
from trainer.distributed import Processes
from trainer.feed import PackedFrames
from trainer.validation import validate

RECIPE = Recipe()
CPU = torch.device("cpu")
CAMERA = Intrinsics(520.0, 520.0, 319.5, 239.5, 640, 480)
WIDE = Intrinsics(750.0, 750.0, 639.5, 359.5, 1280, 720)


class ConstantStudent(torch.nn.Module):
    """A student that predicts 3 m and class 1 everywhere, except for a fraction of missing rows at the top."""

    def __init__(self, missing: float = 0.0):
        super().__init__()
        self.missing = missing

    def forward(self, rgb):
        depth = torch.full_like(rgb[:, :1], 3.0)
        depth[:, :, : round(self.missing * rgb.shape[2])] = torch.nan
        seg = torch.zeros(len(rgb), 6, *rgb.shape[2:])
        seg[:, 1] = 1
        return depth, seg


def write_row(folder, depth, camera, confidence=None, teacher=None, **fields) -> Row:
    """Write a grey frame; depth is in metres of the reference camera."""
    scale = camera.cropped(*network_crop(camera)).resized(320, 240).focal / RECIPE.reference_focal
    maps = {"depth": depth * np.float32(scale), "confidence": confidence}
    maps["da3_depth"] = None if teacher is None else teacher * np.float32(scale)
    maps["sam2_seg"] = np.ones(depth.shape, np.uint8)
    write_png(folder / "rgb.png", np.full((*depth.shape, 3), 100, np.uint8))
    paths = {}
    for name, array in maps.items():
        if array is not None:
            write_npy(folder / f"{name}.npy", array)
            paths[name] = folder / f"{name}.npy"
    return Row("frame", folder / "rgb.png", split="test", intrinsics=camera, **paths, **fields)


def network_crop(camera: Intrinsics) -> tuple[int, int, int, int]:
    width = min(camera.width, camera.height * 4 // 3)
    return (camera.width - width) // 2, 0, width, camera.height


def rmse_in_all_stages(row: Row, folder, student: torch.nn.Module) -> tuple[float, float, float]:
    """RMSE of a student in Table IV, in validation and on the frames of Table III, at the reference camera."""
    scale = row.intrinsics.cropped(*network_crop(row.intrinsics)).resized(320, 240).focal / RECIPE.reference_focal
    table = compare(make_predictor(student, RECIPE, CPU), [row], {}, RECIPE, []).rows["student vs reference"]["depth"]
    frames = PackedFrames(PackedCache([row], folder / ".cache", (320, 240), RECIPE.reference_focal), workers=1)
    validated, _ = validate(student, frames, RECIPE, CPU, Processes())
    frames_npz = evaluation_frames([row], RECIPE)
    reference = frames_npz["depth"][frames_npz["depth"] > 0] / scale
    prediction = student(torch.zeros(1, 3, 240, 320))[0][0, 0].numpy()[frames_npz["depth"][0] > 0]
    prediction = np.where(np.isnan(prediction), 10 / scale, prediction)
    return table["rmse"] / scale, validated["rmse"] / scale, float(np.sqrt(((prediction - reference) ** 2).mean()))


def test_depth_of_low_confidence_is_masked_in_all_stages(tmp_path):
    """1 m at confidence 0 on the left half, 3 m elsewhere, and a student that predicts 3 m."""
    depth, confidence = np.full((480, 640), 3.0, np.float32), np.ones((480, 640), np.float32)
    depth[:, :320], confidence[:, :320] = 1, 0
    row = write_row(tmp_path, depth, CAMERA, confidence)
    assert rmse_in_all_stages(row, tmp_path, ConstantStudent()) == pytest.approx((0, 0, 0), abs=1e-3)


def test_all_rows_cover_the_student_window(tmp_path):
    """A 16:9 frame with other values outside the window that the student sees."""
    depth = np.full((720, 1280), 3.0, np.float32)
    depth[:, :160] = depth[:, -160:] = 9
    row = write_row(tmp_path, depth, WIDE, teacher=depth)
    results = compare(
        make_predictor(ConstantStudent(), RECIPE, CPU), [row], {"mean_depth": 3.0, "majority_class": 1}, RECIPE, []
    ).rows
    for name in ("student vs reference", "baseline vs reference", "student vs teacher", "baseline vs teacher"):
        assert results[name]["depth"]["rmse"] == pytest.approx(0, abs=1e-5), name
        assert results[name]["depth"]["coverage"] == 1
    assert results["student vs teacher"]["seg"]["coverage"] == results["baseline vs teacher"]["seg"]["coverage"] == 1
    assert rmse_in_all_stages(row, tmp_path, ConstantStudent()) == pytest.approx((0, 0, 0), abs=1e-3)


def test_missing_predictions_are_errors_in_all_stages(tmp_path):
    """A missing prediction on nine tenths of the rows counts as 10 m."""
    row = write_row(tmp_path, np.full((480, 640), 3.0, np.float32), CAMERA)
    scale = CAMERA.resized(320, 240).focal / RECIPE.reference_focal
    expected = np.sqrt(0.9) * (10 / scale - 3)
    assert rmse_in_all_stages(row, tmp_path, ConstantStudent(0.9)) == pytest.approx([expected] * 3, rel=2e-3)
    results = compare(make_predictor(ConstantStudent(0.9), RECIPE, CPU), [row], {}, RECIPE, []).rows
    depth_results = results["student vs reference"]["depth"]
    assert depth_results["delta1"] == pytest.approx(0.1, abs=0.01) and depth_results["coverage"] == pytest.approx(
        0.1, abs=0.01
    )


def test_teacher_holes_are_skipped_only_in_its_own_row(tmp_path):
    depth = np.full((480, 640), 3.0, np.float32)
    teacher = depth.copy()
    teacher[:240] = 0
    row = write_row(tmp_path, depth, CAMERA, teacher=teacher)
    results = compare(make_predictor(ConstantStudent(), RECIPE, CPU), [row], {}, RECIPE, []).rows
    assert results["teacher vs reference"]["depth"]["rmse"] == 0
    assert results["teacher vs reference"]["depth"]["coverage"] == 0.5
    assert results["student vs reference"]["depth"]["coverage"] == 1


def test_teacher_scale_applies_wherever_its_depth_is_read(tmp_path):
    """A student that reproduces its targets has no error against the teacher."""
    depth = np.full((480, 640), 3.0, np.float32)
    row = write_row(tmp_path, depth, CAMERA, teacher=depth * 1.25, da3_scale=0.8)
    results = compare(make_predictor(ConstantStudent(), RECIPE, CPU), [row], {}, RECIPE, []).rows
    assert results["student vs teacher"]["depth"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert results["teacher vs reference"]["depth"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    frames = PackedFrames(PackedCache([row], tmp_path / ".cache", (320, 240), RECIPE.reference_focal), workers=1)
    batch = frames.batch([0], CPU)
    assert torch.equal(batch.da3_depth, batch.depth)


def test_nyu_has_rows_against_its_filled_depth(tmp_path):
    depth, confidence = np.full((480, 640), 3.0, np.float32), np.ones((480, 640), np.float32)
    depth[:, :320], confidence[:, :320] = 1, 0
    row = write_row(tmp_path, depth, NYU_INTRINSICS, confidence)
    results = compare(make_predictor(ConstantStudent(), RECIPE, CPU), [row], {}, RECIPE, []).rows
    assert results["student vs reference"]["depth"]["rmse"] == pytest.approx(0, abs=1e-6)
    left, right = (round(fraction * 640) for fraction in EIGEN_CROP[2:])
    expected = 2 * np.sqrt((320 - left) / (right - left))
    assert results["student vs filled reference"]["depth"]["rmse"] == pytest.approx(expected)


def test_numpy_and_torch_agree_at_any_size():
    rng = np.random.default_rng(0)
    for camera in (None, NYU_INTRINSICS.resized(*SIZE), CAMERA.resized(*SIZE)):
        depth = rng.uniform(0, 12, SIZE[::-1]).astype(np.float32)
        confidence = rng.random(depth.shape).astype(np.float32)
        mask = depth_mask(depth, confidence, RECIPE, camera)
        tensors = depth_mask(torch.from_numpy(depth), torch.from_numpy(confidence), RECIPE, camera)
        np.testing.assert_array_equal(mask, tensors.numpy())
        assert mask[0, 0] == 0 or not is_nyu(camera)
        assert not mask[(depth < 0.1) | (depth > 10) | (confidence < 0.5)].any() and mask.any()
    classes = rng.integers(0, 2, (90, 160)) * 255
    assert class_mask(classes, RECIPE).sum() == (classes[:, 20:140] == 0).sum()
