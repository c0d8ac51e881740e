"""From a checkpoint to TensorRT engines on this GPU: against ONNX Runtime, and Table III end to end."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from small_run import call

import benchmark_jetson
import export_trt
from benchmark_jetson import Cudart, TensorRTStudent, load_cudart
from dataset.manifest import read_manifest
from deployment.agreement import TOLERANCES, Tolerance, compare, onnx_runtime_fn, within_tolerance
from evaluation.held_out import evaluation_frames
from trainer.checkpoint import load_student

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def checkpoint(gpu, manifest, trained, tmp_path_factory) -> Path:
    """The student of four steps with batch norm that knows these images: its own maps are nearly constant."""
    student, recipe, content = load_student(trained / "checkpoints/best.pt")
    images = evaluation_frames(read_manifest(manifest), recipe)["rgb"]
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        student.train()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        for decoder in (student.depth_decoder, student.seg_decoder):
            decoder.head.weight *= 0.1  # random weights amplify the rounding of half precision
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    torch.save(content | {"ema": student.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def engine_dir(gpu, manifest, checkpoint, tmp_path_factory) -> Path:
    """Its graphs and engines, which take minutes to build. The bounds of an export are for trained students."""
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    folder = tmp_path_factory.mktemp("exported") / "engines"
    with mock.patch.dict(TOLERANCES, dict.fromkeys(TOLERANCES, Tolerance(None, 0.1, 0.5, {}))):
        assert call(export_trt.main, "--checkpoint", checkpoint, "--manifest", manifest, "--engine-dir", folder) == 0
    return folder


def described_precisions(engine_dir: Path) -> dict[str, dict]:
    entries = json.loads((engine_dir / "student.json").read_text())["precisions"]
    return {entry["precision"]: entry for entry in entries}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_engine_equals_its_graph_in_onnx_runtime(precision, engine_dir):
    import tensorrt

    # pycuda would make a context of its own beside PyTorch's
    student = TensorRTStudent(engine_dir / f"student_{precision}.engine", tensorrt, Cudart(load_cudart()))

    def infer(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        student.prepare(image)
        student.run()
        depth, seg = student.outputs()
        return depth[None, None].copy(), seg[None].copy()

    with np.load(engine_dir / "eval_frames.npz") as frames:
        images = frames["rgb"]
    reference = onnx_runtime_fn((engine_dir / f"student_{precision}.onnx").read_bytes())
    errors = compare(infer, reference, images)
    between_images = compare(lambda image: infer(images[0]), reference, images[1:])
    print(f"{precision}: TensorRT against ONNX Runtime {errors}; between two images {between_images}")
    assert within_tolerance(errors, {}, TOLERANCES[precision])
    assert 2 * errors["mean_relative_depth_error"] < between_images["mean_relative_depth_error"]


@pytest.mark.parametrize("flags", [[], ["--build"]], ids=["exported", "built by the benchmark"])
def test_table_3_of_the_engines(flags, engine_dir, tmp_path):
    """benchmark_jetson.py alone beside a folder of engines; it has the accuracy that export_trt.py has measured."""
    shutil.copy(benchmark_jetson.__file__, tmp_path)
    shutil.copytree(engine_dir, tmp_path / "engines")
    command = [sys.executable, "-I", "benchmark_jetson.py", "--engine-dir", "./engines/", *flags]
    command += ["--min-seconds", "1", "--iterations", "64", "--warmup-seconds", "0.5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert "TensorRT" in done.stdout.splitlines()[0] and "NOT TensorRT" not in done.stdout
    rows = {row["precision"]: row for row in json.loads((tmp_path / "engines/table_3.json").read_text())["rows"]}
    assert list(rows) == list(TOLERANCES)
    for precision, entry in described_precisions(engine_dir).items():
        row = rows[precision]
        assert min(row[name] for name in ("compute_ms", "h2d_ms", "d2h_ms", "streams_fps", "gpu_mib")) > 0
        assert row["rmse"] == pytest.approx(entry["scores"]["rmse"], rel=0.03)
