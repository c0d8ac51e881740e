"""Split the frames of recordings into train, val and test."""

from collections import Counter
from collections.abc import Mapping, Sequence

from cli import UserError

from dataset.manifest import split_recordings

MIN_VAL_SHARE = 0.1  # of the training frames, for data sets that have no val


def split_by_time(stems: Sequence[str], test: int, val: int, gap: int) -> dict[str, list[str]]:
    """Split in temporal order: train, gap, val, gap, test.

    Neighbouring frames are near-duplicates, so `gap` frames between two splits are excluded. There is no gap before an
    empty split.

    Returns {"train": stems, "val": stems, "test": stems}. Raises UserError if no frames are left for training.
    """
    split: dict[str, list[str]] = {}
    end = len(stems)
    for name, count in (("test", test), ("val", val)):
        split[name] = list(stems[end - count : end]) if count <= end else []
        end -= count + gap if count else 0
    if end < 1:
        raise UserError(
            f"too few frames: of {len(stems)}, {test} for test, {val} for val and gaps of {gap} leave none for "
            "training; reduce --test-frames, --val-frames or --gap-frames"
        )
    return {"train": list(stems[:end]), "val": split["val"], "test": split["test"]}


def split_by_recording(recording_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Split by whole recordings: the last ones for test, then val, at least a tenth of the frames each.

    recording_of: {stem: recording} in the order of time. Raises UserError if there are fewer than three recordings.
    """
    counts = Counter(recording_of.values())
    if len(counts) < 3:
        raise UserError(f"--split recording needs three recordings or more, not {len(counts)}: use --split time")
    split_of = split_recordings(counts)
    return _group({stem: split_of[recording] for stem, recording in recording_of.items()})


def split_as_published(split_of: Mapping[str, str], recording_of: Mapping[str, str]) -> dict[str, list[str]]:
    """The split of a data set; if it has no val, the last recordings of train, at least a tenth of its frames.

    Args:
        split_of: {stem: split}.
        recording_of: {stem: recording}.
    """
    splits = dict(split_of)
    if "val" not in splits.values():
        counts = Counter(recording_of[stem] for stem, split in splits.items() if split == "train")
        names, held_out = list(counts), set[str]()
        while len(names) > 1 and sum(counts[name] for name in held_out) < MIN_VAL_SHARE * counts.total():
            held_out.add(names.pop())
        splits |= {stem: "val" for stem, split in splits.items() if split == "train" and recording_of[stem] in held_out}
    return _group(splits)


def _group(split_of: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: [stem for stem, split in split_of.items() if split == name] for name in ("train", "val", "test")}
