"""Speed and memory of importing a ROS bag with dataset/corridor_loader.py.

Reads   RGB-D frames of 640x480 in a folder that dataset/corridor_loader.py takes (--frames, or $RGBD_FRAMES), or
        nothing: without them it renders rooms.
Writes  bags and data folders to a temporary folder (--scratch), removed at the end; prints a table.

Each bag repeats the frames at 30 frames/s. Reading the frames and writing the bag are not timed. Other programs on the
machine slow the import down; they hardly change the CPU time per frame.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from cli import ArgumentParser, cpu_count, existing_dir, positive_float, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tabulate import tabulate

from benchmarks.machine import processor
from config import NYU_INTRINSICS
from dataset.files import read_image
from dataset.frames import read_depth, to_millimetres
from dataset.layouts import find_recording

ROOT = Path(__file__).resolve().parents[1]
N_FRAMES = 48  # different ones, repeated
RATE = 30  # frames/s
FRAME, SENSOR = "color_optical_frame", "depth_optical_frame"
K_COLOUR, K_SENSOR = (528.0, 528.0, 323.7, 240.0), (585.0, 585.0, 320.0, 240.0)
CASES = (
    ("raw colour to PNG", False, False, ()),
    ("raw colour to JPEG", False, False, ("--rgb-format", "jpg")),
    ("the same without computed confidence", False, False, ("--rgb-format", "jpg", "--confidence", "valid")),
    ("JPEG colour, bytes kept", True, False, ()),
    ("raw colour to PNG, depth registered", False, True, ()),
    ("raw colour to JPEG, depth registered", False, True, ("--rgb-format", "jpg")),
)


def load_frames(folder: Path | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """RGB uint8 [480,640,3] and millimetres uint16 [480,640] of some frames; rendered without a folder."""
    if folder is not None:
        files = list(find_recording(folder)[0].values())
        chosen = files[:: max(1, len(files) // N_FRAMES)][:N_FRAMES]
        return [(read_image(colour), to_millimetres(read_depth(depth))) for colour, depth in chosen]
    from rooms.scenes import SceneOptions, render_scenes

    options = SceneOptions(seed=0, frames=4, camera=NYU_INTRINSICS)
    rendered = render_scenes(options, N_FRAMES // 4, cpu_count())
    return [(frame.rgb, to_millimetres(frame.sensor_depth)) for frame in rendered]


class BagMaker:
    """Writes mcap bags with rosbags."""

    def __init__(self, frames: list[tuple[np.ndarray, np.ndarray]]):
        self.store, self.frames = get_typestore(Stores.ROS2_HUMBLE), frames
        self.jpegs = [cv2.imencode(".jpg", rgb[..., ::-1])[1].reshape(-1) for rgb, _ in frames]

    def write(self, path: Path, count: int, compressed: bool, unregistered: bool) -> None:
        """Write a bag of `count` frames."""
        types, sensor = self.store.types, SENSOR if unregistered else FRAME
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
            connections: dict[str, Any] = {}
            for topic, nanoseconds, message in self._messages(types, count, compressed, sensor):
                if topic not in connections:
                    connections[topic] = bag.add_connection(topic, message.__msgtype__, typestore=self.store)
                content = self.store.serialize_cdr(message, message.__msgtype__)
                bag.write(connections[topic], nanoseconds, content)

    def _messages(self, types: dict, count: int, compressed: bool, sensor: str) -> Iterator[tuple[str, int, Any]]:
        def header(nanoseconds: int, frame: str) -> object:
            seconds = types["builtin_interfaces/msg/Time"](*divmod(nanoseconds, 10**9))
            return types["std_msgs/msg/Header"](seconds, frame)

        image, roi = types["sensor_msgs/msg/Image"], types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        for topic, frame in (("/color", FRAME), ("/depth", sensor)):
            fx, fy, cx, cy = K_COLOUR if frame == FRAME else K_SENSOR
            k, p = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1]), np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0])
            info = types["sensor_msgs/msg/CameraInfo"]
            numbers = ("plumb_bob", np.zeros(5), k, np.eye(3).reshape(-1), p, 0, 0, roi)
            yield f"{topic}/camera_info", 10**9, info(header(10**9, frame), 480, 640, *numbers)
        vector, turn = types["geometry_msgs/msg/Vector3"], types["geometry_msgs/msg/Quaternion"]
        transform = types["geometry_msgs/msg/Transform"](vector(-0.0355, -0.004, 0.0), turn(0.0, 0.0, 0.0, 1.0))
        stamped = types["geometry_msgs/msg/TransformStamped"](header(10**9, FRAME), SENSOR, transform)
        yield "/tf_static", 10**9, types["tf2_msgs/msg/TFMessage"]([stamped])
        for number in range(count):
            at = 10**9 + number * 10**9 // RATE
            rgb, depth = self.frames[number % len(self.frames)]
            if compressed:
                content = self.jpegs[number % len(self.jpegs)]
                yield (
                    "/color/compressed",
                    at,
                    types["sensor_msgs/msg/CompressedImage"](header(at, FRAME), "jpeg", content),
                )
            else:
                yield "/color/image_raw", at, image(header(at, FRAME), 480, 640, "rgb8", 0, 1920, rgb.reshape(-1))
            stored = depth.reshape(-1).view(np.uint8)
            yield "/depth/image_raw", at, image(header(at, sensor), 480, 640, "16UC1", 0, 1280, stored)


def import_bag(bag: Path, out: Path, flags: tuple[str, ...]) -> tuple[float, float, float]:
    """Run the importer; returns (seconds, CPU seconds, peak resident memory in MB)."""
    command = [
        sys.executable,
        str(ROOT / "dataset" / "corridor_loader.py"),
        "--input",
        str(bag),
        "--out",
        str(out),
        *flags,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--frames", help="folder of frames (default: $RGBD_FRAMES, else rendered rooms)")
    parser.add_argument("--count", type=positive_int, default=600, help="frames in each bag (default: %(default)s)")
    parser.add_argument(
        "--gigabytes", type=positive_float, help="also import one bag of raw colour and depth of this size"
    )
    parser.add_argument("--scratch", help="folder for the temporary files (default: the system's)")
    arguments = parser.parse_args()
    given = arguments.frames or os.environ.get("RGBD_FRAMES")
    maker = BagMaker(load_frames(existing_dir(given, "--frames") if given else None))
    cases = [(name, compressed, moved, flags, arguments.count) for name, compressed, moved, flags in CASES]
    if arguments.gigabytes:
        count = round(arguments.gigabytes * 1e9 / (640 * 480 * 5))
        cases.append(("raw colour to JPEG, a long bag", False, False, ("--rgb-format", "jpg"), count))
    rows = []
    for name, compressed, moved, flags, count in cases:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            bag = Path(scratch) / "bag"
            maker.write(bag, count, compressed, moved)
            size = sum(file.stat().st_size for file in bag.iterdir()) / 1e9
            seconds, cpu_seconds, memory = import_bag(bag, Path(scratch) / "out", flags)
        rows.append([name, count, size, count / seconds, 1000 * cpu_seconds / count, memory])
    headers = ["640x480 mcap", "frames", "GB", "frames/s", "CPU ms per frame", "peak memory, MB"]
    print(tabulate(rows, headers, floatfmt=("", "", ".2f", ".1f", ".1f", ".0f")))
    print(f"start of the program included; {cpu_count()} cores of {processor()}")


if __name__ == "__main__":
    run(main)
