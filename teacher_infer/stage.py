"""Code shared by both teachers: a resumable, sharded loop over frames, provenance of the outputs, camera intrinsics.

For each frame a stage writes <output_dir>/<stem>.npy. It also writes

    provenance.json       backend, model, sha256 of local weights, settings, package versions
    failed_frames.jsonl   {"stem", "reason"} of each frame that failed in the last run, one file per shard; absent
                          when no frame failed

Outputs are renamed into place, so a file that exists is complete and its frame is done. Running the same command
again processes the missing frames.
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

from cli import (
    EXIT_OK,
    EXIT_STOPPED,
    StopSignal,
    UserError,
    cpu_count,
    parse_shard,
    positive_float,
    positive_int,
    resolve_device,
)

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
BATCHES_AHEAD = 2  # batches prefetched; as many may wait to be written
MAX_CONSECUTIVE_FAILURES = 50  # with the same reason: then the frames are not the cause
FOCAL_TOLERANCE = 1e-3  # warn if the flags and camera.json differ by more than this (relative)


def add_stage_flags(parser: argparse.ArgumentParser) -> None:
    """Add --device, --batch-size, --num-workers, --shard and --overwrite."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        help=f"frames per forward pass (default: {GPU_BATCH_SIZE} on a GPU, 1 on a CPU)",
    )
    parser.add_argument(
        "--num-workers",
        type=positive_int,
        default=min(4, cpu_count()),
        help="threads for reading frames, and as many for writing (default: %(default)s)",
    )
    parser.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="i/n",
        help="process every n-th frame, starting with frame i, i in 0..n-1; the n shards cover all frames "
        "and can run in parallel with the same output folder (default: 0/1, all frames)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="recompute finished frames (default: skip them, and refuse to mix settings)",
    )


def default_batch_size(backend: str, device: str) -> int:
    """Frames per forward pass: batches keep a GPU busy, but do not help on a CPU or without a network."""
    return GPU_BATCH_SIZE if backend != "reference" and resolve_device(device).type == "cuda" else 1


def add_camera_flags(parser: argparse.ArgumentParser) -> None:
    """Add --fx and --fy."""
    parser.add_argument(
        "--fx",
        type=positive_float,
        help="horizontal focal length in pixels of the input images (default: camera.json beside the image folder)",
    )
    parser.add_argument("--fy", type=positive_float, help="vertical focal length (default: camera.json, else --fx)")


class FrameCameras:
    """Intrinsics of each frame: from the flags, else camera.json beside the image folder, else NYU's own.

    NYU's intrinsics are used only if source.json says that the frames are from NYU Depth V2. fx and fy are in pixels
    of the input images. Flags override camera.json, with a single warning if they differ.
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
        elif not self.fx and _is_nyu_folder(input_dir):
            print(f"no camera.json beside {input_dir}: using the intrinsics of NYU Depth V2")
            self.cameras, self.source = Cameras(NYU_INTRINSICS, {}), "NYU Depth V2"
        elif not self.fx:
            raise UserError(f"no camera.json in {root}: give --fx and --fy in pixels of the input images")

    def get(self, stem: str, rgb: np.ndarray) -> Intrinsics:
        """Return the intrinsics of one frame, scaled to the size of its image `rgb`, uint8 [H,W,3].

        Raises UserError if camera.json or the flags do not fit the image.
        """
        height, width = rgb.shape[:2]
        camera = rescale_camera(self.cameras.for_frame(stem), rgb, stem) if self.cameras else None
        if not self.fx or not self.fy:
            assert camera is not None  # __init__() requires flags or cameras
            return camera
        if camera is None:
            return check_camera(Intrinsics.centred(self.fx, self.fy, width, height), "--fx/--fy")
        if max(abs(self.fx / camera.fx - 1), abs(self.fy / camera.fy - 1)) > FOCAL_TOLERANCE and not self._warned:
            self._warned = True
            print(
                f"warning: --fx/--fy {self.fx:g} {self.fy:g} override camera.json's {camera.fx:g} {camera.fy:g}",
                file=sys.stderr,
            )
        return check_camera(replace(camera, fx=self.fx, fy=self.fy), "--fx/--fy")

    def settings(self) -> dict:
        """Provenance entry: the source of the focal lengths, and their values if all frames share one camera."""
        if self.fx:
            return {"source": "flags", "fx": self.fx, "fy": self.fy}
        assert self.cameras is not None
        if self.cameras.common:
            camera = self.cameras.common
            return {"source": self.source, "fx": camera.fx, "fy": camera.fy, "width": camera.width}
        return {"source": self.source, "per_frame": True}


def _is_nyu_folder(input_dir: Path) -> bool:
    """Whether source.json names NYU Depth V2. The path proves nothing: "nyu" may be the name of the lab."""
    source = find_data_folder(input_dir) / "source.json"
    content = read_json(source) if source.is_file() else None
    return isinstance(content, dict) and content.get("what") == NYU_SOURCE


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """{package: installed version}, or 'absent' if a package is not installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def claim_output(output_dir: Path, provenance: dict, overwrite: bool) -> None:
    """Write provenance.json, or compare it with the one that is there.

    Raises UserError if the settings differ from those of the existing outputs, unless `overwrite` is set. Package
    versions may differ.
    """
    file = output_dir / PROVENANCE
    # Look for outputs first: another shard may write provenance.json at any moment. .npy would shadow a sensor's .png.
    has_outputs = any(next(output_dir.rglob(pattern), None) for pattern in ("*.npy", "*.png"))
    if file.is_file() and not overwrite:
        recorded = read_json(file)
        differing = sorted(
            name
            for name in (recorded.keys() | provenance.keys()) - {"versions"}
            if recorded.get(name) != json.loads(json.dumps(provenance.get(name)))
        )
        if differing:
            raise UserError(
                f"{output_dir} contains outputs made with different settings ({', '.join(differing)}; see "
                f"{PROVENANCE}): choose another --output-dir or recompute them with --overwrite"
            )
        return
    if has_outputs and not overwrite:
        raise UserError(
            f"{output_dir} contains maps but no {PROVENANCE}, so their origin is unknown: choose another"
            " --output-dir or recompute them with --overwrite"
        )
    try:
        write_json(file, provenance)
    except OSError as error:
        raise UserError(f"--output-dir {output_dir} is not writable ({error.strerror})") from None


