"""Table III: the one file that runs alone on a robot, its timing, its metrics, and both runtimes."""

import ast
import csv
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
import torch
from collect_tensorrt_names import NAMES, other_names, weakly_typed_names
from onnx import TensorProto, helper, numpy_helper

import benchmark_jetson
from benchmark_jetson import accuracy, as_csv, as_markdown, measure, summarise
from dataset.files import read_image
from evaluation.metrics import ConfusionMatrix, DepthMetrics

SCRIPT = Path(benchmark_jetson.__file__)
HEIGHT, WIDTH, CLASSES = 6, 8, 6
PACKAGES_3_8 = ("--quiet", "--retries", "1", "numpy", "onnxruntime")  # pip takes the last versions for Python 3.8


@pytest.fixture
def weights():
    return np.random.default_rng(1).normal(size=(CLASSES, 3, 1, 1)).astype(np.float32)


def answer(rgb, weights):
    """What the small graph below computes: depth 3 * mean colour + 0.5, seg a 1x1 convolution."""
    return 3 * rgb.mean(axis=1, keepdims=True) + 0.5, np.einsum("nchw,kc->nkhw", rgb, weights[:, :, 0, 0])


@pytest.fixture
def engine_dir(tmp_path, weights):
    """A folder as export_trt.py writes it, with a graph of four nodes for a student."""
    folder = tmp_path / "engines"
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMean", ["rgb"], ["mean"], axes=[1]),
        helper.make_node("Mul", ["mean", "three"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["depth"]),
        helper.make_node("Conv", ["rgb", "weights"], ["seg"]),
    ]
    shapes = {"rgb": 3, "depth": 1, "seg": CLASSES}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, HEIGHT, WIDTH])
        for name, channels in shapes.items()
    }
    constants = {"three": np.float32(3), "half": np.float32(0.5), "weights": weights}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", [values["rgb"]], [values["depth"], values["seg"]], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "student_fp32.onnx")
    description = {"camera": {"focal": 250.0}, "evaluated_depth_range": [0.1, 10.0]}
    (folder / "student.json").write_text(json.dumps(description))
    np.savez_compressed(folder / "eval_frames.npz", **evaluation_frames())
    return folder


def evaluation_frames(count=5):
    generator = np.random.default_rng(0)
    depth = generator.uniform(0.05, 12, (count, HEIGHT, WIDTH)).astype(np.float32)
    depth[generator.random(depth.shape) < 0.3] = 0
    labels = generator.integers(0, CLASSES - 1, (count, HEIGHT, WIDTH)).astype(np.uint8)
    labels[generator.random(labels.shape) < 0.2] = 255
    return {
        "rgb": generator.integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "depth": depth,
        "labels": labels,
        "focal": np.linspace(200, 300, count).astype(np.float32),
        "stems": np.array([f"{n:06d}" for n in range(count)]),
    }


def run(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error) of the script."""
    quick = ("--min-seconds", "0", "--warmup-seconds", "0")
    monkeypatch.setattr(sys, "argv", ["benchmark_jetson.py", *quick, *map(str, arguments)])
    try:
        code = benchmark_jetson.main()
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def without(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


class Clockwork:
    """A student and its clock: an inference takes `base` ms times `heat` of the time, preparing an image 1 ms."""

    def __init__(self, base=1.0, heat=lambda seconds: 1.0, time=None):
        self.base, self.heat, self.time = base, heat, time if time is not None else [0.0]
        self.images = []

    def prepare(self, rgb):
        self.images.append(rgb)
        self.time[0] += 0.001

    def run(self):
        self.took = self.base * self.heat(self.time[0])
        self.time[0] += self.took / 1000

    def parts(self):
        return {"compute_ms": self.took / 2}

    def clock(self):
        return self.time[0]


# ---------------------------------------------------------------------------------------------------- one file, alone


def test_is_python_3_8_and_imports_nothing_of_the_project():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.split(".")[0] for name in imported}
    assert tops - set(sys.stdlib_module_names) == {"numpy", "tensorrt", "pycuda", "onnxruntime", "matplotlib"}


def test_runs_copied_alone_beside_the_folder(tmp_path, engine_dir):
    alone = tmp_path / "robot"
    alone.mkdir()
    shutil.copy(SCRIPT, alone)
    command = [sys.executable, "-I", "benchmark_jetson.py", "--engine-dir", str(engine_dir), "--min-seconds", "1"]
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Table III" in done.stdout


def succeeds(*command: object) -> bool:
    return not subprocess.run(list(map(str, command)), capture_output=True, timeout=300).returncode


@pytest.fixture
def python_3_8(tmp_path) -> Path:
    """Python 3.8 with numpy and ONNX Runtime: the machine's, or a venv that pip installs them into."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which("python3.8"), *sorted(pyenv.glob("versions/3.8.*/bin/python"))]
    pythons = [path for path in found if path and succeeds(path, "-c", "")]  # pyenv's python3.8 on the path may fail
    for python in pythons:
        if succeeds(python, "-c", "import numpy, onnxruntime"):
            return Path(python)
    if not pythons:
        pytest.skip("there is no Python 3.8")
    venv = tmp_path / "python_3_8"
    python = venv / "bin/python"
    if not (succeeds(pythons[0], "-m", "venv", venv) and succeeds(python, "-m", "pip", "install", *PACKAGES_3_8)):
        pytest.skip("Python 3.8 has no numpy and onnxruntime, and pip can't install them")
    return python


