"""Converting nyu_depth_v2_labeled.mat to a data folder, with small files of the same layout."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cli import UserError

import h5py
import numpy as np
import pytest
from small_disk import small_disk

from config import CLASS_NAMES, IGNORE
from dataset import nyu_loader
from dataset.files import read_image, read_json, read_npy, read_png_raw
from dataset.label_remapper import load_class_table, lookup_table
from dataset.manifest import Cameras, read_recordings, read_splits

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "dataset" / "nyu_loader.py"
WIDTH, HEIGHT, BORDER = 64, 48, 3
VARIABLES = ("images", "depths", "rawDepths", "labels", "instances")


def frame_arrays(index: int) -> dict[str, np.ndarray]:
    """One frame as [H,W,...]; all frames and pixels differ, to detect swapped axes or frames."""
    rng = np.random.default_rng(index)
    rgb = rng.integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rgb[:BORDER], rgb[-BORDER:], rgb[:, :BORDER], rgb[:, -BORDER:] = 255, 255, 255, 255
    depth = rng.uniform(0.5, 9, (HEIGHT, WIDTH)).astype(np.float32)
    return {
        "images": rgb,
        "depths": depth,
        "rawDepths": np.where(rng.random(depth.shape) < 0.3, 0, depth).astype(np.float32),
        "labels": rng.integers(0, 895, depth.shape).astype(np.uint16),
        "instances": rng.integers(0, 4, depth.shape).astype(np.uint8),
    }


def write_strings(file: h5py.File, name: str, texts: list[str]) -> None:
    references = [
        file.create_dataset(f"#refs#/{name}{n}", data=np.array([[ord(c)] for c in text], dtype=np.uint16)).ref
        for n, text in enumerate(texts)
    ]
    file.create_dataset(name, data=np.array([references], dtype=h5py.ref_dtype))


def write_mat(
    path: Path,
    n_frames: int = 6,
    per_scene: int = 1,
    leave_out: tuple[str, ...] = (),
    intrinsics: list | None = None,
    **attributes,
) -> Path:
    """Write a file like MATLAB: user block, transposed arrays, chunks that span frames, cell arrays of references."""
    frames = [frame_arrays(index) for index in range(n_frames)]
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in VARIABLES:
            data = np.stack([frame[name].T for frame in frames])
            if name not in leave_out:
                chunks = (min(4, n_frames), *(1 + size // 2 for size in data.shape[1:]))
                file.create_dataset(name, data=data, chunks=chunks, compression="gzip", compression_opts=1)
        if "names" not in leave_out:
            write_strings(file, "names", [row.name for row in load_class_table()])
        if "scenes" not in leave_out:
            write_strings(file, "scenes", [f"room_{index // per_scene:04d}" for index in range(n_frames)])
        if intrinsics:
            file["intrinsics"] = np.array(intrinsics)
        file.attrs.update(attributes)
    return path


def load(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def mat(tmp_path_factory) -> Path:
    return write_mat(tmp_path_factory.mktemp("mat") / "small.mat")


@pytest.fixture(scope="module")
def folder(mat, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("nyu") / "data"
    result = load("--mat", mat, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize("index", [0, 4, 5])
def test_maps_equal_the_transposed_arrays(folder, index):
    expected, stem = frame_arrays(index), f"{index + 1:06d}"
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    np.testing.assert_array_equal(read_image(folder / f"rgb/{stem}.png"), expected["images"])
    depth = read_npy(folder / f"depth/{stem}.npy")
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, expected["depths"])
    confidence = read_npy(folder / f"confidence/{stem}.npy")
    assert confidence.dtype == np.float32
    np.testing.assert_array_equal(confidence, (expected["rawDepths"] > 0) & inside)
    labels = read_png_raw(folder / f"labels/{stem}.png")
    np.testing.assert_array_equal(labels, np.where(inside, lookup_table()[expected["labels"]], IGNORE))


def test_instances_are_numbered_by_class_and_instance(folder):
    maps = frame_arrays(0)
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    numbers = read_png_raw(folder / "instances/000001.png")
    assert numbers.dtype == np.uint16
    seen = {
        (int(c), int(i))
        for c, i in zip(maps["labels"][inside], maps["instances"][inside], strict=True)
        if c and i
    }  # fmt: skip
    number_of = {pair: number for number, pair in enumerate(sorted(seen), 1)}
    for y, x in np.ndindex(HEIGHT, WIDTH):
        pair = (int(maps["labels"][y, x]), int(maps["instances"][y, x])) if inside[y, x] else (0, 0)
        assert numbers[y, x] == number_of.get(pair, 0)


def test_renumber_instances():
    labels = np.array([[5, 5, 2, 0, 894]], dtype=np.uint16)
    instances = np.array([[2, 1, 1, 1, 0]], dtype=np.uint8)
    assert nyu_loader.renumber_instances(labels, instances).tolist() == [[3, 2, 1, 0, 0]]


def test_data_folder_is_readable(folder):
    camera = Cameras.read(folder / "camera.json").for_frame("000001")
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    assert camera.fx == pytest.approx(51.88579)  # NYU's camera at a tenth of the size
    assert sorted(read_splits(folder / "splits.json")) == [f"{n:06d}" for n in range(1, 7)]
    assert sorted(read_recordings(folder / "recordings.json")) == [f"{n:06d}" for n in range(1, 7)]
    source = read_json(folder / "source.json")
    assert source["file"] == "small.mat" and source["frames"] == 6
    assert source["what"] != "NYU Depth V2, labelled set"


def test_summary_line(mat, tmp_path):
    last = load("--mat", mat, "--out", tmp_path).stdout.strip().splitlines()[-1]
    counts = {name: len(stems) for name, stems in read_json(tmp_path / "splits.json").items()}
    inside = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    valid = np.mean([np.sum(frame_arrays(i)["rawDepths"][inside] > 0) / (WIDTH * HEIGHT) for i in range(6)])
    assert f"6 frames (train {counts['train']}, val {counts['val']}, test {counts['test']})" in last
    assert f"valid sensor depth {valid:.1%}" in last
    assert all(f"{name} " in last for name in CLASS_NAMES)


def test_rendered_rooms_are_labelled_as_such(tmp_path):
    path = write_mat(tmp_path / "rooms.mat", rendered=1)
    result = load("--mat", path, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert read_json(tmp_path / "out/source.json")["what"].startswith("rendered rooms")


@pytest.mark.parametrize("per_frame", [False, True])
def test_cameras_from_the_file(tmp_path, per_frame):
    intrinsics = [[50.0 + per_frame * index, 51, 31, 22] for index in range(6)]
    path = write_mat(tmp_path / "rooms.mat", intrinsics=intrinsics)
    assert load("--mat", path, "--out", tmp_path / "out").returncode == 0
    cameras = Cameras.read(tmp_path / "out/camera.json")
    assert (cameras.common is None) == per_frame
    for index, row in enumerate(intrinsics):
        camera = cameras.for_frame(f"{index + 1:06d}")
        assert [camera.fx, camera.fy, camera.cx, camera.cy] == row
        assert (camera.width, camera.height) == (WIDTH, HEIGHT)


def test_optional_variables_may_be_absent(tmp_path):
    path = write_mat(tmp_path / "bare.mat", leave_out=("rawDepths", "instances", "names", "scenes"))
    result = load("--mat", path, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "no rawDepths" in result.stdout
    assert not (tmp_path / "out/instances").exists()
    confidence = read_npy(tmp_path / "out/confidence/000001.npy")
    assert confidence[BORDER:-BORDER, BORDER:-BORDER].all() and confidence[0].max() == 0


def spoil(path: Path, change) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(name: str, data: np.ndarray):
    def change(file):
        del file[name]
        file.create_dataset(name, data=data)

    return change


def narrower(file) -> None:
    for name in VARIABLES:
        replace(name, file[name][..., :-2])(file)


def unknown_id(file) -> None:
    file["labels"][3, 20, 10] = 895


def other_name(file) -> None:
    file[file["names"][0, 1]][0, 0] = ord("X")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("images"), ["images"]),
        (lambda file: file.__delitem__("depths"), ["depths"]),
        (lambda file: file.__delitem__("labels"), ["labels"]),
        (replace("depths", np.zeros((5, WIDTH, HEIGHT), np.float32)), ["depths", "images"]),
        (replace("rawDepths", np.zeros((6, HEIGHT, WIDTH), np.float32)), ["rawDepths", "images"]),
        (replace("images", np.zeros((6, WIDTH, HEIGHT), np.uint8)), ["images"]),
        (replace("labels", np.zeros((6, WIDTH, HEIGHT), np.float64)), ["labels"]),
        (replace("scenes", np.zeros((1, 6))), ["scenes"]),
        (unknown_id, ["000004", "895"]),
        (lambda file: file.attrs.update(fx=674.5), ["attributes", "render_rooms.py"]),
        (lambda file: file.create_dataset("intrinsics", data=np.ones((6, 3))), ["intrinsics", "(6, 3)"]),
        (lambda file: file.create_dataset("intrinsics", data=np.full((6, 4), np.nan)), ["intrinsics", "000001"]),
        (other_name, ["names", "id 2"]),
    ],
)
def test_invalid_files_are_rejected_in_one_line(tmp_path, change, words):
    path = spoil(write_mat(tmp_path / "wrong.mat"), change)
    check_refused(load("--mat", path, "--out", tmp_path / "out"), words)
    assert not (tmp_path / "out/splits.json").exists()


def check_refused(result: subprocess.CompletedProcess, words: list[str]) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_damaged_files_are_rejected_in_one_line(mat, tmp_path):
    path = tmp_path / "cut.mat"
    path.write_bytes(mat.read_bytes()[: mat.stat().st_size // 2])
    check_refused(load("--mat", path, "--out", tmp_path / "out"), ["cut.mat"])
    path.write_text("404 not found")
    check_refused(load("--mat", path, "--out", tmp_path / "out"), ["not an HDF5 file"])
    check_refused(load("--mat", tmp_path / "none.mat", "--out", tmp_path / "out"), ["none.mat"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_locked_file_is_read(mat, tmp_path, mode):
    path = shutil.copy(mat, tmp_path / "locked.mat")
    path.chmod(0o444)
    with open(path, "rb") as other:
        fcntl.flock(other, mode)
        result = load("--mat", path, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr


def test_file_on_a_read_only_disk_is_read(mat, tmp_path):
    with small_disk(tmp_path / "disk", "16m", shutil.copy, mat, "rooms.mat", read_only=True) as disk:
        result = load("--mat", disk / "rooms.mat", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr


def test_missing_permission_is_reported(mat):
    """As a user other than root, who may read everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = shutil.copy(mat, Path(name) / "private.mat")
        path.chmod(0)
        if root := os.geteuid() == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"can't read .*private\.mat: Permission denied"):
                nyu_loader.NyuFile(path)
        finally:
            if root:
                os.seteuid(0)