class Fatal(UserError):
    """An error that would hit the next frame, too, so it ends the stage instead of failing one frame."""


@contextmanager
def gpu_memory() -> Iterator[None]:
    """Turn an out-of-memory error of the GPU into Fatal: all batches have the same size, so a retry would fail, too."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise Fatal("out of GPU memory: use a smaller --batch-size") from None


class Teacher(Protocol):
    """A model that run_stage() applies to frames, split into three steps so that I/O overlaps with inference.

    prepare() and finish() run concurrently in several threads, infer() only in the main thread. Each may raise
    UserError or OSError if a frame can't be processed. If infer() fails on a batch, it is retried frame by frame.
    """

    provenance: dict

    def prepare(self, stem: str, path: Path) -> Any:
        """Read one frame and turn it into the model's input."""

    def infer(self, prepared: list) -> list:
        """Run the model on a batch of prepared frames; returns one output per frame, on the CPU."""

    def finish(self, prepared: Any, output: Any) -> np.ndarray:
        """Turn an output of the model into the array that is written."""


@dataclass
class Tally:
    """Counts of one run: frames done in it, frames finished in earlier runs, failed frames as {stem: reason}."""

    done: int = 0
    finished_before: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    consecutive_failures: int = 0  # with the same reason, apart from the stem in it
    last_reason: str = ""

    def finish(self, frames: int) -> None:
        """Count frames whose outputs have been written."""
        self.done += frames
        if frames:
            self.consecutive_failures = 0

    def fail(self, stem: str, error: Exception) -> None:
        """Record a failed frame; raises Fatal after MAX_CONSECUTIVE_FAILURES in a row with the same reason."""
        self.failed[stem] = reason = " ".join(str(error).split())
        generic_reason = re.sub(rf"\b{re.escape(stem)}\b", "*", reason)
        self.consecutive_failures = self.consecutive_failures + 1 if generic_reason == self.last_reason else 1
        self.last_reason = generic_reason
        if self.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            raise Fatal(
                f"{self.consecutive_failures} frames in a row failed for the same reason, last {stem}: {reason}"
            )


