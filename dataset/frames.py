"""Read a frame of a data folder, and crop and resize it to the network's input size."""

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
MAX_MEDIAN_DEPTH = 100.0  # metres; a larger median means a wrong unit
MIN_WHITE, MAX_BORDER = 250, 16
MAX_FILLED = 0.005  # relative difference of aspect ratios


@dataclass
class Frame:
    """One frame; all maps have the same size. da3_depth is multiplied by the row's da3_scale, if it has one.

    rgb: uint8 [H,W,3]; depth, da3_depth: float32 [H,W], metres, 0 = no value; confidence (of depth), seg_confidence (of
    sam2_seg): float32 [H,W] in 0..1; labels, sam2_seg: uint8 [H,W], 0..5 or 255 = ignore. Missing maps are None.
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
    """{stem: image file} of all images below a folder in natural order, with 9 before 10.

    Follows linked folders and skips hidden ones. Raises UserError if there are no images, if two files share a stem
    (000001.jpg and 000001.png), or if a name is not UTF-8.
    """
    return dict(natsorted(list_images(Path(rgb_dir)).items(), key=lambda item: item[1].parts))


def find_map(folder: str | Path, stem: str) -> Path | None:
    """The map of a frame in a folder: <stem>.npy, <stem>.png or <stem>_<folder's name>.npy; None if absent.

    The suffix may be upper case, and Unicode letters may be composed or decomposed.
    """
    folder = Path(folder)
    names = (f"{stem}.npy", f"{stem}.png", f"{stem}_{folder.name}.npy")
    found = next((folder / name for name in names if os.path.isfile(folder / name)), None)
    return found or next(filter(None, (find_name_variant(folder, name) for name in names)), None)


def read_raw_depth(path: Path) -> np.ndarray:
    """Read depth as stored: uint16 [H,W] from .png, floating [H,W] from .npy; raises UserError on anything else."""
    if path.suffix.lower() != ".png":
        return _read_map(path, np.floating)
    stored = read_png_raw(path)
    if stored.dtype != np.uint16:
        raise UserError(f"{path}: depth PNGs must be 16-bit, this one is 8-bit")
    return stored


def read_depth(path: str | Path, unit: DepthUnit | None = None) -> np.ndarray:
    """Read depth as float32 [H,W] in metres; values that are not finite and positive become 0.

    Args:
        path: a 16-bit .png, or a floating-point .npy in metres.
        unit: unit of the .png; default millimetres.

    Raises UserError if the file is unreadable, has the wrong shape, or is not in metres (median above 100).
    """
    stored = read_raw_depth(path := Path(path))
    depth = (unit or UNITS["mm"] if stored.dtype == np.uint16 else UNITS["m"]).decode(stored)
    valid = depth[depth > 0]
    if valid.size and np.median(valid) > MAX_MEDIAN_DEPTH:
        raise UserError(f"{path}: median depth {np.median(valid):.0f} can't be metres; is the .npy in millimetres?")
    return depth


def to_millimetres(depth: np.ndarray) -> np.ndarray:
    """Convert metres to uint16 millimetres of the same shape, clipped to 65.535 m."""
    return np.minimum(np.rint(depth * MILLIMETRES), np.iinfo(np.uint16).max).astype(np.uint16)


def check_depth_unit(folder: Path, paths: Iterable[Path]) -> None:
    """Raise UserError, naming the likely unit, if a folder's depth can't be in millimetres (.png) or metres (.npy).

    Data folders written by a loader are not checked: the loader knew the unit.
    """
    if (find_data_folder(folder) / "source.json").is_file():
        return
    stored = []
    for path in sample_evenly(paths):
        with suppress(UserError):  # reported when the frame is read
            stored.append(read_raw_depth(path))
    check_plausible_unit(folder, stored)


def read_confidence(path: str | Path) -> np.ndarray:
    """Read depth confidence as float32 [H,W] in 0..1; 8-bit PNG stores 0..255. Raises UserError outside that range."""
    if Path(path).suffix.lower() == ".png":
        stored = read_png_raw(path)
        if stored.dtype != np.uint8:
            raise UserError(f"{path}: confidence PNGs must be 8-bit, this one is 16-bit")
        return stored.astype(np.float32) / 255
    confidence = np.nan_to_num(_read_map(Path(path), np.floating), nan=0.0).astype(np.float32)
    if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1):
        raise UserError(f"{path}: confidence must be in 0..1")
    return confidence


def read_seg_confidence(path: str | Path) -> np.ndarray:
    """Read class confidence as float32 [H,W] in 0..1; stored as uint8 0..255."""
    return _read_map(Path(path), np.uint8).astype(np.float32) / 255


def read_classes(path: str | Path) -> np.ndarray:
    """Read a class map as uint8 [H,W], 0..5 or 255 = ignore; raises UserError on other values."""
    path = Path(path)
    classes = read_png_raw(path) if path.suffix.lower() == ".png" else _read_map(path, np.integer)
    wrong = classes[(classes != IGNORE) & ((classes < 0) | (classes >= len(CLASS_NAMES)))]
    if wrong.size:
        raise UserError(f"{path}: unknown class {wrong[0]}; classes are 0..{len(CLASS_NAMES) - 1} and {IGNORE}")
    return classes.astype(np.uint8)


def _read_map(path: Path, kind: type) -> np.ndarray:
    array = read_npy(path)
    if array.ndim != 2 or not np.issubdtype(array.dtype, kind):
        raise UserError(f"{path}: expected {kind.__name__} [H,W], found {array.dtype} {list(array.shape)}")
    return array


def read_frame(row: Row) -> Frame:
    """Read all maps of a manifest row; raises UserError if one is unreadable or differs in size from the image."""
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
    """Rescale the camera to the image's size; raises UserError if the aspect ratios differ by more than 1 %."""
    if intrinsics is None:
        return None
    height, width = rgb.shape[:2]
    if abs(intrinsics.width / intrinsics.height / (width / height) - 1) > 0.01:
        raise UserError(
            f"frame {stem}: the image has {width}x{height} pixels, but its intrinsics are for "
            f"{intrinsics.width}x{intrinsics.height}"
        )
    return intrinsics.resized(width, height)


