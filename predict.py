"""Run the student on an image, a folder of images, a video or a camera, and visualise its predictions.

Reads   a student (by default the one that comes with the code) and images (--input: an image file, a folder, a video
        file, or the number of a camera). Images are rotated by their EXIF orientation.
Writes  one picture per image (image | depth | classes) into --output-dir, or predictions.mp4 for a video or camera;
        with --save-maps also <stem>_depth.npy (float32 metres) and <stem>_seg.npy (uint8 0..5) per image;
        failed_frames.jsonl lists unreadable images of a folder, which are skipped.

Depth is in metres for the camera given by --camera or --fx --fy. Without them, the focal length comes from the image's
EXIF data, else it is that of the training data's camera, else one is assumed and printed. On a signal, it finishes the
current image and keeps all files written so far. Exit codes: 0 done, or a camera was stopped; 2 wrong input; 75 stopped
with images left.
"""

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from cli import (
    EXIT_OK,
    EXIT_STOPPED,
    ArgumentParser,
    StopSignal,
    UserError,
    add_flags,
    flag_values,
    positive_float,
    positive_int,
    resolve_device,
    run,
)

import numpy as np
from tqdm import tqdm

from config import INCLUDED_STUDENT, Intrinsics, Recipe, Runtime, student_path
from dataset.files import (
    exif_focal_length,
    is_still_image,
    read_image,
    write_failed_frames,
    write_npy,
    write_png,
)
from dataset.frames import find_frames, rescale_camera
from dataset.listing import IMAGE_SUFFIXES, stem_of
from dataset.manifest import Cameras, check_camera
from dataset.pictures import colour_classes, colour_depth, depth_range, panel, stack
from dataset.video import Video, open_video_writer
from evaluation.inference import make_predictor
from trainer.checkpoint import load_student


class InputImages:
    """Iterates over the images of --input: (stem, RGB uint8 [H,W,3]).

    Attributes:
        video: the video, stream or camera that the images come from; None for image files.
        failed: {stem: reason} of the files that could not be read.
    """

    def __init__(self, source: str, output_dir: Path, limit: int | None):
        """Find the images; raises UserError if there are none or the output would overwrite them."""
        path, self.limit, self.video = Path(source), limit, None
        self.files: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        if path.is_dir():
            self.files = find_frames(path)
            output = output_dir.resolve()
            if path.resolve() == output:
                raise UserError(f"--output-dir {output_dir} is the folder of the images: choose another folder")
            self.files = {stem: file for stem, file in self.files.items() if output not in file.absolute().parents}
            if not self.files:
                raise UserError(f"--input {path} contains no images except the predictions in {output_dir}")
        elif path.suffix.lower() in IMAGE_SUFFIXES or is_still_image(path):
            self.files = {stem_of(Path(path.name)): path}
            if (target := output_dir / f"{next(iter(self.files))}.png").exists() and target.samefile(path):
                raise UserError(f"{path} would be overwritten by its prediction: choose another --output-dir")
        else:
            self.video = Video(source)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Read up to `limit` images. Unreadable images are skipped and recorded in `failed`.

        Raises UserError if none is readable.
        """
        if self.video:
            yield from ((f"{n:06d}", rgb) for n, rgb in enumerate(self.video.frames(self.limit)))
        chosen = list(self.files.items())[: self.limit]
        for stem, path in chosen:
            try:
                rgb = read_image(path, apply_orientation=True)
            except UserError as error:
                self.failed[stem] = str(error)
                if len(self.failed) == len(chosen):
                    raise
            else:
                yield stem, rgb

    @property
    def is_live(self) -> bool:
        """Whether only a signal ends the input, as for a camera; no images are left then."""
        return self.video is not None and self.video.is_live and self.limit is None


class CameraChooser:
    """Chooses the camera of each image: from the flags, its EXIF data, or the training data; else assumes one.

    Args:
        arguments: flags of the command line.
        recipe: the student's recipe, whose reference camera is assumed.
        trained_on: intrinsics of the training data's camera; None if it has several.
    """

    def __init__(self, arguments: Namespace, recipe: Recipe, trained_on: dict | None):
        self.arguments, self.recipe = arguments, recipe
        self.cameras = Cameras.read(arguments.camera) if arguments.camera else None
        self.trained_camera = Intrinsics(**trained_on) if trained_on else None
        self.told: set[str] = set()

    def __call__(self, stem: str, rgb: np.ndarray, file: Path | None) -> Intrinsics | None:
        """The camera of an image.

        Args:
            stem: the image's stem.
            rgb: uint8 [H,W,3].
            file: its file; None for a video.

        Raises UserError if the camera can't be right, or --camera has none for this image.
        """
        height, width = rgb.shape[:2]
        if self.arguments.fx:
            camera = Intrinsics.centred(self.arguments.fx, self.arguments.fy, width, height)
            return check_camera(camera, "--fx --fy")
        if self.cameras:
            return rescale_camera(self.cameras.for_frame(stem), rgb, stem)
        focal = exif_focal_length(file) if file else None
        if focal and not (camera := Intrinsics.centred(focal, focal, width, height)).problem:
            self._tell("EXIF", f"{stem}: the EXIF data says {describe_lens(camera)}")
            return camera
        if self.trained_camera:
            return self.trained_camera
        window = min(width, height * self.recipe.width / self.recipe.height)  # the part of the image that is used
        focal = self.recipe.reference_focal * window / self.recipe.width
        camera = Intrinsics.centred(focal, focal, width, height)
        self._tell(
            "assumed",
            f"WARNING: {stem}: the camera is unknown, so {describe_lens(camera)} are assumed; depth is proportional to "
            "the focal length: pass --fx --fy or --camera",
        )
        return camera

    def _tell(self, source: str, text: str) -> None:
        """Print a text to standard error, once per source."""
        if source not in self.told:
            print(text, file=sys.stderr)
        self.told.add(source)


def describe_lens(camera: Intrinsics) -> str:
    """A camera's focal length and horizontal field of view in words."""
    view = math.degrees(2 * math.atan(camera.width / 2 / camera.fx))
    return f"a focal length of {camera.fx:.0f} pixels and a field of view of {view:.0f} degrees"


