"""Reading frames, and resizing images, maps and cameras to the network's input size."""

from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest

from config import IGNORE, NYU_INTRINSICS, Intrinsics
from dataset import frames
from dataset.files import write_npy, write_png
from dataset.manifest import Row

CAMERA = Intrinsics(fx=60.0, fy=61.0, cx=31.0, cy=23.0, width=64, height=48)


def make_row(folder: Path, height: int = 48, width: int = 64, border: int = 0) -> Row:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
    if border:
        rgb[:border], rgb[-border:], rgb[:, :border], rgb[:, -border:] = 255, 255, 255, 255
    write_png(folder / "rgb/1.png", rgb)
    for name in ("depth", "da3_depth"):
        write_npy(folder / f"{name}/1.npy", rng.uniform(1, 5, (height, width)).astype(np.float32))
    write_npy(folder / "confidence/1.npy", np.ones((height, width), np.float32))
    write_png(folder / "labels/1.png", rng.integers(0, 6, (height, width), dtype=np.uint8))
    write_npy(folder / "sam2_seg/1.npy", rng.integers(0, 6, (height, width), dtype=np.uint8))
    write_npy(folder / "seg_confidence/1.npy", rng.integers(0, 256, (height, width), dtype=np.uint8))
    names = ("depth", "da3_depth", "confidence", "sam2_seg", "seg_confidence")
    maps = {name: folder / name / "1.npy" for name in names}
    return Row("1", folder / "rgb/1.png", labels=folder / "labels/1.png", intrinsics=CAMERA, **maps)


def test_find_frames_uses_natural_order(tmp_path):
    for name in ("10.png", "9.png", "b/2.jpg", "b/11.jpg", "b10/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(frames.find_frames(tmp_path)) == ["9", "10", "b/2", "b/11", "b10/0"]


def test_read_frame(tmp_path):
    row = make_row(tmp_path)
    frame = frames.read_frame(row)
    np.testing.assert_array_equal(frame.depth, np.load(row.depth))
    np.testing.assert_array_equal(frame.rgb, cv2.imread(str(row.rgb))[..., ::-1])
    assert frame.stem == "1" and frame.intrinsics == CAMERA
    kinds = {"rgb": "uint8", "depth": "float32", "confidence": "float32", "da3_depth": "float32", "labels": "uint8"}
    for name, kind in (kinds | {"sam2_seg": "uint8"}).items():
        assert getattr(frame, name).dtype == kind
    np.testing.assert_allclose(frame.seg_confidence, np.load(row.seg_confidence) / np.float32(255))


def test_default_confidence_is_one_for_valid_depth(tmp_path):
    row = make_row(tmp_path)
    depth = np.load(row.depth)
    depth[:10] = 0
    write_npy(row.depth, depth)
    row.confidence = row.labels = row.da3_depth = row.sam2_seg = row.intrinsics = None
    frame = frames.read_frame(row)
    np.testing.assert_array_equal(frame.confidence, depth > 0)
    assert frame.labels is frame.da3_depth is frame.sam2_seg is frame.intrinsics is None


def test_white_border_is_masked(tmp_path):
    frame = frames.read_frame(make_row(tmp_path, border=7))
    inside = np.zeros((48, 64), dtype=bool)
    inside[7:-7, 7:-7] = True
    for name in ("depth", "confidence", "da3_depth"):
        np.testing.assert_array_equal(getattr(frame, name) > 0, inside)
    for name in ("labels", "sam2_seg"):
        np.testing.assert_array_equal(getattr(frame, name) != IGNORE, inside)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((8, 8), (8, 8)), ((7, 0), (0, 0)), ((0, 0), (0, 5)), ((1, 9), (3, 2)), ((0, 15), (15, 0)), ((0, 0), (0, 0))],
)
def test_white_border_on_each_side(rows, columns):
    rgb = np.full((48, 64, 3), 255, dtype=np.uint8)
    inner = (slice(rows[0], 48 - rows[1]), slice(columns[0], 64 - columns[1]))
    rgb[inner] = 100
    expected = np.ones((48, 64), dtype=bool)
    expected[inner] = False
    np.testing.assert_array_equal(frames.white_border(rgb), expected)


