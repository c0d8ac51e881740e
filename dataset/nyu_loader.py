"""Convert nyu_depth_v2_labeled.mat to a data folder: images, depth, confidence, six-class labels, camera, splits.

The .mat is HDF5 (MATLAB v7.3) with transposed arrays: frames first, width before height. For its variables, see
https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html
"""

import hashlib
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

try:
    from cli import EXIT_OK, EXIT_STOPPED, ArgumentParser, StopSignal, UserError, cpu_count, existing_file, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import h5py
import numpy as np
from tqdm import tqdm

from config import CLASS_NAMES, IGNORE, NYU_INTRINSICS, NYU_SOURCE, Intrinsics
from dataset.files import prepare_data_folder, read_npy, read_png_raw, write_json, write_npy, write_png
from dataset.frames import white_border
from dataset.label_remapper import check_names, remap
from dataset.manifest import parse_intrinsics
from dataset.parallel import threaded_map

OFFICIAL_SPLIT = Path(__file__).with_name("nyu_official_split.json")
N_OFFICIAL = 1449
TEST_FRACTION, VAL_FRACTION = 0.2, 0.1  # of the frames; with the official split, val is 10 % of its 795 training frames
BLOCK_STARTS = {False: (0.8, 0.9), True: (0.9, 1)}  # {official: (start of val, start of test)}, used without scenes
REQUIRED = {"images": np.uint8, "depths": np.floating, "labels": np.integer}
OPTIONAL = {"rawDepths": np.floating, "instances": np.integer}
# An HDF5 chunk may span several frames. The chunk cache is large enough to decompress each chunk once; five datasets at
# this limit stay well below 1 GB.
MAX_CHUNK_CACHE = 128 * 2**20
CHUNK_CACHE_SLOTS = 100_003  # a prime much larger than the number of chunks per frame, as HDF5 recommends
LOG_EVERY = 100
MAP_FOLDERS = ("rgb", "depth", "confidence", "labels", "instances")  # subfolders that this loader writes


@dataclass
class FrameMaps:
    """One labelled frame.

    rgb: uint8 [H,W,3]; depth: float32 [H,W], metres; confidence: float32 [H,W], 0 or 1; labels: uint8 [H,W], 0..5
    or 255 = ignore; instances: uint16 [H,W], 0 = none, or None if the file has no instances.
    """

    rgb: np.ndarray
    depth: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    instances: np.ndarray | None


