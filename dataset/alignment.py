"""Align a teacher's depth to the sensor's scale, per frame, and measure the seam between the two."""

import numpy as np

MIN_VALID_FRACTION = 0.01  # of the pixels that must have both depths


def sensor_scale(depth: np.ndarray, confidence: np.ndarray, teacher: np.ndarray, threshold: float) -> float | None:
    """Scale factor from a teacher's depth to the sensor's: the median of sensor / teacher.

    The median is robust to the sensor's outliers (glass, edges) and to objects that the teacher gets wrong.

    Args:
        depth: the sensor's depth, float32 [H,W], metres, 0 = no reading.
        confidence: float32 [H,W] in 0..1.
        teacher: the teacher's depth, float32 [H,W], metres, 0 = no value.
        threshold: minimum confidence of a valid pixel.

    Returns None if fewer than MIN_VALID_FRACTION of the pixels have both depths.
    """
    both = (confidence >= threshold) & (depth > 0) & (teacher > 0)
    if both.sum() < MIN_VALID_FRACTION * both.size:
        return None
    return float(np.median(depth[both] / teacher[both]))


def seam_step(depth: np.ndarray, confidence: np.ndarray, teacher: np.ndarray, threshold: float) -> float | None:
    """Median relative depth step across the seam between sensor and teacher depth.

    Arguments as for sensor_scale(). Returns exp(median |log sensor - log teacher|) - 1 over all horizontal and vertical
    pixel pairs where one pixel uses the sensor's depth and the other the teacher's; None if there is no such pair.
    """
    from_sensor = (confidence >= threshold) & (depth > 0)
    hybrid = np.where(from_sensor, depth, teacher)
    log_depth = np.log(np.where(hybrid > 0, hybrid, 1))
    steps = []
    for axis in (0, 1):
        changes = np.diff(from_sensor, axis=axis)
        length = hybrid.shape[axis]
        valid = np.take(hybrid, range(length - 1), axis) * np.take(hybrid, range(1, length), axis) > 0
        steps.append(np.abs(np.diff(log_depth, axis=axis))[changes & valid])
    all_steps = np.concatenate(steps)
    return float(np.expm1(np.median(all_steps))) if all_steps.size else None
