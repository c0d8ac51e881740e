"""Writing files whole or not at all, and reading them without running what is in them."""

import codecs
import hashlib
import io
import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cli import UserError

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from dataset.disk import reraise_disk_full

# what Pillow raises on files that it can't decode
DECODE_ERRORS = (OSError, SyntaxError, TypeError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
TURNING_ORIENTATIONS = range(2, 9)  # values of EXIF's orientation that ask a viewer to turn or mirror the picture
MAX_STEM_BYTES = 200  # bytes of a stem that a temporary name keeps; file systems take 255 for all of a name
TEMPORARY_NAME = re.compile(r"\.(.+)\.[^.]+\.part(\.[^.]+)?")


class ImageOrientationError(UserError):
    """An image that a viewer turns or mirrors on the way to the screen, where the depth that goes with it stays."""


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to it on success and removed on failure.

    The temporary name keeps the target's suffix, because writers such as cv2.imwrite choose a format by it.

    Raises DiskFullError, an OSError, when the disk or a quota is full, whatever the writer has raised of it.
    """
    target = Path(target)
    prefix, suffix = f".{shorten_stem(target.stem)}.", f".part{target.suffix}"
    with reraise_disk_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=target.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with reraise_disk_full(target):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; labels are shared in a group
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def shorten_stem(stem: str) -> str:
    """A stem as temporary names hold it: the whole of it, or the beginning and a hash of a very long one."""
    content = os.fsencode(stem)
    if len(content) <= MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:16]
    return content[: MAX_STEM_BYTES - len(digest)].decode(errors="ignore") + digest


def stem_of_temporary(name: str) -> str | None:
    """The shorten_stem() of the file that a temporary name of atomic_path() is meant to become; None for other names."""
    match = TEMPORARY_NAME.fullmatch(name)
    return match[1] if match else None


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers left half-written in a folder that nobody else writes to."""
    for path in folder.glob(".*.part*"):
        if stem_of_temporary(path.name):
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
        encoded, content = cv2.imencode(".png", pixels)  # given a path that is no UTF-8, OpenCV ends the process
        if not encoded:
            raise OSError(f"could not write {path}")
        temporary.write_bytes(content.data)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON with two spaces of indent, whole or not at all; NaN, which JSON has no word for, becomes null."""
    with atomic_path(path) as temporary:
        text = json.dumps(_nan_to_none(content), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _nan_to_none(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _nan_to_none(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_nan_to_none(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def decode_text(content: bytes) -> str:
    """A text file's content, which is UTF-8 with or without a byte-order mark; raises ValueError saying what else."""
    if b"\0" in content or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16, or no text at all: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8: save it as UTF-8") from None


def missing_file_error(path: str | Path) -> UserError:
    """What to raise of a file that is not there, be it that a link to it leads nowhere."""
    if os.path.islink(path):
        return UserError(f"there is no file {path}: it is a link to {os.readlink(path)}, which is not there")
    return UserError(f"there is no file {path}")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; raises UserError when it is missing or no JSON."""
    try:
        return json.loads(decode_text(Path(path).read_bytes()))
    except FileNotFoundError:
        raise missing_file_error(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None


def read_npy(path: str | Path) -> np.ndarray:
    """Load one .npy array, pickling off; raises UserError when it is missing, truncated or no array."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise missing_file_error(path) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive, not one .npy array")
    return array


