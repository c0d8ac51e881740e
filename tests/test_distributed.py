"""Several processes train as one does: the same losses, one set of files, one stop for all (gloo, on the CPU)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import call, train_flags

import train
from cli import EXIT_STOPPED
from training.distributed import Processes

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("distributed_training.py")


def torchrun(processes: int, *command: object) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return [str(part) for part in (sys.executable, *launcher, *command)]


def losses(manifest: Path, out: Path, processes: int, *flags: object) -> np.ndarray:
    out.mkdir()
    done = subprocess.run(torchrun(processes, SCRIPT, manifest, out, *flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads((out / "losses.json").read_text()))


def test_two_processes_and_parts_of_a_batch_have_the_losses_of_one(manifest, tmp_path):
    """Even where the later half of each batch has a tenth of the targets."""
    alone = losses(manifest, tmp_path / "alone", 1, 1)
    assert len(alone) == 50 and len(set(alone)) == 50
    for name, processes, accumulation in (("two", 2, 1), ("two in parts", 2, 2)):
        difference = np.abs(losses(manifest, tmp_path / name, processes, accumulation) / alone - 1).max()
        print(f"{name}: largest relative difference of the loss over 50 steps {difference:.1e}")
        assert difference < 1e-4


def test_a_run_of_two_processes_stops_as_one_and_goes_on(manifest, tmp_path):
    """What it leaves is one run's: one folder, one history, checkpoints that a process alone resumes."""
    flags = [*train_flags(manifest, tmp_path), "--epochs", 60, "--resume", "auto"]
    run = subprocess.Popen(
        torchrun(2, ROOT / "train.py", *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    last = tmp_path / "checkpoints/last.pt"
    deadline = time.monotonic() + 120
    while not last.is_file() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGTERM)  # one of them alone
    output, _ = run.communicate(timeout=120)
    assert output.count("stopped by a signal") == 1, output
    assert f"exitcode  : {EXIT_STOPPED}" in output
    stopped = torch.load(last, weights_only=True)["step"]
    assert 2 <= stopped < 120
    assert len(list((tmp_path / "runs").iterdir())) == 1
    epochs = stopped // 2 + 1
    content = torch.load(last, weights_only=True)
    content["config"]["epochs"] = epochs  # the rest of a run of sixty epochs would take long
    torch.save(content, last)
    assert call(train.main, *flags[:-4], "--epochs", epochs, "--resume", "auto") == 0
    history = torch.load(last, weights_only=True)["notes"]["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, epochs + 1))


@pytest.mark.parametrize("items", [0, 1, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_all_items_once_in_order(items, size):
    processes = [object.__new__(Processes) for _ in range(size)]
    for rank, process in enumerate(processes):
        process.rank, process.size = rank, size
    assert [item for process in processes for item in range(items)[process.share(items)]] == list(range(items))
