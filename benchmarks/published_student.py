"""Baseline for comparison: a published indoor student and its training loop, reimplemented from their description.

Model, 5.31 M parameters: EfficientViT-B1 encoder; 1x1 convolution to 128 channels as the neck; one decoder per task
with three stages of 64, 32 and 16 channels. A stage is a 4x4 transposed convolution of stride 2, concatenation with the
encoder's map of that size, and a 3x3 convolution; both convolutions have batch norm and ReLU. Then follow bilinear
upsampling to full size and a 1x1 head; depth passes through a ReLU.

Training: L1 plus 0.1 times edge-aware smoothness; AdamW with learning rate 1e-3 and weight decay 1e-4; cosine schedule
per epoch; gradients clipped at norm 1; flips and brightness. A DataLoader with two processes decodes and augments the
frames.
"""

from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from config import CLASS_NAMES, NETWORK_HEIGHT, NETWORK_WIDTH, Recipe
from dataset.files import read_image
from dataset.frames import read_depth
from dataset.manifest import Row
from models.losses import masked_mean
from models.student import IMAGENET_MEAN, IMAGENET_STD

NECK_CHANNELS, DECODER_CHANNELS = 128, (64, 32, 16)
LR, WEIGHT_DECAY, SMOOTHNESS_WEIGHT, GRADIENT_CLIP = 1e-3, 1e-4, 0.1, 1.0
BRIGHTNESS = 0.2  # maximum relative change; not given in the description
LOADER_PROCESSES = 2


class DecoderStage(nn.Module):
    """Upsample by 2, concatenate the skip connection, and convolve."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.mix = nn.Sequential(
            nn.Conv2d(out_channels + skip_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Map features [B,in,h,w] and a skip connection [B,skip,H,W], H <= 2h, W <= 2w, to [B,out,H,W]."""
        up = self.up(features)[..., : skip.shape[-2], : skip.shape[-1]]  # crop: 8 rows become 16, the skip has 15
        return self.mix(torch.cat([up, skip], dim=1))


class PublishedDecoder(nn.Module):
    """Decoder from the neck [B,128,H/32,W/32] and skip connections to [B,16,H/4,W/4]; `head` maps these to outputs."""

    def __init__(self, skip_channels: list[int], out_channels: int):
        super().__init__()
        in_channels = (NECK_CHANNELS, *DECODER_CHANNELS)
        stages = zip(in_channels, reversed(skip_channels), DECODER_CHANNELS, strict=False)
        self.stages = nn.ModuleList(DecoderStage(i, s, o) for i, s, o in stages)
        self.head = nn.Conv2d(DECODER_CHANNELS[-1], out_channels, 1)

    def forward(self, neck: Tensor, skips: list[Tensor]) -> Tensor:
        """Return the input of `head`; skips: the encoder's finer maps, from fine to coarse."""
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            neck = stage(neck, skip)
        return neck


class PublishedStudent(nn.Module):
    """Maps RGB, float32 [B,3,H,W] in 0..1, to depth [B,1,H,W] in metres, >= 0, and class logits [B,6,H,W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: str):
        super().__init__()
        features: Any = timm.create_model(encoder, features_only=True, pretrained=False)
        self.encoder: nn.Module = features
        channels = features.feature_info.channels()
        self.neck = nn.Conv2d(channels[-1], NECK_CHANNELS, 1)
        self.depth = PublishedDecoder(channels[:-1], 1)
        self.seg = PublishedDecoder(channels[:-1], len(CLASS_NAMES))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Predict depth and class logits at the size of `rgb`."""
        *skips, last = self.encoder((rgb - self.mean) / self.std)
        neck = self.neck(last)

        def full_size(decoder: PublishedDecoder) -> Tensor:
            features = decoder(neck, skips)
            return decoder.head(F.interpolate(features, rgb.shape[-2:], mode="bilinear", align_corners=False))

        return F.relu(full_size(self.depth)), full_size(self.seg)


class DecodedFrames(Dataset):
    """Dataset of (rgb, depth) tensors; decodes, resizes to the network's input size and augments on access."""

    def __init__(self, rows: list[Row], seed: int):
        self.rows, self.rng = rows, np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        size = (NETWORK_WIDTH, NETWORK_HEIGHT)
        rgb = cv2.resize(read_image(self.rows[index].rgb), size, interpolation=cv2.INTER_LINEAR)
        row = self.rows[index]
        depth = cv2.resize(read_depth(row.depth, row.depth_unit), size, interpolation=cv2.INTER_NEAREST)
        if self.rng.random() < 0.5:
            rgb, depth = rgb[:, ::-1], depth[:, ::-1]
        brightness = np.float32(self.rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
        rgb = np.clip(rgb.astype(np.float32) / 255 * brightness, 0, 1)
        return torch.from_numpy(rgb.transpose(2, 0, 1).copy()), torch.from_numpy(depth[None].copy())


def smoothness(depth: Tensor, rgb: Tensor) -> Tensor:
    """Edge-aware smoothness: mean depth gradient, weighted by exp(-image gradient), summed over both axes."""
    total = depth.new_zeros(())
    for dim in (2, 3):
        edge = rgb.diff(dim=dim).abs().mean(dim=1, keepdim=True)
        total = total + (depth.diff(dim=dim).abs() * torch.exp(-edge)).mean()
    return total


def published_loader(rows: list[Row], batch_size: int, seed: int) -> DataLoader:
    """DataLoader of the published loop, with a shuffling order that depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        DecodedFrames(rows, seed),
        batch_size,
        shuffle=True,
        drop_last=True,
        generator=generator,
        num_workers=LOADER_PROCESSES,
        persistent_workers=True,
        worker_init_fn=_seed_worker,
    )


def _seed_worker(worker: int) -> None:
    torch.set_num_threads(1)
    info = torch.utils.data.get_worker_info()
    assert info is not None and isinstance(info.dataset, DecodedFrames)
    info.dataset.rng = np.random.default_rng(torch.initial_seed() + worker)


class PublishedTrainer:
    """The published student, its optimizer and its learning-rate schedule."""

    def __init__(self, recipe: Recipe, device: torch.device, epochs: int, seed: int):
        torch.manual_seed(seed)
        self.model, self.device = PublishedStudent(recipe.encoder).to(device), device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LR, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)

    def train_step(self, rgb: Tensor, target: Tensor) -> None:
        """Train one step on depth alone: rgb float32 [B,3,H,W], target float32 [B,1,H,W] metres, 0 = none."""
        rgb, target = rgb.to(self.device), target.to(self.device)
        depth, _ = self.model(rgb)
        loss = masked_mean((depth - target).abs(), target > 0) + SMOOTHNESS_WEIGHT * smoothness(depth, rgb)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
