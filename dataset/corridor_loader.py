"""An RGB-D recording as sensors leave it -> a data folder: images, depth, camera, splits by time."""

import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

try:
    from cli import (
        EXIT_OK,
        EXIT_STOPPED,
        ArgumentParser,
        StopSignal,
        UserError,
        existing_dir,
        existing_file,
        non_negative_int,
        positive_float,
        positive_int,
        run,
    )
except ModuleNotFoundError:
    print("error: this Python lacks the project itself: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
from natsort import natsorted
from tqdm import tqdm

from config import Intrinsics
from dataset.files import (
    ImageOrientationError,
    atomic_path,
    decode_text,
    prepare_data_folder,
    read_image,
    read_png_raw,
    write_failed_frames,
    write_json,
    write_npy,
    write_png,
)
from dataset.frames import check_depth_unit, find_frames, read_depth, to_millimetres
from dataset.listing import (
    IMAGE_SUFFIXES,
    add_file,
    find_files,
    is_ignored,
    require_separate_output,
    stem_of,
)
from dataset.manifest import check_camera
from dataset.units import UNITS, DepthUnit, add_unit_flag

MAX_FLAT_FRAMES = 10_000  # frames; one folder holds no more
COLOUR_SUFFIX, DEPTH_SUFFIX = ".color", ".depth.png"  # <stem>.color.jpg beside <stem>.depth.png
COLOUR_FOLDERS, DEPTH_FOLDER = ("rgb", "color"), "depth"
FOCAL_TOLERANCE = 1e-3  # relative difference between a flag and the intrinsics file that is worth a warning
MAX_CENTRE_OFFSET = 0.15  # of the image's size; cameras' principal points lie within a few per cent of the middle


class UnreadableFrameError(Exception):
    """An image of a frame that can't be decoded: the frame is left out, the recording goes on."""


def find_recording(folder: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """The frames of a recording by stem, in natural order, and why some files are but half of a frame.

    Either <stem>.color.jpg|png beside <stem>.depth.png, or the sub-folders rgb/ or color/ and depth/ with equal stems.

    Returns: {stem: (colour image, depth image)} of all colour images, so that one without depth keeps its place in
    time; {stem: reason} of colour without depth and of depth without colour. Raises UserError when the folder is
    neither, or when more than half of the colour images have no depth image.
    """
    colour, depth = _find_file_pairs(folder)
    expected = f"{folder}/{{}}{DEPTH_SUFFIX}"
    if not colour:
        images = next((folder / name for name in COLOUR_FOLDERS if (folder / name).is_dir()), None)
        if images is None or not (folder / DEPTH_FOLDER).is_dir():
            raise UserError(
                f"{folder} is no recording: expected <stem>{COLOUR_SUFFIX}.jpg and <stem>{DEPTH_SUFFIX} files, "
                "or sub-folders rgb/ (or color/) and depth/"
            )
        colour, (depth, _) = find_frames(images), find_files(folder / DEPTH_FOLDER, (".png",))
        expected = f"{folder / DEPTH_FOLDER}/{{}}.png"
    stems = natsorted(colour.keys() | depth.keys(), key=lambda stem: stem.split("/"))
    frames = {s: (colour[s], depth.get(s) or Path(expected.replace("{}", s))) for s in stems if s in colour}
    unpaired = {s: f"{file.name} needs {frame_depth}" for s, (file, frame_depth) in frames.items() if s not in depth}
    if 2 * len(unpaired) > len(frames):
        first = next(iter(unpaired.values()))
        raise UserError(f"{folder}: colour without depth in {len(unpaired)} of {len(frames)} frames: {first}")
    return frames, unpaired | {s: f"{depth[s].name} has no colour image" for s in stems if s not in colour}


def split_into_subfolders(frames: dict[str, tuple[Path, Path]]) -> dict[str, tuple[Path, Path]]:
    """The frames of a long recording under stems with a sub-folder for each thousand; a short one's as they are.

    No folder should hold a million files: clusters' file systems, and all that lists a folder, slow down with them.
    """
    if len(frames) <= MAX_FLAT_FRAMES:
        return frames
    return {f"{number // 1000:04d}/{stem}": files for number, (stem, files) in enumerate(frames.items())}


def _find_file_pairs(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """({stem: colour image}, {stem: depth image}) of the files of one folder that are named so."""
    colour: dict[str, Path] = {}
    depth: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = Path(path.name)
        if is_ignored(path.name):
            continue
        if path.name.lower().endswith(DEPTH_SUFFIX):
            add_file(depth, stem_of(name.with_suffix("")), path)
        elif name.suffix.lower() in IMAGE_SUFFIXES and name.stem.lower().endswith(COLOUR_SUFFIX):
            add_file(colour, stem_of(name.with_suffix("")), path)
    return colour, depth


def read_matrix(path: Path) -> dict[str, float]:
    """fx, fy, cx, cy from a text file with the camera's 3x3 matrix; raises UserError when it is none."""
    try:
        matrix = np.loadtxt(decode_text(path.read_bytes()).splitlines(), ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no text file of numbers: {error}") from None
    expected = "[fx 0 cx; 0 fy cy; 0 0 1]"
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise UserError(f"{path} holds {list(matrix.shape)} numbers, not a 3x3 camera matrix {expected}")
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]].tolist() != [0, 0, 0, 0, 1]:
        raise UserError(f"{path} is no camera matrix {expected} with fx and fy above 0")
    fx, fy, cx, cy = (float(matrix[cell]) for cell in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return {"fx": fx, "fy": fy, "cx": cx, "cy": cy}


def find_intrinsics(folder: Path, file: Path | None, flags: dict[str, float]) -> dict[str, float]:
    """fx, fy, cx, cy in pixels of the colour images: flags, else the intrinsics file, else the folder's own.

    Warns when a flag overrides another value of the file. Raises UserError when a number is in neither.
    """
    if file is None:
        files = (path for path in folder.iterdir() if not is_ignored(path.name))
        found = sorted(path for path in files if fnmatch(path.name.lower(), "*intrinsics*.txt"))
        if len(found) > 1 and len(flags) < 4:
            raise UserError(f"{folder} holds {', '.join(path.name for path in found)}: choose with --intrinsics")
        file = found[0] if len(found) == 1 else None
    values = read_matrix(file) if file else {}
    for name, value in flags.items():
        if name in values and abs(value - values[name]) > FOCAL_TOLERANCE * abs(values[name]):
            print(f"warning: --{name} {value:g} overrides {values[name]:g} of {file}", file=sys.stderr)
    values |= flags
    missing = [f"--{name}" for name in ("fx", "fy", "cx", "cy") if name not in values]
    if missing:
        raise UserError(f"{folder} has no *intrinsics*.txt: give --intrinsics FILE or {' '.join(missing)}")
    return values


def split_by_time(stems: list[str], test: int, val: int, gap: int) -> dict[str, list[str]]:
    """{"train": stems, "val": stems, "test": stems} in order of time: train, gap, val, gap, test.

    Neighbouring frames of a recording are near-duplicates, so `gap` frames at each border belong to no split. No gap
    goes before an empty split. Raises UserError when nothing is left to train on.
    """
    split: dict[str, list[str]] = {}
    end = len(stems)
    for name, count in (("test", test), ("val", val)):
        split[name] = stems[end - count : end] if count <= end else []
        end -= count + gap if count else 0
    if end < 1:
        raise UserError(
            f"too few frames: of {len(stems)}, {test} for test, {val} for val and gaps of {gap} leave none for "
            "training; lower --test-frames, --val-frames or --gap-frames"
        )
    return {"train": stems[:end], "val": split["val"], "test": split["test"]}


def load_frame(colour: Path, depth: Path, unit: DepthUnit | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Decode a frame: RGB uint8 [H,W,3] and depth float32 [H,W], metres, 0 = no reading; unit: of the depth image.

    Raises UnreadableFrameError when an image can't be decoded, and UserError when the recording is of the wrong kind:
    turned colour images, 8-bit depth, or depth that is not registered to the colour image's size.
    """
    try:
        rgb, raw = read_image(colour), read_png_raw(depth)
    except ImageOrientationError:
        raise
    except UserError as error:
        raise UnreadableFrameError(str(error)) from None
    if raw.shape != rgb.shape[:2]:
        raise UserError(
            f"{depth} is {raw.shape[1]}x{raw.shape[0]} but its colour image is {rgb.shape[1]}x{rgb.shape[0]}: "
            "depth must be registered to the colour camera"
        )
    return rgb, read_depth(depth, unit)


def image_size(frames: Iterable[tuple[Path, Path]], unit: DepthUnit | None) -> tuple[int, int]:
    """(width, height) of the first readable frame; raises UserError when there is none."""
    reason: UnreadableFrameError | None = None
    for colour, depth in frames:
        try:
            height, width = load_frame(colour, depth, unit)[1].shape
            return width, height
        except UnreadableFrameError as error:
            reason = reason or error
    raise UserError(f"no frame of the recording is readable; the first: {reason}")


@dataclass(frozen=True)
class FrameConverter:
    """What becomes of a recording's frames.

    out: the data folder; size: (width, height) that all images must have; depth_format: png, millimetres, or npy,
    metres; unit: of the recording's depth, millimetres unless given.
    """

    out: Path
    size: tuple[int, int]
    depth_format: str
    unit: DepthUnit | None

    def convert(self, colour: Path, depth: Path, stem: str) -> None:
        """Write rgb/<stem>.* and depth/<stem>.png|npy unless both exist; errors as load_frame."""
        rgb_file = self.out / "rgb" / f"{stem}{colour.suffix.lower()}"
        depth_file = self.out / "depth" / f"{stem}.{self.depth_format}"
        if rgb_file.is_file() and depth_file.is_file():
            return
        rgb, metres = load_frame(colour, depth, self.unit)
        if rgb.shape[1::-1] != self.size:
            width, height = self.size
            raise UserError(f"{colour} is {rgb.shape[1]}x{rgb.shape[0]}, other frames are {width}x{height}")
        if self.depth_format == "npy":
            write_npy(depth_file, metres)
        elif self.unit in (None, UNITS["mm"]):
            _copy(depth, depth_file)
        else:
            write_png(depth_file, to_millimetres(metres))
        _copy(colour, rgb_file)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def parse_args() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(
        "Reads an RGB-D recording: <stem>.color.jpg|png beside <stem>.depth.png, or folders rgb|color/ and depth/;\n"
        "depth is 16-bit PNG, registered to the colour images, in millimetres unless --depth-unit says otherwise.\n"
        "Writes a data folder: rgb/ depth/ camera.json splits.json recordings.json source.json (failed_frames.jsonl\n"
        "if any fail).\n\n"
        "The split is by time: train, gap, val, gap, test. Frames of a gap are left out. A run that was stopped\n"
        "goes on where it was; camera.json and splits.json come last."
    )
    parser.add_argument("--input", required=True, help="folder of the recording")
    parser.add_argument("--out", required=True, type=Path, help="the data folder to write")
    parser.add_argument(
        "--intrinsics", help="text file with the colour camera's 3x3 matrix (default: *intrinsics*.txt)"
    )
    for name in ("fx", "fy", "cx", "cy"):
        parser.add_argument(f"--{name}", type=positive_float, help="pixels of the colour images; overrides the file")
    parser.add_argument("--test-frames", type=positive_int, help="last frames, for test (default: a sixth)")
    parser.add_argument("--val-frames", type=non_negative_int, help="frames before them, for val (default: a tenth)")
    parser.add_argument("--gap-frames", type=non_negative_int, default=10, help="left out at each border (default: 10)")
    parser.add_argument("--depth-format", choices=("png", "npy"), default="png", help="png: millimetres; npy: metres")
    add_unit_flag(parser, "the recording's depth")
    return parser.parse_args()


def choose_split(args: Namespace, stems: list[str]) -> dict[str, list[str]]:
    """The split that the flags ask for."""
    test = max(1, len(stems) // 6) if args.test_frames is None else args.test_frames
    val = max(1, len(stems) // 10) if args.val_frames is None else args.val_frames
    return split_by_time(stems, test, val, args.gap_frames)


def build_camera(args: Namespace, folder: Path, size: tuple[int, int]) -> Intrinsics:
    """The colour camera; raises UserError when there can be no such camera with these images."""
    flags = {name: getattr(args, name) for name in ("fx", "fy", "cx", "cy") if getattr(args, name) is not None}
    file = existing_file(args.intrinsics, "--intrinsics") if args.intrinsics else None
    values = find_intrinsics(folder, file, flags)
    camera = check_camera(Intrinsics(**values, width=size[0], height=size[1]), str(file or folder))
    warn_off_centre(camera)
    return camera


def warn_off_centre(camera: Intrinsics) -> None:
    """Warn of a principal point far from the middle: intrinsics of a larger image give one, and a wrong scale."""
    right, below = (camera.cx + 0.5) / camera.width - 0.5, (camera.cy + 0.5) / camera.height - 0.5
    if max(abs(right), abs(below)) > MAX_CENTRE_OFFSET:
        print(
            f"warning: the principal point {camera.cx:g}, {camera.cy:g} lies far from the middle of images of "
            f"{camera.width}x{camera.height}: are these intrinsics of another resolution?",
            file=sys.stderr,
        )


def describe_source(args: Namespace, folder: Path, n_frames: int, split: dict[str, list[str]]) -> dict:
    """source.json: what the folder was made from, and how it was cut."""
    return {
        "recording": folder.resolve().name,
        "what": "RGB-D recording, split by time",
        "frames": n_frames,
        "split": {name: len(stems) for name, stems in split.items()},
        "gap_frames": args.gap_frames,
        "depth_format": args.depth_format,
    } | ({"depth_unit": args.depth_unit.name} if args.depth_unit else {})


def summary(n_frames: int, split: dict[str, list[str]], in_gaps: int, unreadable: int, unpaired: int) -> str:
    """The line that ends a run: no frame is lost without a word."""
    parts = ", ".join(f"{name} {len(stems)}" for name, stems in split.items())
    line = f"{n_frames} frames ({parts}); {in_gaps} in the gaps between the splits left out"
    counts = {"unreadable": unreadable, "without depth or without colour": unpaired}
    failed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return line + (f"; {failed}, listed in failed_frames.jsonl" if failed else "")


def main() -> int:
    """Run the script; returns the exit code."""
    args = parse_args()
    folder = existing_dir(args.input, "--input")
    if args.out.resolve() == folder.resolve():
        raise UserError("--out is the recording itself: choose another folder")
    require_separate_output(args.out, "--out", *(folder / name for name in (*COLOUR_FOLDERS, DEPTH_FOLDER)))
    found, unpaired = find_recording(folder)
    frames = split_into_subfolders(found)
    stems = dict(zip(found, frames, strict=True))
    unpaired = {stems.get(stem, stem): reason for stem, reason in unpaired.items()}
    split = choose_split(args, list(frames))
    if args.depth_unit:
        print(f"depth: {args.depth_unit.what}")
    else:
        check_depth_unit(folder, (depth for _, depth in frames.values()))
    size = image_size(frames.values(), args.depth_unit)
    camera = build_camera(args, folder, size)
    prepare_data_folder(args.out, describe_source(args, folder, len(frames), split), ("rgb", "depth"))
    kept = [stem for stems in split.values() for stem in stems]
    converter = FrameConverter(args.out, size, args.depth_format, args.depth_unit)
    failed = {stem: unpaired[stem] for stem in kept if stem in unpaired}
    unreadable = 0
    with StopSignal() as stop:
        for number, stem in enumerate(tqdm(kept, unit="frame", disable=None), 1):
            try:
                if stem not in failed:
                    converter.convert(*frames[stem], stem)
            except UnreadableFrameError as error:
                failed[stem] = str(error)
                unreadable += 1
            if 2 * len(failed) > len(kept):
                last = list(failed.values())[-1]
                raise UserError(f"more than half of the {len(kept)} frames are unreadable; the last: {last}")
            if stop:
                print(f"stopped after {number} of {len(kept)} frames: the same command goes on")
                return EXIT_STOPPED
    split = {name: [stem for stem in stems if stem not in failed] for name, stems in split.items()}
    write_failed_frames(args.out / "failed_frames.jsonl", failed | unpaired)
    write_json(args.out / "camera.json", asdict(camera))
    recording = folder.resolve().name
    write_json(args.out / "recordings.json", {stem: recording for stems in split.values() for stem in stems})
    write_json(args.out / "splits.json", split)
    print(summary(len(frames), split, len(frames) - len(kept), unreadable, len(unpaired)))
    return EXIT_OK


if __name__ == "__main__":
    run(main)
