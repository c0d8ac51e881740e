"""What the two teachers share: a resumable, sharded loop over frames, what made its outputs, and the cameras.

A stage writes <output_dir>/<stem>.npy for every frame and beside them

    provenance.json       backend, model, sha256 of local weights, settings, package versions
    failed_frames.jsonl   {"stem", "reason"} of the frames that the last run left out (one file a shard); absent: none

A frame whose output exists is finished: outputs are renamed into place, so there is no half of one. Running the
same command again does what is missing.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from cli import EXIT_OK, EXIT_STOPPED, StopSignal, UserError, positive_float
from config import NYU_INTRINSICS, Intrinsics
from dataset.files import read_json, write_failed_frames, write_json, write_npy
from dataset.frames import camera_for
from dataset.manifest import Cameras

PROVENANCE = "provenance.json"
PROGRESS_SECONDS = 30.0  # between two lines in a log
FOCAL_TOLERANCE = 1e-3  # relative difference between flags and camera.json that is worth a warning


def shard(text: str) -> tuple[int, int]:
    """argparse type: 'i/n', part i of n, i in 0..n-1."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form i/n, such as 0/4") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text}: parts are counted from 0, so i/n needs 0 <= i < n")
    return index, count


def add_stage_flags(parser: argparse.ArgumentParser) -> None:
    """--device, --shard, --overwrite."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="i/n",
        help="do every n-th frame from the i-th on, i in 0..n-1; all n shards together do all frames "
        "and may run at once on one output folder (default: 0/1, all frames)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="do finished frames again (default: skip them, and refuse to mix settings)",
    )


def add_camera_flags(parser: argparse.ArgumentParser) -> None:
    """--fx, --fy."""
    where = "in pixels of the input images (default: camera.json beside the image folder)"
    parser.add_argument("--fx", type=positive_float, help=f"focal length along x {where}")
    parser.add_argument("--fy", type=positive_float, help="focal length along y (default: camera.json, else --fx)")


class FrameCameras:
    """The camera of each frame: flags, else camera.json beside the image folder, else NYU's for NYU data.

    fx, fy are in pixels of the images. Flags that contradict camera.json win, with one warning.
    """

    def __init__(self, input_dir: Path, fx: float | None, fy: float | None):
        self.fx, self.fy = fx or fy, fy or fx
        self.cameras: Cameras | None = None
        self.source = "flags"
        self._warned = False
        root = input_dir.resolve().parent
        if (root / "camera.json").is_file():
            self.cameras = Cameras.read(root / "camera.json")
            self.source = "flags" if self.fx else "camera.json"
        elif not self.fx and _is_nyu(input_dir):
            print(f"no camera.json beside {input_dir}: taking NYU Depth V2's intrinsics")
            self.cameras, self.source = Cameras(NYU_INTRINSICS, {}), "NYU Depth V2"
        elif not self.fx:
            raise UserError(f"no camera.json in {root}: give --fx and --fy in pixels of the input images")

    def of(self, stem: str, rgb: np.ndarray) -> Intrinsics:
        """The camera of one frame at its image's size; raises UserError when camera.json does not fit the image."""
        height, width = rgb.shape[:2]
        known = camera_for(self.cameras.of(stem), rgb, stem) if self.cameras else None
        if not self.fx:
            return known
        if known is None:
            return Intrinsics(self.fx, self.fy, (width - 1) / 2, (height - 1) / 2, width, height)
        if max(abs(self.fx / known.fx - 1), abs(self.fy / known.fy - 1)) > FOCAL_TOLERANCE and not self._warned:
            self._warned = True
            print(
                f"warning: --fx/--fy {self.fx:g} {self.fy:g} override camera.json's {known.fx:g} {known.fy:g}",
                file=sys.stderr,
            )
        return Intrinsics(self.fx, self.fy, known.cx, known.cy, width, height)

    def settings(self) -> dict:
        """For provenance: where focal lengths came from and, when all frames share one camera, what they are."""
        if self.fx:
            return {"source": "flags", "fx": self.fx, "fy": self.fy}
        if self.cameras.common:
            camera = self.cameras.common
            return {"source": self.source, "fx": camera.fx, "fy": camera.fy, "width": camera.width}
        return {"source": self.source, "per_frame": True}


def _is_nyu(input_dir: Path) -> bool:
    source = input_dir.resolve().parent / "source.json"
    content = read_json(source) if source.is_file() else {}
    kind = str(content.get("kind", "")) if isinstance(content, dict) else ""
    return kind.lower().startswith("nyu") or any("nyu" in part.lower() for part in input_dir.resolve().parts)


