"""Build the manifest from images, depth and the teachers' outputs."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    from cli import ArgumentParser, UserError, add_flags, existing_dir, flag_values, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np
from PIL import Image
from tqdm import tqdm

from config import Intrinsics, Recipe, Runtime
from dataset.alignment import seam_step, sensor_scale
from dataset.confidence import CALIBRATION, COMPUTED
from dataset.files import DECODE_ERRORS, check_orientation, orientation_of, read_image, read_json, write_json
from dataset.frames import (
    check_depth_unit,
    find_frames,
    find_map,
    read_classes,
    read_confidence,
    read_depth,
    read_seg_confidence,
    rescale_camera,
)
from dataset.identity import fingerprint
from dataset.links import DataFolder
from dataset.listing import find_data_folder, is_ignored, walk_folders
from dataset.manifest import (
    Cameras,
    Row,
    read_confidence_origins,
    read_gravity,
    read_poses,
    read_recordings,
    read_splits,
    read_times,
    write_manifest,
)
from dataset.units import DepthUnit, add_unit_flag
from teacher_infer.stage import PROVENANCE

TEACHER_SCRIPTS = {"da3_depth": "run_da3.py", "sam2_seg": "run_sam2.py"}
READERS = {
    "depth": read_depth,
    "confidence": read_confidence,
    "labels": read_classes,
    "da3_depth": read_depth,
    "sam2_seg": read_classes,
    "seg_confidence": read_seg_confidence,
}
MAP_DTYPES = {
    "depth": np.floating,
    "confidence": np.floating,
    "labels": np.integer,
    "da3_depth": np.floating,
    "sam2_seg": np.integer,
    "seg_confidence": np.uint8,
}
PNG_MODES = {"depth": ("I;16", "I", "I;16B"), "confidence": ("L",), "labels": ("L",), "sam2_seg": ("L",)}
FRAME_FILES: dict[str, tuple[str, Callable[[Path], Mapping[str, Any]]]] = {
    "recording": ("recordings.json", read_recordings),
    "time": ("times.json", read_times),
    "pose": ("poses.json", read_poses),
    "gravity": ("gravity.json", read_gravity),
}
N_FULL_CHECKS = 100  # about this many frames, evenly spaced, are read in full; of the others only the headers
MAX_LISTED = 5  # problems or stems listed in one message


def parse_args() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads the folders of images, depth and teacher outputs, with splits.json, camera.json, recordings.json,\n"
        "times.json, poses.json, gravity.json, confidence.json and the teachers' provenance.json. Writes the\n"
        "manifest, one JSON object per frame, and a .json file of the same name with the number of frames and the\n"
        "fingerprint. Writes nothing if any frame is invalid.\n\n"
        "Exit codes: 0 written, 2 a map is missing, unreadable or not of its image's size."
    )
    parser.add_argument("--rgb-dir", required=True, metavar="RGB", help="folder of images")
    parser.add_argument("--depth-dir", required=True, metavar="DEPTH", help="sensor or reference depth")
    parser.add_argument("--da3-dir", metavar="DA3", help="output folder of run_da3.py")
    parser.add_argument("--sam2-dir", metavar="SAM2", help="output folder of run_sam2.py")
    parser.add_argument(
        "--confidence-dir", metavar="C", help="default: confidence/ beside the image folder, if present"
    )
    parser.add_argument("--labels-dir", metavar="L", help="default: labels/ beside the image folder, if present")
    parser.add_argument(
        "--output", required=True, metavar="manifest.jsonl", help="the manifest; its folder must contain all data"
    )
    add_unit_flag(parser, "--depth-dir")
    parser.add_argument(
        "--allow-missing-teachers",
        action="store_true",
        help="also write rows that lack a teacher's map",
    )
    parser.add_argument(
        "--align-to-sensor",
        action="store_true",
        help="store in each row the factor da3_scale that aligns the teacher's depth to the sensor's scale; it "
        "applies wherever the teacher's depth is read",
    )
    add_flags(parser, Runtime(), "allow_links_to")
    return parser.parse_args()


@dataclass
class Folders:
    """Folders of the data. maps: {column: folder}; depth_unit: unit of the depth, None for the default of its files."""

    rgb: Path
    maps: dict[str, Path]
    allow_missing_teachers: bool
    depth_unit: DepthUnit | None


def find_folders(args: Namespace) -> Folders:
    """Find the folders given by the flags or beside the images; raises UserError if a required one is missing."""
    rgb = existing_dir(args.rgb_dir, "--rgb-dir")
    maps = {"depth": existing_dir(args.depth_dir, "--depth-dir")}
    for column, given, flag in (
        ("da3_depth", args.da3_dir, "--da3-dir"),
        ("sam2_seg", args.sam2_dir, "--sam2-dir"),
    ):
        if given and (Path(given).is_dir() or not args.allow_missing_teachers):
            maps[column] = existing_dir(given, flag)
        elif not args.allow_missing_teachers:
            raise UserError(
                f"{flag} is missing: pass the output of {TEACHER_SCRIPTS[column]} or add --allow-missing-teachers"
            )
    classes_root = Path(os.path.abspath(maps["sam2_seg"])).parent if "sam2_seg" in maps else find_data_folder(rgb)
    for column, given, root in (
        ("confidence", args.confidence_dir, find_data_folder(rgb)),
        ("labels", args.labels_dir, find_data_folder(rgb)),
        ("seg_confidence", None, classes_root),
    ):
        default = root / column
        if given:
            maps[column] = existing_dir(given, f"--{column}-dir")
        elif default.is_dir():
            maps[column] = default
            print(f"{column}: using {default}")
        else:
            print(f"{column}: none")
    if "seg_confidence" in maps:
        check_confidence(maps["seg_confidence"], maps.get("sam2_seg"))
    return Folders(rgb, maps, args.allow_missing_teachers, args.depth_unit)


def check_confidence(folder: Path, sam2: Path | None) -> None:
    """Raise UserError if seg_confidence/ belongs to a different class folder, according to its provenance.json."""
    file = folder / PROVENANCE
    source = read_json(file).get("of") if file.is_file() else None
    if source and sam2 and source != sam2.resolve().name:
        raise UserError(
            f"{folder} is the confidence of {source}, not of {sam2}: rerun run_sam2.py for {sam2} with --overwrite"
        )


def find_data_file(name: str, output: Path, rgb_dir: Path) -> Path | None:
    """Find a file of the data folder beside the manifest, else beside the image folder; None if it is in neither."""
    for folder in (output.resolve().parent, find_data_folder(rgb_dir)):
        if (folder / name).is_file():
            return folder / name
    return None


def read_size(column: str, path: Path) -> tuple[int, int]:
    """Read (height, width) of a map from its header; raises UserError if it is unreadable or of the wrong type."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.ndim != 2 or not np.issubdtype(array.dtype, MAP_DTYPES[column]):
                raise UserError(f"{path}: {array.dtype} {list(array.shape)} is not a {column} map")
            return array.shape
        with Image.open(path) as image:
            if column in MAP_DTYPES and image.mode not in PNG_MODES.get(column, ()):
                raise UserError(f"{path}: a PNG of mode {image.mode} is not a {column} map")
            check_orientation(path, orientation_of(image))
            return image.height, image.width
    except DECODE_ERRORS as error:
        raise UserError(f"{path} is not readable: {error}") from None


