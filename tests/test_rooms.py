"""Rendered rooms: exact geometry, NYU's file layout, reproducibility, realistic sensor holes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cli import EXIT_USAGE

import cv2
import h5py
import numpy as np
import pytest

from config import NYU_INTRINSICS, Intrinsics
from rooms import render_rooms, robot, scenes, tof
from rooms.geometry import Mesh, placement
from rooms.layout import build_room
from rooms.mat_file import write_mat
from rooms.render import Light, Pose, World, camera_rays, render
from rooms.scenes import RenderedFrame, SceneOptions
from rooms.textures import OPAQUE, Palette

CAMERA = NYU_INTRINSICS.resized(96, 72)
SCENES, FRAMES = 4, 2
OPTIONS = SceneOptions(3, FRAMES, CAMERA)


@pytest.fixture(scope="module")
def frames() -> list[RenderedFrame]:
    return list(scenes.render_scenes(OPTIONS, SCENES))


@pytest.fixture(scope="module")
def mat_file(frames, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rooms") / "rooms.mat"
    write_mat(path, iter(frames), len(frames), CAMERA.width, CAMERA.height)
    return path


def _pixels_of(frames, student: str, image: str) -> np.ndarray:
    """Values of one image, over all frames, at the pixels of one student class."""
    names, class_of = scenes.class_table()
    wanted = np.array([False] + [class_of[name] == student for name in names])
    return np.concatenate([getattr(frame, image)[wanted[frame.labels]] for frame in frames])


def _same(first, second) -> bool:
    images = ("rgb", "depth", "sensor_depth", "labels", "instances")
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in images
    )


def test_number_of_workers_does_not_change_the_result(frames):
    assert _same(frames, list(scenes.render_scenes(OPTIONS, SCENES, workers=2)))


def test_a_scene_depends_only_on_seed_and_index(frames):
    assert _same(frames[2 * FRAMES : 3 * FRAMES], list(scenes.render_scene(OPTIONS, 2)))
    assert not _same(frames[:FRAMES], scenes.render_scene(replace(OPTIONS, seed=4), 0))
    assert not _same(frames[:FRAMES], frames[FRAMES : 2 * FRAMES])


def test_each_room_draws_its_own_focal_scale(frames):
    seen = list(scenes.render_scenes(replace(OPTIONS, focal_scales=(0.5, 2.0)), SCENES))
    factors = [frame.camera.fx / CAMERA.fx for frame in seen]
    assert all(
        frame.camera.cx == CAMERA.cx and frame.camera.fy / CAMERA.fy == pytest.approx(factor)
        for frame, factor in zip(seen, factors, strict=True)
    )
    assert len(set(factors)) == SCENES and 0.5 <= min(factors) < max(factors) <= 2
    assert [frame.scene for frame in seen] == [frame.scene for frame in frames]
    floor_id = scenes.class_table()[0].index("floor") + 1
    assert any((frame.labels == floor_id).any() for frame in seen)
    for frame in seen:
        floor = frame.labels == floor_id
        np.testing.assert_allclose(frame.depth[floor], _floor_depth(frame.camera, frame.pose)[floor], rtol=2e-6)


def _floor_depth(camera: Intrinsics, pose) -> np.ndarray:
    """Depth of the plane z = 0 in closed form: camera height / downward component of each pixel's ray."""
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    rotated_y = np.sin(pose.roll) * x + np.cos(pose.roll) * y
    return pose.position[2] / (rotated_y * np.cos(pose.pitch) - np.sin(pose.pitch))


@pytest.mark.parametrize("focal_scale", [1.0, 1.3])
def test_depth_of_the_floor_is_exact(focal_scale):
    camera = CAMERA.with_focal_scale(focal_scale)
    floor_id = scenes.class_table()[0].index("floor") + 1
    checked = 0
    for frame in scenes.render_scene(SceneOptions(3, 3, camera), 1):
        floor = frame.labels == floor_id
        checked += floor.sum()
        np.testing.assert_allclose(frame.depth[floor], _floor_depth(camera, frame.pose)[floor], rtol=2e-6)
    assert checked > 300


