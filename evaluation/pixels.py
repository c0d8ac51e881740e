"""Valid pixels of a reference, for validation, Table IV, export and Table III alike.

A reference is the sensor's depth with the reference classes, or a teacher's. All predictions are compared with it on
the same pixels.
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
    """Rows and columns of NYU's evaluation crop, for an image of the given size."""
    top, bottom, left, right = EIGEN_CROP
    return slice(round(top * height), round(bottom * height)), slice(round(left * width), round(right * width))


def is_nyu(camera: Intrinsics | None) -> bool:
    """Whether a camera is NYU's, at any image size; the Eigen crop applies to it."""
    return camera is not None and camera == NYU_INTRINSICS.resized(camera.width, camera.height)


def student_window(height: int, width: int, recipe: Recipe) -> tuple[slice, slice]:
    """Rows and columns of an image of the given size that the student sees: those of its input's aspect ratio."""
    left, top, seen_width, seen_height = centre_crop(width, height, recipe.width / recipe.height)
    return slice(top, top + seen_height), slice(left, left + seen_width)


def scored_depth(depth: Map, confidence: Map | None, recipe: Recipe, camera: Intrinsics | None) -> Map:
    """Mask of the valid depth of a reference: bool, of depth's shape.

    Args:
        depth: float [...,H,W], metres of the image's camera, 0 = invalid.
        confidence: of the depth, [...,H,W] in 0..1; None: all of it is valid, as for a teacher.
        recipe: the student's: depth range, confidence threshold and aspect ratio.
        camera: of the image, if known.
    """
    height, width = depth.shape[-2:]
    counts = (depth >= recipe.min_depth) & (depth <= recipe.max_depth)
    if confidence is not None:
        counts = counts & (confidence >= recipe.confidence_threshold)
    counts = _inside(counts, student_window(height, width, recipe))
    return _inside(counts, eigen_crop(height, width)) if is_nyu(camera) else counts


def scored_classes(classes: Map, recipe: Recipe) -> Map:
    """Mask of the valid classes of a reference, integers [...,H,W]: bool, of their shape."""
    height, width = classes.shape[-2:]
    return _inside(classes != IGNORE, student_window(height, width, recipe))


def _inside(counts: Map, window: tuple[slice, slice]) -> Map:
    inside = counts & False
    inside[..., window[0], window[1]] = counts[..., window[0], window[1]]
    return inside
