"""A box-shaped room with a window and a cupboard, by ray-plane intersection: depth, labels and sensor holes."""

import json
from pathlib import Path

import cv2
import numpy as np

from config import CLASS_NAMES, Intrinsics

FLOOR, WALL, PERSON, FURNITURE, GLASS, OTHER = range(len(CLASS_NAMES))
CAMERA = Intrinsics(520.0, 520.0, 319.5, 239.5, 640, 480)
HALF_WIDTH, FRONT, BACK, FLOOR_BELOW, CEILING_ABOVE = 2.2, 4.0, -3.0, 1.3, 1.2  # metres from the camera
WINDOW = (-1.5, -0.3, -0.3, 0.7)  # left, right, bottom, top on the front wall: x and height
CUPBOARD = (0.3, 1.6, -1.3, 0.75, 2.6)  # left, right, bottom, top, distance of its front


def rotation(pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """World-to-camera rotation, float64 [3,3], from degrees; x right, y down, z forward; positive pitch looks down."""
    p, r = np.radians(pitch), np.radians(roll)
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return about_z @ about_x


def render(camera: Intrinsics = CAMERA, pitch: float = 0.0, roll: float = 0.0, cupboard: bool = False):
    """Render (depth float32 [H,W] metres, sensor depth with the window as a hole, labels uint8 [H,W])."""
    u = (np.arange(camera.width) - camera.cx) / camera.fx
    v = (np.arange(camera.height) - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(u, v), np.ones((camera.height, camera.width))], axis=-1) @ rotation(pitch, roll)
    planes = [
        ((0, 1, 0), FLOOR_BELOW, FLOOR),
        ((0, -1, 0), CEILING_ABOVE, OTHER),
        ((1, 0, 0), HALF_WIDTH, WALL),
        ((-1, 0, 0), HALF_WIDTH, WALL),
        ((0, 0, 1), FRONT, WALL),
        ((0, 0, -1), -BACK, WALL),
    ]
    depth = np.full(rays.shape[:2], np.inf)
    labels = np.full(rays.shape[:2], OTHER, dtype=np.uint8)
    for normal, offset, class_id in planes:
        towards = rays @ np.array(normal, float)
        z = np.where(towards > 1e-9, offset / np.where(towards > 1e-9, towards, 1), np.inf)
        labels[z < depth], depth = class_id, np.minimum(depth, z)
    front = _inside(rays, FRONT, WINDOW) & (np.abs((rays * depth[..., None])[..., 2] - FRONT) < 1e-6)
    labels[front] = GLASS
    if cupboard:
        face = _inside(rays, CUPBOARD[4], CUPBOARD[:4]) & (rays[..., 2] * depth > CUPBOARD[4])
        labels[face], depth[face] = FURNITURE, CUPBOARD[4] / rays[..., 2][face]
    depth = depth.astype(np.float32)
    return depth, np.where(labels == GLASS, 0, depth).astype(np.float32), labels


def _inside(rays: np.ndarray, distance: float, rectangle) -> np.ndarray:
    left, right, bottom, top = rectangle
    point = rays * (distance / np.maximum(rays[..., 2:], 1e-9))
    return (point[..., 0] > left) & (point[..., 0] < right) & (-point[..., 1] > bottom) & (-point[..., 1] < top)


def intersection_over_union(predicted: np.ndarray, labels: np.ndarray, class_id: int) -> float:
    """IoU of one class in two class maps."""
    union = (predicted == class_id) | (labels == class_id)
    return float(((predicted == class_id) & (labels == class_id)).sum() / union.sum())


def write_folder(root: Path, stems=("a/000", "a/001", "b/000", "b/001"), size=(160, 120)) -> Path:
    """Write a data folder with rgb, depth, confidence, labels, instances, camera.json, splits.json; returns `root`."""
    camera = CAMERA.resized(*size)
    for index, stem in enumerate(stems):
        depth, sensor, labels = render(camera, pitch=5.0 * index, cupboard=True)
        rgb = np.repeat((labels * 40)[..., None], 3, axis=-1)
        instances = (labels == FURNITURE).astype(np.uint16)
        for name, array in (("rgb", rgb), ("labels", labels), ("instances", instances)):
            path = root / name / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)
        for name, array in (("depth", depth), ("confidence", (sensor > 0).astype(np.float32))):
            path = root / name / f"{stem}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    (root / "camera.json").write_text(json.dumps(camera.__dict__))
    (root / "splits.json").write_text(json.dumps({"train": list(stems[:-2]), "val": [stems[-2]], "test": [stems[-1]]}))
    return root
