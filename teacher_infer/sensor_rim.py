"""The sensor's rim: where a depth map has no readings because the sensor does not look there.

A map registered to a colour camera ends before the image does: in a band along one or more sides, whose inner border is
nearly straight and moves a little with the distance of what is seen, and, behind a lens that draws a circle or a
hexagon, in corners. The readings' outline is convex, and the same in all frames of a sensor, which a pane's isn't.
"""

from collections.abc import Sequence

import cv2
import numpy as np

WIDTH = 160  # columns that a rim is found on
READ = 0.15  # share of such a pixel that has readings where the sensor looks: far away, time of flight is sparse
STRAY = 5  # such pixels: what is narrower is no region that the sensor reads
WIDEST = 0.2  # of the width or height: what is wider is no rim, but the sensor saw nothing there
CORNER = (0.002, 0.08)  # least and largest share of the image: a circle that touches all sides leaves 0.054
MOVES = 0.04  # of the width: how far inside the common outline a frame's may lie, by parallax and registration
SEVERAL = 10  # frames, in which any dead corner can be told from a pane; in fewer all four have to be dead
SELDOM = 0.02  # share of frames with readings at a place up to which they are strays


def rim_of_frames(readings: Sequence[np.ndarray]) -> np.ndarray:
    """Where a sensor has no readings in any of its frames because it does not look there.

    Args:
        readings: where each frame has readings, one or more bool [H,W] of one size.

    Returns: bool [h,w], reduced, for sensor_rim().
    """
    share = np.mean([_reduced(each) for each in readings], axis=0)
    return _beyond(_regions(share > SELDOM), fewest_corners=1 if len(readings) >= SEVERAL else 4)


def sensor_rim(depth: np.ndarray, common: np.ndarray | None = None) -> np.ndarray:
    """The rim of one frame, bool [H,W].

    Args:
        depth: as the sensor gave it, float32 [H,W], metres, 0 = no reading.
        common: rim_of_frames() of the same sensor; without it, what this frame tells.
    """
    seen = _regions(_reduced(depth > 0))
    if common is None:
        common = _beyond(seen, fewest_corners=4)
    if not common.any():
        return np.zeros(depth.shape, bool)
    reach = 2 * round(MOVES * WIDTH) + 1
    near = cv2.dilate(common.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    rim = common | near & ~_convex_hull(seen)
    return cv2.resize(rim.astype(np.uint8), depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def _reduced(readings: np.ndarray) -> np.ndarray:
    """Which pixels of a reduced copy have readings, bool [h,w]."""
    height, width = readings.shape
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    return cv2.resize(readings.astype(np.float32), size, interpolation=cv2.INTER_AREA) > READ


def _regions(readings: np.ndarray) -> np.ndarray:
    """Readings [h,w] with gaps closed and strays removed."""
    kernel = np.ones((STRAY, STRAY), np.uint8)
    padded = np.pad(readings.astype(np.uint8), STRAY)  # OpenCV would close a gap at the border
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel)[STRAY:-STRAY, STRAY:-STRAY] > 0


def _beyond(seen: np.ndarray, fewest_corners: int) -> np.ndarray:
    """What lies beyond the regions that are read, bool [h,w]: bands along whole sides, and corners.

    A band is no wider than WIDEST; corners are of the sizes CORNER, and none where fewer are dead.
    """
    if not seen.any():
        return np.zeros_like(seen)
    seen = seen.copy()
    for side in (seen, seen[::-1], seen.T, seen.T[::-1]):  # views of it
        if side.any(axis=1).argmax() > WIDEST * len(side):
            side[0] = side.any(axis=0)
    rows, columns = (_filled(np.max(seen, axis=axis)) for axis in (1, 0))
    rim = ~np.outer(rows, columns)
    _, parts, stats, _ = cv2.connectedComponentsWithStats((~_convex_hull(seen) & ~rim).astype(np.uint8))
    least, largest = (share * seen.size for share in CORNER)
    areas = stats[:, cv2.CC_STAT_AREA]
    corners = (areas >= least) & (areas <= largest)
    corners[0] = False  # what lies within the outline
    return rim | corners[parts] if corners.sum() >= fewest_corners else rim


def _filled(line: np.ndarray) -> np.ndarray:
    """A line bool [n], true from the first to the last place where it is."""
    return np.maximum.accumulate(line) & np.maximum.accumulate(line[::-1])[::-1]


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    """The smallest convex region that holds a mask, bool [h,w]; empty for an empty one."""
    hull = np.zeros(mask.shape, np.uint8)
    if mask.any():
        cv2.fillConvexPoly(hull, cv2.convexHull(cv2.findNonZero(mask.astype(np.uint8))), 1)
    return hull > 0
