"""Images for calibrating exported graphs, and for comparing them if there are no held-out frames."""

from collections.abc import Sequence
from pathlib import Path

from cli import UserError

import numpy as np

from config import Recipe, Runtime
from dataset.files import read_image
from dataset.frames import to_network_rgb
from dataset.identity import content_sample
from dataset.manifest import Row, read_manifest, select_rows

N_RANDOM_IMAGES = 4  # compared on without held-out frames


def find_manifest(manifest: Path | None, runtime: Runtime) -> Path | None:
    """The given manifest, else the data folder's, else that of the rendered rooms; None if none exists."""
    candidates = [runtime.teacher_data_dir, runtime.data_root / "rooms_teacher_data"]
    found = [folder / "manifest.jsonl" for folder in candidates if (folder / "manifest.jsonl").is_file()]
    return manifest or (found[0] if found else None)


def calibration_images(
    manifest: Path, test_rows: list[Row], limit: int, recipe: Recipe, allowed_links: Sequence[Path] = ()
) -> np.ndarray:
    """Load at most `limit` evenly spaced training frames at the network's input size, uint8 [N,H,W,3].

    allowed_links: see read_manifest().

    Raises UserError if there is none, or if one of them is a test frame: int8 must not be tuned to its own test.
    """
    rows = select_rows(read_manifest(manifest, allowed_links), "train", limit)
    test_images = {content_sample(row.rgb) for row in test_rows}
    if shared := [row.stem for row in rows if content_sample(row.rgb) in test_images]:
        raise UserError(f"{manifest}: int8 can't be calibrated on test frames, and {shared[0]} is one")
    return np.stack([to_network_rgb(read_image(row.rgb), recipe.width, recipe.height) for row in rows])


def random_images(height: int, width: int) -> np.ndarray:
    """Random images, uint8 [N_RANDOM_IMAGES,H,W,3], the same each time."""
    return np.random.default_rng(0).integers(0, 256, (N_RANDOM_IMAGES, height, width, 3), dtype=np.uint8)