def test_every_pixel_has_depth_label_and_instance(frames):
    for frame in frames:
        assert frame.depth.min() > 0.1 and frame.depth.max() < 40
        assert frame.labels.min() >= 1 and frame.labels.max() <= 894
        for label in np.unique(frame.labels):
            numbers = np.unique(frame.instances[frame.labels == label])
            assert np.array_equal(numbers, np.arange(1, len(numbers) + 1))


def test_poses_are_level_and_not_too_close_to_anything(frames):
    for frame in frames:
        assert abs(frame.pose.pitch) <= np.radians(15) and abs(frame.pose.roll) <= np.radians(5)
        assert 0.9 <= frame.pose.position[2] <= 1.7
        assert frame.depth[18:-18, 24:-24].min() > 0.4


def test_images_have_plausible_brightness_and_contrast(frames):
    for frame in frames:
        assert 40 < frame.rgb.mean() < 215 and frame.rgb.std() > 20


def test_sensor_depth_is_close_to_the_truth_on_opaque_objects(frames):
    truth, sensor = (_pixels_of(frames, "furniture", name) for name in ("depth", "sensor_depth"))
    relative = np.abs(sensor - truth)[sensor > 0] / truth[sensor > 0]
    assert 1e-4 < np.median(relative) < 0.02


def _hole_share(distance: float, rotation: float, grey: float) -> float:
    """Share of holes in the central pixels of a large plane, given its distance in metres, rotation and grey level."""
    mesh, palette = Mesh(), Palette(np.random.default_rng(0))
    paint = palette.solid((grey, grey, grey))
    with mesh.object("wall"), mesh.placed(placement(distance, 0, 1.2, rotation)):
        mesh.quad((0, -20, -20), (0, 0, 40), (0, 40, 0), paint)
    lamp = Light(np.array([0.0, 0, 2]), np.array([0.1, 0, 0]), np.array([0, 0.1, 0]), np.array([1.0, 0, 0]), np.ones(3))
    world = World(mesh.soup(), palette, [lamp], 50.0)
    camera = NYU_INTRINSICS.cropped(280, 220, 96, 72)  # small pixels avoid depth steps on slanted planes
    frame = render(world, camera, Pose(np.array([0.0, 0, 1.2]), 0.0, 0.0, 0.0), np.random.default_rng(0))
    return float((frame.sensor_depth[24:48, 40:56] == 0).mean())


def test_sensor_has_no_readings_of_dark_grazing_or_far_surfaces():
    assert _hole_share(2.0, 0.0, 0.8) == 0
    assert _hole_share(4.0, 0.0, 0.01) > 0.9
    assert _hole_share(4.0, 0.0, 0.29) < 0.1 and _hole_share(4.0, np.radians(80), 0.29) > 0.8
    assert _hole_share(9.0, 0.0, 0.8) == 1


def test_sensor_has_most_holes_on_glass_and_some_elsewhere(frames):
    glass = _pixels_of(frames, "glass", "sensor_depth") == 0
    assert 0.5 < glass.mean() < 0.98
    names, class_of = scenes.class_table()
    opaque = np.array([False] + [class_of[name] != "glass" for name in names])
    holes = np.concatenate([frame.sensor_depth[opaque[frame.labels]] == 0 for frame in frames])
    assert 0.02 < holes.mean() < 0.4


def test_rooms_contain_floor_wall_furniture_and_glass(frames):
    shares = scenes.class_shares(np.stack([frame.labels for frame in frames]))
    assert shares["furniture"] > 0.15 and shares["floor"] > 0.04 and shares["wall"] > 0.1 and shares["glass"] > 0.02


def test_mat_file_has_nyus_layout(mat_file, frames):
    count, width, height = len(frames), CAMERA.width, CAMERA.height
    layout = {
        "images": ((count, 3, width, height), "uint8"),
        "depths": ((count, width, height), "float32"),
        "rawDepths": ((count, width, height), "float32"),
        "labels": ((count, width, height), "uint16"),
        "instances": ((count, width, height), "uint8"),
    }
    with h5py.File(mat_file) as file:
        for name, (shape, dtype) in layout.items():
            assert file[name].shape == shape and file[name].dtype == dtype
        assert np.array_equal(file["images"][1].transpose(2, 1, 0), frames[1].rgb)
        assert np.array_equal(file["depths"][1].T, frames[1].depth)
        assert file["intrinsics"][()].tolist() == [[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]] * count


