"""Augmentation keeps depth metric and the maps of a frame aligned."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn import functional

from config import IGNORE
from trainer import augment as augmentation
from trainer.augment import (
    RandomDraws,
    augment,
    draw_size_fraction,
    draw_window,
    jitter_camera,
    jitter_colour,
    jitter_sharpness_and_noise,
)
from trainer.feed import Batch

HEIGHT, WIDTH = 60, 80
FOCAL, CX, CY = 90.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2
NORMAL, DISTANCE = np.array([0.3, -0.2, 0.9]), 2.5  # plane of the points p with NORMAL . p = DISTANCE
MIXED = (0.6, 2.0)
SIZE = (HEIGHT, WIDTH)


def rays(focal: float, cx: float, cy: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Rays [H,W,3] with z = 1 through the pixels of a camera; size: (H, W)."""
    u, v = np.meshgrid((np.arange(size[1]) - cx) / focal, (np.arange(size[0]) - cy) / focal)
    return np.stack([u, v, np.ones_like(u)], axis=-1)


def plane_batch(size: int = 6) -> Batch:
    """A slanted plane. The RGB channels encode column, row and depth; the classes are sixths of the columns."""
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
def no_colour_jitter(monkeypatch):
    """Disable colour and texture jitter, so that RGB encodes each pixel's source position."""
    monkeypatch.setattr(augmentation, "jitter_colour", lambda rgb, draws: rgb)
    monkeypatch.setattr(augmentation, "jitter_sharpness_and_noise", lambda rgb, texture, draws: rgb)


def interior_mask(augmented: Batch, index: int) -> np.ndarray:
    """bool [H,W]: all pixels except the outermost, which are padded from the border."""
    inside = np.zeros(augmented.depth[index, 0].shape, bool)
    inside[1:-1, 1:-1] = True
    return inside


def fit_line(augmented: Batch, index: int, channel: int) -> tuple[float, float]:
    """Fit the source column (channel 0) or row (1), decoded from RGB, to the augmented one: (slope, offset)."""
    mask = interior_mask(augmented, index)
    source = augmented.rgb[index, channel].numpy() * (WIDTH, HEIGHT)[channel]
    return np.polyfit(np.nonzero(mask)[1 - channel], source[mask], 1)


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.75, 0.75), (1.5, 1.5), MIXED])
def test_zoom_keeps_points_on_the_same_plane(zoom, no_colour_jitter):
    """Back-projected with f * z, depth lies on the same plane, with any shift and flip of the window."""
    batch = plane_batch()
    augmented = augment(batch, zoom, SIZE, seed=0, step=3)
    factors = (batch.focal_factor / augmented.focal_factor).numpy()
    for index, z in enumerate(factors):
        (slope_x, offset_x), (slope_y, offset_y) = fit_line(augmented, index, 0), fit_line(augmented, index, 1)
        assert abs(slope_x) == pytest.approx(1 / z, rel=1e-3)
        assert slope_y == pytest.approx(1 / z, rel=1e-3)
        cx, cy = (CX - offset_x) / slope_x, (CY - offset_y) / slope_y  # the new principal point
        depth = augmented.depth[index, 0].numpy()
        points = rays(FOCAL * z, cx, cy, depth.shape) * [np.sign(slope_x), 1, 1] * depth[..., None]
        off_plane = np.abs(points @ NORMAL - DISTANCE)[depth > 0]
        assert off_plane.max() < 0.02, f"image {index}, zoom {z}: {off_plane.max():.3f} m"


def test_zoom_varies_within_the_range(no_colour_jitter):
    batch = plane_batch(16)
    steps = [augment(batch, MIXED, SIZE, seed=0, step=step) for step in range(20)]
    for augmented in steps:
        factors = (batch.focal_factor / augmented.focal_factor).numpy()
        fraction = augmented.rgb.shape[-1] / WIDTH
        assert augmented.rgb.shape[-2] / HEIGHT == fraction and round(10 * fraction, 6).is_integer()
        assert fraction <= factors.min() < fraction * 1.4 and 1.3 < factors.max() <= MIXED[1]
    assert {augmented.rgb.shape[-1] / WIDTH for augmented in steps} == {0.6, 0.7, 0.8, 0.9, 1.0}
    flipped = np.mean([fit_line(steps[0], index, 0)[0] < 0 for index in range(16)])
    assert 0.2 < flipped < 0.8