def read_image(path: str | Path, apply_orientation: bool = False) -> np.ndarray:
    """Read an 8-bit RGB image as uint8 [H,W,3]; an alpha channel is dropped, a palette is looked up.

    Args:
        path: of one of the formats of listing.IMAGE_SUFFIXES, by its content.
        apply_orientation: turn a picture as its EXIF orientation says. Only where no depth map goes with its pixels.

    Raises UserError when it can't be decoded to its end, holds several pictures, or is no 8-bit RGB: a grey, CMYK or
    16-bit file in a folder of images is another sensor's picture, and a teacher would label it without a word. Raises
    ImageOrientationError when it has an EXIF orientation that is not to be applied.
    """
    if not Path(path).is_file():
        raise missing_file_error(path)
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.mode not in ("RGB", "RGBA", "P") or _has_16_bits(image):
                raise UserError(f"{path} is no 8-bit RGB image (mode {image.mode})")
            if not _is_single_image(image):
                raise UserError(f"{path} holds several pictures: save the one that is meant as a file of its own")
            if image.format in ("JPEG", "MPO") and not _has_jpeg_end(Path(path).read_bytes()):
                raise UserError(f"{path} is cut short")  # zeros in place of the rest decode to grey
            if image.format != "TIFF":  # whose pixels Pillow turns as it loads them, and forgets the tag
                image.load()  # unlike OpenCV it refuses a file that ends too early
            orientation = orientation_of(image)
            if not apply_orientation:
                check_orientation(path, orientation)
            image.load()
            upright = ImageOps.exif_transpose(image) if orientation in TURNING_ORIENTATIONS else image
            return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ImportError:  # ultralytics replaces Image.open by one that asks for a reader of HEIC files
        raise UserError(f"{path} is not a readable image") from None
    except DECODE_ERRORS as error:
        raise UserError(f"{path} is not a readable image: {error}") from None


def _has_jpeg_end(content: bytes) -> bool:
    """Whether a JPEG has an end-of-image marker behind its pixels, whatever a phone appends (a video, a depth map)."""
    place = 2  # behind the start marker; segments are 0xff, kind, length of two bytes, content
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":  # start of scan
        fill = content[place + 1 : place + 2] == b"\xff"
        place += 1 if fill else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return b"\xff\xd9" in content[place:]  # in coded pixels 0xff is followed by 0 or a restart marker


def orientation_of(image: Image.Image) -> object:
    """The value of an image's EXIF orientation, 1 to 8; None where it has none. Of an unloaded PNG by its header."""
    try:
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # PngImageFile's own would load the pixels
    except DECODE_ERRORS:  # what no program can read turns no picture
        return None


def check_orientation(path: str | Path, orientation: object) -> None:
    """Raise ImageOrientationError for a value of EXIF's orientation that turns or mirrors the image."""
    if orientation in TURNING_ORIENTATIONS:
        raise ImageOrientationError(
            f"{path} has the EXIF tag Orientation {orientation}: viewers turn or mirror it, but depth goes by the "
            "pixels as they are stored. If the stored pixels are upright and fit the depth, remove the tag (exiftool "
            "-Orientation= FILE); else turn the pixels, and their depth and intrinsics with them"
        )


def is_still_image(path: str | Path) -> bool:
    """Whether Pillow knows a file as one picture; False for a video, an animation, and what is none."""
    try:
        with Image.open(path) as image:
            return image.format != "MPEG" and _is_single_image(image)
    except (ImportError, *DECODE_ERRORS):
        return False


def _is_single_image(image: Image.Image) -> bool:
    # phones append previews and depth to the picture (MPO), whose first one is the picture
    return image.format == "MPO" or getattr(image, "n_frames", 1) == 1


def _has_16_bits(image: Image.Image) -> bool:
    # Pillow reads 16-bit RGB as 8-bit without saying so; how it unpacks the pixels tells ("RGB;16B")
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def read_png_raw(path: str | Path) -> np.ndarray:
    """Read a single-channel PNG with its own bit depth: uint8 or uint16 [H,W].

    Raises UserError when it can't, and ImageOrientationError when the map has an EXIF orientation: its image may have none.
    """
    try:
        content = Path(path).read_bytes()  # given a path that is no UTF-8, OpenCV ends the process
    except FileNotFoundError:
        raise missing_file_error(path) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    except cv2.error:
        image = None
    if image is None or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} is not a readable single-channel 8- or 16-bit PNG")
    if b"eXIf" in content:
        with suppress(*DECODE_ERRORS), Image.open(io.BytesIO(content)) as header:
            check_orientation(path, orientation_of(header))
    return image


def prepare_data_folder(out: Path, source: dict[str, Any], maps: Iterable[str]) -> None:
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