def test_white_wall_is_not_a_border():
    rgb = np.full((48, 64, 3), 100, dtype=np.uint8)
    rgb[:, :20] = 255
    assert not frames.white_border(rgb).any()
    assert not frames.white_border(np.full((48, 64, 3), 255, dtype=np.uint8)).any()
    rgb = np.full((48, 64, 3), 100, dtype=np.uint8)
    rgb[:8, 5:] = 255  # a bright lamp at the edge does not reach from side to side
    assert not frames.white_border(rgb).any()


@pytest.mark.parametrize("name", ["depth", "confidence", "labels", "da3_depth", "sam2_seg"])
def test_maps_of_another_size_are_rejected(tmp_path, name):
    row = make_row(tmp_path)
    small = np.zeros((24, 32), np.uint8 if name in ("labels", "sam2_seg") else np.float32)
    write_npy(tmp_path / "small.npy", small)
    setattr(row, name, tmp_path / "small.npy")
    with pytest.raises(UserError, match=f"frame 1: {name} is 32x24 but the image is 64x48"):
        frames.read_frame(row)


def test_depth_in_millimetres_and_metres(tmp_path):
    write_png(tmp_path / "d.png", np.array([[0, 1, 1500, 65535]], dtype=np.uint16))
    depth = frames.read_depth(tmp_path / "d.png")
    assert depth.dtype == np.float32
    assert depth.tolist() == [pytest.approx([0, 0.001, 1.5, 0])]
    write_npy(tmp_path / "d.npy", np.array([[np.nan, np.inf, -np.inf, -1, 0, 2.5]]))
    depth = frames.read_depth(tmp_path / "d.npy")
    assert depth.dtype == np.float32 and depth.tolist() == [[0, 0, 0, 0, 0, 2.5]]


