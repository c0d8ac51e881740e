"""Training throughput in images per second: our loop, its compute alone, and a published student's loop.

Reads   nothing, or a manifest (--manifest).
Writes  a temporary folder of rendered rooms, removed at the end; prints a table.

Interleaved rounds time, for ours:
- training: the loop of train.py with data loading and augmentation, at the recipe's image sizes;
- compute: forward, backward and optimizer on the same batches, already in memory;
- full size: training with images of the network's input size only;
- host feed: batches from the packed cache to host memory;
- feed: batches from the packed cache to the device, with augmentation there;

and for the published student:
- training: its loop, with two decoding processes;
- host feed: batches that these processes decode and augment frame by frame.

Each student runs in its own process, since train.py changes how its process allocates memory. On a GPU, the fraction of
the training time in which the GPU is busy is printed as well. Several batch sizes are summarised in a last table.
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
from benchmarks.published_student import PublishedTrainer, published_loader
from benchmarks.rendered import rendered_manifest
from config import Recipe, Runtime
from dataset.manifest import Row, read_manifest
from models.losses import distillation_loss
from train import Trainer
from trainer.feed import Batch, host_batches
from trainer.memory import keep_freed_memory
from trainer.start import open_cache

SEED = 0


class TimedMethods:
    """Base class of what is timed; each of METHODS runs once over the frames."""

    METHODS: tuple[str, ...]
    device: torch.device

    def seconds(self, method: str) -> float:
        """Wall-clock time of a method in seconds."""
        start = time.perf_counter()
        getattr(self, method)()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def memory(self) -> float:
        """Peak memory of this process, MB."""
        return peak_memory()


class Ours(TimedMethods):
    """Our training; every round runs the same steps with the same image sizes."""

    METHODS = ("training", "compute", "full_size", "host_feed", "feed")

    def __init__(self, rows: list[Row], manifest: Path, recipe: Recipe, device: torch.device):
        if device.type == "cpu":
            keep_freed_memory()
        runtime = Runtime()
        frames = open_cache(rows, manifest, recipe, recipe.cache_scale, runtime.num_workers)
        self.trainer, self.device = Trainer(recipe, runtime, device, frames, {"set": frames}, "benchmark"), device
        self.trainer.model.train()
        self.in_memory = [self.trainer.augment_batch(batch, step) for step, batch in self.batches()]

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) of the first epoch."""
        return enumerate(self.trainer.batches(0, 0, self.device))

    def training(self) -> None:
        """Run the steps of train.py, including data loading and augmentation."""
        self.trainer.step = 0
        for _, batch in self.batches():
            self.trainer.train_step(batch)

    def compute(self) -> None:
        """Run the same steps on batches in memory."""
        for batch in self.in_memory:
            self.compute_step(batch)

    def compute_step(self, batch: Batch) -> None:
        """Forward, backward and optimizer step with the loss and dtypes of Trainer.train_step()."""
        trainer = self.trainer
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            depth, seg = trainer.model(batch.rgb.contiguous(memory_format=torch.channels_last))
        classes = (batch.sam2_seg, batch.seg_confidence)
        loss = distillation_loss(depth, seg, batch.rgb, batch.depth, *classes, trainer.loss_weights)["total"]
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.recipe.gradient_clip)
        trainer.optimizer.step()

    def full_size(self) -> None:
        """Run training() with images of the network's input size only."""
        recipe = self.trainer.recipe
        self.trainer.recipe = replace(recipe, zoom=(1.0, recipe.zoom[1]))
        self.training()
        self.trainer.recipe = recipe

    def host_feed(self) -> None:
        """Load batches from the packed cache to host memory."""
        recipe = self.trainer.recipe
        pinned = self.device.type == "cuda"
        for _ in host_batches(self.trainer.frames, recipe.batch_size, recipe.seed, 0, 0, pinned):
            pass

    def feed(self) -> None:
        """Load batches to the device and augment them there."""
        for step, batch in self.batches():
            self.trainer.augment_batch(batch, step)

    def gpu_busy_fraction(self) -> float:
        """Fraction of a training round in which the GPU computes or copies."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            seconds = self.seconds("training")
        entries = [entry for entry in profiler.key_averages() if entry.device_type != torch.autograd.DeviceType.CPU]
        return sum(entry.self_device_time_total for entry in entries if not entry.is_user_annotation) / 1e6 / seconds

    def mean_area(self) -> float:
        """Mean image area in a round, as a fraction of the network's input area."""
        recipe = self.trainer.recipe
        areas = [batch.rgb.shape[-2] * batch.rgb.shape[-1] for batch in self.in_memory]
        return statistics.mean(areas) / (recipe.height * recipe.width)


