"""Run the student on an image, a folder of images, a video or a camera, and draw what it sees.

Reads   a checkpoint and images (--input: an image file, a folder, a video file, or the number of a camera).
Writes  a picture per image (image | depth | classes) into --output-dir, for video and camera a video predictions.mp4;
        with --save-maps also <stem>_depth.npy (float32 metres) and <stem>_seg.npy (uint8 0..5) per image.

Depth is in metres of the camera given by --camera or --fx --fy, else of the camera that the student was trained on.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from cli import ArgumentParser, UserError, add_flags, given, positive_float, positive_int, resolve_device, run

import cv2
import numpy as np
from tqdm import tqdm

from config import Intrinsics, Runtime
from dataset.files import atomic_path, read_image, write_npy, write_png
from dataset.frames import IMAGE_SUFFIXES, camera_for, find_frames
from dataset.manifest import Cameras, possible
from dataset.pictures import colour_classes, colour_depth, depth_range, panel, stack
from evaluation.inference import predictor
from trainer.checkpoint import load_student

# What OpenCV and ffmpeg have to say of a file that is no video would bury the one line that this script says.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
VIDEO_FPS = 15.0  # of the written video when the source does not tell its own


def video_frames(source: str, limit: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """(stem, RGB uint8 [H,W,3]) of a video file or, when source is a number, of a camera; UserError if none comes."""
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    try:
        count = 0
        while limit is None or count < limit:
            decoded, picture = capture.read()
            if not decoded:
                break
            yield f"{count:06d}", cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            count += 1
    finally:
        capture.release()
    if not count:
        raise UserError(f"--input {source}: no image, folder, video or camera that can be read")


def images(source: Path, limit: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """(stem, RGB uint8 [H,W,3]) of one image file or of all images below a folder."""
    files = find_frames(source) if source.is_dir() else {source.stem: source}
    for stem, path in list(files.items())[:limit]:
        yield stem, read_image(path)


def camera_of(
    arguments: Namespace, cameras: Cameras | None, trained_on: dict | None, stem: str, rgb: np.ndarray
) -> Intrinsics | None:
    """The camera of one image: what the flags say, else the one that the student was trained on, if it was one."""
    height, width = rgb.shape[:2]
    if arguments.fx:
        return possible(Intrinsics.centred(arguments.fx, arguments.fy, width, height), "--fx --fy")
    if cameras:
        return camera_for(cameras.of(stem), rgb, stem)
    return Intrinsics(**trained_on) if trained_on else None


def draw(rgb: np.ndarray, depth: np.ndarray, seg: np.ndarray) -> np.ndarray:
    """Image, depth and classes side by side with the legend: RGB uint8."""
    near, far = depth_range(depth)
    tiles = [("image", rgb), (f"depth, {near:.1f} m red to {far:.1f} m blue", colour_depth(depth, near, far))]
    return stack([panel([*tiles, ("classes", colour_classes(seg))])])


def parse_arguments() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="best.pt of train.py")
    parser.add_argument("--input", required=True, help="image, folder, video file, or number of a camera")
    parser.add_argument("--output-dir", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument("--camera", type=Path, help="camera.json of the images, or of one with their aspect ratio")
    parser.add_argument("--fx", type=positive_float, help="focal length in pixels of the input images, with --fy")
    parser.add_argument("--fy", type=positive_float, help="focal length in pixels of the input images, with --fx")
    parser.add_argument("--save-maps", action="store_true", help="write depth and classes as .npy, too")
    parser.add_argument("--data-limit", type=positive_int, help="stop after so many images")
    add_flags(parser, Runtime(), "device")
    arguments = parser.parse_args()
    if bool(arguments.fx) != bool(arguments.fy):
        parser.error("--fx and --fy go together")
    return arguments


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    device = resolve_device(Runtime(**given(arguments, Runtime)).device)
    model, recipe, checkpoint = load_student(arguments.checkpoint)
    student = predictor(model.to(device), recipe, device)
    source = Path(arguments.input)
    is_video = not source.is_dir() and source.suffix.lower() not in IMAGE_SUFFIXES
    limit = arguments.data_limit
    frames = video_frames(str(source), limit) if is_video else images(source, limit)
    cameras = Cameras.read(arguments.camera) if arguments.camera else None
    trained_on = checkpoint.get("notes", {}).get("camera")
    output, count, video = arguments.output_dir, 0, None
    with ExitStack() as stack_of_files:
        for stem, rgb in tqdm(frames, desc="predicting", disable=None):
            camera = camera_of(arguments, cameras, trained_on, stem, rgb)
            if camera is None and not count:
                print("WARNING: no --camera: depth is in metres of the reference camera", file=sys.stderr)
            depth, seg = student(rgb, camera)
            picture = draw(rgb, depth, seg)
            if not is_video:
                write_png(output / f"{stem}.png", picture)
            else:
                if video is None:
                    path = stack_of_files.enter_context(atomic_path(output / "predictions.mp4"))
                    codec, size = cv2.VideoWriter.fourcc(*"mp4v"), (picture.shape[1], picture.shape[0])
                    video = cv2.VideoWriter(str(path), codec, VIDEO_FPS, size)
                    stack_of_files.callback(video.release)
                video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            if arguments.save_maps:
                write_npy(output / f"{stem}_depth.npy", depth.astype(np.float32))
                write_npy(output / f"{stem}_seg.npy", seg)
            count += 1
    print(f"{count} images: {output}")
    return 0


if __name__ == "__main__":
    run(main)
