"""Shapes of the student's feature maps, and its budget of parameters and multiply-accumulates."""

import pytest
import torch

from config import CLASS_NAMES, Recipe
from print_model_shapes import complexity, count_parameters, feature_map_shapes
from trainer.checkpoint import build_student

MAX_PARAMETERS, MAX_MACS = 5.31e6, 1.05e9


@pytest.fixture(scope="module")
def student():
    return build_student(Recipe()).eval()


def test_encoder_feature_map_shapes(student):
    assert feature_map_shapes(student, 240, 320) == [[32, 60, 80], [64, 30, 40], [128, 15, 20], [256, 8, 10]]


def test_outputs_have_the_input_size(student):
    with torch.inference_mode():
        depth, seg = student(torch.zeros(1, 3, 240, 320))
    assert depth.shape == (1, 1, 240, 320) and seg.shape == (1, len(CLASS_NAMES), 240, 320)


def test_parameters_and_macs_are_within_budget(student):
    count, macs = complexity(student, 240, 320)["total"]
    assert 4e6 < count <= MAX_PARAMETERS
    assert 0.7e9 < macs <= MAX_MACS


def test_blocks_add_up_to_the_total(student):
    table = complexity(student, 240, 320)
    total = table.pop("total")
    for column in range(2):
        parts = [values[column] for name, values in table.items() if not name.startswith("encoder.")]
        assert sum(parts) == total[column]
        stages = [values[column] for name, values in table.items() if name.startswith("encoder.")]
        assert sum(stages) == table["encoder"][column]
    assert total[0] == count_parameters(student)


def test_macs_of_the_stem_convolution(student):
    # 3x3 convolution with stride 2, from 3 to 16 channels, output 120x160
    assert complexity(student, 240, 320)["encoder.stem_in_conv"][1] == 120 * 160 * 16 * 3 * 9
