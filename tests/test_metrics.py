"""Metrics against formulas in NumPy, on maps with holes."""

import math

import numpy as np
import pytest
import torch
from small_run import random_depth

from config import IGNORE
from evaluation.metrics import ConfusionMatrix, DepthMetrics
from evaluation.pixels import eigen_crop

NEAREST, FARTHEST = 0.1, 10.0
POOLED = ("rmse", "rmse_log", "silog", "mae", "abs_rel", "sq_rel", "log10", "delta1", "delta2", "delta3")


def numpy_metrics(predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The formulas of Eigen et al. over all valid pixels; a missing prediction is the farther end of the range."""
    p, r = predicted.astype(np.float64), reference.astype(np.float64)
    scored = (r >= NEAREST) & (r <= FARTHEST)
    p, r = p[scored], r[scored]
    farther = np.where(r - NEAREST > FARTHEST - r, NEAREST, FARTHEST)
    p = np.clip(np.where(np.nan_to_num(p) > 0, p, farther), NEAREST, FARTHEST)
    error, log_error = p - r, np.log(p) - np.log(r)
    ratio = np.maximum(p / r, r / p)
    return {
        "rmse": np.sqrt(np.mean(error**2)),
        "rmse_log": np.sqrt(np.mean(log_error**2)),
        "silog": 100 * np.std(log_error),
        "mae": np.mean(np.abs(error)),
        "abs_rel": np.mean(np.abs(error) / r),
        "sq_rel": np.mean(error**2 / r),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(r))),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
    }


def compute_metrics(predicted, reference) -> dict[str, float]:
    metrics = DepthMetrics(NEAREST, FARTHEST)
    for p, r in zip(predicted, reference, strict=True):
        metrics.update(*map(torch.from_numpy, (p, r, (r >= NEAREST) & (r <= FARTHEST))))
    return metrics.compute()


def maps_with_holes() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four images of different sizes and errors, with holes in both maps and values outside the range."""
    rng = np.random.default_rng(1)
    shapes = [(20, 30), (7, 5), (40, 40), (3, 90)]
    reference = [random_depth(rng, shape, holes) for shape, holes in zip(shapes, (0.1, 0.8, 0.3, 0.0), strict=True)]
    predicted = [
        (r * np.exp(rng.normal(0, spread, r.shape))).astype(np.float32)
        for r, spread in zip(reference, (0.05, 0.6, 0.2, 0.1), strict=True)
    ]
    for p, r in zip(predicted, reference, strict=True):
        p[r == 0] = 2.0
        p[rng.random(p.shape) < 0.1] = rng.choice([0.0, np.nan])
        r[rng.random(r.shape) < 0.1] = 12.0
        r[rng.random(r.shape) < 0.1] = 0.05
    return predicted, reference


def test_pooled_metrics_equal_numpy_over_all_pixels():
    predicted, reference = maps_with_holes()
    expected = numpy_metrics(*(np.concatenate([m.ravel() for m in maps]) for maps in (predicted, reference)))
    results = compute_metrics(predicted, reference)
    assert {name: results[name] for name in POOLED} == pytest.approx(expected)


def test_image_metrics_are_averaged_over_images():
    predicted, reference = maps_with_holes()
    images = [numpy_metrics(p, r) for p, r in zip(predicted, reference, strict=True)]
    expected = {f"image_{name}": np.mean([image[name] for image in images]) for name in POOLED}
    results = compute_metrics(predicted, reference)
    assert {name: results[name] for name in expected} == pytest.approx(expected)


def test_pooled_and_image_rmse_differ_for_uneven_images():
    reference = [np.full((1, 9), 2.0, np.float32), np.full((1, 1), 2.0, np.float32)]
    predicted = [np.full((1, 9), 2.0, np.float32), np.full((1, 1), 5.0, np.float32)]
    results = compute_metrics(predicted, reference)
    assert results["rmse"] == pytest.approx(math.sqrt(9 / 10))
    assert results["image_rmse"] == pytest.approx(1.5)


def test_there_is_no_scale_alignment():
    reference = random_depth(np.random.default_rng(2), (30, 30)) / 2
    results = compute_metrics([reference * 1.3], [reference])
    assert results["abs_rel"] == pytest.approx(0.3, abs=1e-6)
    assert results["delta1"] == 0
    assert results["median_ratio"] == pytest.approx(1.3)
    assert results["silog"] == pytest.approx(0, abs=1e-3), "SILog alone ignores scale"


def test_median_ratio_is_the_median_of_image_medians():
    reference = [np.full((3, 3), 2.0, np.float32)] * 3
    predicted = [np.full((3, 3), value, np.float32) for value in (1.0, 2.4, 6.0)]
    predicted[1][0, :] = 9.0
    assert compute_metrics(predicted, reference)["median_ratio"] == pytest.approx(1.2)


def test_predictions_are_clipped_to_the_range():
    assert compute_metrics([np.full((2, 2), 40.0, np.float32)], [np.full((2, 2), 9.0, np.float32)])[
        "mae"
    ] == pytest.approx(1)


def test_metrics_without_valid_pixels_are_nan():
    assert all(math.isnan(value) for value in compute_metrics([], []).values())
    no_valid_pixels = compute_metrics([np.ones((2, 2), np.float32)], [np.zeros((2, 2), np.float32)])
    assert (
        no_valid_pixels.keys() == compute_metrics([np.ones((2, 2), np.float32)], [np.ones((2, 2), np.float32)]).keys()
    )
    assert all(math.isnan(value) for value in no_valid_pixels.values())


def test_eigen_crop():
    assert eigen_crop(480, 640) == (slice(45, 471), slice(41, 601))
    rows, columns = eigen_crop(240, 320)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (22, 236, 20, 300)


def update_where_labelled(confusion: ConfusionMatrix, predicted: torch.Tensor, reference: torch.Tensor) -> None:
    """Add all pixels that have a reference class."""
    confusion.update(predicted, reference, reference != IGNORE)


def test_missing_predictions_are_errors():
    """A student must not improve by predicting less."""
    reference = np.full((10, 10), 3.0, np.float32)
    missing = reference.copy()
    missing[:9] = np.nan
    results = compute_metrics([missing], [reference])
    assert results["rmse"] == pytest.approx(math.sqrt(0.9 * 7**2)) and results["delta3"] == pytest.approx(0.1)
    near = compute_metrics([np.zeros((1, 1), np.float32)], [np.full((1, 1), 8.0, np.float32)])
    assert near["mae"] == pytest.approx(8 - NEAREST), "the minimum of the range is farther away"
    narrow = DepthMetrics(1.0, 1.1)
    narrow.update(torch.tensor([[math.nan]]), torch.tensor([[1.05]]), torch.tensor([[True]]))
    assert narrow.compute()["delta1"] == 0, "however narrow the range"

    confusion = ConfusionMatrix(2)
    update_where_labelled(confusion, torch.tensor([0, 255, 255, 7]), torch.tensor([0, 0, 1, 1]))
    assert confusion.compute()["iou"] == [0.5, 0.0] and confusion.compute()["pixel_accuracy"] == 0.25


def test_iou_of_three_classes_computed_by_hand():
    confusion = ConfusionMatrix(4)
    # TP, FN, FP: class 0: 2, 1, 1; class 1: 1, 1, 2; class 2: 1, 1, 0; class 3 is absent
    update_where_labelled(confusion, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    update_where_labelled(confusion, torch.tensor([[0, 1], [2, 2]]), torch.tensor([[1, 2], [2, 255]]))
    results = confusion.compute()
    assert results["iou"][:3] == pytest.approx([2 / 4, 1 / 4, 1 / 2])
    assert math.isnan(results["iou"][3])
    assert results["miou"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 2) / 3)
    assert results["pixel_accuracy"] == pytest.approx(4 / 7)


def test_miou_is_computed_over_the_whole_set_not_averaged_over_batches():
    whole, batches = ConfusionMatrix(3), []
    rng = torch.Generator().manual_seed(0)
    for classes in (1, 2, 3):
        predicted, reference = torch.randint(classes, (2, 40), generator=rng)
        update_where_labelled(whole, predicted, reference)
        batches.append(ConfusionMatrix(3))
        update_where_labelled(batches[-1], predicted, reference)
    assert torch.equal(whole.counts, sum(batch.counts for batch in batches))
    true_positives, counts = whole.counts.diag().double(), whole.counts[:, :3].double()
    assert whole.compute()["miou"] == pytest.approx(
        (true_positives / (counts.sum(0) + counts.sum(1) - true_positives)).mean().item()
    )
    assert whole.compute()["miou"] != pytest.approx(np.mean([batch.compute()["miou"] for batch in batches]), abs=0.02)


def test_class_that_is_only_predicted_has_zero_iou():
    confusion = ConfusionMatrix(3)
    update_where_labelled(confusion, torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert confusion.compute()["iou"][:2] == [0.5, 0.0]
    assert confusion.compute()["miou"] == 0.25
