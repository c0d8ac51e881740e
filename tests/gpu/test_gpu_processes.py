"""Distributed training over NCCL: one process, and two on two GPUs."""

import csv
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_run import train_flags
from test_distributed import ROOT, TIMEOUT, run_losses, start_torchrun
from torch import distributed

from config import Recipe
from trainer.checkpoint import build_student
from trainer.distributed import Processes

pytestmark = pytest.mark.gpu


@pytest.fixture
def two_gpus(gpu) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU: needs two")


@pytest.fixture
def group(gpu, tmp_path) -> Iterator[Processes]:
    """A group of one process that thinks it is one of two: alone, Processes would not communicate."""
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield Processes(rank=0, world_size=2)
    distributed.destroy_process_group()


def gradients(model: torch.nn.Module, rgb: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients by the names of the weights, without DistributedDataParallel's prefix."""
    depth, seg = model(rgb)
    (depth.mean() + seg.square().mean()).backward()
    return {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters()}


def test_nccl_with_one_process_leaves_the_gradients_as_they_are(group, gpu, exact_float32):
    torch.manual_seed(0)
    alone = build_student(Recipe()).to(gpu)
    student = build_student(Recipe()).to(gpu).to(memory_format=torch.channels_last)
    student.load_state_dict(alone.state_dict())
    group.broadcast_weights(student)
    rgb = torch.rand(2, 3, 120, 160, device=gpu)
    expected, found = gradients(alone, rgb), gradients(group.data_parallel(student, gpu), rgb)
    assert found.keys() == expected.keys()
    error = sum((found[name] - expected[name]).square().sum() for name in expected)
    assert error.sqrt() < 0.01 * sum(gradient.square().sum() for gradient in expected.values()).sqrt()
    assert group.all_reduce_mean(torch.ones(3, device=gpu)).tolist() == [0.5] * 3, "the sum of one, over two"


def test_two_gpus_reproduce_the_losses_of_one(manifest, two_gpus, tmp_path):
    """The script compares their running statistics, too; bfloat16 rounds a batch and its halves differently."""
    alone = run_losses(manifest, tmp_path / "alone", 1, 1, "cuda")
    for name, accumulation in (("two", 1), ("two in parts", 2)):
        difference = np.abs(run_losses(manifest, tmp_path / name, 2, accumulation, "cuda") / alone - 1).max()
        print(f"{name}: largest relative difference of the loss over 50 steps {difference:.1e}")
        assert difference < 0.02


def test_two_gpus_train(manifest, two_gpus, tmp_path):
    flags = [*train_flags(manifest, tmp_path), "--device", "cuda"]
    with start_torchrun(2, ROOT / "train.py", *flags) as run:
        output, _ = run.communicate(timeout=TIMEOUT)
    assert run.returncode == 0, output[-3000:]
    (run_dir,) = (tmp_path / "runs").iterdir()
    with open(run_dir / "history.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2 and np.isfinite(losses).all()
