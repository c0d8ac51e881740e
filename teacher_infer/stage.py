"""What the two teachers share: a resumable, sharded loop over frames, what made its outputs, and the cameras.

A stage writes <output_dir>/<stem>.npy for every frame and beside them

    provenance.json       backend, model, sha256 of local weights, settings, package versions
    failed_frames.jsonl   {"stem", "reason"} of the frames that the last run left out (one file a shard); absent: none

A frame whose output exists is finished: outputs are renamed into place, so there is no half of one. Running the
same command again does what is missing.
"""

import argparse
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from cli import EXIT_OK, EXIT_STOPPED, StopSignal, UserError, cpu_count, positive_float, positive_int, resolve_device

import cv2
import numpy as np

from config import NYU_INTRINSICS, NYU_SOURCE, Intrinsics
from dataset.disk import DiskFullError
from dataset.files import read_json, shorten_stem, stem_of_temporary, write_failed_frames, write_json, write_npy
from dataset.frames import rescale_camera
from dataset.listing import find_data_folder, normalize_name, walk_folders
from dataset.manifest import Cameras, check_camera
from dataset.progress import Progress

PROVENANCE = "provenance.json"
GPU_BATCH_SIZE = 8
BATCHES_AHEAD = 2  # read before the model is free for them; as many wait to be written
LONGEST_ROW = 50  # frames in a row that fail for one reason: it is no fault of theirs
FOCAL_TOLERANCE = 1e-3  # relative difference between flags and camera.json that is worth a warning


def shard(text: str) -> tuple[int, int]:
    """Argparse type: 'i/n', part i of n, i in 0..n-1."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form i/n, such as 0/4") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text}: parts are counted from 0, so i/n needs 0 <= i < n")
    return index, count


def add_stage_flags(parser: argparse.ArgumentParser) -> None:
    """--device, --batch-size, --num-workers, --shard, --overwrite."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        help=f"frames that the model gets at once (default: {GPU_BATCH_SIZE} on a GPU, 1 on a CPU)",
    )
    parser.add_argument(
        "--num-workers",
        type=positive_int,
        default=min(4, cpu_count()),
        help="threads that read frames, and as many that write (default: %(default)s)",
    )
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


def default_batch_size(backend: str, device: str) -> int:
    """Frames at once: a network needs several to keep a GPU busy; a CPU, or no network, gains nothing by them."""
    return GPU_BATCH_SIZE if backend != "reference" and resolve_device(device).type == "cuda" else 1


def add_camera_flags(parser: argparse.ArgumentParser) -> None:
    """--fx, --fy."""
    where = "in pixels of the input images (default: camera.json beside the image folder)"
    parser.add_argument("--fx", type=positive_float, help=f"focal length along x {where}")
    parser.add_argument("--fy", type=positive_float, help="focal length along y (default: camera.json, else --fx)")


class FrameCameras:
    """The camera of each frame: flags, else camera.json beside the image folder, else NYU's where source.json says so.

    fx, fy are in pixels of the images. Flags that contradict camera.json win, with one warning.
    """

    def __init__(self, input_dir: Path, fx: float | None, fy: float | None):
        self.fx, self.fy = fx or fy, fy or fx
        self.cameras: Cameras | None = None
        self.source = "flags"
        self._warned = False
        root = find_data_folder(input_dir)
        if (root / "camera.json").is_file():
            self.cameras = Cameras.read(root / "camera.json")
            self.source = "flags" if self.fx else "camera.json"
        elif not self.fx and _is_nyu(input_dir):
            print(f"no camera.json beside {input_dir}: taking NYU Depth V2's intrinsics")
            self.cameras, self.source = Cameras(NYU_INTRINSICS, {}), "NYU Depth V2"
        elif not self.fx:
            raise UserError(f"no camera.json in {root}: give --fx and --fy in pixels of the input images")

    def of(self, stem: str, rgb: np.ndarray) -> Intrinsics:
        """The camera of one frame at its image's size.

        Raises UserError when camera.json or the flags do not fit the image.
        """
        height, width = rgb.shape[:2]
        known = rescale_camera(self.cameras.for_frame(stem), rgb, stem) if self.cameras else None
        if not self.fx or not self.fy:
            assert known is not None  # without flags there are cameras
            return known
        if known is None:
            return check_camera(Intrinsics.centred(self.fx, self.fy, width, height), "--fx/--fy")
        if max(abs(self.fx / known.fx - 1), abs(self.fy / known.fy - 1)) > FOCAL_TOLERANCE and not self._warned:
            self._warned = True
            print(
                f"warning: --fx/--fy {self.fx:g} {self.fy:g} override camera.json's {known.fx:g} {known.fy:g}",
                file=sys.stderr,
            )
        return check_camera(replace(known, fx=self.fx, fy=self.fy), "--fx/--fy")

    def settings(self) -> dict:
        """For provenance: where focal lengths came from and, when all frames share one camera, what they are."""
        if self.fx:
            return {"source": "flags", "fx": self.fx, "fy": self.fy}
        assert self.cameras is not None
        if self.cameras.common:
            camera = self.cameras.common
            return {"source": self.source, "fx": camera.fx, "fy": camera.fy, "width": camera.width}
        return {"source": self.source, "per_frame": True}


