"""Augmentation of whole batches on the training device; depth stays metric.

Enlarging a crop by z is equivalent to a z times longer focal length, so depth at the reference focal length is divided
by z (through batch.focal_factor). Shorter focal lengths (z < 1) come from smaller images, all of one size per step: no
border has to be filled in, and small images train faster.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.feed import Batch

FLIP_PROBABILITY = 0.5
MIN_ZOOM = 0.2  # smallest fraction of the input size that still leaves features at stride 32
N_SIZES = 10  # images have 1/10, 2/10... of the input size; few sizes, since kernels are compiled or tuned for each
SAMPLES_PER_AXIS = 2  # per pixel: frames at twice the input size are sampled without gaps at zooms down to 0.5
BRIGHTNESS, CONTRAST, SATURATION = 0.12, 0.12, 0.12  # maximum relative change
GAMMA = 0.2  # maximum change of log gamma
# Sharpness and noise depend on lens, zoom and camera. A student trained with only one level of each uses them as a cue
# for distance. Both maxima are for texture = 1.
SHARPNESS = 1.0  # maximum gain of the detail, which is the image minus its blur: -1 removes it, +1 doubles it
NOISE = 0.03  # maximum standard deviation of the noise; white is 1
BLUR_PASSES = 4  # 2-tap box filters per axis, an even number: together nearly a Gaussian with a sigma of one pixel
# What rendered images lack of real cameras. Maximum changes, for camera = 1:
EXPOSURE, TONE = 0.7, 0.35  # of log exposure and of log gamma
WHITE_BALANCE, DESATURATION = 0.25, 0.7  # of the log gain of each channel; of the colour that is lost
S_CURVE, VIGNETTING = 0.8, 0.4  # weight of an S-shaped tone curve; loss of light in the corners
ILLUMINATION, ILLUMINATION_CELLS = 0.35, (3, 4)  # standard deviation of the log light in each cell of a coarse grid
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass
class RandomDraws:
    """Random numbers for one rank's `count` frames, starting at index `first` of a batch of `total` frames.

    They are drawn for the whole batch, so that a frame's augmentation does not depend on the number of processes.
    """

    generator: torch.Generator
    first: int
    count: int
    total: int

    def uniform(self, numbers: int) -> Tensor:
        """Uniform random numbers in 0..1: float32 [numbers,count]."""
        drawn = torch.rand(numbers, self.total, generator=self.generator)
        return drawn[:, self.first : self.first + self.count]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal samples [1,...] for a tensor [B,...], on its device.

        All frames of a step share one noise image: on a CPU, drawing one per frame takes longer than the blur.
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
    camera: float = 0.0,
    rank: int = 0,
    world_size: int = 1,
) -> Batch:
    """Return an augmented copy of the batch.

    The random changes depend only on seed and step; the noise also depends on the device type.

    Args:
        batch: from the feed, with images at least as large as the result: upsampling would blur a crop, and the student
            would use the blur as a cue for the zoom.
        zoom: range of the factor on the focal length, MIN_ZOOM or more.
        size: (height, width) of the network's input. The result has this size or a fraction of it: see
            draw_size_fraction().
        seed: seed of the run.
        step: number of the step in the run.
        texture: strength of the changes of sharpness and noise, 0 (none) to 1.
        camera: strength of the changes of the camera's response, 0 (none) to 1: see jitter_camera().
        rank: rank of this process, which selects its slice of the batch.
        world_size: number of ranks.
    """
    generator, frames = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63), len(batch)
    draws = RandomDraws(generator, rank * frames, frames, world_size * frames)
    fraction = draw_size_fraction(generator, zoom)
    window, factor = draw_window(draws, zoom, fraction)
    window, factor = _to_device(window, batch.rgb.device), _to_device(factor, batch.rgb.device)
    height, width = (round(fraction * side) for side in size)
    rgb = _resample_rgb(batch.rgb, window, height, width)
    if camera:
        rgb = jitter_camera(rgb, camera, draws)
    rgb = jitter_colour(rgb, draws)
    index = _nearest_indices(*_sample_positions(window, height, width), *batch.depth.shape[-2:])
    return Batch(
        rgb=jitter_sharpness_and_noise(rgb, texture, draws) if texture else rgb,
        depth=_take(batch.depth, index),
        confidence=_take(batch.confidence, index),
        da3_depth=_take(batch.da3_depth, index),
        sam2_seg=_take(batch.sam2_seg, index),
        seg_confidence=_take(batch.seg_confidence, index),
        labels=_take(batch.labels, index),
        focal_factor=batch.focal_factor / factor,
    )


def draw_size_fraction(generator: torch.Generator, zoom: tuple[float, float]) -> float:
    """Draw a step's image size as a fraction of the network's input size, a multiple of 1 / N_SIZES.

    It lies between the minimum and the maximum zoom, both rounded down to such a multiple, and is at most 1.
    """
    smallest, largest = (min(int(N_SIZES * limit + 1e-6), N_SIZES) for limit in zoom)
    return int(torch.randint(smallest, largest + 1, (), generator=generator)) / N_SIZES


def draw_window(draws: RandomDraws, zoom: tuple[float, float], fraction: float) -> tuple[Tensor, Tensor]:
    """Draw the window to crop from each frame, [3,B], and its zoom, [B]; both float32 on the CPU.

    A window is its half width (negative: flipped), its half height, and the x coordinate of its centre; the frame spans
    -1..1. The zoom is log-uniform and at least `fraction`: lower zooms need smaller images. The window is never shifted
    vertically. The optical axis then stays at the image's centre row, and how far below it an object meets the floor
    remains a cue for the object's distance.
    """
    draw = draws.uniform(3)
    low, high = math.log(max(zoom[0], fraction)), math.log(max(zoom[1], fraction))
    factor = torch.exp(low + (high - low) * draw[0])
    half = fraction / factor
    direction = torch.where(draw[1] < FLIP_PROBABILITY, -1.0, 1.0)
    return torch.stack([direction * half, half, (1 - half) * (2 * draw[2] - 1)]), factor


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to the device. If its memory were not pinned, the host would wait for the GPU's queue."""
    return values.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _sample_positions(window: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Positions in the frame, -1..1, of the columns [B,width] and rows [B,height] of a crop."""

    def centres(size: int) -> Tensor:
        return (2 * torch.arange(size, device=window.device) + 1) / size - 1

    half_width, half_height, centre = window.unsqueeze(-1)
    return centre + half_width * centres(width), half_height * centres(height)


def jitter_colour(rgb: Tensor, draws: RandomDraws) -> Tensor:
    """Random brightness, contrast, saturation and gamma per frame; rgb float32 [B,3,H,W] in 0..1."""
    draw = _to_device(2 * draws.uniform(4).view(4, -1, 1, 1) - 1, rgb.device)
    brightness, contrast, saturation = 1 + BRIGHTNESS * draw[0], 1 + CONTRAST * draw[1], 1 + SATURATION * draw[2]
    # All three are linear: contrast scales around the frame's mean, saturation around grey.
    mean = brightness * rgb.mean(dim=(1, 2, 3)).view(-1, 1, 1)
    grey = _to_device(torch.tensor(LUMA), rgb.device).expand(3, 3)
    mixed = saturation * torch.eye(3, device=rgb.device) + (1 - saturation) * grey
    changed = torch.baddbmm((1 - contrast) * mean, contrast * brightness * mixed, rgb.flatten(2))
    gamma = torch.exp(GAMMA * draw[3])
    return changed.clamp_(0, 1).pow_(gamma).view_as(rgb)


def jitter_camera(rgb: Tensor, strength: float, draws: RandomDraws) -> Tensor:
    """Random light and camera response per frame: uneven light, vignetting, exposure, white balance, tone curve.

    rgb float32 [B,3,H,W] in 0..1; strength 0 (none) to 1. For students that learn from rendered images alone.
    """
    frames, _, height, width = rgb.shape
    draw = _to_device(draws.uniform(8), rgb.device)
    signed = strength * (2 * draw - 1)
    cells = _to_device(draws.uniform(math.prod(ILLUMINATION_CELLS)).t(), rgb.device)
    cells = cells.view(frames, 1, *ILLUMINATION_CELLS)
    light = (2 * cells - 1) * (3**0.5 * ILLUMINATION * strength)  # uniform, of that standard deviation
    log_light = F.interpolate(light, (height, width), mode="bicubic", align_corners=False)
    y, x = (torch.linspace(-1, 1, size, device=rgb.device) for size in (height, width))
    falloff = 1 - VIGNETTING * strength * draw[0].view(-1, 1, 1) * (y[:, None] ** 2 + x**2) / 2
    gains = torch.exp(WHITE_BALANCE * signed[1:4] + EXPOSURE * signed[4]).t().view(frames, 3, 1, 1)
    lit = (rgb * (gains * (torch.exp(log_light) * falloff.unsqueeze(1)))).clamp_(0, 1)
    grey = (lit * _to_device(torch.tensor(LUMA), rgb.device).view(3, 1, 1)).sum(dim=1, keepdim=True)
    lit = lit.lerp(grey, DESATURATION * strength * draw[5].view(-1, 1, 1, 1) ** 2)
    curve = lit * lit * (3 - 2 * lit)
    toned = lit.lerp(curve, S_CURVE * signed[6].view(-1, 1, 1, 1)).clamp_(0, 1)
    return toned.pow_(torch.exp(TONE * signed[7]).view(-1, 1, 1, 1))


def jitter_sharpness_and_noise(rgb: Tensor, texture: float, draws: RandomDraws) -> Tensor:
    """Random sharpness and noise per frame; rgb float32 [B,3,H,W] in 0..1, texture as for augment()."""
    draw = texture * _to_device(draws.uniform(2).view(2, -1, 1, 1, 1), rgb.device)
    blurred = F.pad(rgb, (BLUR_PASSES // 2,) * 4, mode="replicate")
    for axis in (2, 3):
        for _ in range(BLUR_PASSES):
            length = blurred.shape[axis] - 1
            blurred = blurred.narrow(axis, 0, length) + blurred.narrow(axis, 1, length)
    changed = rgb.lerp(blurred.div_(4**BLUR_PASSES), SHARPNESS * (texture - 2 * draw[0]))
    return changed.addcmul_(NOISE * draw[1], draws.normal(rgb)).clamp_(0, 1)


def _resample_rgb(rgb: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """Resample the window of frames [B,3,h,w] to [B,3,height,width].

    Equals grid_sample(padding_mode="border", align_corners=False) to SAMPLES_PER_AXIS times the size, followed by
    avg_pool2d(SAMPLES_PER_AXIS). An axis-aligned window is separable, so rows come first, then columns. Frames in
    channels_last, as the feed provides them, are not copied.
    """
    columns, rows = _sample_positions(window, SAMPLES_PER_AXIS * height, SAMPLES_PER_AXIS * width)
    frames, _, full_height, full_width = rgb.shape
    lines = _resample_lines(rgb.permute(0, 2, 3, 1).reshape(frames, full_height, -1), rows)
    lines = lines.view(frames, height, full_width, -1).permute(0, 2, 3, 1).reshape(frames, full_width, -1)
    return _resample_lines(lines, columns).view(frames, width, -1, height).permute(0, 2, 3, 1)


def _resample_lines(lines: Tensor, positions: Tensor) -> Tensor:
    """Resample lines [B,L,C] to [B,N,C]; each is the mean of SAMPLES_PER_AXIS linear interpolations.

    Equals grid_sample() along one axis (half-pixel centres, border padding), written with embedding_bag(), which reads
    whole lines. positions: [B,SAMPLES_PER_AXIS*N], -1..1 from the outer edge of the first line to that of the last.
    """
    frames, count, _ = lines.shape
    # border padding for the half line beyond the outermost centres
    position = ((positions * count + count - 1) / 2).clamp(0, count - 1).view(frames, -1, SAMPLES_PER_AXIS)
    lower = position.floor().clamp(max=count - 2)
    weight = position - lower
    index = lower.long() + count * torch.arange(frames, device=lines.device).view(-1, 1, 1)
    indices, weights = torch.cat([index, index + 1], dim=-1), torch.cat([1 - weight, weight], dim=-1) / SAMPLES_PER_AXIS
    bags = (indices.flatten(0, 1), lines.flatten(0, 1))
    resampled = F.embedding_bag(*bags, per_sample_weights=weights.flatten(0, 1), mode="sum")
    return resampled.view(frames, -1, lines.shape[-1])


def _nearest_indices(columns: Tensor, rows: Tensor, height: int, width: int) -> Tensor:
    """Flat index in a frame [height,width] of the pixel nearest to each position, [B,H,W]."""

    def nearest_index(positions: Tensor, size: int) -> Tensor:
        return ((positions * size + size - 1) / 2).round().long().clamp(0, size - 1)

    return nearest_index(rows, height).unsqueeze(2) * width + nearest_index(columns, width).unsqueeze(1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Values of maps [B,h,w] or [B,1,h,w] at the indices of _nearest_indices(): [B,H,W] or [B,1,H,W]."""
    shape = (*values.shape[:-2], *index.shape[1:])
    if not any(values.stride()[-2:]):  # one value for the whole frame
        return values[..., :1, :1].expand(shape)
    return values.flatten(1).gather(1, index.flatten(1)).view(shape)
