"""Augmentation keeps depth metric and the maps of a frame registered."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn import functional

from config import IGNORE
from trainer import augment as augmentation
from trainer.augment import RandomDraws, augment, draw_size_fraction, draw_window, jitter_colour, jitter_texture
from trainer.feed import Batch

HEIGHT, WIDTH = 60, 80
FOCAL, CX, CY = 90.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2
NORMAL, DISTANCE = np.array([0.3, -0.2, 0.9]), 2.5  # the plane of the points p with NORMAL . p = DISTANCE
MIXED = (0.6, 2.0)
SIZE = (HEIGHT, WIDTH)


def rays(focal: float, cx: float, cy: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Directions [H,W,3] with z = 1 of the pixels of a camera; size: (H, W)."""
    u, v = np.meshgrid((np.arange(size[1]) - cx) / focal, (np.arange(size[0]) - cy) / focal)
    return np.stack([u, v, np.ones_like(u)], axis=-1)


def plane_batch(size: int = 6) -> Batch:
    """One slanted plane; RGB's channels hold column, row and depth, and the classes hold columns' sixths."""
    depth = torch.from_numpy(DISTANCE / (rays(FOCAL, CX, CY) @ NORMAL)).float().expand(size, 1, HEIGHT, WIDTH)
    column = (torch.arange(WIDTH) / WIDTH).expand(size, 1, HEIGHT, WIDTH)
    row = (torch.arange(HEIGHT) / HEIGHT).view(-1, 1).expand(size, 1, HEIGHT, WIDTH)
    classes = (column * 6).byte()[:, 0]
    return Batch(
        rgb=torch.cat([column, row, depth / 10], dim=1),
        depth=depth,
        confidence=torch.ones_like(depth),
        da3_depth=depth + 1,
        sam2_seg=classes,
        seg_confidence=depth / 10,
        labels=5 - classes,
        focal_factor=torch.linspace(0.8, 1.3, size),
    )


@pytest.fixture
def without_colour(monkeypatch):
    """Colours stay as they are, so that RGB tells where each pixel came from."""
    monkeypatch.setattr(augmentation, "jitter_colour", lambda rgb, draws: rgb)
    monkeypatch.setattr(augmentation, "jitter_texture", lambda rgb, texture, draws: rgb)


def interior(changed: Batch, index: int) -> np.ndarray:
    """bool [H,W]: all pixels but the outermost, which repeat what is nearest in the image."""
    inside = np.zeros(changed.depth[index, 0].shape, bool)
    inside[1:-1, 1:-1] = True
    return inside


def line(changed: Batch, index: int, channel: int) -> tuple[float, float]:
    """(slope, offset) of the source column (channel 0) or row (1) over the augmented one, read from the colours."""
    here = interior(changed, index)
    source = changed.rgb[index, channel].numpy() * (WIDTH, HEIGHT)[channel]
    return np.polyfit(np.nonzero(here)[1 - channel], source[here], 1)


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.75, 0.75), (1.5, 1.5), MIXED])
def test_points_behind_a_zoomed_lens_lie_on_the_same_plane(zoom, without_colour):
    """Back-projected with f * z, whatever the shift of the window and the flip, the depth is of the same surface."""
    batch = plane_batch()
    changed = augment(batch, zoom, SIZE, seed=0, step=3)
    factors = (batch.focal_factor / changed.focal_factor).numpy()
    for index, z in enumerate(factors):
        (slope_x, offset_x), (slope_y, offset_y) = line(changed, index, 0), line(changed, index, 1)
        assert abs(slope_x) == pytest.approx(1 / z, rel=1e-3)
        assert slope_y == pytest.approx(1 / z, rel=1e-3)
        cx, cy = (CX - offset_x) / slope_x, (CY - offset_y) / slope_y  # where the optical axis has gone
        depth = changed.depth[index, 0].numpy()
        points = rays(FOCAL * z, cx, cy, depth.shape) * [np.sign(slope_x), 1, 1] * depth[..., None]
        off_plane = np.abs(points @ NORMAL - DISTANCE)[depth > 0]
        assert off_plane.max() < 0.02, f"image {index}, zoom {z}: {off_plane.max():.3f} m"