def test_table_3_under_python_3_8(tmp_path, engine_dir, python_3_8):
    (tmp_path / "robot").mkdir()
    shutil.copy(SCRIPT, tmp_path / "robot")
    shutil.move(engine_dir, tmp_path / "robot/engines")
    command = [python_3_8, "-I", "benchmark_jetson.py", "--engine-dir", "./engines/", "--min-seconds", "1"]
    done = subprocess.run(command, cwd=tmp_path / "robot", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    heading, _, line = (line for line in done.stdout.splitlines() if line.startswith("|"))
    columns = zip(*([cell.strip() for cell in text.split("|")[1:-1]] for text in (heading, line)), strict=True)
    cells = {name: cell for name, cell in columns if cell != "-"}
    assert cells["precision"] == "fp32" and int(cells["inferences"]) >= 1024
    assert {"p99 ms", "jitter ms", "FPS", "input ms", "frame ms", "RMSE m", "mIoU"} <= cells.keys()
    without_matplotlib = {"eval_frames.npz", "student.json", "student_fp32.onnx"}
    without_matplotlib |= {f"table_3.{suffix}" for suffix in ("md", "json", "csv")}
    assert {path.name for path in (tmp_path / "robot/engines").iterdir()} == without_matplotlib


# ------------------------------------------------------------------------------------------------------------ timing


def floors(seconds=0.0, inferences=1, warmup=0.0):
    return benchmark_jetson.Floors(seconds, inferences, warmup)


def test_measure_tells_input_and_inference_apart_and_leaves_out_the_warm_up():
    clockwork = Clockwork(heat=lambda seconds: 5.0 if seconds < 0.5 else 1.0)
    found = measure({"fp32": clockwork}, ["a", "b"], floors(inferences=5, warmup=1.0), clockwork.clock)["fp32"].values
    assert found["latency_ms"] == pytest.approx([1.0] * 5) and found["input_ms"] == pytest.approx([1.0] * 5)
    assert found["compute_ms"] == pytest.approx([0.5] * 5)
    assert found["at_s"] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.010])
    assert clockwork.images[-4:] in (["a", "b"] * 2, ["b", "a"] * 2)


@pytest.mark.parametrize(("seconds", "inferences"), [(0.0, 7), (3.0, 7), (0.5, 900), (10.0, 1024)])
def test_both_floors_hold(seconds, inferences):
    time = [0.0]
    students = {name: Clockwork(base, time=time) for name, base in (("fp32", 4.0), ("fp16", 1.0))}
    for found in measure(students, ["a"], floors(seconds, inferences), lambda: time[0]).values():
        values = found.values
        assert len(values["latency_ms"]) >= inferences
        assert sum(values["latency_ms"]) + sum(values["input_ms"]) >= 1000 * seconds - 1e-6


def bias(slice_seconds, monkeypatch):
    """Ratio of the mean latencies of two students that are equally fast, on a board that heats up while it measures."""
    monkeypatch.setattr(benchmark_jetson, "SLICE", slice_seconds)
    time = [0.0]
    students = {name: Clockwork(2.0, lambda t: 1 + 0.5 * min(t / 40, 1), time) for name in ("first", "second")}
    found = measure(students, ["a"], floors(20.0, 1), lambda: time[0])
    means = {name: np.mean(samples.values["latency_ms"]) for name, samples in found.items()}
    return means["second"] / means["first"]


def test_turns_take_the_bias_of_a_board_that_heats_up_out(monkeypatch):
    assert bias(1e6, monkeypatch) > 1.15, "one after the other"
    assert bias(1.0, monkeypatch) == pytest.approx(1, abs=0.01)


def test_a_board_that_slows_down_is_told(engine_dir, on_a_jetson, monkeypatch, capsys):
    hot = Clockwork(1.0, lambda seconds: 1 + seconds)
    found = measure({"fp32": hot}, ["a"], floors(inferences=300), hot.clock)["fp32"]
    assert benchmark_jetson.slowdown(found) > 0.2
    steady = Clockwork()
    assert benchmark_jetson.slowdown(measure({"a": steady}, ["a"], floors(inferences=99), steady.clock)["a"]) == 0
    (engine_dir / "student_fp32.engine").write_bytes(b"engine")
    described(engine_dir)
    monkeypatch.setattr(benchmark_jetson, "slowdown", lambda samples: 0.21)
    code, out, _ = run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)
    assert code == 0 and "**fp32 became 21% slower during the run: is the board throttled?**" in out


def test_summarise():
    latency = list(range(1, 102))
    summary = summarise({"latency_ms": latency, "input_ms": [2.0] * 101, "at_s": latency, "h2d_ms": [1, 5, 2]})
    assert summary["inferences"] == 101 and summary["frame_ms"] == 53 and summary["input_ms"] == 2
    assert summary["median_ms"] == 51 and summary["p90_ms"] == 91 and summary["p99_ms"] == 100
    assert summary["mean_ms"] == 51 and summary["max_ms"] == 101
    assert summary["std_ms"] == pytest.approx(np.sqrt((101**2 - 1) / 12))
    assert summary["fps"] == pytest.approx(1000 / 51)
    assert summary["h2d_ms"] == 2 and "at_s" not in summary


# ---------------------------------------------------------------------------------------------------------- accuracy


class Answering:
    """A student that answers with depth and logits it was given, in turn."""

    def __init__(self, depths, segs):
        self.answers = list(zip(depths, segs, strict=True))

    def prepare(self, rgb):
        pass

    def run(self):
        self.last = self.answers.pop(0)

    def outputs(self):
        return self.last


def scored(depth: np.ndarray) -> np.ndarray:
    return (depth >= 0.1) & (depth <= 10)


def test_accuracy_is_that_of_the_training_metrics():
    frames = evaluation_frames() | {"engine_focal": 250.0, "evaluated_depth_range": [0.1, 10.0]}
    generator = np.random.default_rng(2)
    depths = frames["depth"] * generator.uniform(0.7, 1.5, frames["depth"].shape).astype(np.float32) + 0.2
    segs = generator.normal(size=(len(depths), CLASSES, HEIGHT, WIDTH)).astype(np.float32)
    segs[:, -1] = -100  # a class that occurs neither in reference nor prediction counts nowhere
    metrics, confusion, unanswered = DepthMetrics(0.1, 10.0), ConfusionMatrix(CLASSES), []
    for depth, seg, reference, labels, focal in zip(
        depths, segs, frames["depth"], frames["labels"], frames["focal"], strict=True
    ):
        depth = np.where(generator.random(depth.shape) < 0.1, np.nan, depth)  # pixels without an answer
        unanswered.append(depth)
        metrics.update(*map(torch.from_numpy, (depth * focal / 250, reference, scored(reference))))
        confusion.update(*map(torch.from_numpy, (seg.argmax(axis=0), labels, labels != 255)))
    expected = {name: metrics.compute()[name] for name in ("rmse", "abs_rel", "delta1")}
    expected["miou"] = confusion.compute()["miou"]
    assert accuracy(Answering(unanswered, segs), frames) == pytest.approx(expected, rel=1e-5)


