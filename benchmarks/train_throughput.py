"""Images a second of training: our whole step, its arithmetic alone, and a published student's own loop.

Reads   nothing, or a manifest (--manifest).
Writes  a temporary folder of rendered rooms, removed at the end; prints a table.

In turns, round after round: (ours) train.py's loop with feed and augmentation, at the sizes of image that the recipe
takes; (arithmetic) forward, backward and optimizer on the same batches, in memory already; (full size) ours with images
of the network's size alone; (published) its loop with two decoding processes; and of both feeds what the host gives
alone: ours reads batches from the packed cache, augmentation being work of the device, with which it is timed too; the
published one decodes and augments frame by frame. Ours and the published one run in a process each, since train.py
tells its process how to keep memory. On a GPU the share of the time in which it computes is told, too.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

try:
    from cli import ArgumentParser, UserError, add_flags, positive_int, resolve_device, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import torch
from tabulate import tabulate

from benchmarks.machine import peak_memory, processor
from benchmarks.published_student import PublishedTrainer, loader
from benchmarks.rendered import rendered_manifest
from config import Recipe, Runtime
from dataset.manifest import Row, read_manifest
from models.losses import distillation_loss
from train import Trainer
from trainer.feed import Batch, gathered_batches
from trainer.memory import keep_freed_memory
from trainer.start import pack

SEED = 0


class Ways:
    """What is timed; each way is a method that goes once through the frames."""

    WAYS: tuple[str, ...]  # names of these methods
    device: torch.device

    def seconds(self, way: str) -> float:
        """How long a way takes for the frames once."""
        start = time.perf_counter()
        getattr(self, way)()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def memory(self) -> float:
        """Peak of this process, MB."""
        return peak_memory()


class Ours(Ways):
    """Our training. The steps are the same each time, and so are the sizes of their images."""

    WAYS = ("training", "arithmetic", "full_size", "host_feed", "feed")

    def __init__(self, rows: list[Row], manifest: Path, recipe: Recipe, device: torch.device):
        if device.type == "cpu":
            keep_freed_memory()
        runtime = Runtime()
        frames = pack(rows, manifest, recipe, recipe.cache_scale, runtime.num_workers)
        self.trainer, self.device = Trainer(recipe, runtime, device, frames, frames, "benchmark"), device
        self.trainer.model.train()
        self.in_memory = [self.trainer.augmented(batch, step) for step, batch in self.batches()]

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """The first epoch's batches, numbered."""
        return enumerate(self.trainer.batches(0, 0, self.device))

    def training(self) -> None:
        """train.py's steps, feed and augmentation included."""
        self.trainer.step = 0
        for _, batch in self.batches():
            self.trainer.train_step(batch)

    def arithmetic(self) -> None:
        """The same steps on batches that are in memory."""
        for batch in self.in_memory:
            self.arithmetic_step(batch)

    def arithmetic_step(self, batch: Batch) -> None:
        """Forward, backward and optimizer with the same loss and number formats as Trainer.train_step()."""
        trainer = self.trainer
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            depth, seg = trainer.model(batch.rgb.contiguous(memory_format=torch.channels_last))
        classes = (batch.sam2_seg, batch.seg_confidence)
        loss = distillation_loss(depth, seg, batch.rgb, batch.depth, *classes, trainer.weights)["total"]
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.recipe.gradient_clip)
        trainer.optimizer.step()

    def full_size(self) -> None:
        """training() with images of the network's size alone."""
        recipe = self.trainer.recipe
        self.trainer.recipe = replace(recipe, zoom=(1.0, recipe.zoom[1]))
        self.training()
        self.trainer.recipe = recipe

    def host_feed(self) -> None:
        """Batches from the packed cache to host memory."""
        recipe = self.trainer.recipe
        pinned = self.device.type == "cuda"
        for _ in gathered_batches(self.trainer.frames, recipe.batch_size, recipe.seed, 0, 0, pinned):
            pass

    def feed(self) -> None:
        """Batches to the device, augmented there."""
        for step, batch in self.batches():
            self.trainer.augmented(batch, step)

    def gpu_share(self) -> float:
        """Share of a round of training in which the GPU computes or copies."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            seconds = self.seconds("training")
        entries = [entry for entry in profiler.key_averages() if entry.device_type != torch.autograd.DeviceType.CPU]
        return sum(entry.self_device_time_total for entry in entries if not entry.is_user_annotation) / 1e6 / seconds

    def mean_area(self) -> float:
        """Of the images in a round, as a share of the network's size."""
        recipe = self.trainer.recipe
        areas = [batch.rgb.shape[-2] * batch.rgb.shape[-1] for batch in self.in_memory]
        return statistics.mean(areas) / (recipe.height * recipe.width)


