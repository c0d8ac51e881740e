"""Several data sets in one training: their manifests and weights, and their frames seen as one set."""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.cache import FOCAL_FACTOR
from dataset.packing import PACKED_ARRAYS
from dataset.units import sample_evenly
from trainer.feed import Batch, PackedFrames, unpack

WEIGHTED = re.compile(r"(.+):([0-9]*\.?[0-9]+)")


@dataclass(frozen=True)
class WeightedManifest:
    """A manifest and its weight: the set's part of each epoch, relative to the other sets' weights."""

    path: Path
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The data folder's name, by which metrics name the set."""
        return self.path.resolve().parent.name


def weighted_manifest(text: str) -> WeightedManifest:
    """Argparse type: PATH or PATH:WEIGHT; a colon counts only before a number at the end."""
    match = WEIGHTED.fullmatch(text)
    if not match:
        return WeightedManifest(Path(text))
    weight = float(match[2])
    if not 0 < weight < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: the weight must be above 0")
    return WeightedManifest(Path(match[1]), weight)


class MixedFrames:
    """The packed frames of several sets, numbered one set after the other; see PackedFrames for the attributes.

    An epoch takes every frame of the first set once, and of each other set as many as its weight says: in turn, each
    cycle in a random order of its own.
    """

    def __init__(self, sets: Sequence[PackedFrames], weights: Sequence[float]):
        """Mix sets that are packed at the same size; weights: positive, one per set."""
        self.sets = sets
        self.rows = [row for frames in sets for row in frames.rows]
        self.size, self.reference_focal = sets[0].size, sets[0].reference_focal
        self.focal_factor = np.concatenate([frames.focal_factor for frames in sets])
        self.starts = np.cumsum([0, *map(len, sets)])
        self.per_epoch = [max(1, round(len(sets[0]) * weight / weights[0])) for weight in weights]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epoch_length(self) -> int:
        """Number of frames in an epoch: those of the first set, divided by its normalised weight."""
        return sum(self.per_epoch)

    def has(self, name: str) -> bool:
        """Whether a frame of any set has the array."""
        return any(frames.has(name) for frames in self.sets)

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch's frames in training order, int64 [epoch_length]."""
        chosen = [
            start + _cycle(len(frames), count, (seed, number), epoch)
            for number, (frames, start, count) in enumerate(zip(self.sets, self.starts, self.per_epoch, strict=False))
        ]
        return np.random.default_rng((seed, epoch)).permutation(np.concatenate(chosen))

    def sample(self, count: int) -> list[int]:
        """About `count` indices, in the proportions of an epoch and evenly spaced in each set."""
        return [
            index
            for start, end, part in zip(self.starts, self.starts[1:], self.per_epoch, strict=False)
            for index in sample_evenly(range(start, end), max(1, round(count * part / self.epoch_length)))
        ]

    def array(self, name: str, index: int) -> np.ndarray:
        """One packed array of one frame, [H,W,C]; filled with the default value if its set has none."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sets[number].array(name, index - int(self.starts[number]))

    def gather(
        self, indices: Sequence[int] | np.ndarray, pin: bool, names: Iterable[str] = PACKED_ARRAYS
    ) -> dict[str, Tensor]:
        """Copy the named arrays of the given frames to memory, as PackedFrames.gather() does.

        Frames of a set without an array get its default value.
        """
        chosen = np.asarray(indices)
        width, height = self.size
        arrays = {}
        for name in names:
            if self.has(name):
                dtype, channels, value = PACKED_ARRAYS[name]
                arrays[name] = np.full((len(chosen), height, width, channels), value, dtype)
        for frames, start in zip(self.sets, self.starts, strict=False):
            places = np.flatnonzero((chosen >= start) & (chosen < start + len(frames)))
            for name, values in frames.gather(chosen[places] - start, False, arrays).items():
                if name != FOCAL_FACTOR:
                    arrays[name][places] = values.numpy()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors[FOCAL_FACTOR] = torch.from_numpy(self.focal_factor[chosen])
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """Load the frames with the given indices to the device."""
        return unpack(self.gather(indices, device.type == "cuda"), device)


def _cycle(frames: int, count: int, seed: tuple[int, int], epoch: int) -> np.ndarray:
    """Items epoch * count to (epoch + 1) * count of endless permutations of range(frames), one after the other."""
    first, last = epoch * count // frames, ((epoch + 1) * count - 1) // frames
    cycles = [np.random.default_rng((*seed, number)).permutation(frames) for number in range(first, last + 1)]
    start = epoch * count - first * frames
    return np.concatenate(cycles)[start : start + count]
