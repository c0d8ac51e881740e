"""Units of stored depth: sensors and datasets use different ones, and the files don't say which."""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cli import UserError

import numpy as np

Item = TypeVar("Item")

INVALID_VALUE = np.iinfo(np.uint16).max  # some Kinect drivers write it for missing readings
MIN_INDOOR_MEDIAN, MAX_INDOOR_MEDIAN = 0.3, 6.0  # metres; plausible range of the median depth of indoor frames
TYPICAL_MEDIAN = 2.0  # metres
MAX_SAMPLES = 20
MAX_SUGGESTIONS = 3
MIN_DISTINCT_VALUES = 100  # needed to recognise a unit by its bit pattern
SUNRGBD_SHIFT = 3  # bits


@dataclass(frozen=True)
class DepthUnit:
    """A unit: metres per count, a description, and by how many bits 16-bit values are rotated to the left."""

    name: str
    metres: float
    what: str
    shift: int = 0

    @property
    def ratio_to_mm(self) -> float:
        """Ratio of the true depth to the depth obtained by reading a .png as millimetres."""
        return self.metres / 0.001 / 2**self.shift

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Convert stored values, uint16 or floating [H,W], to float32 metres, 0 = no reading."""
        if stored.dtype == np.uint16:
            stored = np.where(stored == INVALID_VALUE, 0, stored)
            if self.shift:
                stored = (stored >> self.shift) | (stored << (16 - self.shift))
            return stored.astype(np.float32) / np.float32(1 / self.metres)
        depth = stored * np.float32(self.metres)
        return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


UNITS = {
    unit.name: unit
    for unit in (
        DepthUnit("m", 1.0, "metres"),
        DepthUnit("mm", 1e-3, "millimetres"),
        DepthUnit("tum", 1 / 5000, "1/5000 m, as in TUM RGB-D and ICL-NUIM"),
        DepthUnit("l515", 0.25e-3, "0.25 mm, as in RealSense L515 and Matterport3D"),
        DepthUnit("d405", 0.1e-3, "0.1 mm, as in RealSense D405"),
        DepthUnit("sunrgbd", 1e-3, "millimetres with bits rotated by 3, as in SUN RGB-D", SUNRGBD_SHIFT),
        DepthUnit("kitti", 1 / 256, "1/256 m, as in KITTI and VOID"),
        DepthUnit("cm", 1e-2, "centimetres"),
    )
}


def parse_depth_unit(text: str) -> DepthUnit:
    """Argparse type: a name from UNITS, or metres per count such as 0.0002 or 1/5000."""
    if text.lower() in UNITS:
        return UNITS[text.lower()]
    number, slash, divisor = text.partition("/")
    try:
        metres = float(number) / float(divisor) if slash else float(number)
    except (ValueError, ZeroDivisionError):
        metres = math.nan
    if not 1e-6 <= metres <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {', '.join(UNITS)} nor metres per count up to 1")
    known = (unit for unit in UNITS.values() if not unit.shift and math.isclose(unit.metres, metres, rel_tol=1e-6))
    return next(known, DepthUnit(text, metres, f"{text} m"))


def add_unit_flag(parser: argparse.ArgumentParser, maps: str) -> None:
    """Add --depth-unit; `maps` names the depth maps in its help."""
    names = "; ".join(f"{unit.name}: {unit.what}" for unit in UNITS.values())
    parser.add_argument(
        "--depth-unit",
        type=parse_depth_unit,
        metavar="UNIT",
        help=f"unit of {maps} in 16-bit .png: {names}; or metres per count, e.g. 0.0002 or 1/5000 (default: mm, "
        "with an error if that is implausible; .npy must be in metres)",
    )


def parse_unit_entry(text: object, where: str) -> DepthUnit | None:
    """Parse a depth_unit entry of a file, None if absent; raises UserError naming `where` if it is invalid."""
    if text is None:
        return None
    try:
        return parse_depth_unit(str(text))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{where}: depth_unit {error}") from None


def check_plausible_unit(folder: Path, stored: Sequence[np.ndarray]) -> None:
    """Raise UserError, naming the likely unit, if depth maps can't be in millimetres (.png) or metres (.npy).

    Args:
        folder: their folder, for the message.
        stored: stored values of a sample of the maps, uint16 or floating [H,W] each.
    """
    counted = [numbers for numbers in stored if numbers.dtype == np.uint16]
    maps, unit = (counted, UNITS["mm"]) if counted else (list(stored), UNITS["m"])
    if (median := _median(maps, unit)) is None:
        return
    recognised = _unit_from_bits(maps) if counted else None
    if recognised is None and MIN_INDOOR_MEDIAN <= median <= MAX_INDOOR_MEDIAN:
        return
    likely = [recognised] if recognised else _units_from_median(maps)
    names = ", or ".join(f"{unit.what} (--depth-unit {unit.name}: {_median(maps, unit):.2f} m)" for unit in likely)
    indoors = "" if recognised else f" (expected indoors: {MIN_INDOOR_MEDIAN:g} to {MAX_INDOOR_MEDIAN:g} m)"
    verdict = "the bit pattern is that of" if recognised else "the unit is probably"
    flag = "set --depth-unit" if counted else "convert the files to metres, or set --depth-unit"
    raise UserError(
        f"{folder}: read as {unit.what}, the median depth is {median:.2f} m{indoors}; "
        f"{verdict} {names or 'a different one'}: {flag} (--depth-unit {unit.name} if the depth is right)"
    )


def sample_evenly(items: Iterable[Item], count: int = MAX_SAMPLES) -> list[Item]:
    """Up to `count` evenly spaced items."""
    items = list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, min(count, len(items)))]


def _median(maps: Sequence[np.ndarray], unit: DepthUnit) -> float | None:
    """Median of the maps' medians in metres; None if no map has a reading."""
    medians = [np.median(depth[depth > 0]) for depth in map(unit.decode, maps) if depth.any()]
    return float(np.median(medians)) if medians else None


def _units_from_median(maps: Sequence[np.ndarray]) -> list[DepthUnit]:
    """Up to MAX_SUGGESTIONS units with a plausible indoor median, the closest to TYPICAL_MEDIAN first."""
    counted = maps[0].dtype == np.uint16
    medians = {unit: _median(maps, unit) or math.inf for unit in UNITS.values() if counted or not unit.shift}
    indoors = [unit for unit, median in medians.items() if MIN_INDOOR_MEDIAN <= median <= MAX_INDOOR_MEDIAN]
    return sorted(indoors, key=lambda unit: abs(math.log(medians[unit] / TYPICAL_MEDIAN)))[:MAX_SUGGESTIONS]


def _unit_from_bits(maps: Sequence[np.ndarray]) -> DepthUnit | None:
    """Recognise SUN RGB-D (rotated bits) or TUM (multiples of 5) by the stored values; None for other units."""
    numbers = np.unique(np.concatenate([np.unique(stored) for stored in maps]))
    numbers = numbers[(numbers > 0) & (numbers < INVALID_VALUE)]
    if len(numbers) < MIN_DISTINCT_VALUES:
        return None
    low_bits = numbers & (2**SUNRGBD_SHIFT - 1)
    if low_bits.max() <= 1:  # 1 for depths beyond 8.19 m
        return UNITS["sunrgbd"]
    return UNITS["tum"] if np.gcd.reduce(numbers) == 5 else None
