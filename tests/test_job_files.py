"""Settings in cluster/settings.sh and the #SBATCH lines that repeat them; `make test-cluster` runs the jobs.

The GPU check runs here without a GPU, and with a stand-in for Python.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from config import Runtime

ROOT = Path(__file__).resolve().parents[1]
JOB_FILES = ("train.slurm", "teacher_infer/teacher_infer.slurm", "cluster/run.slurm")
CPU_JOB = "cluster/pack.slurm"
SBATCH = ("SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_GRES")
FOLDERS = ("CHECKPOINT_DIR", "WEIGHTS_DIR", "LOG_DIR")


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for variable in (*SBATCH, *FOLDERS, "ENGINE_DIR", "DATA_ROOT", "DATASET", "CLUSTER_MODULE", "CONDA_ENV"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def settings(*names: str, **environment: str) -> list[str]:
    """Values of variables set by cluster/settings.sh."""
    script = "source cluster/settings.sh; " + "; ".join(f'echo "${name}"' for name in names)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=dict(os.environ) | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_jobs_and_scripts_use_the_same_folders():
    runtime = Runtime()
    assert settings(*FOLDERS) == [str(path) for path in (runtime.checkpoint_dir, runtime.weights_dir, runtime.log_dir)]


def test_default_settings(scratch):
    expected = ["l40s_public", "torch_pr_742_general", "gpu:l40s:1"]
    expected += ["anaconda3/2025.06", f"{scratch}/conda_envs/nchsb_ml"]
    assert settings(*SBATCH, "CLUSTER_MODULE", "CONDA_ENV") == expected


def test_empty_gres_is_kept():
    assert settings("SBATCH_GRES", SBATCH_GRES="") == [""]


@pytest.mark.parametrize(("dataset", "own"), [("nyu", ""), ("corridor", "/corridor")])
def test_other_datasets_use_their_own_folders(scratch, dataset, own):
    expected = [f"{scratch}/checkpoints{own}", f"{scratch}/engines{own}"]
    assert settings("CHECKPOINT_DIR", "ENGINE_DIR", DATASET=dataset) == expected


def test_cpu_job_has_its_own_partition():
    lines = (ROOT / CPU_JOB).read_text().splitlines()
    for variable, value in zip(SBATCH[:2], settings("SBATCH_PARTITION_CPU", "SBATCH_ACCOUNT"), strict=True):
        assert f"#SBATCH --{variable.removeprefix('SBATCH_').lower()}={value}" in lines
    assert not [line for line in lines if line.startswith("#SBATCH --gres")]
    assert settings("SBATCH_PARTITION_CPU", SBATCH_PARTITION="gpus") == ["gpus"]
    assert settings("SBATCH_PARTITION", "SBATCH_PARTITION_CPU", SBATCH_PARTITION_CPU="cpus") == ["l40s_public", "cpus"]


@pytest.mark.parametrize("name", JOB_FILES)
def test_job_files_repeat_the_settings(name):
    """#SBATCH lines can't read variables."""
    lines = (ROOT / name).read_text().splitlines()
    for variable, value in zip(SBATCH, settings(*SBATCH), strict=True):
        assert f"#SBATCH --{variable.removeprefix('SBATCH_').lower()}={value}" in lines


def gpu_check(python: str | Path) -> subprocess.CompletedProcess:
    environment = dict(os.environ) | {"PYTHON": str(python)}
    command = ["bash", "cluster/gpu_check.sh"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_gpu_check_without_a_gpu_is_one_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = gpu_check(sys.executable)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: no usable GPU (") and "cluster/run.slurm" in done.stderr


FAKE_PYTHON = """#!/bin/bash
case $* in
    *pytest*) echo "tests ran: $*"; exit {tests} ;;
    *benchmarks/*) echo "benchmark ran: $*"; exit {benchmarks} ;;
    *) echo "GPU 0: fake" ;;
esac
"""


@pytest.mark.parametrize(("tests", "benchmarks", "code"), [(0, 0, 0), (1, 0, 1), (0, 2, 1)])
def test_gpu_check_measures_even_if_tests_fail(tests, benchmarks, code, tmp_path):
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON.format(tests=tests, benchmarks=benchmarks))
    fake.chmod(0o755)
    done = gpu_check(fake)
    assert done.returncode == code, done.stdout
    assert "GPU 0: fake" in done.stdout and "tests ran" in done.stdout and ("FAILED" in done.stdout) == bool(code)
    commands = [shlex.split(line) for line in re.findall(r"^benchmark ran: (.+)$", done.stdout, re.MULTILINE)]
    scripts = {script: flags for script, *flags in commands}
    assert list(scripts) == [f"benchmarks/{name}.py" for name in ("train_throughput", "teacher_depth", "teacher_seg")]
    if not code:
        for script, flags in scripts.items():
            help_text = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
            assert {flag for flag in flags if flag.startswith("--")} <= set(re.findall(r"--[a-z-]+", help_text.stdout))
