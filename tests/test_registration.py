"""Registration of depth to colour: real frames through a bag, rendered pairs, and surfaces with known depth."""

import os
from pathlib import Path

from cli import UserError

import cv2
import numpy as np
import pytest
from bag_writing import DEPTH, RGB, START, Messages, write_bag

from config import Intrinsics
from dataset import corridor_loader
from dataset.frames import read_depth
from dataset.rectification import Lens
from dataset.registration import Registration
from dataset.rig import Rig
from dataset.transforms import rigid, rotation_of

ROOT = Path(__file__).resolve().parents[1]
KITCHEN = Path(os.environ.get("RGBD_FRAMES") or ROOT.parent / "shared" / "rgbd_kitchen")
UNREGISTERED = KITCHEN / "unregistered"
COLOUR = Intrinsics(747.84, 747.48, 643.36, 347.86, 1280, 720)  # Femto Bolt
SENSOR = Intrinsics.centred(417.0, 452.0, 640, 576)
BESIDE = rigid(np.eye(3), (0.032, 0.0, 0.0))


def millimetres(path: Path) -> np.ndarray:
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return np.where(stored == 65535, 0, stored).astype(np.uint16)


@pytest.mark.skipif(not UNREGISTERED.is_dir(), reason=f"no real frames at {UNREGISTERED} (set RGBD_FRAMES)")
def test_unregistered_frames_through_a_bag(tmp_path, monkeypatch, capsys):
    """Within 2 % on 99 % of the pixels that both have, and 98 % of the reference's pixels filled, in every frame."""
    made = Messages("mcap")
    names = sorted(path.name for path in UNREGISTERED.glob("*.depth.png"))
    colour_k, depth_k = (528.0, 528.0, 323.7, 240.0), (585.0, 585.0, 320.0, 240.0)
    # camera_link looks along x; the cameras are given by their places in it, as drivers do
    optical = (-0.5, 0.5, -0.5, 0.5)
    places = {"color": (0.0, 0.0, 0.0), "depth": (0.0, 0.0355, 0.0040)}
    frames = {name: f"camera_{name}_optical_frame" for name in places}
    entries = [
        ("/camera/color/camera_info", START, made.info(frames["color"], (640, 480), colour_k)),
        ("/camera/depth/camera_info", START, made.info(frames["depth"], (640, 480), depth_k)),
        (
            "/tf_static",
            START,
            made.transforms(START, [("camera_link", frames[name], place, optical) for name, place in places.items()]),
        ),
    ]
    for number, name in enumerate(names):
        time = START + number * 33_000_000
        picture = (KITCHEN / name.replace("depth.png", "color.jpg")).read_bytes()
        entries.append((f"{RGB}/compressed", time, made.compressed(time, frames["color"], "jpeg", picture)))
        entries.append((DEPTH, time, made.raw(time, frames["depth"], "16UC1", millimetres(UNREGISTERED / name))))
    bag = write_bag(tmp_path / "bag", "mcap", entries)
    out = tmp_path / "out"
    flags = ["--input", bag, "--out", out, "--test-frames", 1, "--val-frames", 0, "--gap-frames", 0]
    monkeypatch.setattr("sys.argv", ["corridor_loader.py", *map(str, flags)])
    assert corridor_loader.main() == 0
    assert "depth of 640x480 is registered to colour" in capsys.readouterr().out
    for number, name in enumerate(names):
        found = read_depth(out / f"depth/{number:06d}.png")
        expected = millimetres(KITCHEN / name) / 1000
        both = (found > 0) & (expected > 0)
        error = np.abs(found[both] - expected[both]) / expected[both]
        assert (error <= 0.02).mean() >= 0.99 and both.sum() >= 0.98 * (expected > 0).sum(), name


@pytest.mark.parametrize("view", ["robot", "handheld"])
def test_rendered_pair(view):
    """Exact depth of two cameras in one room: median error under 0.1 %, 95 % of the pixels within 0.5 %."""
    pytest.importorskip("embreex")
    from rooms.layout import build_room
    from rooms.render import World, camera_rays
    from rooms.robot import build_robot_room, choose_robot_poses
    from rooms.scenes import choose_poses
    from rooms.tof import BASELINE, beside, tof_camera

    def depth_of(world: World, camera: Intrinsics, pose) -> np.ndarray:
        rays = camera_rays(camera, pose)
        distance = world.cast(np.broadcast_to(pose.position, rays.shape), rays).distance
        return np.where(np.isfinite(distance), distance, 0).astype(np.float32).reshape(camera.height, camera.width)

    rng = np.random.default_rng(5)
    _, room = (build_robot_room if view == "robot" else build_room)(rng)
    world = room.world()
    pose = (choose_robot_poses if view == "robot" else choose_poses)(world, room, COLOUR, 1, rng)[0]
    sensor = tof_camera(COLOUR)
    registration = Registration(Lens.pinhole(sensor), COLOUR, rigid(np.eye(3), (BASELINE, 0, 0)))
    found = registration.register(depth_of(world, sensor, beside(pose)))
    truth = depth_of(world, COLOUR, pose)
    ratio = cv2.dilate(truth, np.ones((9, 9))) / np.maximum(cv2.erode(truth, np.ones((9, 9))), 1e-6)
    smooth = (found > 0) & (truth > 0) & (ratio < 1.1)
    error = np.abs(found[smooth] - truth[smooth]) / truth[smooth]
    assert np.median(error) < 0.001 and np.percentile(error, 95) < 0.005
    visible = np.abs(np.arange(1280) - COLOUR.cx) < 0.9 * COLOUR.fx * np.tan(np.radians(75 / 2))
    assert (found[:, visible] > 0).mean() > 0.97