def test_maps_stay_aligned_with_the_image(no_colour_jitter):
    batch = plane_batch()
    augmented = augment(batch, MIXED, SIZE, seed=1, step=7)
    for index in range(len(batch.rgb)):
        mask = interior_mask(augmented, index)
        column, _, tenth = (channel.numpy()[mask] for channel in augmented.rgb[index])
        depth, classes = augmented.depth[index, 0].numpy()[mask], augmented.labels[index].numpy()[mask]
        np.testing.assert_allclose(depth, tenth * 10, atol=0.02)
        near_border = np.abs(column * 6 - np.round(column * 6)) < 6 / WIDTH
        np.testing.assert_array_equal(classes[~near_border], 5 - np.floor(column * 6)[~near_border])
        np.testing.assert_array_equal(augmented.sam2_seg[index].numpy()[mask], 5 - classes)
        np.testing.assert_array_equal(augmented.da3_depth[index, 0].numpy()[mask], depth + 1)
        np.testing.assert_array_equal(augmented.confidence[index, 0].numpy()[mask], 1)
        np.testing.assert_array_equal(augmented.seg_confidence[index, 0].numpy()[mask], depth / 10)


@pytest.mark.parametrize(
    ("zoom", "fractions"), [((1, 1), {1.0}), ((1.2, 2), {1.0}), ((0.55, 0.58), {0.5}), ((0.2, 0.41), {0.2, 0.3, 0.4})]
)
def test_image_sizes_range_from_the_minimum_to_the_maximum_zoom(zoom, fractions):
    generator = torch.Generator().manual_seed(0)
    assert {draw_size_fraction(generator, zoom) for _ in range(50)} == fractions


