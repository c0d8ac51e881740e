"""Bootstrap intervals: their coverage on simulated tables, pairing, units."""

import numpy as np
import pytest
from test_slices import evaluate_constant, write_rows

from dataset.manifest import Row
from evaluation.intervals import BLOCK, Units, find_units, intervals
from evaluation.report import errors_to_markdown, locate_errors
from evaluation.slices import SUMS, depth_metrics

DIFFERENCE = 0.02  # AbsRel
FRAMES = 10  # of a recording


def simulated_tables(rng: np.random.Generator, recordings: int) -> tuple[np.ndarray, np.ndarray, Units]:
    """Sums of two students whose mean AbsRel differs by DIFFERENCE.

    Recordings differ in difficulty for both students, more than the students differ, and for each alone.
    """
    unit = np.repeat(np.arange(recordings), FRAMES)
    difficulty = 0.2 + rng.normal(0, 0.04, recordings)[unit]
    tables = np.zeros((2, len(unit), 1, len(SUMS)))
    for table, mean in zip(tables, (0, DIFFERENCE), strict=True):
        own = rng.normal(0, 0.02, recordings)[unit] + rng.normal(0, 0.02, len(unit))
        table[:, 0, SUMS.index("count")] = 1000
        table[:, 0, SUMS.index("abs_rel")] = 1000 * (difficulty + mean + own)
    return *tables, Units(unit, "recordings")


@pytest.mark.parametrize("recordings", [5, 30])
def test_interval_of_a_known_difference_covers_it(recordings):
    covered = 0
    for seed in range(500):
        first, second, units = simulated_tables(np.random.default_rng(seed), recordings)
        low, high = intervals(depth_metrics, units, first, second)["abs_rel"][0]
        covered += low <= DIFFERENCE <= high
    assert 0.92 <= covered / 500 <= 0.98


def test_frames_taken_for_independent_would_promise_too_much():
    """The reason for whole recordings: intervals over single frames cover the difference far too rarely."""
    covered = 0
    for seed in range(100):
        first, second, units = simulated_tables(np.random.default_rng(seed), 10)
        single = Units(np.arange(len(units.of_frame)), "frames")
        low, high = intervals(depth_metrics, single, first, second)["abs_rel"][0]
        covered += low <= DIFFERENCE <= high
    assert covered < 75


def test_student_against_itself_differs_by_exactly_zero():
    first, _, units = simulated_tables(np.random.default_rng(0), 6)
    assert intervals(depth_metrics, units, first, first)["abs_rel"].tolist() == [[0.0, 0.0]]


def test_constants_of_3_and_3_3_metres_are_told_apart(tmp_path):
    """Rooms 2.4 to 3.4 m deep with noise: 3 m fits better in most of them, 3.3 m in some."""
    rng = np.random.default_rng(0)
    depths = [(rng.uniform(2.4, 3.4) + rng.normal(0, 0.3, (30, 40))).astype(np.float32) for _ in range(24)]
    rows = write_rows(tmp_path, depths, recording=lambda index: f"room {index // 2}")
    content = locate_errors(rows, evaluate_constant(rows, 3.0, other=3.3).slices)
    entry = content["differences"]["other student vs reference"]["all"]["all"]
    low, high = entry["intervals"]["abs_rel"]
    assert 0 < low <= entry["abs_rel"] <= high
    same = locate_errors(rows, evaluate_constant(rows, 3.0, other=3.0).slices)
    entry = same["differences"]["other student vs reference"]["all"]["all"]
    assert entry["intervals"]["rmse"] == entry["intervals"]["abs_rel"] == [0.0, 0.0]
    assert "over 12 recordings" in content["intervals"]
    text = "\n".join(errors_to_markdown(content))
    assert "AbsRel, difference" in text and "statistically significant" in text


def test_units_are_recordings_or_blocks():
    def rows(names):
        return [Row(str(index), None, None, recording=name) for index, name in enumerate(names)]

    several = find_units(rows(["a", "a", "b", None, "a"]))
    assert several.of_frame.tolist() == [0, 0, 1, 2, 0] and "3 recordings" in several.sentence
    for names in (["a"] * 45, [None] * 45):
        blocks = find_units(rows(names))
        assert blocks.count == 5 and (blocks.of_frame == np.arange(45) // BLOCK).all()
        assert "5 blocks of 10 consecutive frames" in blocks.sentence
    few = find_units(rows(["a"] * 40))
    assert few.sentence == (
        "No intervals: they need 5 units, and the frames make 4 blocks of 10 consecutive frames, because no two "
        "recordings are named."
    )


def test_slice_of_few_recordings_has_no_interval():
    first, _, units = simulated_tables(np.random.default_rng(0), 8)
    first = np.concatenate([first, first], axis=1)
    first[4 * FRAMES :, 1] = 0
    bounds = intervals(depth_metrics, units, first)["abs_rel"]
    assert not np.isnan(bounds[0]).any() and np.isnan(bounds[1]).all()
