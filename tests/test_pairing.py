"""Pairs of two cameras' pictures by their times."""

import numpy as np
import pytest

from dataset.pairing import pair_nearest


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ([0, 10, 20], [1, 9, 22], {0: 0, 1: 1, 2: 2}),
        ([0, 10, 20], [22, 1, 9], {0: 1, 1: 2, 2: 0}),  # in any order
        ([0, 10], [4], {0: 0}),  # each is used once, by the nearer one
        ([0, 2], [1.5, 6], {1: 0}),  # and the other's second choice is too far away
        ([0, 3], [2, 5], {1: 0, 0: 1}),
        ([10], [5, 15], {0: 0}),
        ([10], [4.9, 15.1], {}),
        ([], [1], {}),
        ([1], [], {}),
    ],
)
def test_nearest_within_5(first, second, pairs):
    assert pair_nearest(first, second, 5) == pairs


def test_nanoseconds_keep_their_precision():
    """Seconds since 1970 in nanoseconds have more digits than a float."""
    start = 1_700_000_000_000_000_000
    assert pair_nearest([start], [start + 51, start - 50], 50) == {0: 1}
    assert pair_nearest([start], [start + 51, start - 51], 50) == {}


def test_a_long_recording():
    times = np.arange(20_000) * 33_333_333
    shuffled = np.random.default_rng(0).permutation(len(times))
    found = pair_nearest(times.tolist(), (times[shuffled] + 5_000_000).tolist(), 50_000_000)
    assert all(shuffled[partner] == index for index, partner in found.items()) and len(found) == len(times)
