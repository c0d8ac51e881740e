"""Floor, wall, glass and gravity from depth, on rooms with exact ground truth."""

import cv2
import numpy as np
import pytest
from box_room import (
    CAMERA,
    FLOOR,
    FLOOR_BELOW,
    FRONT,
    FURNITURE,
    GLASS,
    OTHER,
    WALL,
    intersection_over_union,
    render,
    rotation,
)

from teacher_infer.geometry import classify


def heights(depth: np.ndarray, pitch: float) -> np.ndarray:
    """Height of each pixel of a rendered room above the camera, metres."""
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    rays = np.stack([(columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy, np.ones(depth.shape)], axis=-1)
    return -(depth[..., None] * rays) @ (rotation(pitch) @ (0, 1, 0))


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (15, 0), (25, 4), (-10, -8)])
def test_classes_and_gravity_of_a_room(pitch, roll):
    depth, sensor, labels = render(pitch=pitch, roll=roll)
    result = classify(depth, CAMERA, sensor)
    down = rotation(pitch, roll) @ (0, 1, 0)
    assert np.degrees(np.arccos(result.gravity @ down)) < 1
    assert result.classes.dtype == np.uint8 and result.classes.shape == depth.shape
    for class_id, least in ((FLOOR, 0.95), (WALL, 0.93), (GLASS, 0.9)):
        if (labels == class_id).mean() > 0.01:
            assert intersection_over_union(result.classes, labels, class_id) > least
    assert (result.confidence[result.classes == OTHER] == 0).all()
    assert result.confidence.min() >= 0 and result.confidence.max() <= 1


def test_an_empty_rim_counts_as_the_image_border():
    depth, _, labels = render(pitch=25)  # the tops of the walls are out of view
    rim = np.ones(depth.shape, bool)
    rim[22:-22, 22:-40] = False  # as after registration to another camera
    depth[rim], labels[rim] = 0, OTHER
    classes = classify(depth, CAMERA).classes
    assert (labels == WALL).mean() > 0.15
    assert intersection_over_union(classes, np.where(labels == GLASS, WALL, labels), WALL) > 0.9
    assert intersection_over_union(classes, labels, FLOOR) > 0.95


@pytest.mark.parametrize("above_camera", [0.0, 0.3])
def test_a_wall_continues_behind_a_wall_cupboard(above_camera):
    depth, _, labels = render(pitch=10)
    height = heights(depth, pitch=10)
    hanging = (height > above_camera) & (labels != FLOOR)
    below = ~hanging & np.isin(labels, (WALL, GLASS))
    depth[hanging] *= 0.85
    assert below.mean() > 0.1
    classes = classify(depth, CAMERA).classes
    assert (classes[below] == WALL).mean() > 0.9


def test_ceiling_is_other():
    depth, sensor, labels = render(pitch=-20)
    assert (labels == OTHER).mean() > 0.1
    assert (classify(depth, CAMERA, sensor).classes[labels == OTHER] == OTHER).mean() > 0.95


def test_a_low_cupboard_is_not_wall():
    depth, sensor, labels = render(cupboard=True)
    front = classify(depth, CAMERA, sensor).classes[labels == FURNITURE]
    assert (front == OTHER).mean() > 0.95


@pytest.mark.parametrize(("left", "right"), [(-0.5, 0.6), (0.3, 1.6)])
def test_a_wardrobe_cut_by_the_image_border_is_not_wall(left, right):
    depth, sensor, labels = render()
    x = (np.arange(depth.shape[1]) - CAMERA.cx) / CAMERA.fx * 3.4
    wardrobe = (x > left) & (x < right) & (depth > 3.4)
    depth[wardrobe] = 3.4
    classes = classify(depth, CAMERA).classes
    assert (classes[wardrobe] == OTHER).mean() > 0.9
    assert (classes[~wardrobe & (labels == WALL)] == WALL).mean() > 0.95


