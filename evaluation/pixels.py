"""Masks of a reference's valid pixels, shared by validation, Table IV, export and Table III.

A reference is the sensor's depth with the reference classes, or a teacher's maps. All predictions are compared with it
on the same pixels.
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
    """Whether a camera is NYU's, at any image size, so that the Eigen crop applies."""
    return camera is not None and camera == NYU_INTRINSICS.resized(camera.width, camera.height)


def student_window(height: int, width: int, recipe: Recipe) -> tuple[slice, slice]:
    """Rows and columns that the student sees of an image of the given size: a centre crop to its aspect ratio."""
    left, top, window_width, window_height = centre_crop(width, height, recipe.width / recipe.height)
    return slice(top, top + window_height), slice(left, left + window_width)


def in_range(depth: Map, recipe: Recipe) -> Map:
    """Mask of depth in metres that is within the evaluated range."""
    return (depth >= recipe.min_depth) & (depth <= recipe.max_depth)


def is_reading(confidence: Map, recipe: Recipe) -> Map:
    """Mask of pixels whose depth, by its confidence in 0..1, is a reading of the sensor."""
    return confidence >= recipe.confidence_threshold


def depth_mask(depth: Map, confidence: Map | None, recipe: Recipe, camera: Intrinsics | None) -> Map:
    """Mask of a reference's valid depth: bool, in depth's shape.

    Args:
        depth: float [...,H,W], metres of the image's camera, 0 = invalid.
        confidence: of the depth, [...,H,W] in 0..1; None: 1 everywhere, as for a teacher.
        recipe: the student's depth range, confidence threshold and aspect ratio.
        camera: the image's camera, if known.
    """
    height, width = depth.shape[-2:]
    mask = in_range(depth, recipe)
    if confidence is not None:
        mask = mask & is_reading(confidence, recipe)
    mask = _crop_mask(mask, student_window(height, width, recipe))
    return _crop_mask(mask, eigen_crop(height, width)) if is_nyu(camera) else mask


def class_mask(classes: Map, recipe: Recipe) -> Map:
    """Mask of a reference's valid classes, integers [...,H,W]: bool, in their shape."""
    height, width = classes.shape[-2:]
    return _crop_mask(classes != IGNORE, student_window(height, width, recipe))


def _crop_mask(mask: Map, window: tuple[slice, slice]) -> Map:
    cropped = mask & False
    cropped[..., window[0], window[1]] = mask[..., window[0], window[1]]
    return cropped