def test_lenses_vary_within_the_range(without_colour):
    batch = plane_batch(16)
    steps = [augment(batch, MIXED, SIZE, seed=0, step=step) for step in range(20)]
    for changed in steps:
        factors = (batch.focal_factor / changed.focal_factor).numpy()
        share = changed.rgb.shape[-1] / WIDTH
        assert changed.rgb.shape[-2] / HEIGHT == share and round(10 * share, 6).is_integer()
        assert share <= factors.min() < share * 1.4 and 1.3 < factors.max() <= MIXED[1]
    assert {changed.rgb.shape[-1] / WIDTH for changed in steps} == {0.6, 0.7, 0.8, 0.9, 1.0}
    flipped = np.mean([line(steps[0], index, 0)[0] < 0 for index in range(16)])
    assert 0.2 < flipped < 0.8


def test_maps_stay_registered_with_the_picture(without_colour):
    batch = plane_batch()
    changed = augment(batch, MIXED, SIZE, seed=1, step=7)
    for index in range(len(batch.rgb)):
        here = interior(changed, index)
        column, _, tenth = (channel.numpy()[here] for channel in changed.rgb[index])
        depth, classes = changed.depth[index, 0].numpy()[here], changed.labels[index].numpy()[here]
        np.testing.assert_allclose(depth, tenth * 10, atol=0.02)
        near_border = np.abs(column * 6 - np.round(column * 6)) < 6 / WIDTH
        np.testing.assert_array_equal(classes[~near_border], 5 - np.floor(column * 6)[~near_border])
        np.testing.assert_array_equal(changed.sam2_seg[index].numpy()[here], 5 - classes)
        np.testing.assert_array_equal(changed.da3_depth[index, 0].numpy()[here], depth + 1)
        np.testing.assert_array_equal(changed.confidence[index, 0].numpy()[here], 1)
        np.testing.assert_array_equal(changed.seg_confidence[index, 0].numpy()[here], depth / 10)


@pytest.mark.parametrize(
    ("zoom", "shares"), [((1, 1), {1.0}), ((1.2, 2), {1.0}), ((0.55, 0.58), {0.5}), ((0.2, 0.41), {0.2, 0.3, 0.4})]
)
def test_images_are_as_large_as_the_shortest_to_the_longest_lens(zoom, shares):
    generator = torch.Generator().manual_seed(0)
    assert {draw_size_fraction(generator, zoom) for _ in range(50)} == shares