def test_a_prediction_that_is_no_number_costs():
    frames = evaluation_frames(1) | {"engine_focal": 200.0, "evaluated_depth_range": [0.1, 10.0]}
    frames["depth"][:] = 1
    depths, segs = np.ones((1, HEIGHT, WIDTH), np.float32), np.zeros((1, CLASSES, HEIGHT, WIDTH), np.float32)
    assert accuracy(Answering(depths, segs), frames)["rmse"] == pytest.approx(0)
    depths[0, 0, 0] = np.nan
    worse = accuracy(Answering(depths, segs), frames)
    assert worse["rmse"] == pytest.approx(np.sqrt(81 / (HEIGHT * WIDTH)))
    assert worse["delta1"] == pytest.approx(1 - 1 / (HEIGHT * WIDTH))


def test_without_references_there_is_no_score():
    frames = evaluation_frames(1) | {"engine_focal": 200.0, "evaluated_depth_range": [0.1, 10.0]}
    frames["depth"][:], frames["labels"][:] = 0, 255
    segs = np.zeros((1, CLASSES, HEIGHT, WIDTH), np.float32)
    scores = accuracy(Answering(np.ones((1, HEIGHT, WIDTH)), segs), frames)
    assert scores == dict.fromkeys(("rmse", "abs_rel", "delta1", "miou"))


# ------------------------------------------------------------------------------------- ONNX Runtime in TensorRT's place


def test_falls_back_to_onnx_runtime_and_says_so(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    code, out, _ = run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 4, "--warmup", 1)
    assert code == 0
    assert "ONNX Runtime" in out.splitlines()[0] and "NOT TensorRT" in out
    assert out.startswith((engine_dir / "table_3.md").read_text())
    table = json.loads((engine_dir / "table_3.json").read_text())
    (row,) = table["rows"]
    assert row["precision"] == "fp32" and row["runtime"].startswith("ONNX Runtime")
    assert 0 < row["median_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"] and row["gpu_mib"] is None
    (written,) = csv.DictReader((engine_dir / "table_3.csv").open())
    assert float(written["median_ms"]) == row["median_ms"] and written["gpu_mib"] == ""
    assert read_image(engine_dir / "latency.png").shape[2] == 3
    assert table["frames"] == 5 and table["min_inferences"] == 4
    assert row["rmse"] > 0 and 0 <= row["miou"] <= 1
    assert {path.name for path in engine_dir.iterdir()} == {
        "eval_frames.npz", "student.json", "student_fp32.onnx", "table_3.json", "table_3.md", "table_3.csv",
        "latency.png",
    }  # fmt: skip


def test_accuracy_takes_frame_and_camera_to_their_focal_lengths(engine_dir, monkeypatch, capsys, weights):
    without(monkeypatch, "tensorrt", "pycuda")
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0
    frames = evaluation_frames()
    depths, segs = answer(frames["rgb"].transpose(0, 3, 1, 2).astype(np.float32) / 255, weights)
    metrics, confusion = DepthMetrics(0.1, 10.0), ConfusionMatrix(CLASSES)
    for depth, reference, focal in zip(depths[:, 0], frames["depth"], frames["focal"], strict=True):
        metrics.update(*map(torch.from_numpy, (depth * focal / 250, reference, scored(reference))))
    labels = frames["labels"]
    confusion.update(*map(torch.from_numpy, (segs.argmax(axis=1), labels, labels != 255)))
    (row,) = json.loads((engine_dir / "table_3.json").read_text())["rows"]
    assert row["rmse"] == pytest.approx(metrics.compute()["rmse"], rel=1e-4)
    assert row["miou"] == pytest.approx(confusion.compute()["miou"], rel=1e-6)