def _is_nyu(input_dir: Path) -> bool:
    """Whether the data folder's source.json says so: a path with "nyu" in it may be a laboratory's."""
    source = find_data_folder(input_dir) / "source.json"
    content = read_json(source) if source.is_file() else None
    return isinstance(content, dict) and content.get("what") == NYU_SOURCE


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
    # Looked for before provenance.json: another shard may start right now. A sensor's .png would be shadowed by .npy.
    has_outputs = any(next(output_dir.rglob(pattern), None) for pattern in ("*.npy", "*.png"))
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
            f"{output_dir} holds maps but no {PROVENANCE}, so nothing says what made them: choose another"
            " --output-dir or redo them with --overwrite"
        )
    try:
        write_json(file, provenance)
    except OSError as error:
        raise UserError(f"--output-dir {output_dir}: can't write there ({error.strerror})") from None


class Fatal(UserError):
    """What went wrong is no fault of the frame and would go wrong with the next one, too: the stage ends."""


@contextmanager
def gpu_memory() -> Iterator[None]:
    """A GPU's lack of memory in the body is fatal: a batch has the same size for every frame, retries included."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise Fatal("the GPU's memory is too small for the batch: give a smaller --batch-size") from None


class Teacher(Protocol):
    """What a stage runs over frames, in three steps, so that reading and writing hide behind the model.

    prepare() and finish() are called from several threads at once, infer() from the main thread only. Each may raise
    UserError or OSError for a frame that can't be done; infer() is given one frame at a time before its error counts.
    """

    provenance: dict

    def prepare(self, stem: str, path: Path) -> Any:
        """Read one frame and bring it to the model's input."""

    def infer(self, prepared: list) -> list:
        """The model's outputs for some prepared frames, one each, on the CPU."""

    def finish(self, prepared: Any, output: Any) -> np.ndarray:
        """The frame's result, as it is written."""


@dataclass
class Tally:
    """Frames of one run: done now, finished before, failed as {stem: reason}."""

    done: int = 0
    finished_before: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    row: int = 0  # failures since the last output, all for the reason of the last of them, the frame's name apart
    last_reason: str = ""

    def finish(self, frames: int) -> None:
        """Count frames whose outputs are written."""
        self.done += frames
        if frames:
            self.row = 0

    def fail(self, stem: str, error: Exception) -> None:
        """Note a frame that can't be done; raises Fatal after LONGEST_ROW of them for one reason."""
        self.failed[stem] = reason = " ".join(str(error).split())
        unnamed = re.sub(rf"\b{re.escape(stem)}\b", "*", reason)
        self.row = self.row + 1 if unnamed == self.last_reason else 1
        self.last_reason = unnamed
        if self.row >= LONGEST_ROW:
            raise Fatal(f"{self.row} frames in a row failed alike, the last, {stem}: {reason}")


def run_stage(
    frames: dict[str, Path],
    output_dir: Path,
    teacher: Teacher,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    batch_size: int = 1,
    workers: int = 2,
    side_folders: Sequence[Path] = (),
) -> int:
    """Run a teacher over the frames of a part and write <output_dir>/<stem>.npy.

    A frame that raises UserError or OSError is listed in failed_frames.jsonl and left out. A signal ends
    the loop after the batch in hand. Memory holds at most BATCHES_AHEAD batches read ahead and as many being written.

    Args:
        frames: {stem: image file}.
        output_dir: where the results go, made where it is missing.
        teacher: what is run.
        part: (i, n), do every n-th frame from the i-th on.
        overwrite: do finished frames again.
        batch_size: frames that infer() gets at once.
        workers: threads that prepare, and as many that finish and write.
        side_folders: where finish() writes further files of a frame, to be cleared of half-written ones.

    Returns 0 when every frame of the part is written or listed as failed, 75 when stopped with frames left.
    Raises UserError when there were frames to do and none of the part has an output, and when the stage ends early: an
    output can't be written, a GPU has too little memory, or LONGEST_ROW frames in a row fail for one reason.
    """
    index, count = part
    stems = list(frames)[index::count]
    failed_name = "failed_frames.jsonl" if count == 1 else f"failed_frames.{index}-of-{count}.jsonl"
    shared = {Path(PROVENANCE).stem} if count == 1 else set()  # another shard may be writing it right now
    finished = _survey(output_dir, {*stems, Path(failed_name).stem} | shared)
    for folder in side_folders:
        _survey(folder, set(stems))
    waiting = [stem for stem in stems if overwrite or stem not in finished]
    tally = Tally(finished_before=len(stems) - len(waiting))
    batches = [waiting[start : start + batch_size] for start in range(0, len(waiting), batch_size)]
    try:
        with StopSignal() as stop:
            _run_batches(batches, frames, output_dir, teacher, workers, tally, stop)
    finally:
        write_failed_frames(output_dir / failed_name, {s: tally.failed[s] for s in waiting if s in tally.failed})
    left = len(waiting) - tally.done - len(tally.failed)
    print(
        f"{output_dir}: {tally.done} frames done, {tally.finished_before} finished before, {len(tally.failed)} failed"
        + (f", {left} left ({stop.received.name}); run the same command again" if left and stop.received else "")
    )
    if left:
        return EXIT_STOPPED
    if tally.failed and not tally.done + tally.finished_before:
        stem, reason = next(iter(tally.failed.items()))
        raise UserError(f"all {len(tally.failed)} frames failed; the first, {stem}: {reason}")
    return EXIT_OK


