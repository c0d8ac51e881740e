"""The segmentation teacher: reference objects, merging, the real networks with random weights, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cli import UserError

import numpy as np
import pytest
from box_room import FLOOR, FURNITURE, GLASS, OTHER, PERSON, WALL, write_folder

from dataset.files import read_image, sha256_of
from hub import LOCK
from teacher_infer import object_backends
from teacher_infer.geometry import GeometryResult
from teacher_infer.object_backends import DetectedObject, clean_mask, student_class
from teacher_infer.run_sam2 import merge

SCRIPT = Path(__file__).resolve().parents[1] / "teacher_infer" / "run_sam2.py"


def run_sam2(*args):
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, cwd="/")


def test_detector_classes_map_to_student_classes():
    names = ("person", "chair", "dining table", "tv", "microwave", "dog")
    assert [student_class(name) for name in names] == [PERSON, FURNITURE, FURNITURE, OTHER, OTHER, OTHER]


def objects_on_a_wall():
    """A wall 4 m away as geometry, and three overlapping objects: sofa at 3 m, person at 2 m, ball without depth."""
    depth = np.full((10, 10), 4, np.float32)
    sofa, person, ball = (np.zeros((10, 10), bool) for _ in range(3))
    sofa[4:10], person[:, 4:7], ball[0:6, 5] = True, True, True
    depth[sofa], depth[person], depth[ball] = 3, 2, 0
    geometry = GeometryResult(np.full((10, 10), WALL, np.uint8), np.zeros(3), np.full((10, 10), 0.9, np.float32))
    box = np.zeros(4)
    objects = [
        DetectedObject(PERSON, box, person, 0.4),
        DetectedObject(OTHER, box, ball, 0.99),
        DetectedObject(FURNITURE, box, sofa, 0.8),
    ]
    return geometry, objects, depth


def test_the_nearer_object_wins():
    geometry, (person, ball, sofa), depth = objects_on_a_wall()
    for objects in ([person, ball, sofa], [sofa, ball, person], [ball, person, sofa]):
        classes, confidence = merge(geometry, objects, depth)
        assert (classes[person.mask] == PERSON).all() and confidence[person.mask] == pytest.approx(0.4)
        assert (classes[sofa.mask & ~person.mask] == FURNITURE).all() and classes[0, 0] == WALL
    assert (geometry.classes == WALL).all()


def test_at_equal_depth_the_object_with_the_higher_score_wins():
    geometry, (person, _, sofa), depth = objects_on_a_wall()
    depth[:] = 2 + 0.01 * np.arange(10)
    assert (merge(geometry, [person, sofa], depth)[0][sofa.mask] == FURNITURE).all()


def test_confidence_where_geometry_finds_no_surface():
    geometry, objects, depth = objects_on_a_wall()
    geometry.classes[0] = OTHER
    depth[0, 0] = 0
    confidence = merge(geometry, [], depth)[1]
    assert confidence[0, 0] == 0 and confidence[0, 1] == 0.5 and confidence[1, 0] == pytest.approx(0.9)


def test_masks_are_cleaned_of_islands_and_small_holes():
    mask = np.zeros((100, 100), bool)
    mask[20:70, 20:70] = True
    solid = mask.copy()
    mask[40:43, 40:43] = False  # a hole
    mask[5, 5] = mask[90:92, 90:92] = True  # islands
    assert np.array_equal(clean_mask(mask), solid)
    mask[30:60, 30:60] = False  # a large hole is seen through
    assert not clean_mask(mask)[45, 45]
    halves = solid.copy()
    halves[:, 45:50] = False
    assert np.array_equal(clean_mask(halves), halves)
    assert not clean_mask(np.zeros((5, 5), bool)).any()


def test_reference_takes_objects_and_leaves_surfaces_to_geometry():
    labels = np.full((20, 20), WALL, np.uint8)
    instances = np.ones((20, 20), np.uint16)  # 1: the wall
    for number, class_id, rows in (
        (2, PERSON, 2),
        (3, FURNITURE, 2),
        (4, OTHER, 1),
        (5, OTHER, 4),
        (6, GLASS, 2),
        (7, FLOOR, 2),
    ):
        start = 2 * number
        labels[start : start + rows], instances[start : start + rows] = class_id, number
    found = object_backends._instances(labels, instances)
    assert sorted(o.class_id for o in found) == [PERSON, FURNITURE, OTHER]  # the large `other` is a ceiling
    person = next(o for o in found if o.class_id == PERSON)
    assert person.box.tolist() == [0, 4, 20, 6] and person.mask.sum() == 40


def test_reference_components_without_instances():
    labels = np.full((40, 40), WALL, np.uint8)
    labels[:10, :10], labels[20:30, :10], labels[35, 35] = FURNITURE, FURNITURE, PERSON
    assert [o.class_id for o in object_backends._components(labels)] == [FURNITURE, FURNITURE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("rooms"))


def test_run_sam2_reference(folder, tmp_path):
    done = run_sam2(
        "--input-dir",
        folder / "rgb",
        "--depth-dir",
        folder / "depth",
        "--output-dir",
        tmp_path / "seg",
        "--backend",
        "reference",
        "--save-panels",
        1,
    )
    assert done.returncode == 0, done.stderr
    classes = np.load(tmp_path / "seg" / "a" / "000.npy")
    assert classes.dtype == np.uint8 and classes.shape == (120, 160)
    labels = object_backends.read_classes(folder / "labels" / "a" / "000.png")
    for class_id in (FLOOR, WALL, FURNITURE, GLASS):
        assert (classes[labels == class_id] == class_id).mean() > 0.8
    assert len(list((tmp_path / "seg" / "panels").rglob("*.png"))) == 1
    assert "floor" in done.stdout and "glass" in done.stdout
    confidence = np.load(tmp_path / "seg_confidence" / "a" / "000.npy")
    assert confidence.dtype == np.uint8 and confidence.shape == classes.shape
    assert (confidence[labels == FURNITURE] == 255).mean() > 0.8


def test_two_output_folders_can_t_share_one_confidence_folder(folder, tmp_path):
    flags = ("--input-dir", folder / "rgb", "--depth-dir", folder / "depth", "--backend", "reference")
    assert run_sam2(*flags, "--output-dir", tmp_path / "first").returncode == 0
    second = run_sam2(*flags, "--output-dir", tmp_path / "second")
    assert second.returncode == 2 and "seg_confidence" in second.stderr


def test_gravity_flag_is_used(folder, tmp_path):
    common = ("--input-dir", folder / "rgb", "--depth-dir", folder / "depth", "--backend", "reference")
    sideways = run_sam2(*common, "--output-dir", tmp_path / "a" / "seg", "--gravity", 1, 0, 0)
    assert sideways.returncode == 0, sideways.stderr
    labels = object_backends.read_classes(folder / "labels" / "a" / "000.png")
    assert not (np.load(tmp_path / "a" / "seg" / "a" / "000.npy")[labels == FLOOR] == FLOOR).any()
    refused = run_sam2(*common, "--output-dir", tmp_path / "b", "--gravity", 0, 0, 0)
    assert refused.returncode == 2 and "--gravity" in refused.stderr and not (tmp_path / "b").exists()


def test_gravity_json_is_used_per_frame(folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    (data / "gravity.json").write_text(json.dumps({"a/000": [9.81, 0, 0]}))
    flags = ("--input-dir", data / "rgb", "--depth-dir", data / "depth", "--backend", "reference")
    done = run_sam2(*flags, "--output-dir", tmp_path / "seg")
    assert done.returncode == 0, done.stderr
    for stem, found in (("a/000", False), ("a/001", True)):
        labels = object_backends.read_classes(data / "labels" / f"{stem}.png")
        assert (np.load(tmp_path / "seg" / f"{stem}.npy")[labels == FLOOR] == FLOOR).any() == found


@pytest.mark.parametrize("text", ["[1, 2, 3]", '{"a/000": [0, 0, 0]}', '{"a/000": [0, "down", 0]}', '{"a/000": NaN}'])
def test_invalid_gravity_json_is_a_one_line_error(folder, tmp_path, text):
    data = shutil.copytree(folder, tmp_path / "data")
    (data / "gravity.json").write_text(text)
    flags = ("--input-dir", data / "rgb", "--depth-dir", data / "depth", "--backend", "reference")
    refused = run_sam2(*flags, "--output-dir", tmp_path / "seg")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "gravity.json" in refused.stderr


def test_frames_without_depth_are_listed_as_failed_and_the_rest_is_done(folder, tmp_path):
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "x.npy", np.zeros(1))
    (tmp_path / "depth" / "a").mkdir()
    np.save(tmp_path / "depth" / "a" / "000.npy", np.load(folder / "depth" / "a" / "000.npy"))
    done = run_sam2(
        "--input-dir",
        folder / "rgb",
        "--depth-dir",
        tmp_path / "depth",
        "--output-dir",
        tmp_path / "seg",
        "--backend",
        "reference",
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "seg" / "failed_frames.jsonl").read_text().splitlines()) == 3


def test_missing_weights_are_a_one_line_error(folder, tmp_path):
    failed = run_sam2(
        "--input-dir",
        folder / "rgb",
        "--depth-dir",
        folder / "depth",
        "--output-dir",
        tmp_path / "seg",
        "--yolo-weights",
        tmp_path / "absent.pt",
    )
    assert failed.returncode == 2 and failed.stderr.strip().count("\n") == 0
    assert "--backend reference" in failed.stderr and not (tmp_path / "seg").exists()


def write_weights(folder):
    """Write YOLOv8n and SAM2-tiny with random weights; returns the folder."""
    os.environ |= {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    build = pytest.importorskip("sam2.build_sam", reason="sam2 is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ultralytics.YOLO("yolov8n.yaml").save(folder / "yolov8n.pt")
    network = build.build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    torch.save({"model": network.state_dict()}, folder / "sam2.1_hiera_tiny.pt")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def backend(weights):
    return object_backends.YoloSam2(weights / "yolov8n.pt", weights / "sam2.1_hiera_tiny.pt", None, "cpu")


class RunsCode:
    """What a hostile weights file holds: unpickling it calls a function of its author's choice."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_hostile_weights_file_runs_nothing(weights, tmp_path):
    import torch

    hostile = tmp_path / "yolov8n.pt"
    torch.save({"model": RunsCode(tmp_path / "run")}, hostile)
    sam2 = weights / "sam2.1_hiera_tiny.pt"
    with pytest.raises(UserError, match="could run any code: .* or add --trust-yolo-weights"):
        object_backends.YoloSam2(hostile, sam2, None, "cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="not a YOLO weights file"):
        object_backends.YoloSam2(hostile, sam2, None, "cpu", trust_yolo=True)
    assert (tmp_path / "run").exists(), "the file is hostile indeed"


def test_weights_with_a_published_sha256_are_trusted(weights, tmp_path, monkeypatch):
    from ultralytics.nn import tasks

    restricted = []
    load = tasks.torch_load
    monkeypatch.setattr(tasks, "torch_load", lambda *a, **k: restricted.append(k.get("weights_only")) or load(*a, **k))
    for name in ("yolov8n.pt", "sam2.1_hiera_tiny.pt"):
        shutil.copy(weights / name, tmp_path)
    flags = tmp_path / "yolov8n.pt", tmp_path / "sam2.1_hiera_tiny.pt", None, "cpu"
    object_backends.YoloSam2(*flags)
    digest = sha256_of(tmp_path / "yolov8n.pt")
    (tmp_path / LOCK).write_text(json.dumps({"yolov8n.pt": {"bytes": 1, "sha256": digest, "verified": True}}))
    object_backends.YoloSam2(*flags)
    assert restricted == [True, None]


BOXES = [[10, 10, 60, 90, 0.9, 0], [50, 20, 150, 110, 0.8, 56], [5, 5, 20, 20, 0.7, 62]]


def pretend_boxes(backend, monkeypatch, boxes):
    """Random weights are sure of nothing, so the boxes that YOLO would find are given."""
    import torch
    from ultralytics.engine.results import Boxes

    found = type("Result", (), {"boxes": Boxes(torch.tensor(boxes), (120, 160))})
    monkeypatch.setattr(backend.detector, "predict", lambda images, **_: [found] * len(images))
    monkeypatch.setattr(object_backends, "SMALLEST_IOU", -1.0)
    monkeypatch.setattr(object_backends, "SMALLEST_INSIDE", 0.0)


def images(*sizes):
    random = np.random.default_rng(0)
    return [(str(n), random.integers(0, 255, (*size, 3), dtype=np.uint8)) for n, size in enumerate(sizes)]


def test_random_weights_find_nothing(backend):
    assert backend.find(images((120, 160), (90, 160), (120, 160))) == [[], [], []]


def test_a_file_that_is_no_image_is_said_to_be_none_beside_yolo_too(backend, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match="not a readable image"):
        read_image(tmp_path / "text.jpg")


def test_sam2_masks_are_its_predictor_s_and_each_image_is_encoded_once(backend, monkeypatch):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    pretend_boxes(backend, monkeypatch, BOXES)
    monkeypatch.setattr(object_backends, "clean_mask", lambda mask: mask)
    monkeypatch.setattr(object_backends, "BOXES_AT_ONCE", 2)
    encoded, set_image = [], backend.predictor.set_image
    monkeypatch.setattr(backend.predictor, "set_image", lambda image: encoded.append(1) or set_image(image))
    frames = images((120, 160), (120, 160))
    found = backend.find(frames)
    assert len(encoded) == len(frames)
    assert backend.provenance["masks_of_a_box"] == 1, "labels of the best of three are not to be mixed with these"
    by_hand = SAM2ImagePredictor(backend.predictor.model)
    for (_, rgb), objects in zip(frames, found, strict=True):
        by_hand.set_image(rgb)
        assert [o.class_id for o in objects] == [PERSON, FURNITURE, OTHER]
        for box, thing in zip(BOXES, objects, strict=True):
            (mask,), _, _ = by_hand.predict(box=np.float32(box[:4]), multimask_output=False)
            assert np.array_equal(thing.mask, mask > 0)
            assert thing.score == pytest.approx(box[4])


def test_a_failed_prompt_is_nothing_and_no_filled_box(backend, monkeypatch):
    pretend_boxes(backend, monkeypatch, BOXES)
    for name, bound in (("SMALLEST_IOU", 2.0), ("SMALLEST_INSIDE", 1.1)):
        with monkeypatch.context() as patch:
            patch.setattr(object_backends, name, bound)
            assert backend.find(images((120, 160))) == [[]]
    assert len(backend.find(images((120, 160)))[0]) == 3


def test_a_detector_of_other_things_is_refused(backend, weights, monkeypatch):
    import ultralytics

    monkeypatch.setattr(ultralytics.YOLO, "names", {0: "zebra", 1: "kite"})
    with pytest.raises(UserError, match="DETECTOR_CLASSES"):
        object_backends.YoloSam2(weights / "yolov8n.pt", weights / "sam2.1_hiera_tiny.pt", None, "cpu")
