"""The frames that Table III is scored on: held out from training, at the network's input size (eval_frames.npz)."""

from collections.abc import Sequence
from pathlib import Path

from cli import UserError

import numpy as np

from config import Recipe
from dataset.files import atomic_path
from dataset.frames import MILLIMETRES, Frame, read_frame, to_network_camera
from dataset.identity import content_sample
from dataset.manifest import Row, read_manifest, select_rows
from dataset.packing import pack_frame
from evaluation.pixels import depth_mask


def find_test_rows(
    manifest: Path, metadata: dict, limit: int, allowed_links: Sequence[Path] = ()
) -> tuple[list[Row], str]:
    """Rows of the test split that the student was not trained on, and a description of them.

    Frames are identified by the content of their images, because all loaders name frames from 000001 on. Older
    checkpoints store only names.

    Args:
        manifest: its path.
        metadata: metadata of the student's checkpoint.
        limit: maximum number of rows, evenly spaced over the split.
        allowed_links: see read_manifest().

    Raises UserError if the manifest is unreadable or has no such row.
    """
    test_rows = [row for row in read_manifest(manifest, allowed_links) if row.split == "test"]
    if "train_images" in metadata:
        images = set(metadata["train_images"])
        rows = [row for row in test_rows if content_sample(row.rgb) not in images]
    else:
        stems = set(metadata.get("train_stems", ()))
        rows = [row for row in test_rows if row.stem not in stems]
    if len(rows) < len(test_rows):
        print(f"skipped {len(test_rows) - len(rows)} test frames of {manifest}: the student was trained on them")
    if not rows:
        raise UserError(f"{manifest} has no frame of the split 'test' that the student was not trained on")
    rows = select_rows(rows, "test", limit)
    return rows, f"{len(rows)} test frames of {manifest.parent.name}/{manifest.name}"


def evaluation_frames(rows: list[Row], recipe: Recipe) -> dict[str, np.ndarray]:
    """The arrays of eval_frames.npz: the data of Table III, at the network's input size.

    Returns rgb, uint8 [N,H,W,3]; depth, float32 [N,H,W], metres of the frame's own camera, 0 = invalid (see
    evaluation.pixels); labels, uint8 [N,H,W], reference classes, 255 = ignore; focal, float32 [N], pixels at this size
    (the reference focal length for a frame without intrinsics); stems, fixed-width strings [N].
    """
    frames = [read_frame(row) for row in rows]
    packed = [pack_frame(frame, recipe.width, recipe.height) for frame in frames]
    return {
        "rgb": np.stack([maps["rgb"] for maps in packed]),
        "depth": np.stack([_masked_depth(*pair, recipe) for pair in zip(frames, packed, strict=True)]),
        "labels": np.stack([maps["labels"][..., 0] for maps in packed]),
        "focal": np.array([_focal_length(frame, recipe) for frame in frames], dtype=np.float32),
        "stems": np.array([frame.stem for frame in frames]),
    }


def _masked_depth(frame: Frame, packed: dict[str, np.ndarray], recipe: Recipe) -> np.ndarray:
    depth = packed["depth"][..., 0].astype(np.float32) / np.float32(MILLIMETRES)
    confidence = packed["confidence"][..., 0].astype(np.float32) / np.float32(255)
    return np.where(depth_mask(depth, confidence, recipe, frame.intrinsics), depth, np.float32(0))


def _focal_length(frame: Frame, recipe: Recipe) -> float:
    if frame.intrinsics is None:
        return recipe.reference_focal
    return to_network_camera(frame.intrinsics, recipe.width, recipe.height).focal


def write_evaluation_frames(path: Path, frames: dict[str, np.ndarray] | None) -> None:
    """Write eval_frames.npz; without frames, remove an older one."""
    if frames:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **frames)
    elif path.is_file():
        path.unlink()
        print(f"removed {path}: this export has no held-out frames")
