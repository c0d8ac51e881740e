"""Fifty steps of training, alone or as one of several processes (under torchrun); writes each step's loss.

    python distributed_training.py MANIFEST LOG_DIR ACCUMULATION_STEPS

Batch norm's statistics are frozen, the only thing in which the halves of a batch differ from the batch. The later half
of each batch has a tenth of the targets. The learning rate is small: without those statistics AdamW's steps at the
default one enlarge what a sum in another order rounds to per cents of the loss within fifty of them.
"""

import json
import sys
from pathlib import Path

import torch

import train
from config import Recipe, Runtime
from dataset.cache import PackedCache
from dataset.manifest import read_manifest
from trainer.checkpoint import freeze_batch_norm
from trainer.distributed import processes
from trainer.feed import Batch, PackedFrames

BATCH, STEPS = 8, 50


class Uneven(train.Trainer):
    def augmented(self, batch: Batch, step: int) -> Batch:
        batch = super().augmented(batch, step)
        height = batch.rgb.shape[2]
        later = self.processes.rank * len(batch) + torch.arange(len(batch)) >= BATCH // 2
        bare = later.view(-1, 1, 1, 1) & (torch.arange(height) >= height // 10).view(1, 1, -1, 1)
        for name in ("depth", "da3_depth", "seg_confidence"):
            setattr(batch, name, torch.where(bare, 0, getattr(batch, name)))
        return batch


def main() -> None:
    manifest, log_dir, accumulation = sys.argv[1:]
    recipe = Recipe(width=96, height=64, batch_size=BATCH, epochs=STEPS, accumulation_steps=int(accumulation), lr=5e-5)
    rows = (read_manifest(manifest) * 2)[:BATCH]
    with processes("cpu") as (group, device):
        with group.main_process_first():
            frames = PackedFrames(
                PackedCache(rows, Path(log_dir) / ".cache", (192, 128), recipe.reference_focal), workers=1
            )
        trainer = Uneven(recipe, Runtime(), device, frames, frames, "data", group)
        trainer.model.train()
        freeze_batch_norm(trainer.model)
        batches = (batch for epoch in range(STEPS) for batch in trainer.batches(epoch, 0, device))
        losses = [trainer.train_step(batch).item() for batch in batches]
        trainer.model.train()  # statistics that move, for one step
        trainer.train_step(next(trainer.batches(STEPS, 0, device)))
        averages = group.all_gather([tensor.double().sum().item() for tensor in trainer.average.model.buffers()])
        assert all(average == averages[0] for average in averages), "the processes keep different averages"
        if group.is_main:
            (Path(log_dir) / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