def run_stage(
    frames: dict[str, Path],
    output_dir: Path,
    teacher: Teacher,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    batch_size: int = 1,
    workers: int = 2,
    extra_output_dirs: Sequence[Path] = (),
) -> int:
    """Run a teacher over the frames of a shard and write <output_dir>/<stem>.npy.

    A frame that raises UserError or OSError is listed in failed_frames.jsonl and skipped. A signal ends the loop after
    the current batch. At most BATCHES_AHEAD prefetched batches, and as many waiting to be written, are in memory.

    Args:
        frames: {stem: image file}.
        output_dir: folder of the outputs; created if missing.
        teacher: the model to run.
        shard: (i, n): process every n-th frame, starting with frame i.
        overwrite: recompute finished frames.
        batch_size: frames per call of infer().
        workers: threads that run prepare(), and as many that run finish() and write.
        extra_output_dirs: folders where finish() writes further files per frame; half-written ones are removed.

    Returns 0 if every frame of the shard is written or listed as failed, 75 if a signal stopped it with frames left.
    Raises UserError if all frames fail, an output can't be written, the GPU runs out of memory, or
    MAX_CONSECUTIVE_FAILURES frames in a row fail with the same reason.
    """
    index, n_shards = shard
    stems = list(frames)[index::n_shards]
    failed_name = "failed_frames.jsonl" if n_shards == 1 else f"failed_frames.{index}-of-{n_shards}.jsonl"
    shared = {Path(PROVENANCE).stem} if n_shards == 1 else set()  # with shards, another one may be writing it
    finished = _scan_outputs(output_dir, {*stems, Path(failed_name).stem} | shared)
    for folder in extra_output_dirs:
        _scan_outputs(folder, set(stems))
    todo = [stem for stem in stems if overwrite or stem not in finished]
    tally = Tally(finished_before=len(stems) - len(todo))
    batches = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    try:
        with StopSignal() as stop:
            _run_batches(batches, frames, output_dir, teacher, workers, tally, stop)
    finally:
        write_failed_frames(output_dir / failed_name, {s: tally.failed[s] for s in todo if s in tally.failed})
    remaining = len(todo) - tally.done - len(tally.failed)
    print(
        f"{output_dir}: {tally.done} frames done, {tally.finished_before} already done, {len(tally.failed)} failed"
        + (f", {remaining} left ({stop.received.name}): run the command again" if remaining and stop.received else "")
    )
    if remaining:
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
    """Prefetch, infer and write until all batches are done or a signal arrives; updates the tally."""
    writing: deque[dict[str, Future]] = deque()
    progress = Progress(sum(map(len, batches)))
    with _pool(workers) as readers, _pool(workers) as writers:
        try:
            for prepared in _prefetch(readers, batches, lambda stem: teacher.prepare(stem, frames[stem])):
                ready = _collect(prepared, tally)
                outputs = _infer(teacher, ready, tally)
                writing.append(
                    {
                        stem: writers.submit(_finish, teacher, ready[stem], output, output_dir / f"{stem}.npy")
                        for stem, output in outputs.items()
                    }
                )
                if len(writing) > BATCHES_AHEAD:
                    tally.finish(len(_collect(writing.popleft(), tally)))
                progress.update(len(prepared))
                if stop:
                    break
            while writing:
                tally.finish(len(_collect(writing.popleft(), tally)))
        finally:  # after an error or a signal, drop the reads that have not started
            readers.shutdown(cancel_futures=True)
            progress.close()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Thread pool in which torch runs single-threaded: an OpenMP pool per worker would compete with the model."""
    if "torch" not in sys.modules:
        return ThreadPoolExecutor(workers)
    import torch

    torch.get_num_threads()  # initialises this thread's setting, which the first call in a worker would change
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def _scan_outputs(output_dir: Path, own_stems: set[str]) -> set[str]:
    """Return the stems that have an output; remove half-written files that a killed run left for `own_stems`."""
    finished: set[str] = set()
    if not output_dir.is_dir():
        return finished
    split = (stem.rpartition("/") for stem in own_stems)
    own_stems = {f"{folder}{slash}{shorten_stem(name)}" for folder, slash, name in split}
    for folder, _, files in walk_folders(output_dir):  # one walk: a stat per stem would cost a round trip each
        relative = normalize_name(folder.relative_to(output_dir).as_posix())
        prefix = "" if relative == "." else f"{relative}/"
        for file in files:
            if target := stem_of_temporary(file.name):
                if prefix + target in own_stems:
                    (folder / file.name).unlink(missing_ok=True)
            elif file.name.endswith(".npy"):
                finished.add(prefix + normalize_name(file.name.removesuffix(".npy")))
    return finished


def _prefetch(
    pool: ThreadPoolExecutor, batches: list[list[str]], prepare: Callable[[str], Any]
) -> Iterator[dict[str, Future]]:
    """Yield {stem: future of the prepared frame} for each batch, with BATCHES_AHEAD batches submitted in advance."""
    pending: deque[dict[str, Future]] = deque()
    for batch in batches:
        pending.append({stem: pool.submit(prepare, stem) for stem in batch})
        if len(pending) > BATCHES_AHEAD:
            yield pending.popleft()
    yield from pending


def _collect(futures: dict[str, Future], tally: Tally) -> dict[str, Any]:
    """Results of the futures by stem; failed frames are recorded in the tally."""
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
    """{stem: output}; a batch that fails is retried frame by frame, so that one bad frame does not fail the others."""
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
    """Limit OpenCV to one thread: a stage runs several workers, and OpenCV would use all CPUs of the node in each."""
    cv2.setNumThreads(1)