@pytest.mark.parametrize("zoom", [(0.6, 0.6), (1.0, 1.0), (1.7, 1.7)])
def test_resampling_equals_grid_sample_and_average_pooling(no_colour_jitter, zoom):
    batch = plane_batch()
    batch.rgb = torch.rand(6, 3, 2 * HEIGHT, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    augmented = augment(batch, zoom, SIZE, seed=0, step=0).rgb
    generator = torch.Generator().manual_seed(0)
    fraction = draw_size_fraction(generator, zoom)
    (half_width, half_height, centre), _ = draw_window(RandomDraws(generator, 0, 6, 6), zoom, fraction)
    zero = torch.zeros(6)
    window = torch.stack([half_width, zero, centre, zero, half_height, zero], dim=1).view(6, 2, 3)
    height, width = augmented.shape[-2:]
    grid = functional.affine_grid(window, [6, 3, 2 * height, 2 * width], align_corners=False)
    readings = functional.grid_sample(batch.rgb, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(augmented, functional.avg_pool2d(readings, 2), atol=1e-4, rtol=0)


def test_downsampling_averages_source_pixels(no_colour_jitter):
    batch = plane_batch(2)
    batch.rgb = torch.randn(2, 3, 2 * HEIGHT, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    augmented = augment(batch, (0.5, 0.5), SIZE, seed=0, step=0)
    assert augmented.rgb.shape[-2:] == (HEIGHT // 2, WIDTH // 2)
    assert augmented.rgb.std().item() == pytest.approx(1 / 4, rel=0.1)  # mean of 4 x 4 samples


def test_invalid_and_ignored_pixels_stay_masked():
    batch = plane_batch()
    batch.depth, batch.labels, batch.sam2_seg = batch.depth * 0, batch.labels * 0, torch.full_like(batch.labels, IGNORE)
    augmented = augment(batch, (1.0, 1.5), SIZE, seed=0, step=0)
    assert not augmented.depth.any() and not augmented.labels.any()
    assert (augmented.sam2_seg == IGNORE).all()


def test_augmentation_depends_on_seed_and_step_only():
    batch = plane_batch()
    before = [getattr(batch, field.name).clone() for field in fields(Batch)]
    first, again = augment(batch, MIXED, SIZE, seed=4, step=11), augment(batch, MIXED, SIZE, seed=4, step=11)
    for field, original in zip(fields(Batch), before, strict=True):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
        assert torch.equal(getattr(batch, field.name), original), "the input batch is not modified"
    for seed, step in ((4, 12), (5, 11), (10**20, 11)):
        other = augment(batch, MIXED, SIZE, seed=seed, step=step)
        assert not torch.equal(first.rgb, other.rgb) and not torch.equal(first.depth, other.depth)


def test_colour_jitter_stays_in_range():
    batch = plane_batch()
    augmented = augment(batch, (1.0, 1.0), SIZE, seed=0, step=0)
    assert augmented.rgb.min() >= 0 and augmented.rgb.max() <= 1
    assert len({round(picture.mean().item(), 4) for picture in augmented.rgb}) == len(augmented.rgb)
    assert augmented.depth.unique().numel() == batch.depth.unique().numel()


def test_colour_jitter_applies_brightness_contrast_saturation_and_gamma_in_order():
    rgb = torch.rand(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    draw = 2 * RandomDraws(torch.Generator().manual_seed(1), 0, 4, 4).uniform(4) - 1
    expected = []
    for picture, (brightness, contrast, saturation, gamma) in zip(rgb, draw.T, strict=True):
        picture = picture * (1 + 0.12 * brightness)
        picture = picture.mean() + (picture - picture.mean()) * (1 + 0.12 * contrast)
        grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
        picture = grey + (picture - grey) * (1 + 0.12 * saturation)
        expected.append(picture.clamp(0, 1) ** torch.exp(0.2 * gamma))
    augmented = jitter_colour(rgb, RandomDraws(torch.Generator().manual_seed(1), 0, 4, 4))
    torch.testing.assert_close(augmented, torch.stack(expected))


def test_texture_jitter_blurs_sharpens_and_adds_noise():
    rgb = torch.full((64, 3, 48, 64), 0.3)
    rgb[..., 32:] = 0.7
    augmented = jitter_sharpness_and_noise(rgb, 1.0, RandomDraws(torch.Generator().manual_seed(0), 0, 64, 64))
    assert augmented.min() >= 0 and augmented.max() <= 1
    noise = augmented[..., 4:24].std(dim=(1, 2, 3))
    assert noise.min() < 0.003 and 0.02 < noise.max() < 0.06
    edge = (augmented[..., 32] - augmented[..., 31]).mean(dim=(1, 2)) / 0.4
    assert edge.min() < 0.5 and edge.max() > 1.4
    torch.testing.assert_close(augmented.mean(dim=(1, 2, 3)), rgb.mean(dim=(1, 2, 3)), atol=0.01, rtol=0)


def test_camera_jitter_changes_light_colour_and_tone_smoothly():
    rgb = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(4)).expand(-1, -1, 48, 64) * 0.5 + 0.2

    def jitter(strength):
        return jitter_camera(rgb, strength, RandomDraws(torch.Generator().manual_seed(0), 0, 64, 64))

    torch.testing.assert_close(jitter(0.0), rgb)
    changed = jitter(1.0)
    assert changed.min() >= 0 and changed.max() <= 1
    brightness = changed.mean(dim=(1, 2, 3)) / rgb.mean(dim=(1, 2, 3))
    assert brightness.min() < 0.7 and brightness.max() > 1.4, "exposure"
    spread = changed.std(dim=(2, 3)).mean(dim=1)
    assert spread.min() < 0.05 and spread.max() > 0.1, "uneven light"
    steps = (changed[..., 1:] - changed[..., :-1]).abs().amax(dim=(1, 2, 3))
    assert steps.max() < 0.15, "light changes smoothly"
    ratio = (changed[:, 0] / changed[:, 2]).mean(dim=(1, 2)) / (rgb[:, 0] / rgb[:, 2]).mean(dim=(1, 2))
    assert ratio.min() < 0.8 and ratio.max() > 1.25, "white balance"


@pytest.mark.parametrize("camera", [0.0, 1.0])
def test_augmentation_does_not_depend_on_the_number_of_processes(camera):
    batch = plane_batch(4)
    whole = augment(batch, MIXED, SIZE, seed=3, step=5, camera=camera)
    for rank, part in enumerate(batch.split(2)):
        augmented = augment(part, MIXED, SIZE, seed=3, step=5, camera=camera, rank=rank, world_size=2)
        for field in fields(Batch):
            torch.testing.assert_close(
                getattr(augmented, field.name), getattr(whole, field.name)[2 * rank : 2 * rank + 2]
            )
