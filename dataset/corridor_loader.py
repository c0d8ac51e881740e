"""Convert RGB-D recordings to a data folder: images, depth, camera, times, poses and a split."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

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

from dataset.bags import ROLES, BagOptions, BagRecording, find_bags
from dataset.calibration import CameraSettings, parse_distortion, read_matrix, read_transform
from dataset.confidence import CALIBRATION, COMPUTED
from dataset.files import prepare_data_folder, write_failed_frames, write_json
from dataset.frame_writer import RGB_FORMATS, FrameWriter
from dataset.layouts import COLOUR_FOLDERS, DEPTH_FOLDER, FolderOptions, find_recording, open_folder
from dataset.listing import require_separate_output
from dataset.progress import Progress
from dataset.recordings import FrameInfo, Recording
from dataset.rectification import MODELS
from dataset.splits import split_as_published, split_by_recording, split_by_time
from dataset.units import add_unit_flag

__all__ = ["find_recording", "main", "split_by_time", "split_into_subfolders"]

Value = TypeVar("Value")

# flags that source.json does not list among its settings
NOT_SETTINGS = {
    "input", "out", "test_frames", "val_frames", "gap_frames", "depth_format", "depth_unit", "confidence",
}  # fmt: skip
MAX_FLAT_FRAMES = 10_000  # longer recordings are written to subfolders


def split_into_subfolders(frames: Mapping[str, Value]) -> Mapping[str, Value]:
    """Prefix the stems of a long recording with a subfolder per thousand frames; short recordings are unchanged.

    File systems, above all on clusters, slow down with very many files in a folder.
    """
    if len(frames) <= MAX_FLAT_FRAMES:
        return frames
    return {f"{number // 1000:04d}/{stem}": value for number, (stem, value) in enumerate(frames.items())}


def parse_args() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads RGB-D recordings: a ROS bag (.mcap, .db3, .bag) or a folder of bags; a folder of TUM RGB-D, 7-Scenes,\n"
        "ScanNet or SUN RGB-D; <stem>.color.jpg|png beside <stem>.depth.png; or folders rgb|color/ and depth/.\n"
        "Writes a data folder: rgb/ depth/ confidence/ camera.json splits.json recordings.json confidence.json\n"
        "source.json, (times.json poses.json gravity.json) where the recording has them, and failed_frames.jsonl if\n"
        "any fail.\n\n"
        "Depth is registered to colour and lens distortion removed where the recording has the calibration.\n"
        "One recording is split by time: train, gap, val, gap, test; frames in a gap are excluded. Three or more are\n"
        "split by whole recordings. A stopped run resumes. camera.json and splits.json are written last."
    )
    parser.add_argument("--input", required=True, type=Path, help="the recording: a folder or a bag")
    parser.add_argument("--out", required=True, type=Path, help="the data folder to write")
    add_camera_flags(parser)
    parser.add_argument("--test-frames", type=positive_int, help="last frames, used for test (default: a sixth)")
    parser.add_argument(
        "--val-frames", type=non_negative_int, help="frames before those, used for val (default: a tenth)"
    )
    parser.add_argument("--gap-frames", type=non_negative_int, default=10, help="excluded between splits (default: 10)")
    parser.add_argument(
        "--split",
        choices=("time", "recording"),
        help="by time inside each recording, or by whole recordings (default: the data set's own; else by recording "
        "if there are three or more)",
    )
    parser.add_argument("--every", type=positive_int, default=1, metavar="K", help="take every k-th frame (default: 1)")
    parser.add_argument(
        "--min-motion",
        type=positive_float,
        metavar="LEVELS",
        help="skip frames whose picture differs from the last one taken by less than this mean number of grey levels "
        "(0 to 255; 3 skips a robot that stands still)",
    )
    parser.add_argument(
        "--max-offset",
        type=positive_float,
        default=0.05,
        metavar="SECONDS",
        help="largest difference in time of colour and depth (default: 0.05)",
    )
    parser.add_argument("--depth-format", choices=("png", "npy"), default="png", help="png: millimetres; npy: metres")
    parser.add_argument(
        "--rgb-format",
        choices=RGB_FORMATS,
        default="png",
        help="of pictures that are raw or rectified; compressed ones that need no change keep their bytes "
        "(default: png; jpg is smaller and faster)",
    )
    parser.add_argument(
        "--confidence",
        choices=(COMPUTED, "valid"),
        default=COMPUTED,
        help="of frames without a confidence map of their own. computed: from the depth's noise and edges; valid: 1 "
        "wherever there is depth (default: computed)",
    )
    add_unit_flag(parser, "the recording's depth")
    add_bag_flags(parser)
    parser.add_argument("--allsplit", help="SUN RGB-D's allsplit.mat (default: split by scene)")
    return parser.parse_args()


def add_camera_flags(parser: ArgumentParser) -> None:
    """Add the flags of the cameras."""
    parser.add_argument(
        "--intrinsics", help="text file with the colour camera's 3x3 matrix (default: *intrinsics*.txt, camera_info)"
    )
    for name in ("fx", "fy", "cx", "cy"):
        parser.add_argument(f"--{name}", type=positive_float, help="in pixels of the colour images; overrides the file")
    parser.add_argument(
        "--distortion",
        nargs="+",
        metavar=("MODEL", "D"),
        help=f"distortion of the colour images, to be removed: {', '.join(MODELS)}, and its coefficients",
    )
    parser.add_argument(
        "--depth-intrinsics", metavar="FILE", help="3x3 matrix of the depth camera: depth is registered to colour"
    )
    parser.add_argument(
        "--extrinsics",
        metavar="FILE",
        help="4x4 matrix from the depth camera to the colour camera, metres (default: tf_static, or the same axes)",
    )


def add_bag_flags(parser: ArgumentParser) -> None:
    """Add the flags that apply to bags alone."""
    bags = parser.add_argument_group("ROS bags; topics are found by their type unless given")
    for role in ROLES:
        bags.add_argument(f"--{role.replace('_', '-')}-topic", metavar="TOPIC")
    bags.add_argument(
        "--half-confidence",
        type=positive_float,
        metavar="VALUE",
        help="value of the confidence or IR amplitude topic that means a confidence of 0.5; amplitude is used only "
        "with this flag (default: half of the range of 8-bit or float confidence)",
    )
    bags.add_argument("--world-frame", metavar="FRAME", help="tf frame of the poses (default: map, odom or world)")


def camera_settings(args: Namespace) -> CameraSettings:
    """The cameras given by flags; raises UserError if a file is missing or invalid."""
    files = {name: getattr(args, name) for name in ("intrinsics", "depth_intrinsics", "extrinsics")}
    paths = {name: existing_file(file, f"--{name.replace('_', '-')}") for name, file in files.items() if file}
    values = {name: getattr(args, name) for name in ("fx", "fy", "cx", "cy") if getattr(args, name) is not None}
    extrinsics = read_transform(paths["extrinsics"]) if "extrinsics" in paths else None
    for name in ("intrinsics", "depth_intrinsics"):
        if name in paths:
            read_matrix(paths[name])
    return CameraSettings(
        paths.get("intrinsics"), values, parse_distortion(args.distortion), paths.get("depth_intrinsics"), extrinsics
    )


def open_recordings(args: Namespace) -> Sequence[Recording]:
    """The recordings at --input; raises UserError if there is none or one is unsuitable."""
    cameras = camera_settings(args)
    if not args.input.is_file():
        existing_dir(args.input, "--input")
    if bags := find_bags(args.input):
        topics = {role: getattr(args, f"{role}_topic") for role in ROLES}
        options = BagOptions(
            topics={role: topic for role, topic in topics.items() if topic},
            max_offset=args.max_offset,
            every=args.every,
            min_motion=args.min_motion,
            half_confidence=args.half_confidence,
            compute_confidence=args.confidence == COMPUTED,
            unit=args.depth_unit,
            world_frame=args.world_frame,
            cameras=cameras,
        )
        return [BagRecording(name, files, options) for name, files in bags.items()]
    if args.input.is_file():
        raise UserError(f"--input {args.input} is neither a folder nor a bag (.mcap, .db3, .bag)")
    return open_folder(
        args.input,
        FolderOptions(
            cameras=cameras,
            unit=args.depth_unit,
            max_offset=args.max_offset,
            every=args.every,
            min_motion=args.min_motion,
            compute_confidence=args.confidence == COMPUTED,
            allsplit=existing_file(args.allsplit, "--allsplit") if args.allsplit else None,
        ),
    )


def choose_split(args: Namespace, frames: Mapping[str, FrameInfo]) -> dict[str, list[str]]:
    """Split the frames by the flags, the data set's own split, recordings, or time."""
    recording_of = {stem: info.recording for stem, info in frames.items()}
    counts = Counter(recording_of.values())
    if args.split is None and any(info.split for info in frames.values()):
        return split_as_published({stem: info.split for stem, info in frames.items() if info.split}, recording_of)
    by_recording = args.split == "recording" or args.split is None and len(counts) >= 3
    if by_recording:
        return split_by_recording(recording_of)
    split: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for recording, count in counts.items():
        stems = [stem for stem in frames if recording_of[stem] == recording]
        test = max(1, count // 6) if args.test_frames is None else args.test_frames
        val = max(1, count // 10) if args.val_frames is None else args.val_frames
        for name, part in split_by_time(stems, test, val, args.gap_frames).items():
            split[name] += part
    return split


def describe_source(args: Namespace, n_frames: int, split: Mapping[str, Sequence[str]]) -> dict:
    """The content of source.json: the recording, the split and the settings."""
    settings: dict[str, Any] = {
        name: value
        for name, value in vars(args).items()
        if value is not None
        and name not in NOT_SETTINGS
        and (name, value) not in (("every", 1), ("max_offset", 0.05), ("rgb_format", "png"))
    }
    return (
        {
            "recording": args.input.resolve().name,
            "what": "RGB-D recording, split by time",
            "frames": n_frames,
            "split": {name: len(stems) for name, stems in split.items()},
            "gap_frames": args.gap_frames,
            "depth_format": args.depth_format,
        }
        | ({"depth_unit": args.depth_unit.name} if args.depth_unit else {})
        | ({"confidence": f"the sensor's own map, else computed {CALIBRATION}"} if args.confidence == COMPUTED else {})
        | ({"settings": settings} if settings else {})
    )


def summary(n_frames: int, split: Mapping[str, Sequence[str]], excluded: int, unreadable: int, unpaired: int) -> str:
    """The final line of a run, which accounts for every frame."""
    parts = ", ".join(f"{name} {len(stems)}" for name, stems in split.items())
    line = f"{n_frames} frames ({parts}); {excluded} excluded in the gaps between splits"
    counts = {"unreadable": unreadable, "without depth or without colour": unpaired}
    failed = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return line + (f"; {failed}, listed in failed_frames.jsonl" if failed else "")


def write_frame_files(out: Path, frames: Mapping[str, FrameInfo]) -> None:
    """Write recordings.json, and times, poses, gravity and origins of the confidence of the frames that have them."""
    write_json(out / "recordings.json", {stem: info.recording for stem, info in frames.items()})
    contents = {
        "times.json": {stem: info.time for stem, info in frames.items() if info.time is not None},
        "poses.json": {stem: info.pose.tolist() for stem, info in frames.items() if info.pose is not None},
        "gravity.json": {stem: info.gravity.tolist() for stem, info in frames.items() if info.gravity is not None},
        "confidence.json": {stem: info.confidence for stem, info in frames.items() if info.confidence is not None},
    }
    for name, content in contents.items():
        if content:
            write_json(out / name, content)


def main() -> int:
    """Run the script and return its exit code."""
    args = parse_args()
    if args.out.resolve() == args.input.resolve():
        raise UserError("--out is the recording's own folder: choose another folder")
    require_separate_output(args.out, "--out", *(args.input / name for name in (*COLOUR_FOLDERS, DEPTH_FOLDER)))
    recordings = open_recordings(args)
    for recording in recordings:
        print(recording.describe())
        for line in recording.lines:
            print(f"warning: {line}", file=sys.stderr)
    prefixes = [f"{recording.name}/" if len(recordings) > 1 else "" for recording in recordings]
    owners = {
        f"{prefix}{stem}": (recording, stem)
        for prefix, recording in zip(prefixes, recordings, strict=True)
        for stem in recording.frames
    }
    named = split_into_subfolders(owners)
    renamed = dict(zip(owners, named, strict=True))
    unpaired = {
        renamed.get(f"{prefix}{stem}", f"{prefix}{stem}"): reason
        for prefix, recording in zip(prefixes, recordings, strict=True)
        for stem, reason in recording.unpaired.items()
    }
    frames = {stem: recording.frames[own] for stem, (recording, own) in named.items()}
    split = choose_split(args, frames)
    kept = {stem for stems in split.values() for stem in stems}
    prepare_data_folder(args.out, describe_source(args, len(frames), split), ("rgb", "depth", "confidence"))
    writer = FrameWriter(args.out, args.rgb_format, args.depth_format)
    failed = {stem: unpaired[stem] for stem in frames if stem in kept and stem in unpaired}
    unreadable = 0
    progress = Progress(len(kept), len(failed), "importing")
    with StopSignal() as stop:
        for recording in recordings:
            targets = {own: stem for stem, (owner, own) in named.items() if owner is recording}
            targets = {own: stem for own, stem in targets.items() if stem in kept and stem not in failed}
            for own, reason in recording.convert(targets, writer):
                progress.update(1)
                if reason is not None:
                    failed[targets[own]] = reason
                    unreadable += 1
                if 2 * len(failed) > len(kept):
                    last = list(failed.values())[-1]
                    raise UserError(f"more than half of the {len(kept)} frames are unreadable; last error: {last}")
                if stop:
                    print(f"stopped after {progress.done} of {len(kept)} frames: run the same command to resume")
                    return EXIT_STOPPED
    progress.close()
    failed = {stem: failed[stem] for stem in frames if stem in failed}
    split = {name: [stem for stem in stems if stem not in failed] for name, stems in split.items()}
    written = {stem: frames[stem] for stems in split.values() for stem in stems}
    write_failed_frames(args.out / "failed_frames.jsonl", failed | unpaired)
    cameras = {stem: asdict(named[stem][0].camera_of(named[stem][1])) for stem in written}
    first = next(iter(cameras.values()), None)
    same = first is not None and all(camera == first for camera in cameras.values())
    write_json(args.out / "camera.json", first if same else cameras)
    write_frame_files(args.out, written)
    write_json(args.out / "splits.json", split)
    print(summary(len(frames), split, len(frames) - len(kept), unreadable, len(unpaired)))
    return EXIT_OK


if __name__ == "__main__":
    run(main)
