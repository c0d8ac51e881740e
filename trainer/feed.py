"""Batches from the packed cache, and statistics of their targets."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from config import CLASS_NAMES, Recipe
from dataset.cache import FOCAL_FACTOR, PackedCache
from dataset.frames import MILLIMETRES
from dataset.packing import PACKED_ARRAYS
from dataset.units import sample_evenly
from models.losses import hybrid_depth

TRAINING_ARRAYS = tuple(name for name in PACKED_ARRAYS if name != "labels")  # arrays that training uses
MAX_STATISTICS_FRAMES = 300  # frames that target_statistics() reads


@dataclass
class Batch:
    """A batch of frames on the training device; depth is in metres of each frame's own camera, 0 = no value.

    rgb: float32 [B,3,H,W] in 0..1; depth, da3_depth, confidence, seg_confidence (of sam2_seg): float32 [B,1,H,W];
    sam2_seg, labels: uint8 [B,H,W], 255 = ignore; focal_factor: float32 [B], f_ref / f. An array that no frame has is
    one value expanded with stride 0, which takes no memory.
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
        """Split the batch into `parts` micro-batches, as even as possible, of at least one frame each."""
        columns = (tensor.tensor_split(min(parts, len(self))) for tensor in vars(self).values())
        return [Batch(*tensors) for tensors in zip(*columns, strict=True)]


class PackedFrames:
    """The memory-mapped frames of a packed cache; missing ones are packed first.

    rows, size, reference_focal: see PackedCache; folder: the folder of the arrays; focal_factor: float32 [N].
    """

    def __init__(self, cache: PackedCache, workers: int):
        """Open the cache; workers: threads that pack. Raises the errors of PackedCache.open()."""
        self.rows, self.size, self.reference_focal = cache.rows, cache.size, cache.reference_focal
        self.folder = cache.folder
        self.arrays = cache.open(workers)
        self.focal_factor = np.array(self.arrays.pop(FOCAL_FACTOR))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epoch_length(self) -> int:
        """Number of frames in an epoch."""
        return len(self)

    def has(self, name: str) -> bool:
        """Whether any frame has the array."""
        return name in self.arrays

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch's frames in training order, int64 [epoch_length]."""
        return np.random.default_rng((seed, epoch)).permutation(len(self))

    def sample(self, count: int) -> list[int]:
        """At most `count` evenly spaced indices."""
        return sample_evenly(range(len(self)), count)

    def array(self, name: str, index: int) -> np.ndarray:
        """One packed array of one frame, [H,W,C]; filled with the default value if no frame has it."""
        if name in self.arrays:
            return self.arrays[name][index]
        dtype, channels, value = PACKED_ARRAYS[name]
        return np.broadcast_to(np.array(value, dtype), (*self.arrays["rgb"].shape[1:3], channels))

    def gather(
        self, indices: Sequence[int] | np.ndarray, pin: bool, names: Iterable[str] = PACKED_ARRAYS
    ) -> dict[str, Tensor]:
        """Copy the named arrays of the given frames to memory: [B,H,W,C] each, and focal_factor [B].

        pin: use pinned memory, for a GPU. Arrays that no frame has are skipped.
        """
        chosen = np.asarray(indices)
        tensors = {name: torch.from_numpy(self.arrays[name][chosen]) for name in names if name in self.arrays}
        tensors[FOCAL_FACTOR] = torch.from_numpy(self.focal_factor[chosen])
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """Load the frames with the given indices to the device."""
        return unpack(self.gather(indices, device.type == "cuda"), device)


class TrainingFrames(Protocol):
    """What training takes of its frames: PackedFrames of one set, or a mixture of several."""

    def __len__(self) -> int: ...

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """See PackedFrames."""

    def sample(self, count: int) -> list[int]:
        """See PackedFrames."""

    def array(self, name: str, index: int) -> np.ndarray:
        """See PackedFrames."""

    def gather(
        self, indices: Sequence[int] | np.ndarray, pin: bool, names: Iterable[str] = ...
    ) -> dict[str, Tensor]:
        """See PackedFrames."""

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """See PackedFrames."""


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


def target_statistics(frames: TrainingFrames, recipe: Recipe) -> dict[str, Any]:
    """Mean depth target and class frequencies, from up to MAX_STATISTICS_FRAMES frames spread over the data.

    Args:
        frames: the training data.
        recipe: defines the target, see depth_target().

    Returns 'mean_depth', in metres at the reference focal length, and 'majority_class', both used by the baseline of
    Table IV and None without targets; 'class_shares', the fraction of the labelled pixels per class, 0 without any.
    """
    total, pixels, counts = 0.0, 0, np.zeros(256, dtype=np.int64)
    for index in frames.sample(MAX_STATISTICS_FRAMES):
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


def host_batches(
    frames: TrainingFrames,
    batch_size: int,
    seed: int,
    epoch: int,
    skip: int,
    pin: bool,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of training_batches() in host memory, as PackedFrames.gather() returns them; same arguments.

    A thread prefetches the next batch. It does no tensor arithmetic: each thread that does gets its own pool of OpenMP
    threads, and the pools compete for the cores.
    """
    order = frames.epoch_order(seed, epoch)
    count = batches_per_epoch(len(order), batch_size)
    batch_size = min(batch_size, len(order))
    per_rank = batch_size // world_size
    chosen = [
        order[start : start + per_rank] for n in range(skip, count) for start in [n * batch_size + rank * per_rank]
    ]
    with ThreadPoolExecutor(1) as reader:
        pending = [reader.submit(frames.gather, indices, pin, TRAINING_ARRAYS) for indices in chosen[:1]]
        for position in range(len(chosen)):
            if position + 1 < len(chosen):
                pending.append(reader.submit(frames.gather, chosen[position + 1], pin, TRAINING_ARRAYS))
            yield pending.pop(0).result()


def training_batches(
    frames: TrainingFrames,
    batch_size: int,
    seed: int,
    epoch: int,
    skip: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of one epoch, without the first `skip`, in an order that depends on seed and epoch only.

    Each rank gets an equal slice of each batch, so the batch must be divisible by world_size. An incomplete last batch
    is dropped, unless it is the only one. Reference labels are not loaded, because training does not use them.
    """
    pin = device.type == "cuda"
    for gathered in host_batches(frames, batch_size, seed, epoch, skip, pin, rank, world_size):
        yield unpack(gathered, device)


def batches_per_epoch(frames: int, batch_size: int) -> int:
    """Number of batches per epoch."""
    return max(frames // batch_size, 1)


def sequential_batches(
    frames: PackedFrames, batch_size: int, device: torch.device, frame_slice: slice = slice(None)
) -> Iterator[Batch]:
    """Yield all frames of a slice once, in order; the last batch may be smaller."""
    chosen = range(len(frames))[frame_slice]
    for start in range(0, len(chosen), batch_size):
        yield frames.batch(chosen[start : start + batch_size], device)
