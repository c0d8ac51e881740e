"""Lens distortion: each model against its formula, in pictures, depth, and the import."""

from cli import UserError

import cv2
import numpy as np
import pytest
from bag_writing import RGB, START, Messages, recording, write_bag

from config import Intrinsics
from dataset import corridor_loader
from dataset.files import read_image, read_json
from dataset.frames import read_depth
from dataset.rectification import Lens
from dataset.registration import Registration
from dataset.transforms import rigid

CAMERA = Intrinsics(150.0, 152.0, 121.0, 88.0, 240, 180)
LENSES = {
    "plumb_bob": (-0.25, 0.08, 0.001, -0.002, 0.01),
    "rational_polynomial": (0.5, -0.2, 0.0005, -0.0003, 0.02, 0.7, -0.1, 0.01),
    "equidistant": (-0.02, 0.01, -0.004, 0.001),
}


def distort(model: str, d, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The formulas of https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html and .../group__calib3d__fisheye.html."""
    r2 = x * x + y * y
    if model == "equidistant":
        r = np.sqrt(r2)
        angle = np.arctan(r)
        scale = angle * (1 + d[0] * angle**2 + d[1] * angle**4 + d[2] * angle**6 + d[3] * angle**8)
        scale = np.where(r > 0, scale / np.maximum(r, 1e-9), 1)
        return x * scale, y * scale
    k = (*d, 0, 0, 0)[:8] if model == "plumb_bob" else d
    radial = (1 + k[0] * r2 + k[1] * r2**2 + k[4] * r2**3) / (1 + k[5] * r2 + k[6] * r2**2 + k[7] * r2**3)
    return (
        x * radial + 2 * k[2] * x * y + k[3] * (r2 + 2 * x * x),
        y * radial + k[2] * (r2 + 2 * y * y) + 2 * k[3] * x * y,
    )


def positions(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the rectified picture lies in the picture as taken."""
    u, v = np.meshgrid(np.arange(240.0), np.arange(180.0))
    x, y = distort(
        lens.model,
        lens.coefficients,
        (u - lens.rectified.cx) / lens.rectified.fx,
        (v - lens.rectified.cy) / lens.rectified.fy,
    )
    return CAMERA.fx * x + CAMERA.cx, CAMERA.fy * y + CAMERA.cy


@pytest.mark.parametrize("model", LENSES)
def test_pictures_and_maps(model):
    """The picture as taken shows its own pixel positions, so the rectified one shows where its pixels come from."""
    lens = Lens.parse(CAMERA, model, LENSES[model], "test")
    u, v = np.meshgrid(np.arange(240), np.arange(180))
    taken = np.stack([u, v, np.zeros_like(u)], -1).astype(np.uint8)
    x, y = positions(lens)
    inside = (x > 1) & (x < 238) & (y > 1) & (y < 178)
    rectified = lens.rectify(taken)
    assert np.abs(rectified[..., 0] - x)[inside].max() <= 0.52
    assert np.abs(rectified[..., 1] - y)[inside].max() <= 0.52
    assert np.abs(x - u)[inside].max() > 2  # there is something to remove
    depth = lens.rectify_map((u + 1000 * v).astype(np.float32))
    assert np.isin(depth[inside], (u + 1000 * v)).all()  # never mixed
    outside = (x < -1) | (x > 240) | (y < -1) | (y > 180)
    assert not depth[outside].any() and not rectified[outside].any()
    assert lens.unseen == pytest.approx(((x < -0.5) | (x > 239.5) | (y < -0.5) | (y > 179.5)).mean(), abs=0.01)


@pytest.mark.parametrize("model", LENSES)
def test_depth_camera_with_distortion_is_registered(model):
    """A slanted wall seen through a distorted depth camera."""
    lens = Lens.parse(CAMERA, model, LENSES[model], "test")
    rays = lens.rays().astype(float)
    depth = (2 / (1 + 0.4 * rays[..., 0] + 0.2 * rays[..., 1])).astype(np.float32)
    target = Intrinsics(160.0, 160.0, 119.5, 89.5, 240, 180)
    found = Registration(lens, target, rigid(np.eye(3), (0.03, 0, 0))).register(depth)
    u, v = np.meshgrid(np.arange(240), np.arange(180))
    x, y = (u - target.cx) / target.fx, (v - target.cy) / target.fy
    expected = (2 + 0.4 * 0.03) / (1 + 0.4 * x + 0.2 * y)
    middle = (np.abs(x) < 0.5) & (np.abs(y) < 0.4)
    assert (found[middle] > 0).mean() > 0.99
    filled = middle & (found > 0)
    np.testing.assert_allclose(found[filled], expected[filled], rtol=2e-3)


@pytest.mark.parametrize("model", LENSES)
def test_bag_with_distortion(tmp_path, monkeypatch, capsys, model):
    """The frames are those of camera_info's P, and compressed pictures are decoded and encoded again."""
    u, v = np.meshgrid(np.arange(240), np.arange(180))
    rgb = np.stack([u, v, np.zeros_like(u)], -1).astype(np.uint8)
    depth = (1000 + u).astype(np.uint16)
    p = (140.0, 141.0, 120.0, 90.0)
    made = Messages("mcap")
    entries = [entry for entry in recording("mcap", [(rgb, depth)] * 3, (1, 1, 1, 1)) if "info" not in entry[0]]
    info = made.info("camera_color_optical_frame", (240, 180), (150.0, 152.0, 121.0, 88.0), model, LENSES[model], p)
    entries += [("/camera/color/camera_info", START, info), ("/camera/depth/camera_info", START, info)]
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    flags = ["--input", bag, "--out", tmp_path / "out", "--test-frames", 1, "--val-frames", 0, "--gap-frames", 0]
    monkeypatch.setattr("sys.argv", ["corridor_loader.py", *map(str, flags)])
    assert corridor_loader.main() == 0
    assert f"{model} distortion is removed" in capsys.readouterr().out
    camera = read_json(tmp_path / "out/camera.json")
    assert [camera[name] for name in ("fx", "fy", "cx", "cy")] == list(p)
    lens = Lens.parse(CAMERA, model, LENSES[model], "test", Intrinsics(*p, 240, 180))
    x, y = positions(lens)
    inside = (x > 1) & (x < 238) & (y > 1) & (y < 178)
    picture = read_image(tmp_path / "out/rgb/000001.png")
    assert np.abs(picture[..., 0] - x)[inside].max() <= 0.52
    metres = read_depth(tmp_path / "out/depth/000001.png")
    assert np.abs(metres - (1 + x / 1000))[inside].max() <= 0.00052


def test_rectified_topics_are_left_alone(tmp_path, monkeypatch, capsys):
    """camera_info of image_rect still has the distortion of the raw picture."""
    frame = "camera_color_optical_frame"
    rgb, depth = np.full((180, 240, 3), 90, np.uint8), np.full((180, 240), 1500, np.uint16)
    entries = []
    for topic, time, message in recording("mcap", [(rgb, depth)] * 3, (150.0, 152.0, 121.0, 88.0)):
        if topic == "/camera/color/camera_info":
            message = Messages("mcap").info(frame, (240, 180), (150.0, 152.0, 121.0, 88.0), d=LENSES["plumb_bob"])
        entries.append(("/camera/color/image_rect_color" if topic == RGB else topic, time, message))
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    flags = ["--input", bag, "--out", tmp_path / "out", "--test-frames", 1, "--val-frames", 0, "--gap-frames", 0]
    monkeypatch.setattr("sys.argv", ["corridor_loader.py", *map(str, flags)])
    assert corridor_loader.main() == 0 and "distortion" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "coefficients", "words"),
    [
        ("fisheye62", (0.1,), "unknown distortion model 'fisheye62'; known are plumb_bob, rational_polynomial, equid"),
        ("equidistant", (0.1, 0.2), "equidistant has 4 coefficients, not 2"),
        ("plumb_bob", (0.1, float("nan"), 0, 0, 0), "can't be right"),
        ("plumb_bob", (1e9, 0, 0, 0, 0), "can't be right"),
    ],
)
def test_wrong_lenses_are_refused(model, coefficients, words):
    with pytest.raises(UserError, match=words):
        Lens.parse(CAMERA, model, coefficients, "here")


def test_no_distortion_keeps_the_picture():
    lens = Lens.parse(CAMERA, "plumb_bob", (0, 0, 0, 0, 0), "here")
    picture = cv2.randu(np.empty((180, 240, 3), np.uint8), 0, 255)
    assert lens.rectify(picture) is picture and not lens.is_distorted and lens.unseen == 0
