"""Pair the pictures of two cameras by their times."""

from collections.abc import Sequence

import numpy as np


def pair_nearest(first: Sequence[float], second: Sequence[float], limit: float) -> dict[int, int]:
    """Pair each time with the nearest one of the other list; each is used once, the closest pairs first.

    Args:
        first: times in any order and unit.
        second: likewise.
        limit: largest difference of a pair, in the same unit.

    Returns {index into first: index into second} of those that have a partner.
    """
    order = np.argsort(second, kind="stable")
    sorted_times = np.asarray(second)[order]
    times = np.asarray(first)
    begins = np.searchsorted(sorted_times, times - limit, side="left")
    ends = np.searchsorted(sorted_times, times + limit, side="right")
    candidates = sorted(
        (abs(second[partner] - first[index]), index, int(partner))
        for index in range(len(first))
        for partner in order[begins[index] : ends[index]]
    )
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for _, index, partner in candidates:
        if index not in pairs and partner not in used:
            pairs[index] = partner
            used.add(partner)
    return pairs
