"""Object teachers: YOLO boxes with SAM2 masks, and the reference instances of a data folder in their place.

Both are called with one image and give its objects: backend(stem, rgb) -> list of DetectedObject.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from cli import UserError, existing_dir, existing_file, resolve_device
from config import CLASS_NAMES, IGNORE, Config
from dataset.files import read_png_raw
from dataset.frames import find_map, read_classes
from teacher_infer.stage import sha256_of, versions_of

PERSON, FURNITURE, OTHER = (CLASS_NAMES.index(name) for name in ("person", "furniture", "other"))

# COCO's classes that are no `other`, {id: (name, class)}, by the principle of dataset/label_remapper.py: furniture is
# sat at, lain on, stored in, worked at, or large and built in. Hence television, microwave, toaster and potted plant,
# which stand on furniture, are other; so are backpack and suitcase, which come and go.
COCO_CLASSES = {
    0: ("person", PERSON),
    13: ("bench", FURNITURE),
    56: ("chair", FURNITURE),
    57: ("couch", FURNITURE),
    59: ("bed", FURNITURE),
    60: ("dining table", FURNITURE),  # desks, too
    61: ("toilet", FURNITURE),
    69: ("oven", FURNITURE),
    71: ("sink", FURNITURE),
    72: ("refrigerator", FURNITURE),
}
COCO_SIZE = 80

SAM2_CONFIGS = {  # part of the checkpoint's file name -> config that ships with the package
    f"{version}_hiera_{size}": f"configs/{version}/{version}_hiera_{letter}.yaml"
    for version in ("sam2.1", "sam2")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}
DETECTION_CONFIDENCE = 0.25
LARGEST_OTHER = 0.10  # share of the image; larger reference instances of class other are ceilings and passages
SMALLEST_COMPONENT = 64  # pixels
ADVICE = "use --backend reference"


@dataclass
class DetectedObject:
    """class_id 0..5; box float [4] x0 y0 x1 y1 in pixels; mask bool [H,W]."""

    class_id: int
    box: np.ndarray
    mask: np.ndarray


class ObjectBackend(Protocol):
    """What finds objects in images; `provenance` says what it is."""

    provenance: dict

    def __call__(self, stem: str, rgb: np.ndarray) -> list[DetectedObject]:
        """The objects of an image uint8 [H,W,3]; UserError when the frame can't be done."""


def coco_class(coco_id: int) -> int:
    """The student's class of a COCO class, 0..79 as detectors number them."""
    return COCO_CLASSES.get(coco_id, ("", OTHER))[1]


class YoloSam2:
    """YOLO finds boxes, SAM2 outlines them: the image is encoded once and all its boxes are one batch of prompts.

    ultralytics unpickles its weights file, so take it from its makers only.
    Raises UserError when a package or a weights file can't be had, or YOLO's classes are not COCO's.
    """

    def __init__(self, yolo_weights: Path, sam2_checkpoint: Path, sam2_config: str | None, device: str):
        self.device = resolve_device(device)
        self.detector = _load_yolo(existing_file(yolo_weights, f"--yolo-weights ({ADVICE} without it)"))
        checkpoint = existing_file(sam2_checkpoint, f"--sam2-checkpoint ({ADVICE} without it)")
        config = sam2_config or _config_of(checkpoint)
        self.predictor = _load_sam2(checkpoint, config, self.device)
        self.provenance = {
            "backend": "yolo-sam2",
            "model": f"{Path(yolo_weights).name} + {checkpoint.name}",
            "weights_sha256": {"yolo": sha256_of(yolo_weights), "sam2": sha256_of(checkpoint)},
            "sam2_config": config,
            "detection_confidence": DETECTION_CONFIDENCE,
            "versions": versions_of(("ultralytics", "sam2", "torch")),
        }

    def __call__(self, stem: str, rgb: np.ndarray) -> list[DetectedObject]:
        import torch

        bgr = np.ascontiguousarray(rgb[..., ::-1])  # what ultralytics takes arrays for
        found = self.detector.predict(bgr, conf=DETECTION_CONFIDENCE, device=str(self.device), verbose=False)[0].boxes
        if len(found) == 0:
            return []
        boxes, coco_ids = found.xyxy.cpu().numpy(), found.cls.int().tolist()
        with torch.inference_mode():
            self.predictor.set_image(rgb)
            masks, _, _ = self.predictor.predict(box=boxes, multimask_output=False)
        masks = masks.reshape(len(boxes), *rgb.shape[:2]) > 0
        return [DetectedObject(coco_class(i), b, m) for i, b, m in zip(coco_ids, boxes, masks, strict=True)]


def _load_yolo(weights: Path):
    os.environ.setdefault("YOLO_OFFLINE", "true")  # compute nodes have no way out
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    try:
        from ultralytics import YOLO
    except ImportError as error:
        raise UserError(
            f"the package ultralytics is not installed ({error}): see requirements.txt, or {ADVICE}"
        ) from None
    try:
        detector = YOLO(str(weights))
        names = detector.names
    except Exception as error:  # unpickling raises whatever the file makes it raise
        raise UserError(f"--yolo-weights {weights}: not a YOLO weights file ({type(error).__name__})") from None
    # weights trained from a bare architecture number their classes instead of naming them
    coco = len(names) == COCO_SIZE and all(names[i] in (name, str(i)) for i, (name, _) in COCO_CLASSES.items())
    if not coco:
        raise UserError(f"--yolo-weights {weights}: its {len(names)} classes are not COCO's 80")
    return detector