def test_mat_file_stores_names_and_scenes_as_references(mat_file, frames):
    with h5py.File(mat_file) as file:

        def texts(name):
            return ["".join(map(chr, file[reference][:, 0])) for reference in file[name][0]]

        assert file["names"].shape == (1, 894) and texts("names") == scenes.class_table()[0]
        assert texts("scenes") == [frame.scene for frame in frames]
        assert texts("sceneTypes") == [frame.scene_type for frame in frames]
        assert file[file["names"][0, 0]].dtype == np.uint16


def test_too_few_frames_leave_no_file(frames, tmp_path):
    with pytest.raises(ValueError):
        write_mat(tmp_path / "rooms.mat", iter(frames[:1]), 2, CAMERA.width, CAMERA.height)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", ["--scenes 0", "--focal-scale 2 1", "--focal-scale 1 2 3", "--focal-scale 20"])
def test_invalid_flags_are_a_one_line_error(tmp_path, flags):
    command = [sys.executable, render_rooms.__file__, "--out", "rooms.mat", *flags.split()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == EXIT_USAGE and ended.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def robot_frames() -> list[RenderedFrame]:
    return list(scenes.render_scenes(SceneOptions(1000, 2, CAMERA, view="robot"), 8))


def test_a_robot_sees_rooms_from_below_and_near(robot_frames):
    heights = [frame.pose.position[2] for frame in robot_frames]
    assert min(heights) >= 0.15 and max(heights) <= 0.4
    depth = np.stack([frame.depth for frame in robot_frames])
    assert 0.25 < (depth < 1).mean() < 0.6 and 0.01 < (depth < 0.5).mean() < 0.25
    assert depth.min() > 0.05, "no camera stands in something"
    shares = scenes.class_shares(np.stack([frame.labels for frame in robot_frames]))
    assert shares["floor"] > 0.15 and shares["person"] > 0.02
    assert sum("corridor" in frame.scene for frame in robot_frames) >= 4


def test_most_of_a_robots_sensor_is_dead_and_what_it_reads_is_near(robot_frames):
    """70 to 85 % of the pixels in corridors, and some 60 % of the others nearer than 1 m, are published."""
    sensor = np.stack([frame.sensor_depth for frame in robot_frames])
    assert 0.1 < (sensor > 0).mean() < 0.4
    assert 0.4 < (sensor[sensor > 0] < 1).mean() < 0.8


def test_mixed_rooms_are_seen_from_both_heights():
    frames = list(scenes.render_scenes(SceneOptions(1000, 1, CAMERA, view="mixed"), 8))
    low = [frame for frame in frames if frame.pose.position[2] < 0.5]
    assert 0 < len(low) < len(frames)
    high = [frame for frame in frames if frame.pose.position[2] >= 0.5]
    for name, view in (("robot", low), ("handheld", high)):
        alone = {frame.scene: frame for frame in scenes.render_scenes(SceneOptions(1000, 1, CAMERA, view=name), 8)}
        assert _same(view, [alone[frame.scene] for frame in view])


def test_seeds_are_other_rooms(frames):
    """Seed 0 is for tests and the demo, training takes seeds from 1000 on."""
    others = list(scenes.render_scenes(replace(OPTIONS, seed=1003), SCENES))
    assert not any(_same([a], [b]) for a in frames for b in others)


def test_depth_of_a_camera_beside_is_registered_without_gaps():
    """A wall and a box before it: exact depth comes out within 0.1 %, and the box hides the wall."""
    colour = Intrinsics(748.0, 747.0, 640.0, 350.0, 1280, 720)
    camera = tof.tof_camera(colour)
    assert (camera.width, camera.height) == (640, 576)
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    wall = 3 / (1 + 0.3 * x)  # slanted: z + 0.3 x = 3 with x in metres
    box = 1.2
    inside = (np.abs(x * box) < 0.2) & (np.abs(y * box) < 0.2)
    depth = np.where(inside, box, wall).astype(np.float32)
    offset = np.array([0.032, 0.0, 0.0])
    found = tof.register(depth, camera, colour, offset)
    s, t = np.meshgrid((np.arange(1280) - colour.cx) / colour.fx, (np.arange(720) - colour.cy) / colour.fy)
    expected = (3 + 0.3 * offset[0]) / (1 + 0.3 * s)
    on_box = (np.abs(s * box - offset[0]) < 0.195) & (np.abs(t * box) < 0.195)
    far_off = (np.abs(s * box - offset[0]) > 0.24) | (np.abs(t * box) > 0.24)
    seen = far_off & (np.abs(s) < 0.7) & (np.abs(t) < 0.45)
    np.testing.assert_allclose(found[on_box], box, rtol=1e-3)
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-3)
    assert (found[on_box] > 0).all() and (found[seen] > 0).all()
    holes = depth.copy()
    holes[100:200, 100:200] = 0
    assert (tof.register(holes, camera, colour, offset) == 0).sum() > (found == 0).sum()
    assert not tof.register(np.zeros_like(depth), camera, colour, offset).any()


