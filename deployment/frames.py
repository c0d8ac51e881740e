"""The frames that exported graphs are compared on and Table III is scored on: held out from training."""

from pathlib import Path

import numpy as np

from cli import UserError
from config import NYU_INTRINSICS, Config
from dataset.files import atomic_path, read_image
from dataset.frames import MILLIMETRES, Frame, read_frame, to_network_camera, to_network_rgb
from dataset.manifest import Row, read_manifest
from models.metrics import eigen_crop
from training.feed import choose_rows, pack_frame

RANDOM_IMAGES = 4  # what graphs are compared on when there are no held-out frames


def find_manifest(manifest: Path | None, config: Config) -> Path | None:
    """The manifest that is named, else the data folder's, else the rendered rooms'; None when there is none."""
    candidates = [config.teacher_data_dir, config.data_root / "rooms_teacher_data"]
    found = [folder / "manifest.jsonl" for folder in candidates if (folder / "manifest.jsonl").is_file()]
    return manifest or (found[0] if found else None)


def find_test_rows(manifest: Path, train_stems: list[str], limit: int) -> tuple[list[Row], str]:
    """Rows of the test split that the student was not trained on, and what they are in words.

    Raises UserError when the manifest is unreadable or has no such row.
    """
    trained = set(train_stems)
    test_rows = [row for row in read_manifest(manifest) if row.split == "test"]
    rows = [row for row in test_rows if row.stem not in trained]
    if len(rows) < len(test_rows):
        print(f"left out {len(test_rows) - len(rows)} test frames of {manifest}: the student was trained on them")
    if not rows:
        raise UserError(f"{manifest} has no frame of the split 'test' that the student was not trained on")
    rows = choose_rows(rows, "test", limit)
    return rows, f"{len(rows)} test frames of {manifest.parent.name}/{manifest.name}"


def calibration_images(manifest: Path, test_rows: list[Row], limit: int, config: Config) -> np.ndarray:
    """Frames of the split 'train' at the network's size, uint8 [N,H,W,3], at most `limit` spread evenly over it.

    Raises UserError when there is none, or when one of them is a test frame: int8 would be tuned to its own test.
    """
    rows = choose_rows(read_manifest(manifest), "train", limit)
    tested = {row.rgb.resolve() for row in test_rows}
    if shared := [row.stem for row in rows if row.rgb.resolve() in tested]:
        raise UserError(f"{manifest}: int8 can't be calibrated on test frames, and {shared[0]} is one")
    return np.stack([to_network_rgb(read_image(row.rgb), config.width, config.height) for row in rows])


def evaluation_frames(rows: list[Row], config: Config) -> dict[str, np.ndarray]:
    """The arrays of eval_frames.npz: what Table III is computed from, at the network's size.

    Returns: rgb uint8 [N,H,W,3]; depth float32 [N,H,W], metres of the frame's own camera, 0 where the sensor gave
        none that is trusted or the benchmark of the data does not score; labels uint8 [N,H,W], reference classes, 255
        = none; focal float32 [N], pixels at this size (the reference's for a frame without intrinsics);
        stems, fixed-width strings [N].
    """
    frames = [read_frame(row) for row in rows]
    packed = [pack_frame(frame, config.width, config.height) for frame in frames]
    return {
        "rgb": np.stack([maps["rgb"] for maps in packed]),
        "depth": np.stack([_trusted_depth(*pair, config) for pair in zip(frames, packed, strict=True)]),
        "labels": np.stack([maps["labels"][..., 0] for maps in packed]),
        "focal": np.array([_focal(frame, config) for frame in frames], dtype=np.float32),
        "stems": np.array([frame.stem for frame in frames]),
    }


def _trusted_depth(frame: Frame, packed: dict[str, np.ndarray], config: Config) -> np.ndarray:
    confident = packed["confidence"] >= config.confidence_threshold * 255
    depth = np.where(confident, packed["depth"], 0)[..., 0].astype(np.float32) / np.float32(MILLIMETRES)
    if frame.intrinsics != NYU_INTRINSICS:
        return depth
    scored = np.zeros_like(depth)
    window = eigen_crop(*depth.shape)
    scored[window] = depth[window]
    return scored


def _focal(frame: Frame, config: Config) -> float:
    if frame.intrinsics is None:
        return config.reference_focal
    return to_network_camera(frame.intrinsics, config.width, config.height).focal


def write_evaluation_frames(path: Path, frames: dict[str, np.ndarray] | None) -> None:
    """Write eval_frames.npz; without frames an older one goes away."""
    if frames:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **frames)
    elif path.is_file():
        path.unlink()
        print(f"removed {path}: this export has no held-out frames")


def random_images(height: int, width: int) -> np.ndarray:
    """uint8 [RANDOM_IMAGES,H,W,3], always the same."""
    return np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, height, width, 3), dtype=np.uint8)
