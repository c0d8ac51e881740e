"""Depth teachers: Depth Anything 3, metric models of transformers, or a data folder's own depth.

Each has three steps, so that a stage can read and write in threads while the model runs on a batch:

    prepare(stem, rgb, camera) -> Prepared   the image at the network's input size
    infer(list of Prepared)    -> outputs    the network, on batches of one size
    finish(Prepared, output)   -> depth      float32 [H,W] at the image's size, metres, 0 = invalid
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cli import UserError, check_compiler, existing_dir, install_hint, positive_int, resolve_device

import cv2
import numpy as np

from config import Intrinsics
from dataset.files import sha256_of
from dataset.frames import find_map, read_depth
from dataset.listing import find_data_folder
from hub import is_local
from teacher_infer.stage import gpu_memory, versions_of

if TYPE_CHECKING:
    import torch

DEFAULT_MODELS = {
    "da3": "depth-anything/da3metric-large",
    "transformers": "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
}
WEIGHTS_FILE = "model.safetensors"
PROCESS_RESOLUTION = 504  # longer side of DA3's input in pixels; its default
CANONICAL_FOCAL = 300.0  # pixels; metric depth = focal * raw / 300 (Depth Anything 3's README)
SKY = 0.3  # DA3's sky threshold; above it DA3 fills depth in from an unseeded sample
SMALLEST_SIDE = 28  # pixels, two of DA3's patches
SIZES_COMPILED = 64  # image sizes; beyond Dynamo's default limit of 8 the network would silently run uncompiled
ADVICE = "use --backend reference or --model-id <local folder>"


@dataclass
class Prepared:
    """One frame before the network.

    image: the network's input, float32 tensor [3,h,w], or the reference depth [H,W].
    shape: (H, W) of the original image. camera: of that image; None if the backend needs none.
    """

    image: Any
    shape: tuple[int, int]
    camera: Intrinsics | None


class DepthBackend(Protocol):
    """Predicts depth; `provenance` describes it."""

    provenance: dict

    def prepare(self, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> Prepared:
        """Resize an image uint8 [H,W,3] for the network; raises UserError if it has no depth."""

    def infer(self, prepared: list[Prepared]) -> list:
        """The network's output for each frame."""

    def finish(self, prepared: Prepared, output: Any) -> np.ndarray:
        """Depth float32 [H,W] at the image's size, metres, 0 = invalid."""