def test_stopped_run_resumes(mat, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    for name in ("splits.json", "camera.json", "labels/000003.png", "rgb/000006.png"):
        (tmp_path / "data" / name).unlink()
    (tmp_path / "data/rgb/.000006.abc.part.png").write_bytes(b"half")
    kept = (tmp_path / "data/rgb/000001.png").stat().st_mtime_ns
    assert load("--mat", mat, "--out", tmp_path / "data").returncode == 0
    assert contents(tmp_path / "data") == contents(folder)
    assert (tmp_path / "data/rgb/000001.png").stat().st_mtime_ns == kept


def test_signal_stops_between_frames(tmp_path):
    path = write_mat(tmp_path / "many.mat", n_frames=120)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, SCRIPT, "--mat", path, "--out", out], stdout=subprocess.PIPE)
    while not (out / "labels/000003.png").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not (out / "splits.json").exists()


def test_other_source_needs_another_folder(folder, tmp_path):
    path = write_mat(tmp_path / "other.mat", n_frames=3)
    check_refused(load("--mat", path, "--out", folder), ["another"])


def test_official_split_validates_on_whole_scenes():
    official = json.loads((ROOT / "dataset/nyu_official_split.json").read_text())
    test = {f"{number:06d}" for number in official["test"]}
    in_test = [f"{index + 1:06d}" in test for index in range(1449)]
    scenes = [f"{'test' if held else 'train'}_{index // 5}" for index, held in enumerate(in_test)]
    split = nyu_loader.assign_splits(1449, scenes, official=True)
    assert set(split["test"]) == test and len(test) == 654
    assert len(split["train"]) + len(split["val"]) == 795
    assert 79.5 <= len(split["val"]) < 79.5 + 5
    assert scenes_of(split["train"], scenes).isdisjoint(scenes_of(split["val"], scenes))
    without_scenes = nyu_loader.assign_splits(1449, None, official=True)
    assert set(without_scenes["test"]) == test and len(without_scenes["val"]) == 80


