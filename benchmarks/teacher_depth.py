"""Overhead of the depth teacher's loop over its model, and the gain from batches, threads and half precision.

Reads   nothing; frames and weights are random, which does not affect speed.
Writes  a temporary folder, removed at the end; prints a table.

Interleaved rounds time the model alone on prepared frames, and the loop of run_da3.py, which reads, resizes, infers,
resizes back and writes. On a GPU they also time the package's own inference() on one image at a time, with reading and
writing in between.
"""

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

try:
    from cli import ArgumentParser, positive_int, resolve_device, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import cv2
import numpy as np
import torch
from tabulate import tabulate

from benchmarks.machine import peak_memory, processor
from config import NYU_INTRINSICS
from dataset.files import read_image, write_json, write_npy, write_png
from dataset.frames import find_frames
from teacher_infer.depth_backends import CANONICAL_FOCAL, DA3, PROCESS_RESOLUTION, processed_focal
from teacher_infer.run_da3 import DepthTeacher
from teacher_infer.stage import FrameCameras, default_batch_size, limit_threads, run_stage

NOISE_SIZE = (24, 32)  # upsampled to a frame, such noise compresses about as well as a photograph


def draw_frames(folder: Path, count: int) -> dict[str, Path]:
    """Write `count` 640x480 PNG images with NYU's camera; returns {stem: image file}."""
    random = np.random.default_rng(0)
    for number in range(count):
        picture = cv2.resize(random.integers(0, 255, (*NOISE_SIZE, 3), dtype=np.uint8), (640, 480))
        noise = random.normal(0, 2, picture.shape)
        write_png(folder / "rgb" / f"{number:04d}.png", np.clip(picture + noise, 0, 255).astype(np.uint8))
    write_json(folder / "camera.json", vars(NYU_INTRINSICS))
    return find_frames(folder / "rgb")


def run_one_at_a_time(backend: DA3, frames: dict[str, Path], output_dir: Path) -> None:
    """Run the package's own inference() on each image and write metric depth at the image's size."""
    for stem, path in frames.items():
        raw = backend.network.inference([str(path)]).depth[0]
        focal = processed_focal(NYU_INTRINSICS, raw.shape[1], raw.shape[0])
        write_npy(output_dir / f"{stem}.npy", cv2.resize(raw * (focal / CANONICAL_FOCAL), (640, 480)))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of a function in seconds, including the work it leaves on the device."""
    start = time.perf_counter()
    with redirect_stdout(StringIO()):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", default="da3-small", help="architecture in the package (default: %(default)s)")
    parser.add_argument("--process-res", type=positive_int, default=PROCESS_RESOLUTION, help="default: %(default)s")
    parser.add_argument("--frames", type=positive_int, default=16, help="default: %(default)s")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--batch-size", type=positive_int, help="default: as in run_da3.py")
    parser.add_argument("--num-workers", type=positive_int, default=4, help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    arguments = parser.parse_args()
    limit_threads()
    device = resolve_device(arguments.device)
    batch_size = arguments.batch_size or default_batch_size("da3", arguments.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = draw_frames(folder, arguments.frames)
        backend = make_backend(folder / "weights", arguments, batch_size)
        times = measure(backend, frames, folder, arguments, batch_size, device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(
        f"{arguments.model}, {arguments.process_res} pixels, batches of {batch_size}, torch {torch.__version__}, "
        f"{hardware}, {arguments.frames} frames, {arguments.rounds} rounds"
    )
    print(format_table(times, arguments.frames))
    print(f"peak memory {peak_memory():.0f} MB", end="")
    print(f", of the GPU {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MB" if device.type == "cuda" else "")


def make_backend(weights: Path, arguments: Namespace, batch_size: int) -> DA3:
    """Save the architecture with random weights and load it like trained ones."""
    from depth_anything_3.api import DepthAnything3

    DepthAnything3(model_name=arguments.model).save_pretrained(weights)
    with redirect_stdout(StringIO()):  # hide the warning that the architecture is not metric
        return DA3(str(weights), arguments.device, arguments.process_res, batch_size, arguments.compile)


def measure(
    backend: DA3, frames: dict[str, Path], folder: Path, arguments: Namespace, batch_size: int, device: torch.device
) -> dict[str, list[float]]:
    """Time all methods in interleaved rounds after a warm-up round; returns {method: seconds of each round}."""
    teacher = DepthTeacher(backend, FrameCameras(folder / "rgb", None, None))
    prepared = [backend.prepare(stem, read_image(path), NYU_INTRINSICS) for stem, path in frames.items()]
    batches = [prepared[start : start + batch_size] for start in range(0, len(prepared), batch_size)]

    def loop() -> None:
        run_stage(frames, folder / "out", teacher, overwrite=True, batch_size=batch_size, workers=arguments.num_workers)

    methods: dict[str, Callable[[], object]] = {
        "model alone": lambda: [backend.infer(batch) for batch in batches],
        "loop of run_da3.py": loop,
    }
    if device.type == "cuda":
        methods["one image at a time"] = lambda: run_one_at_a_time(backend, frames, folder / "single")
    rounds = [
        {method: seconds(function, device) for method, function in methods.items()} for _ in range(arguments.rounds + 1)
    ]
    return {method: [entry[method] for entry in rounds[1:]] for method in methods}


def format_table(times: dict[str, list[float]], frames: int) -> str:
    """Format one row per method; the last column is the median over rounds of its time / the model's."""
    rows = []
    for method, column in times.items():
        ratios = [seconds / alone for seconds, alone in zip(column, times["model alone"], strict=True)]
        rates = sorted(frames / seconds for seconds in column)
        rows.append([method, statistics.median(rates), rates[0], rates[-1], statistics.median(ratios)])
    return tabulate(rows, ["", "frames/s", "slowest", "fastest", "time / model's"], floatfmt=".3f")


if __name__ == "__main__":
    run(main)
