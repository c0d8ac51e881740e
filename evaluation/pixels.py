"""Which pixels of a truth count: the one answer for validation, Table IV, export and Table III.

A truth is what an answer is compared with: the sensor's depth and reference classes, or a teacher's. All answers are
compared with it on the same pixels.
"""

from typing import TypeVar

import numpy as np
from torch import Tensor

from config import IGNORE, NYU_INTRINSICS, Intrinsics, Recipe
from dataset.frames import centre_crop

Map = TypeVar("Map", np.ndarray, Tensor)

# Eigen's crop of NYU's 640x480 frames, rows 45..470 and columns 41..600, as fractions of the height and width.
EIGEN_CROP = (45 / 480, 471 / 480, 41 / 640, 601 / 640)


def eigen_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of an image of the given size that NYU's depth is scored in."""
    top, bottom, left, right = EIGEN_CROP
    return slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))


def is_nyu(camera: Intrinsics | None) -> bool:
    """Whether a camera is NYU's, at any size of its images, so that the Eigen crop applies."""
    return camera is not None and camera == NYU_INTRINSICS.resized(camera.width, camera.height)


def student_window(height: int, width: int, recipe: Recipe) -> tuple[slice, slice]:
    """Rows and columns of an image of the given size that the student sees: those of its input's aspect ratio."""
    left, top, seen_width, seen_height = centre_crop(width, height, recipe.width / recipe.height)
    return slice(top, top + seen_height), slice(left, left + seen_width)


def scored_depth(depth: Map, confidence: Map | None, recipe: Recipe, camera: Intrinsics | None) -> Map:
    """Where the depth of a truth counts: bool, of depth's shape.

    Args:
        depth: float [...,H,W], metres of the image's camera, 0 = no value.
        confidence: of the depth, [...,H,W] in 0..1; None where all of it is to be believed, as a teacher's is.
        recipe: the student's; its depth range, its threshold for the confidence and its aspect ratio.
        camera: of the image, if it is known.
    """
    height, width = depth.shape[-2:]
    counts = (depth >= recipe.min_depth) & (depth <= recipe.max_depth)
    if confidence is not None:
        counts = counts & (confidence >= recipe.confidence_threshold)
    counts = _inside(counts, student_window(height, width, recipe))
    return _inside(counts, eigen_crop(height, width)) if is_nyu(camera) else counts


def scored_classes(classes: Map, recipe: Recipe) -> Map:
    """Where the classes of a truth, integers [...,H,W], count: bool, of their shape."""
    height, width = classes.shape[-2:]
    return _inside(classes != IGNORE, student_window(height, width, recipe))


def _inside(counts: Map, window: tuple[slice, slice]) -> Map:
    inside = counts & False
    inside[..., window[0], window[1]] = counts[..., window[0], window[1]]
    return inside
