"""Visualisation: colour-mapped depth, errors and classes, in captioned panels."""

from collections.abc import Sequence

import cv2
import numpy as np

from config import CLASS_COLOURS, CLASS_NAMES, IGNORE

CAPTION_HEIGHT = 22
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def colour_depth(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """Colour depth [H,W] in metres as RGB uint8 [H,W,3]: near is red, far is blue, invalid is black."""
    closeness = np.clip((farthest - depth) / max(farthest - nearest, 1e-6), 0, 1)
    coloured = cv2.applyColorMap((np.nan_to_num(closeness) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    picture = cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)
    picture[~(np.nan_to_num(depth) > 0)] = 0
    return picture


def depth_range(*depths: np.ndarray) -> tuple[float, float]:
    """Common colour range (nearest, farthest) of several maps, metres: 2nd and 98th percentile of the valid pixels."""
    valid = np.concatenate([depth[np.nan_to_num(depth) > 0].ravel() for depth in depths])
    return (float(np.percentile(valid, 2)), float(np.percentile(valid, 98))) if valid.size else (0.0, 1.0)


def colour_error(predicted: np.ndarray, reference: np.ndarray, largest: float = 1.0) -> np.ndarray:
    """Colour the signed depth error as RGB uint8 [H,W,3]: blue = too near, red = too far, black = no reference."""
    error = np.nan_to_num(np.clip((predicted - reference) / largest, -1, 1))
    white = 1 - np.abs(error)
    picture = np.stack([np.where(error > 0, 1, white), white, np.where(error < 0, 1, white)], axis=-1)
    picture[~(np.nan_to_num(reference) > 0)] = 0
    return (picture * 255).astype(np.uint8)


def colour_classes(classes: np.ndarray) -> np.ndarray:
    """Class map uint8 [H,W] as RGB uint8 [H,W,3]; ignored pixels are black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(CLASS_COLOURS)] = CLASS_COLOURS
    palette[IGNORE] = 0
    return palette[classes]


def class_legend(width: int) -> np.ndarray:
    """A legend of the class names and colours, RGB uint8 [22,width,3]."""
    strip = np.full((CAPTION_HEIGHT, width, 3), 255, dtype=np.uint8)
    step = width / len(CLASS_NAMES)
    for index, (name, colour) in enumerate(zip(CLASS_NAMES, CLASS_COLOURS, strict=True)):
        left = int(index * step)
        strip[4:-4, left + 4 : left + 18] = colour
        cv2.putText(strip, name, (left + 22, CAPTION_HEIGHT - 7), FONT, FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def panel(pictures: Sequence[tuple[str, np.ndarray]], width: int = 320) -> np.ndarray:
    """Place captioned images side by side, each resized to `width`: RGB uint8 [H,W,3]."""
    columns = []
    for caption, picture in pictures:
        height = round(picture.shape[0] * width / picture.shape[1])
        strip = np.full((CAPTION_HEIGHT, width, 3), 255, dtype=np.uint8)
        cv2.putText(strip, caption, (4, CAPTION_HEIGHT - 7), FONT, FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
        smaller = picture.shape[1] >= width
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
        columns.append(np.vstack([strip, resized]))
    tallest = max(column.shape[0] for column in columns)
    white = (255, 255, 255)
    return np.hstack(
        [cv2.copyMakeBorder(c, 0, tallest - c.shape[0], 0, 4, cv2.BORDER_CONSTANT, value=white) for c in columns]
    )


def stack(panels: Sequence[np.ndarray], legend: bool = True) -> np.ndarray:
    """Stack panels of equal width vertically, with the class legend at the bottom."""
    return np.vstack([*panels, class_legend(panels[0].shape[1])] if legend else list(panels))
