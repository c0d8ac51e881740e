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

from trainer.feed import Batch

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
BLUR = 4  # sums of neighbours along an axis, an even number: they spread a pixel like a Gaussian of one pixel
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
        """Standard normal numbers [1,...] for a frame of a tensor [B,...], drawn on its device.

        All frames of a step share one noise image: on a CPU, drawing one a frame takes longer than the blur.
        """
        seed = int(torch.randint(2**62, (), generator=self.generator))
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn(1, *like.shape[1:], generator=generator, device=like.device)


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
        seed: of the run.
        step: number of the step in the run.
        texture: how much sharpness and noise vary, 0 (not at all) to 1.
        rank: which part of the step's batch this one is.
        processes: how many equal parts that has.
    """
    generator, frames = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63), len(batch)
    draws = Draws(generator, rank * frames, frames, processes * frames)
    share = draw_share(generator, zoom)
    window, factor = draw_window(draws, zoom, share)
    window, factor = window.to(batch.rgb.device), factor.to(batch.rgb.device)
    height, width = (round(share * side) for side in size)
    rgb = change_colour(_average(batch.rgb, window, height, width), draws)
    index = _nearest(*_places(window, height, width), *batch.depth.shape[-2:])
    return Batch(
        rgb=change_texture(rgb, texture, draws) if texture else rgb,
        depth=_pick(batch.depth, index),
        confidence=_pick(batch.confidence, index),
        da3_depth=_pick(batch.da3_depth, index),
        sam2_seg=_pick(batch.sam2_seg, index),
        seg_confidence=_pick(batch.seg_confidence, index),
        labels=_pick(batch.labels, index),
        focal_factor=batch.focal_factor / factor,
    )


def draw_share(generator: torch.Generator, zoom: tuple[float, float]) -> float:
    """A step's image size as a share of the network's, in tenths.

    It lies between the shortest lens, rounded down, and the longest one, or 1.
    """
    least, most = (min(int(SIZES * limit + 1e-6), SIZES) for limit in zoom)
    return int(torch.randint(least, most + 1, (), generator=generator)) / SIZES


def draw_window(draws: Draws, zoom: tuple[float, float], share: float) -> tuple[Tensor, Tensor]:
    """The window of each frame that its copy shows, [3,B], and the zoom that this is, [B].

    The window's half width, negative where the copy is flipped, its half height, and its centre's column, where the
    image is 2 high and wide around 0. The zoom is log-uniform. Lenses shorter than the share are left to steps with
    smaller images. The window is not shifted up or down: where a thing meets the floor below the horizon tells its
    distance through any lens, as long as the optical axis stays at the image's centre.
    """
    draw = draws.uniform(3)
    low, high = math.log(max(zoom[0], share)), math.log(max(zoom[1], share))
    factor = torch.exp(low + (high - low) * draw[0])
    half = share / factor
    direction = torch.where(draw[1] < FLIP_PROBABILITY, -1.0, 1.0)
    return torch.stack([direction * half, half, (1 - half) * (2 * draw[2] - 1)]), factor


def _places(window: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the columns [B,width] and rows [B,height] of a copy lie in the frame, in -1..1 from rim to rim."""

    def centres(size: int) -> Tensor:
        return (2 * torch.arange(size, device=window.device) + 1) / size - 1

    half_width, half_height, middle = window.unsqueeze(-1)
    return middle + half_width * centres(width), half_height * centres(height)


def change_colour(rgb: Tensor, draws: Draws) -> Tensor:
    """Random brightness, contrast, saturation and gamma a frame; rgb float32 [B,3,H,W] in 0..1."""
    draw = (2 * draws.uniform(4).view(4, -1, 1, 1) - 1).to(rgb.device)
    brightness, contrast, saturation = 1 + BRIGHTNESS * draw[0], 1 + CONTRAST * draw[1], 1 + SATURATION * draw[2]
    # All three are linear. Contrast spreads the values around the frame's mean, saturation the channels around grey.
    mean = brightness * rgb.mean(dim=(1, 2, 3)).view(-1, 1, 1)
    grey = rgb.new_tensor(LUMA).expand(3, 3)
    mixed = saturation * torch.eye(3, device=rgb.device) + (1 - saturation) * grey
    changed = torch.baddbmm((1 - contrast) * mean, contrast * brightness * mixed, rgb.flatten(2))
    gamma = torch.exp(GAMMA * draw[3])
    return changed.clamp_(0, 1).pow_(gamma).view_as(rgb)


