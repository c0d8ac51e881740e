"""95 % bootstrap intervals of Table IV's metrics, over recordings.

Frames of one recording are near-duplicates, so whole recordings are drawn with replacement, not frames (the cluster
bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Within a single recording
blocks of consecutive frames are drawn. Two students are compared on the same draws, which pairs them frame by frame.

The bounds are percentiles of the draws. With few units plain percentiles are too narrow; they are widened so that they
match Student's t for a mean (the expanded percentile interval of Hesterberg, arXiv:1411.5279).

scipy.stats.bootstrap draws single observations of one statistic. Here one product of draws and sums gives all metrics
of all slices, for both students.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dataset.manifest import Row

CONFIDENCE = 0.95
DRAWS = 2000
BLOCK = 10  # frames
MIN_UNITS = 5
SEED = 0  # the same draws each time: equal students differ by exactly 0, and a table can be reproduced

# Maps sums [...,Q] to metrics {name: [...]}: depth_metrics or class_metrics.
Metrics = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Units:
    """What is drawn: a unit is a set of frames.

    Attributes:
        of_frame: int64 [F], the unit of each frame.
        description: what the units are, for the table.
    """

    of_frame: np.ndarray
    description: str

    @property
    def count(self) -> int:
        """Number of units."""
        return int(self.of_frame.max()) + 1

    @property
    def sentence(self) -> str:
        """What the intervals are over, or why there are none."""
        if self.count < MIN_UNITS:
            return f"No intervals: they need {MIN_UNITS} units, and the frames make {self.count} {self.description}."
        return f"Intervals in brackets: {CONFIDENCE:.0%}, bootstrap over {self.count} {self.description}."


def find_units(rows: Sequence[Row]) -> Units:
    """The units of a list of frames: recordings; blocks of BLOCK frames, in the list's order, if there is only one.

    Frames that name no recording count as one recording.
    """
    names = list(dict.fromkeys(row.recording for row in rows))
    if len(names) > 1:
        return Units(np.array([names.index(row.recording) for row in rows]), "recordings")
    blocks = np.arange(len(rows)) // BLOCK
    return Units(blocks, f"blocks of {BLOCK} consecutive frames, because no two recordings are named")


def intervals(
    metrics: Metrics, units: Units, sums: np.ndarray, other: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Intervals of the metrics, or of their differences between two students.

    Args:
        metrics: maps sums over frames to metrics.
        units: what is drawn.
        sums: float64 [F,S,...], sums over the pixels of each frame and slice, as in SliceSums.
        other: sums of another student for the same frames; the intervals are those of metrics(other) - metrics(sums).

    Returns {metric: float64 [S,2]}, lower and upper bound; NaN for a slice that occurs in fewer than MIN_UNITS units.
    """
    draws = np.random.default_rng(SEED).multinomial(units.count, np.full(units.count, 1 / units.count), size=DRAWS)
    by_unit = _sum_units(sums, units)
    drawn = _metrics_of_draws(metrics, draws, by_unit)
    if other is not None:
        others = _metrics_of_draws(metrics, draws, _sum_units(other, units))
        drawn = {name: others[name] - values for name, values in drawn.items()}
    present = by_unit.reshape(*by_unit.shape[:2], -1).any(axis=-1).sum(axis=0)
    return {name: _bounds(values, present) for name, values in drawn.items() if values.ndim == 2}


def _sum_units(sums: np.ndarray, units: Units) -> np.ndarray:
    by_unit = np.zeros((units.count, *sums.shape[1:]))
    np.add.at(by_unit, units.of_frame, sums)
    return by_unit


def _metrics_of_draws(metrics: Metrics, draws: np.ndarray, by_unit: np.ndarray) -> dict[str, np.ndarray]:
    sums = (draws @ by_unit.reshape(len(by_unit), -1)).reshape(len(draws), *by_unit.shape[1:])
    return {name: values.numpy() for name, values in metrics(torch.from_numpy(sums)).items()}


def _bounds(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Bounds [S,2] of drawn values [DRAWS,S]; present: number of units in which each slice occurs, int [S]."""
    bounds = np.full((values.shape[1], 2), np.nan)
    for index, count in enumerate(present):
        if count >= MIN_UNITS:
            tail = stats.norm.sf(np.sqrt(count / (count - 1)) * stats.t.isf((1 - CONFIDENCE) / 2, count - 1))
            bounds[index] = np.nanquantile(values[:, index], (tail, 1 - tail))
    return bounds
