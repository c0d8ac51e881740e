"""A published indoor student and the loop that trains it, written from their description, to be compared with.

EfficientViT-B1; a 1x1 neck to 128 channels; a decoder a task with three stages of a 4x4 transposed convolution of
stride 2, the encoder's map of that size, and a 3x3 convolution (64, 32, 16 channels), each with batch norm and ReLU;
bilinear to full size; a 1x1 head; depth by ReLU. 5.31 M parameters. L1 and 0.1 times edge-aware smoothness, AdamW at
1e-3 with weight decay 1e-4, cosine by epoch, gradient clipped at 1, flips and brightness, frames decoded and changed
one by one in a DataLoader of two processes.
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

NECK, WIDTHS = 128, (64, 32, 16)
LR, WEIGHT_DECAY, SMOOTHNESS, CLIP = 1e-3, 1e-4, 0.1, 1.0
BRIGHTNESS = 0.2  # largest relative change; the description gives none
LOADER_PROCESSES = 2


class TransposedStage(nn.Module):
    """Doubles a map, joins the encoder's map of the new size, and mixes the two."""

    def __init__(self, inputs: int, skip: int, outputs: int):
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.mix = nn.Sequential(
            nn.Conv2d(outputs + skip, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Features [B,inputs,h,w] and the encoder's map [B,skip,H,W] to [B,outputs,H,W]; H and W at most 2h and 2w."""
        up = self.up(features)[..., : skip.shape[-2], : skip.shape[-1]]  # 8 rows make 16, the encoder has 15
        return self.mix(torch.cat([up, skip], dim=1))


class PublishedDecoder(nn.Module):
    """Neck [B,128,H/32,W/32] and the encoder's finer maps to [B,16,H/4,W/4]; `head` makes [B,outputs,...] of them."""

    def __init__(self, skips: list[int], outputs: int):
        super().__init__()
        inputs = (NECK, *WIDTHS)
        stages = zip(inputs, reversed(skips), WIDTHS, strict=False)
        self.stages = nn.ModuleList(TransposedStage(i, s, o) for i, s, o in stages)
        self.head = nn.Conv2d(WIDTHS[-1], outputs, 1)

    def forward(self, neck: Tensor, skips: list[Tensor]) -> Tensor:
        """The map that `head` reads; skips: the encoder's finer maps, from fine to coarse."""
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            neck = stage(neck, skip)
        return neck


class PublishedStudent(nn.Module):
    """RGB float32 [B,3,H,W] in 0..1 to depth [B,1,H,W] in metres, 0 or more, and logits [B,6,H,W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: str):
        super().__init__()
        features: Any = timm.create_model(encoder, features_only=True, pretrained=False)
        self.encoder: nn.Module = features
        channels = features.feature_info.channels()
        self.neck = nn.Conv2d(channels[-1], NECK, 1)
        self.depth = PublishedDecoder(channels[:-1], 1)
        self.seg = PublishedDecoder(channels[:-1], len(CLASS_NAMES))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """RGB to depth and class logits at its size."""
        *skips, last = self.encoder((rgb - self.mean) / self.std)
        neck = self.neck(last)

        def full_size(decoder: PublishedDecoder) -> Tensor:
            features = decoder(neck, skips)
            return decoder.head(F.interpolate(features, rgb.shape[-2:], mode="bilinear", align_corners=False))

        return F.relu(full_size(self.depth)), full_size(self.seg)


class DecodedFrames(Dataset):
    """Frames of rows, decoded, resized to the network's size and changed when asked for; (rgb, depth) tensors."""

    def __init__(self, rows: list[Row], seed: int):
        self.rows, self.random = rows, np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        size = (NETWORK_WIDTH, NETWORK_HEIGHT)
        rgb = cv2.resize(read_image(self.rows[index].rgb), size, interpolation=cv2.INTER_LINEAR)
        row = self.rows[index]
        depth = cv2.resize(read_depth(row.depth, row.depth_unit), size, interpolation=cv2.INTER_NEAREST)
        if self.random.random() < 0.5:
            rgb, depth = rgb[:, ::-1], depth[:, ::-1]
        brightness = np.float32(self.random.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
        rgb = np.clip(rgb.astype(np.float32) / 255 * brightness, 0, 1)
        return torch.from_numpy(rgb.transpose(2, 0, 1).copy()), torch.from_numpy(depth[None].copy())


def smoothness(depth: Tensor, rgb: Tensor) -> Tensor:
    """Mean gradient of depth where the image has none, over both axes."""
    total = depth.new_zeros(())
    for dim in (2, 3):
        edge = rgb.diff(dim=dim).abs().mean(dim=1, keepdim=True)
        total = total + (depth.diff(dim=dim).abs() * torch.exp(-edge)).mean()
    return total


def loader(rows: list[Row], batch_size: int, seed: int) -> DataLoader:
    """The published loop's batches, in an order that depends on the seed."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(
        DecodedFrames(rows, seed),
        batch_size,
        shuffle=True,
        drop_last=True,
        generator=order,
        num_workers=LOADER_PROCESSES,
        persistent_workers=True,
        worker_init_fn=_seed_worker,
    )


def _seed_worker(worker: int) -> None:
    torch.set_num_threads(1)
    info = torch.utils.data.get_worker_info()
    assert info is not None and isinstance(info.dataset, DecodedFrames)
    info.dataset.random = np.random.default_rng(torch.initial_seed() + worker)


class PublishedTrainer:
    """The published student with its optimizer; train_step() is one step of its loop."""

    def __init__(self, recipe: Recipe, device: torch.device, epochs: int, seed: int):
        torch.manual_seed(seed)
        self.model, self.device = PublishedStudent(recipe.encoder).to(device), device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LR, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)

    def train_step(self, rgb: Tensor, target: Tensor) -> None:
        """Depth alone teaches: rgb float32 [B,3,H,W], target float32 [B,1,H,W] metres, 0 = none."""
        rgb, target = rgb.to(self.device), target.to(self.device)
        depth, _ = self.model(rgb)
        loss = masked_mean((depth - target).abs(), target > 0) + SMOOTHNESS * smoothness(depth, rgb)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
