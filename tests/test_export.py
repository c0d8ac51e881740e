"""From a checkpoint to the engines folder: the graph's contract, its camera, its gate, and what is held out."""

import hashlib
import json
import sys
import types
from dataclasses import asdict, replace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import cli
import export_trt
from config import CLASS_NAMES, NYU_INTRINSICS, Config, Intrinsics
from dataset.files import read_json, write_json, write_npy, write_png
from dataset.manifest import Row, read_manifest, write_manifest
from models.metrics import eigen_crop
from training.checkpoint import build_student, load_student, plain_config, save_checkpoint

CAMERA = NYU_INTRINSICS.resized(320, 240)
WIDTH, HEIGHT = 320, 240


def write_checkpoint(path, **notes):
    """A checkpoint as train.py writes it, with random weights."""
    torch.manual_seed(0)
    student = build_student(Config())
    for module in student.modules():  # statistics that a graph with batch norm left out would not get right
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    content = {
        "model": {},
        "ema": student.state_dict(),
        "optimizer": {},
        "schedule": {},
        "step": 12,
        "config": plain_config(Config()),
        "class_names": list(CLASS_NAMES),
        "reference_focal": Config().reference_focal,
        "notes": {
            "camera": vars(CAMERA),
            "teachers": [{"da3_depth": {"backend": "da3"}}],
            "train_stems": ["000000"],
            "encoder_start": "imagenet",
            "git_revision": "abc1234",
        }
        | notes,
    }
    save_checkpoint(path, content)
    return path


def write_frames(root, stems, camera=NYU_INTRINSICS, split="test"):
    """A data folder with a manifest of frames of camera.width x camera.height pixels."""
    generator = np.random.default_rng(0)
    rows = []
    for stem in stems:
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        rgb = cv2.resize(small, (camera.width, camera.height), interpolation=cv2.INTER_CUBIC)
        depth = np.full(rgb.shape[:2], 2.5, np.float32)
        confidence = np.ones_like(depth)
        confidence[:, : camera.width // 2] = 0.3  # the left half of the sensor is not trusted
        labels = np.full(rgb.shape[:2], 3, np.uint8)
        write_png(root / "rgb" / f"{stem}.png", rgb)
        for name, array in (("depth", depth), ("confidence", confidence), ("labels", labels)):
            write_npy(root / name / f"{stem}.npy", array)
        paths = {name: root / name / f"{stem}.npy" for name in ("depth", "confidence", "labels")}
        rows.append(Row(stem, root / "rgb" / f"{stem}.png", **paths, split=split, intrinsics=camera))
    write_manifest(root / "manifest.jsonl", rows)
    return root / "manifest.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.pt")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("data"), ["000000", "000001", "00/000002"])


@pytest.fixture(scope="module")
def model(checkpoint):
    return export_trt.Deployed(load_student(checkpoint)[0], 1.0)


@pytest.fixture(scope="module")
def graph(model):
    return export_trt.export_fp32(model, HEIGHT, WIDTH)