def test_every_precision_has_a_row(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    shutil.copy(engine_dir / "student_fp32.onnx", engine_dir / "student_int8.onnx")
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0
    rows = json.loads((engine_dir / "table_3.json").read_text())["rows"]
    assert [row["precision"] for row in rows] == ["fp32", "int8"]


def test_without_frames_there_is_latency_and_no_accuracy(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    (engine_dir / "eval_frames.npz").unlink()
    code, out, _ = run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 2)
    assert code == 0 and "no accuracy" in out
    (row,) = json.loads((engine_dir / "table_3.json").read_text())["rows"]
    assert row["median_ms"] > 0 and "rmse" not in row


# ------------------------------------------------------------------------------------------------------- wrong input


def wrong(monkeypatch, capsys, folder, *needles, flags=()):
    code, out, err = run(monkeypatch, capsys, "--engine-dir", folder, "--iterations", 1, *flags)
    assert code == 2 and not out
    assert len(err.splitlines()) == 1 and all(needle in err for needle in needles), err


def test_neither_runtime(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda", "onnxruntime")
    wrong(monkeypatch, capsys, engine_dir, "neither TensorRT", "ONNX Runtime")


def test_missing_and_empty_folder(tmp_path, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    wrong(monkeypatch, capsys, tmp_path / "nowhere", "no folder")
    (tmp_path / "empty").mkdir()
    wrong(monkeypatch, capsys, tmp_path / "empty", "student_*.onnx", "export_trt.py")
    assert not list((tmp_path / "empty").iterdir())


def test_broken_graph(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    (engine_dir / "student_fp32.onnx").write_bytes(b"no graph")
    wrong(monkeypatch, capsys, engine_dir, "student_fp32.onnx")


@pytest.mark.parametrize("content", [{"rgb": np.zeros((0, 6, 8, 3))}, {"labels": np.zeros((5, 6, 9))}])
def test_frames_that_are_no_frames(engine_dir, monkeypatch, capsys, content):
    without(monkeypatch, "tensorrt", "pycuda")
    np.savez(engine_dir / "eval_frames.npz", **(evaluation_frames() | content))
    wrong(monkeypatch, capsys, engine_dir, "eval_frames.npz")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_run(engine_dir, monkeypatch, capsys, tmp_path):
    without(monkeypatch, "tensorrt", "pycuda")
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(engine_dir / "eval_frames.npz", **(evaluation_frames() | {"rgb": trap}))
    wrong(monkeypatch, capsys, engine_dir, "eval_frames.npz")
    assert not (tmp_path / "sprung").exists()


def test_depth_range_of_older_exports_is_read(engine_dir):
    (engine_dir / "student.json").write_text(json.dumps({"camera": {"focal": 250.0}, "scored_depth": [0.2, 5.0]}))
    assert benchmark_jetson.read_evaluation(engine_dir)["evaluated_depth_range"] == [0.2, 5.0]


def test_frames_without_the_camera_of_the_engines(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    (engine_dir / "student.json").unlink()
    wrong(monkeypatch, capsys, engine_dir, "student.json", "camera")


# ------------------------------------------- TensorRT, with a stand-in that offers no more than what 8.5 to 11 share


class FakeEvent:
    ticks = 0.0

    def record(self, stream):
        FakeEvent.ticks += 0.5
        self.at = FakeEvent.ticks

    def time_till(self, other):
        return other.at - self.at


class FakeCuda(types.ModuleType):
    """pycuda.driver whose device memory is host memory; copies happen when the stream is synchronised with."""

    Event = FakeEvent

    def __init__(self):
        super().__init__("pycuda.driver")
        self.memory, self.free, self.queue = {}, 10**9, []

    def Stream(self):
        return types.SimpleNamespace(handle=7, synchronize=self.synchronize)

    def synchronize(self):
        while self.queue:
            self.queue.pop(0)()

    def mem_get_info(self):
        return self.free, 2 * 10**9

    def pagelocked_empty(self, shape, dtype):
        empty = np.empty(shape, dtype)
        empty.view(np.uint8)[...] = 255
        return empty

    def mem_alloc(self, size):
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = np.full(size, 255, np.uint8)  # NaN, as floats
        self.free -= size
        return address

    def memcpy_htod_async(self, device, host, stream):
        self.queue.append(lambda: self.memory[device].__setitem__(slice(None), host.ravel().view(np.uint8)))

    def memcpy_dtoh_async(self, host, device, stream):
        self.queue.append(lambda: host.__setitem__(..., self.memory[device].view(host.dtype).reshape(host.shape)))


class FakeCudart(FakeCuda):
    """CUDA's runtime library whose device memory is host memory; `library` has its functions, as ctypes calls them."""

    def __init__(self):
        super().__init__()
        self.made, self.freed = set(), set()
        names = [name for name in vars(FakeCudart) if name.startswith("cuda")]
        self.library = types.SimpleNamespace(**{name: self.function(name) for name in names})

    def function(self, name):
        def called(*arguments):
            return getattr(self, name)(*arguments) or 0

        return called

    def cudaGetErrorString(self, code):
        return b"no CUDA-capable device is detected"

    def cudaGetDeviceCount(self, count):
        count._obj.value = 1

    def cudaSetDevice(self, device):
        assert device.value == 0

    def cudaGetDeviceProperties(self, properties, device):
        properties.value = b"Orin"

    def cudaDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 7}[attribute.value]

    def cudaMemGetInfo(self, free, total):
        free._obj.value, total._obj.value = self.free, 2 * 10**9

    def cudaMalloc(self, pointer, size):
        array = np.full(size.value, 255, np.uint8)
        self.memory[array.ctypes.data] = array
        self.free -= size.value
        self.make(pointer, array.ctypes.data)

    def cudaMallocHost(self, pointer, size):
        array = np.full(size.value, 255, np.uint8)
        self.pinned = [*getattr(self, "pinned", []), array]
        self.make(pointer, array.ctypes.data)

    def make(self, pointer, address):
        pointer._obj.value = address
        self.made.add(address)

    def destroy(self, pointer):
        self.freed.add(pointer.value)

    cudaFree = cudaFreeHost = cudaStreamDestroy = cudaEventDestroy = destroy

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert stream.value == 7 and kind.value in (1, 2)
        self.queue.append(lambda: ctypes.memmove(target.value, source.value, size.value))

    def cudaStreamCreate(self, pointer):
        pointer._obj.value = 7

    def cudaStreamSynchronize(self, stream):
        self.synchronize()

    def cudaEventCreate(self, pointer):
        self.events = getattr(self, "events", 0) + 1
        self.make(pointer, 10**6 + self.events)

    def cudaEventRecord(self, event, stream):
        self.marks = getattr(self, "marks", {})
        FakeEvent.ticks += 0.5
        self.marks[event.value] = FakeEvent.ticks

    def cudaEventElapsedTime(self, elapsed, start, end):
        elapsed._obj.value = self.marks[end.value] - self.marks[start.value]


def fake_tensorrt(cuda, weights, input_type="float32", output_type="float32"):
    """A tensorrt module; an engine file that does not begin with b'engine' was 'built elsewhere'."""
    shapes = {"rgb": (1, 3, HEIGHT, WIDTH), "depth": (1, 1, HEIGHT, WIDTH), "seg": (1, CLASSES, HEIGHT, WIDTH)}
    if input_type == "uint8":
        shapes["rgb"] = (1, HEIGHT, WIDTH, 3)

    class Context:
        def __init__(self):
            self.addresses = {}

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def execute_async_v3(self, stream):
            assert stream == 7
            cuda.queue.append(self.compute)
            return True

        def compute(self):
            rgb = cuda.memory[self.addresses["rgb"]].view(input_type).reshape(shapes["rgb"])
            if input_type == "uint8":
                rgb = rgb.transpose(0, 3, 1, 2).astype(np.float32) / 255
            for name, value in zip(("depth", "seg"), answer(rgb, weights), strict=True):
                cuda.memory[self.addresses[name]][:] = value.astype(np.float32).ravel().view(np.uint8)

    class ICudaEngine:
        num_io_tensors = len(shapes)
        get_tensor_name = staticmethod(lambda index: list(shapes)[index])
        get_tensor_shape = staticmethod(lambda name: list(shapes[name]))
        get_tensor_dtype = staticmethod(lambda name: input_type if name == "rgb" else output_type)
        create_execution_context = staticmethod(Context)

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, content):
            return ICudaEngine() if content.startswith(b"engine") else None

    module = types.ModuleType("tensorrt")
    module.__version__, module.Runtime, module.ICudaEngine = "8.5.2", Runtime, ICudaEngine
    module.float32, module.uint8 = "float32", "uint8"
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    return module


@pytest.fixture(params=["pycuda", "ctypes"])
def on_a_jetson(request, monkeypatch, weights):
    """A Jetson with pycuda, and one with CUDA's runtime library alone."""
    cuda = FakeCuda() if request.param == "pycuda" else FakeCudart()
    package, autoinit = types.ModuleType("pycuda"), types.ModuleType("pycuda.autoinit")
    autoinit.device = types.SimpleNamespace(name=lambda: "Orin", compute_capability=lambda: (8, 7))
    package.driver, package.autoinit = cuda, autoinit
    modules = {"pycuda": package, "pycuda.driver": cuda, "pycuda.autoinit": autoinit}
    if request.param == "ctypes":
        modules = dict.fromkeys(modules)
        monkeypatch.setattr(benchmark_jetson, "load_cudart", lambda: cuda.library)
    for name, module in (modules | {"tensorrt": fake_tensorrt(cuda, weights)}).items():
        monkeypatch.setitem(sys.modules, name, module)
    return cuda


def test_every_name_of_cudas_runtime_library_exists_in_nvidias():
    """PyTorch's CUDA packages bring the library; without a device its calls return an error code, which is one line."""
    try:
        library = benchmark_jetson.load_cudart()
    except benchmark_jetson.BenchmarkError as error:
        pytest.skip(str(error))
    used = set(re.findall(r"cuda[A-Z]\w+", SCRIPT.read_text(encoding="utf-8"))) - {"cudaDevAttrComputeCapabilityMajor"}
    used = {name for name in used if not name.startswith("cudaDeviceProp")}
    assert len(used) > 15 and not [name for name in used if not hasattr(library, name)]
    if not torch.cuda.is_available():
        with pytest.raises(benchmark_jetson.BenchmarkError, match=r"cudaGetDeviceCount failed: .* \(CUDA error \d+\)"):
            benchmark_jetson.Cudart(library)


def test_memory_of_the_runtime_library_is_freed():
    cuda = FakeCudart()
    cudart = benchmark_jetson.Cudart(cuda.library)
    array = cudart.pagelocked_empty((2, 3), np.float32)
    view, device, stream, event = array[1:], cudart.mem_alloc(24), cudart.Stream(), cudart.Event()
    assert array.shape == (2, 3) and int(device) in cuda.made
    del array, device, event
    assert len(cuda.freed) == 2, "a view keeps the array's memory"
    del view, stream
    assert cuda.freed == cuda.made | {7}
    cuda.library.cudaMemGetInfo = lambda *arguments: 100
    with pytest.raises(benchmark_jetson.BenchmarkError, match="cudaMemGetInfo failed: no CUDA-capable device is det"):
        cudart.mem_get_info()


def test_tensorrt_without_a_usable_gpu_is_no_table_of_the_cpu(engine_dir, monkeypatch, capsys, weights):
    without(monkeypatch, "pycuda")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(FakeCuda(), weights))
    monkeypatch.setattr(benchmark_jetson, "CUDART", ("libabsent.so",))
    wrong(monkeypatch, capsys, engine_dir, "CUDA's runtime library is not", "nvidia-jetpack")
    assert not (engine_dir / "table_3.json").exists()


def test_tensorrt_engine(engine_dir, on_a_jetson, monkeypatch, capsys):
    without(monkeypatch, "onnxruntime")
    (engine_dir / "student_fp16.engine").write_bytes(b"engine")
    code, out, err = run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 3)
    assert code == 0, err
    assert "TensorRT 8.5.2" in out.splitlines()[0] and "Orin" in out.splitlines()[0] and "NOT TensorRT" not in out
    (row,) = json.loads((engine_dir / "table_3.json").read_text())["rows"]
    assert row["precision"] == "fp16"
    assert row["h2d_ms"] == row["compute_ms"] == row["d2h_ms"] == 0.5
    assert row["gpu_mib"] == 4 * HEIGHT * WIDTH * (3 + 1 + CLASSES) / 2**20
    tensorrt_scores = {name: row[name] for name in ("rmse", "abs_rel", "delta1", "miou")}

    monkeypatch.undo()  # ONNX Runtime is back, TensorRT is gone
    without(monkeypatch, "tensorrt", "pycuda")
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0
    (row,) = json.loads((engine_dir / "table_3.json").read_text())["rows"]
    assert {name: row[name] for name in tensorrt_scores} == pytest.approx(tensorrt_scores, rel=1e-5)


TEGRASTATS = """#!/bin/sh
while true; do
    echo "RAM 3254/7620MB CPU [2%@729] GR3D_FREQ 62%@[612] cpu@48.3C gpu@47.5C VDD_IN 5043mW/5001mW VDD_SOC 9mW/9mW"
    sleep 0.02
done
"""


def test_board_power_temperature_and_clock(engine_dir, on_a_jetson, monkeypatch, capsys, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    nvpmodel = "#!/bin/sh\necho 'NV Power Mode: 15W'\necho 2\n"
    for name, script in {"tegrastats": TEGRASTATS, "nvpmodel": nvpmodel}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    (engine_dir / "student_fp16.engine").write_bytes(b"engine")

    def wait(self):
        time.sleep(0.05)
        on_a_jetson.synchronize()

    monkeypatch.setattr(benchmark_jetson.TensorRTStudent, "wait", wait)
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 5)[0] == 0
    table = json.loads((engine_dir / "table_3.json").read_text())
    (row,) = table["rows"]
    assert (row["power_w"], row["gpu_celsius"], row["gpu_mhz"]) == pytest.approx((5.043, 47.5, 612))
    assert table["board"]["power mode"] == "NV Power Mode: 15W 2"


RAILS = {  # lines as tegrastats prints them on each board, and what the board draws
    "Nano": ("GR3D_FREQ 0%@76 PLL@21C CPU@25C PMIC@100C GPU@23.5C POM_5V_IN 2545/2547 POM_5V_GPU 0/0", 2.545),
    "Orin NX": ("RAM 3254/7620MB GR3D_FREQ 62%@[612] gpu@47.5C VDD_IN 5043mW/5001mW VDD_SOC 9mW/9mW", 5.043),
    "AGX Xavier": (
        "RAM 1903/15692MB (lfb 3251x4MB) CPU [1%@1190,1%@1190] EMC_FREQ 0% GR3D_FREQ 0% GPU@32C PMIC@100C "
        "GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889",
        3.113,
    ),
    "AGX Orin": (
        "EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CPU@77.281C GPU@69.125C "
        "VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW",
        22.430,
    ),
    "AGX Thor": (
        "GR3D_FREQ @[1385,1386,1385] gpu@48.5C "
        "VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 6510mW/6510mW VIN_SYS_5V0 6520mW/6520mW VIN 23100mW/23050mW",
        23.1,
    ),
}


@pytest.mark.parametrize("board", RAILS)
def test_power_of_every_generation(board):
    line, watts = RAILS[board]
    power, rails = benchmark_jetson.read_power(f"{line}\n" * 3)
    assert power == pytest.approx(watts) and rails
    power, _ = benchmark_jetson.read_power(f"{line}\nRAM 1/2MB\n")  # a line cut short
    assert power == pytest.approx(watts)


def test_temperature_and_clock_of_every_generation():
    readings = {}
    for board, (line, _) in RAILS.items():
        found = benchmark_jetson.sensor_readings(f"{line}\n" * 2)
        readings[board] = (found["gpu_celsius"], found["gpu_mhz"])
    assert readings == {
        "Nano": (23.5, 76), "Orin NX": (47.5, 612), "AGX Xavier": (32, None), "AGX Orin": (69.125, 407),
        "AGX Thor": (48.5, 1385),
    }  # fmt: skip
    assert set(benchmark_jetson.sensor_readings("RAM 1903/15692MB SWAP 0/7846MB (cached 0MB)\n").values()) == {None}


class Lane:
    """A student whose inferences take a second each, two of them beside one another."""

    now, running = 0.0, 0

    def __init__(self):
        self.ends = None

    def sibling(self):
        return Lane()

    def prepare(self, image):
        Lane.now += 100

    def start(self):
        assert self.ends is None, "one inference was started before the last had ended"
        self.ends = Lane.now + 1

    def wait(self):
        Lane.now, self.ends = max(Lane.now, self.ends or 0), None


def test_throughput_in_streams():
    assert benchmark_jetson.STREAMS == 2
    assert benchmark_jetson.throughput(Lane(), ["image"], 10, lambda: Lane.now) == pytest.approx(2)


def test_engine_of_another_gpu(engine_dir, on_a_jetson, monkeypatch, capsys):
    (engine_dir / "student_fp32.engine").write_bytes(b"from an L40S")
    wrong(monkeypatch, capsys, engine_dir, "different kind of GPU", "build it here")


def test_graphs_but_no_engine_on_a_jetson(engine_dir, on_a_jetson, monkeypatch, capsys):
    wrong(monkeypatch, capsys, engine_dir, "student_fp32.onnx", "--build")


def described(engine_dir, **engine):
    """Give student.json its entry of the graph, and of the engine if there is one; returns the entry."""
    path = engine_dir / "student.json"
    graph, built = engine_dir / "student_fp32.onnx", engine_dir / "student_fp32.engine"
    entry = {"precision": "fp32", "int8": False, "float32_layers": None}
    entry["onnx"] = {"file": graph.name, "sha256": hashlib.sha256(graph.read_bytes()).hexdigest()}
    digest = hashlib.sha256(built.read_bytes()).hexdigest() if built.is_file() else None
    entry["engine"] = {"file": built.name, "sha256": digest, **engine} if digest else None
    path.write_text(json.dumps({**json.loads(path.read_text()), "precisions": [entry]}))
    return entry


def test_engine_that_is_noted_for_another_gpu_or_version(engine_dir, on_a_jetson, monkeypatch, capsys):
    (engine_dir / "student_fp32.engine").write_bytes(b"engine")
    here = {"tensorrt": "8.5.2", "gpu": "Orin", "compute_capability": "8.7"}
    for other in ({"tensorrt": "10.3.0"}, {"gpu": "NVIDIA L40S", "compute_capability": "8.9"}):
        described(engine_dir, **{**here, **other})
        wrong(monkeypatch, capsys, engine_dir, *other.values(), "--build")
    described(engine_dir, **here)
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0


def test_graph_of_another_student(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    described(engine_dir)
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0
    path = engine_dir / "student_fp32.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    wrong(monkeypatch, capsys, engine_dir, "is not what student.json describes")
    outside = {"onnx": {"file": "../x", "sha256": ""}, "engine": None}
    description = json.loads((engine_dir / "student.json").read_text())
    (engine_dir / "student.json").write_text(json.dumps({**description, "precisions": [outside]}))
    wrong(monkeypatch, capsys, engine_dir, "is not what export_trt.py writes")


def test_engine_of_an_earlier_export(engine_dir, on_a_jetson, monkeypatch, capsys):
    """A new export is copied over the robot's folder: the engine that was built there belongs to the old one.

    Whether a file is older than another says nothing: a copy may have any time.
    """
    engine = engine_dir / "student_fp32.engine"
    engine.write_bytes(b"engine")
    described(engine_dir)
    for time_of_engine in (0, 2**31):
        os.utime(engine, (time_of_engine, time_of_engine))
        assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0
    description = json.loads((engine_dir / "student.json").read_text())
    description["precisions"][0]["engine"] = None
    (engine_dir / "student.json").write_text(json.dumps(description))
    wrong(monkeypatch, capsys, engine_dir, "is not what student.json describes", "--build")


def test_engine_that_nothing_describes_is_said_to_be_unknown(engine_dir, on_a_jetson, monkeypatch, capsys):
    (engine_dir / "student_fp32.engine").write_bytes(b"engine")
    code, out, _ = run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)
    assert code == 0 and "**nothing in the folder says which graph student_fp32.engine was built from" in out


def test_graph_of_another_shape(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    for shape in ([3, 240, 320], [1, 1, 240, 320], [2, 3, 240, 320], [1, 3, "height", "width"], [1, 240, 320, 3]):
        graph = helper.make_graph(
            [
                helper.make_node("Identity", ["rgb"], ["depth"]),
                helper.make_node("Identity", ["rgb"], ["seg"]),
            ],
            "graph",
            [helper.make_tensor_value_info("rgb", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("depth", "seg")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, engine_dir / "student_fp32.onnx")
        wrong(monkeypatch, capsys, engine_dir, "not [1,3,H,W]", "export it with export_trt.py")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal(engine_dir, number):
    """One line, exit code 75, no table."""
    command = [sys.executable, str(SCRIPT), "--engine-dir", str(engine_dir), "--iterations", "10000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "measuring student_fp32.onnx\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert err.strip().splitlines()[-1].endswith("stopped by a signal; no table was written")
    assert not (engine_dir / "table_3.json").exists()


def test_build_on_the_robot(engine_dir, on_a_jetson, monkeypatch, capsys):
    described(engine_dir)
    monkeypatch.setattr(benchmark_jetson, "build_engine", lambda trt, graph, entry, cache: b"engine of " + graph[:4])
    code, out, err = run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1, "--build")
    assert code == 0 and "Table III" in out, err
    (entry,) = json.loads((engine_dir / "student.json").read_text())["precisions"]
    digest = hashlib.sha256((engine_dir / "student_fp32.engine").read_bytes()).hexdigest()
    assert entry["engine"]["sha256"] == digest
    assert {name: entry["engine"][name] for name in ("tensorrt", "gpu", "compute_capability")} == {
        "tensorrt": "8.5.2", "gpu": "Orin", "compute_capability": "8.7",
    }  # fmt: skip


def test_build_without_tensorrt(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda")
    wrong(monkeypatch, capsys, engine_dir, "--build takes TensorRT", flags=["--build"])


class FakeBuilder:
    """Notes what build_engine() asks of TensorRT; offers the given members of NetworkDefinitionCreationFlag."""

    def __init__(self, usable_gpu=True, layers=(), **flags):
        self.calls, self.__version__, self.float32 = [], "0.0", "float32"
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(**flags)
        names = ("TF32", "FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS")
        self.BuilderFlag = types.SimpleNamespace(**{name: name for name in names})
        self.MemoryPoolType = types.SimpleNamespace(WORKSPACE="WORKSPACE")
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None})
        self.usable_gpu = usable_gpu
        self.layers = [Layer(name) for name in layers]

    def Builder(self, logger):
        if not self.usable_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self

    def create_network(self, flag):
        self.calls.append(("network", flag))
        return types.SimpleNamespace(num_layers=len(self.layers), get_layer=self.layers.__getitem__)

    def create_builder_config(self):
        cache = types.SimpleNamespace(serialize=lambda: b"timings")
        return types.SimpleNamespace(
            clear_flag=lambda flag: self.calls.append(("clear", flag)),
            set_flag=lambda flag: self.calls.append(("set", flag)),
            set_memory_pool_limit=lambda pool, size: self.calls.append((pool, size)),
            create_timing_cache=lambda content: self.calls.append(("cache", content)) or cache,
            set_timing_cache=lambda cache, ignore_mismatch: True,
        )

    def build_serialized_network(self, network, config):
        return b"engine"

    def OnnxParser(self, network, logger):
        return types.SimpleNamespace(
            parse=lambda graph: graph == b"graph", num_errors=1, get_error=lambda index: "node 3 is unknown"
        )


class Layer:
    """A layer of TensorRT's network with one output, which notes what types it is given."""

    num_outputs, precision = 1, None

    def __init__(self, name: str):
        self.name, self.types = name, {}

    def set_output_type(self, index, dtype):
        self.types[index] = dtype


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"EXPLICIT_BATCH": 0}, 1),  # 8.5, 8.6
        ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 2),  # 10
        ({"STRONGLY_TYPED": 0}, 1),  # 11
    ],
)
def test_builder_of_each_generation(flags, expected, tmp_path):
    entry = {"int8": True, "float32_layers": ["attention", "exponential"]}
    for content in (b"", b"timings"):
        builder = FakeBuilder(layers=("convolution", "attention"), **flags)
        assert benchmark_jetson.build_engine(builder, b"graph", entry, tmp_path / "timing.cache") == b"engine"
        asked = [("set", name) for name in ("FP16", "OBEY_PRECISION_CONSTRAINTS", "INT8")]
        limits = [("WORKSPACE", 2**30), ("cache", content)]
        typed = "STRONGLY_TYPED" in flags
        assert builder.calls == [("network", expected), ("clear", "TF32"), *limits, *([] if typed else asked)]
        convolution, attention = builder.layers
        assert convolution.precision is None
        assert (attention.precision, attention.types) == ((None, {}) if typed else ("float32", {0: "float32"}))


