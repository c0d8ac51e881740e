"""Depth teachers: Depth Anything 3, and the reference depth of a data folder in its place.

Both are called with one image and give its depth: backend(stem, rgb, camera) -> float32 [H,W], metres, 0 = none.
"""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from cli import UserError, existing_dir, resolve_device
from config import Intrinsics
from dataset.frames import find_map, read_depth
from teacher_infer.stage import sha256_of, versions_of

DEFAULT_MODEL = "depth-anything/da3metric-large"
WEIGHTS_FILE = "model.safetensors"
PROCESS_RESOLUTION = 504  # pixels of the longer side that the network sees; its own default
CANONICAL_FOCAL = 300.0  # pixels; metric depth = focal * raw / 300 (Depth Anything 3's README)
SKY = 0.3  # the network's own threshold: from here on it fills depth in, from an unseeded sample
ADVICE = "use --backend reference or --model-id <local folder>"


class DepthBackend(Protocol):
    """What makes depth of images; `provenance` says what it is."""

    provenance: dict

    def __call__(self, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> np.ndarray:
        """Depth of an image uint8 [H,W,3] as float32 [H,W], metres, 0 = none; UserError when it has none."""


def processed_focal(camera: Intrinsics, width: int, height: int) -> float:
    """Focal length in pixels of the image that the network sees, width x height pixels.

    camera: of the image before it was resized. Each side is rounded to the patch size, so the axes are scaled apart.
    """
    return (camera.fx * width / camera.width + camera.fy * height / camera.height) / 2


class DA3:
    """Depth Anything 3 (https://github.com/ByteDance-Seed/Depth-Anything-3), a metric model.

    Args:
        model_id: name on the Hugging Face hub, or a folder with config.json and model.safetensors.
        device: torch device name.

    Raises UserError when the package or the weights can't be had.
    """

    def __init__(self, model_id: str, device: str):
        self.device = resolve_device(device)
        self.network = _load_da3(model_id).to(self.device).eval()
        self.provenance = _da3_provenance(model_id, self.network.model_name)
        if "metric" not in self.network.model_name and "nested" not in self.network.model_name:
            print(f"warning: {self.network.model_name} is trained for relative depth; its output is no metres")

    def __call__(self, stem: str, rgb: np.ndarray, camera: Intrinsics) -> np.ndarray:
        import torch

        image, _, _ = self.network.input_processor([rgb], process_res=PROCESS_RESOLUTION, sequential=True)
        height, width = image.shape[-2:]
        with torch.inference_mode(), self._autocast():
            # the inner network takes [batch, views, 3, H, W]; api.inference would ask for half precision on a CPU
            output = self.network.model(image[None].to(self.device), export_feat_layers=[])
        depth = output.depth.reshape(height, width).float().cpu().numpy()
        if not getattr(output, "is_metric", 0):
            depth = depth * (processed_focal(camera, width, height) / CANONICAL_FOCAL)
        sky = output.sky.reshape(height, width).float().cpu().numpy() >= SKY if "sky" in output else None
        return _to_image_size(depth, sky, rgb.shape[:2])

    def _autocast(self):
        import torch

        if self.device.type == "cpu":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)


def _to_image_size(depth: np.ndarray, sky: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    full = cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    full[~(np.isfinite(full) & (full > 0))] = 0
    if sky is not None:
        full[cv2.resize(sky.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0] = 0
    return full


def _load_da3(model_id: str):
    folder = Path(model_id)
    for name in ("config.json", WEIGHTS_FILE):
        if folder.is_dir() and not (folder / name).is_file():
            raise UserError(f"--model-id {model_id}: the folder holds no {name}")
    os.environ.setdefault("DA3_LOG_LEVEL", "ERROR")  # its remarks are about 3D export, and two a frame
    try:
        from depth_anything_3.api import DepthAnything3
    except ImportError as error:
        raise UserError(
            f"the package depth-anything-3 is not installed completely ({error}): see requirements.txt, or {ADVICE}"
        ) from None
    try:
        return DepthAnything3.from_pretrained(model_id)
    except Exception as error:  # the hub's client, safetensors and torch each raise their own kinds
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise UserError(f"weights of {model_id} can't be loaded ({reason}): {ADVICE}") from None


def _da3_provenance(model_id: str, architecture: str) -> dict:
    folder = Path(model_id)
    weights = folder / WEIGHTS_FILE
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        weights = Path(try_to_load_from_cache(model_id, WEIGHTS_FILE) or "absent")
    return {
        "backend": "da3",
        "model": folder.resolve().name if folder.is_dir() else model_id,
        "architecture": architecture,
        "weights_sha256": sha256_of(weights) if weights.is_file() else None,
        "process_resolution": PROCESS_RESOLUTION,
        "versions": versions_of(("depth-anything-3", "torch")),
    }


class Reference:
    """The reference depth of a data folder in place of a teacher, where the teacher's weights can't be had."""

    def __init__(self, depth_dir: Path):
        self.depth_dir = depth_dir
        self.provenance = {"backend": "reference", "model": f"reference depth in {depth_dir.resolve().name}/"}

    def __call__(self, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> np.ndarray:
        path = find_map(self.depth_dir, stem)
        if path is None:
            raise UserError(f"{self.depth_dir} has no depth for frame {stem}")
        depth = read_depth(path)
        if depth.shape != rgb.shape[:2]:
            sizes = "x".join(map(str, depth.shape[::-1])), "x".join(map(str, rgb.shape[1::-1]))
            raise UserError(f"{path} is {sizes[0]} but its image is {sizes[1]}")
        return depth


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """--backend, --reference-depth-dir, --model-id."""
    parser.add_argument(
        "--backend",
        choices=("da3", "reference"),
        default="da3",
        help="da3: Depth Anything 3; reference: the data's own depth in its place (default: da3)",
    )
    parser.add_argument(
        "--reference-depth-dir",
        metavar="DEPTH",
        help="depth that --backend reference takes (default: depth/ beside the image folder)",
    )
    parser.add_argument(
        "--model-id",
        default=DEFAULT_MODEL,
        help=f"Hugging Face name, or a folder with config.json and {WEIGHTS_FILE} (default: {DEFAULT_MODEL})",
    )


def load_depth_backend(args: argparse.Namespace, input_dir: Path) -> DepthBackend:
    """The backend that the flags name; raises UserError when its package, weights or folder can't be had."""
    if args.backend == "da3":
        return DA3(args.model_id, args.device)
    folder = args.reference_depth_dir or input_dir.resolve().parent / "depth"
    return Reference(existing_dir(folder, "--reference-depth-dir"))