def test_the_side_of_a_wardrobe_is_not_wall():
    depth, _, labels = render()
    x = (np.arange(depth.shape[1]) - CAMERA.cx) / CAMERA.fx
    side = np.where(x > 0.12, 0.5 / np.maximum(x, 0.12), np.inf)  # 0.5 m right of the camera
    side = np.broadcast_to(np.where((side > 2.5) & (side < 3.3), side, np.inf), depth.shape)
    front = np.broadcast_to((x * 2.5 > 0.5) & (x * 2.5 < 1.4), depth.shape) & (depth > 2.5)
    side_seen = side < depth
    depth = np.where(front, 2.5, np.minimum(depth, side)).astype(np.float32)
    assert side_seen.mean() > 0.02
    classes = classify(depth, CAMERA).classes
    assert (classes[side_seen | front] == OTHER).mean() > 0.9


def test_edges_are_sharp_at_full_resolution():
    depth, _, labels = render(pitch=15)
    rows, columns = np.indices(depth.shape)
    wardrobe = (np.abs(columns - 301) < 60) & (rows > 200) & (depth > 1.8)  # its sides lie between working pixels
    depth, labels = np.where(wardrobe, np.float32(1.8), depth), np.where(wardrobe, OTHER, labels)
    kernel = np.ones((3, 3), np.uint8)
    edges = cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)
    edges &= cv2.dilate((labels == GLASS).astype(np.uint8), np.ones((9, 9))) == 0  # glass keeps its edges
    assert (classify(depth, CAMERA).classes == labels)[edges].mean() > 0.95  # 0.65 at half the size


def drifted(depth: np.ndarray) -> np.ndarray:
    """Depth whose scale drifts by up to 10 % over the image, like that of a network."""
    height, width = depth.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (depth * (1 + 0.1 * np.sin(2 * x) * np.cos(1.5 * y))).astype(np.float32)


@pytest.mark.parametrize("pitch", [0, 15])
def test_depth_with_scale_drift(pitch):
    depth, sensor, labels = render(pitch=pitch)
    classes = classify(drifted(depth), CAMERA).classes
    assert intersection_over_union(classes, labels, FLOOR) > 0.95
    assert intersection_over_union(classes, np.where(labels == GLASS, WALL, labels), WALL) > 0.93


def test_a_low_object_on_the_floor_is_not_floor():
    depth, _, labels = render(pitch=15)
    height = heights(depth, pitch=15) + 1.3
    box = depth * (1.3 - 0.06) / 1.3  # the floor, 6 cm higher
    columns = np.arange(depth.shape[1])
    low = (labels == FLOOR) & (np.abs(columns - 320) < 60) & (depth > 2.2) & (depth < 3) & (height < 0.01)
    assert low.mean() > 0.01
    classes = classify(np.where(low, box, depth).astype(np.float32), CAMERA).classes
    assert (classes[low] == FLOOR).mean() < 0.1


