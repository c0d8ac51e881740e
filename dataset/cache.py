"""The packed cache: all frames of a split at one size, in memory-mapped arrays. Packing resumes after any interruption.

A cache is a folder named by a hash of its content. It contains

    <array>.npy       the arrays of dataset/packing.py, [N,H,W,C] each, except those that no frame has or that repeat
                      another one, such as the depth of a teacher that is the renderer
    focal_factor.npy  float32 [N], f_ref / f of each frame, 1 without intrinsics
    stems.json        the frames' names
    source.json       manifest, selection of frames, and size; an older cache of the same source is outdated
    rows.json         a digest of each frame's files
    packed.json       number of frames written so far

It is built in .building-<source>, with arrays of full length from the start, and renamed when complete.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cli import Stopped, StopSignal, UserError

import cv2
import numpy as np

from dataset.disk import DiskFullError, reraise_disk_full
from dataset.files import read_json, write_json
from dataset.frames import read_frame, to_network_camera
from dataset.identity import describe_rows, fingerprint_descriptions
from dataset.locks import try_lock, wait_for_lock
from dataset.manifest import Row
from dataset.packing import PACKED_ARRAYS, pack_frame
from dataset.parallel import threaded_map
from dataset.progress import Progress

LAYOUT_VERSION = 3  # part of the cache's name: increase it when the packed data changes
FOCAL_FACTOR = "focal_factor"
SOURCE_FILE, ROWS_FILE, PROGRESS_FILE = "source.json", "rows.json", "packed.json"
BUILD_PREFIX = ".building-"  # of a cache that is still incomplete
REMOVED_PREFIX = ".removed-"  # of a cache that is being removed
# An incomplete cache of a different source is removed if nothing was written to it for this long.
ABANDONED_SECONDS = 24 * 3600
SAVE_INTERVAL = 5.0  # seconds between saves of the progress; a kill loses about this much work
ALLOCATION_BLOCK = 2**30  # bytes allocated between two checks for a signal


class PackedCache:
    """The packed arrays of a list of manifest rows at one size."""

    def __init__(
        self,
        rows: Sequence[Row],
        cache_dir: Path,
        size: tuple[int, int],
        reference_focal: float,
        source: Mapping[str, Any] | None = None,
    ):
        """Compute the cache's name from the rows' files.

        Args:
            rows: the frames, in order.
            cache_dir: folder of all caches.
            size: (width, height) to pack at, in the network's aspect ratio.
            reference_focal: f_ref in pixels at that size.
            source: JSON-serialisable description of where the rows come from, including their split. A cache with the
                same source and size but different content is outdated. Without it, no cache is removed.

        Raises UserError if a file of a row is missing.
        """
        self.rows, self.size, self.reference_focal = rows, size, reference_focal
        described = describe_rows(rows)
        self.digests = [_digest(text) for text in described]
        name = f"{LAYOUT_VERSION}|{size}|{reference_focal}|{fingerprint_descriptions(described)}"
        self.folder = cache_dir / _digest(name)
        self.repeated = _find_repeated(rows)
        self.source = {**source, "size": list(size), "reference_focal": reference_focal} if source else None
        building = _digest(f"{LAYOUT_VERSION}|{json.dumps(self.source)}") if source else self.folder.name
        self.build_folder = cache_dir / f"{BUILD_PREFIX}{building}"

    def open(self, workers: int) -> dict[str, np.ndarray]:
        """Return {name: memory-mapped array}; packs missing frames first.

        Args:
            workers: number of packing threads.

        Raises:
            UserError: a frame can't be read, or the cache can't be written. Frames packed so far are kept.
            Stopped: a signal arrived; the next call resumes.
        """
        arrays = self._map_arrays(self.folder)
        if arrays is None:
            self._build(workers)
            arrays = self._map_arrays(self.folder)
        if arrays is None:
            raise UserError(
                f"{self.folder} was removed: the frames have changed, and another run packs them; run again"
            )
        return arrays | {name: arrays[other] for name, other in self.repeated.items()}

    def layout(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """{array: (dtype, shape)}, without the arrays that no frame has, or that repeat another one."""
        width, height = self.size
        arrays = {
            name: (np.dtype(dtype), (len(self.rows), height, width, channels))
            for name, (dtype, channels, _) in PACKED_ARRAYS.items()
            if any(getattr(row, name) for row in self.rows) and name not in self.repeated
        }
        return arrays | {FOCAL_FACTOR: (np.dtype(np.float32), (len(self.rows),))}

    def _map_arrays(self, folder: Path) -> dict[str, np.ndarray] | None:
        """Memory-map the arrays of a folder; None if one is missing, truncated or has the wrong layout."""
        arrays = {}
        for name, (dtype, shape) in self.layout().items():
            try:
                array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (FileNotFoundError, NotADirectoryError, ValueError, EOFError):
                return None
            if array.dtype != dtype or array.shape != shape:
                return None
            arrays[name] = array
        return arrays

    def _build(self, workers: int) -> None:
        with self._locked(), StopSignal() as stop:
            if self._map_arrays(self.folder) is not None:  # another process built it meanwhile
                return
            self._remove_outdated()
            done = self._count_packed()
            if done is None:
                self._allocate(stop)
                done = 0
            # before the digests: changed frames must not count as packed
            write_json(self.build_folder / PROGRESS_FILE, done)
            write_json(self.build_folder / ROWS_FILE, self.digests)
            write_json(self.build_folder / "stems.json", [row.stem for row in self.rows])
            if self.source:
                write_json(self.build_folder / SOURCE_FILE, self.source)
            done = self._pack(done, workers, stop)
            if done == len(self.rows):
                os.rename(self.build_folder, self.folder)
            else:
                print(f"{done} of {len(self.rows)} frames packed; run the same command to resume", flush=True)
            if stop.received:
                raise Stopped(stop.received.name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock this source's cache against other processes; raises UserError if the folder can't be written."""
        folder = self.folder.parent
        with ExitStack() as stack:
            try:
                with reraise_disk_full(self.build_folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    lock = _lock_path(self.build_folder)
                    stack.enter_context(wait_for_lock(lock, f"packs frames of the same manifest in {folder}"))
            except DiskFullError:
                raise
            except OSError as error:
                raise UserError(
                    f"can't write to {folder} ({error.strerror}): choose another folder for the packed frames with "
                    "--cache-dir"
                ) from error
            yield

    def _remove_outdated(self) -> None:
        """Remove the caches that this one replaces, and leftovers of killed processes."""
        folder = self.folder.parent
        for leftover in folder.glob(f"{REMOVED_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.folder.exists():
            print(f"{self.folder} is damaged: packing its frames again")
            _remove_cache(self.folder)
        for source in folder.glob(f"*/{SOURCE_FILE}") if self.source else ():
            if not source.parent.name.startswith(".") and _read_json_or_none(source) == self.source:
                with suppress(OSError):  # belongs to another user
                    _remove_cache(source.parent)
        for other in folder.glob(f"{BUILD_PREFIX}*"):
            if other != self.build_folder and other.is_dir():
                _remove_if_abandoned(other)

    def _count_packed(self) -> int | None:
        """Number of leading frames that an earlier run packed from unchanged files; None without usable arrays."""
        digests, done = (_read_json_or_none(self.build_folder / name) for name in (ROWS_FILE, PROGRESS_FILE))
        if not isinstance(digests, list) or len(digests) != len(self.rows) or not isinstance(done, int):
            return None
        if self._map_arrays(self.build_folder) is None:
            return None
        pairs = enumerate(zip(digests, self.digests, strict=True))
        return min(done, next((index for index, (before, now) in pairs if before != now), done))

    def _allocate(self, stop: StopSignal) -> None:
        """Create the arrays and allocate their disk space; removes them if that fails."""
        shutil.rmtree(self.build_folder, ignore_errors=True)
        self.build_folder.mkdir()
        try:
            for name, (dtype, shape) in self.layout().items():
                path = self.build_folder / f"{name}.npy"
                with reraise_disk_full(path):
                    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                    _allocate_file(path, stop)
        except BaseException as error:
            shutil.rmtree(self.build_folder, ignore_errors=True)
            if not isinstance(error, DiskFullError):
                raise
            need = sum(np.prod(shape, dtype=float) * dtype.itemsize for dtype, shape in self.layout().values())
            free = shutil.disk_usage(self.folder.parent).free
            raise UserError(
                f"{error}: the packed frames need {need / 1e9:.3f} GB, {free / 1e9:.3f} GB are free: make room or "
                "choose another folder with --cache-dir"
            ) from error

    def _pack(self, done: int, workers: int, stop: StopSignal) -> int:
        """Pack frames from index `done` until the end or a signal; returns the number of frames written."""
        arrays = self._map_arrays(self.build_folder)
        assert arrays is not None  # the caller has just allocated or checked them
        what = f"{self.source['split']} frames" if self.source else "frames"
        so_far = f", {done} already packed" if done else ""
        print(f"packing {len(self.rows)} {what} into {self.folder}{so_far}", flush=True)
        progress, recorded = Progress(len(self.rows), done, f"packing {what}"), time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(_single_threaded_opencv())
            files = {name: _ArrayFile(self.build_folder / f"{name}.npy", array) for name, array in arrays.items()}
            for file in files.values():
                stack.callback(file.close)
            stack.callback(progress.close)

            def pack(index: int) -> None:
                for name, values in self._pack_row(index).items():
                    if name in files:
                        files[name].write(index, values)

            frames = stack.enter_context(closing(threaded_map(pack, range(done, len(self.rows)), workers)))
            try:
                for _ in frames:
                    done += 1
                    progress.update(1)
                    if time.monotonic() - recorded > SAVE_INTERVAL:
                        self._save_progress(files, done)
                        recorded = time.monotonic()
                    if stop:
                        break
            finally:
                self._save_progress(files, done)
        return done

    def _pack_row(self, index: int) -> dict[str, np.ndarray]:
        frame = read_frame(self.rows[index])
        packed = pack_frame(frame, *self.size)
        factor = 1.0
        if frame.intrinsics:
            factor = self.reference_focal / to_network_camera(frame.intrinsics, *self.size).focal
        return packed | {FOCAL_FACTOR: np.array(factor, dtype=np.float32)}

    def _save_progress(self, files: Mapping[str, "_ArrayFile"], done: int) -> None:
        for file in files.values():
            file.flush()
        write_json(self.build_folder / PROGRESS_FILE, done)


def _find_repeated(rows: Sequence[Row]) -> dict[str, str]:
    """{array: other array} where all rows name the same file for both and read it the same way."""
    repeated: dict[str, str] = {}
    if not rows:
        return repeated
    if all(row.da3_depth == row.depth and row.da3_scale is None and row.depth_unit is None for row in rows):
        repeated["da3_depth"] = "depth"
    if all(row.sam2_seg is not None and row.sam2_seg == row.labels for row in rows):
        repeated["sam2_seg"] = "labels"
    return repeated


class _ArrayFile:
    """An .npy file whose items are written by several threads.

    Uses pwrite instead of the memory map: with a map, a full disk or a lost file server kills the process (SIGBUS).
    """

    def __init__(self, path: Path, array: np.ndarray):
        assert isinstance(array, np.memmap)
        self.path, self.offset = path, array.offset
        self.item_bytes = array.nbytes // max(len(array), 1)
        self.file = os.open(path, os.O_WRONLY)

    def write(self, index: int, item: np.ndarray) -> None:
        left, position = memoryview(item.tobytes()), self.offset + index * self.item_bytes
        assert len(left) == self.item_bytes
        with reraise_disk_full(self.path):
            while left:
                written = os.pwrite(self.file, left, position)
                left, position = left[written:], position + written

    def flush(self) -> None:
        with reraise_disk_full(self.path):
            os.fsync(self.file)

    def close(self) -> None:
        os.close(self.file)


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """Limit OpenCV to one thread in the body: the packing threads already use all cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_json_or_none(path: Path) -> Any:
    """The content of a JSON file; None if it can't be read."""
    try:
        return read_json(path)
    except UserError:
        return None


def _lock_path(building: Path) -> Path:
    return building.with_name(f"{building.name}.lock")


def _allocate_file(path: Path, stop: StopSignal) -> None:
    """Allocate the disk space of a file, on file systems that support it."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        for start in range(0, size, ALLOCATION_BLOCK) if hasattr(os, "posix_fallocate") else ():
            if stop.received:
                raise Stopped(stop.received.name)
            try:
                os.posix_fallocate(file.fileno(), start, min(ALLOCATION_BLOCK, size - start))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise


def _remove_cache(folder: Path) -> None:
    """Remove a cache, renaming it first so that a kill leaves no partial cache under its name."""
    removed = folder.with_name(f"{REMOVED_PREFIX}{folder.name}")
    os.rename(folder, removed)
    shutil.rmtree(removed, ignore_errors=True)


def _remove_if_abandoned(building: Path) -> None:
    with suppress(OSError), try_lock(_lock_path(building)) as free:
        if not free:
            return
        last_write = max(path.stat().st_mtime for path in (building, *building.rglob("*")))
        if time.time() - last_write > ABANDONED_SECONDS:
            shutil.rmtree(building)
