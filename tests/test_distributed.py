"""Distributed training reproduces a single process: losses, files, stopping (gloo on the CPU)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli import EXIT_STOPPED, EXIT_USAGE

import numpy as np
import pytest
import torch
from small_run import call, train_flags

import train
from config import Recipe
from dataset.cache import PackedCache
from dataset.locks import wait_for_lock
from dataset.manifest import read_manifest
from trainer.distributed import Processes
from trainer.feed import PackedFrames, training_batches

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 400  # seconds; a busy machine may take five times as long as an idle one
SCRIPT = Path(__file__).with_name("distributed_training.py")


def torchrun(processes: int, *command: object) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return [str(part) for part in (sys.executable, *launcher, *command)]


@contextmanager
def start_torchrun(processes: int, *command: object) -> Iterator[subprocess.Popen]:
    """Start torchrun with its output piped; kills all its processes at the end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(torchrun(processes, *command), start_new_session=True, **streams)
    try:
        yield run
    finally:
        for worker in workers(run):
            os.kill(worker, signal.SIGKILL)
        run.kill()
        run.wait()


def workers(run: subprocess.Popen) -> list[int]:
    """Process ids of the processes that torchrun has started."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if run.poll() is None else []


def run_losses(manifest: Path, out: Path, processes: int, *flags: object) -> np.ndarray:
    out.mkdir()
    with start_torchrun(processes, SCRIPT, manifest, out, *flags) as run:
        output, _ = run.communicate(timeout=TIMEOUT)
    assert run.returncode == 0, output[-3000:]
    return np.array(json.loads((out / "losses.json").read_text()))


def test_two_processes_and_micro_batches_reproduce_the_losses_of_one(manifest, tmp_path):
    """Even if the second half of each batch has a tenth of the targets."""
    alone = run_losses(manifest, tmp_path / "alone", 1, 1)
    assert len(alone) == 50 and len(set(alone)) == 50
    for name, processes, accumulation in (("two", 2, 1), ("two in parts", 2, 2)):
        difference = np.abs(run_losses(manifest, tmp_path / name, processes, accumulation) / alone - 1).max()
        print(f"{name}: largest relative difference of the loss over 50 steps {difference:.1e}")
        assert difference < 1e-4


def test_two_processes_stop_together_and_resume_as_one(manifest, tmp_path):
    """They leave one run folder, one history, and checkpoints that a single process can resume."""
    flags = [*train_flags(manifest, tmp_path), "--epochs", 60, "--resume", "auto"]
    last = tmp_path / "checkpoints/last.pt"
    with start_torchrun(2, ROOT / "train.py", *flags) as run:
        deadline = time.monotonic() + TIMEOUT
        while not last.is_file() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(workers(run)[-1], signal.SIGTERM)  # only one of them
        output, _ = run.communicate(timeout=TIMEOUT)
    assert output.count("stopped by a signal") == 1, output
    assert f"exitcode  : {EXIT_STOPPED}" in output and run.returncode == 1, (
        "torchrun reports the exit code but exits with its own"
    )
    stopped = torch.load(last, weights_only=True)["step"]
    assert 2 <= stopped < 120
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert (run_dir / "validation.png").is_file(), "drawn by rank 0, which has the only frame"
    epochs = stopped // 2 + 1
    content = torch.load(last, weights_only=True)
    content["config"]["epochs"] = epochs  # sixty epochs would take too long
    torch.save(content, last)
    assert call(train.main, *flags[:-4], "--epochs", epochs, "--resume", "auto") == 0
    history = torch.load(last, weights_only=True)["notes"]["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, epochs + 1))


@contextmanager
def pair(*flags: object) -> Iterator[list[subprocess.Popen]]:
    """Two processes of train.py without torchrun, which may kill one before it exits by itself."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        group = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(unused.getsockname()[1]),
        }
    command = [sys.executable, ROOT / "train.py", *map(str, flags), "--device", "cpu"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, env=group | {"RANK": rank, "LOCAL_RANK": rank}, **streams) for rank in "01"]
    try:
        yield runs
    finally:
        for run in runs:
            run.kill()


def test_error_in_the_main_process_ends_all_with_one_line_each(tmp_path):
    with pair("--manifest", tmp_path / "none.jsonl") as runs:
        messages = [run.communicate(timeout=TIMEOUT)[1] for run in runs]
    assert [run.returncode for run in runs] == [EXIT_USAGE, EXIT_USAGE], messages
    for message, words in zip(messages, ("there is no manifest", "the main process has failed"), strict=True):
        assert message.startswith("train.py: error: ") and words in message and message.count("\n") == 1


def test_signal_while_packing_stops_all_processes(manifest, tmp_path):
    """Another process holds the lock of the same cache."""
    cache = PackedCache(
        [row for row in read_manifest(manifest) if row.split == "train"],
        tmp_path,
        (2 * Recipe.width, 2 * Recipe.height),
        2 * Recipe.reference_focal,
        {"manifest": os.path.relpath(manifest, tmp_path), "split": "train", "limit": None},
    )
    flags = [*train_flags(manifest, tmp_path / "out"), "--cache-dir", tmp_path]
    with wait_for_lock(tmp_path / f"{cache.build_folder.name}.lock", "packs"), pair(*flags) as runs:
        assert runs[0].stdout.readline().startswith("waiting for another process")
        runs[0].send_signal(signal.SIGTERM)
        messages = [run.communicate(timeout=TIMEOUT)[1] for run in runs]
    assert [run.returncode for run in runs] == [EXIT_STOPPED, EXIT_STOPPED], messages
    assert messages == ["train.py: stopped by SIGTERM; finished files are kept\n"] * 2


def test_small_batch_is_split_evenly_over_ranks(manifest, tmp_path):
    frames = PackedFrames(PackedCache(read_manifest(manifest)[:6], tmp_path / "cache", (64, 48), 50.0), workers=1)
    parts = [next(training_batches(frames, 16, 0, 0, 0, torch.device("cpu"), rank, 2)) for rank in range(2)]
    whole = next(training_batches(frames, 16, 0, 0, 0, torch.device("cpu")))
    assert torch.equal(torch.cat([part.rgb for part in parts]), whole.rgb)
    assert [len(part) for part in parts] == [3, 3]


@pytest.mark.parametrize("items", [0, 1, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rank_slices_cover_all_items_in_order(items, world_size):
    processes = [object.__new__(Processes) for _ in range(world_size)]
    for rank, process in enumerate(processes):
        process.rank, process.world_size = rank, world_size
    assert [item for process in processes for item in range(items)[process.rank_slice(items)]] == list(range(items))