def test_registered_depth_of_a_room_is_the_truth_away_from_edges():
    """Without the sensor's noise: median error under 0.1 %, 95th percentile under 0.5 %."""
    camera = NYU_INTRINSICS.resized(320, 240)
    rng = np.random.default_rng([1000, 1])
    _, room = robot.build_robot_room(rng)
    world = room.world()
    pose = robot.choose_robot_poses(world, room, camera, 1, rng)[0]
    rays = camera_rays(camera, pose)
    truth = world.cast(np.broadcast_to(pose.position, rays.shape), rays).distance.reshape(240, 320)
    sensor, placed = tof.tof_camera(camera), tof.beside(pose)
    rays = camera_rays(sensor, placed)
    depth = world.cast(np.broadcast_to(placed.position, rays.shape), rays).distance
    depth = np.where(np.isfinite(depth), depth, 0).astype(np.float32).reshape(sensor.height, sensor.width)
    found = tof.register(depth, sensor, camera, np.array([tof.BASELINE, 0, 0]))
    flat = truth.astype(np.float32)
    away = cv2.dilate(flat, np.ones((9, 9))) - cv2.erode(flat, np.ones((9, 9))) < 0.06 * flat
    both = away & (found > 0)
    error = np.abs(found[both] - truth[both]) / truth[both]
    assert both.mean() > 0.2 and np.median(error) < 1e-3 and np.percentile(error, 95) < 5e-3


def test_variety_changes_colours_but_neither_glass_nor_lights():
    palette = build_room(np.random.default_rng(3))[1].kit.palette
    before = [material.tint.copy() for material in palette.materials]
    palette.recolour(np.random.default_rng(0))
    changed = []
    for tint, material in zip(before, palette.materials, strict=True):
        is_changed = not np.array_equal(material.tint, tint)
        if material.kind == OPAQUE and not material.emission:
            changed.append(is_changed)
            assert (material.tint > 0).all() and (material.tint <= 1).all() and material.gloss <= 1
        else:
            assert not is_changed
    assert np.mean(changed) > 0.8, "white stays white if it would become brighter"


def test_varied_rooms_range_from_bare_to_crammed():
    """Twelve rooms, plain and varied; each is the same when it is built again."""
    kits = [build_room(np.random.default_rng(seed), varied=True)[1].kit for seed in range(12)]
    assert min(kit.clutter for kit in kits) < 1 < 3 < max(kit.clutter for kit in kits)
    assert all(0.5 <= kit.clutter <= 6 for kit in kits)
    again = build_room(np.random.default_rng(5), varied=True)[1].kit
    assert np.array_equal(again.palette.materials[8].tint, kits[5].palette.materials[8].tint)
    assert build_room(np.random.default_rng(5))[1].kit.clutter == 1
