"""The job files and the cluster's settings say the same; `make test-cluster` runs them."""

import os
import subprocess
from pathlib import Path

import pytest

from config import Config

ROOT = Path(__file__).resolve().parents[1]
JOB_FILES = ("train.slurm", "teacher_infer/teacher_infer.slurm", "cluster/run.slurm")
NAMES = ("SBATCH_PARTITION", "SBATCH_ACCOUNT", "CLUSTER_MODULE", "CONDA_ENV")
FOLDERS = ("CHECKPOINT_DIR", "WEIGHTS_DIR", "LOG_DIR")


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for variable in (*NAMES, *FOLDERS, "ENGINE_DIR", "DATA_ROOT", "DATASET"):
        monkeypatch.delenv(variable, raising=False)
    return Config()


def test_settings_are_those_of_config(config):
    script = "source cluster/settings.sh; " + "; ".join(f'echo "${name}"' for name in NAMES + FOLDERS)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    expected = (config.partition, config.account, config.module, config.conda_env)
    expected += (config.checkpoint_dir, config.weights_dir, config.log_dir)
    assert done.stdout.splitlines() == list(map(str, expected))


@pytest.mark.parametrize(("dataset", "own"), [("nyu", ""), ("corridor", "/corridor")])
def test_another_data_set_leaves_nyus_student_alone(config, tmp_path, dataset, own):
    script = 'source cluster/settings.sh; echo "$CHECKPOINT_DIR"; echo "$ENGINE_DIR"'
    environment = dict(os.environ) | {"DATASET": dataset}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{tmp_path}/checkpoints{own}", f"{tmp_path}/engines{own}"]


@pytest.mark.parametrize("name", JOB_FILES)
def test_job_files_carry_the_settings(config, name):
    """#SBATCH lines can't read variables."""
    lines = (ROOT / name).read_text().splitlines()
    for setting in ("partition", "account", "gres"):
        assert f"#SBATCH --{setting}={getattr(config, setting)}" in lines