@dataclass
class JoinResult:
    """Rows of the manifest, problems of invalid frames, and {column: stems without this teacher's map}."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)


def join_frames(
    folders: Folders,
    frames: dict[str, Path],
    splits: dict[str, str] | None,
    cameras: Cameras | None,
    made_by: dict,
) -> JoinResult:
    """Make one row per frame; checks the header of every file, and the values of about N_FULL_CHECKS frames."""
    join = JoinResult(missing={column: [] for column in TEACHER_SCRIPTS})
    stride = max(1, len(frames) // N_FULL_CHECKS)
    for number, (stem, rgb) in enumerate(frames.items()):
        try:
            depth = find_map(folders.maps["depth"], stem)
            if depth is None:
                raise UserError(f"frame {stem} has no depth in {folders.maps['depth']}")
            row = Row(stem, rgb, depth, split=splits.get(stem) if splits else None, depth_unit=folders.depth_unit)
            _add_maps(row, folders, join)
            shape = read_size("rgb", rgb)
            _check_maps(row, shape, check_values=number % stride == 0)
            row.intrinsics = _camera(cameras, stem, shape)
        except UserError as error:
            join.problems.append(str(error))
            continue
        row.made_by = {
            column: made_by[column] for column in TEACHER_SCRIPTS if column in made_by and getattr(row, column)
        }
        join.rows.append(row)
    return join


def _add_maps(row: Row, folders: Folders, join: JoinResult) -> None:
    for column, folder in folders.maps.items():
        if column != "depth":
            setattr(row, column, find_map(folder, row.stem))
    for column in TEACHER_SCRIPTS:
        if getattr(row, column) is None:
            join.missing[column].append(row.stem)


def _check_maps(row: Row, shape: tuple[int, int], check_values: bool) -> None:
    if check_values:
        read_image(row.rgb)
    for column, read in READERS.items():
        path = getattr(row, column)
        if path is None:
            continue
        found = read_size(column, path)
        if found != shape:
            raise UserError(f"{path} is {found[1]}x{found[0]} but its image is {shape[1]}x{shape[0]}")
        # a sensor's map may be empty; a teacher's empty map is an error
        if check_values and not read(path).any() and column == "da3_depth":
            raise UserError(f"{path} contains no depth: all pixels are zero, negative or not finite")


def _camera(cameras: Cameras | None, stem: str, shape: tuple[int, int]) -> Intrinsics | None:
    image = np.broadcast_to(np.uint8(0), (*shape, 3))  # rescale_camera() needs only the image's size
    return rescale_camera(cameras.for_frame(stem), image, stem) if cameras else None


def read_teacher_provenance(folders: Folders) -> dict:
    """Read {column: {"backend", "model"}} from the provenance.json of each teacher's folder."""
    made_by = {}
    for column in TEACHER_SCRIPTS:
        file = folders.maps[column] / PROVENANCE if column in folders.maps else None
        if file is not None and file.is_file():
            content = read_json(file)
            made_by[column] = {name: content.get(name) for name in ("backend", "model")}
        elif file is not None:
            print(f"{column}: {file} is missing; the manifest will not record its model")
    return made_by


