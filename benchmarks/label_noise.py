"""Noise of a depth sensor's labels: a lower bound on the error that a student can reach against them.

Reads   an RGB-D recording (--frames, default: environment variable RGBD_FRAMES) in the layout of 7-Scenes:
        frame-*.depth.png in millimetres, frame-*.pose.txt from camera to world, camera-intrinsics.txt.
Writes  nothing; prints a table.

Each frame's depth is projected into the next frame with the two poses and compared with the readings there. Pose errors
increase the difference; systematic errors common to both frames do not show in it. A second row excludes depth edges,
where the two frames see different surfaces.
"""

import os
import sys
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, existing_file, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np
from natsort import natsorted
from tabulate import tabulate

from dataset.frames import read_depth

EDGE_THRESHOLD = 0.05  # relative difference of depth within 5 x 5 pixels


def away_from_edges(depth: np.ndarray) -> np.ndarray:
    """Pixels whose 5 x 5 neighbourhood has readings everywhere and no edge, bool [H,W]; depth [H,W] in metres."""
    window = np.ones((5, 5), np.uint8)
    nearest, farthest = cv2.erode(depth, window), cv2.dilate(depth, window)
    return (nearest > 0) & (farthest - nearest < EDGE_THRESHOLD * depth)


def compare_frames(
    depth: np.ndarray, other: np.ndarray, to_other: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Project the points of one frame into another and compare them with its readings.

    depth, other: float32 [H,W] metres, 0 = none. to_other: camera-to-camera transform [4,4]. intrinsics: [3,3].

    Returns, for each point that falls on a reading: the reading minus the projected depth in metres, and whether both
    pixels are away from edges.
    """
    rows, columns = np.nonzero(depth)
    pixels = np.stack([columns, rows, np.ones_like(rows)])
    points = np.linalg.inv(intrinsics) @ pixels * depth[rows, columns]
    projected = intrinsics @ (to_other[:3, :3] @ points + to_other[:3, 3:])
    height, width = other.shape
    x, y = np.rint(projected[:2] / projected[2]).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, expected = x[inside], y[inside], projected[2, inside]
    smooth = away_from_edges(depth)[rows[inside], columns[inside]] & away_from_edges(other)[y, x]
    has_reading = other[y, x] > 0
    return (other[y, x] - expected)[has_reading], smooth[has_reading]


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frames", type=Path, default=os.environ.get("RGBD_FRAMES"), help="default: $RGBD_FRAMES")
    arguments = parser.parse_args()
    if not arguments.frames:
        raise UserError("give --frames, the folder of an RGB-D recording, or set RGBD_FRAMES")
    intrinsics = np.loadtxt(existing_file(Path(arguments.frames) / "camera-intrinsics.txt", "--frames"))
    paths = natsorted(Path(arguments.frames).glob("frame-*.depth.png"), key=Path.as_posix)
    if len(paths) < 2:
        raise UserError(f"{arguments.frames} contains {len(paths)} frames; at least 2 are needed")
    poses = [np.loadtxt(str(path).replace(".depth.png", ".pose.txt")) for path in paths]
    depths = [read_depth(path) for path in paths]
    errors_by_pair, smooth_by_pair = [], []
    for index in range(len(paths) - 1):
        to_next = np.linalg.inv(poses[index + 1]) @ poses[index]
        pair_errors, pair_smooth = compare_frames(depths[index], depths[index + 1], to_next, intrinsics)
        errors_by_pair.append(pair_errors)
        smooth_by_pair.append(pair_smooth)
    errors, smooth = np.concatenate(errors_by_pair), np.concatenate(smooth_by_pair)
    table = [
        [name, len(values) / 1e6, np.sqrt(np.mean(values**2)), np.median(np.abs(values))]
        for name, values in (("all readings", errors), ("away from depth edges", errors[smooth]))
    ]
    print(tabulate(table, ["", "million pairs", "RMSE m", "median m"], floatfmt=".3f"))
    print(f"{len(paths)} frames, each compared with the next")


if __name__ == "__main__":
    run(main)
