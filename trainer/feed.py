"""The packed cache: every frame once at one size in memory-mapped arrays, and batches cut from it."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import CLASS_NAMES, Recipe
from dataset.files import read_npy, write_json
from dataset.frames import MILLIMETRES, read_frame, to_network_camera
from dataset.identity import fingerprint
from dataset.manifest import Row
from dataset.packing import ARRAYS, pack_frame
from models.losses import hybrid_depth

LAYOUT_VERSION = 3  # part of the cache's name: raise it when what is packed changes
TAUGHT = tuple(name for name in ARRAYS if name != "labels")  # what training learns from
# Scale from metres to metres at the reference focal length: f_ref / f, 1 for a frame without intrinsics.
FOCAL_FACTOR = "focal_factor"
STATISTICS_FRAMES = 300
BUILDING = ".building-"  # begins the name of a cache that is not finished
ABANDONED = 24 * 3600  # seconds without a write after which its builder must have been killed


@dataclass
class Batch:
    """Frames on the training device; depth in metres of each frame's own camera, 0 = no value.

    rgb: float32 [B,3,H,W] in 0..1; depth, da3_depth, confidence, seg_confidence (of sam2_seg): float32 [B,1,H,W];
    sam2_seg, labels: uint8 [B,H,W], 255 = ignore; focal_factor: float32 [B], f_ref / f. What no frame has is one value
    of stride 0, which takes no memory.
    """

    rgb: Tensor
    depth: Tensor
    confidence: Tensor
    da3_depth: Tensor
    sam2_seg: Tensor
    seg_confidence: Tensor
    labels: Tensor
    focal_factor: Tensor

    def __len__(self) -> int:
        return len(self.rgb)

    def split(self, parts: int) -> "list[Batch]":
        """The frames in so many parts, as even as can be; fewer where there are fewer frames."""
        columns = (tensor.tensor_split(min(parts, len(self))) for tensor in vars(self).values())
        return [Batch(*tensors) for tensors in zip(*columns, strict=True)]


class PackedFrames:
    """The frames of some rows at one size, memory-mapped from a cache that is built when it is missing."""

    def __init__(
        self, rows: Sequence[Row], cache_dir: Path, size: tuple[int, int], reference_focal: float, workers: int
    ):
        """Open the cache, or build it first.

        Args:
            rows: frames to pack, in this order.
            cache_dir: where caches are kept; each has a folder named by what is in it.
            size: (width, height) to pack at, of the network's aspect ratio.
            reference_focal: f_ref in pixels at that size.
            workers: threads that read frames.

        Raises UserError when a frame can't be read; no cache is left behind then.
        """
        self.rows, self.size, self.reference_focal = rows, size, reference_focal
        name = f"{LAYOUT_VERSION}|{size}|{reference_focal}|{fingerprint(rows)}"
        self.folder = Path(cache_dir) / hashlib.sha256(name.encode()).hexdigest()[:24]
        if not self.folder.is_dir():
            self._build(workers)
        files = {name: self.folder / f"{name}.npy" for name in ARRAYS}
        self.arrays = {name: np.load(file, mmap_mode="r") for name, file in files.items() if file.is_file()}
        self.focal_factor = read_npy(self.folder / f"{FOCAL_FACTOR}.npy")

    def __len__(self) -> int:
        return len(self.rows)

    def _build(self, workers: int) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder.parent)
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=self.folder.parent))
        try:
            (building / "frames").mkdir()  # mkdtemp makes private folders; the cache is shared in a group
            self._pack_into(building / "frames", workers)
            os.rename(building / "frames", self.folder)
        except OSError:
            if not self.folder.is_dir():  # else another job has just finished the same cache: use that one
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _pack_into(self, folder: Path, workers: int) -> None:
        width, height = self.size
        arrays = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(len(self.rows), height, width, channels)
            )
            for name, (dtype, channels, _) in ARRAYS.items()
            if any(getattr(row, name) for row in self.rows)  # one that no frame has would only be read and moved
        }
        factors = np.ones(len(self.rows), dtype=np.float32)

        def pack(index: int) -> None:
            frame = read_frame(self.rows[index])
            packed = pack_frame(frame, width, height)
            for name, array in arrays.items():
                array[index] = packed[name]
            if frame.intrinsics:
                factors[index] = self.reference_focal / to_network_camera(frame.intrinsics, width, height).focal

        with ThreadPoolExecutor(max(workers, 1)) as pool:
            packed = pool.map(pack, range(len(self.rows)))
            list(tqdm(packed, total=len(self.rows), desc="packing frames", disable=None))
        for array in arrays.values():
            array.flush()
        np.save(folder / f"{FOCAL_FACTOR}.npy", factors, allow_pickle=False)
        write_json(folder / "stems.json", [row.stem for row in self.rows])

    def array(self, name: str, index: int) -> np.ndarray:
        """One packed array of one frame, [H,W,C]; of one value where no frame has it."""
        if name in self.arrays:
            return self.arrays[name][index]
        dtype, channels, value = ARRAYS[name]
        return np.broadcast_to(np.array(value, dtype), (*self.arrays["rgb"].shape[1:3], channels))

    def gather(
        self, indices: Sequence[int] | np.ndarray, pin: bool, names: Iterable[str] = ARRAYS
    ) -> dict[str, Tensor]:
        """The packed arrays of those names of the given frames, [B,H,W,C] each, and focal_factor [B], in memory.

        In pinned memory for a GPU. Arrays that no frame has are left out.
        """
        chosen = np.asarray(indices)
        tensors = {name: torch.from_numpy(self.arrays[name][chosen]) for name in names if name in self.arrays}
        tensors[FOCAL_FACTOR] = torch.from_numpy(self.focal_factor[chosen])
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """The frames of the given indices on the device."""
        return unpack(self.gather(indices, device.type == "cuda"), device)


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished caches in a folder whose builders were killed; other jobs may be building theirs."""
    for building in folder.glob(f"{BUILDING}*"):
        with suppress(OSError):  # its builder has just finished
            last_write = max(path.stat().st_mtime for path in (building, *building.rglob("*")))
            if time.time() - last_write > ABANDONED:
                shutil.rmtree(building)