def find_orphans(folders: Folders, frames: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Yield (column, files) for maps without an image."""
    for column, folder in folders.maps.items():
        files = {below / file.name for below, _, found in walk_folders(folder) for file in found}
        files = {f for f in files if f.suffix.lower() in (".npy", ".png") and not is_ignored(f.name)}
        files = {f for f in files if f.relative_to(folder).parts[0] != "panels"}
        used = {find_map(folder, stem) for stem in frames}
        if files - used:
            yield column, sorted(file.relative_to(folder).as_posix() for file in files - used)


def split_frames(frames: dict[str, Path], splits: dict[str, str] | None) -> dict[str, Path]:
    """Return the frames that have a split; prints the stems without a split or without an image."""
    if splits is None:
        print("no splits.json: rows have no split; training splits them by their order")
        return frames
    for what, stems in (
        ("images in no split, skipped", frames.keys() - splits.keys()),
        ("stems of splits.json without an image", splits.keys() - frames.keys()),
    ):
        if stems:
            print(f"{len(stems)} {what}: {_abbreviate(sorted(stems))}")
    kept = {stem: path for stem, path in frames.items() if stem in splits}
    if not kept:
        raise UserError("splits.json lists none of the images: does it belong to different data?")
    return kept


def _abbreviate(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def check_join(join: JoinResult, allow_missing: bool) -> None:
    """Raise UserError if a frame is invalid or lacks a teacher's map; if that is allowed, print what is missing."""
    if join.problems:
        raise UserError(f"{len(join.problems)} frames are invalid: " + "; ".join(join.problems[:MAX_LISTED]))
    for column, stems in join.missing.items():
        if stems and not allow_missing:
            raise UserError(
                f"{len(stems)} frames have no {column} ({_abbreviate(stems)}): run {TEACHER_SCRIPTS[column]}"
                " (failed_frames.jsonl in its folder lists frames that failed), or add --allow-missing-teachers"
            )
        if stems:
            print(f"{len(stems)} frames without {column}: {_abbreviate(stems)}")


def align_to_sensor(rows: list[Row], threshold: float) -> None:
    """Set da3_scale in rows with teacher depth; prints the step between sensor and teacher before and after."""
    scales, before, after = [], [], []
    with_teacher = [row for row in rows if row.da3_depth]
    for row in tqdm(with_teacher, desc="aligning to the sensor", disable=None):
        depth, teacher = read_depth(row.depth, row.depth_unit), read_depth(row.da3_depth)
        confidence = read_confidence(row.confidence) if row.confidence else (depth > 0).astype(np.float32)
        row.da3_scale = sensor_scale(depth, confidence, teacher, threshold)
        if row.da3_scale is None:
            continue
        scales.append(row.da3_scale)
        aligned = teacher * np.float32(row.da3_scale)
        step, aligned_step = (seam_step(depth, confidence, t, threshold) for t in (teacher, aligned))
        if step is not None and aligned_step is not None:
            before.append(step)
            after.append(aligned_step)
    if not scales:
        raise UserError("--align-to-sensor: no frame has enough pixels with both sensor and teacher depth")
    low, middle, high = np.percentile(scales, (5, 50, 95))
    print(f"aligned {len(scales)} of {len(with_teacher)} frames: factor {middle:.3f} ({low:.3f}..{high:.3f} for 90 %)")
    if before:
        print(f"step from sensor to teacher: median {np.median(before):.1%} before, {np.median(after):.1%} after")


def record_computed_confidence(rows: list[Row], folders: Folders, output: Path) -> None:
    """Record in made_by that a row's confidence was computed, according to the confidence.json beside its folder."""
    file = find_data_file("confidence.json", output, folders.rgb)
    used = folders.maps.get("confidence")
    if file is None or used is None or used.resolve() != (file.parent / "confidence").resolve():
        return
    origins = read_confidence_origins(file)
    for row in rows:
        if row.confidence and origins.get(row.stem) == COMPUTED:
            row.made_by["confidence"] = {"backend": COMPUTED, "model": CALIBRATION}


def record_links(rows: list[Row], folder: DataFolder) -> None:
    """Record in made_by where links lead outside the data folder; raises UserError if that is not allowed."""
    linked = 0
    for row in rows:
        files = [folder.root / folder.relative(file) for file in row.files().values()]
        outside = {folder.find_root(file, f"frame {row.stem}") for file in files} - {folder.root}
        if outside:
            row.made_by["links_to"] = sorted(map(str, outside))
            linked += 1
    if linked:
        print(f"{linked} frames have files that are links out of {folder.root}")


def main() -> None:
    """Run the script."""
    args = parse_args()
    folders, output = find_folders(args), Path(args.output)
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output}: the manifest's name must end in .jsonl")
    splits_file, camera_file = (find_data_file(name, output, folders.rgb) for name in ("splits.json", "camera.json"))
    all_frames = find_frames(folders.rgb)
    for column, files in find_orphans(folders, all_frames):
        print(f"{len(files)} {column} maps without an image: {_abbreviate(files)}")
    splits = read_splits(splits_file) if splits_file else None
    frames = split_frames(all_frames, splits)
    if camera_file is None:
        print("no camera.json: rows have no intrinsics")
    cameras = Cameras.read(camera_file) if camera_file else None
    join = join_frames(folders, frames, splits, cameras, read_teacher_provenance(folders))
    check_join(join, args.allow_missing_teachers)
    if not args.depth_unit:
        check_depth_unit(folders.maps["depth"], (row.depth for row in join.rows))
    record_links(join.rows, DataFolder(output.parent, Runtime(**flag_values(args, Runtime)).allow_links_to))
    for column, (name, read) in FRAME_FILES.items():
        if file := find_data_file(name, output, folders.rgb):
            values = read(file)
            for row in join.rows:
                setattr(row, column, values.get(row.stem))
    record_computed_confidence(join.rows, folders, output)
    if args.align_to_sensor:
        align_to_sensor(join.rows, Recipe().confidence_threshold)
    write_manifest(output, join.rows)
    write_json(output.with_suffix(".json"), {"frames": len(join.rows), "fingerprint": fingerprint(join.rows)})
    print(f"{output}: {len(join.rows)} frames")


if __name__ == "__main__":
    run(main)