def sha256_of(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """{package: installed version}, 'absent' where there is none."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def claim_output(output_dir: Path, provenance: dict, overwrite: bool) -> None:
    """Write provenance.json, or check it against the outputs that are there.

    Package versions may differ, everything else must be equal. Raises UserError otherwise, unless `overwrite`.
    """
    file = output_dir / PROVENANCE
    has_outputs = next(output_dir.rglob("*.npy"), None) is not None  # asked first: another shard may start right now
    if file.is_file() and not overwrite:
        before = read_json(file)
        differing = sorted(
            name
            for name in (before.keys() | provenance.keys()) - {"versions"}
            if before.get(name) != json.loads(json.dumps(provenance.get(name)))
        )
        if differing:
            raise UserError(
                f"{output_dir} holds outputs made with other settings ({', '.join(differing)}; see {PROVENANCE}):"
                " choose another --output-dir or redo them with --overwrite"
            )
        return
    if has_outputs and not overwrite:
        raise UserError(
            f"{output_dir} holds outputs but no {PROVENANCE}, so nothing says what made them: choose another"
            " --output-dir or redo them with --overwrite"
        )
    try:
        write_json(file, provenance)
    except OSError as error:
        raise UserError(f"--output-dir {output_dir}: can't write there ({error.strerror})") from None


@dataclass
class Tally:
    """Frames of one run: done now, finished before, failed as {stem: reason}."""

    done: int = 0
    finished_before: int = 0
    failed: dict[str, str] | None = None


def run_stage(
    frames: dict[str, Path],
    output_dir: Path,
    process: Callable[[str, Path], np.ndarray],
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> int:
    """Run `process(stem, image path) -> array` over the frames of a part and write <output_dir>/<stem>.npy.

    A frame that raises UserError or OSError is listed in failed_frames.jsonl and left out. SIGTERM and SIGUSR1 end
    the loop after the frame in hand.

    Returns 0 when every frame of the part is written or listed as failed, 75 when stopped with frames left.
    Raises UserError when there were frames to do and none of the part has an output.
    """
    index, count = part
    stems = list(frames)[index::count]
    waiting = [stem for stem in stems if overwrite or not (output_dir / f"{stem}.npy").is_file()]
    tally = Tally(finished_before=len(stems) - len(waiting), failed={})
    with StopSignal() as stop:
        for stem in _progress(waiting):
            if stop:
                break
            try:
                result = process(stem, frames[stem])
            except (UserError, OSError) as error:
                tally.failed[stem] = " ".join(str(error).split())
                continue
            _write_result(output_dir / f"{stem}.npy", result)
            tally.done += 1
        left = len(waiting) - tally.done - len(tally.failed)
    failed_name = "failed_frames.jsonl" if count == 1 else f"failed_frames.{index}-of-{count}.jsonl"
    write_failed_frames(output_dir / failed_name, tally.failed)
    print(
        f"{output_dir}: {tally.done} frames done, {tally.finished_before} finished before, {len(tally.failed)} failed"
        + (f", {left} left ({stop.received.name}); run the same command again" if left else "")
    )
    if left:
        return EXIT_STOPPED
    if tally.failed and not tally.done + tally.finished_before:
        stem, reason = next(iter(tally.failed.items()))
        raise UserError(f"all {len(tally.failed)} frames failed; the first, {stem}: {reason}")
    return EXIT_OK


def _write_result(path: Path, result: np.ndarray) -> None:
    try:
        write_npy(path, result)
    except OSError as error:  # a full disk is no fault of the frame: go no further
        raise UserError(f"can't write {path}: {error.strerror}") from None


def _progress(stems: list[str]) -> Iterable[str]:
    """A tqdm bar on a terminal, a plain line every half minute in a log."""
    if sys.stderr.isatty():
        yield from tqdm(stems, unit="frame")
        return
    start = last = time.monotonic()
    for number, stem in enumerate(stems):
        yield stem
        now = time.monotonic()
        if now - last > PROGRESS_SECONDS:
            last = now
            print(f"{number + 1}/{len(stems)} frames, {(number + 1) / (now - start):.2f} frames/s", flush=True)


def limit_threads() -> None:
    """Keep OpenCV to the CPUs that the job was given: it counts the whole node's."""
    cv2.setNumThreads(len(os.sched_getaffinity(0)))
