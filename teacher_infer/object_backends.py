"""Object teachers: YOLO boxes with SAM2 masks, or the reference instances of a data folder.

Both take several images at once and return the objects of each: find([(stem, rgb)]) -> [[DetectedObject]].
"""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cli import UserError, existing_dir, existing_file, install_hint, resolve_device

import cv2
import numpy as np

from config import CLASS_NAMES, DETECTOR_CLASSES, IGNORE, Runtime
from dataset.files import read_png_raw, sha256_of
from dataset.frames import find_map, read_classes
from dataset.listing import find_data_folder
from hub import is_published
from teacher_infer.stage import gpu_memory, versions_of

if TYPE_CHECKING:
    import torch

PERSON, FURNITURE, OTHER = (CLASS_NAMES.index(name) for name in ("person", "furniture", "other"))

SAM2_CONFIGS = {  # part of the checkpoint's file name -> config that ships with the package
    f"{version}_hiera_{size}": f"configs/{version}/{version}_hiera_{letter}.yaml"
    for version in ("sam2.1", "sam2")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}
DETECTION_CONFIDENCE = 0.25
BOXES_AT_ONCE = 32  # box prompts per SAM2 call; more do not fit a small GPU
SMALLEST_IOU = 0.5  # minimum IoU that SAM2 predicts for a mask; below it the prompt has failed
SMALLEST_INSIDE = 0.5  # minimum fraction of a mask inside its box; below it the prompt has failed
ISLAND = 0.05  # minimum size of a part, relative to the largest: a chair behind a table has several
HOLE = 0.02  # holes up to this fraction of the mask are filled
LARGEST_OTHER = 0.10  # of the image; larger reference instances of class other are ceilings and passages
SMALLEST_COMPONENT = 64  # pixels
ADVICE = "use --backend reference"


@dataclass
class DetectedObject:
    """class_id 0..5; box float [4] x0 y0 x1 y1 in pixels; mask bool [H,W]; score 0..1, the detector's."""

    class_id: int
    box: np.ndarray
    mask: np.ndarray
    score: float = 1.0


class ObjectBackend(Protocol):
    """Finds objects in images; `provenance` describes it."""

    provenance: dict

    def find(self, frames: list[tuple[str, np.ndarray]]) -> list[list[DetectedObject]]:
        """The objects of each (stem, image uint8 [H,W,3]); raises UserError if a frame fails."""


def student_class(name: str) -> int:
    """Map a detector's class to a student class, by config.DETECTOR_CLASSES."""
    return CLASS_NAMES.index(DETECTOR_CLASSES.get(name, "other"))


