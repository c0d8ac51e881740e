"""Floor, wall and gravity on real frames (RGBD_FRAMES) with hand-drawn outlines of floor and walls.

kitchen_outlines.json: {frame: [[class, [[x, y], ...]], ...]}, polygons in pixels of the colour image, drawn in this
order. Flat objects on a wall are wall, as in dataset/label_remapper.py. "ignore" marks areas that a person can't
classify or outline, such as chair slats in front of the floor or a cluttered worktop in front of tiles.
"""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from box_room import FLOOR, OTHER, WALL

from config import IGNORE, Intrinsics
from dataset.frames import read_depth
from teacher_infer.geometry import classify

HERE = Path(__file__).resolve().parent
KITCHEN = Path(os.environ.get("RGBD_FRAMES") or HERE.parents[1] / "shared" / "rgbd_kitchen")
CAMERA = Intrinsics(528.0, 528.0, 323.7, 240.0, 640, 480)  # camera-intrinsics.txt of the frames
OUTLINES = json.loads((HERE / "kitchen_outlines.json").read_text(encoding="utf-8"))
CLASS_OF = {"floor": FLOOR, "wall": WALL, "ignore": IGNORE}

pytestmark = pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no real frames at {KITCHEN} (set RGBD_FRAMES)")


def outlines_to_classes(frame: str) -> np.ndarray:
    """uint8 [480,640]: floor, wall, other or IGNORE."""
    classes = np.full((CAMERA.height, CAMERA.width), OTHER, np.uint8)
    for name, corners in OUTLINES[frame]:
        cv2.fillPoly(classes, [np.int32(corners)], CLASS_OF[name])
    return classes


def test_floor_and_wall_match_the_outlines():
    counts = dict.fromkeys((FLOOR, WALL), np.zeros(2))
    for frame in OUTLINES:
        depth = read_depth(KITCHEN / f"frame-{frame}.depth.png")
        found, reference = classify(depth, CAMERA).classes, outlines_to_classes(frame)
        known = (reference != IGNORE) & (depth > 0)  # unlike a teacher's depth, a sensor's has a rim and holes
        line = f"frame {frame}:"
        for name, class_id in (("floor", FLOOR), ("wall", WALL)):
            a, b = (found == class_id) & known, (reference == class_id) & known
            overlap = np.array([(a & b).sum(), (a | b).sum()])
            counts[class_id] = counts[class_id] + overlap
            line += f"  {name} " + (f"{overlap[0] / overlap[1]:.3f}" if overlap[1] else "none")
        print(line)
    floor, wall = (counts[class_id][0] / counts[class_id][1] for class_id in (FLOOR, WALL))
    print(f"{len(OUTLINES)} frames: IoU floor {floor:.3f}, wall {wall:.3f}")
    # cupboards and a television flush with the wall become wall: only a detector can separate them
    assert floor > 0.86 and wall > 0.8


def test_gravity_in_world_axes_does_not_depend_on_the_camera_pose():
    directions = []
    for path in sorted(KITCHEN.glob("frame-*.depth.png")):
        pose = np.loadtxt(str(path).replace(".depth.png", ".pose.txt"))  # camera to world
        directions.append(pose[:3, :3] @ classify(read_depth(path), CAMERA).gravity)
    common = np.median(directions, axis=0)
    deviation = np.degrees(np.arccos(np.clip(directions @ common / np.linalg.norm(common), -1, 1)))
    median, p95 = np.percentile(deviation, (50, 95))
    print(f"gravity over {len(directions)} frames: median deviation {median:.2f} degrees, p95 {p95:.2f}")
    assert median < 3 and p95 < 5
