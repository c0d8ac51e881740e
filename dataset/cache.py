"""The packed cache on disk: every frame once at one size, in arrays that are packed in steps which outlive any kill.

A cache is a folder that is named by what is in it and holds

    <array>.npy       the arrays of dataset/packing.py, [N,H,W,C] each, but those that no frame has
    focal_factor.npy  float32 [N], f_ref / f of each frame, 1 without intrinsics
    stems.json        the frames' names
    source.json       the manifest, which of its frames, at which size: another cache of the same source is outdated
    rows.json         a digest of each frame's files
    packed.json       the number of frames that are on the disk, in the end all

It is built in a folder .building-<source>, with arrays of full length from the start, and renamed once it is complete.
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

LAYOUT_VERSION = 3  # part of the cache's name: raise it when what is packed changes
FOCAL_FACTOR = "focal_factor"
SOURCE_FILE, ROWS_FILE, PROGRESS_FILE = "source.json", "rows.json", "packed.json"
BUILD_PREFIX = ".building-"  # begins the name of a cache that is not complete
REMOVED_PREFIX = ".removed-"  # begins the name of one that is on its way out
ABANDONED_SECONDS = (
    24 * 3600
)  # seconds without a write after which nobody goes on with an incomplete cache of another source
SAVE_INTERVAL = 5.0  # between two records of how far it has come; a kill costs what was packed since
ALLOCATION_BLOCK = 2**30  # bytes; a signal waits for no more


class PackedCache:
    """The packed arrays of some rows at one size."""

    def __init__(
        self,
        rows: Sequence[Row],
        cache_dir: Path,
        size: tuple[int, int],
        reference_focal: float,
        source: Mapping[str, Any] | None = None,
    ):
        """Find out the cache's name from the rows' files.

        Args:
            rows: frames, in this order.
            cache_dir: where caches are kept.
            size: (width, height) to pack at, of the network's aspect ratio.
            reference_focal: f_ref in pixels at that size.
            source: what the rows are, other than by their content, in plain JSON, among it their split: caches of the
                same source and size that have another content are outdated. Without it none is.

        Raises UserError when a file of a row is missing.
        """
        self.rows, self.size, self.reference_focal = rows, size, reference_focal
        described = describe_rows(rows)
        self.digests = [_digest(text) for text in described]
        name = f"{LAYOUT_VERSION}|{size}|{reference_focal}|{fingerprint_descriptions(described)}"
        self.folder = cache_dir / _digest(name)
        self.source = {**source, "size": list(size), "reference_focal": reference_focal} if source else None
        building = _digest(f"{LAYOUT_VERSION}|{json.dumps(self.source)}") if source else self.folder.name
        self.build_folder = cache_dir / f"{BUILD_PREFIX}{building}"

    def open(self, workers: int) -> dict[str, np.ndarray]:
        """The arrays by their names, memory-mapped, packed first where they are missing.

        Args:
            workers: threads that pack.

        Raises:
            UserError: a frame can't be read, or the cache can't be written. What is packed is kept for the next try.
            Stopped: a signal came; the next try goes on from there.
        """
        arrays = self._map_arrays(self.folder)
        if arrays is None:
            self._build(workers)
            arrays = self._map_arrays(self.folder)
        if arrays is None:
            raise UserError(f"{self.folder} has been removed: another run packs the same frames, which have changed")
        return arrays

    def layout(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type and shape of each array; one that no frame has would only be read and moved."""
        width, height = self.size
        arrays = {
            name: (np.dtype(dtype), (len(self.rows), height, width, channels))
            for name, (dtype, channels, _) in PACKED_ARRAYS.items()
            if any(getattr(row, name) for row in self.rows)
        }
        return arrays | {FOCAL_FACTOR: (np.dtype(np.float32), (len(self.rows),))}

    def _map_arrays(self, folder: Path) -> dict[str, np.ndarray] | None:
        """The arrays of a folder; None when one is missing, cut short or of another layout."""
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
            if self._map_arrays(self.folder) is not None:  # of the process that was waited for
                return
            self._remove_outdated()
            done = self._count_packed()
            if done is None:
                self._allocate(stop)
                done = 0
            write_json(
                self.build_folder / PROGRESS_FILE, done
            )  # before the rows: frames that have changed since are not packed
            write_json(self.build_folder / ROWS_FILE, self.digests)
            write_json(self.build_folder / "stems.json", [row.stem for row in self.rows])
            if self.source:
                write_json(self.build_folder / SOURCE_FILE, self.source)
            done = self._pack(done, workers, stop)
            if done == len(self.rows):
                os.rename(self.build_folder, self.folder)
            else:
                print(f"{done} of {len(self.rows)} frames are packed; the same command goes on from there", flush=True)
            if stop.received:
                raise Stopped(stop.received.name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """No other process builds a cache of this source in the body; raises UserError when none can be written."""
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
                    f"{folder} can't be written ({error.strerror}): name another folder for the packed frames with "
                    "--cache-dir"
                ) from error
            yield

    def _remove_outdated(self) -> None:
        """Remove what this cache takes the place of, and what killed processes have left."""
        folder = self.folder.parent
        for leftover in folder.glob(f"{REMOVED_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.folder.exists():
            print(f"{self.folder} is damaged: packing its frames anew")
            _remove_cache(self.folder)
        for source in folder.glob(f"*/{SOURCE_FILE}") if self.source else ():
            if not source.parent.name.startswith(".") and _read_json_or_none(source) == self.source:
                with suppress(OSError):  # another user's
                    _remove_cache(source.parent)
        for other in folder.glob(f"{BUILD_PREFIX}*"):
            if other != self.build_folder and other.is_dir():
                _remove_if_abandoned(other)

    def _count_packed(self) -> int | None:
        """Number of the first frames that an earlier try has packed of the same files; None: nothing to go on with."""
        digests, done = (_read_json_or_none(self.build_folder / name) for name in (ROWS_FILE, PROGRESS_FILE))
        if not isinstance(digests, list) or len(digests) != len(self.rows) or not isinstance(done, int):
            return None
        if self._map_arrays(self.build_folder) is None:
            return None
        pairs = enumerate(zip(digests, self.digests, strict=True))
        return min(done, next((index for index, (before, now) in pairs if before != now), done))

    def _allocate(self, stop: StopSignal) -> None:
        """Make the arrays with all the disk space that they take; leaves nothing behind when that fails."""
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
                f"{error}: the packed frames take {need / 1e9:.3f} GB, {free / 1e9:.3f} GB are free: make room, or "
                "name another folder with --cache-dir"
            ) from error

    def _pack(self, done: int, workers: int, stop: StopSignal) -> int:
        """Pack the frames from number `done` on until the end or a signal; returns how many are on the disk then."""
        arrays = self._map_arrays(self.build_folder)
        assert arrays is not None  # allocated or checked right before
        what = f"{self.source['split']} frames" if self.source else "frames"
        so_far = f", {done} of them were packed before" if done else ""
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


class _ArrayFile:
    """An .npy file that threads write items of, each at its own place.

    Not through memory: there a full disk, or a server that is gone, would end the process with a bus error.
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
    """Resizing in the body takes one thread: several are at work, whose helpers would spin for each other's cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read_json_or_none(path: Path) -> Any:
    """What a JSON file holds; None where it can't be read."""
    try:
        return read_json(path)
    except UserError:
        return None


def _lock_path(building: Path) -> Path:
    return building.with_name(f"{building.name}.lock")


def _allocate_file(path: Path, stop: StopSignal) -> None:
    """Have the file system set space aside for all of a file, where it can."""
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
    """Remove a cache such that a kill leaves no half of it under its name."""
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
