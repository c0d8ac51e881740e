"""Floor, wall and gravity on real frames (RGBD_FRAMES) whose floor and walls are outlined by hand.

kitchen_outlines.json: {frame: [[class, [[x, y], ...]], ...]}, polygons in pixels of the colour image, painted in this
order. What hangs flat on a wall is wall, as in dataset/label_remapper.py; "ignore" is what a person can't tell or
can't outline: slats of a chair before the floor, a worktop full of things before the tiles.
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
PAINT = {"floor": FLOOR, "wall": WALL, "ignore": IGNORE}

pytestmark = pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no real frames at {KITCHEN} (set RGBD_FRAMES)")


def outlined(frame: str) -> np.ndarray:
    """uint8 [480,640]: floor, wall, other or IGNORE."""
    classes = np.full((CAMERA.height, CAMERA.width), OTHER, np.uint8)
    for name, corners in OUTLINES[frame]:
        cv2.fillPoly(classes, [np.int32(corners)], PAINT[name])
    return classes


def test_floor_and_wall_are_where_they_were_outlined():
    counts = dict.fromkeys((FLOOR, WALL), np.zeros(2))
    for frame in OUTLINES:
        depth = read_depth(KITCHEN / f"frame-{frame}.depth.png")
        found, reference = classify(depth, CAMERA).classes, outlined(frame)
        known = (reference != IGNORE) & (depth > 0)  # a sensor has an empty rim and holes, a teacher has not
        line = f"frame {frame}:"
        for name, class_id in (("floor", FLOOR), ("wall", WALL)):
            a, b = (found == class_id) & known, (reference == class_id) & known
            overlap = np.array([(a & b).sum(), (a | b).sum()])
            counts[class_id] = counts[class_id] + overlap
            line += f"  {name} " + (f"{overlap[0] / overlap[1]:.3f}" if overlap[1] else "none")
        print(line)
    floor, wall = (counts[class_id][0] / counts[class_id][1] for class_id in (FLOOR, WALL))
    print(f"{len(OUTLINES)} frames: IoU floor {floor:.3f}, wall {wall:.3f}")
    # cupboards and a television flush with the wall are called wall: without a detector geometry can't tell them
    assert floor > 0.86 and wall > 0.8


def test_gravity_is_the_same_in_the_world_whatever_the_camera_does():
    directions = []
    for path in sorted(KITCHEN.glob("frame-*.depth.png")):
        pose = np.loadtxt(str(path).replace(".depth.png", ".pose.txt"))  # camera to world
        directions.append(pose[:3, :3] @ classify(read_depth(path), CAMERA).gravity)
    common = np.median(directions, axis=0)
    deviation = np.degrees(np.arccos(np.clip(directions @ common / np.linalg.norm(common), -1, 1)))
    median, most = np.percentile(deviation, (50, 95))
    print(f"gravity over {len(directions)} frames: median deviation {median:.2f} degrees, 95 %: {most:.2f}")
    assert median < 3 and most < 5