@pytest.mark.parametrize("zoom", [(0.6, 0.6), (1.0, 1.0), (1.7, 1.7)])
def test_colours_are_the_mean_of_bilinear_readings(without_colour, zoom):
    batch = plane_batch()
    batch.rgb = torch.rand(6, 3, 2 * HEIGHT, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    changed = augment(batch, zoom, SIZE, seed=0, step=0).rgb
    generator = torch.Generator().manual_seed(0)
    share = draw_size_fraction(generator, zoom)
    (half_width, half_height, middle), _ = draw_window(RandomDraws(generator, 0, 6, 6), zoom, share)
    zero = torch.zeros(6)
    window = torch.stack([half_width, zero, middle, zero, half_height, zero], dim=1).view(6, 2, 3)
    height, width = changed.shape[-2:]
    grid = functional.affine_grid(window, [6, 3, 2 * height, 2 * width], align_corners=False)
    readings = functional.grid_sample(batch.rgb, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(changed, functional.avg_pool2d(readings, 2), atol=1e-4, rtol=0)


def test_a_short_lens_averages_what_falls_on_a_pixel(without_colour):
    batch = plane_batch(2)
    batch.rgb = torch.randn(2, 3, 2 * HEIGHT, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    changed = augment(batch, (0.5, 0.5), SIZE, seed=0, step=0)
    assert changed.rgb.shape[-2:] == (HEIGHT // 2, WIDTH // 2)
    assert changed.rgb.std().item() == pytest.approx(1 / 4, rel=0.1)  # 4 x 4 readings


def test_holes_and_ignored_pixels_stay_so():
    batch = plane_batch()
    batch.depth, batch.labels, batch.sam2_seg = batch.depth * 0, batch.labels * 0, torch.full_like(batch.labels, IGNORE)
    changed = augment(batch, (1.0, 1.5), SIZE, seed=0, step=0)
    assert not changed.depth.any() and not changed.labels.any()
    assert (changed.sam2_seg == IGNORE).all()


def test_seed_and_step_alone_decide():
    batch = plane_batch()
    before = [getattr(batch, field.name).clone() for field in fields(Batch)]
    first, again = augment(batch, MIXED, SIZE, seed=4, step=11), augment(batch, MIXED, SIZE, seed=4, step=11)
    for field, original in zip(fields(Batch), before, strict=True):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
        assert torch.equal(getattr(batch, field.name), original), "the batch that came in is left as it was"
    for seed, step in ((4, 12), (5, 11), (10**20, 11)):
        other = augment(batch, MIXED, SIZE, seed=seed, step=step)
        assert not torch.equal(first.rgb, other.rgb) and not torch.equal(first.depth, other.depth)


def test_colours_change_within_their_range():
    batch = plane_batch()
    changed = augment(batch, (1.0, 1.0), SIZE, seed=0, step=0)
    assert changed.rgb.min() >= 0 and changed.rgb.max() <= 1
    assert len({round(picture.mean().item(), 4) for picture in changed.rgb}) == len(changed.rgb)
    assert changed.depth.unique().numel() == batch.depth.unique().numel()


def test_colours_change_by_brightness_then_contrast_then_saturation_then_gamma():
    rgb = torch.rand(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    draw = 2 * RandomDraws(torch.Generator().manual_seed(1), 0, 4, 4).uniform(4) - 1
    expected = []
    for picture, (brightness, contrast, saturation, gamma) in zip(rgb, draw.T, strict=True):
        picture = picture * (1 + 0.12 * brightness)
        picture = picture.mean() + (picture - picture.mean()) * (1 + 0.12 * contrast)
        grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
        picture = grey + (picture - grey) * (1 + 0.12 * saturation)
        expected.append(picture.clamp(0, 1) ** torch.exp(0.2 * gamma))
    changed = jitter_colour(rgb, RandomDraws(torch.Generator().manual_seed(1), 0, 4, 4))
    torch.testing.assert_close(changed, torch.stack(expected))


def test_pictures_are_blurred_sharpened_and_made_noisy():
    rgb = torch.full((64, 3, 48, 64), 0.3)
    rgb[..., 32:] = 0.7
    changed = jitter_texture(rgb, 1.0, RandomDraws(torch.Generator().manual_seed(0), 0, 64, 64))
    assert changed.min() >= 0 and changed.max() <= 1
    noise = changed[..., 4:24].std(dim=(1, 2, 3))
    assert noise.min() < 0.003 and 0.02 < noise.max() < 0.06
    edge = (changed[..., 32] - changed[..., 31]).mean(dim=(1, 2)) / 0.4
    assert edge.min() < 0.5 and edge.max() > 1.4
    torch.testing.assert_close(changed.mean(dim=(1, 2, 3)), rgb.mean(dim=(1, 2, 3)), atol=0.01, rtol=0)


def test_frames_are_changed_alike_however_many_processes_share_them(monkeypatch):
    batch = plane_batch(4)
    whole = augment(batch, MIXED, SIZE, seed=3, step=5)
    for rank, part in enumerate(batch.split(2)):
        changed = augment(part, MIXED, SIZE, seed=3, step=5, rank=rank, processes=2)
        for field in fields(Batch):
            torch.testing.assert_close(
                getattr(changed, field.name), getattr(whole, field.name)[2 * rank : 2 * rank + 2]
            )