def test_float32_graph_is_built_in_float32(tmp_path):
    builder = FakeBuilder(layers=("convolution",), EXPLICIT_BATCH=0)
    entry = {"int8": False, "float32_layers": None}
    benchmark_jetson.build_engine(builder, b"graph", entry, tmp_path / "timing.cache")
    assert not [call for call in builder.calls if call[0] == "set"]


def test_tensorrt_that_can_not(tmp_path):
    for builder, graph, needle in (
        (FakeBuilder(usable_gpu=False, STRONGLY_TYPED=0), b"graph", "no usable GPU"),
        (FakeBuilder(STRONGLY_TYPED=0), b"no graph", "node 3 is unknown"),
    ):
        with pytest.raises(benchmark_jetson.BenchmarkError, match=needle):
            benchmark_jetson.build_engine(builder, graph, {}, tmp_path / "timing.cache")


def test_engine_with_other_types(engine_dir, on_a_jetson, monkeypatch, capsys, weights):
    (engine_dir / "student_fp16.engine").write_bytes(b"engine")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(on_a_jetson, weights, output_type="float16"))
    wrong(monkeypatch, capsys, engine_dir, "depth is not float32")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(on_a_jetson, weights, input_type="float16"))
    wrong(monkeypatch, capsys, engine_dir, "rgb is not float32 or uint8")


