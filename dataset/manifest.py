"""manifest.jsonl: the list of frames that all stages after the teachers read.

A manifest is a text file with one JSON object per line:

    stem        name of the frame, may contain folders ("00/000123"); default: the RGB file's path without suffix
    rgb         8-bit RGB image
    depth       sensor or reference depth, float32 .npy in metres or 16-bit .png in millimetres ("sensor_depth" is
                also read)
    confidence  float32 .npy in 0..1                       (optional)
    labels      uint8 reference classes, 255 = ignore       (optional)
    da3_depth   float32 .npy, metres, from the depth teacher (optional)
    sam2_seg    uint8 .npy, from the segmentation teacher   (optional)
    seg_confidence  uint8 .npy, 0..255 for 0..1, of sam2_seg (optional)
    split       train, val or test                          (optional)
    intrinsics  {fx, fy, cx, cy, width, height} of the RGB image (optional)
    recording   NYU scene, room, or imported folder (optional); frames of one recording are near-duplicates, so missing
                splits are assigned per recording
    time        seconds since the recording's first frame (optional)
    pose        camera-to-world matrix, four rows of four numbers, metres; camera axes: x right, y down, z forward
                (optional)
    gravity     downward vector of any length in camera axes, three numbers (optional)
    depth_unit  unit of depth in .png: a name from dataset/units.py, or metres per count, e.g. 0.0002; default: mm
                (optional)
    made_by     provenance of the labels and of computed confidence (optional)
    da3_scale   factor from da3_depth to the sensor's scale, applied whenever da3_depth is read (optional)

Paths are relative to the manifest's folder and must stay inside it. Links to files outside are followed only if allowed
(--allow-links-to).
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from cli import UserError

import numpy as np

from config import Intrinsics
from dataset.confidence import COMPUTED, SENSOR
from dataset.files import atomic_path, decode_text, read_json
from dataset.links import DataFolder
from dataset.listing import normalize_name, normalize_stems, require_utf8
from dataset.units import DepthUnit, parse_unit_entry

Value = TypeVar("Value")

SPLITS = ("train", "val", "test")
OPTIONAL_MAPS = ("confidence", "labels", "da3_depth", "sam2_seg", "seg_confidence")


@dataclass
class Row:
    """One frame of a manifest; paths are absolute, with links unresolved."""

    stem: str
    rgb: Path
    depth: Path
    confidence: Path | None = None
    labels: Path | None = None
    da3_depth: Path | None = None
    sam2_seg: Path | None = None
    seg_confidence: Path | None = None
    split: str | None = None
    intrinsics: Intrinsics | None = None
    made_by: dict = field(default_factory=dict)
    da3_scale: float | None = None
    recording: str | None = None
    depth_unit: DepthUnit | None = None
    time: float | None = None
    pose: tuple[tuple[float, ...], ...] | None = None
    gravity: tuple[float, ...] | None = None

    def files(self) -> dict[str, Path]:
        """{column: file} of the frame's image and maps."""
        files = {name: getattr(self, name) for name in ("rgb", "depth", *OPTIONAL_MAPS)}
        return {name: file for name, file in files.items() if file is not None}


def parse_intrinsics(entry: Mapping, where: str) -> Intrinsics:
    """Parse a camera from {fx, fy, cx, cy, width, height}; raises UserError naming `where` if it is invalid."""
    try:
        values = {name: float(entry[name]) for name in ("fx", "fy", "cx", "cy", "width", "height")}
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: intrinsics need the numbers fx, fy, cx, cy, width, height") from None
    if not all(0 < values[name] < 1e6 for name in ("fx", "fy", "width", "height")):
        raise UserError(f"{where}: fx, fy, width and height must be above 0")
    width, height = int(values.pop("width")), int(values.pop("height"))
    return check_camera(Intrinsics(**values, width=width, height=height), where)


def check_camera(camera: Intrinsics, where: str) -> Intrinsics:
    """Return the camera; raises UserError naming `where` if it is implausible (see Intrinsics.problem)."""
    if camera.problem:
        raise UserError(f"{where}: {camera.problem}")
    return camera


