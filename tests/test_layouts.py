"""Folders of published data sets, made here: recognised by themselves, one pixel's metres checked by hand in each."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset.files import read_image, read_json
from dataset.frames import find_frames, read_depth
from dataset.manifest import Cameras

WIDTH, HEIGHT = 64, 48
FEW = ("--test-frames", 1, "--val-frames", 0, "--gap-frames", 0)


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    image = np.full((height, width, 3), 100, np.uint8)
    image[:, : width // 2] = (40, 90, 10 * number % 200)
    return image


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def write_tum(folder: Path, frames: int = 5) -> Path:
    """Depth 10 ms after colour, unsorted, 1/5000 m; the third frame's depth is missing; walks 0.1 m per second."""
    lines: dict[str, list[str]] = {"rgb": ["# color images"], "depth": ["# depth maps"]}
    truth = ["# ground truth", "1305031100.00 0 0 1 0 0 0 1"]
    for number in range(frames):
        time = 1305031102.0 + number / 10
        write(folder / f"rgb/{time:.6f}.png", picture(number))
        lines["rgb"].append(f"{time:.6f} rgb/{time:.6f}.png")
        if number != 2:
            depth = np.full((HEIGHT, WIDTH), 5000 + 500 * number, np.uint16)
            depth[20, 30] = 7345
            write(folder / f"depth/{time + 0.01:.6f}.png", depth)
            lines["depth"].insert(1, f"{time + 0.01:.6f} depth/{time + 0.01:.6f}.png")
        truth += [
            f"{time - 0.05:.4f} {0.1 * (number - 0.5):.4f} 0 1 0 0 0 1",
            f"{time + 0.05:.4f} {0.1 * (number + 0.5):.4f} 0 1 0 0 0 1",
        ]
    for name, content in {**lines, "groundtruth": truth}.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    return folder


def test_tum(tmp_path, importer):
    folder = write_tum(tmp_path / "rgbd_dataset_freiburg3_office")
    code, printed, _ = importer(
        "--input", folder, "--out", tmp_path / "out", *FEW, "--fx", 60, "--fy", 60, "--cx", 32, "--cy", 24
    )
    assert code == 0
    assert printed.splitlines()[0].startswith(
        "rgbd_dataset_freiburg3_office: recognised as TUM RGB-D, depth in 1/5000 m"
    )
    assert "4 frames (train 3, val 0, test 1)" in printed and "1 without depth" in printed
    stems = list(find_frames(tmp_path / "out/rgb"))
    assert stems == [f"{1305031102 + n / 10:.6f}" for n in (0, 1, 3, 4)]
    depth = read_depth(tmp_path / f"out/depth/{stems[1]}.png")
    assert depth[20, 30] == pytest.approx(7345 / 5000) and depth[0, 0] == pytest.approx(1.1)
    assert read_json(tmp_path / "out/times.json")[stems[2]] == pytest.approx(0.3)
    poses = read_json(tmp_path / "out/poses.json")
    np.testing.assert_allclose(poses[stems[3]], [[1, 0, 0, 0.4], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], atol=1e-6)


def test_tum_cameras_are_known_by_their_name(tmp_path, importer):
    """freiburg1's pictures are distorted; fr3's are not."""
    folder = tmp_path / "rgbd_dataset_freiburg1_desk"
    for number in range(3):
        time = 1305031102.0 + number / 10
        write(folder / f"rgb/{time:.6f}.png", picture(number, 640, 480))
        write(folder / f"depth/{time:.6f}.png", np.full((480, 640), 10_000, np.uint16))
    for name in ("rgb", "depth"):
        files = sorted((folder / name).iterdir())
        (folder / f"{name}.txt").write_text("".join(f"{file.stem} {name}/{file.name}\n" for file in files))
    code, printed, _ = importer("--input", folder, "--out", tmp_path / "out", *FEW)
    assert code == 0 and "plumb_bob distortion is removed" in printed
    camera = read_json(tmp_path / "out/camera.json")
    assert [camera[name] for name in ("fx", "fy", "cx", "cy")] == [517.3, 516.5, 318.6, 255.3]
    depth = read_depth(next((tmp_path / "out/depth").iterdir()))
    assert depth[240, 320] == 2


