"""Training on a GPU against float32 and the CPU: precision, feed, augmentation, resume, compilation, memory."""

import os
import shutil
import signal
import sysconfig
import warnings
from contextlib import nullcontext
from pathlib import Path

from cli import EXIT_STOPPED, EXIT_USAGE

import numpy as np
import pytest
import torch
from small_run import call, exit_code, train_flags

import train
from config import Recipe, Runtime
from dataset.files import read_image
from dataset.manifest import read_manifest
from evaluation.inference import make_predictor
from trainer.augment import augment
from trainer.checkpoint import load_student
from trainer.feed import Batch, PackedFrames, training_batches
from trainer.start import open_cache

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


@pytest.fixture
def frames(manifest) -> PackedFrames:
    """The four training frames."""
    rows = [row for row in read_manifest(manifest) if row.split == "train"]
    return open_cache(rows, manifest, Recipe(), Recipe.cache_scale, workers=2)


def make_trainer(frames: PackedFrames, device: torch.device) -> train.Trainer:
    trainer = train.Trainer(Recipe(epochs=10, batch_size=4), Runtime(), device, frames, {"set": frames}, "data")
    trainer.model.train()
    return trainer


# ----------------------------------------------------------------------------------------------------------- precision


def first_step(trainer: train.Trainer) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss, gradients and predicted depth of a trainer's first step."""
    depths = []
    trainer.model.register_forward_hook(lambda module, inputs, outputs: depths.append(outputs[0].detach()))
    loss = trainer.train_step(next(trainer.batches(0, 0, trainer.device))).item()
    return loss, {name: weight.grad for name, weight in trainer.model.named_parameters()}, depths[0]


def cosine(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], part: str = "") -> float:
    """Cosine similarity of the gradients of all weights whose name starts with `part`."""
    names = [name for name in first if name.startswith(part)]
    vectors = [torch.cat([gradients[name].flatten() for name in names]) for gradients in (first, second)]
    return torch.nn.functional.cosine_similarity(*vectors, dim=0).item()


def test_bfloat16_step_is_close_to_float32(frames, gpu, exact_float32, monkeypatch):
    loss, gradients, depth = first_step(make_trainer(frames, gpu))
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **named: nullcontext())
    exact_loss, exact_gradients, exact_depth = first_step(make_trainer(frames, gpu))
    assert not torch.equal(depth, exact_depth), "autocast is off"
    parts = {part: cosine(gradients, exact_gradients, part) for part in ("", "depth_decoder", "seg_decoder")}
    print(f"loss {loss:.4f} in bfloat16, {exact_loss:.4f} in float32; cosine of the gradients {parts}")
    assert loss == pytest.approx(exact_loss, rel=0.02)
    assert parts["depth_decoder"] > 0.99 and parts["seg_decoder"] > 0.99
    assert parts[""] > 0.6, "the encoder has random weights, which amplify rounding"


def test_heads_are_float32(frames, gpu):
    """A head in bfloat16 has 256 values for each doubling of the distance."""
    _, _, depth = first_step(make_trainer(frames, gpu))
    distinct, rounded = len(depth.unique()), len(depth.bfloat16().unique())
    print(f"{distinct} distinct values of depth, {rounded} in bfloat16")
    assert depth.dtype == torch.float32 and distinct > 20 * rounded


def test_student_predicts_what_it_predicts_on_the_cpu(manifest, trained, gpu, monkeypatch):
    student, recipe, _ = load_student(trained / "checkpoints/best.pt")
    row = read_manifest(manifest)[0]
    rgb = read_image(row.rgb)
    depth, classes = make_predictor(student, recipe, CPU)(rgb, row.intrinsics)
    predict = make_predictor(student.to(gpu), recipe, gpu)
    errors = {}
    for name, tf32 in (("TF32, torch's default", True), ("float32", False)):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        gpu_depth, gpu_classes = predict(rgb, row.intrinsics)
        errors[name] = float((np.abs(gpu_depth - depth) / depth).mean())
        assert (gpu_classes == classes).mean() > 0.98
    print("mean relative difference of depth from the CPU:", errors)
    assert errors["float32"] < 1e-4 and errors["TF32, torch's default"] < 1e-2


# ---------------------------------------------------------------------------------------------------------------- feed


def assert_batches_are_close(batch: Batch, expected: Batch, tolerance: float = 1e-6) -> None:
    for name, values in vars(batch).items():
        torch.testing.assert_close(values.cpu(), getattr(expected, name), rtol=tolerance, atol=tolerance, msg=name)


def keep_busy(gpu: torch.device) -> None:
    """Give the GPU about 0.1 s of work, behind which later copies wait."""
    torch.cuda._sleep(10**8)


def test_pinned_batches_equal_those_of_the_cpu(frames, gpu):
    """Pinned memory must not be reused for the next batch while a copy from it is still waiting."""
    keep_busy(gpu)
    received = []
    for batch in (batch for epoch in range(3) for batch in training_batches(frames, 1, 0, epoch, 0, gpu)):
        received.append(batch)
        keep_busy(gpu)
    expected = [batch for epoch in range(3) for batch in training_batches(frames, 1, 0, epoch, 0, CPU)]
    for batch, expected_batch in zip(received, expected, strict=True):
        assert batch.rgb.device.type == gpu.type
        assert_batches_are_close(batch, expected_batch)