def unpack(gathered: dict[str, Tensor], device: torch.device) -> Batch:
    """What PackedFrames.gather() returned, as a batch on the device."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in gathered.items()}
    frames, height, width, _ = moved["rgb"].shape

    def raw(name: str) -> Tensor:
        if name in moved:
            return moved[name].permute(0, 3, 1, 2)
        return torch.full((1, 1, 1, 1), ARRAYS[name][-1], dtype=torch.uint8, device=device)

    def floats(name: str, unit: float) -> Tensor:
        return raw(name).to(torch.float32).div_(unit).expand(frames, -1, height, width)

    def classes(name: str) -> Tensor:
        return raw(name).expand(frames, -1, height, width)[:, 0]

    return Batch(
        rgb=floats("rgb", 255),
        depth=floats("depth", MILLIMETRES),
        confidence=floats("confidence", 255),
        da3_depth=floats("da3_depth", MILLIMETRES),
        sam2_seg=classes("sam2_seg"),
        seg_confidence=floats("seg_confidence", 255),
        labels=classes("labels"),
        focal_factor=moved[FOCAL_FACTOR],
    )


def depth_target(batch: Batch, recipe: Recipe) -> Tensor:
    """What the student learns of depth: float32 [B,1,H,W], metres of each frame's own camera, 0 = nothing."""
    depth_range = (recipe.min_depth, recipe.max_depth)
    return hybrid_depth(batch.depth, batch.confidence, batch.da3_depth, recipe.confidence_threshold, depth_range)


def target_statistics(frames: PackedFrames, recipe: Recipe) -> dict[str, Any]:
    """Mean of the depth target and frequency of the classes, from up to STATISTICS_FRAMES frames spread over the data.

    Args:
        frames: the training data.
        recipe: says what the target is, see depth_target().

    Returns: mean_depth in metres at the reference focal length and majority_class, which the baselines of Table IV
    predict, None where there is no target; class_shares, each class's share of the pixels with one, or zeros.
    """
    sample = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), STATISTICS_FRAMES)).round().astype(int))
    total, pixels, counts = 0.0, 0, np.zeros(256, dtype=np.int64)
    for index in sample:
        batch = frames.batch([index], torch.device("cpu"))
        target = depth_target(batch, recipe).double() * batch.focal_factor.double()
        total, pixels = total + target.sum().item(), pixels + int(target.count_nonzero())
        counts += np.bincount(frames.array("sam2_seg", index).ravel(), minlength=256)
    counts = counts[: len(CLASS_NAMES)]
    return {
        "mean_depth": float(total / pixels) if pixels else None,
        "majority_class": int(counts.argmax()) if counts.any() else None,
        "class_shares": (counts / max(counts.sum(), 1)).tolist(),
    }


def gathered_batches(
    frames: PackedFrames,
    batch_size: int,
    seed: int,
    epoch: int,
    skip: int,
    pin: bool,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """What PackedFrames.gather() returns of the batches of training_batches(), with the same arguments.

    The next batch is read while the current one is in use; the reading thread touches no tensor arithmetic, since each
    thread that does keeps a pool of OpenMP threads, which take the cores from each other.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(frames))
    count = batches_per_epoch(len(frames), batch_size)
    batch_size = min(batch_size, len(frames))
    part = batch_size // processes
    chosen = [order[start : start + part] for n in range(skip, count) for start in [n * batch_size + rank * part]]
    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(frames.gather, indices, pin, TAUGHT) for indices in chosen[:1]]
        for position in range(len(chosen)):
            if position + 1 < len(chosen):
                waiting.append(reader.submit(frames.gather, chosen[position + 1], pin, TAUGHT))
            yield waiting.pop(0).result()


def training_batches(
    frames: PackedFrames,
    batch_size: int,
    seed: int,
    epoch: int,
    skip: int,
    device: torch.device,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """The batches of one epoch in an order that depends on seed and epoch alone, the first `skip` left out.

    Frames fewer than batch_size are one batch. With several processes each one gets its equal part of each batch; the
    processes must divide it. The reference labels are left out, training doesn't learn from them.

    The last frames that fill no whole batch wait for another epoch's order, unless there are fewer than one batch.
    """
    pin = device.type == "cuda"
    for gathered in gathered_batches(frames, batch_size, seed, epoch, skip, pin, rank, processes):
        yield unpack(gathered, device)


def batches_per_epoch(frames: int, batch_size: int) -> int:
    """Number of batches of training_batches() without skipping."""
    return max(frames // batch_size, 1)


def ordered_batches(
    frames: PackedFrames, batch_size: int, device: torch.device, part: slice = slice(None)
) -> Iterator[Batch]:
    """All frames of a part once, in order; the last batch may be smaller."""
    chosen = range(len(frames))[part]
    for start in range(0, len(chosen), batch_size):
        yield frames.batch(chosen[start : start + batch_size], device)