def test_engine_that_takes_the_cameras_frames(engine_dir, on_a_jetson, monkeypatch, capsys, weights):
    (engine_dir / "student_fp16.engine").write_bytes(b"engine")
    rows = []
    for input_type in ("float32", "uint8"):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(on_a_jetson, weights, input_type))
        assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 1)[0] == 0
        rows += json.loads((engine_dir / "table_3.json").read_text())["rows"]
    for name in ("rmse", "abs_rel", "delta1", "miou"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-6)
    assert rows[0]["gpu_mib"] - rows[1]["gpu_mib"] == pytest.approx(3 * 3 * HEIGHT * WIDTH / 2**20)


def test_real_bindings_have_what_is_called():
    """TensorRT for RTX has TensorRT's classes."""
    used = {
        trt.ICudaEngine: ("num_io_tensors", "get_tensor_name", "get_tensor_shape", "get_tensor_dtype",
                          "create_execution_context"),
        trt.IExecutionContext: ("set_tensor_address", "execute_async_v3"),
        trt.Runtime: ("deserialize_cuda_engine",),
        trt: ("float32", "uint8", "Logger", "__version__"),
    }  # fmt: skip
    assert [name for owner, names in used.items() for name in names if not hasattr(owner, name)] == []


@pytest.mark.parametrize(("version", "typed"), [("8.6.1", False), ("10.3.0", True), ("11.4.0.106", True)])
def test_each_generation_has_the_names_that_are_used(version, typed):
    """As collect_tensorrt_names.py found them in the binaries of the Python packages."""
    has = set(json.loads(NAMES.read_text())[version])
    others, weakly = other_names(), weakly_typed_names()
    assert len(others) > 30 and len(weakly) > 8
    missing = (others | ({"STRONGLY_TYPED"} if typed else weakly)) - has
    assert not missing, "if the script has come to use them: run collect_tensorrt_names.py"
    assert ("STRONGLY_TYPED" in has) == typed
    if version.startswith("11"):
        assert not {"EXPLICIT_BATCH", "OBEY_PRECISION_CONSTRAINTS"} & has