class YoloSam2:
    """YOLO detects boxes, SAM2 segments them: each image is encoded once, and its boxes are one batch of prompts.

    Args:
        yolo_weights: a pickle of ultralytics. It is loaded with ultralytics' list of allowed classes, unless it is
            trusted, or its source publishes its sha256 (hub.is_published()).
        sam2_checkpoint: state dict of SAM2.
        sam2_config: name of a config in the sam2 package; None: the one of the checkpoint's name.
        device: torch device name.
        trust_yolo: unpickle yolo_weights without restrictions, which runs whatever code the file holds.

    Raises UserError if a package or a weights file is missing or unusable, if the YOLO file needs more than the allowed
    classes, or if the detector knows neither person nor furniture.
    """

    def __init__(
        self,
        yolo_weights: Path,
        sam2_checkpoint: Path,
        sam2_config: str | None,
        device: str,
        trust_yolo: bool = False,
    ):
        self.device = resolve_device(device)
        weights = existing_file(yolo_weights, f"--yolo-weights ({ADVICE} without it)")
        self.detector, self.classes = _load_yolo(weights, trust_yolo or is_published(weights))
        checkpoint = existing_file(sam2_checkpoint, f"--sam2-checkpoint ({ADVICE} without it)")
        config = sam2_config or _config_of(checkpoint)
        self.predictor = _load_sam2(checkpoint, config, self.device)
        self.provenance = {
            "backend": "yolo-sam2",
            "model": f"{Path(yolo_weights).name} + {checkpoint.name}",
            "weights_sha256": {"yolo": sha256_of(yolo_weights), "sam2": sha256_of(checkpoint)},
            "sam2_config": config,
            "detection_confidence": DETECTION_CONFIDENCE,
            "masks_of_a_box": 1,
            "versions": versions_of(("ultralytics", "sam2", "torch")),
        }

    def find(self, frames: list[tuple[str, np.ndarray]]) -> list[list[DetectedObject]]:
        """The objects of each frame; images of one size form one detector batch."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, (_, rgb) in enumerate(frames):
            by_size.setdefault(rgb.shape[:2], []).append(index)
        found: list[list[DetectedObject]] = [[] for _ in frames]
        for indices in by_size.values():  # mixed sizes would be padded to squares, which changes the boxes
            bgr = [np.ascontiguousarray(frames[index][1][..., ::-1]) for index in indices]  # ultralytics expects BGR
            with gpu_memory():
                results = self.detector.predict(bgr, conf=DETECTION_CONFIDENCE, device=str(self.device), verbose=False)
                for index, result in zip(indices, results, strict=True):
                    found[index] = self._outline(frames[index][1], result.boxes)
        return found

    def _outline(self, rgb: np.ndarray, boxes: Any) -> list[DetectedObject]:
        if len(boxes) == 0:
            return []
        corners, names = boxes.xyxy.cpu().numpy(), [self.classes[i] for i in boxes.cls.int().tolist()]
        masks, ious = self.masks_of(rgb, corners)
        return [
            DetectedObject(student_class(name), box, clean_mask(mask), score)
            for name, box, mask, iou, score in zip(names, corners, masks, ious, boxes.conf.tolist(), strict=True)
            if iou >= SMALLEST_IOU and inside_box(mask, box) >= SMALLEST_INSIDE
        ]

    def masks_of(self, rgb: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """SAM2's mask for each box [N,4], bool [N,H,W], and its predicted IoU [N].

        One mask per box (multimask_output=False), as its authors use it. Three masks are for points, where the object
        may be a part or the whole; the best of three may be a part.
        """
        import torch

        masks, ious = [], []
        half = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")
        with torch.inference_mode(), half:
            self.predictor.set_image(rgb)
            for start in range(0, len(boxes), BOXES_AT_ONCE):
                chunk = boxes[start : start + BOXES_AT_ONCE]
                found, estimates, _ = self.predictor.predict(box=chunk, multimask_output=False)
                masks.append(found.reshape(len(chunk), *rgb.shape[:2]) > 0)
                ious.append(estimates.reshape(len(chunk)))
        return np.concatenate(masks), np.concatenate(ious)


def inside_box(mask: np.ndarray, box: np.ndarray) -> float:
    """Fraction of a mask inside a box x0 y0 x1 y1; 0 for an empty mask."""
    x0, y0 = np.maximum(np.floor(box[:2]), 0).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    return float(mask[y0:y1, x0:x1].sum() / max(mask.sum(), 1))


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Remove small islands (ISLAND) and fill small holes (HOLE) of a mask bool [H,W]."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not len(areas):
        return mask
    kept = np.concatenate([[False], areas >= ISLAND * areas.max()])[parts]
    _, gaps, stats, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= HOLE * kept.sum()
    small[0] = False  # the mask itself
    rim = np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]])
    small[rim] = False  # touches the border: not a hole
    return kept | small[gaps]


def _load_yolo(weights: Path, trusted: bool) -> tuple[Any, dict[int, str]]:
    os.environ.setdefault("YOLO_OFFLINE", "true")  # compute nodes have no network
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    try:
        from ultralytics import YOLO
        from ultralytics.nn import tasks
        from ultralytics.utils import ROOT, YAML
    except ImportError as error:
        raise UserError(
            f"the package ultralytics is not installed ({error}): {install_hint('ultralytics')}, or {ADVICE}"
        ) from None
    if not trusted and not hasattr(tasks, "SAFE_LOAD"):
        raise UserError(f"this ultralytics can't restrict what --yolo-weights may load: {install_hint('ultralytics')}")
    tasks.SAFE_LOAD = not trusted  # ULTRALYTICS_SAFE_LOAD is read once, perhaps before this
    try:
        detector = YOLO(str(weights))
        names = dict(detector.names)
    except Exception as error:  # unpickling can raise anything
        if isinstance(error.__cause__, pickle.UnpicklingError) and zipfile.is_zipfile(weights):
            raise UserError(
                f"--yolo-weights {weights} holds more than ultralytics' own classes, so loading it could run any code: "
                "use the file of its makers, or add --trust-yolo-weights"
            ) from None
        raise UserError(f"--yolo-weights {weights}: not a YOLO weights file ({type(error).__name__})") from None
    if names == {i: str(i) for i in range(80)}:  # weights of a bare architecture have numbers for class names
        names = dict(YAML.load(ROOT / "cfg" / "datasets" / "coco.yaml")["names"])
    if not set(names.values()) & set(DETECTOR_CLASSES):
        raise UserError(f"--yolo-weights {weights}: none of its {len(names)} classes is in config.DETECTOR_CLASSES")
    return detector, names


def _config_of(checkpoint: Path) -> str:
    for part, config in SAM2_CONFIGS.items():
        if part in checkpoint.name:
            return config
    raise UserError(f"--sam2-checkpoint {checkpoint.name}: can't infer its size from the name; add --sam2-config")


def _load_sam2(checkpoint: Path, config: str, device: torch.device) -> Any:
    try:
        from sam2.build_sam import build_sam2
        from sam2.sam2_image_predictor import SAM2ImagePredictor
    except ImportError as error:
        raise UserError(f"the package sam2 is not installed ({error}): {install_hint('sam2')}, or {ADVICE}") from None
    try:
        return SAM2ImagePredictor(build_sam2(config, str(checkpoint), device=str(device)))
    except Exception as error:  # hydra, torch and sam2 raise different types
        raise UserError(
            f"--sam2-checkpoint {checkpoint} does not load with --sam2-config {config} ({type(error).__name__})"
        ) from None


class Reference:
    """The reference objects of a data folder, for use without detector weights.

    Reads instances/<stem>.png (uint16 [H,W], 0 = none, one number per object) and labels/<stem>.* (classes). It returns
    persons, furniture and small objects of class other; floor, wall, glass and ceiling are left to geometry. Without
    instances/, the objects are the connected components of persons and furniture in labels/.
    """

    def __init__(self, reference_dir: Path):
        self.labels = existing_dir(reference_dir / "labels", "--reference-dir")
        self.instances = reference_dir / "instances" if (reference_dir / "instances").is_dir() else None
        kind = "instances and labels" if self.instances else "labels"
        self.provenance = {"backend": "reference", "model": f"reference {kind}"}

    def find(self, frames: list[tuple[str, np.ndarray]]) -> list[list[DetectedObject]]:
        """The objects of each frame; raises UserError if a map is missing or differs in size from its image."""
        return [self._find(stem, rgb) for stem, rgb in frames]

    def _find(self, stem: str, rgb: np.ndarray) -> list[DetectedObject]:
        labels = self._read(self.labels, stem, read_classes, rgb)
        if self.instances is None:
            return _components(labels)
        instances = self._read(self.instances, stem, read_png_raw, rgb)
        return _instances(labels, instances)

    def _read(self, folder: Path, stem: str, read: Callable[[Path], np.ndarray], rgb: np.ndarray) -> np.ndarray:
        path = find_map(folder, stem)
        if path is None:
            raise UserError(f"{folder} has no map for frame {stem}")
        array = read(path)
        if array.shape != rgb.shape[:2]:
            raise UserError(f"{path} differs in size from its image")
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
    """--backend, --reference-dir, --yolo-weights, --trust-yolo-weights, --sam2-checkpoint, --sam2-config."""
    weights = Runtime().weights_dir
    parser.add_argument(
        "--backend",
        choices=("yolo-sam2", "reference"),
        default="yolo-sam2",
        help="objects from YOLO and SAM2, or from reference instances (default: yolo-sam2)",
    )
    parser.add_argument(
        "--reference-dir",
        metavar="D",
        help="data folder with labels/ and instances/ for --backend reference "
        "(default: the one that holds the image folder)",
    )
    parser.add_argument(
        "--yolo-weights",
        type=Path,
        default=weights / "yolov8x.pt",
        metavar="PT",
        help="ultralytics weights; classes by config.DETECTOR_CLASSES, others are other (default: %(default)s)",
    )
    parser.add_argument(
        "--trust-yolo-weights",
        action="store_true",
        help="load --yolo-weights without restrictions: this runs any code that the file holds",
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
    """Create the backend of the flags; raises UserError if its package, weights or folder are missing."""
    if args.backend == "yolo-sam2":
        return YoloSam2(
            args.yolo_weights, args.sam2_checkpoint, args.sam2_config, args.device, args.trust_yolo_weights
        )
    return Reference(existing_dir(args.reference_dir or find_data_folder(input_dir), "--reference-dir"))
