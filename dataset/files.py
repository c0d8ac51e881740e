"""Write files atomically, and read them without executing their content."""

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

# raised by Pillow on files that it can't decode
DECODE_ERRORS = (OSError, SyntaxError, TypeError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
TURNING_ORIENTATIONS = range(2, 9)  # EXIF orientations that rotate or mirror the image on display
FILM_DIAGONAL = math.hypot(36, 24)  # mm
MAX_STEM_BYTES = 200  # of the stem in a temporary name; file systems limit the whole name to 255
TEMPORARY_NAME = re.compile(r"\.(.+)\.[^.]+\.part(\.[^.]+)?")


class ImageOrientationError(UserError):
    """An image with an EXIF orientation: viewers rotate or mirror it, but not the depth map that belongs to it."""


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it is renamed to `target` on success and removed on failure.

    The temporary name keeps the target's suffix, since writers such as cv2.imwrite choose the format by it.

    Raises DiskFullError, an OSError, if the disk or quota is full, whatever the writer raised.
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
            temporary.chmod(0o666 & ~umask)  # mkstemp creates private files; labels are shared in a group
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def shorten_stem(stem: str) -> str:
    """The stem as used in temporary names: unchanged, or truncated with a hash appended if it is very long."""
    content = os.fsencode(stem)
    if len(content) <= MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:16]
    return content[: MAX_STEM_BYTES - len(digest)].decode(errors="ignore") + digest


def stem_of_temporary(name: str) -> str | None:
    """The shortened stem of the target of an atomic_path() temporary name; None for other names."""
    match = TEMPORARY_NAME.fullmatch(name)
    return match[1] if match else None


def remove_temporary_files(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder; no other process may be writing to it."""
    for path in folder.glob(".*.part*"):
        if stem_of_temporary(path.name):
            path.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy, atomically."""
    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 [H,W], uint16 [H,W] or RGB uint8 [H,W,3] as PNG, atomically."""
    with atomic_path(path) as temporary:
        pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
        encoded, content = cv2.imencode(".png", pixels)  # not imwrite, which aborts the process on non-UTF-8 paths
        if not encoded:
            raise OSError(f"can't encode {path} as PNG")
        temporary.write_bytes(content.data)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON with an indent of 2, atomically; NaN becomes null, since JSON has no NaN."""
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
    """Decode UTF-8 with or without a byte-order mark; raises ValueError that says what is wrong otherwise."""
    if b"\0" in content or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16 or binary: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8: save it as UTF-8") from None


def missing_file_error(path: str | Path) -> UserError:
    """The error for a missing file or a broken link."""
    if os.path.islink(path):
        return UserError(f"there is no file {path}: it is a link to {os.readlink(path)}, which does not exist")
    return UserError(f"there is no file {path}")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; raises UserError if it is missing or invalid."""
    try:
        return json.loads(decode_text(Path(path).read_bytes()))
    except FileNotFoundError:
        raise missing_file_error(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None


def read_npy(path: str | Path) -> np.ndarray:
    """Load one .npy array without pickle; raises UserError if it is missing, truncated or not an array."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise missing_file_error(path) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive, not a single .npy array")
    return array