def test_invalid_depth_is_rejected(tmp_path):
    write_png(tmp_path / "d.png", np.ones((4, 4), np.uint8))
    with pytest.raises(UserError, match="8-bit"):
        frames.read_depth(tmp_path / "d.png")
    for array, words in (
        (np.full((4, 4), 1500.0), "can't be metres"),
        (np.ones((4, 4), np.uint16), r"expected floating \[H,W\], found uint16"),
        (np.ones((1, 4, 4), np.float32), r"found float32 \[1, 4, 4\]"),
    ):
        write_npy(tmp_path / "d.npy", array)
        with pytest.raises(UserError, match=words):
            frames.read_depth(tmp_path / "d.npy")
    np.save(tmp_path / "d.npy", np.array([{"code": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable"):
        frames.read_depth(tmp_path / "d.npy")
    (tmp_path / "d.npy").write_bytes(b"")
    with pytest.raises(UserError, match="not a readable"):
        frames.read_depth(tmp_path / "d.npy")
    with pytest.raises(UserError, match="no file"):
        frames.read_depth(tmp_path / "none.npy")


def test_confidence_range(tmp_path):
    path = tmp_path / "c.npy"
    write_npy(path, np.array([[0, 0.5, 1, np.nan]]))
    assert frames.read_confidence(path).tolist() == [[0, 0.5, 1, 0]]
    for wrong in (-0.1, 1.1, 255.0):
        write_npy(path, np.array([[0.5, wrong]]))
        with pytest.raises(UserError, match="0..1"):
            frames.read_confidence(path)


def test_classes_are_0_to_5_or_ignore(tmp_path):
    for name, write in (("s.npy", write_npy), ("s.png", write_png)):
        write(tmp_path / name, np.array([[0, 5, IGNORE]], dtype=np.uint8))
        classes = frames.read_classes(tmp_path / name)
        assert classes.dtype == np.uint8 and classes.tolist() == [[0, 5, IGNORE]]
        write(tmp_path / name, np.array([[0, 6]], dtype=np.uint8))
        with pytest.raises(UserError, match="unknown class 6"):
            frames.read_classes(tmp_path / name)
    write_npy(tmp_path / "s.npy", np.array([[0, -1]]))
    with pytest.raises(UserError, match="class -1"):
        frames.read_classes(tmp_path / "s.npy")


def test_find_frames_and_maps(tmp_path):
    for name in ("b.png", "00/a.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(frames.find_frames(tmp_path)) == ["00/a", "b"]
    (tmp_path / "b.jpg").touch()
    with pytest.raises(UserError, match="share the stem b"):
        frames.find_frames(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        frames.find_frames(tmp_path / "empty")

    folder = tmp_path / "sam2_seg"
    (folder / "00").mkdir(parents=True)
    (folder / "00/a_sam2_seg.npy").touch()
    (folder / "b.png").touch()
    assert frames.find_map(folder, "00/a") == folder / "00/a_sam2_seg.npy"
    assert frames.find_map(folder, "b") == folder / "b.png"
    assert frames.find_map(folder, "c") is None


def test_rescale_camera():
    half = frames.rescale_camera(NYU_INTRINSICS, np.zeros((240, 320, 3), np.uint8), "1")
    assert half == NYU_INTRINSICS.resized(320, 240) and half.fx == pytest.approx(518.8579 / 2)
    assert frames.rescale_camera(None, np.zeros((2, 2, 3), np.uint8), "1") is None
    with pytest.raises(UserError, match="640x360 pixels, but its intrinsics are for 640x480"):
        frames.rescale_camera(NYU_INTRINSICS, np.zeros((360, 640, 3), np.uint8), "1")


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((640, 480), (0, 0, 640, 480)),
        ((1280, 720), (160, 0, 960, 720)),
        ((480, 640), (0, 140, 480, 360)),
        ((1241, 376), (370, 0, 501, 376)),
    ],
)
def test_centre_crop_is_the_largest_window(size, window):
    assert frames.centre_crop(*size, 4 / 3) == window


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1280, 720), (480, 640), (80, 60), (320, 240)])
def test_image_map_and_camera_agree(width, height):
    """The resized pixel coordinates and the resized camera give the same ray directions."""
    camera = Intrinsics(500.0, 510.0, width / 2 + 3, height / 2 - 2, width, height)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    network = frames.to_network_camera(camera, 320, 240)
    u, v = frames.to_network_map(x, 320, 240), frames.to_network_map(y, 320, 240)
    columns, rows = np.meshgrid(np.arange(320), np.arange(240))
    pixel = max(1, width / 320, height / 240)  # the nearest pixel lies within one pixel of either image
    assert np.abs((u - camera.cx) / camera.fx - (columns - network.cx) / network.fx).max() < pixel / camera.fx
    assert np.abs((v - camera.cy) / camera.fy - (rows - network.cy) / network.fy).max() < pixel / camera.fy
    assert (network.width, network.height) == (320, 240)
    assert network.fx / network.fy == pytest.approx(camera.fx / camera.fy, rel=5e-3)  # cropped, not squeezed

    image = np.repeat((x / width * 255).astype(np.uint8)[..., None], 3, axis=2)
    resized = frames.to_network_rgb(image, 320, 240)
    assert resized.shape == (240, 320, 3)
    assert np.abs(resized[..., 0] - u / width * 255).max() < 2 + 255 * pixel / width


def test_maps_are_resized_with_nearest_neighbour():
    depth = np.where(np.arange(64) < 31, 1, 5).astype(np.float32) * np.ones((48, 1), np.float32)
    assert set(np.unique(frames.to_network_map(depth, 32, 24))) == {1, 5}


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1280, 720), (480, 640)])
def test_from_network_map_inverts_the_crop(width, height):
    left, top, crop_width, crop_height = frames.centre_crop(width, height, 4 / 3)
    inside = np.zeros((height, width), dtype=bool)
    inside[top : top + crop_height, left : left + crop_width] = True
    depth = np.linspace(1, 2, 320, dtype=np.float32) * np.ones((240, 1), np.float32)
    full = frames.from_network_map(depth, width, height, cv2.INTER_NEAREST)
    assert full.shape == (height, width)
    np.testing.assert_array_equal(np.isfinite(full), inside)
    np.testing.assert_allclose(frames.to_network_map(full, 320, 240), depth, atol=1 / 320)
    classes = frames.from_network_map(np.full((240, 320), 3, np.uint8), width, height, cv2.INTER_NEAREST)
    np.testing.assert_array_equal(classes, np.where(inside, 3, IGNORE))
