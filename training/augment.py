"""Augmentation of whole batches on the training device; depth stays metric.

A crop enlarged by z is what a lens of z times the focal length sees: at the reference focal length its depth is
divided by z (batch.focal_factor carries it). Zooming out (z < 1) leaves a mirrored rim that teaches nothing.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from config import IGNORE
from training.feed import Batch

FLIP_PROBABILITY = 0.5
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
        zoom: range of the factor on the focal length.
        size: (height, width) of the copy.
        texture: how much sharpness and noise vary, 0 (not at all) to 1.
        rank, processes: the batch is part number `rank` of so many equal parts of the step's.
    """
    generator, frames = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63), len(batch)
    draws = Draws(generator, rank * frames, frames, processes * frames)
    grid, factor = zoom_flip_grid(draws, size, zoom, batch.rgb.device)
    # mirrored rather than black outside the image: a black rim would give the zoom away
    rgb = change_colour(F.grid_sample(batch.rgb, grid, padding_mode="reflection", align_corners=False), draws)
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


def zoom_flip_grid(
    draws: Draws, size: tuple[int, int], zoom: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sampling grid [B,H,W,2] of a random zoom (log-uniform), sideways shift and flip, and the zoom of each image [B].

    size: (H, W). Both results are on the device.

    The window is not shifted up or down: where a thing meets the floor below the horizon tells its distance through
    any lens, as long as the optical axis stays at the image's centre.
    """
    draw = draws.uniform(3)
    low, high = math.log(zoom[0]), math.log(zoom[1])
    factor = torch.exp(low + (high - low) * draw[0])
    free = (1 - 1 / factor).abs()  # how far the window's centre may leave the image's, in halves of its size
    direction = torch.where(draw[1] < FLIP_PROBABILITY, -1.0, 1.0)
    theta = torch.zeros(draws.count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = direction / factor, free * (2 * draw[2] - 1)
    theta[:, 1, 1] = 1 / factor
    return F.affine_grid(theta.to(device), [draws.count, 1, *size], align_corners=False), factor.to(device)


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
    return F.grid_sample(values, grid, mode="nearest", align_corners=False)


def _nearest_classes(classes: Tensor, grid: Tensor) -> Tensor:
    # grid_sample pads with 0, so classes are sampled as 1.. and 0 comes to mean "outside the image"
    shifted = _nearest((classes + 1).float().unsqueeze(1), grid)[:, 0].long()
    return torch.where(shifted == 0, IGNORE, shifted - 1)