class Cameras:
    """The cameras of a data folder (camera.json): one for all frames, or one per stem."""

    def __init__(self, common: Intrinsics | None, by_stem: dict[str, Intrinsics]):
        self.common, self.by_stem = common, by_stem

    @classmethod
    def read(cls, path: str | Path) -> "Cameras":
        """Read camera.json; raises UserError if it is missing or invalid."""
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a camera file: it must contain a JSON object")
        if "fx" in content:
            return cls(parse_intrinsics(content, str(path)), {})
        entries = normalize_stems(content, path).items()
        return cls(None, {stem: parse_intrinsics(entry, f"{path}, {stem}") for stem, entry in entries})

    def for_frame(self, stem: str) -> Intrinsics:
        """The camera of a frame; raises UserError if camera.json has no entry for it."""
        camera = self.by_stem.get(stem, self.common)
        if camera is None:
            raise UserError(f"camera.json has no entry for frame {stem}")
        return camera


def read_splits(path: str | Path) -> dict[str, str]:
    """Read splits.json as {stem: split}; raises UserError if it is invalid or a stem is in two splits."""
    content = read_json(path)
    if not isinstance(content, dict) or not set(content) <= set(SPLITS):
        raise UserError(f"{path} must contain lists of stems under the keys {', '.join(SPLITS)}")
    split_of: dict[str, str] = {}
    for split, stems in content.items():
        if not isinstance(stems, list) or not all(isinstance(stem, str) for stem in stems):
            raise UserError(f"{path}: {split} must be a list of stems (strings)")
        for stem in map(normalize_name, stems):
            if split_of.setdefault(stem, split) != split:
                raise UserError(f"{path}: frame {stem} is in both {split_of[stem]} and {split}")
    return split_of


def read_recordings(path: str | Path) -> dict[str, str]:
    """Read recordings.json: {stem: name of its recording}; raises UserError if it is invalid."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content.values()):
        raise UserError(f"{path} must map each stem to the name of its recording")
    return normalize_stems(content, path)


def read_times(path: str | Path) -> dict[str, float]:
    """Read times.json: {stem: seconds since the recording's first frame}; raises UserError if it is invalid."""
    return _read_by_stem(path, _parse_time)


def read_poses(path: str | Path) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Read poses.json: {stem: camera-to-world matrix, 4x4}; raises UserError if it is invalid."""
    return _read_by_stem(path, _parse_pose)


def read_gravity(path: str | Path) -> dict[str, tuple[float, ...]]:
    """Read gravity.json: {stem: downward vector in camera axes}; raises UserError if it is invalid."""
    return _read_by_stem(path, _parse_gravity)


def read_confidence_origins(path: str | Path) -> dict[str, str]:
    """Read confidence.json: {stem: SENSOR or COMPUTED of dataset/confidence.py}; raises UserError if it is invalid."""
    return _read_by_stem(path, _parse_confidence_origin)


def _read_by_stem(path: str | Path, parse: Callable[[object, str], Value | None]) -> dict[str, Value]:
    """{stem: value} of a file, without the stems whose value is null."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain a JSON object, with an entry for each stem")
    parsed = {stem: parse(value, f"{path}, {stem}") for stem, value in content.items()}
    return normalize_stems({stem: value for stem, value in parsed.items() if value is not None}, path)