def _config_of(checkpoint: Path) -> str:
    for part, config in SAM2_CONFIGS.items():
        if part in checkpoint.name:
            return config
    raise UserError(f"--sam2-checkpoint {checkpoint.name}: can't tell its size from the name; give --sam2-config")


def _load_sam2(checkpoint: Path, config: str, device):
    try:
        from sam2.build_sam import build_sam2
        from sam2.sam2_image_predictor import SAM2ImagePredictor
    except ImportError as error:
        raise UserError(f"the package sam2 is not installed ({error}): see requirements.txt, or {ADVICE}") from None
    try:
        return SAM2ImagePredictor(build_sam2(config, str(checkpoint), device=str(device)))
    except Exception as error:  # hydra, torch and sam2 each raise their own kinds
        raise UserError(
            f"--sam2-checkpoint {checkpoint} does not load with --sam2-config {config} ({type(error).__name__})"
        ) from None


class Reference:
    """The reference objects of a data folder in place of a detector, where the detector's weights can't be had.

    Reads instances/<stem>.png (uint16 [H,W], 0 = none, a number an object) and labels/<stem>.* (classes). Taken are
    persons, furniture and small things of class other; floor, wall, glass and ceiling are left to geometry.
    Without instances/, connected components of persons and furniture in labels/ are the objects.
    """

    def __init__(self, reference_dir: Path):
        self.labels = existing_dir(reference_dir / "labels", "--reference-dir")
        self.instances = reference_dir / "instances" if (reference_dir / "instances").is_dir() else None
        kind = "instances and labels" if self.instances else "labels"
        self.provenance = {"backend": "reference", "model": f"reference {kind}"}

    def __call__(self, stem: str, rgb: np.ndarray) -> list[DetectedObject]:
        labels = self._read(self.labels, stem, read_classes, rgb)
        if self.instances is None:
            return _components(labels)
        instances = self._read(self.instances, stem, read_png_raw, rgb)
        return _instances(labels, instances)

    def _read(self, folder: Path, stem: str, read, rgb: np.ndarray) -> np.ndarray:
        path = find_map(folder, stem)
        if path is None:
            raise UserError(f"{folder} has no map for frame {stem}")
        array = read(path)
        if array.shape != rgb.shape[:2]:
            raise UserError(f"{path} is not of its image's size")
        return array


def _instances(labels: np.ndarray, instances: np.ndarray) -> list[DetectedObject]:
    counts = np.zeros((int(instances.max()) + 1, IGNORE + 1), dtype=np.int64)
    np.add.at(counts, (instances.ravel(), labels.ravel()), 1)
    counts[:, IGNORE] = 0
    objects = []
    for number in np.flatnonzero(counts.sum(axis=1)):
        class_id = int(counts[number].argmax())
        small = counts[number].sum() < LARGEST_OTHER * labels.size
        if number and (class_id in (PERSON, FURNITURE) or class_id == OTHER and small):
            objects.append(_with_box(class_id, instances == number))
    return objects


def _components(labels: np.ndarray) -> list[DetectedObject]:
    objects = []
    for class_id in (PERSON, FURNITURE):
        count, components, stats, _ = cv2.connectedComponentsWithStats((labels == class_id).astype(np.uint8))
        large = (n for n in range(1, count) if stats[n, cv2.CC_STAT_AREA] >= SMALLEST_COMPONENT)
        objects += [_with_box(class_id, components == number) for number in large]
    return objects


def _with_box(class_id: int, mask: np.ndarray) -> DetectedObject:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)
    return DetectedObject(class_id, box, mask)


def add_object_flags(parser: argparse.ArgumentParser) -> None:
    """--backend, --reference-dir, --yolo-weights, --sam2-checkpoint, --sam2-config."""
    weights = Config().weights_dir
    parser.add_argument(
        "--backend",
        choices=("yolo-sam2", "reference"),
        default="yolo-sam2",
        help="objects from YOLO and SAM2, or from reference instances in their place (default: yolo-sam2)",
    )
    parser.add_argument(
        "--reference-dir",
        metavar="D",
        help="data folder whose labels/ and instances/ --backend reference takes "
        "(default: the one that holds the image folder)",
    )
    parser.add_argument(
        "--yolo-weights",
        type=Path,
        default=weights / "yolov8x.pt",
        metavar="PT",
        help="ultralytics weights of a COCO detector (default: %(default)s)",
    )
    parser.add_argument(
        "--sam2-checkpoint",
        type=Path,
        default=weights / "sam2.1_hiera_large.pt",
        metavar="PT",
        help="SAM2 weights (default: %(default)s)",
    )
    parser.add_argument(
        "--sam2-config",
        metavar="YAML",
        help="config in the sam2 package (default: the one of the checkpoint's name)",
    )


def load_object_backend(args: argparse.Namespace, input_dir: Path) -> ObjectBackend:
    """The backend that the flags name; raises UserError when its package, weights or folder can't be had."""
    if args.backend == "yolo-sam2":
        return YoloSam2(args.yolo_weights, args.sam2_checkpoint, args.sam2_config, args.device)
    return Reference(existing_dir(args.reference_dir or input_dir.resolve().parent, "--reference-dir"))