class NyuFile:
    """An open .mat file in NYU's layout, read one frame at a time. Use as a context manager.

    Raises UserError if the file is not HDF5, is truncated, lacks a variable, or has inconsistent shapes.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.open("rb").close()  # for a one-line error; HDF5 prints three lines
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror}") from None
        if not h5py.is_hdf5(path):
            raise UserError(f"{path} is not an HDF5 file: is it nyu_depth_v2_labeled.mat, fully downloaded?")
        with self._report_damage("the file"):
            # no lock: read-only file systems may not support locks, and other readers are harmless
            with h5py.File(path, "r", locking=False) as file:
                cache = _chunk_cache_bytes(file)
            self.file = h5py.File(path, "r", locking=False, rdcc_nbytes=cache, rdcc_nslots=CHUNK_CACHE_SLOTS)
        try:
            with self._report_damage("the variables"):
                self._check()
        except UserError:
            self.file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return self.file["images"].shape[0]

    @property
    def rendered(self) -> bool:
        """Whether the frames are rendered rooms in NYU's layout."""
        return bool(np.any(self.file.attrs.get("rendered", 0)))

    @property
    def official(self) -> bool:
        """Whether this is the original labelled set, to which NYU's official split applies."""
        return len(self) == N_OFFICIAL and not self.rendered

    def has(self, name: str) -> bool:
        """Whether the file has the variable."""
        return name in self.file

    def cameras(self) -> list[Intrinsics]:
        """One camera per frame: from the variable intrinsics, else NYU's; raises UserError if neither fits."""
        width, height = self.file["images"].shape[2:]
        if self.has("intrinsics"):
            size = {"width": width, "height": height}
            with self._report_damage("intrinsics"):
                rows = [dict(zip(("fx", "fy", "cx", "cy"), row, strict=True)) for row in self.file["intrinsics"][()]]
            return [
                parse_intrinsics(row | size, f"{self.path}, intrinsics of frame {stem_of(index)}")
                for index, row in enumerate(rows)
            ]
        if "fx" in self.file.attrs:
            raise UserError(
                f"{self.path} stores its camera in attributes, an old layout: render it again with render_rooms.py"
            )
        if width * NYU_INTRINSICS.height != height * NYU_INTRINSICS.width:
            raise UserError(
                f"{self.path}: images of {width}x{height} pixels are not NYU's: add the variable intrinsics"
            )
        camera = NYU_INTRINSICS if width == NYU_INTRINSICS.width else NYU_INTRINSICS.resized(width, height)
        return [camera] * len(self)

    def strings(self, name: str) -> list[str] | None:
        """A cell array of strings, such as `names` or `scenes`; None if the file lacks it."""
        if not self.has(name):
            return None
        with self._report_damage(name):
            return ["".join(map(chr, np.ravel(self.file[ref][()]))) for ref in np.ravel(self.file[name][()])]

    def read_raw(self, index: int) -> dict[str, np.ndarray]:
        """Read one frame's variables as stored, each [H,W] or [H,W,3]; raises UserError if the file is damaged."""
        return {name: self._read(name, index) for name in (*REQUIRED, *OPTIONAL) if self.has(name)}

    def convert(self, index: int, raw: dict[str, np.ndarray]) -> FrameMaps:
        """Convert a frame from read_raw() to a data folder's maps; raises UserError naming it on an unknown label."""
        depth = np.nan_to_num(raw["depths"].astype(np.float32), nan=0, posinf=0, neginf=0)
        try:
            labels = remap(raw["labels"])
        except UserError as error:
            raise UserError(f"{self.path}, frame {stem_of(index)}: {error}") from None
        border = white_border(raw["images"])
        labels[border] = IGNORE
        confidence = ((raw.get("rawDepths", depth) > 0) & ~border).astype(np.float32)
        instances = None
        if "instances" in raw:
            instances = renumber_instances(np.where(border, 0, raw["labels"]), raw["instances"])
        return FrameMaps(raw["images"], depth, confidence, labels, instances)

    def _read(self, name: str, index: int) -> np.ndarray:
        with self._report_damage(f"frame {stem_of(index)}, {name}"):
            return np.ascontiguousarray(self.file[name][index].T)

    @contextmanager
    def _report_damage(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path}: can't read {what}: damaged or truncated? ({reason})") from None

    def _check(self) -> None:
        for name, kind in (REQUIRED | OPTIONAL).items():
            if name not in self.file:
                if name in REQUIRED:
                    raise UserError(f"{self.path} has no variable {name!r}: is it nyu_depth_v2_labeled.mat?")
                continue
            dataset = self.file[name]
            if not isinstance(dataset, h5py.Dataset) or not np.issubdtype(dataset.dtype, kind):
                raise UserError(f"{self.path}: {name} must be an array of {kind.__name__}, not {dataset}")
        shape = self.file["images"].shape
        if len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise UserError(f"{self.path}: images has shape {list(shape)}, not [frames,3,width,height]")
        for name in ("depths", "labels", *OPTIONAL):
            if self.has(name) and self.file[name].shape != (shape[0], *shape[2:]):
                found = list(self.file[name].shape)
                raise UserError(f"{self.path}: {name} has shape {found}, but images has {list(shape)}")
        if self.has("intrinsics") and getattr(self.file["intrinsics"], "shape", None) != (shape[0], 4):
            raise UserError(f"{self.path}: intrinsics is {self.file['intrinsics']}, not fx, fy, cx, cy per image")
        for name, expected in (("scenes", shape[0]), ("names", None)):
            if not self.has(name):
                continue
            if h5py.check_ref_dtype(self.file[name].dtype) is not h5py.Reference:
                raise UserError(f"{self.path}: {name} is not a cell array of strings")
            if expected is not None and self.file[name].size != expected:
                raise UserError(f"{self.path}: scenes has {self.file[name].size} entries for {expected} images")


