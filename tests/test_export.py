"""From a checkpoint to the engines folder: graphs and their precisions, camera, held-out frames, engines."""

import hashlib
import json
import shutil
import sys
import types
from dataclasses import asdict, replace

import cli

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx as trt
import torch
from timm.models.efficientvit_mit import LiteMLA

import export_trt
from benchmark_jetson import BenchmarkError, parse_graph
from config import CLASS_NAMES, NYU_INTRINSICS, Intrinsics, Recipe
from dataset.files import read_json, write_json, write_npy, write_png
from dataset.identity import content_sample
from dataset.manifest import Row, read_manifest, write_manifest
from deployment import engine, validation
from deployment.agreement import TOLERANCES, compare, degradation, onnx_runtime_fn, pytorch_fn, score, within_tolerance
from deployment.engine import layer_precisions
from deployment.graph import (
    MAX_FP16_VALUE,
    ExportedStudent,
    check_graph,
    export_graph,
    extreme_images,
    fp16_ranges,
    to_half,
)
from deployment.images import calibration_images, random_images
from deployment.int8 import Quantiser
from evaluation.held_out import evaluation_frames, find_test_rows, write_evaluation_frames
from evaluation.pixels import eigen_crop
from trainer.checkpoint import build_student, load_student, save_checkpoint

CAMERA = NYU_INTRINSICS.resized(320, 240)
WIDTH, HEIGHT = 320, 240


def write_checkpoint(path, **metadata):
    """Write a checkpoint like train.py's, with random weights."""
    torch.manual_seed(0)
    student = build_student(Recipe())
    for module in student.modules():  # so that a graph without batch norm would be wrong
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    content = {
        "model": {},
        "ema": student.state_dict(),
        "optimizer": {},
        "schedule": {},
        "step": 12,
        "notes": {
            "camera": vars(CAMERA),
            "teachers": [{"da3_depth": {"backend": "da3"}}],
            "train_stems": ["000000"],
            "encoder_start": "imagenet",
            "git_revision": "abc1234",
        }
        | metadata,
    }
    save_checkpoint(path, Recipe(), content)
    return path


def write_frames(root, stems, camera=NYU_INTRINSICS, split="test", train_stems=()):
    """Write a data folder of frames of camera.width x camera.height pixels; returns the manifest's path."""
    generator = np.random.default_rng(0)
    rows = []
    for stem in (*stems, *train_stems):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        rgb = cv2.resize(small, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)
        depth = np.full(rgb.shape[:2], 2.5, np.float32)
        confidence = np.ones_like(depth)
        confidence[:, : camera.width // 2] = 0.3  # low confidence on the left half
        labels = np.full(rgb.shape[:2], 3, np.uint8)
        write_png(root / "rgb" / f"{stem}.png", rgb)
        for name, array in (("depth", depth), ("confidence", confidence), ("labels", labels)):
            write_npy(root / name / f"{stem}.npy", array)
        paths = {name: root / name / f"{stem}.npy" for name in ("depth", "confidence", "labels")}
        rows.append(Row(stem, root / "rgb" / f"{stem}.png", **paths, split=split, intrinsics=camera))
    for row in rows[len(stems) :]:
        row.split = "train"
    write_manifest(root / "manifest.jsonl", rows)
    return root / "manifest.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.pt")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_frames(folder, ["000000", "000001", "00/000002"], train_stems=["a", "b", "c"])


@pytest.fixture(scope="module")
def model(checkpoint):
    return ExportedStudent(load_student(checkpoint)[0], 1.0)