def scenes_of(stems: list[str], scenes: list[str]) -> set[str]:
    return {scenes[int(stem) - 1] for stem in stems}


def test_other_files_are_split_by_whole_scenes():
    scenes = [f"room_{index // 4}" for index in range(100)]
    split = nyu_loader.assign_splits(100, scenes, official=False)
    assert (len(split["test"]), len(split["val"]), len(split["train"])) == (20, 12, 68)
    parts = [scenes_of(stems, scenes) for stems in split.values()]
    assert sum(map(len, parts)) == 25 == len(set.union(*parts))
    renumbered = nyu_loader.assign_splits(100, scenes, official=False)
    assert renumbered == split


@pytest.mark.parametrize("n_frames", [1, 2, 3, 10])
@pytest.mark.parametrize("scenes", ["one", "each", None])
def test_train_is_never_empty_and_no_frame_is_lost(n_frames, scenes):
    names = {"one": ["room"] * n_frames, "each": [f"room_{index}" for index in range(n_frames)]}.get(scenes)
    split = nyu_loader.assign_splits(n_frames, names, official=False)
    assert split["train"]
    assert sorted(sum(split.values(), [])) == [f"{n:06d}" for n in range(1, n_frames + 1)]


def test_contiguous_blocks_without_scenes():
    split = nyu_loader.assign_splits(10, None, official=False)
    assert split == {"train": [f"{n:06d}" for n in range(1, 9)], "val": ["000009"], "test": ["000010"]}


def test_other_image_shapes_need_intrinsics(tmp_path):
    path = spoil(write_mat(tmp_path / "wide.mat", n_frames=1), narrower)
    with nyu_loader.NyuFile(path) as source, pytest.raises(UserError, match="intrinsics"):
        source.cameras()
