"""A contact sheet of rendered frames, to look at."""

import cv2
import numpy as np

from rooms.scenes import RenderedFrame, class_table


def contact_sheet(frames: list[RenderedFrame]) -> np.ndarray:
    """Draw one row per frame, uint8 RGB: image, depth, labels, sensor depth; near is red, holes are black."""
    rows = []
    for frame in frames:
        max_depth = max(float(np.percentile(frame.depth, 98)), 0.1)
        depth, sensor = (_false_colour(image, max_depth) for image in (frame.depth, frame.sensor_depth))
        palette = np.random.default_rng(3).integers(40, 256, (len(class_table()[0]) + 1, 3)).astype(np.uint8)
        palette[0] = 0
        row = np.concatenate([frame.rgb, depth, palette[frame.labels], sensor], 1)
        rows.append(cv2.resize(row, (1280, 240), interpolation=cv2.INTER_AREA))
    return np.concatenate(rows)


def _false_colour(depth: np.ndarray, max_depth: float) -> np.ndarray:
    scaled = 255 - np.clip(depth / max_depth * 255, 0, 255).astype(np.uint8)
    colour = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.where(depth[..., None] > 0, colour, 0).astype(np.uint8)