def test_pixels_near_the_foot_of_a_wall_get_the_right_class():
    depth, _, labels = render(pitch=15)
    near = cv2.dilate((labels == FLOOR).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    near &= cv2.dilate((labels == WALL).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert (classify(depth, CAMERA).classes[near] == labels[near]).mean() > 0.85


def test_a_bed_that_hides_most_of_the_floor_is_not_floor():
    depth, _, _ = render(pitch=15)
    downwards = -heights(np.ones_like(depth), pitch=15)
    top = np.where(downwards > 0.05, 0.7 / np.maximum(downwards, 0.05), np.inf)
    bed = (top < depth) & (np.arange(depth.shape[1]) < 624)  # the floor is visible beside it
    classes = classify(np.where(bed, top, depth).astype(np.float32), CAMERA).classes
    assert (classes[bed] == FLOOR).mean() < 0.01


def test_an_empty_upper_half_is_not_the_image_border():
    depth, _, labels = render(cupboard=True)
    cupboard = labels == FURNITURE
    cupboard[:240] = depth[:240] = 0
    assert cupboard.mean() > 0.1
    assert (classify(depth, CAMERA).classes[cupboard] == OTHER).mean() > 0.95


def test_no_glass_without_sensor_depth():
    depth, _, _ = render()
    assert not (classify(depth, CAMERA).classes == GLASS).any()


def test_readings_behind_a_surface_are_glass():
    depth, sensor, labels = render()
    through = np.where(sensor == 0, depth + 3, sensor).astype(np.float32)
    assert intersection_over_union(classify(depth, CAMERA, through).classes, labels, GLASS) > 0.9


def test_a_pane_with_some_readings_is_glass():
    depth, sensor, labels = render()
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    read = (np.sin(rows / 3) * np.sin(columns / 3) > 0.1) & (labels == GLASS)
    sensor[read] = depth[read]
    assert 0.4 < read.sum() / (labels == GLASS).sum() < 0.5
    assert intersection_over_union(classify(depth, CAMERA, sensor).classes, labels, GLASS) > 0.8


@pytest.mark.parametrize(("top", "glass"), [(0.95, True), (0.6, False)])
def test_a_free_standing_pane_is_glass_if_it_is_higher_than_furniture(top, glass):
    depth, sensor, _ = render()
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    x, height = (columns - CAMERA.cx) / CAMERA.fx * 2.6, (CAMERA.cy - rows) / CAMERA.fy * 2.6
    pane = (np.abs(x - 0.6) < 0.7) & (height < top) & (depth > 2.6)
    depth[pane], sensor[pane] = 2.6, 0
    found = classify(depth, CAMERA, sensor).classes[pane] == GLASS
    assert found.mean() > 0.9 if glass else not found.any()


def test_a_dark_cupboard_is_not_glass():
    depth, sensor, labels = render(cupboard=True)
    sensor[labels == FURNITURE] = 0
    assert not (classify(depth, CAMERA, sensor).classes[labels == FURNITURE] == GLASS).any()


def test_a_dark_floor_is_not_glass():
    depth, sensor, labels = render(pitch=15)
    sensor[labels == FLOOR] = 0
    assert not (classify(depth, CAMERA, sensor).classes[labels == FLOOR] == GLASS).any()


def test_other_lens_and_size():
    camera = CAMERA.cropped(100, 60, 440, 360).resized(220, 180)
    depth, sensor, labels = render(camera, pitch=10)
    result = classify(depth, camera, sensor)
    assert intersection_over_union(result.classes, labels, FLOOR) > 0.9
    assert intersection_over_union(result.classes, labels, WALL) > 0.9


def test_given_gravity_is_used():
    depth, sensor, _ = render(pitch=15)
    down = rotation(15) @ (0, 2.0, 0)
    assert np.allclose(classify(depth, CAMERA, sensor, gravity=down).gravity, down / 2)


@pytest.mark.parametrize("height", [0.2, 0.25, 0.4])
def test_the_floor_of_a_corridor_seen_by_a_robot_is_floor(height):
    """Low above the floor, depth grows along the floor itself as it does beyond the edge of a table top."""
    rows, columns = np.mgrid[: CAMERA.height, : CAMERA.width]
    x, y = (columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy
    with np.errstate(divide="ignore"):
        floor, side = np.where(y > 0, height / y, np.inf), 0.9 / np.abs(x)
    depth = np.minimum(np.minimum(floor, side), 7.0).astype(np.float32)
    on_floor = floor == np.minimum(np.minimum(floor, side), 7.0)
    classes = classify(depth, CAMERA).classes
    assert (classes[on_floor] == FLOOR).mean() > 0.9


def test_a_table_top_without_floor_in_view_is_not_floor():
    depth, _, labels = render(pitch=20)
    table_depth = depth * (0.5 / 1.3)  # a table 0.5 m below the camera that ends at 1.15 m, and shelves behind it
    table = (labels == FLOOR) & (table_depth < 1.15)
    depth = np.where(table, table_depth, np.minimum(depth, 1.5)).astype(np.float32)
    assert table.mean() > 0.2
    assert not (classify(depth, CAMERA).classes[table] == FLOOR).any()


def on_front_wall(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and height above the camera, in metres, where each ray of a level camera meets the front wall."""
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    return (columns - CAMERA.cx) / CAMERA.fx * FRONT, (CAMERA.cy - rows) / CAMERA.fy * FRONT


@pytest.mark.parametrize(("bottom", "expected"), [(-0.3, GLASS), (-FLOOR_BELOW, WALL)])
def test_a_window_frame_is_glass_and_a_door_frame_is_wall(bottom, expected):
    depth, sensor, labels = render()
    x, height = on_front_wall(depth)
    opening = (x > -1.5) & (x < -0.3) & (height > bottom) & (height < 0.7) & (labels != FLOOR)
    bars = (x < -1.455) | (x > -0.345) | (height > 0.655) | (height < bottom + 0.045)
    depth[opening] = FRONT + 0.07
    sensor = np.where(opening & ~bars, 0, depth).astype(np.float32)
    classes = classify(depth, CAMERA, sensor).classes
    assert (classes[opening & ~bars] == GLASS).mean() > 0.9
    assert (classes[opening & bars] == expected).mean() > 0.8


def test_a_dark_curtain_in_front_of_a_window_is_wall():
    depth, sensor, labels = render()
    x, height = on_front_wall(depth)
    depth[labels == GLASS] = FRONT + 0.07
    curtain = (x > -1.7) & (x < -1.2) & (height > -1) & (height < 0.9) & (labels != FLOOR)
    depth[curtain], sensor[curtain] = FRONT - 0.08, 0
    assert (classify(depth, CAMERA, sensor).classes[curtain] == WALL).mean() > 0.8


def test_a_dark_curtain_in_front_of_a_wall_is_not_glass():
    depth, _, labels = render()
    x, height = on_front_wall(depth)
    curtain = (np.abs(x - 0.6) < 0.4) & (height > -1) & (height < 0.9) & (labels == WALL)
    depth[curtain] = FRONT - 0.08
    blurred = cv2.GaussianBlur(depth, (0, 0), 2)  # like a teacher's depth
    sensor = np.where(curtain, 0, depth).astype(np.float32)
    assert not (classify(blurred, CAMERA, sensor).classes[curtain] == GLASS).any()


def test_a_dark_panel_low_on_a_wall_is_not_glass():
    depth, sensor, labels = render()
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    x, y = (columns - CAMERA.cx) / CAMERA.fx * depth, (rows - CAMERA.cy) / CAMERA.fy * depth
    panel = (labels == WALL) & (np.abs(x - 0.9) < 0.6) & (y > 0.4) & (y < 1.1)
    sensor[panel] = 0
    assert not (classify(depth, CAMERA, sensor).classes[panel] == GLASS).any()


def test_a_wall_out_of_the_sensors_range_is_not_glass():
    depth, sensor, _ = render()
    sensor[depth > 3.3] = 0
    assert not (classify(depth, CAMERA, sensor).classes == GLASS).any()


def test_empty_depth_is_other():
    empty = np.zeros((480, 640), np.float32)
    result = classify(empty, CAMERA, empty)
    assert (result.classes == OTHER).all()


@pytest.mark.parametrize("pitch", range(5, 200, 5))
def test_any_pitch_gives_valid_classes(pitch):
    small = CAMERA.resized(160, 120)
    depth, sensor, _ = render(small, pitch=pitch, cupboard=True)
    found = classify(depth, small, sensor)
    assert set(np.unique(found.classes)) <= {FLOOR, WALL, GLASS, OTHER}
    assert np.linalg.norm(found.gravity) == pytest.approx(1) and np.isfinite(found.confidence).all()