def draw_prediction(rgb: np.ndarray, depth: np.ndarray, seg: np.ndarray) -> np.ndarray:
    """Draw image, depth and classes side by side, with a legend: RGB uint8 [H,W,3]."""
    near, far = depth_range(depth)
    tiles = [("image", rgb), (f"depth, {near:.1f} m red to {far:.1f} m blue", colour_depth(depth, near, far))]
    return stack([panel([*tiles, ("classes", colour_classes(seg))])])


def parse_arguments() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--checkpoint",
        type=student_path,
        help="best.pt of train.py (default: the student of weights/, which has seen rendered rooms alone)",
    )
    parser.add_argument("--input", required=True, help="image, folder, video file, or camera number")
    parser.add_argument("--output-dir", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument("--camera", type=Path, help="camera.json, for images of the same aspect ratio")
    parser.add_argument("--fx", type=positive_float, help="focal length in pixels of the input images, with --fy")
    parser.add_argument("--fy", type=positive_float, help="focal length in pixels of the input images, with --fx")
    parser.add_argument("--save-maps", action="store_true", help="also write depth and classes as .npy")
    parser.add_argument("--data-limit", type=positive_int, help="stop after this many images")
    add_flags(parser, Runtime(), "device")
    arguments = parser.parse_args()
    if bool(arguments.fx) != bool(arguments.fy):
        parser.error("--fx and --fy go together")
    return arguments


def picture_writer(output_dir: Path, video: Video | None, exit_stack: ExitStack) -> Callable[[str, np.ndarray], None]:
    """Return a function write(stem, picture) that writes a PNG file, or appends a frame to predictions.mp4.

    Args:
        output_dir: output folder.
        video: the input video; None for image files.
        exit_stack: closes the video on exit.
    """
    if video is None:
        return lambda stem, picture: write_png(output_dir / f"{stem}.png", picture)
    opened: list[Callable[[np.ndarray], None]] = []  # opened on the first frame: an mp4 can't be empty

    def append(stem: str, picture: np.ndarray) -> None:
        if not opened:
            size = (picture.shape[1], picture.shape[0])
            opened.append(exit_stack.enter_context(open_video_writer(output_dir / "predictions.mp4", video.fps, size)))
        opened[0](picture)

    return append


def main() -> int:
    """Run the script and return its exit code."""
    arguments = parse_arguments()
    device = resolve_device(Runtime(**flag_values(arguments, Runtime)).device)
    if not arguments.checkpoint:
        arguments.checkpoint = student_path(INCLUDED_STUDENT)
        print(f"student: {arguments.checkpoint}, which has seen rendered rooms alone")
    model, recipe, checkpoint = load_student(arguments.checkpoint)
    student = make_predictor(model.to(device), recipe, device)
    images = InputImages(arguments.input, arguments.output_dir, arguments.data_limit)
    choose_camera = CameraChooser(arguments, recipe, checkpoint.get("notes", {}).get("camera"))
    output, count, stopped_early = arguments.output_dir, 0, False
    with StopSignal() as stop, ExitStack() as exit_stack:
        write = picture_writer(output, images.video, exit_stack)
        for stem, rgb in tqdm(images, desc="predicting", disable=None):
            if stop:
                stopped_early = not images.is_live
                break
            depth, seg = student(rgb, choose_camera(stem, rgb, images.files.get(stem)))
            write(stem, draw_prediction(rgb, depth, seg))
            if arguments.save_maps:
                write_npy(output / f"{stem}_depth.npy", depth.astype(np.float32))
                write_npy(output / f"{stem}_seg.npy", seg)
            count += 1
    if images.video is None:
        write_failed_frames(output / "failed_frames.jsonl", images.failed)
    if images.failed:
        print(f"{len(images.failed)} images unreadable, see {output / 'failed_frames.jsonl'}", file=sys.stderr)
    if stopped_early and stop.received:
        print(f"stopped by {stop.received.name}: {count} images done, more remaining: {output}")
        return EXIT_STOPPED
    print(f"{count} images: {output}")
    return EXIT_OK


if __name__ == "__main__":
    run(main)