@pytest.fixture(scope="module")
def graph(model):
    return export_graph(model, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def half_graph(model):
    return export_graph(to_half(model), HEIGHT, WIDTH)


@pytest.fixture
def empty_environment(tmp_path, monkeypatch):
    """Change to an empty folder, without environment variables that point to data."""
    for variable in ("SCRATCH", "DATA_ROOT", "ENGINE_DIR", "USE_CORRIDOR_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def export(empty_environment, monkeypatch, capsys):
    """A function that runs the script and returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_trt.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run(export_trt.main)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def prebuilt_graphs(monkeypatch, graph, half_graph):
    """Make main() reuse graphs instead of exporting for seconds, and skip int8."""
    monkeypatch.setattr(validation, "export_graph", lambda model, *size: half_graph if is_half(model) else graph)
    monkeypatch.setattr(export_trt, "calibration_images", lambda *arguments: None)


def is_half(model):
    return next(model.parameters()).dtype == torch.float16


# --------------------------------------------------------------------------------------------------- the whole script


def test_engines_folder(export, checkpoint, manifest, empty_environment):
    code, out, err = export("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt")
    assert code == 0, out + err
    assert "opset 17" in out and "2 test frames" in out and "skipped 1" in out
    folder = empty_environment / "engines"
    graphs = {"student_fp32.onnx", "student_fp16.onnx", "student_int8.onnx"}
    assert {path.name for path in folder.iterdir()} == {*graphs, "eval_frames.npz", "student.json"}

    description = json.loads((folder / "student.json").read_text())
    assert {entry["onnx"]["file"] for entry in description["precisions"]} == graphs
    for entry in description["precisions"]:
        path = folder / entry["onnx"]["file"]
        assert onnx.load(path).opset_import[0].version == 17
        assert entry["onnx"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and entry["engine"] is None
        assert entry["scores"]["rmse"] > 0
    fp32, half, int8 = description["precisions"]
    assert fp32["errors"]["max_depth_error_mm"] < 1 and fp32["errors"]["class_agreement"] >= 0.999
    assert set(fp32["degradation"].values()) == {0}
    assert 1e-6 < half["errors"]["mean_relative_depth_error"] < 5e-3, "there is no fp16"
    assert 0 < max(half["largest_values"].values()) <= MAX_FP16_VALUE
    assert 1e-6 < int8["errors"]["mean_relative_depth_error"] < 5e-2, "there is no int8, or only int8"
    assert int8["errors"] != half["errors"]
    assert int8["calibration_frames"] == 3 and int8["left_in_half"] == []
    assert int8["onnx"]["bytes"] < 0.75 * half["onnx"]["bytes"]
    assert description["checkpoint"]["file"] == "best.pt"
    assert description["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert description["checkpoint"]["teachers"] == [{"da3_depth": {"backend": "da3"}}]
    assert description["checkpoint"]["encoder_start"] == "imagenet"
    assert description["camera"]["focal"] == pytest.approx(CAMERA.focal)
    assert description["class_names"] == list(CLASS_NAMES)
    assert str(checkpoint.parent) not in json.dumps(description)


def test_graph_equals_the_student(graph, model):
    rgb = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    depth, seg = session.run(["depth", "seg"], {"rgb": rgb.numpy()})
    with torch.inference_mode():
        expected_depth, expected_seg = model.student(rgb)
    assert depth.shape == (1, 1, HEIGHT, WIDTH) and seg.shape == (1, 6, HEIGHT, WIDTH)
    assert depth == pytest.approx(expected_depth.numpy(), abs=1e-4)
    assert seg == pytest.approx(expected_seg.numpy(), abs=1e-3)


def test_camera_outside_the_output_range_is_rejected():
    """An old checkpoint's maximum of 20 m at the reference focal length is 8 m at 0.4 times the focal length."""
    recipe = replace(Recipe(), output_range=(0.05, 20.0))
    for covered in (0.5, 1.0, 2.0):
        export_trt.check_depth_range(CAMERA.with_focal_scale(covered), recipe)
    for uncovered, words in ((0.4, "0.02 to 8.0 m"), (2.1, "0.11 to 42.0 m")):
        with pytest.raises(cli.UserError, match=words):
            export_trt.check_depth_range(CAMERA.with_focal_scale(uncovered), recipe)
        export_trt.check_depth_range(CAMERA.with_focal_scale(uncovered), Recipe())


def test_camera_flag_scales_depth(export, checkpoint, manifest, empty_environment):
    """With twice the resolution and three times the focal length in pixels, depth is 1.5 times as far."""
    camera = Intrinsics(3 * CAMERA.fx, 3 * CAMERA.fy, 320, 240, 640, 480)
    write_json(empty_environment / "camera.json", asdict(camera))
    arguments = ("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt")
    assert export(*arguments, "--camera", "camera.json")[0] == 0
    session = onnxruntime.InferenceSession("engines/student_fp32.onnx", providers=["CPUExecutionProvider"])
    rgb = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        expected = 1.5 * load_student(checkpoint)[0](rgb)[0]
    assert session.run(["depth"], {"rgb": rgb.numpy()})[0] == pytest.approx(expected.numpy(), rel=1e-4)
    assert read_json("engines/student.json")["camera"]["focal"] == pytest.approx(1.5 * CAMERA.focal)


def test_graph_with_uint8_input(model):
    """The outputs for uint8 [1,H,W,3] equal those for float32."""
    uint8_model = ExportedStudent(model.student, 1.0, uint8_input=True)
    exported = export_graph(uint8_model, HEIGHT, WIDTH)
    check_graph(exported, HEIGHT, WIDTH, uint8_input=True)
    with pytest.raises(RuntimeError, match="exporter wrote inputs"):
        check_graph(exported, HEIGHT, WIDTH)
    images = random_images(HEIGHT, WIDTH)[:2]
    infer = onnx_runtime_fn(exported.SerializeToString())
    for expected in (pytorch_fn(model), pytorch_fn(uint8_model)):
        errors = compare(infer, expected, images)
        assert errors["max_depth_error_mm"] < 0.1 and errors["class_agreement"] > 0.9999


def test_uint8_flag(export, checkpoint, manifest, empty_environment):
    assert export("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt", "--uint8-input")[0] == 0
    for precision in ("fp32", "fp16", "int8"):
        (value,) = onnx.load(empty_environment / "engines" / f"student_{precision}.onnx").graph.input
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    described = read_json("engines/student.json")["input"]
    assert described["shape"] == [1, HEIGHT, WIDTH, 3] and described["dtype"] == "uint8"


def test_export_without_a_camera_is_rejected(export, tmp_path, manifest):
    path = write_checkpoint(tmp_path / "mixed.pt", camera=None)
    code, out, err = export("--checkpoint", path, "--manifest", manifest, "--skip-trt")
    assert code == 2 and len(err.splitlines()) == 1 and "--camera camera.json" in err
    assert not (tmp_path / "engines").exists()


def test_camera_file_with_several_cameras_is_rejected(export, checkpoint, empty_environment):
    cameras = {"a": asdict(CAMERA), "b": asdict(CAMERA)}
    write_json(empty_environment / "same.json", cameras)
    write_json(empty_environment / "two.json", cameras | {"b": asdict(replace(CAMERA, fx=300.0))})
    assert export_trt.target_camera(empty_environment / "same.json", None, Recipe()).fx == pytest.approx(CAMERA.fx)
    code, _, err = export("--checkpoint", checkpoint, "--skip-trt", "--camera", "two.json")
    assert code == 2 and len(err.splitlines()) == 1 and "2 cameras" in err


def test_missing_tensorrt_still_exports_onnx(
    export, checkpoint, manifest, prebuilt_graphs, empty_environment, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    stale = empty_environment / "engines" / "student_fp32.engine"
    stale.parent.mkdir()
    stale.write_bytes(b"built from last week's checkpoint")
    code, out, err = export("--checkpoint", checkpoint, "--manifest", manifest)
    assert code == 2 and len(err.splitlines()) == 1 and "--skip-trt" in err
    assert (stale.parent / "student_fp32.onnx").is_file() and (stale.parent / "student.json").is_file()
    assert not stale.exists()


def test_export_without_data_has_no_scores_and_no_int8(export, checkpoint, prebuilt_graphs, empty_environment):
    folder = empty_environment / "engines"
    stale = [folder / name for name in ("eval_frames.npz", "student_int8.onnx", "student_int8.engine")]
    folder.mkdir()
    for path in stale:
        path.write_bytes(b"of another export")
    code, out, _ = export("--checkpoint", checkpoint, "--skip-trt")
    assert code == 0 and "NO HELD-OUT FRAMES" in out and "random images" in out
    assert not any(path.exists() for path in stale)
    description = json.loads((empty_environment / "engines" / "student.json").read_text())
    assert description["evaluation"] is None
    assert description["compared_on"] == "random images" and description["precisions"][0]["scores"] is None


def test_export_fails_for_another_students_graph(export, checkpoint, manifest, empty_environment, monkeypatch):
    torch.manual_seed(5)
    other_student = ExportedStudent(build_student(Recipe()), 1.0)
    other_graph = export_graph(other_student, HEIGHT, WIDTH)
    monkeypatch.setattr(validation, "export_graph", lambda *arguments: other_graph)
    code, out, _ = export("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt")
    assert code == 1 and "FAILED" in out
    assert not (empty_environment / "engines").exists()


def test_missing_checkpoint_or_manifest_is_an_error(export, checkpoint):
    for arguments, needle in (
        (("--checkpoint", "none.pt"), "none.pt"),
        (("--checkpoint", checkpoint, "--manifest", "none.jsonl"), "none.jsonl"),
    ):
        code, _, err = export(*arguments, "--skip-trt")
        assert code == 2 and len(err.splitlines()) == 1 and needle in err


# ---------------------------------------------------------------------------------------- comparison with PyTorch


def test_within_tolerance():
    tolerance = TOLERANCES["fp32"]
    good = {"max_depth_error_mm": 1.0, "mean_relative_depth_error": 1e-4, "class_agreement": 0.999}
    assert within_tolerance(good, {"rmse": 1e-3}, tolerance)
    for worse in ({"max_depth_error_mm": 1.01}, {"mean_relative_depth_error": 1.01e-4}, {"class_agreement": 0.9989}):
        assert not within_tolerance(good | worse, {}, tolerance)
    assert not within_tolerance(good | {"max_depth_error_mm": float("nan")}, {}, tolerance)
    assert not within_tolerance(good, {"rmse": -0.1, "miou": 1.1e-3}, tolerance)
    assert within_tolerance(good, {"rmse": 0.029, "miou": 0.1, "miou_points": 0.99}, TOLERANCES["int8"])
    assert not within_tolerance(good, {"rmse": 0.029, "miou": 0.1, "miou_points": 1.01}, TOLERANCES["int8"])
    assert within_tolerance(good | {"max_depth_error_mm": 100.0}, {}, TOLERANCES["fp16"])
    assert not within_tolerance(good | {"mean_relative_depth_error": float("nan")}, {}, TOLERANCES["fp16"])


def test_degradation():
    base = {"rmse": 0.5, "delta1": 0.5, "miou": 0.4}
    worse = degradation({"rmse": 0.51, "delta1": 0.1, "miou": 0.41}, base)
    assert worse == pytest.approx({"rmse": 0.02, "miou": -0.025, "miou_points": -1})
    nothing = float("nan")
    assert degradation({"rmse": 0.5, "delta1": 0.5, "miou": nothing}, base | {"miou": nothing}) == {"rmse": 0}
    assert degradation({"rmse": 0.5, "delta1": 0.5, "miou": 0.0}, base | {"miou": 0.0})["miou"] == 0


def test_compare_reports_millimetres(graph, model):
    images = random_images(HEIGHT, WIDTH)[:1]
    nearer = ExportedStudent(model.student, 0.999)
    with torch.inference_mode():
        depth = model(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255)[0]
    errors = compare(onnx_runtime_fn(graph.SerializeToString()), pytorch_fn(nearer), images)
    assert errors["max_depth_error_mm"] == pytest.approx(depth.max().item(), rel=1e-2)  # 0.1 % of the depth
    assert errors["mean_relative_depth_error"] == pytest.approx(1e-3, rel=1e-2)
    assert errors["class_agreement"] == pytest.approx(1, abs=1e-3)


def test_score_uses_metres_of_each_frames_camera():
    frames = {
        "rgb": np.zeros((2, 4, 6, 3), np.uint8),
        "depth": np.full((2, 4, 6), 3.0, np.float32),
        "labels": np.full((2, 4, 6), 2, np.uint8),
        "focal": np.array([100.0, 150.0], np.float32),
    }
    seg = np.zeros((1, 6, 4, 6), np.float32)
    seg[:, 2] = 1
    scores = score(lambda image: (np.full((1, 1, 4, 6), 2.0, np.float32), seg), frames, 100.0, Recipe())
    assert scores["rmse"] == pytest.approx(0.5**0.5)  # off by 1 m on one frame, exact on the other
    assert scores["delta1"] == pytest.approx(0.5) and scores["miou"] == 1


# ------------------------------------------------------------------------------------------------------ half precision


def test_fp16_graph_keeps_sensitive_nodes_in_float32(half_graph):
    """Convolutions are fp16; attention's matmuls, the normalisation and the exponential of depth are float32."""
    inferred = onnx.shape_inference.infer_shapes(half_graph, strict_mode=True).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}

    def types_of(operator: str) -> set[int]:
        return {types[node.output[0]] for node in inferred.node if node.op_type == operator}

    assert types_of("Conv") == {onnx.TensorProto.FLOAT16}
    assert types_of("MatMul") == types_of("Exp") == {onnx.TensorProto.FLOAT}
    weights = {tensor.data_type for tensor in inferred.initializer if len(tensor.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in weights
    half, whole = half_graph.ByteSize(), sum(weight.numel() for weight in build_student(Recipe()).parameters()) * 4
    assert half < 0.6 * whole


def test_fp16_ranges_are_below_the_bound(half_graph, graph):
    images = extreme_images(HEIGHT, WIDTH)[::4]
    ranges = fp16_ranges(half_graph, images)
    values = list(ranges.values())
    assert values == sorted(values, reverse=True) and 0 < values[0] <= MAX_FP16_VALUE
    assert fp16_ranges(graph, images[:1]) == {}


def test_fp16_attention_exceeds_the_bound(checkpoint, monkeypatch):
    """The reason for the check: attention sums activations that fit fp16 over all positions, and overflows."""

    def in_float16(self, q, k, v):
        out = q @ (k.transpose(-1, -2) @ v)
        return out[..., :-1] / (out[..., -1:] + self.eps)

    student = load_student(checkpoint)[0]
    for block in (module for module in student.modules() if isinstance(module, LiteMLA)):
        weight = block.qkv.conv.weight.data.unflatten(0, (-1, 3, block.dim))
        weight[:, :2] *= 30  # queries and keys; the division cancels the factor, so the output is the same
    images = extreme_images(HEIGHT, WIDTH)[-1:]
    safe = fp16_ranges(export_graph(to_half(ExportedStudent(student, 1.0)), HEIGHT, WIDTH), images)
    monkeypatch.setattr(LiteMLA, "_attn", in_float16)
    overflowing = fp16_ranges(export_graph(to_half(ExportedStudent(student, 1.0)), HEIGHT, WIDTH), images)
    assert next(iter(safe.values())) <= MAX_FP16_VALUE < next(iter(overflowing.values()))


@pytest.mark.parametrize("damage", ["opset", "name", "shape"])
def test_check_graph_rejects_other_contracts(graph, damage):
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    if damage == "opset":
        broken.opset_import[0].version = 18
    elif damage == "name":
        broken.graph.input[0].name = "image"
        for node in broken.graph.node:
            node.input[:] = ["image" if name == "rgb" else name for name in node.input]
    else:
        broken = onnx.compose.add_prefix(broken, "other_")
    with pytest.raises(RuntimeError, match="exporter wrote"):
        check_graph(broken, HEIGHT, WIDTH)


# ----------------------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def quantiser(graph):
    with Quantiser(graph, random_images(HEIGHT, WIDTH), uint8_input=False) as ready:
        yield ready


@pytest.fixture(scope="module")
def int8_graph(quantiser):
    return quantiser.build_graph(quantiser.layers)


OPERATORS = ("MatMul", "HardSwish")


def test_int8_graph_quantises_only_the_chosen_layers(int8_graph, quantiser):
    """Symmetric activations, per-channel weights, no quantised bias, as TensorRT requires; no attention, no heads."""
    check_graph(int8_graph, HEIGHT, WIDTH)
    inferred = onnx.shape_inference.infer_shapes(int8_graph, strict_mode=True).graph
    made_by = {output: node for node in inferred.node for output in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inferred.initializer}
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    quantised = set()
    for node in inferred.node:
        if node.op_type == "DequantizeLinear":
            assert not constants[node.input[2]].any(), "not symmetric"
        if node.op_type == "Conv" and made_by.get(node.input[0]) is not None:
            sources = [made_by[name].op_type if name in made_by else "" for name in node.input[:2]]
            if sources == ["DequantizeLinear"] * 2:  # directly before the convolution
                quantised.add(node.name)
                scales = constants[made_by[node.input[1]].input[1]]
                assert scales.shape == (constants[made_by[node.input[1]].input[0]].shape[0],)
                assert constants[node.input[2]].dtype == np.float32
            else:
                assert types[node.output[0]] == onnx.TensorProto.FLOAT16
    assert quantised == set(quantiser.layers) and len(quantised) > 50
    assert not any("context_module" in name or "/head/" in name for name in quantised)
    others = {
        operator: {types[node.output[0]] for node in inferred.node if node.op_type == operator}
        for operator in OPERATORS
    }
    assert others == {"MatMul": {onnx.TensorProto.FLOAT}, "HardSwish": {onnx.TensorProto.FLOAT16}}
    divisions = [node for node in inferred.node if node.op_type == "Div" and "context_module" in node.name]
    assert {types[node.output[0]] for node in divisions} == {onnx.TensorProto.FLOAT}
    sums = [[made_by[name].op_type for name in node.input] for node in divisions]
    assert all(pair == ["Slice", "Add"] for pair in sums), "a cast separates attention's sums from the division"


def test_inaccurate_int8_layers_stay_in_half_precision(model, quantiser, monkeypatch):
    """The worst layer first, then twice as many each time."""
    bad = quantiser.layers[5:7]
    built = []

    def build_graph(layers):
        built.append(list(layers))
        return "graph"

    validator = types.SimpleNamespace(
        images=np.zeros((1, 2, 2, 3)),
        reference=None,
        validate=lambda precision, graph: {"passed": not set(bad) & set(built[-1])},
    )
    ranking = dict.fromkeys([bad[0], quantiser.layers[0], bad[1], *quantiser.layers[1:5]], 0.1)
    monkeypatch.setattr(validation, "rank_layers", lambda *arguments: ranking)
    graph, entry = validation.choose_int8_layers(
        types.SimpleNamespace(layers=quantiser.layers, build_graph=build_graph), validator
    )
    assert entry["passed"] and entry["left_in_half"] == list(ranking)[:4]
    assert [len(quantiser.layers) - len(layers) for layers in built] == [0, 1, 2, 4]


def test_layers_are_ranked_by_their_own_error(monkeypatch):
    """Depth off by 10 %, by 50 %, exact with half of the classes wrong, and all exact."""
    depth, seg = np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 6, 2, 2), np.float32)
    seg[:, 2] = 1
    other_graph = seg.copy()
    other_graph[..., 0] = seg[:, ::-1, :, 0]
    answers = {"a": (1.1 * depth, seg), "b": (1.5 * depth, seg), "c": (depth, other_graph), "d": (depth, seg)}

    def quantise(layers):
        (layer,) = layers
        return types.SimpleNamespace(SerializeToString=lambda: layer)

    monkeypatch.setattr(validation, "onnx_runtime_fn", lambda layer: lambda image: answers[layer])
    quantiser = types.SimpleNamespace(layers=list(answers), quantise=quantise)
    ranking = validation.rank_layers(quantiser, lambda image: (depth, seg), np.zeros((2, 2, 2, 3), np.uint8))
    assert ranking == pytest.approx({"b": 0.5, "c": 0.5, "a": 0.1, "d": 0}) and list(ranking)[2:] == ["a", "d"]


# ------------------------------------------------------------------------------------------------- held-out frames


def test_evaluation_frames(manifest, tmp_path):
    rows, words = find_test_rows(manifest, {"train_stems": ["000000"]}, limit=32)
    assert [row.stem for row in rows] == ["000001", "00/000002"] and "2 test frames" in words
    write_evaluation_frames(tmp_path / "eval_frames.npz", evaluation_frames(rows, Recipe()))
    with np.load(tmp_path / "eval_frames.npz", allow_pickle=False) as archive:
        frames = dict(archive)
    assert frames["rgb"].shape == (2, HEIGHT, WIDTH, 3) and frames["rgb"].dtype == np.uint8
    assert frames["stems"].tolist() == ["000001", "00/000002"] and frames["stems"].dtype.kind == "U"
    assert frames["focal"] == pytest.approx([CAMERA.focal] * 2) and frames["focal"].dtype == np.float32
    assert frames["labels"].dtype == np.uint8 and (frames["labels"] == 3).all()
    depth = frames["depth"][0]
    assert depth.dtype == np.float32 and set(np.unique(depth)) == {0.0, 2.5}
    assert not depth[:, : WIDTH // 2].any(), "depth of low confidence is not masked"
    rows_scored, columns_scored = eigen_crop(HEIGHT, WIDTH)
    assert depth[rows_scored, WIDTH // 2 : columns_scored.stop].all()
    assert np.count_nonzero(depth) == depth[rows_scored, WIDTH // 2 : columns_scored.stop].size, (
        "depth outside the Eigen crop is not masked"
    )


def test_other_cameras_have_no_eigen_crop(tmp_path):
    camera = Intrinsics(500, 500, 320, 180, 640, 360)  # 16:9: cropped to 480x360, so f becomes 500 * 320 / 480
    manifest = write_frames(tmp_path, ["a"], camera)
    frames = evaluation_frames(read_manifest(manifest), Recipe())
    assert frames["depth"][0, :, WIDTH // 2 :].all()
    assert frames["focal"] == pytest.approx([500 * 320 / 480])


def test_only_the_test_split_is_scored(tmp_path):
    manifest = write_frames(tmp_path, ["a", "b"], split="val")
    with pytest.raises(cli.UserError, match="split 'test'"):
        find_test_rows(manifest, {}, limit=32)


def test_held_out_frames_are_identified_by_content_not_name(tmp_path):
    """All loaders name frames from 000001 on: frames of another folder with the same names are held out."""
    first, second = (write_frames(tmp_path / name, ["000001", "000002"]) for name in ("nyu", "robot"))
    rows = read_manifest(second)
    for number, row in enumerate(rows):
        write_png(row.rgb, np.full((480, 640, 3), 10 * number, np.uint8))
    trained = {"train_stems": ["000001", "000002"]}
    trained["train_images"] = [content_sample(row.rgb) for row in read_manifest(first)]
    assert [row.stem for row in find_test_rows(second, trained, limit=32)[0]] == ["000001", "000002"]
    shutil.copy(read_manifest(first)[0].rgb, rows[1].rgb)  # a training frame under another name
    assert [row.stem for row in find_test_rows(second, trained, limit=32)[0]] == ["000001"]
    with pytest.raises(cli.UserError, match="not trained on"):
        find_test_rows(first, trained, limit=32)


def test_calibration_frames(manifest, tmp_path):
    tested = find_test_rows(manifest, {}, limit=32)[0]
    images = calibration_images(manifest, tested, 2, Recipe())
    assert images.shape == (2, HEIGHT, WIDTH, 3) and images.dtype == np.uint8
    rows = read_manifest(manifest)
    copy = rows[0].rgb.with_name("copy.png")
    shutil.copy(rows[0].rgb, copy)
    rows[-1].rgb = copy  # the same image under another name
    write_manifest(manifest.parent / "leaking.jsonl", rows)
    with pytest.raises(cli.UserError, match="can't be calibrated on test frames, and c is one"):
        calibration_images(manifest.parent / "leaking.jsonl", tested, 500, Recipe())
    with pytest.raises(cli.UserError, match="split 'train'"):
        calibration_images(write_frames(tmp_path, ["a"]), [], 500, Recipe())


# --------------------------------------------------------------------------------------------------------- TensorRT


def test_layer_precisions(graph, half_graph, int8_graph):
    """TensorRT 8.5 and 8.6, whose networks are not strongly typed, need the precision of each layer."""
    assert layer_precisions(graph) == {"int8": False, "float32_layers": None}
    for exported, int8 in ((half_graph, False), (int8_graph, True)):
        precisions = layer_precisions(exported)
        safe = {node.op_type for node in exported.graph.node if node.name in set(precisions["float32_layers"])}
        assert precisions["int8"] == int8 and {"MatMul", "Exp"} <= safe and "Conv" not in safe


def test_engine_is_recorded_in_student_json(
    export, checkpoint, manifest, prebuilt_graphs, empty_environment, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="0.0"))
    monkeypatch.setattr(engine, "build_engine", lambda trt, graph, entry, cache: b"engine of " + graph[:4])
    assert export("--checkpoint", checkpoint, "--manifest", manifest)[0] == 0
    content = (empty_environment / "engines" / "student_fp32.engine").read_bytes()
    recorded = read_json("engines/student.json")["precisions"][0]["engine"]
    assert recorded["sha256"] == hashlib.sha256(content).hexdigest() and recorded["tensorrt"] == "0.0"


def test_tensorrt_failure_is_reported_in_one_line(
    export, checkpoint, manifest, prebuilt_graphs, empty_environment, monkeypatch
):
    def no_gpu(*arguments):
        raise BenchmarkError("TensorRT 0.0 finds no usable GPU")

    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="0.0"))
    monkeypatch.setattr(engine, "build_engine", no_gpu)
    code, _, err = export("--checkpoint", checkpoint, "--manifest", manifest)
    assert code == 2 and len(err.splitlines()) == 1 and "no usable GPU" in err and "--skip-trt" in err


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8", "fp16 of the camera's frames"])
def test_tensorrt_parses_the_graph_and_builds_an_engine(variant, graph, half_graph, int8_graph, model):
    """TensorRT for RTX has TensorRT's parser and builds without a GPU for a given compute capability."""
    exported = {"fp32": graph, "int8": int8_graph}.get(variant, half_graph)
    if variant.endswith("frames"):
        exported = export_graph(to_half(ExportedStudent(model.student, 1.0, uint8_input=True)), HEIGHT, WIDTH)
    builder, network, parser = parse_graph(trt, exported.SerializeToString())
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    assert {output.name: (tuple(output.shape), output.dtype) for output in outputs} == {
        "depth": ((1, 1, HEIGHT, WIDTH), trt.float32),
        "seg": ((1, 6, HEIGHT, WIDTH), trt.float32),
    }
    convolutions = [layer for layer in map(network.get_layer, range(network.num_layers)) if is_convolution(layer)]
    expected = {"fp32": {trt.float32}, "int8": {trt.float32, trt.float16}}.get(variant, {trt.float16})
    assert len(convolutions) > 50 and {layer.get_output(0).dtype for layer in convolutions} == expected
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert bytes(builder.build_serialized_network(network, config))


def is_convolution(layer) -> bool:
    return layer.type == trt.LayerType.CONVOLUTION


def test_tensorrt_parser_error_names_the_operator(graph):
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    next(node for node in broken.graph.node if node.op_type == "Conv").op_type = "Convolute"
    with pytest.raises(BenchmarkError, match="does not take the graph: .*Convolute"):
        parse_graph(trt, broken.SerializeToString())