def ray_grid(camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy


def test_wall_and_box_without_gaps():
    """A slanted wall and a box before it, to four times as many pixels: exact, and the box hides the wall."""
    x, y = ray_grid(SENSOR)
    wall, box = 3 / (1 + 0.3 * x), 1.2  # z + 0.3 x = 3
    on_box = (np.abs(x * box) < 0.2) & (np.abs(y * box) < 0.2)
    found = Registration(Lens.pinhole(SENSOR), COLOUR, BESIDE).register(np.where(on_box, box, wall).astype(np.float32))
    s, t = ray_grid(COLOUR)
    expected = (3 + 0.3 * 0.032) / (1 + 0.3 * s)
    inside = (np.abs(s * box - 0.032) < 0.195) & (np.abs(t * box) < 0.195)
    far_off = (np.abs(s * box - 0.032) > 0.24) | (np.abs(t * box) > 0.24)
    seen = far_off & (np.abs(s) < 0.7) & (np.abs(t) < 0.45)
    np.testing.assert_allclose(found[inside], box, rtol=1e-4)
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-3)


def test_floor_at_a_grazing_angle():
    """From 0.12 m up, neighbouring readings of a floor at 4 m are 7 % apart, and still one surface."""
    _, y = ray_grid(SENSOR)
    depth = np.where(y > 0.025, 0.12 / np.maximum(y, 0.025), 0).astype(np.float32)
    found = Registration(Lens.pinhole(SENSOR), COLOUR, BESIDE).register(depth)
    s, t = ray_grid(COLOUR)
    floor = (t > 0.032) & (np.abs(s) < 0.45)
    assert (found[floor] > 0).all()
    np.testing.assert_allclose(found[floor], (0.12 / np.maximum(t, 0.025))[floor], rtol=5e-3)


def test_readings_keep_their_value():
    """Also at the edges of a box before a wall, with every second pixel dead."""
    depth = np.full((72, 96), 3, np.float32)
    depth[20:50, 30:60] = 0.8
    depth[np.random.default_rng(0).random(depth.shape) < 0.5] = 0
    camera = Intrinsics(80, 80, 47.5, 35.5, 96, 72)
    registration = Registration(Lens.pinhole(camera), camera, rigid(np.eye(3), (0.03, 0, 0)))
    registered, moved = registration.register_with(depth, depth)
    assert (registered > 0).mean() > 0.4
    np.testing.assert_allclose(moved, registered, atol=1e-3)


def test_turned_camera():
    """A wall at z = 2 of the target, seen by a camera turned by 10 degrees about its y axis and moved."""
    rotation = rotation_of((0, np.sin(np.radians(5)), 0, np.cos(np.radians(5))))
    transform = rigid(rotation, (0.05, -0.02, 0.01))
    x, y = ray_grid(SENSOR)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ rotation.T
    depth = ((2 - 0.01) / rays[..., 2]).astype(np.float32)
    found = Registration(Lens.pinhole(SENSOR), COLOUR, transform).register(depth)
    filled = found > 0
    assert filled.mean() > 0.6
    np.testing.assert_allclose(found[filled], 2, rtol=1e-4)


def test_no_reading_gives_none():
    assert not Registration(Lens.pinhole(SENSOR), COLOUR, BESIDE).register(np.zeros((576, 640), np.float32)).any()


def test_the_same_camera_needs_no_registration():
    lens = Lens.pinhole(SENSOR)
    assert Rig.build(lens, lens, np.eye(4)).registration is None
    assert Rig.build(lens, lens, BESIDE).registration is not None
    assert Rig.build(lens, Lens.pinhole(SENSOR.resized(320, 288)), None).registration is not None
    with pytest.raises(UserError, match="a depth map is 10x10, but its camera has 640x576 pixels"):
        Rig(lens).depth(np.zeros((10, 10), np.float32), None)
