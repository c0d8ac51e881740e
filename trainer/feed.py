"""Frames in the packed cache, and batches cut from it."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import CLASS_NAMES, Recipe
from dataset.cache import FOCAL_FACTOR, PackedCache
from dataset.frames import MILLIMETRES
from dataset.packing import PACKED_ARRAYS
from models.losses import hybrid_depth

TRAINING_ARRAYS = tuple(name for name in PACKED_ARRAYS if name != "labels")  # arrays that training uses
STATISTICS_FRAMES = 300


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
    """The frames of a packed cache, memory-mapped; packed first where they are missing.

    rows, size, reference_focal: as PackedCache has them; folder: where the arrays are; focal_factor: float32 [N].
    """

    def __init__(self, cache: PackedCache, workers: int):
        """Open the cache; workers: threads that pack. Raises like PackedCache.open()."""
        self.rows, self.size, self.reference_focal = cache.rows, cache.size, cache.reference_focal
        self.folder = cache.folder
        self.arrays = cache.open(workers)
        self.focal_factor = np.array(self.arrays.pop(FOCAL_FACTOR))

    def __len__(self) -> int:
        return len(self.rows)

    def array(self, name: str, index: int) -> np.ndarray:
        """One packed array of one frame, [H,W,C]; of one value where no frame has it."""
        if name in self.arrays:
            return self.arrays[name][index]
        dtype, channels, value = PACKED_ARRAYS[name]
        return np.broadcast_to(np.array(value, dtype), (*self.arrays["rgb"].shape[1:3], channels))

    def gather(
        self, indices: Sequence[int] | np.ndarray, pin: bool, names: Iterable[str] = PACKED_ARRAYS
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


def unpack(gathered: dict[str, Tensor], device: torch.device) -> Batch:
    """Convert the result of PackedFrames.gather() to a batch on the device."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in gathered.items()}
    frames, height, width, _ = moved["rgb"].shape

    def raw(name: str) -> Tensor:
        if name in moved:
            return moved[name].permute(0, 3, 1, 2)
        return torch.full((1, 1, 1, 1), PACKED_ARRAYS[name][-1], dtype=torch.uint8, device=device)

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
    """Depth target: float32 [B,1,H,W], metres of each frame's own camera, 0 = no target."""
    depth_range = (recipe.min_depth, recipe.max_depth)
    return hybrid_depth(batch.depth, batch.confidence, batch.da3_depth, recipe.confidence_threshold, depth_range)


def target_statistics(frames: PackedFrames, recipe: Recipe) -> dict[str, Any]:
    """Mean of the depth target and frequency of the classes, from up to STATISTICS_FRAMES frames spread over the data.

    Args:
        frames: the training data.
        recipe: defines the target, see depth_target().

    Returns mean_depth, metres at the reference focal length, and majority_class, which the baselines of Table IV
    predict, or None without targets; class_shares, the fraction of labelled pixels per class, or zeros.
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
    """Yield PackedFrames.gather() of the batches of training_batches(); the arguments are the same.

    A thread reads the next batch ahead. It does no tensor arithmetic: each thread that does owns a pool of OpenMP
    threads, and the pools compete for the cores.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(frames))
    count = batches_per_epoch(len(frames), batch_size)
    batch_size = min(batch_size, len(frames))
    part = batch_size // processes
    chosen = [order[start : start + part] for n in range(skip, count) for start in [n * batch_size + rank * part]]
    with ThreadPoolExecutor(1) as reader:
        waiting = [reader.submit(frames.gather, indices, pin, TRAINING_ARRAYS) for indices in chosen[:1]]
        for position in range(len(chosen)):
            if position + 1 < len(chosen):
                waiting.append(reader.submit(frames.gather, chosen[position + 1], pin, TRAINING_ARRAYS))
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
    """Yield the batches of one epoch, without the first `skip`, in an order that depends on seed and epoch only.

    Each rank gets its equal slice of each batch; the number of processes must divide it. An incomplete last batch is
    dropped, unless it is the only one. Reference labels are not loaded: training does not use them.
    """
    pin = device.type == "cuda"
    for gathered in gathered_batches(frames, batch_size, seed, epoch, skip, pin, rank, processes):
        yield unpack(gathered, device)


def batches_per_epoch(frames: int, batch_size: int) -> int:
    """Number of batches per epoch."""
    return max(frames // batch_size, 1)


def ordered_batches(
    frames: PackedFrames, batch_size: int, device: torch.device, part: slice = slice(None)
) -> Iterator[Batch]:
    """Yield all frames of a slice once, in order; the last batch may be smaller."""
    chosen = range(len(frames))[part]
    for start in range(0, len(chosen), batch_size):
        yield frames.batch(chosen[start : start + batch_size], device)
