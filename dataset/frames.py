"""Reading one frame of a data folder, and the one rule by which frames come to the network's size."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
from natsort import natsorted

from config import CLASS_NAMES, IGNORE, Intrinsics
from dataset.files import read_image, read_npy, read_png_raw
from dataset.listing import find_data_folder, find_name_variant, list_images
from dataset.manifest import Row
from dataset.units import UNITS, DepthUnit, check_plausible_unit, sample_evenly

MILLIMETRES = 1000.0
MAX_MEDIAN_DEPTH = 100.0  # metres: a median above it is no room but a wrong unit
MIN_WHITE, MAX_BORDER = 250, 16


@dataclass
class Frame:
    """One frame, all maps of one size; da3_depth is at the sensor's scale where the row says how (da3_scale).

    rgb: uint8 [H,W,3]; depth, da3_depth: float32 [H,W], metres, 0 = no value; confidence, seg_confidence (of
    sam2_seg): float32 [H,W] in 0..1; labels, sam2_seg: uint8 [H,W], 0..5 or 255 = ignore. A map that the frame does
    not have is None.
    """

    stem: str
    rgb: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray | None
    da3_depth: np.ndarray | None
    sam2_seg: np.ndarray | None
    seg_confidence: np.ndarray | None
    intrinsics: Intrinsics | None


def find_frames(rgb_dir: str | Path) -> dict[str, Path]:
    """{stem: image file} of all images below a folder, in the natural order of their stems: 9 before 10, as in time.

    Linked folders are followed, hidden ones are not. Raises UserError when there is none, when two files share a stem
    (000001.jpg and 000001.png), or when a name is no UTF-8.
    """
    return dict(natsorted(list_images(Path(rgb_dir)).items(), key=lambda item: item[1].parts))


def find_map(folder: str | Path, stem: str) -> Path | None:
    """The map of a frame in a folder of maps: <stem>.npy, <stem>.png or <stem>_<folder's name>.npy; None if absent.

    A suffix in upper case is as good, as are composed letters for decomposed ones.
    """
    folder = Path(folder)
    names = (f"{stem}.npy", f"{stem}.png", f"{stem}_{folder.name}.npy")
    found = next((folder / name for name in names if os.path.isfile(folder / name)), None)
    return found or next(filter(None, (find_name_variant(folder, name) for name in names)), None)


def read_raw_depth(path: Path) -> np.ndarray:
    """Depth of one frame as its file holds it: uint16 [H,W] of a .png, floating [H,W] of a .npy; UserError else."""
    if path.suffix.lower() != ".png":
        return _read_map(path, np.floating)
    stored = read_png_raw(path)
    if stored.dtype != np.uint16:
        raise UserError(f"{path}: depth as PNG is 16-bit, this one is 8-bit")
    return stored


def read_depth(path: str | Path, unit: DepthUnit | None = None) -> np.ndarray:
    """Depth of one frame as float32 [H,W], metres; what is not finite or not above 0 becomes 0.

    Args:
        path: a 16-bit .png, or a floating .npy in metres.
        unit: of a .png's numbers; millimetres unless given.

    Raises UserError on an unreadable file, another shape, or values that are no metres (median above 100).
    """
    stored = read_raw_depth(path := Path(path))
    depth = (unit or UNITS["mm"] if stored.dtype == np.uint16 else UNITS["m"]).decode(stored)
    valid = depth[depth > 0]
    if valid.size and np.median(valid) > MAX_MEDIAN_DEPTH:
        raise UserError(f"{path}: median depth {np.median(valid):.0f} is no depth in metres; millimetres as .npy?")
    return depth


def to_millimetres(depth: np.ndarray) -> np.ndarray:
    """Metres as uint16 millimetres of the same shape, as a 16-bit PNG holds them; at most 65.535 m."""
    return np.minimum(np.rint(depth * MILLIMETRES), np.iinfo(np.uint16).max).astype(np.uint16)


def check_depth_unit(folder: Path, paths: Iterable[Path]) -> None:
    """Raise UserError, naming the likely unit, when the depth maps of a folder can't be in .png's millimetres.

    Nor in .npy's metres. A data folder that a loader has made is not checked: the loader knew the unit.
    """
    if (find_data_folder(folder) / "source.json").is_file():
        return
    stored = []
    for path in sample_evenly(paths):
        with suppress(UserError):  # whoever reads the frame says so
            stored.append(read_raw_depth(path))
    check_plausible_unit(folder, stored)


def read_confidence(path: str | Path) -> np.ndarray:
    """Confidence of a sensor's depth as float32 [H,W] in 0..1; raises UserError outside that range."""
    confidence = np.nan_to_num(_read_map(Path(path), np.floating), nan=0.0).astype(np.float32)
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1):
        raise UserError(f"{path}: confidence must lie in 0..1")
    return confidence


def read_seg_confidence(path: str | Path) -> np.ndarray:
    """Confidence in a class map as float32 [H,W] in 0..1; its file holds uint8, 0..255."""
    return _read_map(Path(path), np.uint8).astype(np.float32) / 255


def read_classes(path: str | Path) -> np.ndarray:
    """A class map as uint8 [H,W], 0..5 or 255 = ignore; raises UserError on any other value."""
    path = Path(path)
    classes = read_png_raw(path) if path.suffix.lower() == ".png" else _read_map(path, np.integer)
    wrong = classes[(classes != IGNORE) & ((classes < 0) | (classes >= len(CLASS_NAMES)))]
    if wrong.size:
        raise UserError(f"{path}: class {wrong[0]} is not known; classes are 0..{len(CLASS_NAMES) - 1} and {IGNORE}")
    return classes.astype(np.uint8)


