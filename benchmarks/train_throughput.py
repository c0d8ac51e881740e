"""Images a second of training: our whole step, its arithmetic alone, and a published student's own loop.

Reads   nothing, or a manifest (--manifest).
Writes  a temporary folder of rendered rooms, removed at the end; prints a table.

In turns, round after round: (ours) train.py's loop with feed and augmentation; (arithmetic) forward, backward and
optimizer on one batch that is in memory already; (published) its loop with two decoding processes; (encoder) forward
and backward of the encoder alone, as ours has it: what no lighter decoder gets below; and of both feeds
what the host gives alone: ours reads batches from the packed cache, augmentation being work of the device, with which
it is timed too; the published one decodes and augments frame by frame.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/x.py` puts only benchmarks/ there
from benchmarks.machine import peak_memory, processor
from benchmarks.published_student import PublishedTrainer, loader
from benchmarks.rendered import render
from cli import ArgumentParser, positive_int, resolve_device, run
from config import Config
from dataset.manifest import read_manifest
from models.losses import distillation_loss
from train import Trainer
from training.augment import augment
from training.feed import Batch, gathered_batches, training_batches
from training.start import pack

ROOT = Path(__file__).resolve().parents[1]
SEED = 0


def rooms(folder: Path, frames: int) -> Path:
    """The manifest of rendered rooms without teachers."""
    render(folder, -(-frames // 2), SEED)
    flags = ["--rgb-dir", folder / "rgb", "--depth-dir", folder / "depth", "--allow-missing-teachers"]
    flags += ["--output", folder / "manifest.jsonl"]
    subprocess.run([sys.executable, ROOT / "teacher_infer" / "build_manifest.py", *map(str, flags)], check=True)
    return folder / "manifest.jsonl"


def arithmetic_step(trainer: Trainer, batch: Batch) -> None:
    """Forward, backward and optimizer with the same loss, batch and number formats as Trainer.train_step()."""
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.device.type == "cuda"):
        depth, seg = trainer.model(batch.rgb)
    classes = (batch.sam2_seg, batch.seg_confidence)
    loss = distillation_loss(depth, seg, batch.rgb, batch.depth, *classes, trainer.weights)["total"]
    trainer.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.gradient_clip)
    trainer.optimizer.step()


def encoder_step(trainer: Trainer, batch: Batch) -> None:
    """Forward and backward of the encoder alone."""
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.device.type == "cuda"):
        features = trainer.model.encoder(batch.rgb)
    sum(feature.float().mean() for feature in features).backward()


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--manifest", type=Path, help="train on its frames (default: rendered rooms)")
    parser.add_argument("--frames", type=positive_int, default=48, help="rendered (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive_int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    arguments = parser.parse_args()
    device, size = resolve_device(arguments.device), arguments.batch_size
    config = Config(batch_size=size, epochs=10_000, seed=SEED, zoom_min=1.0)  # all images of one size
    with ExitStack() as stack:
        manifest = arguments.manifest
        if manifest is None:
            manifest = rooms(Path(stack.enter_context(tempfile.TemporaryDirectory())), arguments.frames)
        rows = read_manifest(manifest)
        frames = pack(rows, manifest, config, config.cache_scale)
        trainer = Trainer(config, device, frames, frames, "benchmark")
        trainer.model.train()
        published = PublishedTrainer(config, device, config.epochs, SEED)
        published.model.train()
        decoded = loader(rows, size, SEED)
        zoom, shape = (config.zoom_min, config.zoom_max), (config.height, config.width)
        in_memory = augment(frames.batch(range(size), device), zoom, shape, SEED, 0)
        in_memory.rgb = in_memory.rgb.contiguous(memory_format=torch.channels_last)
        steps = trainer.steps_per_epoch
        ways: dict[str, Callable[[int], object]] = {
            "ours": lambda epoch: [
                trainer.train_step(batch) for batch in training_batches(frames, size, SEED, epoch, 0, device)
            ],
            "arithmetic of ours alone": lambda epoch: [arithmetic_step(trainer, in_memory) for _ in range(steps)],
            "encoder alone": lambda epoch: [encoder_step(trainer, in_memory) for _ in range(steps)],
            "published": lambda epoch: [published.train_step(*batch) for batch in decoded],
            "feed of ours, host": lambda epoch: [
                None for _ in gathered_batches(frames, size, SEED, epoch, 0, device.type == "cuda")
            ],
            "feed of ours, host and device": lambda epoch: [
                augment(batch, zoom, shape, SEED, step)
                for step, batch in enumerate(training_batches(frames, size, SEED, epoch, 0, device))
            ],
            "feed of the published one, host": lambda epoch: [None for _ in decoded],
        }
        rates = {name: [] for name in ways}
        for epoch in range(arguments.rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way(epoch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if epoch:  # the first round warms up
                    rates[name].append(steps * size / (time.perf_counter() - start))
    table = [[name, statistics.median(values), min(values), max(values)] for name, values in rates.items()]
    print(tabulate(table, ["images a second", "median", "least", "most"], floatfmt=".1f"))
    ours, alone, encoder, other, feed, _, decoding = (row[1] for row in table)
    print(
        f"ours / arithmetic {ours / alone:.2f}; ours / published {ours / other:.2f} (encoder / published "
        f"{encoder / other:.2f}); feeds {feed / decoding:.1f}"
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"batch {size}, {arguments.rounds} rounds of {steps} steps on {where}; peak memory {peak_memory():.0f} MB")


if __name__ == "__main__":
    run(main)
