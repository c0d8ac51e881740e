"""Concurrent trainings: each has its own run folder, and only one may write to a checkpoint folder."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cli import EXIT_STOPPED, EXIT_USAGE, UserError

import pytest
import torch
from small_run import call, exit_code, train_flags

import train
from trainer.distributed import Processes, process_group
from trainer.start import create_run_dir, lock_checkpoint_dir


def test_runs_started_in_one_second_get_separate_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: create_run_dir(tmp_path / "runs"), range(40)))
    assert len(set(names)) == 40
    assert sorted(names) == sorted(path.name for path in (tmp_path / "runs").iterdir())


def test_resumed_run_continues_in_its_own_folder(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda pattern: "20260101-120000")
    flags = {name: train_flags(manifest, tmp_path) for name in ("first", "second")}
    for name in flags:
        flags[name] += ["--checkpoint-dir", tmp_path / name, "--resume", "auto"]
        step = train.Trainer.train_step

        def step_then_signal(trainer, batch, step=step):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer, batch)

        with monkeypatch.context() as patch:
            patch.setattr(train.Trainer, "train_step", step_then_signal)
            assert call(train.main, *flags[name]) == EXIT_STOPPED
    assert call(train.main, *flags["first"]) == 0
    folders = {path.name: {file.name for file in path.iterdir()} for path in (tmp_path / "runs").iterdir()}
    assert folders.keys() == {"20260101-120000", "20260101-120000-2"}
    assert "history.csv" in folders["20260101-120000"] and folders["20260101-120000-2"] == {"config.json"}
    assert torch.load(tmp_path / "second/last.pt", weights_only=True)["notes"]["run"] == "20260101-120000-2"


def test_second_training_in_a_checkpoint_folder_is_rejected_in_one_line(manifest, tmp_path, capfd):
    checkpoints = tmp_path / "out/checkpoints"
    with lock_checkpoint_dir(checkpoints, Processes()):
        (checkpoints / ".last.abc.part.pt").touch()  # a file that the first training is writing
        assert exit_code(train.main, *train_flags(manifest, tmp_path / "out")) == EXIT_USAGE
        assert (checkpoints / ".last.abc.part.pt").exists()
        error = capfd.readouterr().err
        assert error == (
            f"train.py: error: another training run writes to {checkpoints}: use a different --checkpoint-dir\n"
        )
        (checkpoints / ".last.abc.part.pt").unlink()
    assert not (tmp_path / "out").exists(), "neither training has left anything"
    with lock_checkpoint_dir(checkpoints, Processes()):
        (checkpoints / "last.pt").touch()
    assert [path.name for path in checkpoints.iterdir()] == ["last.pt"]


def test_killed_training_releases_its_lock(tmp_path):
    script = "from pathlib import Path; from trainer.start import *\n"
    script += f"with lock_checkpoint_dir(Path({str(tmp_path)!r}), Processes()): print('held', flush=True); input()"
    command, folder = [sys.executable, "-c", script], Path(train.__file__).parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=folder) as run:
        assert run.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another training"), lock_checkpoint_dir(tmp_path, Processes()):
            pass
        run.kill()
        run.wait()
    with lock_checkpoint_dir(tmp_path, Processes()):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "rejected"),
    [
        ({"SLURM_NTASKS": "2"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "8", "WORLD_SIZE": "8"}, True),
        ({"SLURM_NTASKS": "8", "RANK": "0"}, True),
        ({"SLURM_NTASKS": "2", "RANK": "0", "WORLD_SIZE": "1"}, False),  # torchrun with one process
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_NTASKS": ""}, False),
        ({}, False),
    ],
)
def test_slurm_tasks_without_ranks_are_rejected(manifest, tmp_path, monkeypatch, capfd, variables, rejected):
    for name in ("SLURM_NTASKS", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not rejected:
        with process_group("cpu") as (group, _):
            assert group.world_size == 1
        return
    assert exit_code(train.main, *train_flags(manifest, tmp_path / "out")) == EXIT_USAGE
    error = capfd.readouterr().err
    assert "cluster/rank.sh" in error and variables["SLURM_NTASKS"] in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