def white_border(rgb: np.ndarray) -> np.ndarray:
    """Bool [H,W] mask of the white border of about 8 px around NYU images: rows and columns that are entirely white."""
    border = np.zeros(rgb.shape[:2], dtype=bool)
    for axis, columns in ((0, rgb.transpose(1, 0, 2)), (1, rgb)):
        for order in (1, -1):
            blank: np.ndarray = np.all(columns[::order][:MAX_BORDER] >= MIN_WHITE, axis=(1, 2))
            width = len(blank) if blank.all() else int(np.argmin(blank))
            if width < len(blank):  # wider white areas are a wall, not a border
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
    """The largest centred crop (left, top, width, height) of an image with aspect ratio `aspect` = width / height."""
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def to_network_rgb(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Centre-crop RGB uint8 [H,W,3] to the network's aspect ratio and resize it; area averaging for downscaling."""
    left, top, crop_width, crop_height = centre_crop(rgb.shape[1], rgb.shape[0], width / height)
    window = rgb[top : top + crop_height, left : left + crop_width]
    smaller = crop_width >= width
    return cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def to_network_map(array: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crop and resize a map [H,W] like its image, with nearest-neighbour sampling.

    Averaging would mix foreground, background and holes into depths at which there is no surface.
    """
    left, top, crop_width, crop_height = centre_crop(array.shape[1], array.shape[0], width / height)
    if (crop_width, crop_height) == (width, height):  # e.g. 640x480 packed for training; ten times faster
        return array[top : top + height, left : left + width].copy()
    columns = left + ((np.arange(width) + 0.5) * crop_width / width).astype(int)
    rows = top + ((np.arange(height) + 0.5) * crop_height / height).astype(int)
    return array[np.ix_(rows, columns)]


def to_network_camera(camera: Intrinsics, width: int, height: int) -> Intrinsics:
    """The camera after to_network_rgb()."""
    return camera.cropped(*centre_crop(camera.width, camera.height, width / height)).resized(width, height)


def from_network_map(array: np.ndarray, width: int, height: int, interpolation: int) -> np.ndarray:
    """Map a prediction [h,w] back to the image's width x height: NaN (float) or 255 (uint8) outside the crop.

    Where the aspect ratios differ by at most MAX_FILLED, as those of 368x208 and 16:9 do, the few pixels beside the
    crop take the nearest one's value instead.
    """
    left, top, crop_width, crop_height = centre_crop(width, height, array.shape[1] / array.shape[0])
    window = cv2.resize(array, (crop_width, crop_height), interpolation=interpolation)
    margins = ((top, height - top - crop_height), (left, width - left - crop_width))
    if abs(width * array.shape[0] / (height * array.shape[1]) - 1) <= MAX_FILLED:
        return np.pad(window, margins, mode="edge")
    blank = np.nan if np.issubdtype(array.dtype, np.floating) else IGNORE
    return np.pad(window, margins, constant_values=blank)