def test_missing_values_are_dashes():
    table = {
        "title": "Table III", "notice": None, "min_inferences": 1, "min_seconds": 0, "warmup_seconds": 0,
        "shared_memory": True,
        "frames": 0, "evaluated_depth_range": None,
        "board": {},
        "rows": [{"precision": "int8", "runtime": "x", "rmse": None, "fps": 12.345}],
    }  # fmt: skip
    heading, _, line = (line for line in as_markdown(table).splitlines() if line.startswith("|"))
    cells = dict(zip(*([cell.strip() for cell in text.split("|")] for text in (heading, line)), strict=True))
    assert cells["FPS"] == "12.3" and cells["RMSE m"] == "-"
    assert as_csv(table).splitlines()[1].startswith("int8,x,")


def test_what_has_changed_since_an_earlier_table(engine_dir, monkeypatch, capsys, tmp_path):
    without(monkeypatch, "tensorrt", "pycuda")
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 2)[0] == 0
    table = json.loads((engine_dir / "table_3.json").read_text())
    (row,) = table["rows"]
    row["rmse"], row["miou"], table["title"] = 2 * row["rmse"], None, "Table III of last week"
    (tmp_path / "old.json").write_text(json.dumps(table))
    flags = ("--engine-dir", engine_dir, "--iterations", 2, "--compare", tmp_path / "old.json")
    code, out, _ = run(monkeypatch, capsys, *flags)
    assert code == 0 and "Since Table III of last week" in out and out.count("(-50.0 %)") == 1
    assert "Since" in (engine_dir / "table_3.md").read_text()
    for broken in ("", "[]", '{"rows": []}', '{"title": "x", "rows": [{"precision": {}}]}', '{"title": 3, "rows": []}'):
        (tmp_path / "old.json").write_text(broken)
        code, out, err = run(monkeypatch, capsys, *flags)
        assert code == 2 and len(err.splitlines()) == 1 and "not a table_3.json" in err, broken


def test_without_matplotlib_there_is_no_histogram(engine_dir, monkeypatch, capsys):
    without(monkeypatch, "tensorrt", "pycuda", "matplotlib")
    assert run(monkeypatch, capsys, "--engine-dir", engine_dir, "--iterations", 2)[0] == 0
    assert not (engine_dir / "latency.png").exists()
