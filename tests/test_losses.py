"""Losses against explicit formulas, and the outputs of the student."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from config import CLASS_NAMES, IGNORE, Recipe
from models.losses import (
    LossWeights,
    class_weights,
    depth_l1,
    dice_loss,
    distillation_loss,
    edge_aware_smoothness,
    hybrid_depth,
    loss_denominators,
    masked_mean,
    segmentation_cross_entropy,
)
from models.student import Student, bounded_depth
from trainer.checkpoint import build_student

CLASSES = len(CLASS_NAMES)
RANGE = Recipe().output_range
WEIGHTS = LossWeights(depth=1.0, segmentation=0.5, dice=0.25, smoothness=0.02)


def pixels(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_hybrid_depth_uses_the_confident_sensor_and_the_teacher_elsewhere():
    cases = {  # sensor, confidence, teacher, target
        "confident": (1.0, 1.0, 3.0, 1.0),
        "at the threshold": (1.0, 0.5, 3.0, 1.0),
        "below the threshold": (1.0, 0.49, 3.0, 3.0),
        "no sensor depth": (0.0, 1.0, 3.0, 3.0),
        "below the threshold, no teacher": (1.0, 0.2, 0.0, 0.0),
        "nothing": (0.0, 0.0, 0.0, 0.0),
        "sensor beyond the range": (65.0, 1.0, 3.0, 3.0),
        "sensor below the range": (0.03, 1.0, 0.0, 0.0),
        "teacher outside the range": (0.0, 0.0, 40.0, 0.0),
        "end of the range": (10.0, 1.0, 0.0, 10.0),
    }
    depth, confidence, teacher, expected = (pixels(*column) for column in zip(*cases.values(), strict=True))
    assert torch.equal(hybrid_depth(depth, confidence, teacher, 0.5, (0.1, 10.0)), expected)


def test_masked_mean_averages_over_valid_pixels_of_the_batch():
    values = torch.tensor([[1.0, 2.0, 30.0], [40.0, 50.0, 6.0]])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    assert masked_mean(values, mask).item() == 3.0


def test_depth_l1_is_in_metres_plus_log_metres_over_valid_pixels():
    expected = ((1.0 + math.log(2)) + (0.5 + math.log(1.1))) / 2
    predicted = pixels(2.0, 5.0, 9.0).requires_grad_()
    loss = depth_l1(predicted, pixels(1.0, 5.5, 0.0))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert predicted.grad.flatten().tolist() == pytest.approx([(1 + 1 / 2) / 2, -(1 + 1 / 5) / 2, 0])


def test_cross_entropy_equals_torch_on_valid_pixels():
    torch.manual_seed(0)
    logits, target = torch.randn(3, CLASSES, 7, 5), torch.randint(CLASSES, (3, 7, 5))
    target[torch.rand(target.shape) < 0.4] = IGNORE
    valid = target != IGNORE
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[valid], target[valid])
    torch.testing.assert_close(segmentation_cross_entropy(logits, target, torch.full((3, 1, 7, 5), 0.5)), expected)


def test_cross_entropy_is_weighted_per_pixel():
    torch.manual_seed(0)
    logits, target = torch.randn(2, CLASSES, 7, 5), torch.randint(CLASSES, (2, 7, 5))
    weight = torch.rand(2, 1, 7, 5)
    target[torch.rand(target.shape) < 0.4] = IGNORE
    valid = target != IGNORE
    losses = F.cross_entropy(logits.permute(0, 2, 3, 1)[valid], target[valid], reduction="none")
    expected = (losses * weight[:, 0][valid]).sum() / weight[:, 0][valid].sum()
    torch.testing.assert_close(segmentation_cross_entropy(logits, target, weight), expected)


def test_rare_classes_get_larger_weights():
    frequencies = torch.tensor([0.4, 0.1, 0.4999, 0.0001, 0.0, 0.0])
    weights = class_weights(frequencies, balance=0.5)
    assert weights.shape == (256,) and not weights[CLASSES:].any()
    assert (weights[1] / weights[0]).item() == pytest.approx(2)
    assert (weights[3] / weights[0]).item() == pytest.approx(20), "capped at the weight of a frequency of 0.001"
    assert torch.equal(weights[4], weights[3]), "a class that is missing from the sampled frames"
    assert (weights[:CLASSES] * frequencies).sum().item() == pytest.approx(1)
    assert class_weights(frequencies, balance=0)[:CLASSES].tolist() == pytest.approx([1] * CLASSES)
    assert class_weights(torch.zeros(CLASSES), balance=0.5)[:CLASSES].tolist() == [1] * CLASSES


def test_dice_is_averaged_over_the_classes_present_in_each_frame():
    target = torch.tensor([[[0, 0, 1, IGNORE]], [[2, 2, 2, 2]]])
    weight = torch.tensor([[[[1.0, 0.5, 1.0, 1.0]]], [[[1.0] * 4]]])
    probability = torch.full((2, CLASSES, 1, 4), 0.02)
    probability[0, 0, 0, :], probability[0, 1, 0, :], probability[1, 2] = 0.7, 0.22, 0.9
    first = 2 * 0.7 * 1.5 / (0.7 * 2.5 + 1.5)
    second, third = 2 * 0.22 / (0.22 * 2.5 + 1), 2 * 0.9 * 4 / (0.9 * 4 + 4)
    expected = 1 - (first + second + third) / 3
    assert dice_loss(probability.log(), target, weight).item() == pytest.approx(expected, rel=1e-5)
    assert loss_denominators(torch.zeros(2, 1, 1, 4), target, weight).tolist() == [0, 6.5, 3, 2]


def test_dice_of_a_perfect_prediction_is_zero_with_ignored_pixels():
    target = torch.randint(CLASSES, (2, 8, 6))
    logits = 100 * F.one_hot(target, CLASSES).permute(0, 3, 1, 2).float()
    target[:, 0] = IGNORE
    assert dice_loss(logits, target, torch.rand(2, 1, 8, 6)).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-logits, target, torch.rand(2, 1, 8, 6)).item() > 0.5


FULL_WEIGHT = torch.ones(2, 1, 8, 6)


def outputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    depth = torch.rand(batch, 1, 8, 6) * 5 + 0.5
    return depth.requires_grad_(), torch.randn(batch, CLASSES, 8, 6, requires_grad=True), torch.rand(batch, 3, 8, 6)


def test_frame_without_teacher_has_no_effect_on_segmentation():
    depth, seg, rgb = outputs()
    target = torch.randint(CLASSES, (2, 8, 6))
    target[1] = IGNORE
    teacher = torch.rand(2, 1, 8, 6) + 1
    teacher[1] = 0
    both = distillation_loss(depth, seg, rgb, teacher, target, FULL_WEIGHT, WEIGHTS)
    both["total"].backward()
    assert seg.grad[0].abs().min() > 0
    assert seg.grad[1].abs().max() == 0
    alone = distillation_loss(depth[:1], seg[:1], rgb[:1], teacher[:1], target[:1], FULL_WEIGHT[:1], WEIGHTS)
    for term in ("depth", "segmentation", "dice"):
        torch.testing.assert_close(both[term], alone[term])


def test_batch_without_targets_has_zero_loss_and_finite_gradients():
    depth, seg, rgb = outputs()
    no_depth, no_class = torch.zeros(2, 1, 8, 6), torch.full((2, 8, 6), IGNORE)
    terms = distillation_loss(depth, seg, rgb, no_depth, no_class, FULL_WEIGHT, WEIGHTS)
    assert terms["depth"].item() == terms["segmentation"].item() == terms["dice"].item() == 0
    assert math.isfinite(terms["total"].item())
    terms["total"].backward()
    assert depth.grad.isfinite().all()
    assert seg.grad.abs().max() == 0


def test_total_is_the_weighted_sum_of_the_terms():
    depth, seg, rgb = outputs()
    target = torch.randint(CLASSES, (2, 8, 6))
    terms = distillation_loss(depth, seg, rgb, depth.detach() + 1, target, FULL_WEIGHT, WEIGHTS)
    assert all(term.item() > 0 for term in terms.values())
    expected = terms["depth"] + 0.5 * terms["segmentation"] + 0.25 * terms["dice"] + 0.02 * terms["smoothness"]
    torch.testing.assert_close(terms["total"], expected)
    depth_alone = LossWeights(depth=1.0, segmentation=0.0, dice=0.0, smoothness=0.02)
    terms = distillation_loss(depth, seg, rgb, depth.detach() + 1, target, FULL_WEIGHT, depth_alone)
    assert set(terms) == {"depth", "smoothness", "total"}
    torch.testing.assert_close(terms["total"], terms["depth"] + 0.02 * terms["smoothness"])


def test_smoothness_is_zero_for_constant_depth_and_damped_at_image_edges():
    step = torch.full((1, 1, 6, 8), 2.0)
    step[..., 4:] = 4.0
    no_edge, with_edge, edge_elsewhere = torch.zeros(3, 1, 3, 6, 8)
    with_edge[..., 4:] = 1.0
    edge_elsewhere[..., 6:] = 1.0
    assert edge_aware_smoothness(torch.full((1, 1, 6, 8), 3.0), with_edge).item() == 0
    assert edge_aware_smoothness(3 * step, no_edge).item() == pytest.approx(edge_aware_smoothness(step, no_edge).item())
    # inverse depths 1/2 and 1/4 have a mean of 3/8; one of the seven horizontal differences is 2/3
    assert edge_aware_smoothness(step, no_edge).item() == pytest.approx(2 / 3 / 7)
    assert edge_aware_smoothness(step, with_edge).item() == pytest.approx(2 / 3 / 7 * math.exp(-1))
    assert edge_aware_smoothness(step, edge_elsewhere).item() == pytest.approx(2 / 3 / 7)


def test_depth_is_bounded_with_non_zero_gradient():
    assert bounded_depth(torch.tensor([-1e9, 1e9]), RANGE).tolist() == pytest.approx(RANGE)
    raw = torch.tensor([-16.0, -8.0, 0.0, 8.0, 16.0], requires_grad=True)
    depth = bounded_depth(raw, RANGE)
    depth.sum().backward()
    assert depth.diff().min() > 0
    assert (raw.grad > 0).all()
    assert bounded_depth(torch.zeros(1), RANGE).item() == pytest.approx(math.sqrt(RANGE[0] * RANGE[1]))


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return build_student(Recipe()).eval()


def test_student_is_small_enough_for_the_jetson(student):
    assert sum(parameter.numel() for parameter in student.parameters()) <= 5_310_000


@torch.inference_mode()
@pytest.mark.parametrize("size", [(240, 320), (96, 160)])
def test_outputs_have_the_input_size(student, size):
    depth, seg = student(torch.rand(1, 3, *size))
    assert (depth.dtype, seg.dtype) == (torch.float32, torch.float32)
    assert (tuple(depth.shape), tuple(seg.shape)) == ((1, 1, *size), (1, CLASSES, *size))
    assert (depth >= RANGE[0]).all() and (depth <= RANGE[1]).all()
    assert 1 < depth.median() < 4, "an untrained student predicts about two metres"


@torch.inference_mode()
def test_depth_is_not_rounded_under_autocast(student):
    """bfloat16 has 8 bits: in steps of 18 mm at 2 m, which no later cast undoes."""
    rgb = torch.rand(1, 3, 240, 320, generator=torch.Generator().manual_seed(0))
    student = copy.deepcopy(student)
    student.depth_decoder.head.weight *= 50  # an untrained student predicts two metres everywhere
    with torch.autocast("cpu", torch.bfloat16):
        depth, seg = student(rgb)
    assert (depth.dtype, seg.dtype) == (torch.float32, torch.float32)
    n_exact = student(rgb)[0].unique().numel()
    assert depth.unique().numel() > 0.5 * n_exact > 10_000 and seg.unique().numel() > 100_000


@torch.inference_mode()
def test_the_same_seed_gives_the_same_student(student):
    torch.manual_seed(0)
    again = build_student(Recipe()).eval()
    rgb = torch.rand(1, 3, 64, 96)
    for first, second in zip(student(rgb), again(rgb), strict=True):
        assert torch.equal(first, second)
    torch.manual_seed(1)
    other = build_student(Recipe()).eval()
    assert not torch.equal(student(rgb)[0], other(rgb)[0])


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    student = build_student(Recipe())
    depth, seg = student(torch.rand(2, 3, 64, 96))
    target = torch.randint(CLASSES, (2, 64, 96))
    ones, rgb = torch.ones_like(depth), torch.rand(2, 3, 64, 96)
    distillation_loss(depth, seg, rgb, ones, target, ones, WEIGHTS)["total"].backward()
    no_gradient = [name for name, weight in student.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not no_gradient