class Published(Ways):
    """The published student's own loop."""

    WAYS = ("training", "host_feed")

    def __init__(self, rows: list[Row], manifest: Path, recipe: Recipe, device: torch.device):
        self.trainer, self.device = PublishedTrainer(recipe, device, recipe.epochs, SEED), device
        self.trainer.model.train()
        self.decoded = loader(rows, recipe.batch_size, SEED)

    def training(self) -> None:
        """Its steps, decoding included."""
        for batch in self.decoded:
            self.trainer.train_step(*batch)

    def host_feed(self) -> None:
        """Batches decoded and augmented in its processes."""
        for _ in self.decoded:
            pass


class Worker:
    """One of the two in a process of its own."""

    def __init__(self, kind: Callable[..., Ways], *arguments: object):
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (kind, arguments))

    def call(self, method: str, *arguments: object) -> float:
        """What a method of Ways returns there."""
        return self.pool.submit(_call, method, *arguments).result()


_ways: Ways  # in a worker's process


def _start(kind: Callable[..., Ways], arguments: tuple[object, ...]) -> None:
    global _ways
    _ways = kind(*arguments)


def _call(method: str, *arguments: object) -> float:
    return getattr(_ways, method)(*arguments)


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--manifest", type=Path, help="train on its frames (default: rendered rooms, depth alone)")
    parser.add_argument("--frames", type=positive_int, default=96, help="how many (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive_int, default=5, help="default: %(default)s")
    add_flags(parser, Runtime(), "device")
    arguments = parser.parse_args()
    device, size = resolve_device(arguments.device or Runtime().device), arguments.batch_size
    recipe = Recipe(batch_size=size, epochs=10_000, seed=SEED)
    with ExitStack() as stack:
        manifest = arguments.manifest
        if manifest is None:
            manifest = rendered_manifest(
                Path(stack.enter_context(tempfile.TemporaryDirectory())), arguments.frames, SEED
            )
        rows = read_manifest(manifest)[: arguments.frames]
        images = len(rows) // size * size
        if not images:
            raise UserError(f"--batch-size {size} is more than the frames of {manifest}")
        kinds: tuple[type[Ways], ...] = (Ours, Published)
        workers = {kind: Worker(kind, rows, manifest, recipe, device) for kind in kinds}
        for worker in workers.values():
            stack.enter_context(worker.pool)
        rates: dict[tuple[type[Ways], str], list[float]] = {(kind, way): [] for kind in workers for way in kind.WAYS}
        for round_number in range(arguments.rounds + 1):
            for (kind, way), found in rates.items():
                seconds = workers[kind].call("seconds", way)
                if round_number:  # the first one warms up
                    found.append(images / seconds)
        area = workers[Ours].call("mean_area")
        where = processor()
        if device.type == "cuda":
            share = workers[Ours].call("gpu_share")
            where = f"{torch.cuda.get_device_name(device)}, which computes for {share:.2f} of the training's time"
        memory = {kind.__name__: worker.call("memory") for kind, worker in workers.items()}
    table = [
        [kind.__name__, way.replace("_", " "), statistics.median(found), min(found), max(found)]
        for (kind, way), found in rates.items()
    ]
    print(tabulate(table, ["", "images a second", "median", "least", "most"], floatfmt=".1f"))
    median = {key: statistics.median(found) for key, found in rates.items()}
    ours, other = median[Ours, "training"], median[Published, "training"]
    print(
        f"ours / its arithmetic {ours / median[Ours, 'arithmetic']:.2f}; ours / published {ours / other:.2f}, "
        f"at full size {median[Ours, 'full_size'] / other:.2f}; "
        f"feeds {median[Ours, 'host_feed'] / median[Published, 'host_feed']:.1f}"
    )
    print(
        f"batch {size}, {arguments.rounds} rounds of {images // size} steps on {where}; images of {area:.2f} of the "
        f"network's size in the mean; peak memory {memory['Ours']:.0f} MB, published {memory['Published']:.0f} MB"
    )


if __name__ == "__main__":
    run(main)
