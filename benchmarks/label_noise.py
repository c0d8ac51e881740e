"""How far a depth sensor's readings of the same surfaces differ: no student is closer to such labels than their noise.

Reads   an RGB-D recording (--frames, default: environment variable RGBD_FRAMES) in the layout of 7-Scenes:
        frame-*.depth.png in millimetres, frame-*.pose.txt from camera to world, camera-intrinsics.txt.
Writes  nothing; prints a table.

Each frame's depth is turned by the two poses into what the next frame should read, and compared with what it reads.
The poses' error and the systematic error that both readings share are not told apart from noise: the first makes the
difference larger, the second smaller. Depth edges are left out in a second row, since there the frames see other
surfaces.
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

EDGE = 0.05  # relative difference of depth within 5 x 5 pixels from which there is an edge


def away_from_edges(depth: np.ndarray) -> np.ndarray:
    """Bool [H,W]: readings with nothing but readings of nearly the same depth around them; depth [H,W] metres."""
    window = np.ones((5, 5), np.uint8)
    nearest, farthest = cv2.erode(depth, window), cv2.dilate(depth, window)
    return (nearest > 0) & (farthest - nearest < EDGE * depth)


def differences(
    depth: np.ndarray, other: np.ndarray, to_other: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the points of one frame with the readings of the other that they fall on.

    depth, other: float32 [H,W] metres, 0 = none; to_other: [4,4], camera to camera; intrinsics: [3,3].

    Returns: for each such point, reading minus expected depth in metres, and whether both lie away from edges.
    """
    rows, columns = np.nonzero(depth)
    pixels = np.stack([columns, rows, np.ones_like(rows)])
    points = np.linalg.inv(intrinsics) @ pixels * depth[rows, columns]
    seen = intrinsics @ (to_other[:3, :3] @ points + to_other[:3, 3:])
    height, width = other.shape
    x, y = np.rint(seen[:2] / seen[2]).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, expected = x[inside], y[inside], seen[2, inside]
    even = away_from_edges(depth)[rows[inside], columns[inside]] & away_from_edges(other)[y, x]
    read = other[y, x] > 0
    return (other[y, x] - expected)[read], even[read]


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frames", type=Path, default=os.environ.get("RGBD_FRAMES"), help="default: $RGBD_FRAMES")
    arguments = parser.parse_args()
    if not arguments.frames:
        raise UserError("--frames names the folder of an RGB-D recording")
    intrinsics = np.loadtxt(existing_file(Path(arguments.frames) / "camera-intrinsics.txt", "--frames"))
    paths = natsorted(Path(arguments.frames).glob("frame-*.depth.png"), key=Path.as_posix)
    if len(paths) < 2:
        raise UserError(f"{arguments.frames} holds {len(paths)} frames, two are needed")
    poses = [np.loadtxt(str(path).replace(".depth.png", ".pose.txt")) for path in paths]
    depths = [read_depth(path) for path in paths]
    found_by_pair, even_by_pair = [], []
    for index in range(len(paths) - 1):
        to_next = np.linalg.inv(poses[index + 1]) @ poses[index]
        difference, smooth = differences(depths[index], depths[index + 1], to_next, intrinsics)
        found_by_pair.append(difference)
        even_by_pair.append(smooth)
    found, even = np.concatenate(found_by_pair), np.concatenate(even_by_pair)
    table = [
        [name, len(values) / 1e6, np.sqrt(np.mean(values**2)), np.median(np.abs(values))]
        for name, values in (("all readings", found), ("away from depth edges", found[even]))
    ]
    print(tabulate(table, ["", "million pairs", "RMSE m", "median m"], floatfmt=".3f"))
    print(f"{len(paths)} frames, each with the next")


if __name__ == "__main__":
    run(main)
