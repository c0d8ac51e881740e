"""Table IV of exported graphs, and of two students side by side."""

import json
from dataclasses import asdict

from cli import UserError

import numpy as np
import onnx
import pytest
import torch
from box_room import CAMERA
from small_run import SIZE, call, exit_code

import eval_distillation
from benchmarks.published_student import PublishedStudent
from config import Recipe
from dataset.files import read_image, sha256_of, write_json
from dataset.manifest import read_manifest
from deployment.graph import ExportedStudent, check_graph, export_graph
from deployment.onnx_student import load_onnx_student
from evaluation.inference import make_predictor
from trainer.checkpoint import load_student

RECIPE = Recipe()
TARGET = CAMERA.resized(*SIZE).with_focal_scale(1.25)  # the camera that graphs are exported for


@pytest.fixture(scope="module")
def engines(trained, tmp_path_factory):
    """A graph of the trained student and its student.json, as export_trt.py writes them."""
    folder = tmp_path_factory.mktemp("export") / "engines"
    student, recipe, _ = load_student(trained / "checkpoints/best.pt")
    camera = TARGET.resized(recipe.width, recipe.height)
    graph = export_graph(ExportedStudent(student, camera.focal / recipe.reference_focal), recipe.height, recipe.width)
    folder.mkdir()
    path = folder / "student_fp32.onnx"
    path.write_bytes(graph.SerializeToString())
    entry = {"precision": "fp32", "onnx": {"file": path.name, "sha256": sha256_of(path)}}
    write_json(folder / "student.json", {"precisions": [entry], "camera": asdict(camera)})
    return folder


def evaluate(output, *flags) -> dict:
    assert call(eval_distillation.main, "--output-dir", output, "--device", "cpu", *flags) == 0
    return json.loads((output / "table_4.json").read_text())


def test_graph_predicts_as_its_checkpoint_for_another_camera(engines, trained, manifest):
    student = make_predictor(*load_student(trained / "checkpoints/best.pt")[:2], torch.device("cpu"))
    graph, recipe = load_onnx_student(engines / "student_fp32.onnx", None)
    row = read_manifest(manifest)[5]
    rgb = read_image(row.rgb)
    (depth, seg), (expected, expected_seg) = graph(rgb, row.intrinsics), student(rgb, row.intrinsics)
    np.testing.assert_allclose(depth, expected, rtol=1e-4)
    assert (seg == expected_seg).mean() > 0.999
    assert (depth.dtype, seg.dtype, recipe.width) == (np.float32, np.uint8, 320)
    own, _ = graph(rgb, TARGET)
    np.testing.assert_allclose(own, depth * 1.25, rtol=1e-5)
    np.testing.assert_array_equal(graph(rgb, None)[0], own)


def test_checkpoint_and_its_graph_side_by_side(engines, trained, manifest, tmp_path):
    flags = ("--manifest", manifest, "--checkpoint", trained / "checkpoints/best.pt")
    alone = evaluate(tmp_path / "alone", *flags)
    both = evaluate(tmp_path / "both", *flags, "--compare", engines / "student_fp32.onnx")
    assert {name: row for name, row in both["rows"].items() if "other" not in name} == alone["rows"]
    assert list(both["rows"])[:2] == ["student vs teacher", "other student vs teacher"]
    entry = both["differences"]["other student vs reference"]["all"]["all"]
    other = both["rows"]["other student vs reference"]["depth"]["rmse"]
    assert abs(entry["rmse"]) < 1e-4
    assert entry["rmse"] == pytest.approx(other - both["rows"]["student vs reference"]["depth"]["rmse"], abs=1e-9)
    assert both["compared_with"].endswith("student_fp32.onnx")
    text = (tmp_path / "both/table_4.md").read_text()
    assert "beside another student" in text and "student vs teacher" in text
    assert "No intervals: they need 5 units" in text  # two test frames
    header = (tmp_path / "both/table_4_frames.csv").read_text().splitlines()[0]
    assert "other_student_rmse" in header and "teacher_abs_rel" in header


def test_published_student_exported_to_the_contract(manifest, tmp_path):
    """Its depth is for the camera that it was trained on, which --camera names."""
    torch.manual_seed(0)
    model = ExportedStudent(PublishedStudent(RECIPE.encoder).eval(), 1.0)
    graph = export_graph(model, RECIPE.height, RECIPE.width)
    check_graph(graph, RECIPE.height, RECIPE.width)
    path = tmp_path / "published.onnx"
    path.write_bytes(graph.SerializeToString())
    write_json(tmp_path / "camera.json", asdict(TARGET))
    table = evaluate(
        tmp_path / "table", "--manifest", manifest, "--checkpoint", path, "--camera", tmp_path / "camera.json"
    )
    assert table["rows"]["student vs reference"]["depth"]["coverage"] == 1, "a ReLU's 0 is a prediction"
    assert table["rows"]["baseline vs reference"] == {}


def test_faulty_graphs_are_refused_in_one_line(engines, trained, manifest, tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    graph = onnx.load(engines / "student_fp32.onnx")
    lone = tmp_path / "lone/student_fp32.onnx"
    lone.parent.mkdir()
    onnx.save(graph, lone)
    other = tmp_path / "other/student_fp32.onnx"
    other.parent.mkdir()
    graph.producer_name = "another export"
    onnx.save(graph, other)
    (other.parent / "student.json").write_bytes((engines / "student.json").read_bytes())
    wrong = tmp_path / "wrong.onnx"
    graph.graph.output[0].name = graph.graph.node[-1].output[0]
    del graph.graph.output[1:]
    onnx.save(graph, wrong)
    write_json(tmp_path / "cameras.json", {"a/000": asdict(TARGET), "a/001": asdict(TARGET)})
    checkpoint = trained / "checkpoints/best.pt"
    for path, camera, message in (
        (tmp_path / "missing.onnx", None, "there is no graph"),
        (tmp_path / "broken.onnx", None, "is not a readable ONNX graph"),
        (wrong, None, "is not a student's graph"),
        (lone, None, "there is no student.json beside it"),
        (other, None, "is not what"),
        (lone, tmp_path / "cameras.json", "holds a camera for each frame"),
        (checkpoint, tmp_path / "cameras.json", "it needs no camera"),
    ):
        flags = ["--checkpoint", path, "--manifest", manifest, "--output-dir", tmp_path / "table"]
        assert exit_code(eval_distillation.main, *flags, *(["--camera", camera] if camera else [])) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    assert exit_code(eval_distillation.main, "--checkpoint", checkpoint, "--compare-camera", "camera.json") == 2
    assert not (tmp_path / "table").exists()


def test_graph_without_a_described_camera_is_refused(engines, tmp_path):
    path = tmp_path / "student_fp32.onnx"
    path.write_bytes((engines / "student_fp32.onnx").read_bytes())
    write_json(tmp_path / "student.json", {"precisions": []})
    with pytest.raises(UserError, match="does not describe graphs and their camera"):
        load_onnx_student(path, None)