def test_augmentation_equals_that_of_the_cpu(frames, gpu):
    """Apart from the noise, which each kind of device draws by itself."""
    size = (Recipe.height, Recipe.width)
    for step in range(4):
        changed = [
            augment(frames.batch(range(4), device), (0.8, 1.4), size, seed=0, step=step, texture=0.0, camera=1.0)
            for device in (gpu, CPU)
        ]
        torch.testing.assert_close(changed[0].rgb.cpu(), changed[1].rgb, rtol=0, atol=1e-3)
        torch.testing.assert_close(changed[0].focal_factor.cpu(), changed[1].focal_factor)
        for name in ("depth", "confidence", "da3_depth", "sam2_seg"):
            values, expected = (getattr(batch, name).cpu() for batch in changed)
            equal = torch.isclose(values.float(), expected.float(), rtol=1e-6, atol=0).float().mean()
            assert equal > 0.995, f"{name}: {1 - equal:.2%} differ, more than a row or column that rounding moves"


def test_training_step_does_not_wait_for_the_gpu(frames, gpu):
    trainer = make_trainer(frames, gpu)
    batches = [next(trainer.batches(epoch, 0, gpu)) for epoch in range(3)]
    trainer.train_step(batches[0])  # the first step allocates memory and loads kernels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for batch in batches[1:]:
                trainer.train_step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = {f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message)}
    assert not waits, "the host waits for the GPU in these lines"


# ---------------------------------------------------------------------------------------------------------- whole runs


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoints/last.pt", map_location="cpu", weights_only=True)


def stop_after_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal this process after the first step of a run, so that train.main() returns EXIT_STOPPED."""
    train_step = train.Trainer.train_step

    def train_step_then_signal(trainer: train.Trainer, batch: Batch) -> torch.Tensor:
        loss = train_step(trainer, batch)
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss

    monkeypatch.setattr(train.Trainer, "train_step", train_step_then_signal)


def largest_difference(first: object, second: object) -> float:
    """Largest absolute difference of the tensors in two checkpoints' contents."""
    if isinstance(first, torch.Tensor):
        return (first.double() - second.double()).abs().max().item() if first.numel() else 0.0
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list):
        return max((largest_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    return 0.0


@pytest.fixture
def deterministic(monkeypatch):
    """Deterministic kernels where torch has them: by default, gradients of resized maps are summed in any order."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_resumed_run_is_as_close_as_a_repeated_one(manifest, gpu, tmp_path, deterministic, monkeypatch):
    """If repeating a run gives the same bits, then so does stopping and resuming it."""
    for name in ("first", "repeated"):
        assert call(train.main, *train_flags(manifest, tmp_path / name), "--device", gpu) == 0
    flags = [*train_flags(manifest, tmp_path / "resumed"), "--device", gpu, "--resume", "auto"]
    stop_after_first_step(monkeypatch)
    assert call(train.main, *flags) == EXIT_STOPPED
    assert checkpoint(tmp_path / "resumed")["step"] == 1
    assert call(train.main, *flags) == 0
    first, repeated, resumed = (checkpoint(tmp_path / name) for name in ("first", "repeated", "resumed"))
    assert resumed["step"] == first["step"]
    for part in ("model", "ema", "optimizer", "guard"):
        noise, difference = (largest_difference(first[part], other[part]) for other in (repeated, resumed))
        print(f"{part}: largest difference of a repeated run {noise:.1e}, of a resumed one {difference:.1e}")
        assert difference <= 10 * noise


def missing_for_triton() -> str | None:
    """What Triton lacks to compile; None if nothing."""
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        return "no C compiler"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.is_file() else f"no Python headers: {header} is missing"


def test_compiled_run_is_finite_and_close(manifest, gpu, tmp_path):
    """With images of one size, since each size takes a minute to compile."""
    if missing := missing_for_triton():
        pytest.skip(missing)
    counters = torch._dynamo.utils.counters
    losses = {}
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        counters.clear()
        flags = [*train_flags(manifest, tmp_path / name), "--zoom", 1, 1.4, "--device", gpu, *flags]
        assert call(train.main, *flags) == 0
        losses[name] = [entry["loss"] for entry in checkpoint(tmp_path / name)["notes"]["history"]]
    print(f"losses {losses}, {counters['stats']['unique_graphs']} graphs, breaks: {dict(counters['graph_break'])}")
    assert counters["stats"]["unique_graphs"] >= 3, "a test of the compiler; batch norm in training; batch norm frozen"
    assert np.isfinite(losses["compiled"]).all()
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=0.05)


def test_out_of_memory_ends_in_one_line_and_loses_nothing(manifest, gpu, tmp_path, little_memory, monkeypatch, capsys):
    flags = [*train_flags(manifest, tmp_path), "--device", gpu, "--resume", "auto"]
    with monkeypatch.context() as patch:
        stop_after_first_step(patch)
        assert call(train.main, *flags) == EXIT_STOPPED
    saved = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    little_memory(2**27)  # less than the weights, their averages and the optimizer's state, and a step
    capsys.readouterr()
    assert exit_code(train.main, *flags) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: out of memory (" in line and "smaller batches" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == saved
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert call(train.main, *flags) == 0
