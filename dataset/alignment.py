"""Bringing a teacher's depth to the sensor's scale, frame by frame, and how visible their seam is."""

import numpy as np

MIN_VALID_FRACTION = 0.01  # of the image that must have both depths for a scale to be trusted


def sensor_scale(depth: np.ndarray, confidence: np.ndarray, teacher: np.ndarray, threshold: float) -> float | None:
    """The factor that brings a teacher's depth to the sensor's: the median of sensor / teacher.

    The median, because a sensor's wrong readings (glass, edges) and a teacher's wrong objects are few and far off.

    Args:
        depth: float32 [H,W], metres, 0 = none; the sensor's.
        confidence: float32 [H,W] in 0..1; pixels that reach the threshold count.
        teacher: float32 [H,W], metres, 0 = none.
        threshold: least confidence of a pixel that counts.

    Returns None where less than MIN_VALID_FRACTION of the pixels have both.
    """
    both = (confidence >= threshold) & (depth > 0) & (teacher > 0)
    if both.sum() < MIN_VALID_FRACTION * both.size:
        return None
    return float(np.median(depth[both] / teacher[both]))


def seam_step(depth: np.ndarray, confidence: np.ndarray, teacher: np.ndarray, threshold: float) -> float | None:
    """Relative step of the hybrid depth where it changes from sensor to teacher: the median over neighbouring pixels.

    Args as of sensor_scale(). Returns exp(median of |log sensor - log teacher|) - 1 over all pairs of neighbours in a
    row or column of which one takes the sensor's depth and the other the teacher's; None without such a pair.
    """
    from_sensor = (confidence >= threshold) & (depth > 0)
    hybrid = np.where(from_sensor, depth, teacher)
    logarithm = np.log(np.where(hybrid > 0, hybrid, 1))
    steps = []
    for axis in (0, 1):
        changes = np.diff(from_sensor, axis=axis)
        length = hybrid.shape[axis]
        known = np.take(hybrid, range(length - 1), axis) * np.take(hybrid, range(1, length), axis) > 0
        steps.append(np.abs(np.diff(logarithm, axis=axis))[changes & known])
    all_steps = np.concatenate(steps)
    return float(np.expm1(np.median(all_steps))) if all_steps.size else None