def _read_map(path: Path, kind: type) -> np.ndarray:
    array = read_npy(path)
    if array.ndim != 2 or not np.issubdtype(array.dtype, kind):
        raise UserError(f"{path}: expected {kind.__name__} [H,W], found {array.dtype} {list(array.shape)}")
    return array


def read_frame(row: Row) -> Frame:
    """Read all maps of a manifest's row; raises UserError when one is unreadable or of another size than the image."""
    rgb = read_image(row.rgb)
    depth = read_depth(row.depth, row.depth_unit)
    confidence = read_confidence(row.confidence) if row.confidence else (depth > 0).astype(np.float32)
    maps: Mapping[str, np.ndarray | None] = {
        "labels": read_classes(row.labels) if row.labels else None,
        "da3_depth": read_depth(row.da3_depth) if row.da3_depth else None,
        "sam2_seg": read_classes(row.sam2_seg) if row.sam2_seg else None,
        "seg_confidence": read_seg_confidence(row.seg_confidence) if row.seg_confidence else None,
    }
    for name, array in {"depth": depth, "confidence": confidence, **maps}.items():
        if array is not None and array.shape != rgb.shape[:2]:
            raise UserError(
                f"frame {row.stem}: {name} is {array.shape[1]}x{array.shape[0]} but the image is "
                f"{rgb.shape[1]}x{rgb.shape[0]}"
            )
    camera = rescale_camera(row.intrinsics, rgb, row.stem)
    frame = Frame(row.stem, rgb, depth, confidence, **maps, intrinsics=camera)
    if frame.da3_depth is not None and row.da3_scale is not None:
        frame.da3_depth *= np.float32(row.da3_scale)
    _mask_white_border(frame)
    return frame


def rescale_camera(intrinsics: Intrinsics | None, rgb: np.ndarray, stem: str) -> Intrinsics | None:
    """The camera brought to the image's own size; raises UserError when the aspect ratios differ by over 1 %."""
    if intrinsics is None:
        return None
    height, width = rgb.shape[:2]
    if abs(intrinsics.width / intrinsics.height / (width / height) - 1) > 0.01:
        raise UserError(
            f"frame {stem}: its image has {width}x{height} pixels, but its intrinsics are of one with "
            f"{intrinsics.width}x{intrinsics.height}"
        )
    return intrinsics.resized(width, height)


def white_border(rgb: np.ndarray) -> np.ndarray:
    """Bool [H,W]: the blank frame of about 8 px around NYU's images (rows and columns that are white throughout)."""
    border = np.zeros(rgb.shape[:2], dtype=bool)
    for axis, columns in ((0, rgb.transpose(1, 0, 2)), (1, rgb)):
        for order in (1, -1):
            blank: np.ndarray = np.all(columns[::order][:MAX_BORDER] >= MIN_WHITE, axis=(1, 2))
            width = len(blank) if blank.all() else int(np.argmin(blank))
            if width < len(blank):  # a picture that is white far inside has no border but a white wall
                lines = slice(0, width) if order == 1 else slice(rgb.shape[1 - axis] - width, None)
                border[(slice(None), lines) if axis == 0 else (lines, slice(None))] = True
    return border


def _mask_white_border(frame: Frame) -> None:
    border = white_border(frame.rgb)
    if not border.any():
        return
    frame.depth[border], frame.confidence[border] = 0, 0
    if frame.da3_depth is not None:
        frame.da3_depth[border] = 0
    for classes in (frame.labels, frame.sam2_seg):
        if classes is not None:
            classes[border] = IGNORE


def centre_crop(width: int, height: int, aspect: float) -> tuple[int, int, int, int]:
    """The largest centred window (left, top, width, height) of an image with the aspect ratio width / height."""
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def to_network_rgb(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """RGB uint8 [H,W,3] cropped to the network's aspect ratio, never squeezed, and resized by area averaging."""
    left, top, crop_width, crop_height = centre_crop(rgb.shape[1], rgb.shape[0], width / height)
    window = rgb[top : top + crop_height, left : left + crop_width]
    smaller = crop_width >= width
    return cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def to_network_map(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """A map [H,W] brought to the network's size like its image, but by the nearest pixel.

    Nearest, because averaging depth mixes foreground, background and holes into distances where nothing is.
    """
    left, top, crop_width, crop_height = centre_crop(array.shape[1], array.shape[0], width / height)
    if (crop_width, crop_height) == (width, height):  # as when 640x480 is packed for training: ten times as fast
        return array[top : top + height, left : left + width].copy()
    columns = left + ((np.arange(width) + 0.5) * crop_width / width).astype(int)
    rows = top + ((np.arange(height) + 0.5) * crop_height / height).astype(int)
    return array[np.ix_(rows, columns)]


def to_network_camera(camera: Intrinsics, width: int, height: int) -> Intrinsics:
    """The camera of an image after to_network_rgb."""
    return camera.cropped(*centre_crop(camera.width, camera.height, width / height)).resized(width, height)


def from_network_map(array: np.ndarray, width: int, height: int, interpolation: int) -> np.ndarray:
    """Undo to_network_rgb for a predicted map [h,w]: back to width x height, NaN (float) or 255 (uint8) outside."""
    left, top, crop_width, crop_height = centre_crop(width, height, array.shape[1] / array.shape[0])
    blank = np.nan if np.issubdtype(array.dtype, np.floating) else IGNORE
    full = np.full((height, width), blank, dtype=array.dtype)
    window = cv2.resize(array, (crop_width, crop_height), interpolation=interpolation)
    full[top : top + crop_height, left : left + crop_width] = window
    return full
