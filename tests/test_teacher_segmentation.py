"""The segmentation teacher: reference objects, merging, the real networks with random weights, exit codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from box_room import FLOOR, FURNITURE, GLASS, OTHER, PERSON, WALL, write_folder

from teacher_infer import object_backends
from teacher_infer.object_backends import COCO_CLASSES, DetectedObject, coco_class
from teacher_infer.run_sam2 import merge

SCRIPT = Path(__file__).resolve().parents[1] / "teacher_infer" / "run_sam2.py"


def run_sam2(*args):
    return subprocess.run([sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, cwd="/")


def test_coco_classes():
    assert [coco_class(i) for i in (0, 56, 60, 62, 68, 79)] == [
        PERSON,
        FURNITURE,
        FURNITURE,
        OTHER,
        OTHER,
        OTHER,
    ]
    assert {class_id for _, class_id in COCO_CLASSES.values()} == {PERSON, FURNITURE}


def test_small_over_large_and_persons_over_all():
    geometry = np.full((10, 10), WALL, np.uint8)
    table, cup, person = (np.zeros((10, 10), bool) for _ in range(3))
    table[2:10], cup[4:6, 4:6], person[:, 4:7] = True, True, True
    box = np.zeros(4)
    objects = [DetectedObject(OTHER, box, cup), DetectedObject(FURNITURE, box, table)]
    merged = merge(geometry, objects)
    assert (merged[cup] == OTHER).all() and merged[9, 0] == FURNITURE and merged[0, 0] == WALL
    assert (merge(geometry, [DetectedObject(PERSON, box, person), *objects])[person] == PERSON).all()
    assert (geometry == WALL).all()


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


def test_a_frame_without_depth_is_listed_and_the_rest_done(folder, tmp_path):
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


def test_missing_weights_are_one_line(folder, tmp_path):
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


def test_real_yolo_and_sam2_with_random_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    build = pytest.importorskip("sam2.build_sam", reason="sam2 is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ultralytics.YOLO("yolov8n.yaml").save(tmp_path / "yolov8n.pt")
    network = build.build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    torch.save({"model": network.state_dict()}, tmp_path / "sam2.1_hiera_tiny.pt")
    backend = object_backends.YoloSam2(tmp_path / "yolov8n.pt", tmp_path / "sam2.1_hiera_tiny.pt", None, "cpu")
    rgb = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    assert backend("a", rgb) == []  # random weights are sure of nothing
    boxes = ultralytics.engine.results.Boxes(
        torch.tensor([[10, 10, 60, 90, 0.9, 0], [50, 20, 150, 110, 0.8, 56], [5, 5, 20, 20, 0.7, 62]]),
        rgb.shape[:2],
    )
    monkeypatch.setattr(backend.detector, "predict", lambda *args, **kwargs: [type("Result", (), {"boxes": boxes})])
    encoded = []
    set_image = backend.predictor.set_image
    monkeypatch.setattr(backend.predictor, "set_image", lambda image: encoded.append(1) or set_image(image))
    for count in (3, 1):
        boxes = boxes[:count]
        found = backend("a", rgb)
        assert [o.class_id for o in found] == [PERSON, FURNITURE, OTHER][:count]
        assert all(o.mask.shape == (120, 160) and o.mask.dtype == bool for o in found)
    assert len(encoded) == 2  # once an image, not once a box