def depth_of(backend: DepthBackend, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> np.ndarray:
    """Depth of a single image: float32 [H,W], metres, 0 = invalid."""
    prepared = backend.prepare(stem, rgb, camera)
    return backend.finish(prepared, backend.infer([prepared])[0])


def processed_focal(camera: Intrinsics, width: int, height: int) -> float:
    """Focal length in pixels of the network's input, which has width x height pixels.

    camera: of the original image. Each side is rounded to the patch size, so the two axes have different scales.
    """
    return (camera.fx * width / camera.width + camera.fy * height / camera.height) / 2


class DA3:
    """Depth Anything 3 (https://github.com/ByteDance-Seed/Depth-Anything-3), a metric model.

    Args:
        model_id: name on the Hugging Face hub, or a folder with config.json and model.safetensors.
        device: torch device name.
        process_resolution: longer side of the network's input in pixels.
        batch_size: images per forward pass.
        compiled: compile the network; pays off over thousands of frames.

    Raises UserError if the package or the weights are missing.
    """

    def __init__(
        self,
        model_id: str,
        device: str,
        process_resolution: int = PROCESS_RESOLUTION,
        batch_size: int = 1,
        compiled: bool = False,
    ):
        self.device, self.process_resolution = resolve_device(device), process_resolution
        self.network = _load_da3(model_id).to(self.device).eval()
        name = self.network.model_name
        if "metric" not in name and "nested" not in name:
            print(f"warning: {name} is trained for relative depth; its output is not metric")
        # the nested model fits one scale to the whole batch
        self.batch_size = 1 if "nested" in name else batch_size
        self.model = _compiled(self.network.model, self.device) if compiled else self.network.model
        self.provenance = _provenance("da3", model_id, name, self.device) | {
            "process_resolution": process_resolution,
            "versions": versions_of(("depth-anything-3", "torch")),
        }

    def prepare(self, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> Prepared:
        """Prepare the image with DA3's own processor; raises UserError if it is too small."""
        _check_size(rgb)
        images, _, _ = self.network.input_processor([rgb], process_res=self.process_resolution, sequential=True)
        return Prepared(images[0], rgb.shape[:2], camera)

    def infer(self, prepared: list[Prepared]) -> list[tuple[np.ndarray, np.ndarray | None, bool]]:
        """(raw depth float32 [h,w], sky float32 [h,w] or None, whether raw is metres already) of each frame."""
        return in_batches(prepared, self.batch_size, self._forward)

    def _forward(self, batch: list[Prepared]) -> list[tuple[np.ndarray, np.ndarray | None, bool]]:
        import torch

        # [batch, 1 view, 3, h, w]: views of one batch entry would be mixed by any-view models
        images = torch.stack([p.image for p in batch])[:, None]
        with _inference(self.device):
            output = self.model(images.to(self.device), export_feat_layers=[])
        depth = output.depth.reshape(len(batch), *images.shape[-2:]).float().cpu().numpy()
        skies = [None] * len(batch)
        if "sky" in output:
            skies = output.sky.reshape(depth.shape).float().cpu().numpy()
        return [(raw, sky, bool(getattr(output, "is_metric", 0))) for raw, sky in zip(depth, skies, strict=True)]

    def finish(self, prepared: Prepared, output: tuple[np.ndarray, np.ndarray | None, bool]) -> np.ndarray:
        """Convert to metres by the focal length, unless the output is metric; sky becomes 0."""
        raw, sky, is_metric = output
        height, width = raw.shape
        scale = 1.0
        if not is_metric:
            assert prepared.camera is not None
            scale = processed_focal(prepared.camera, width, height) / CANONICAL_FOCAL
        valid = np.isfinite(raw) & (raw > 0)
        if sky is not None:
            valid &= sky < SKY
        return resize_valid(np.where(valid, raw * scale, 0).astype(np.float32), prepared.shape)


class Transformers:
    """A metric depth model of transformers, such as Depth Anything V2 metric, ZoeDepth or Depth Pro.

    Arguments as for DA3. The library's processor prepares the input and resizes the output. These models take no focal
    length.

    Raises UserError if the weights are missing or give relative depth.
    """

    def __init__(self, model_id: str, device: str, batch_size: int = 1, compiled: bool = False):
        self.device, self.batch_size = resolve_device(device), batch_size
        self.processor, network = _load_transformers(model_id)
        self.network = network.to(self.device).eval()
        _keep_half_precision_to_the_encoder(self.network, self.device)
        self.model = _compiled(self.network, self.device) if compiled else self.network
        self.provenance = _provenance("transformers", model_id, network.config.model_type, self.device) | {
            "head": "float32",  # older labels were rounded to bfloat16 on a GPU
            "versions": versions_of(("transformers", "torch")),
        }

    def prepare(self, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> Prepared:
        """Prepare the image with the library's processor; raises UserError if it is too small."""
        _check_size(rgb)
        return Prepared(self.processor(images=rgb, return_tensors="pt")["pixel_values"][0], rgb.shape[:2], camera)

    def infer(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """Depth float32 [H,W] at the image's size."""
        return in_batches(prepared, self.batch_size, self._forward)

    def _forward(self, batch: list[Prepared]) -> list[np.ndarray]:
        import torch

        images = torch.stack([p.image for p in batch]).to(self.device)
        with _inference(self.device, half=False):
            output = self.model(pixel_values=images)
        # for ZoeDepth the second argument is the size before padding, for the others the target size: here equal
        found = self.processor.post_process_depth_estimation(output, [p.shape for p in batch])
        return [entry["predicted_depth"].float().cpu().numpy() for entry in found]

    def finish(self, prepared: Prepared, output: np.ndarray) -> np.ndarray:
        """Depth float32 [H,W], 0 where the output is invalid."""
        return np.where(np.isfinite(output) & (output > 0), output, 0).astype(np.float32).reshape(prepared.shape)


class Reference:
    """The reference depth of a data folder, for use without a teacher's weights."""

    def __init__(self, depth_dir: Path):
        self.depth_dir = depth_dir
        self.provenance = {"backend": "reference", "model": f"reference depth in {depth_dir.resolve().name}/"}

    def prepare(self, stem: str, rgb: np.ndarray, camera: Intrinsics | None) -> Prepared:
        """The frame's reference depth; raises UserError if it is missing or differs in size from the image."""
        path = find_map(self.depth_dir, stem)
        if path is None:
            raise UserError(f"{self.depth_dir} has no depth for frame {stem}")
        depth = read_depth(path)
        if depth.shape != rgb.shape[:2]:
            sizes = "x".join(map(str, depth.shape[::-1])), "x".join(map(str, rgb.shape[1::-1]))
            raise UserError(f"{path} is {sizes[0]} but its image is {sizes[1]}")
        return Prepared(depth, rgb.shape[:2], camera)

    def infer(self, prepared: list[Prepared]) -> list[np.ndarray]:
        """The depth, unchanged."""
        return [p.image for p in prepared]

    def finish(self, prepared: Prepared, output: np.ndarray) -> np.ndarray:
        """The depth, unchanged."""
        return output


def in_batches(prepared: list[Prepared], batch_size: int, forward: Callable[[list[Prepared]], list]) -> list:
    """Run `forward` on batches of batch_size frames of one size; returns the outputs in the order of the frames.

    An incomplete batch repeats its last frame. A compiled network then sees one shape, and the result of a frame does
    not depend on the batch, so that a resumed run writes the same bytes.
    """
    by_size: dict[tuple, list[int]] = {}
    for index, frame in enumerate(prepared):
        by_size.setdefault(tuple(frame.image.shape), []).append(index)
    outputs = [None] * len(prepared)
    for indices in by_size.values():
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            filled = chosen + chosen[-1:] * (batch_size - len(chosen))
            results = forward([prepared[index] for index in filled])
            for index, result in zip(chosen, results[: len(chosen)], strict=True):
                outputs[index] = result
    return outputs


def resize_valid(depth: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of a map float32 [h,w] to (H, W) over valid values only; 0 where the nearest is 0."""
    size = shape[::-1]
    valid = (depth > 0).astype(np.float32)
    weight = cv2.resize(valid, size, interpolation=cv2.INTER_LINEAR)
    nearest = cv2.resize(valid, size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    full = cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR)
    return np.where(nearest & (weight > 0), full / np.maximum(weight, 1e-6), 0).astype(np.float32)


def _check_size(rgb: np.ndarray) -> None:
    if min(rgb.shape[:2]) < SMALLEST_SIDE:
        raise UserError(f"the image is {rgb.shape[1]}x{rgb.shape[0]} pixels, too small for a depth model")


def half_precision(device: torch.device) -> AbstractContextManager:
    """Autocast on a GPU, to bfloat16 if supported."""
    import torch

    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
    return torch.autocast(device.type, dtype=dtype, enabled=device.type != "cpu")


def _keep_half_precision_to_the_encoder(network: Any, device: torch.device) -> None:
    """Run the encoder of a transformers network in half precision and its head in float32.

    A head in bfloat16 would round metres to 62 mm at 8 to 16 m.
    """
    parts = (getattr(network, "backbone", None), getattr(getattr(network, "depth_pro", None), "encoder", None))
    encoder = next((part for part in parts if part is not None), None)
    if encoder is None:
        return
    forward = encoder.forward

    def encode(*arguments: Any, **named: Any) -> Any:
        with half_precision(device):
            output = forward(*arguments, **named)
        return _as_float32(output)

    encoder.forward = encode


def _as_float32(output: Any) -> Any:
    """Convert an encoder's output, tensors in tuples, lists or dictionaries, to float32."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.float()
    if isinstance(output, Mapping):
        return type(output)(**{name: _as_float32(value) for name, value in output.items()})
    return type(output)(map(_as_float32, output)) if isinstance(output, tuple | list) else output


@contextlib.contextmanager
def _inference(device: torch.device, half: bool = True) -> Iterator[None]:
    """inference_mode with half precision on a GPU; running out of GPU memory ends the stage."""
    import torch

    with gpu_memory(), torch.inference_mode(), half_precision(device) if half else contextlib.nullcontext():
        yield


def _compiled(module: torch.nn.Module, device: torch.device) -> Callable[..., Any]:
    import torch

    check_compiler(device)
    torch._dynamo.config.recompile_limit = SIZES_COMPILED
    return torch.compile(module)


def _check_model_folder(model_id: str) -> None:
    for name in ("config.json", WEIGHTS_FILE):
        if Path(model_id).is_dir() and not (Path(model_id) / name).is_file():
            raise UserError(f"--model-id {model_id}: the folder holds no {name}")


def _not_loaded(model_id: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
    return UserError(f"weights of {model_id} can't be loaded ({reason}): {ADVICE}")


def _load_da3(model_id: str) -> Any:
    _check_model_folder(model_id)
    os.environ.setdefault("DA3_LOG_LEVEL", "ERROR")  # two messages per frame about 3D export
    try:
        from depth_anything_3.api import DepthAnything3
    except ImportError as error:
        raise UserError(
            f"depth-anything-3 is not installed completely ({error}): {install_hint('depth_anything_3')}, or {ADVICE}"
        ) from None
    local = is_local(model_id, ("config.json",), (WEIGHTS_FILE,))
    try:
        return DepthAnything3.from_pretrained(model_id, local_files_only=local)
    except Exception as error:  # the hub's client, safetensors and torch raise different types
        raise _not_loaded(model_id, error) from None


def _load_transformers(model_id: str) -> tuple[Any, Any]:
    _check_model_folder(model_id)
    try:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError as error:
        raise UserError(
            f"the package transformers is not installed ({error}): {install_hint('transformers')}, or {ADVICE}"
        ) from None
    local = is_local(model_id, ("config.json",), (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json"))  # or in shards
    try:
        processor = AutoImageProcessor.from_pretrained(model_id, local_files_only=local)
        network = AutoModelForDepthEstimation.from_pretrained(model_id, use_safetensors=True, local_files_only=local)
    except Exception as error:  # the hub's client, safetensors and torch raise different types
        raise _not_loaded(model_id, error) from None
    if getattr(network.config, "depth_estimation_type", "metric") == "relative":
        raise UserError(f"--model-id {model_id} gives relative depth: use a metric model")
    return processor, network


def _provenance(backend: str, model_id: str, architecture: str, device: torch.device) -> dict:
    folder = Path(model_id)
    weights = folder / WEIGHTS_FILE
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        weights = Path(try_to_load_from_cache(model_id, WEIGHTS_FILE) or "absent")
    return {
        "backend": backend,
        "model": folder.resolve().name if folder.is_dir() else model_id,
        "architecture": architecture,
        "weights_sha256": sha256_of(weights) if weights.is_file() else None,
        "precision": "float32" if device.type == "cpu" else "half",
    }


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """--backend, --reference-depth-dir, --model-id, --process-res, --compile."""
    parser.add_argument(
        "--backend",
        choices=("da3", "transformers", "reference"),
        default="da3",
        help="da3: Depth Anything 3; transformers: a metric model of that library; reference: the data's own "
        "depth in a teacher's place (default: da3)",
    )
    parser.add_argument(
        "--reference-depth-dir",
        metavar="DEPTH",
        help="depth for --backend reference (default: depth/ beside the image folder)",
    )
    models = ", ".join(f"{model} for {backend}" for backend, model in DEFAULT_MODELS.items())
    parser.add_argument(
        "--model-id", help=f"Hugging Face name, or a folder with config.json and {WEIGHTS_FILE} (default: {models})"
    )
    parser.add_argument(
        "--process-res",
        type=positive_int,
        default=PROCESS_RESOLUTION,
        help="longer side of DA3's input in pixels (default: %(default)s)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: pays over many frames")


def load_depth_backend(args: argparse.Namespace, input_dir: Path, batch_size: int) -> DepthBackend:
    """Create the backend of the flags; raises UserError if its package, weights or folder are missing."""
    if args.backend == "reference":
        folder = args.reference_depth_dir or find_data_folder(input_dir) / "depth"
        return Reference(existing_dir(folder, "--reference-depth-dir"))
    model_id = args.model_id or DEFAULT_MODELS[args.backend]
    if args.backend == "da3":
        return DA3(model_id, args.device, args.process_res, batch_size, args.compile)
    return Transformers(model_id, args.device, batch_size, args.compile)