def change_texture(rgb: Tensor, texture: float, draws: Draws) -> Tensor:
    """Random sharpness and noise a frame; rgb float32 [B,3,H,W] in 0..1, texture as for augment()."""
    draw = texture * draws.uniform(2).view(2, -1, 1, 1, 1).to(rgb.device)
    blurred = F.pad(rgb, (BLUR // 2,) * 4, mode="replicate")
    for axis in (2, 3):
        for _ in range(BLUR):
            neighbours = blurred.shape[axis] - 1
            blurred = blurred.narrow(axis, 0, neighbours) + blurred.narrow(axis, 1, neighbours)
    changed = rgb.lerp(blurred.div_(4**BLUR), SHARPNESS * (texture - 2 * draw[0]))
    return changed.addcmul_(NOISE * draw[1], draws.normal(rgb)).clamp_(0, 1)


def _average(rgb: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """The window of the frames [B,3,h,w] at a size [B,3,height,width], SAMPLES x SAMPLES bilinear readings a pixel.

    The window is axis-aligned and the resampling therefore separable: rows, then columns, a few reads a pixel instead
    of four for each reading. Frames in channels_last, as the feed gives them, are not copied for it.
    """
    columns, rows = _places(window, SAMPLES * height, SAMPLES * width)
    frames, _, full_height, full_width = rgb.shape
    lines = _resample(rgb.permute(0, 2, 3, 1).reshape(frames, full_height, -1), rows)
    lines = lines.view(frames, height, full_width, -1).permute(0, 2, 3, 1).reshape(frames, full_width, -1)
    return _resample(lines, columns).view(frames, width, -1, height).permute(0, 2, 3, 1)


def _resample(lines: Tensor, places: Tensor) -> Tensor:
    """Lines [B,N,C] out of lines [B,L,C], each the mean of SAMPLES linear interpolations between two neighbours.

    places: where, [B,SAMPLES*N] in -1..1 from the first line's outer rim to the last one's.
    """
    frames, count, _ = lines.shape
    # beyond the outermost lines' centres lies half a line, for which they have to do
    position = ((places * count + count - 1) / 2).clamp(0, count - 1).view(frames, -1, SAMPLES)
    before = position.floor().clamp(max=count - 2)
    after = position - before
    number = before.long() + count * torch.arange(frames, device=lines.device).view(-1, 1, 1)
    numbers, weights = torch.cat([number, number + 1], dim=-1), torch.cat([1 - after, after], dim=-1) / SAMPLES
    bags = (numbers.flatten(0, 1), lines.flatten(0, 1))
    resampled = F.embedding_bag(*bags, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return resampled.view(frames, -1, lines.shape[-1])


def _nearest(columns: Tensor, rows: Tensor, height: int, width: int) -> Tensor:
    """Number of the pixel, counted along the rows of a frame [height,width], nearest to each of _places(), [B,H,W]."""

    def nearest(places: Tensor, size: int) -> Tensor:
        return ((places * size + size - 1) / 2).round().long().clamp(0, size - 1)

    return nearest(rows, height).unsqueeze(2) * width + nearest(columns, width).unsqueeze(1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """The values [B,h,w] or [B,1,h,w] of the pixels of _nearest(), [B,H,W] or [B,1,H,W]."""
    shape = (*values.shape[:-2], *index.shape[1:])
    if not any(values.stride()[-2:]):  # one value all over the frame
        return values[..., :1, :1].expand(shape)
    return values.flatten(1).gather(1, index.flatten(1)).view(shape)
