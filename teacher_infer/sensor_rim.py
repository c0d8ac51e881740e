"""The sensor's rim: the border of a depth map that lies outside the sensor's field of view.

A depth map registered to a colour camera does not cover the whole image. It lacks a band along one or more sides, with
a nearly straight inner edge that shifts a little with scene depth, and corners if the sensor's field of view is round
or hexagonal. The covered region is convex and the same in all frames of a sensor, unlike holes from glass.
"""

from collections.abc import Sequence

import cv2
import numpy as np

WORKING_WIDTH = 160  # pixels
MIN_PIXEL_READINGS = 0.15  # minimum fraction of a working pixel with readings; low, because time of flight is sparse
MIN_REGION = 5  # working pixels; narrower regions are stray readings
MAX_BAND_WIDTH = 0.2  # of the width or height; wider bands are missing readings
CORNER_AREA = (0.002, 0.08)  # minimum and maximum fraction of the image; a circle touching all sides leaves 0.054
MAX_SHIFT = 0.04  # of the width; how far a frame's rim may extend inside the common one, by parallax and registration
MANY_FRAMES = 10  # from this number on a single empty corner is rim; with fewer frames all four must be empty
MAX_STRAY_FRACTION = 0.02  # pixels with readings in no more than this fraction of the frames are not covered


def find_common_rim(readings: Sequence[np.ndarray]) -> np.ndarray:
    """Find the rim shared by several frames of a sensor.

    Args:
        readings: for each frame, the pixels with readings, bool [H,W]; at least one, all of the same size.

    Returns: bool [h,w] at working resolution, to be passed to find_rim().
    """
    fraction = np.mean([_downsample(mask) for mask in readings], axis=0)
    return _blind_region(_regions(fraction > MAX_STRAY_FRACTION), min_corners=1 if len(readings) >= MANY_FRAMES else 4)


def find_rim(depth: np.ndarray, common: np.ndarray | None = None) -> np.ndarray:
    """Find the rim in one frame, bool [H,W].

    Args:
        depth: raw sensor depth, float32 [H,W], metres, 0 = no reading.
        common: find_common_rim() of the same sensor; by default the rim is found from this frame alone.
    """
    covered = _regions(_downsample(depth > 0))
    if common is None:
        common = _blind_region(covered, min_corners=4)
    if not common.any():
        return np.zeros(depth.shape, bool)
    kernel_size = 2 * round(MAX_SHIFT * WORKING_WIDTH) + 1
    near = cv2.dilate(common.astype(np.uint8), np.ones((kernel_size, kernel_size), np.uint8)) > 0
    rim = common | near & ~_convex_hull(covered)
    return cv2.resize(rim.astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def _downsample(readings: np.ndarray) -> np.ndarray:
    """Downsample a mask of readings, bool [H,W], to the working resolution, bool [h,w]."""
    height, width = readings.shape
    size = (WORKING_WIDTH, max(1, round(height * WORKING_WIDTH / width)))
    return cv2.resize(readings.astype(np.float32), size, interpolation=cv2.INTER_AREA) > MIN_PIXEL_READINGS


def _regions(readings: np.ndarray) -> np.ndarray:
    """Close gaps in the readings, bool [h,w], and remove stray ones."""
    kernel = np.ones((MIN_REGION, MIN_REGION), np.uint8)
    padded = np.pad(readings.astype(np.uint8), MIN_REGION)  # without padding, OpenCV closes gaps at the border
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel)[MIN_REGION:-MIN_REGION, MIN_REGION:-MIN_REGION] > 0


def _blind_region(covered: np.ndarray, min_corners: int) -> np.ndarray:
    """Return the rim around the covered region, bool [h,w]: bands along whole sides, and corners.

    Bands are at most MAX_BAND_WIDTH wide. Corners have an area within CORNER_AREA and count only if there are at least
    `min_corners` of them.
    """
    if not covered.any():
        return np.zeros_like(covered)
    covered = covered.copy()
    for view in (covered, covered[::-1], covered.T, covered.T[::-1]):
        if view.any(axis=1).argmax() > MAX_BAND_WIDTH * len(view):  # too wide for a rim
            view[0] = view.any(axis=0)
    rows, columns = (_fill_gaps(np.max(covered, axis=axis)) for axis in (1, 0))
    rim = ~np.outer(rows, columns)
    _, components, stats, _ = cv2.connectedComponentsWithStats((~_convex_hull(covered) & ~rim).astype(np.uint8))
    min_area, max_area = (fraction * covered.size for fraction in CORNER_AREA)
    areas = stats[:, cv2.CC_STAT_AREA]
    corners = (areas >= min_area) & (areas <= max_area)
    corners[0] = False  # the background of the components
    return rim | corners[components] if corners.sum() >= min_corners else rim


def _fill_gaps(line: np.ndarray) -> np.ndarray:
    """Set a line, bool [n], to true between its first and its last true element."""
    return np.maximum.accumulate(line) & np.maximum.accumulate(line[::-1])[::-1]


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    """Convex hull of a mask, bool [h,w]; empty if the mask is."""
    hull = np.zeros(mask.shape, np.uint8)
    if mask.any():
        cv2.fillConvexPoly(hull, cv2.convexHull(cv2.findNonZero(mask.astype(np.uint8))), 1)
    return hull > 0