@pytest.mark.parametrize(
    "line",
    ["1305031102.0 ../../etc/passwd", "1305031102.0 /etc/passwd", "nan rgb/a.png", "soon rgb/a.png", "1305031102.0"],
)
def test_tum_lists_stay_in_their_folder(tmp_path, importer, line):
    folder = write_tum(tmp_path / "freiburg3")
    (folder / "rgb.txt").write_text(line + "\n")
    code, _, errors = importer("--input", folder, "--out", tmp_path / "out")
    assert code == 2 and "rgb.txt" in errors[0] and not (tmp_path / "out").exists()


def write_seven_scenes(folder: Path, sequences: int = 3, frames: int = 3) -> Path:
    """The sensor's depth, unregistered; 65535 and 0 where there is none."""
    for sequence in range(1, sequences + 1):
        for number in range(frames):
            stem = folder / f"seq-{sequence:02d}" / f"frame-{number:06d}"
            write(Path(f"{stem}.color.png"), picture(number, 640, 480))
            depth = np.full((480, 640), 2345, np.uint16)
            depth[:10] = 65535
            write(Path(f"{stem}.depth.png"), depth)
            pose = np.eye(4)
            pose[:3, 3] = number, 0, 1
            Path(f"{stem}.pose.txt").write_text("\n".join("\t".join(map(str, row)) for row in pose))
    (folder / "TrainSplit.txt").write_text("sequence1\nsequence3\n")
    (folder / "TestSplit.txt").write_text("sequence2\n")
    return folder


def test_seven_scenes(tmp_path, importer):
    code, printed, _ = importer("--input", write_seven_scenes(tmp_path / "redkitchen"), "--out", tmp_path / "out")
    assert code == 0
    assert "seq-01: recognised as 7-Scenes" in printed and "depth of 640x480 is registered to colour" in printed
    splits = read_json(tmp_path / "out/splits.json")
    assert splits["test"] == [f"seq-02/frame-{n:06d}" for n in range(3)]
    assert {stem[:6] for stem in splits["train"]} == {"seq-01"} and {stem[:6] for stem in splits["val"]} == {"seq-03"}
    depth = read_depth(tmp_path / "out/depth/seq-01/frame-000001.png")
    # a wall of 2.345 m is as far from the colour camera, 35.5 mm beside; its rim is outside the depth camera's view
    assert depth[240, 320] == pytest.approx(2.345) and not depth[:5].any()
    # the first ray of the depth camera with a reading: y = (10 - 240) / 585 * 2.345 m, then 4 mm up
    top = 528 * ((10 - 240) / 585 - 0.004 / 2.345) + 240
    assert not depth[int(top) - 2, 320] and depth[int(top) + 2, 320] == pytest.approx(2.345)
    camera = Cameras.read(tmp_path / "out/camera.json").for_frame("seq-01/frame-000001")
    assert (camera.fx, camera.cx) == (528, 323.7)
    pose = np.array(read_json(tmp_path / "out/poses.json")["seq-01/frame-000001"])
    np.testing.assert_allclose(pose[:3, 3], [1.0355, 0.004, 1])  # the colour camera's