def _chunk_cache_bytes(file: h5py.File) -> int:
    largest = 2**20  # HDF5's own default
    for name in (*REQUIRED, *OPTIONAL):
        dataset = file.get(name)
        if isinstance(dataset, h5py.Dataset) and dataset.chunks:
            whole = (math.ceil(n / c) * c for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
            largest = max(largest, dataset.chunks[0] * math.prod(whole) * dataset.dtype.itemsize)
    return min(largest, MAX_CHUNK_CACHE)


def stem_of(index: int) -> str:
    """The stem of a frame: its 1-based number, as in the official split."""
    return f"{index + 1:06d}"


def renumber_instances(labels: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Number a frame's instances consecutively, since NYU numbers them separately within each class.

    Args:
        labels: NYU ids, integer [H,W], 0 = unlabelled.
        instances: instance numbers within the class, integer [H,W], 0 = none.

    Returns uint16 [H,W]: 1, 2, ... in order of (class, instance), 0 = none.
    """
    pairs = labels.astype(np.int64) * (int(instances.max(initial=0)) + 1) + instances
    pairs[(labels == 0) | (instances == 0)] = 0
    present = np.zeros(pairs.max(initial=0) + 1, bool)
    present[pairs] = True
    present[0] = False
    return np.cumsum(present, dtype=np.uint16)[pairs] * present[pairs]


def assign_splits(n_frames: int, scenes: Sequence[str] | None, official: bool) -> dict[str, list[str]]:
    """Split by whole scenes, since neighbouring frames are near-duplicates.

    Scenes are ordered by the hash of their names, which is deterministic and mixes room types.

    Args:
        n_frames: number of frames.
        scenes: scene name of each frame; None: use contiguous blocks of frames instead.
        official: use NYU's official test set; otherwise test is at least 20 % of the frames.

    Returns {"train": stems, "val": stems, "test": stems}. Val is at least 10 % of the remaining frames; train is never
    empty.
    """
    test = [number - 1 for number in json.loads(OFFICIAL_SPLIT.read_text())["test"]] if official else []
    pool = sorted(set(range(n_frames)) - set(test))
    if scenes is None:
        val_from, test_from = (max(1, int(fraction * len(pool))) for fraction in BLOCK_STARTS[official])
        split = {"train": pool[:val_from], "val": pool[val_from:test_from], "test": test or pool[test_from:]}
    else:
        frames: dict[str, list[int]] = {}
        for index in pool:
            frames.setdefault(scenes[index], []).append(index)
        order = sorted(frames, key=lambda scene: hashlib.sha256(scene.encode()).hexdigest())
        test = test or _hold_out(frames, order, TEST_FRACTION * n_frames)
        val = _hold_out(frames, order, VAL_FRACTION * len(pool))
        split = {"train": [index for scene in order for index in frames[scene]], "val": val, "test": test}
    return {name: [stem_of(index) for index in sorted(indices)] for name, indices in split.items()}


def _hold_out(frames: dict[str, list[int]], order: list[str], wanted: float) -> list[int]:
    held_out: list[int] = []
    while len(held_out) < wanted and len(order) > 1:  # keep at least one scene for training
        held_out += frames[order.pop(0)]
    return held_out


def describe_source(source: NyuFile) -> dict:
    """The content of source.json: what the folder was made from."""
    if source.rendered:
        what = "rendered rooms in the layout of NYU Depth V2: synthetic images, not NYU's photographs"
    elif source.official:
        what = NYU_SOURCE
    else:
        what = f"a file in the layout of NYU Depth V2's labelled set, which has {N_OFFICIAL} frames"
    confidence = "rawDepths > 0" if source.has("rawDepths") else "depths > 0, for the file has no rawDepths"
    size = source.path.stat().st_size  # to tell files of the same name apart when a run resumes
    return {"file": source.path.name, "bytes": size, "frames": len(source), "what": what, "confidence": confidence}


def camera_entries(cameras: Sequence[Intrinsics]) -> dict:
    """The content of camera.json: the common camera of all frames, else one per stem."""
    if len(set(cameras)) == 1:
        return asdict(cameras[0])
    return {stem_of(index): asdict(camera) for index, camera in enumerate(cameras)}


def frame_files(out: Path, stem: str, with_instances: bool) -> dict[str, Path]:
    """{map: file in the data folder} for one frame."""
    suffixes = {"rgb": "png", "depth": "npy", "confidence": "npy", "labels": "png"}
    if with_instances:
        suffixes["instances"] = "png"
    return {name: out / name / f"{stem}.{suffix}" for name, suffix in suffixes.items()}


def convert_frame(source: NyuFile, index: int, raw: dict[str, np.ndarray], files: dict[str, Path]) -> np.ndarray:
    """Convert and write a frame from NyuFile.read_raw(); returns its count_pixels()."""
    maps = source.convert(index, raw)
    for name, file in files.items():
        (write_npy if file.suffix == ".npy" else write_png)(file, getattr(maps, name))
    return count_pixels(maps.confidence, maps.labels)


def count_existing(files: dict[str, Path]) -> np.ndarray:
    """count_pixels() of a frame whose files all exist."""
    return count_pixels(read_npy(files["confidence"]), read_png_raw(files["labels"]))


def count_pixels(confidence: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Int64 [258]: number of pixels, of pixels with valid sensor depth, and of each label 0..255."""
    counts = np.bincount(labels.ravel(), minlength=256)
    return np.concatenate([[labels.size, np.count_nonzero(confidence)], counts])


def convert_frames(source: NyuFile, out: Path) -> Generator[np.ndarray, None, None]:
    """Convert all frames in order, skipping existing ones; yields count_pixels() of each.

    Only this thread reads HDF5, which is not concurrent; other threads convert and write.
    """

    def jobs() -> Iterator[Callable[[], np.ndarray]]:
        for index in range(len(source)):
            files = frame_files(out, stem_of(index), source.has("instances"))
            if all(file.is_file() for file in files.values()):
                yield partial(count_existing, files)
            else:
                yield partial(convert_frame, source, index, source.read_raw(index), files)

    return threaded_map(lambda job: job(), jobs(), cpu_count())


def summary(split: dict[str, list[str]], counts: np.ndarray) -> str:
    """The final line of a run; `counts` is the sum of count_pixels() over all frames."""
    frames = ", ".join(f"{name} {len(stems)}" for name, stems in split.items())
    pixels, valid, per_class = counts[0], counts[1], counts[2 : 2 + len(CLASS_NAMES)]
    labelled = max(int(per_class.sum()), 1)
    fractions = ", ".join(f"{name} {n / labelled:.1%}" for name, n in zip(CLASS_NAMES, per_class, strict=True))
    total = sum(map(len, split.values()))
    return (
        f"{total} frames ({frames}); valid sensor depth {valid / pixels:.1%} of pixels; "
        f"labelled {labelled / pixels:.1%}: {fractions}"
    )


def parse_args() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        "Reads nyu_depth_v2_labeled.mat (HDF5) or a file with the same layout.\n"
        "Writes a data folder: rgb/ depth/ confidence/ labels/ instances/ camera.json splits.json recordings.json\n"
        "source.json\n\n"
        "A stopped run resumes. camera.json and splits.json are written last."
    )
    parser.add_argument("--mat", required=True, help="the .mat file")
    parser.add_argument("--out", required=True, type=Path, help="the data folder to write")
    return parser.parse_args()


def main() -> int:
    """Run the script and return its exit code."""
    args = parse_args()
    with NyuFile(existing_file(args.mat, "--mat")) as source, StopSignal() as stop:
        names = source.strings("names")
        if names is not None:
            check_names(names)
        cameras = source.cameras()
        scenes = source.strings("scenes")
        split = assign_splits(len(source), scenes, source.official)
        description = describe_source(source)
        prepare_data_folder(args.out, description, MAP_FOLDERS)
        print(f"{source.path}: {description['what']}; confidence is {description['confidence']}")
        counts = np.zeros(258, dtype=np.int64)
        converted = tqdm(convert_frames(source, args.out), total=len(source), unit="frame", disable=None)
        for index, frame_counts in enumerate(converted):
            counts += frame_counts
            if stop:
                print(f"stopped after {index + 1} of {len(source)} frames: run the same command to resume")
                return EXIT_STOPPED
            if not sys.stderr.isatty() and (index + 1) % LOG_EVERY == 0:
                print(f"{index + 1} of {len(source)} frames", flush=True)
        write_json(args.out / "camera.json", camera_entries(cameras))
        if scenes is not None:
            recordings = {stem_of(index): scene for index, scene in enumerate(scenes) if scene}
            write_json(args.out / "recordings.json", recordings)
        write_json(args.out / "splits.json", split)
    print(summary(split, counts))
    return EXIT_OK


if __name__ == "__main__":
    run(main)
