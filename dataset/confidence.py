"""Confidence of depth computed from the depth alone, for sensors that bring no confidence of their own.

A reading is compared with its neighbours on the surface around it. Noise, flying pixels at edges and readings that
stand alone get less confidence. A surface that is smooth but elsewhere can't be told from a right one: that of a
reading through glass or in a mirror, or one that multipath has shifted.
"""

import cv2
import numpy as np

TOLERANCE = 0.02  # metres up to 1 m, share of the depth beyond
# of a logistic regression on 955,827 readings of 100 rooms; printed by `python benchmarks/sensor_confidence.py`
CONSTANT = 6.06
WEIGHTS = {"noise": -0.76, "step": -0.48, "off_surface": -8.71, "missing": -4.47}
SENSOR, COMPUTED = "sensor", "computed"  # where a frame's confidence comes from: its own map, or this file
CALIBRATION = "from depth, calibrated on a simulated time-of-flight sensor in rendered rooms"

LEAST, MOST = 1e-3, 1e3  # metres; depth outside is no reading
MAX_NOISE, MAX_STEP = 2.0, 20.0  # tolerances
NEARLY_ZERO = 0.02  # tolerances; added before logarithms
NEIGHBOURS = np.float32(8)
STRIP, HALO = 48, 4  # rows at a time, whose arrays stay in the processor's cache; rows beside them that matter


def tolerance(depth: np.ndarray) -> np.ndarray:
    """The error that a reading may have, metres, of depth in metres: 2 cm, or 2 % beyond 1 m."""
    return TOLERANCE * np.maximum(depth, 1)


def sensor_confidence(depth: np.ndarray) -> np.ndarray:
    """Probability that a reading of an opaque surface is within 2 cm of the truth, or within 2 % beyond 1 m.

    2 cm are less than half a cell of a robot's costmap (5 cm), and a little more than the noise that the sensor's maker
    allows (17 mm). A simulator calibrated the probability (benchmarks/sensor_confidence.py), not a real sensor.

    Args:
        depth: float32 [H,W] metres as the sensor measured it, 0 = no reading. Registered depth gets too much
            confidence, because it is interpolated between readings, which hides their noise.

    Returns float32 [H,W] in 0..1; 0 where there is no reading.
    """
    valid = (depth >= LEAST) & (depth <= MOST)
    confidence = np.zeros(depth.shape, np.float32)
    for top in range(0, len(depth), STRIP):
        first = max(top - HALO, 0)
        rows = slice(first, top + STRIP + HALO)
        features = measure(np.where(valid[rows], depth[rows], 0).astype(np.float32, copy=False))
        logit = np.full(features["noise"].shape, CONSTANT, np.float32)
        for name, weight in WEIGHTS.items():
            logit += np.float32(weight) * features[name]
        confidence[top : top + STRIP] = 1 / (1 + cv2.exp(-logit[top - first :][:STRIP]))
    return np.where(valid, confidence, np.float32(0))


def measure(depth: np.ndarray) -> dict[str, np.ndarray]:
    """What the confidence is computed from: {a key of WEIGHTS: float32 [H,W]}, of depth float32 [H,W], 0 = no reading.

    A neighbour's step is its distance in inverse depth from the plane through the reading, in tolerances. Inverse depth
    is linear on planes, so a slanted plane has no steps.

    noise: logarithm of the mean step in 5x5 pixels. step: logarithm of the largest of the 8 neighbours' steps.
    off_surface, missing: shares of the 8 neighbours with a step of 1 or more, and without a reading. Range acts through
    the tolerance: as a feature of its own it got the weight 0.
    """
    height, width = depth.shape
    has_depth = depth > 0
    inverse = 1 / np.where(has_depth, depth, np.float32(np.nan))
    padded = cv2.copyMakeBorder(inverse, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=np.nan)
    down, right = _slopes(padded)
    planes = {(0, 1): right, (1, 0): down, (1, 1): down + right, (1, -1): down - right}
    per_step = depth * depth / tolerance(depth)
    total, largest, limit = np.zeros_like(depth), np.zeros_like(depth), np.full_like(depth, MAX_NOISE)
    on_surface = np.zeros(depth.shape, np.uint8)
    for (dy, dx), plane in planes.items():
        for side, shift in ((1, np.subtract), (-1, np.add)):
            y, x = 1 + side * dy, 1 + side * dx
            step = padded[y : y + height, x : x + width] - inverse
            shift(step, plane, out=step)
            np.abs(step, out=step)
            step *= per_step
            on_surface += (step < 1).view(np.uint8)
            np.fmax(largest, step, out=largest)  # without the NaN of a neighbour that has no reading
            total += np.fmin(step, limit, out=step)  # MAX_NOISE for that one; faster than with a scalar
    found = _sum(has_depth.astype(np.float32), 3) - has_depth
    missing = NEIGHBOURS - found
    total -= np.float32(MAX_NOISE) * missing
    total /= np.maximum(found, 1)
    has_mean = has_depth & (found > 0)
    noise = _sum(np.where(has_mean, total, 0), 5) / np.maximum(_sum(has_mean.astype(np.float32), 5), 1)
    return {
        "noise": cv2.log(noise + np.float32(NEARLY_ZERO)),
        "step": cv2.log(np.minimum(largest, MAX_STEP) + np.float32(NEARLY_ZERO)),
        "off_surface": (found - on_surface) / NEIGHBOURS,
        "missing": missing / NEIGHBOURS,
    }


def _slopes(padded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane around each pixel: the change of inverse depth per pixel down and right, float32 [H,W] each.

    Of the changes on a pixel's two sides the smaller counts, 0 if they have opposite signs (minmod). The median of 3x3
    pixels takes out those of flying pixels.
    """
    slopes = []
    for axis, inner in ((0, padded[:, 1:-1]), (1, padded[1:-1])):
        change = np.diff(inner, axis=axis)
        before, after = (change[:-1], change[1:]) if axis == 0 else (change[:, :-1], change[:, 1:])
        low, high = np.minimum(before, after), np.maximum(before, after)
        smaller = np.maximum(low, 0) + np.minimum(high, 0)
        slopes.append(cv2.medianBlur(cv2.patchNaNs(smaller, 0), 3))  # NaN where a neighbour has no reading
    return slopes[0], slopes[1]


def _sum(values: np.ndarray, size: int) -> np.ndarray:
    """The sum over size x size pixels around each one, float32 [H,W]."""
    return cv2.boxFilter(values, -1, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)