def write_scannet(folder: Path, frames: int = 4) -> Path:
    """Colour of twice the depth's size; the second pose was lost."""
    for number in range(frames):
        write(folder / f"color/{number}.jpg", picture(number, 2 * WIDTH, 2 * HEIGHT))
        depth = np.full((HEIGHT, WIDTH), 1000, np.uint16)
        depth[:, WIDTH // 2 :] = 3210
        write(folder / f"depth/{number}.png", depth)
        pose = np.full((4, 4), -np.inf) if number == 1 else np.diag([1.0, 1, 1, 1])
        (folder / "pose").mkdir(exist_ok=True)
        np.savetxt(folder / f"pose/{number}.txt", pose)
    (folder / "intrinsic").mkdir()
    for name, scale in (("color", 2), ("depth", 1)):
        matrix = np.eye(4)
        matrix[:2, :3] = [[60 * scale, 0, 32 * scale - 0.5], [0, 60 * scale, 24 * scale - 0.5]]
        np.savetxt(folder / f"intrinsic/intrinsic_{name}.txt", matrix)
        np.savetxt(folder / f"intrinsic/extrinsic_{name}.txt", np.eye(4))
    return folder


def test_scannet(tmp_path, importer):
    folder = write_scannet(tmp_path / "scene0011_00")
    code, printed, _ = importer("--input", folder, "--out", tmp_path / "out", *FEW)
    assert code == 0
    assert "scene0011_00: recognised as ScanNet, depth in millimetres; depth of 64x48 is registered" in printed
    depth = read_depth(tmp_path / "out/depth/2.png")
    assert depth.shape == (2 * HEIGHT, 2 * WIDTH) == read_image(tmp_path / "out/rgb/2.jpg").shape[:2]
    assert depth[40, 20] == 1 and depth[40, 100] == pytest.approx(3.21)
    assert np.isin(np.round(depth[2:-2, 2:-2], 4), np.float32([1, 3.21])).all()  # no gaps, and no mixed depths
    assert (tmp_path / "out/rgb/2.jpg").read_bytes() == (folder / "color/2.jpg").read_bytes()
    assert set(read_json(tmp_path / "out/poses.json")) == {"0", "2", "3"}
    assert set(read_json(tmp_path / "out/recordings.json").values()) == {"scene0011"}


def test_scans_of_one_place_stay_together(tmp_path, importer):
    for name in ("scene0000_00", "scene0000_01", "scene0001_00", "scene0002_00"):
        write_scannet(tmp_path / "scans" / name)
    code, printed, _ = importer("--input", tmp_path / "scans", "--out", tmp_path / "out")
    assert code == 0 and "16 frames (train 8, val 4, test 4)" in printed
    train = {stem.split("/")[0] for stem in read_json(tmp_path / "out/splits.json")["train"]}
    assert train == {"scene0000_00", "scene0000_01"}


def rotate(millimetres: np.ndarray) -> np.ndarray:
    """As SUN RGB-D stores it: rotated to the left by 3 bits."""
    return ((millimetres << 3) | (millimetres >> 13)).astype(np.uint16)


def write_sun(folder: Path) -> Path:
    """Two sensors with their own sizes and cameras, four places."""
    places = {
        "xtion/sun3ddata/lab_a/lab_a_1": ["0000001-000000033369", "0000035-000001168012"],
        "xtion/sun3ddata/lab_b/lab_b_1": ["0000001-000000033369"],
        "kv2/kinect2data": [
            "000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize",
            "000065_2014-05-26_20-03-22_1_rgbf000003-resize",
        ],
    }
    for place, names in places.items():
        width = WIDTH if "xtion" in place else 80
        for name in names:
            frame = folder / place / name
            write(frame / f"image/{name[:7]}.jpg", picture(3, width, 60))
            depth = np.full((60, width), 1500, np.uint16)
            depth[20, 30] = 9001  # above 8192, where the rotation brings bits to the low end
            write(frame / f"depth/{name[:7]}.png", rotate(depth))
            (frame / "intrinsics.txt").write_text(f"{width} 0 {width / 2} 0 {width} 30 0 0 1 \n")
            (frame / "scene.txt").write_text("lab")
    return folder


def test_sun_rgbd(tmp_path, importer):
    folder = write_sun(tmp_path / "SUNRGBD")
    code, printed, _ = importer("--input", folder, "--out", tmp_path / "out")
    assert code == 0 and "SUNRGBD: recognised as SUN RGB-D, depth in millimetres with bits rotated by 3" in printed
    stem = "xtion/sun3ddata/lab_a/lab_a_1/0000001-000000033369"
    depth = read_depth(tmp_path / f"out/depth/{stem}.png")
    assert depth[20, 30] == pytest.approx(9.001) and depth[0, 0] == 1.5
    cameras = Cameras.read(tmp_path / "out/camera.json")
    kinect = "kv2/kinect2data/000065_2014-05-26_20-03-22_1_rgbf000003-resize"
    assert (cameras.for_frame(stem).width, cameras.for_frame(kinect).width) == (WIDTH, 80)
    assert cameras.for_frame(kinect).fx == 80
    recordings = read_json(tmp_path / "out/recordings.json")
    assert len(set(recordings.values())) == 4 and recordings[stem] == "lab_a_1"
    splits = read_json(tmp_path / "out/splits.json")
    scenes = {name: {recordings[stem] for stem in stems} for name, stems in splits.items()}
    assert not scenes["train"] & scenes["test"] and sum(map(len, splits.values())) == 5


def test_sun_rgbd_allsplit(tmp_path, importer):
    savemat = pytest.importorskip("scipy.io").savemat
    folder = write_sun(tmp_path / "SUNRGBD")
    frames = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("intrinsics.txt"))
    cells = [
        np.array([f"/n/fs/sun3d/data/SUNRGBD/{frame}" for frame in part], object) for part in (frames[:3], frames[3:4])
    ]
    savemat(tmp_path / "allsplit.mat", {"alltrain": cells[0], "alltest": cells[1]})
    code, _, errors = importer("--input", folder, "--out", tmp_path / "out", "--allsplit", tmp_path / "allsplit.mat")
    assert code == 0 and "does not list 1 of 5 frames" in errors[0]
    splits = read_json(tmp_path / "out/splits.json")
    assert splits["test"] == frames[3:4] and sorted(splits["train"] + splits["val"]) == frames[:3]
    for content in (b"", b"MATLAB 5.0" + bytes(200)):
        (tmp_path / "allsplit.mat").write_bytes(content)
        code, _, errors = importer("--input", folder, "--out", tmp_path / "o2", "--allsplit", tmp_path / "allsplit.mat")
        assert code == 2 and "is not SUN RGB-D's allsplit.mat" in errors[0]


