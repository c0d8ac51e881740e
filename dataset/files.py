"""Writing files whole or not at all, and reading them without running what is in them."""

import hashlib
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cli import UserError

import cv2
import numpy as np
from PIL import Image

from dataset.disk import disk_full_named

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEMPORARY_NAME = re.compile(r"\.(.+)\.[^.]+\.part(\.[^.]+)?")


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to it on success and removed on failure.

    The temporary name keeps the target's suffix, because writers such as cv2.imwrite choose a format by it.

    Raises DiskFull, an OSError, when the disk or a quota is full, whatever the writer has raised of it.
    """
    target = Path(target)
    with disk_full_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=f".part{target.suffix}", dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with disk_full_named(target):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; labels are shared in a group
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def target_of_temporary(name: str) -> str | None:
    """The stem of the file that a temporary name of atomic_path() is meant to become; None for any other name."""
    match = TEMPORARY_NAME.fullmatch(name)
    return match[1] if match else None


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left half-written in a folder that nobody else writes to."""
    for path in folder.glob(".*.part*"):
        if target_of_temporary(path.name):
            path.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy, whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 [H,W], uint16 [H,W] or RGB uint8 [H,W,3] as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
        if not cv2.imwrite(str(temporary), pixels):
            raise OSError(f"could not write {path}")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON with two spaces of indent, whole or not at all; NaN, which JSON has no word for, becomes null."""
    with atomic_path(path) as temporary:
        text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; raises UserError when it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None


def read_npy(path: str | Path) -> np.ndarray:
    """Load one .npy array, pickling off; raises UserError when it is missing, truncated or no array."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive, not one .npy array")
    return array


def read_image(path: str | Path) -> np.ndarray:
    """Read an 8-bit RGB image as uint8 [H,W,3]; an alpha channel is dropped, a palette is looked up.

    Raises UserError when it can't be decoded to its end, or is no 8-bit RGB: a grey, CMYK or 16-bit file in a folder
    of images is another sensor's picture, and a teacher would label it without a word.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.mode not in ("RGB", "RGBA", "P") or _png_bit_depth(file) == 16:
                raise UserError(f"{path} is no 8-bit RGB image (mode {image.mode})")
            image.load()  # unlike OpenCV it refuses a file that ends too early
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ImportError:  # ultralytics replaces Image.open by one that asks for a reader of HEIC files
        raise UserError(f"{path} is not a readable image") from None
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image: {error}") from None


def _png_bit_depth(file: BinaryIO) -> int | None:
    # Pillow reads 16-bit RGB as 8-bit without saying so; the header's 25th byte is the bit depth (PNG, section 11.2.2)
    position = file.tell()
    file.seek(0)
    head = file.read(25)
    file.seek(position)
    return head[24] if len(head) == 25 and head.startswith(PNG_SIGNATURE) else None


def read_png_raw(path: str | Path) -> np.ndarray:
    """Read a single-channel PNG with its own bit depth: uint8 or uint16 [H,W]; raises UserError otherwise."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} is not a readable single-channel 8- or 16-bit PNG")
    return image


def claim_data_folder(out: Path, source: dict[str, Any], maps: Iterable[str]) -> None:
    """Make a loader's data folder with its source.json and clear it of what a killed run has left half-written.

    Args:
        out: the folder, made where it is missing.
        source: what the folder is made from, and with which settings; plain JSON.
        maps: names of its sub-folders.

    Raises UserError when it can't be written or holds frames of another source or of other settings.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for leftover in (part for name in maps for part in (out / name).rglob(".*.part.*")):
            leftover.unlink()
        if not (out / "source.json").is_file():
            write_json(out / "source.json", source)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None
    if read_json(out / "source.json") != source:
        raise UserError(
            f"{out} holds frames of another source or other settings, see its source.json: choose another --out"
        )


def write_failed_frames(path: Path, failed: dict[str, str]) -> None:
    """Write {stem: reason} as one {"stem", "reason"} a line; when nothing failed, an older file goes away."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        lines = (json.dumps({"stem": stem, "reason": reason}) + "\n" for stem, reason in failed.items())
        temporary.write_text("".join(lines), encoding="utf-8")
