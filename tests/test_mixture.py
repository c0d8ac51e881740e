"""Training on several data sets: proportions, missing maps, resume, validation by set."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cli import EXIT_USAGE, UserError

import numpy as np
import pytest
import torch
from small_run import call, copy_data, exit_code, train_flags

import pack
import train
from config import IGNORE, Recipe, Runtime
from dataset.cache import PackedCache
from dataset.manifest import Row, read_manifest
from models.losses import loss_denominators
from trainer import start
from trainer.feed import PackedFrames, target_statistics, training_batches
from trainer.mixture import MixedFrames, WeightedManifest, weighted_manifest

SIZE, FOCAL = (64, 48), 50.0
CPU = torch.device("cpu")


def packed(rows: list[Row], folder: Path) -> PackedFrames:
    return PackedFrames(PackedCache(rows, folder, SIZE, FOCAL), workers=1)


@pytest.fixture(scope="module")
def sets(manifest, tmp_path_factory) -> tuple[PackedFrames, PackedFrames]:
    """Six frames with classes, and five others without."""
    folder = tmp_path_factory.mktemp("cache")
    rows = read_manifest(manifest)
    bare = [replace(row, sam2_seg=None, labels=None, seg_confidence=None) for row in rows[:5]]
    return packed(rows[:6], folder), packed(bare, folder)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a/manifest.jsonl", "a/manifest.jsonl", 1),
        ("a/manifest.jsonl:0.7", "a/manifest.jsonl", 0.7),
        ("a:b/manifest.jsonl:3", "a:b/manifest.jsonl", 3),
        ("a:1/manifest.jsonl", "a:1/manifest.jsonl", 1),
        ("a/manifest.jsonl:.5", "a/manifest.jsonl", 0.5),
    ],
)
def test_a_colon_counts_only_before_a_number_at_the_end(text, path, weight):
    assert weighted_manifest(text) == WeightedManifest(Path(path), weight)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (7, 3), (1, 1), (1, 4)])
def test_an_epoch_takes_each_set_by_its_weight(sets, weights):
    mixed = MixedFrames(sets, weights)
    first, second = weights
    assert mixed.epoch_length == pytest.approx(6 / (first / (first + second)), abs=0.5)
    total = Counter()
    epochs = 25
    for epoch in range(epochs):
        order = mixed.epoch_order(3, epoch)
        assert len(order) == mixed.epoch_length
        assert sorted(order[order < 6]) == list(range(6)), "each frame of the first set once"
        total.update(order.tolist())
    others = [total[index] for index in range(6, 11)]
    assert max(others) - min(others) <= 1, "the other set's frames come in turn"
    assert sum(others) == epochs * round(6 * second / first)
    assert not np.array_equal(mixed.epoch_order(3, 0), mixed.epoch_order(3, 1))
    assert not np.array_equal(mixed.epoch_order(3, 0), mixed.epoch_order(4, 0))
    assert np.array_equal(mixed.epoch_order(3, 7), MixedFrames(sets, weights).epoch_order(3, 7))


def test_frames_keep_their_maps_and_missing_ones_are_ignored(sets):
    mixed = MixedFrames(sets, (1, 1))
    indices = [7, 2, 10, 0]
    batch = mixed.batch(indices, CPU)
    for place, (frames, index) in enumerate(((sets[1], 1), (sets[0], 2), (sets[1], 4), (sets[0], 0))):
        alone = frames.batch([index], CPU)
        for name in ("rgb", "depth", "confidence", "da3_depth", "focal_factor"):
            assert torch.equal(getattr(batch, name)[place], getattr(alone, name)[0]), name
    assert (batch.sam2_seg[[0, 2]] == IGNORE).all() and (batch.sam2_seg[[1, 3]] != IGNORE).any()
    assert np.array_equal(mixed.array("rgb", 9), sets[1].array("rgb", 3))
    assert (mixed.array("sam2_seg", 8) == IGNORE).all()


def test_a_set_without_classes_does_not_weaken_the_class_loss(sets):
    """The denominators count the labelled pixels, not the frames: beside bare frames they stay the same."""
    mixed = MixedFrames(sets, (1, 1))
    labelled, both = sets[0].batch([0, 1], CPU), mixed.batch([0, 1, 7, 8], CPU)

    def denominators(batch):
        return loss_denominators(batch.depth, batch.sam2_seg, batch.seg_confidence)

    assert torch.equal(denominators(labelled)[1:3], denominators(both)[1:3])
    assert denominators(both)[0] > denominators(labelled)[0]


def test_statistics_are_those_of_the_mixture(sets):
    recipe = Recipe()
    alone = [target_statistics(frames, recipe)["mean_depth"] for frames in sets]
    mean = target_statistics(MixedFrames(sets, (1, 1)), recipe)["mean_depth"]
    assert min(alone) - 1e-6 <= mean <= max(alone) + 1e-6
    assert target_statistics(MixedFrames(sets, (1, 1)), recipe)["majority_class"] is not None


def test_a_single_set_keeps_its_order(sets):
    order = np.random.default_rng((5, 2)).permutation(6)
    assert np.array_equal(sets[0].epoch_order(5, 2), order)
    (batch,) = training_batches(sets[0], 6, 5, 2, 0, CPU)
    assert torch.equal(batch.rgb, sets[0].batch(order, CPU).rgb)


@pytest.fixture(scope="module")
def two(manifest, tmp_path_factory) -> tuple[Path, Path]:
    """Manifests of two folders; the second one has no classes."""
    folder = tmp_path_factory.mktemp("two")
    first, second = copy_data(manifest, folder / "rooms"), copy_data(manifest, folder / "corridor")
    lines = [json.loads(line) for line in second.read_text().splitlines()]
    for line in lines:
        del line["sam2_seg"], line["labels"]
    second.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return first, second


def flags(two, out: Path, *weights: float) -> list[object]:
    chosen = [f"{manifest}:{weight}" for manifest, weight in zip(two, weights, strict=True)]
    return ["--manifest", *chosen, *train_flags(two[0], out)[2:]]


def stop_after_an_epoch(finish_epoch):
    def finish(trainer, epoch):
        finish_epoch(trainer, epoch)
        raise KeyboardInterrupt

    return finish


def test_training_resumes_and_reports_each_set(two, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call(train.main, *flags(two, whole, 0.5, 0.5)) == 0
    (history,) = (whole / "runs").glob("*/history.csv")
    (row, last) = csv.DictReader(history.open())
    assert float(last["rmse"]) == pytest.approx((float(last["rmse rooms"]) + float(last["rmse corridor"])) / 2)
    assert float(row["score"]) == pytest.approx((float(row["score rooms"]) + float(row["score corridor"])) / 2)
    assert row["miou corridor"] in ("nan", "") and float(row["miou"]) == float(row["miou rooms"])
    monkeypatch.setattr(train.Trainer, "finish_epoch", stop_after_an_epoch(train.Trainer.finish_epoch))
    with pytest.raises(KeyboardInterrupt):
        call(train.main, *flags(two, parts, 0.5, 0.5))
    monkeypatch.undo()
    assert call(train.main, *flags(two, parts, 0.5, 0.5), "--resume", "auto") == 0
    checkpoints = [torch.load(out / "checkpoints/last.pt", weights_only=True) for out in (whole, parts)]
    assert all(torch.equal(a, b) for a, b in zip(*(c["model"].values() for c in checkpoints), strict=True))
    with pytest.raises(UserError, match="trained on"):
        call(train.main, *flags(two, whole, 0.9, 0.1), "--resume", "auto")
    assert call(train.main, *flags(two, whole, 0.5, 0.5), "--resume", "auto") == 0


def test_pack_packs_all_sets(two, capsys):
    assert call(pack.main, "--manifest", *two) == 0
    out = capsys.readouterr().out
    assert out.count("4 train frames") == 2 and out.count("1 val frames") == 2


@pytest.mark.parametrize("weight", ["0", "0.0"])
def test_a_weight_of_zero_is_a_one_line_error(two, tmp_path, weight, capsys):
    with pytest.raises(SystemExit) as end:
        call(train.main, "--manifest", f"{two[0]}:{weight}", *train_flags(two[0], tmp_path)[2:])
    assert end.value.code == EXIT_USAGE and "above 0" in capsys.readouterr().err


def test_a_set_given_twice_and_leaked_images_are_refused(two, manifest, tmp_path):
    assert exit_code(train.main, *flags((two[0], two[0]), tmp_path, 1, 2)) == EXIT_USAGE
    other = two[0].with_name("other.jsonl")
    lines = [json.loads(line) for line in two[0].read_text().splitlines()]
    for line in lines:
        line["split"] = {"train": "val", "val": "train"}.get(line["split"], line["split"])
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifests = [WeightedManifest(path) for path in (two[0], other)]
    with pytest.raises(UserError, match="for validation in another"):
        start.open_data(manifests, Recipe(), Runtime(cache_dir=tmp_path), None)