def test_plain_folder_registers_with_flags(tmp_path, importer):
    """Depth of another size needs its camera; with it, any folder is registered."""
    folder = write_scannet(tmp_path / "plain")
    for file in (folder / "intrinsic").iterdir():
        file.rename(tmp_path / file.name)
    (folder / "intrinsic").rmdir()
    flags = ("--input", folder, "--out", tmp_path / "out", *FEW, "--intrinsics", tmp_path / "intrinsic_color.txt")
    code, _, errors = importer(*flags)
    assert code == 2 and "register depth to the colour camera, or set --depth-intrinsics" in errors[0]
    more = ("--depth-intrinsics", tmp_path / "intrinsic_depth.txt", "--extrinsics", tmp_path / "extrinsic_depth.txt")
    assert importer(*flags, *more)[0] == 0
    assert read_depth(tmp_path / "out/depth/2.png")[40, 100] == pytest.approx(3.21)
    np.savetxt(tmp_path / "far.txt", [[1, 0, 0, 35], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    code, _, errors = importer(*flags, *more[:2], "--extrinsics", tmp_path / "far.txt")
    assert code == 2 and "35 m apart; give metres" in errors[0]
    np.savetxt(tmp_path / "far.txt", np.ones((4, 4)))
    code, _, errors = importer(*flags, *more[:2], "--extrinsics", tmp_path / "far.txt")
    assert code == 2 and "is not a rigid transform" in errors[0]