def read_manifest(path: str | Path, allowed_links: Sequence[Path] = ()) -> list[Row]:
    """Read and validate a manifest.

    Rows without a split get it from the folder's splits.json. Without that file, they are split 80/10/10 into train,
    val and test: in contiguous blocks, since neighbouring frames are near-duplicates, or by whole recordings if all
    these rows name theirs and there are at least three. Rows without intrinsics get them from the folder's camera.json,
    if it exists.

    Args:
        path: the manifest.
        allowed_links: folders outside the manifest's folder that links may lead to.

    Raises:
        UserError: the file is missing or empty, a line is not a JSON object, a row lacks rgb or depth, a path or stem
            points outside the manifest's folder, a stem occurs twice, or an image is in two splits.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no manifest {path}; create it with teacher_infer/build_manifest.py")
    folder = DataFolder(path.parent, allowed_links)
    try:
        lines = decode_text(path.read_bytes()).split("\n")  # splitlines() also cuts at U+2028, which JSON allows
    except ValueError as error:
        raise UserError(f"{path} is not a text file: {error}") from None
    rows = [_parse_row(line, folder, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{path} lists no frames")
    stems = set()
    for row in rows:
        if row.stem in stems:
            raise UserError(f"{path}: frame {row.stem} is listed twice")
        stems.add(row.stem)
    _assign_splits(rows, folder.root / "splits.json", path)
    _check_split_leakage(rows, path)
    if (folder.root / "camera.json").is_file() and any(row.intrinsics is None for row in rows):
        cameras = Cameras.read(folder.root / "camera.json")
        for row in rows:
            row.intrinsics = row.intrinsics or cameras.for_frame(row.stem)
    return rows


def _check_split_leakage(rows: list[Row], path: Path) -> None:
    """Raise UserError if an image is in two splits: the student would be tested on its training data."""
    first: dict[Path, Row] = {}
    for row in rows:
        other = first.setdefault(row.rgb, row)
        if other.split != row.split:
            raise UserError(
                f"{path}: frames {other.stem} ({other.split}) and {row.stem} ({row.split}) are the same image "
                f"{row.rgb.name}: an image belongs to one split"
            )


def _parse_row(line: str, folder: DataFolder, where: str) -> Row:
    try:
        entry = json.loads(line.lstrip("\ufeff"))  # a byte-order mark, from concatenated manifests
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON (nested too deeply)") from None
    if not isinstance(entry, dict):
        raise UserError(f"{where}: a row must be a JSON object")
    if "depth" not in entry and "sensor_depth" in entry:
        entry["depth"] = entry["sensor_depth"]
    for name in ("rgb", "depth"):
        if not entry.get(name):
            raise UserError(f"{where}: the row has no column {name!r}")
    columns = ["rgb", "depth", *(name for name in OPTIONAL_MAPS if entry.get(name))]
    paths = {name: folder.locate(entry[name], f"{where}, {name}") for name in columns}
    split = entry.get("split")
    if split not in (None, *SPLITS):
        raise UserError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
    camera = entry.get("intrinsics")
    made_by = entry.get("made_by") or {}
    if not isinstance(made_by, dict):
        raise UserError(f"{where}: made_by must be a JSON object")
    stem = normalize_name(str(entry.get("stem") or default_stem(entry["rgb"])))
    require_utf8(stem, where)
    if stem.startswith("/") or ".." in stem.split("/") or "\0" in stem:  # stages derive output paths from it
        raise UserError(f"{where}: stem {stem} points outside the manifest's folder")
    return Row(
        stem=stem,
        **paths,
        split=split,
        intrinsics=parse_intrinsics(camera, where) if camera else None,
        made_by=made_by,
        da3_scale=_parse_scale(entry.get("da3_scale"), where),
        recording=_parse_recording(entry.get("recording"), where),
        depth_unit=parse_unit_entry(entry.get("depth_unit"), where),
        time=_parse_time(entry.get("time"), where),
        pose=_parse_pose(entry.get("pose"), where),
        gravity=_parse_gravity(entry.get("gravity"), where),
    )


def _parse_scale(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise UserError(f"{where}: da3_scale is {value!r}, not a number above 0")
    return float(value)


def _parse_recording(value: object, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise UserError(f"{where}: recording is {value!r}, not a name")
    return value


def _parse_time(value: object, where: str) -> float | None:
    if value is not None and not _is_finite(value):
        raise UserError(f"{where}: time is {value!r}, not a number of seconds")
    return None if value is None else float(value)  # type: ignore[arg-type]


def _parse_pose(value: object, where: str) -> tuple[tuple[float, ...], ...] | None:
    if value is None:
        return None
    rows = value if isinstance(value, list) and all(isinstance(row, list) for row in value) else []
    if [len(row) for row in rows] != [4] * 4 or not all(_is_finite(number) for row in rows for number in row):
        raise UserError(f"{where}: pose must be four rows of four numbers")
    return tuple(tuple(map(float, row)) for row in rows)


def _parse_gravity(value: object, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(map(float, check_gravity(value, where)))


def _parse_confidence_origin(value: object, where: str) -> str:
    if value not in (SENSOR, COMPUTED):
        raise UserError(f"{where}: the confidence comes from {SENSOR!r} or {COMPUTED!r}, not {value!r}")
    return str(value)


def check_gravity(value: object, where: str) -> list[float]:
    """Return a downward vector as JSON holds it, unchanged; raises UserError naming `where` if it is none."""
    numbers = value if isinstance(value, list) and all(_is_finite(number) for number in value) else []
    if len(numbers) != 3 or not 1e-3 < math.hypot(*numbers) < 1e6:
        raise UserError(f"{where}: gravity must be three numbers x y z with a norm between 1e-3 and 1e6")
    return numbers


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def default_stem(rgb: str) -> str:
    """The default stem for an RGB path: 'rgb/00/000123.png' -> '00/000123'."""
    path = PurePosixPath(rgb)
    parts = path.with_suffix("").parts
    return "/".join(parts[1:] if len(parts) > 1 else parts)


def _assign_splits(rows: list[Row], splits_file: Path, path: Path) -> None:
    without = [row for row in rows if row.split is None]
    if not without:
        return
    if splits_file.is_file():
        split_of = read_splits(splits_file)
        for row in without:
            row.split = split_of.get(row.stem)  # None for frames in the gaps between splits
        return
    recordings = Counter(row.recording for row in without)
    whole = None not in recordings and len(recordings) >= len(SPLITS)
    blocks = "whole recordings" if whole else "contiguous blocks"
    print(f"WARNING: {path}: {len(without)} rows without a split; splitting 80/10/10 by {blocks}", file=sys.stderr)
    split_of_recording = split_recordings(recordings) if whole else {}
    for index, row in enumerate(without):
        position = index / len(without)
        by_order = "train" if position < 0.8 else "val" if position < 0.9 else "test"
        row.split = split_of_recording.get(row.recording, by_order)


def split_recordings(frames: Counter) -> dict[str | None, str]:
    """{recording: split} from {recording: frame count}: the last recordings for test, then val, at least 10 % each."""
    names, split_of = list(frames), {}
    for split, left in (("test", 2), ("val", 1)):
        taken = 0
        while taken < 0.1 * frames.total() and len(names) > left:
            split_of[names[-1]] = split
            taken += frames[names.pop()]
    return dict.fromkeys(names, "train") | split_of


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as a manifest with paths relative to its folder, atomically and deterministically.

    Raises UserError if a file is outside the manifest's folder.
    """
    path = Path(path)
    folder = DataFolder(path.parent)
    lines = [json.dumps(_row_to_dict(row, folder)) for row in rows]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _row_to_dict(row: Row, folder: DataFolder) -> dict:
    entry: dict = {"stem": row.stem} | {name: folder.relative(file) for name, file in row.files().items()}
    if row.split:
        entry["split"] = row.split
    if row.intrinsics:
        entry["intrinsics"] = asdict(row.intrinsics)
    if row.made_by:
        entry["made_by"] = row.made_by
    if row.da3_scale is not None:
        entry["da3_scale"] = row.da3_scale
    if row.recording is not None:
        entry["recording"] = row.recording
    if row.time is not None:
        entry["time"] = row.time
    if row.pose is not None:
        entry["pose"] = row.pose
    if row.gravity is not None:
        entry["gravity"] = row.gravity
    if row.depth_unit is not None:
        entry["depth_unit"] = row.depth_unit.name
    return entry


def select_rows(rows: Sequence[Row], split: str, limit: int | None) -> list[Row]:
    """The rows of a split, or `limit` evenly spaced ones; raises UserError if the train split is empty."""
    chosen = [row for row in rows if row.split == split]
    if split == "train" and not chosen:
        raise UserError("the manifest has no frames in the split 'train'")
    if limit is not None and len(chosen) > limit:
        chosen = [chosen[index] for index in np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
    return chosen