def _run_batches(
    batches: list[list[str]],
    frames: dict[str, Path],
    output_dir: Path,
    teacher: Teacher,
    workers: int,
    tally: Tally,
    stop: StopSignal,
) -> None:
    """Read ahead, infer and write behind, until the batches are done or a signal has come; counts into the tally."""
    writing: deque[dict[str, Future]] = deque()
    progress = Progress(sum(map(len, batches)))
    with _pool(workers) as readers, _pool(workers) as writers:
        try:
            for prepared in _read_ahead(readers, batches, lambda stem: teacher.prepare(stem, frames[stem])):
                ready = _results(prepared, tally)
                outputs = _infer(teacher, ready, tally)
                writing.append(
                    {
                        stem: writers.submit(_finish, teacher, ready[stem], output, output_dir / f"{stem}.npy")
                        for stem, output in outputs.items()
                    }
                )
                if len(writing) > BATCHES_AHEAD:
                    tally.finish(len(_results(writing.popleft(), tally)))
                progress.update(len(prepared))
                if stop:
                    break
            while writing:
                tally.finish(len(_results(writing.popleft(), tally)))
        finally:  # after an error or a signal: what is only waiting to be read is not
            readers.shutdown(cancel_futures=True)
            progress.close()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch computes alone: each thread's own pool of helpers would spin for the model's cores."""
    if "torch" not in sys.modules:
        return ThreadPoolExecutor(workers)
    import torch

    torch.get_num_threads()  # fixes the calling thread's number, which the first call in a new thread would change
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def _survey(output_dir: Path, own: set[str]) -> set[str]:
    """Stems that have an output; removes what a killed run of this part (its stems: own) has left half-written."""
    finished: set[str] = set()
    if not output_dir.is_dir():
        return finished
    split = (stem.rpartition("/") for stem in own)
    own = {f"{folder}{slash}{shorten_stem(name)}" for folder, slash, name in split}
    for folder, _, files in walk_folders(output_dir):  # one walk: asking for each stem costs a round trip on a cluster
        relative = normalize_name(folder.relative_to(output_dir).as_posix())
        prefix = "" if relative == "." else f"{relative}/"
        for file in files:
            if target := stem_of_temporary(file.name):
                if prefix + target in own:
                    (folder / file.name).unlink(missing_ok=True)
            elif file.name.endswith(".npy"):
                finished.add(prefix + normalize_name(file.name.removesuffix(".npy")))
    return finished


def _read_ahead(
    pool: ThreadPoolExecutor, batches: list[list[str]], prepare: Callable[[str], Any]
) -> Iterator[dict[str, Future]]:
    """{stem: future of the prepared frame} of each batch, BATCHES_AHEAD of them begun before they are asked for."""
    begun: deque[dict[str, Future]] = deque()
    for batch in batches:
        begun.append({stem: pool.submit(prepare, stem) for stem in batch})
        if len(begun) > BATCHES_AHEAD:
            yield begun.popleft()
    yield from begun


def _results(futures: dict[str, Future], tally: Tally) -> dict[str, Any]:
    """What has come of the futures; the frames that could not be done go to the tally."""
    results = {}
    for stem, future in futures.items():
        try:
            results[stem] = future.result()
        except (Fatal, DiskFullError):
            raise
        except (UserError, OSError) as error:
            tally.fail(stem, error)
    return results


def _infer(teacher: Teacher, prepared: dict[str, Any], tally: Tally) -> dict[str, Any]:
    """{stem: output}; a batch that fails is tried frame by frame, so that one frame does not take others with it."""
    if not prepared:
        return {}
    try:
        return dict(zip(prepared, teacher.infer(list(prepared.values())), strict=True))
    except Fatal:
        raise
    except (UserError, OSError) as error:
        if len(prepared) == 1:
            tally.fail(next(iter(prepared)), error)
            return {}
    outputs: dict[str, Any] = {}
    for stem, frame in prepared.items():
        outputs |= _infer(teacher, {stem: frame}, tally)
    return outputs


def _finish(teacher: Teacher, prepared: Any, output: Any, path: Path) -> None:
    result = teacher.finish(prepared, output)
    try:
        write_npy(path, result)
    except OSError as error:
        raise Fatal(f"can't write {path}: {error.strerror or error}") from None


def limit_threads() -> None:
    """Keep OpenCV to one thread: a stage has several at work, and OpenCV counts the whole node's CPUs."""
    cv2.setNumThreads(1)
