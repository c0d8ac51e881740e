"""Convert an RGB-D recording to a data folder: images, depth, camera, and a split by time."""

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
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
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

MAX_FLAT_FRAMES = 10_000  # longer recordings are written to subfolders
COLOUR_SUFFIX, DEPTH_SUFFIX = ".color", ".depth.png"  # <stem>.color.jpg beside <stem>.depth.png
COLOUR_FOLDERS, DEPTH_FOLDER = ("rgb", "color"), "depth"
FOCAL_TOLERANCE = 1e-3  # relative difference between flag and intrinsics file above which to warn
MAX_CENTRE_OFFSET = 0.15  # of the image size; real principal points lie within a few per cent of the centre


class UnreadableFrameError(Exception):
    """An image that can't be decoded; its frame is skipped."""


def find_recording(folder: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """Find a recording's frames in natural order, and files without a counterpart.

    The layout is <stem>.color.jpg|png beside <stem>.depth.png, or subfolders rgb/ (or color/) and depth/ with equal
    stems.

    Returns: {stem: (colour image, depth image)} of all colour images, including those without depth, to keep the order
    in time; {stem: reason} of colour without depth and depth without colour. Raises UserError if the folder has neither
    layout, or if more than half of the colour images lack depth.
    """
    colour, depth = _find_file_pairs(folder)
    expected = f"{folder}/{{}}{DEPTH_SUFFIX}"
    if not colour:
        images = next((folder / name for name in COLOUR_FOLDERS if (folder / name).is_dir()), None)
        if images is None or not (folder / DEPTH_FOLDER).is_dir():
            raise UserError(
                f"{folder} is not a recording: expected <stem>{COLOUR_SUFFIX}.jpg and <stem>{DEPTH_SUFFIX} files, "
                "or subfolders rgb/ (or color/) and depth/"
            )
        colour, (depth, _) = find_frames(images), find_files(folder / DEPTH_FOLDER, (".png",))
        expected = f"{folder / DEPTH_FOLDER}/{{}}.png"
    stems = natsorted(colour.keys() | depth.keys(), key=lambda stem: stem.split("/"))
    frames = {s: (colour[s], depth.get(s) or Path(expected.replace("{}", s))) for s in stems if s in colour}
    unpaired = {
        s: f"{file.name} has no depth image {frame_depth}"
        for s, (file, frame_depth) in frames.items()
        if s not in depth
    }
    if 2 * len(unpaired) > len(frames):
        first = next(iter(unpaired.values()))
        raise UserError(f"{folder}: colour without depth in {len(unpaired)} of {len(frames)} frames: {first}")
    return frames, unpaired | {s: f"{depth[s].name} has no colour image" for s in stems if s not in colour}


def split_into_subfolders(frames: dict[str, tuple[Path, Path]]) -> dict[str, tuple[Path, Path]]:
    """Prefix the stems of a long recording with a subfolder per thousand frames; short recordings are unchanged.

    File systems, above all on clusters, slow down with very many files in a folder.
    """
    if len(frames) <= MAX_FLAT_FRAMES:
        return frames
    return {f"{number // 1000:04d}/{stem}": files for number, (stem, files) in enumerate(frames.items())}


def _find_file_pairs(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """({stem: colour image}, {stem: depth image}) of one folder, by the file names."""
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
    """Read fx, fy, cx, cy from a text file with a 3x3 camera matrix; raises UserError if it is invalid."""
    try:
        matrix = np.loadtxt(decode_text(path.read_bytes()).splitlines(), ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a text file of numbers: {error}") from None
    expected = "[fx 0 cx; 0 fy cy; 0 0 1]"
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise UserError(f"{path} is not a 3x3 camera matrix {expected} (shape {list(matrix.shape)})")
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]].tolist() != [0, 0, 0, 0, 1]:
        raise UserError(f"{path} is not a camera matrix {expected} with fx and fy above 0")
    fx, fy, cx, cy = (float(matrix[cell]) for cell in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return {"fx": fx, "fy": fy, "cx": cx, "cy": cy}


def find_intrinsics(folder: Path, file: Path | None, flags: dict[str, float]) -> dict[str, float]:
    """fx, fy, cx, cy in pixels of the colour images: from flags, the given file, or the folder's *intrinsics*.txt.

    Warns if a flag overrides a different value of the file. Raises UserError if a value is missing.
    """
    if file is None:
        files = (path for path in folder.iterdir() if not is_ignored(path.name))
        found = sorted(path for path in files if fnmatch(path.name.lower(), "*intrinsics*.txt"))
        if len(found) > 1 and len(flags) < 4:
            raise UserError(f"{folder} contains {', '.join(path.name for path in found)}: choose one with --intrinsics")
        file = found[0] if len(found) == 1 else None
    values = read_matrix(file) if file else {}
    for name, value in flags.items():
        if name in values and abs(value - values[name]) > FOCAL_TOLERANCE * abs(values[name]):
            print(f"warning: --{name} {value:g} overrides {values[name]:g} from {file}", file=sys.stderr)
    values |= flags
    missing = [f"--{name}" for name in ("fx", "fy", "cx", "cy") if name not in values]
    if missing:
        raise UserError(f"{folder} has no *intrinsics*.txt: set --intrinsics FILE or {' '.join(missing)}")
    return values


def split_by_time(stems: list[str], test: int, val: int, gap: int) -> dict[str, list[str]]:
    """Split in temporal order: train, gap, val, gap, test.

    Neighbouring frames are near-duplicates, so `gap` frames between two splits are excluded. There is no gap before an
    empty split.

    Returns {"train": stems, "val": stems, "test": stems}. Raises UserError if no frames are left for training.
    """
    split: dict[str, list[str]] = {}
    end = len(stems)
    for name, count in (("test", test), ("val", val)):
        split[name] = stems[end - count : end] if count <= end else []
        end -= count + gap if count else 0
    if end < 1:
        raise UserError(
            f"too few frames: of {len(stems)}, {test} for test, {val} for val and gaps of {gap} leave none for "
            "training; reduce --test-frames, --val-frames or --gap-frames"
        )
    return {"train": stems[:end], "val": split["val"], "test": split["test"]}


def load_frame(colour: Path, depth: Path, unit: DepthUnit | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Decode a frame: RGB uint8 [H,W,3] and depth float32 [H,W], metres, 0 = no reading; `unit` is that of the depth.

    Raises UnreadableFrameError if an image can't be decoded, and UserError if the recording is unsuitable: colour
    images with an EXIF orientation, 8-bit depth, or depth whose size differs from the colour image's.
    """
    try:
        rgb, raw = read_image(colour), read_png_raw(depth)
    except ImageOrientationError:
        raise
    except UserError as error:
        raise UnreadableFrameError(str(error)) from None
    if raw.shape != rgb.shape[:2]:
        raise UserError(
            f"{depth} is {raw.shape[1]}x{raw.shape[0]}, but its colour image is {rgb.shape[1]}x{rgb.shape[0]}: "
            "register depth to the colour camera"
        )
    return rgb, read_depth(depth, unit)


def image_size(frames: Iterable[tuple[Path, Path]], unit: DepthUnit | None) -> tuple[int, int]:
    """(width, height) of the first readable frame; raises UserError if there is none."""
    reason: UnreadableFrameError | None = None
    for colour, depth in frames:
        try:
            height, width = load_frame(colour, depth, unit)[1].shape
            return width, height
        except UnreadableFrameError as error:
            reason = reason or error
    raise UserError(f"no frame of the recording is readable; first error: {reason}")


@dataclass(frozen=True)
class FrameConverter:
    """Writes a recording's frames to a data folder.

    Attributes:
        out: the data folder.
        size: (width, height) that all images must have.
        depth_format: "png" for millimetres, "npy" for metres.
        unit: unit of the recording's depth; default millimetres.
    """

    out: Path
    size: tuple[int, int]
    depth_format: str
    unit: DepthUnit | None

    def convert(self, colour: Path, depth: Path, stem: str) -> None:
        """Write rgb/<stem>.* and depth/<stem>.png|npy unless both exist; raises the same errors as load_frame()."""
        rgb_file = self.out / "rgb" / f"{stem}{colour.suffix.lower()}"
        depth_file = self.out / "depth" / f"{stem}.{self.depth_format}"
        if rgb_file.is_file() and depth_file.is_file():
            return
        rgb, metres = load_frame(colour, depth, self.unit)
        if rgb.shape[1::-1] != self.size:
            width, height = self.size
            raise UserError(f"{colour} is {rgb.shape[1]}x{rgb.shape[0]}, but other frames are {width}x{height}")
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
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads an RGB-D recording: <stem>.color.jpg|png beside <stem>.depth.png, or folders rgb|color/ and depth/.\n"
        "Depth must be 16-bit PNG, registered to the colour images, in millimetres unless --depth-unit is given.\n"
        "Writes a data folder: rgb/ depth/ camera.json splits.json recordings.json source.json (failed_frames.jsonl\n"
        "if any fail).\n\n"
        "The split is by time: train, gap, val, gap, test; frames in a gap are excluded. A stopped run resumes.\n"
        "camera.json and splits.json are written last."
    )
    parser.add_argument("--input", required=True, help="folder of the recording")
    parser.add_argument("--out", required=True, type=Path, help="the data folder to write")
    parser.add_argument(
        "--intrinsics", help="text file with the colour camera's 3x3 matrix (default: *intrinsics*.txt)"
    )
    for name in ("fx", "fy", "cx", "cy"):
        parser.add_argument(f"--{name}", type=positive_float, help="in pixels of the colour images; overrides the file")
    parser.add_argument("--test-frames", type=positive_int, help="last frames, used for test (default: a sixth)")
    parser.add_argument(
        "--val-frames", type=non_negative_int, help="frames before those, used for val (default: a tenth)"
    )
    parser.add_argument("--gap-frames", type=non_negative_int, default=10, help="excluded between splits (default: 10)")
    parser.add_argument("--depth-format", choices=("png", "npy"), default="png", help="png: millimetres; npy: metres")
    add_unit_flag(parser, "the recording's depth")
    return parser.parse_args()


def choose_split(args: Namespace, stems: list[str]) -> dict[str, list[str]]:
    """Split the stems by the flags."""
    test = max(1, len(stems) // 6) if args.test_frames is None else args.test_frames
    val = max(1, len(stems) // 10) if args.val_frames is None else args.val_frames
    return split_by_time(stems, test, val, args.gap_frames)


def build_camera(args: Namespace, folder: Path, size: tuple[int, int]) -> Intrinsics:
    """The colour camera; raises UserError if it is implausible for these images."""
    flags = {name: getattr(args, name) for name in ("fx", "fy", "cx", "cy") if getattr(args, name) is not None}
    file = existing_file(args.intrinsics, "--intrinsics") if args.intrinsics else None
    values = find_intrinsics(folder, file, flags)
    camera = check_camera(Intrinsics(**values, width=size[0], height=size[1]), str(file or folder))
    warn_off_centre(camera)
    return camera


def warn_off_centre(camera: Intrinsics) -> None:
    """Warn if the principal point is far from the centre: a sign of intrinsics for a different resolution."""
    right, below = (camera.cx + 0.5) / camera.width - 0.5, (camera.cy + 0.5) / camera.height - 0.5
    if max(abs(right), abs(below)) > MAX_CENTRE_OFFSET:
        print(
            f"warning: the principal point {camera.cx:g}, {camera.cy:g} is far from the centre of images of "
            f"{camera.width}x{camera.height}: are the intrinsics for a different resolution?",
            file=sys.stderr,
        )


def describe_source(args: Namespace, folder: Path, n_frames: int, split: dict[str, list[str]]) -> dict:
    """The content of source.json: the recording, the split and the settings."""
    return {
        "recording": folder.resolve().name,
        "what": "RGB-D recording, split by time",
        "frames": n_frames,
        "split": {name: len(stems) for name, stems in split.items()},
        "gap_frames": args.gap_frames,
        "depth_format": args.depth_format,
    } | ({"depth_unit": args.depth_unit.name} if args.depth_unit else {})


def summary(n_frames: int, split: dict[str, list[str]], in_gaps: int, unreadable: int, unpaired: int) -> str:
    """The final line of a run, which accounts for every frame."""
    parts = ", ".join(f"{name} {len(stems)}" for name, stems in split.items())
    line = f"{n_frames} frames ({parts}); {in_gaps} excluded in the gaps between splits"
    counts = {"unreadable": unreadable, "without depth or without colour": unpaired}
    failed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return line + (f"; {failed}, listed in failed_frames.jsonl" if failed else "")


def main() -> int:
    """Run the script and return its exit code."""
    args = parse_args()
    folder = existing_dir(args.input, "--input")
    if args.out.resolve() == folder.resolve():
        raise UserError("--out is the recording's own folder: choose another folder")
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
                raise UserError(f"more than half of the {len(kept)} frames are unreadable; last error: {last}")
            if stop:
                print(f"stopped after {number} of {len(kept)} frames: run the same command to resume")
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