def read_image(path: str | Path, apply_orientation: bool = False) -> np.ndarray:
    """Read an 8-bit RGB image as uint8 [H,W,3]; drops an alpha channel and applies a palette.

    Args:
        path: image in one of the formats of listing.IMAGE_SUFFIXES, detected by its content.
        apply_orientation: rotate the image by its EXIF orientation. Only for images without a depth map.

    Raises UserError if the file is truncated, holds several images, or is not 8-bit RGB: a greyscale, CMYK or 16-bit
    file usually comes from another sensor, and a teacher would label it without complaint. Raises ImageOrientationError
    if it has an EXIF orientation and apply_orientation is False.
    """
    if not Path(path).is_file():
        raise missing_file_error(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return decode_image(content, path, apply_orientation)


def decode_image(content: bytes, name: str | Path, apply_orientation: bool = False) -> np.ndarray:
    """Decode the content of an image file as read_image() does; `name` is for messages. Raises the same errors."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("RGB", "RGBA", "P") or _has_16_bits(image):
                raise UserError(f"{name} is not an 8-bit RGB image (mode {image.mode})")
            if not _is_single_image(image):
                raise UserError(f"{name} holds several images: save the one you need as a separate file")
            if image.format in ("JPEG", "MPO") and not _has_jpeg_end(content):
                raise UserError(f"{name} is truncated")  # missing data would decode to grey
            if image.format != "TIFF":  # for TIFF, load() rotates the pixels and drops the orientation tag
                image.load()  # unlike OpenCV, Pillow rejects truncated files
            orientation = orientation_of(image)
            if not apply_orientation:
                check_orientation(name, orientation)
            image.load()
            upright = ImageOps.exif_transpose(image) if orientation in TURNING_ORIENTATIONS else image
            return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except ImportError:  # ultralytics patches Image.open to require a HEIC reader
        raise UserError(f"{name} is not a readable image") from None
    except DECODE_ERRORS as error:
        raise UserError(f"{name} is not a readable image: {error}") from None


def _has_jpeg_end(content: bytes) -> bool:
    """Whether a JPEG has an end-of-image marker after its scan data; anything may follow, such as a phone's video."""
    offset = 2  # after the start marker; each segment is 0xff, type, two-byte length, content
    while content[offset : offset + 1] == b"\xff" and content[offset + 1 : offset + 2] != b"\xda":  # start of scan
        fill = content[offset + 1 : offset + 2] == b"\xff"
        offset += 1 if fill else 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return b"\xff\xd9" in content[offset:]  # within scan data, 0xff is followed by 0 or a restart marker


def orientation_of(image: Image.Image) -> object:
    """The EXIF orientation of an image, 1 to 8; None if it has none. Does not load the pixels of a PNG."""
    try:
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # PngImageFile.getexif() loads the pixels
    except DECODE_ERRORS:  # viewers ignore EXIF data that can't be parsed
        return None


def exif_focal_length(path: str | Path) -> float | None:
    """Focal length of an image file in pixels, from the EXIF tag FocalLengthIn35mmFilm; None if it has none.

    The equivalent focal length is defined by the diagonal, which is 43.27 mm on 35 mm film (CIPA DCG-001). It is wrong
    for an image that was cropped after it was taken.
    """
    try:
        with Image.open(path) as image:
            millimetres = Image.Image.getexif(image).get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
            diagonal = math.hypot(*image.size)
        return float(millimetres) * diagonal / FILM_DIAGONAL if millimetres else None
    except (ImportError, *DECODE_ERRORS):
        return None


def check_orientation(path: str | Path, orientation: object) -> None:
    """Raise ImageOrientationError for an EXIF orientation that rotates or mirrors the image."""
    if orientation in TURNING_ORIENTATIONS:
        raise ImageOrientationError(
            f"{path} has the EXIF tag Orientation {orientation}: viewers rotate or mirror the image, but the depth map "
            "matches the pixels as stored. If these are upright, remove the tag (exiftool -Orientation= FILE); "
            "otherwise rotate the image, its depth and its intrinsics"
        )


def is_still_image(path: str | Path) -> bool:
    """Whether Pillow reads a file as a single image; False for videos, animations and other files."""
    try:
        with Image.open(path) as image:
            return image.format != "MPEG" and _is_single_image(image)
    except (ImportError, *DECODE_ERRORS):
        return False


def _is_single_image(image: Image.Image) -> bool:
    # phones append previews and depth (MPO); the first image is the photo
    return image.format == "MPO" or getattr(image, "n_frames", 1) == 1


def _has_16_bits(image: Image.Image) -> bool:
    # Pillow silently reads 16-bit RGB as 8-bit; only its raw mode ("RGB;16B") shows it
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def read_png_raw(path: str | Path) -> np.ndarray:
    """Read a single-channel PNG at its own bit depth: uint8 or uint16 [H,W].

    Raises UserError if it is unreadable, and ImageOrientationError if it has an EXIF orientation: the RGB image may not
    have one.
    """
    try:
        content = Path(path).read_bytes()  # not cv2.imread, which aborts the process on non-UTF-8 paths
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
    """Create a loader's data folder with source.json, and remove temporary files of a killed run.

    Args:
        out: the folder; created if missing.
        source: JSON-serialisable description of the input and the settings.
        maps: names of the subfolders.

    Raises UserError if it can't be written, or holds frames from a different source or with different settings.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for leftover in (part for name in maps for part in (out / name).rglob(".*.part.*")):
            leftover.unlink()
        if not (out / "source.json").is_file():
            write_json(out / "source.json", source)
    except OSError as error:
        raise UserError(f"can't write to --out {out}: {error.strerror}") from None
    if read_json(out / "source.json") != source:
        raise UserError(
            f"{out} holds frames from a different source or with different settings, see its source.json: choose "
            "another --out"
        )


def write_failed_frames(path: Path, failed: dict[str, str]) -> None:
    """Write {stem: reason} as JSON lines of {"stem", "reason"}; remove an older file if nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        lines = (json.dumps({"stem": stem, "reason": reason}) + "\n" for stem, reason in failed.items())
        temporary.write_text("".join(lines), encoding="utf-8")