@pytest.fixture
def nothing_around(tmp_path, monkeypatch):
    """A current folder and environment without data."""
    for variable in ("SCRATCH", "DATA_ROOT", "ENGINE_DIR", "USE_CORRIDOR_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def export(nothing_around, monkeypatch, capsys):
    """Run the script: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_trt.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run(export_trt.main)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def ready_graph(monkeypatch, graph):
    """Spare main() the export, which takes seconds: the same graph each time."""
    monkeypatch.setattr(export_trt, "export_fp32", lambda *arguments: graph)


# --------------------------------------------------------------------------------------------------- the whole script


def test_engines_folder(export, checkpoint, manifest, nothing_around):
    code, out, err = export("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt")
    assert code == 0, err
    assert "opset 17" in out and "2 test frames" in out and "left out 1" in out
    folder = nothing_around / "engines"
    assert {path.name for path in folder.iterdir()} == {"student_fp32.onnx", "eval_frames.npz", "student.json"}
    assert onnx.load(folder / "student_fp32.onnx").opset_import[0].version == 17

    description = json.loads((folder / "student.json").read_text())
    (entry,) = description["precisions"]
    content = (folder / "student_fp32.onnx").read_bytes()
    assert entry["onnx"]["sha256"] == hashlib.sha256(content).hexdigest() and entry["engine"] is None
    assert entry["errors"]["max_depth_error_mm"] < 1 and entry["errors"]["class_agreement"] >= 0.999
    assert description["checkpoint"]["file"] == "best.pt"
    assert description["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert description["checkpoint"]["teachers"] == [{"da3_depth": {"backend": "da3"}}]
    assert description["checkpoint"]["encoder_start"] == "imagenet"
    assert description["camera"]["focal"] == pytest.approx(CAMERA.focal)
    assert description["class_names"] == list(CLASS_NAMES)
    assert description["gpu"] is None and description["tensorrt"] is None
    assert str(checkpoint.parent) not in json.dumps(description)


def test_graph_says_what_the_student_says(graph, model):
    rgb = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    depth, seg = session.run(["depth", "seg"], {"rgb": rgb.numpy()})
    with torch.inference_mode():
        expected_depth, expected_seg = model.student(rgb)
    assert depth.shape == (1, 1, HEIGHT, WIDTH) and seg.shape == (1, 6, HEIGHT, WIDTH)
    assert depth == pytest.approx(expected_depth.numpy(), abs=1e-4)
    assert seg == pytest.approx(expected_seg.numpy(), abs=1e-3)


def test_camera_flag_scales_depth(export, checkpoint, manifest, nothing_around):
    """A camera of twice the resolution and three times the focal length sees things 1.5 times as far."""
    camera = Intrinsics(3 * CAMERA.fx, 3 * CAMERA.fy, 320, 240, 640, 480)
    write_json(nothing_around / "camera.json", asdict(camera))
    arguments = ("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt")
    assert export(*arguments, "--camera", "camera.json")[0] == 0
    session = onnxruntime.InferenceSession("engines/student_fp32.onnx", providers=["CPUExecutionProvider"])
    rgb = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        expected = 1.5 * load_student(checkpoint)[0](rgb)[0]
    assert session.run(["depth"], {"rgb": rgb.numpy()})[0] == pytest.approx(expected.numpy(), rel=1e-4)
    assert read_json("engines/student.json")["camera"]["focal"] == pytest.approx(1.5 * CAMERA.focal)


def test_without_a_camera(export, tmp_path, manifest):
    path = write_checkpoint(tmp_path / "mixed.pt", camera=None)
    code, out, err = export("--checkpoint", path, "--manifest", manifest, "--skip-trt")
    assert code == 2 and len(err.splitlines()) == 1 and "--camera camera.json" in err
    assert not (tmp_path / "engines").exists()


def test_a_file_with_several_cameras(export, checkpoint, nothing_around):
    cameras = {"a": asdict(CAMERA), "b": asdict(CAMERA)}
    write_json(nothing_around / "same.json", cameras)
    write_json(nothing_around / "two.json", cameras | {"b": asdict(replace(CAMERA, fx=300.0))})
    assert export_trt.target_camera(nothing_around / "same.json", None, Config()).fx == pytest.approx(CAMERA.fx)
    code, _, err = export("--checkpoint", checkpoint, "--skip-trt", "--camera", "two.json")
    assert code == 2 and len(err.splitlines()) == 1 and "2 cameras" in err


def test_missing_tensorrt_costs_nothing_but_the_engine(
    export, checkpoint, manifest, ready_graph, nothing_around, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    stale = nothing_around / "engines" / "student_fp32.engine"
    stale.parent.mkdir()
    stale.write_bytes(b"built from last week's checkpoint")
    code, out, err = export("--checkpoint", checkpoint, "--manifest", manifest)
    assert code == 2 and len(err.splitlines()) == 1 and "--skip-trt" in err
    assert (stale.parent / "student_fp32.onnx").is_file() and (stale.parent / "student.json").is_file()
    assert not stale.exists()


def test_without_data_it_says_so_and_invents_none(export, checkpoint, ready_graph, nothing_around):
    stale = nothing_around / "engines" / "eval_frames.npz"
    stale.parent.mkdir()
    stale.write_bytes(b"of another export")
    code, out, _ = export("--checkpoint", checkpoint, "--skip-trt")
    assert code == 0 and "NO HELD-OUT FRAMES" in out and "random images" in out
    assert not stale.exists()
    description = json.loads((nothing_around / "engines" / "student.json").read_text())
    assert description["evaluation"] is None
    assert description["precisions"][0]["errors"]["images"] == "random images"


def test_gate_fails_on_another_students_graph(export, checkpoint, manifest, nothing_around, monkeypatch):
    torch.manual_seed(5)
    other = export_trt.Deployed(build_student(Config()), 1.0)
    wrong = export_trt.export_fp32(other, HEIGHT, WIDTH)
    monkeypatch.setattr(export_trt, "export_fp32", lambda *arguments: wrong)
    code, out, _ = export("--checkpoint", checkpoint, "--manifest", manifest, "--skip-trt")
    assert code == 1 and "FAILED" in out
    assert not (nothing_around / "engines").exists()


def test_missing_checkpoint_and_manifest(export, checkpoint):
    for arguments, needle in (
        (("--checkpoint", "none.pt"), "none.pt"),
        (("--checkpoint", checkpoint, "--manifest", "none.jsonl"), "none.jsonl"),
    ):
        code, _, err = export(*arguments, "--skip-trt")
        assert code == 2 and len(err.splitlines()) == 1 and needle in err


# ---------------------------------------------------------------------------------------------------- the graph's gate


def test_tolerance():
    tolerance = export_trt.TOLERANCES["fp32"]
    good = {"max_depth_error_mm": 1.0, "class_agreement": 0.999}
    assert export_trt.within(good, tolerance)
    assert not export_trt.within(good | {"max_depth_error_mm": 1.01}, tolerance)
    assert not export_trt.within(good | {"class_agreement": 0.9989}, tolerance)
    assert not export_trt.within(good | {"max_depth_error_mm": float("nan")}, tolerance)


def test_comparison_is_in_millimetres(graph, model):
    images = export_trt.random_images(HEIGHT, WIDTH)[:1]
    nearer = export_trt.Deployed(model.student, 0.999)
    with torch.inference_mode():
        depth = model(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255)[0]
    errors = export_trt.compare(graph.SerializeToString(), nearer, images)
    assert errors["max_depth_error_mm"] == pytest.approx(depth.max().item(), rel=1e-2)  # a thousandth of it
    assert errors["class_agreement"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("damage", ["opset", "name", "shape"])
def test_check_graph_refuses(graph, damage):
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
        export_trt.check_graph(broken, HEIGHT, WIDTH)


# ------------------------------------------------------------------------------------------------- held-out frames


def test_evaluation_frames(manifest, tmp_path):
    rows, words = export_trt.find_test_rows(manifest, Config(), ["000000"], limit=32)
    assert [row.stem for row in rows] == ["000001", "00/000002"] and "2 test frames" in words
    export_trt.write_evaluation_frames(tmp_path / "eval_frames.npz", export_trt.evaluation_frames(rows, Config()))
    with np.load(tmp_path / "eval_frames.npz", allow_pickle=False) as archive:
        frames = dict(archive)
    assert frames["rgb"].shape == (2, HEIGHT, WIDTH, 3) and frames["rgb"].dtype == np.uint8
    assert frames["stems"].tolist() == ["000001", "00/000002"] and frames["stems"].dtype.kind == "U"
    assert frames["focal"] == pytest.approx([CAMERA.focal] * 2) and frames["focal"].dtype == np.float32
    assert frames["labels"].dtype == np.uint8 and (frames["labels"] == 3).all()
    depth = frames["depth"][0]
    assert depth.dtype == np.float32 and set(np.unique(depth)) == {0.0, 2.5}
    assert not depth[:, : WIDTH // 2].any(), "depth of low confidence was kept"
    rows_scored, columns_scored = eigen_crop(HEIGHT, WIDTH)
    assert depth[rows_scored, WIDTH // 2 : columns_scored.stop].all()
    assert np.count_nonzero(depth) == depth[rows_scored, WIDTH // 2 : columns_scored.stop].size, "outside Eigen's crop"


def test_other_cameras_are_scored_to_the_border(tmp_path):
    camera = Intrinsics(500, 500, 320, 180, 640, 360)  # 16:9: cropped to 480x360, so that f is 500 * 320 / 480
    manifest = write_frames(tmp_path, ["a"], camera)
    frames = export_trt.evaluation_frames(read_manifest(manifest), Config())
    assert frames["depth"][0, :, WIDTH // 2 :].all()
    assert frames["focal"] == pytest.approx([500 * 320 / 480])


def test_test_split_only(tmp_path):
    manifest = write_frames(tmp_path, ["a", "b"], split="val")
    with pytest.raises(cli.UserError, match="split 'test'"):
        export_trt.find_test_rows(manifest, Config(), [], limit=32)


# --------------------------------------------------------------------------------------------------------- TensorRT


def fake_tensorrt(flags, calls, usable_gpu=True):
    """A tensorrt module with the given members of NetworkDefinitionCreationFlag, which notes what it is asked for."""

    def builder(logger):
        if not usable_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return types.SimpleNamespace(
            create_network=lambda flag: calls.append(("network", flag)),
            create_builder_config=lambda: types.SimpleNamespace(clear_flag=lambda flag: calls.append(("clear", flag))),
            build_serialized_network=lambda network, config: b"engine",
        )

    logger = types.SimpleNamespace(WARNING=2)
    return types.SimpleNamespace(
        __version__="0.0",
        NetworkDefinitionCreationFlag=types.SimpleNamespace(**flags),
        BuilderFlag=types.SimpleNamespace(TF32="TF32"),
        Logger=type("Logger", (), {"WARNING": logger.WARNING, "__init__": lambda self, severity: None}),
        Builder=builder,
        OnnxParser=lambda network, logger: types.SimpleNamespace(
            parse=lambda graph: graph == b"graph", num_errors=1, get_error=lambda index: "node 3 is unknown"
        ),
    )


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"EXPLICIT_BATCH": 0}, 1),  # 8.5, 8.6
        ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 2),  # 10
        ({"STRONGLY_TYPED": 0}, 1),  # 11
    ],
)
def test_network_flags_of_each_generation(flags, expected):
    calls = []
    assert export_trt.build_engine(fake_tensorrt(flags, calls), b"graph") == b"engine"
    assert calls == [("network", expected), ("clear", "TF32")]


def test_tensorrt_that_can_not():
    with pytest.raises(cli.UserError, match="--skip-trt"):
        export_trt.build_engine(fake_tensorrt({"STRONGLY_TYPED": 0}, [], usable_gpu=False), b"graph")
    with pytest.raises(cli.UserError, match="node 3 is unknown"):
        export_trt.build_engine(fake_tensorrt({"STRONGLY_TYPED": 0}, []), b"no graph")


def test_engine_is_noted(export, checkpoint, manifest, ready_graph, nothing_around, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt({"STRONGLY_TYPED": 0}, []))
    monkeypatch.setattr(export_trt, "build_engine", lambda trt, graph: b"engine of " + graph[:4])
    assert export("--checkpoint", checkpoint, "--manifest", manifest)[0] == 0
    engine = (nothing_around / "engines" / "student_fp32.engine").read_bytes()
    description = json.loads((nothing_around / "engines" / "student.json").read_text())
    assert description["precisions"][0]["engine"]["sha256"] == hashlib.sha256(engine).hexdigest()
    assert description["tensorrt"] == "0.0"


def test_real_parser_takes_the_graph_and_builds_an_engine(graph):
    """TensorRT for RTX shares TensorRT's parser and builds without a GPU for a compute capability that is named."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, the one TensorRT without a GPU, is not installed")
    builder, network, parser = export_trt.parse_graph(trt, graph.SerializeToString())
    assert {network.get_output(n).name: tuple(network.get_output(n).shape) for n in range(network.num_outputs)} == {
        "depth": (1, 1, HEIGHT, WIDTH),
        "seg": (1, 6, HEIGHT, WIDTH),
    }
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert bytes(builder.build_serialized_network(network, config))
