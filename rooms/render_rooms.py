"""Reads nothing; writes rendered rooms: to a .mat in the layout of nyu_depth_v2_labeled.mat, or to a data folder.

Renders furnished rooms and corridors with people, windows, mirrors and glass doors: colour, exact depth, classes,
instances, and simulated time-of-flight depth. The same seed gives the same arrays for any number of workers.

A .mat goes through every stage, as NYU Depth V2 does. A data folder is ready for training: it has a manifest, and each
frame is stored once. A stopped run resumes there, and --shard divides the rooms among the jobs of an array.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    from cli import EXIT_OK, ArgumentParser, UserError, existing_file, parse_shard, positive_float, positive_int, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

from tqdm import tqdm

from config import NYU_INTRINSICS, Intrinsics
from dataset.files import write_png
from dataset.manifest import Cameras
from rooms.contact_sheet import contact_sheet
from rooms.data_folder import write_data_folder
from rooms.flags import add_room_flags, focal_scale_range
from rooms.mat_file import write_mat
from rooms.scenes import RenderedFrame, SceneOptions, render_scenes

PREVIEW_ROWS = 8


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="PATH", help="file to write, e.g. rooms.mat, or a data folder"
    )
    add_room_flags(parser, scenes=60, frames_per_scene=4)
    parser.add_argument("--camera", metavar="FILE", help="camera.json of the camera to render for (default: NYU's)")
    parser.add_argument("--width", type=positive_int, help="width of the images in pixels (default: the camera's)")
    parser.add_argument(
        "--look",
        type=int,
        choices=(1, 2),
        default=1,
        help="version of the handheld views: 1 looks about level from a distance, 2 looks down, rolled and near, as "
        "people film (default: %(default)s)",
    )
    parser.add_argument(
        "--walk",
        type=positive_float,
        metavar="RATE",
        help="move the camera through each room at this many frames per second while people walk; rows get times",
    )
    parser.add_argument(
        "--shard",
        type=parse_shard,
        metavar="i/n",
        help="render every n-th room, starting with room i, i in 0..n-1, into the data folder, which all shards share",
    )
    parser.add_argument("--workers", type=positive_int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--preview", metavar="PNG", help="also write a contact sheet of the first frames of a .mat")
    return parser.parse_args()


def read_camera(path: str | None, width: int | None) -> Intrinsics:
    """The camera of a camera.json, resized to a width; default: NYU's. Raises UserError if it is invalid."""
    camera = NYU_INTRINSICS
    if path is not None:
        common = Cameras.read(existing_file(path, "--camera")).common
        if common is None:
            raise UserError(f"--camera {path} has one camera per frame: give a file with a single camera")
        camera = common
    if width is None:
        return camera
    return camera.resized(width, round(width * camera.height / camera.width))


def main() -> int:
    """Run the script and return its exit code."""
    args = parse_arguments()
    as_mat = args.out.suffix == ".mat"
    if args.preview and (not as_mat or Path(args.preview).suffix.lower() != ".png"):
        raise UserError(f"--preview {args.preview}: the name must end in .png, and --out in .mat")
    if as_mat and (args.shard or args.walk):
        raise UserError("--shard and --walk need a data folder: give --out a name without .mat")
    camera = read_camera(args.camera, args.width)
    focal_scales = focal_scale_range(args.focal_scale, camera)
    options = SceneOptions(args.seed, args.frames_per_scene, camera, focal_scales, args.view, args.walk, args.look)
    count = args.scenes * args.frames_per_scene
    if as_mat:
        frames = tqdm(render_scenes(options, args.scenes, args.workers), total=count, unit="frame", disable=None)
        preview: list[RenderedFrame] = []
        write_mat(args.out, _keep(frames, preview, args.frames_per_scene), count, camera.width, camera.height)
        if args.preview:
            write_png(args.preview, contact_sheet(preview))
    else:
        manifest = write_data_folder(args.out, options, args.scenes, args.workers, args.shard or (0, 1))
        if manifest is None:
            print(f"{args.out}: this shard is complete; the last one to end writes the manifest")
            return EXIT_OK
    focal = " to ".join(f"{factor:g}" for factor in args.focal_scale)
    rooms = f"{args.scenes} rooms, {args.view} view, seed {args.seed}"
    print(f"{args.out}: {count} frames of {rooms}, focal length {focal} times {args.camera or 'NYU'}'s")
    return EXIT_OK


def _keep(frames: Iterator[RenderedFrame], kept: list[RenderedFrame], step: int) -> Iterator[RenderedFrame]:
    """Yield the frames and keep the first one of each of the first rooms."""
    for index, frame in enumerate(frames):
        if index % step == 0 and len(kept) < PREVIEW_ROWS:
            kept.append(frame)
        yield frame


if __name__ == "__main__":
    run(main)
