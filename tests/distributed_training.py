"""Train fifty steps, alone or under torchrun, and write the loss of each step.

    python distributed_training.py MANIFEST LOG_DIR ACCUMULATION_STEPS [DEVICE]

Batch norm is frozen, because its statistics are the only thing that depends on how a batch is split. The second half of
each batch has a tenth of the targets. The learning rate is small: at the default rate, without those statistics, AdamW
amplifies rounding differences to per cents of the loss within fifty steps.
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
from trainer.distributed import process_group
from trainer.feed import Batch, PackedFrames

BATCH, STEPS = 8, 50


class UnevenTrainer(train.Trainer):
    def augment_batch(self, batch: Batch, step: int) -> Batch:
        batch = super().augment_batch(batch, step)
        height = batch.rgb.shape[2]
        later_half = self.processes.rank * len(batch) + torch.arange(len(batch)) >= BATCH // 2
        masked = later_half.view(-1, 1, 1, 1) & (torch.arange(height) >= height // 10).view(1, 1, -1, 1)
        masked = masked.to(self.device)
        for name in ("depth", "da3_depth", "seg_confidence"):
            setattr(batch, name, torch.where(masked, 0, getattr(batch, name)))
        return batch


def main() -> None:
    manifest, log_dir, accumulation, *devices = sys.argv[1:]
    recipe = Recipe(width=96, height=64, batch_size=BATCH, epochs=STEPS, accumulation_steps=int(accumulation), lr=5e-5)
    rows = (read_manifest(manifest) * 2)[:BATCH]
    with process_group(*devices or ["cpu"]) as (group, device):
        with group.main_process_first():
            frames = PackedFrames(
                PackedCache(rows, Path(log_dir) / ".cache", (192, 128), recipe.reference_focal), workers=1
            )
        trainer = UnevenTrainer(recipe, Runtime(), device, frames, frames, "data", group)
        trainer.model.train()
        freeze_batch_norm(trainer.model)
        batches = (batch for epoch in range(STEPS) for batch in trainer.batches(epoch, 0, device))
        losses = [trainer.train_step(batch).item() for batch in batches]
        trainer.model.train()  # one step that updates the running statistics
        trainer.train_step(next(trainer.batches(STEPS, 0, device)))
        averages = group.all_gather([tensor.double().sum().item() for tensor in trainer.ema.model.buffers()])
        assert all(average == averages[0] for average in averages), "the moving averages of the ranks differ"
        if group.is_main:
            (Path(log_dir) / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
