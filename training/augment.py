"""Augmentation of whole batches on the training device; depth stays metric.

A window that comes out z times as large is what a lens of z times the focal length sees: at the reference focal length
its depth is divided by z (batch.focal_factor carries it). Lenses shorter than the camera's (z < 1) are had from smaller
images, all of one size in a step: nothing has to be made up around the picture, and small images train faster.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.feed import Batch

FLIP_PROBABILITY = 0.5
SHORTEST_LENS = 0.2  # the least share of the network's size that the encoder's five halvings leave something of
SIZES = 10  # images are so many parts of the network's size: few sizes, since a GPU prepares itself for each
SAMPLES = 2  # readings a pixel and axis: of frames twice the network's size, lenses from 0.5 on leave none out
BRIGHTNESS, CONTRAST, SATURATION = 0.12, 0.12, 0.12  # largest relative change
GAMMA = 0.2  # largest change of log gamma
# How sharp and noisy a picture is depends on the lens, the zoom and the camera: a student that is not shown all kinds
# reads distance off it. At texture = 1:
SHARPNESS = 1.0  # largest relative change of what a blur takes away: from blurred to twice as sharp
NOISE = 0.03  # largest standard deviation of the noise, white being 1
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # binomial, a Gaussian of one pixel
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass
class Draws:
    """Random numbers for the frames of one process, which are frames first.. of a batch of `total` frames.

    They are drawn for the whole batch, so that a frame is changed in the same way however many processes share it.
    """

    generator: torch.Generator
    first: int
    count: int
    total: int

    def uniform(self, kinds: int) -> Tensor:
        """float32 [kinds,count] in 0..1."""
        drawn = torch.rand(kinds, self.total, generator=self.generator)
        return drawn[:, self.first : self.first + self.count]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of a tensor's shape [B,...], on its device and, so many are they, drawn there."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        generator = torch.Generator(like.device).manual_seed(seed)
        drawn = torch.randn(self.total, *like.shape[1:], generator=generator, device=like.device)
        return drawn[self.first : self.first + self.count]


def augment(
    batch: Batch,
    zoom: tuple[float, float],
    size: tuple[int, int],
    seed: int,
    step: int,
    texture: float = 1.0,
    rank: int = 0,
    processes: int = 1,
) -> Batch:
    """A changed copy of the batch; what is drawn depends on seed and step alone, noise on the kind of device, too.

    Args:
        batch: from the feed, at least of the size to come: a crop that had to be enlarged would be blurred, and a
            student reads the zoom off the blur instead of off what is in the picture.
        zoom: range of the factor on the focal length, from SHORTEST_LENS on.
        size: (height, width) of the largest copy, which the copy is a share of.
        texture: how much sharpness and noise vary, 0 (not at all) to 1.
        rank, processes: the batch is part number `rank` of so many equal parts of the step's.
    """
    generator, frames = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63), len(batch)
    draws = Draws(generator, rank * frames, frames, processes * frames)
    share = draw_share(generator, zoom)
    theta, factor = zoom_flip(draws, zoom, share)
    shape = [frames, 1, *(round(share * side) for side in size)]
    fine = [frames, 1, *(SAMPLES * side for side in shape[2:])]
    theta, factor = theta.to(batch.rgb.device), factor.to(batch.rgb.device)
    grid, fine_grid = (F.affine_grid(theta, each, align_corners=False) for each in (shape, fine))
    # beyond the outermost pixels' centres lies half a pixel, for which they have to do
    rgb = F.grid_sample(batch.rgb, fine_grid, padding_mode="border", align_corners=False)
    rgb = change_colour(F.avg_pool2d(rgb, SAMPLES), draws)
    return Batch(
        rgb=change_texture(rgb, texture, draws) if texture else rgb,
        depth=_nearest(batch.depth, grid),
        confidence=_nearest(batch.confidence, grid),
        da3_depth=_nearest(batch.da3_depth, grid),
        sam2_seg=_nearest_classes(batch.sam2_seg, grid),
        seg_confidence=_nearest(batch.seg_confidence, grid),
        labels=_nearest_classes(batch.labels, grid),
        focal_factor=batch.focal_factor / factor,
    )


def draw_share(generator: torch.Generator, zoom: tuple[float, float]) -> float:
    """A step's image size as a share of the network's, in tenths: from the shortest lens, rounded down, to 1 or the
    longest lens."""
    least, most = (min(int(SIZES * limit + 1e-6), SIZES) for limit in zoom)
    return int(torch.randint(least, most + 1, (), generator=generator)) / SIZES


def zoom_flip(draws: Draws, zoom: tuple[float, float], share: float) -> tuple[Tensor, Tensor]:
    """Affine maps [B,2,3] of a random zoom (log-uniform), sideways shift and flip, and the zoom of each image [B].

    Lenses shorter than the share are left to steps with smaller images. The window is not shifted up or down: where a
    thing meets the floor below the horizon tells its distance through any lens, as long as the optical axis stays at
    the image's centre.
    """
    draw = draws.uniform(3)
    low, high = math.log(max(zoom[0], share)), math.log(max(zoom[1], share))
    factor = torch.exp(low + (high - low) * draw[0])
    window = share / factor  # of the image's width and height
    direction = torch.where(draw[1] < FLIP_PROBABILITY, -1.0, 1.0)
    theta = torch.zeros(draws.count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = direction * window, (1 - window) * (2 * draw[2] - 1)
    theta[:, 1, 1] = window
    return theta, factor


def change_colour(rgb: Tensor, draws: Draws) -> Tensor:
    """Random brightness, contrast, saturation and gamma a frame; rgb float32 [B,3,H,W] in 0..1."""
    draw = (2 * draws.uniform(4).view(4, -1, 1, 1, 1) - 1).to(rgb.device)
    rgb = rgb * (1 + BRIGHTNESS * draw[0])
    mean = rgb.mean(dim=(1, 2, 3), keepdim=True)
    rgb = mean + (rgb - mean) * (1 + CONTRAST * draw[1])
    grey = (rgb * rgb.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    rgb = grey + (rgb - grey) * (1 + SATURATION * draw[2])
    return rgb.clamp(0, 1) ** torch.exp(GAMMA * draw[3])


def change_texture(rgb: Tensor, texture: float, draws: Draws) -> Tensor:
    """Random sharpness and noise a frame; rgb float32 [B,3,H,W] in 0..1, texture as for augment()."""
    draw = texture * draws.uniform(2).view(2, -1, 1, 1, 1).to(rgb.device)
    row = rgb.new_tensor(BLUR).view(1, 1, 1, -1).expand(3, -1, -1, -1)
    blurred = F.conv2d(F.pad(rgb, (2, 2, 2, 2), mode="replicate"), row, groups=3)
    blurred = F.conv2d(blurred, row.transpose(2, 3), groups=3)
    rgb = rgb + SHARPNESS * (2 * draw[0] - texture) * (rgb - blurred)
    return (rgb + NOISE * draw[1] * draws.normal(rgb)).clamp(0, 1)


def _nearest(values: Tensor, grid: Tensor) -> Tensor:
    """The values [B,C,h,w] nearest to the grid's points [B,H,W,2], [B,C,H,W]."""
    if not any(values.stride()[2:]):  # one value all over the frame
        return values[..., :1, :1].expand(-1, -1, *grid.shape[1:3])
    sampled = F.grid_sample(values.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return sampled.to(values.dtype)


def _nearest_classes(classes: Tensor, grid: Tensor) -> Tensor:
    return _nearest(classes.unsqueeze(1), grid)[:, 0]