class Published(TimedMethods):
    """The published student and its loop."""

    METHODS = ("training", "host_feed")

    def __init__(self, rows: list[Row], manifest: Path, recipe: Recipe, device: torch.device):
        self.trainer, self.device = PublishedTrainer(recipe, device, recipe.epochs, SEED), device
        self.trainer.model.train()
        self.decoded = published_loader(rows, recipe.batch_size, SEED)

    def training(self) -> None:
        """Run its steps, including decoding."""
        for batch in self.decoded:
            self.trainer.train_step(*batch)

    def host_feed(self) -> None:
        """Decode and augment batches in the loader's processes."""
        for _ in self.decoded:
            pass


class Worker:
    """Runs a TimedMethods object in a separate process."""

    def __init__(self, kind: Callable[..., TimedMethods], *arguments: object):
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (kind, arguments))

    def call(self, method: str, *arguments: object) -> float:
        """Call a method there and return its result."""
        return self.pool.submit(_call, method, *arguments).result()


_target: TimedMethods  # of a worker process


def _start(kind: Callable[..., TimedMethods], arguments: tuple[object, ...]) -> None:
    global _target
    _target = kind(*arguments)


def _call(method: str, *arguments: object) -> float:
    return getattr(_target, method)(*arguments)


Rates = dict[tuple[type[TimedMethods], str], list[float]]  # images per second of each round


def measure(rows: list[Row], manifest: Path, recipe: Recipe, device: torch.device, rounds: int) -> list[object]:
    """Time both students at one batch size and print their table; returns their row of the table of batch sizes."""
    images = len(rows) // recipe.batch_size * recipe.batch_size
    kinds: tuple[type[TimedMethods], ...] = (Ours, Published)
    with ExitStack() as stack:
        workers = {kind: Worker(kind, rows, manifest, recipe, device) for kind in kinds}
        for worker in workers.values():
            stack.enter_context(worker.pool)
        rates: Rates = {(kind, method): [] for kind in workers for method in kind.METHODS}
        for round_number in range(rounds + 1):
            for (kind, method), values in rates.items():
                seconds = workers[kind].call("seconds", method)
                if round_number:  # the first round is the warm-up
                    values.append(images / seconds)
        area = workers[Ours].call("mean_area")
        busy = workers[Ours].call("gpu_busy_fraction") if device.type == "cuda" else None
        memory = {kind.__name__: worker.call("memory") for kind, worker in workers.items()}
    table = [
        [kind.__name__, method.replace("_", " "), statistics.median(values), min(values), max(values)]
        for (kind, method), values in rates.items()
    ]
    print(tabulate(table, ["", "images per second", "median", "min", "max"], floatfmt=".1f"))
    median = {key: statistics.median(values) for key, values in rates.items()}
    ours, published = median[Ours, "training"], median[Published, "training"]
    print(
        f"training / compute, ours {ours / median[Ours, 'compute']:.2f}; ours / published: training "
        f"{ours / published:.2f}, at full size {median[Ours, 'full_size'] / published:.2f}, "
        f"host feed {median[Ours, 'host_feed'] / median[Published, 'host_feed']:.1f}"
    )
    hardware = processor()
    if busy is not None:
        hardware = f"{torch.cuda.get_device_name(device)}, busy for {busy:.2f} of the training time"
    print(
        f"batch {recipe.batch_size}, {rounds} rounds of {images // recipe.batch_size} steps on {hardware}; "
        f"mean image area {area:.2f} of the network's input; "
        f"peak memory {memory['Ours']:.0f} MB, published {memory['Published']:.0f} MB"
    )
    return [recipe.batch_size, ours, median[Ours, "compute"], ours / median[Ours, "compute"], busy]


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--manifest", type=Path, help="manifest to train on (default: rendered rooms, depth only)")
    parser.add_argument("--frames", type=positive_int, default=96, help="number of frames (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, nargs="+", default=[8], help="one or more (default: 8)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timed runs of each (default: %(default)s)")
    add_flags(parser, Runtime(), "device")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device or Runtime().device)
    with ExitStack() as stack:
        manifest = arguments.manifest
        if manifest is None:
            manifest = rendered_manifest(
                Path(stack.enter_context(tempfile.TemporaryDirectory())), arguments.frames, SEED
            )
        rows = read_manifest(manifest)[: arguments.frames]
        if (largest := max(arguments.batch_size)) > len(rows):
            raise UserError(f"--batch-size {largest} is larger than the number of frames in {manifest}")
        summary = [
            measure(rows, manifest, Recipe(batch_size=size, epochs=10_000, seed=SEED), device, arguments.rounds)
            for size in arguments.batch_size
        ]
    if len(summary) > 1:
        headings = ["batch size", "training, images/s", "compute, images/s", "training / compute", "GPU busy"]
        print(tabulate(summary, headings, floatfmt=("", ".1f", ".1f", ".2f", ".2f"), missingval="-"))


if __name__ == "__main__":
    run(main)
