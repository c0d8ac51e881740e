"""The student: EfficientViT-B1 encoder, one shared pyramid neck, two lightweight decoders.

Input: RGB float32 [B,3,H,W] in 0..1 (ImageNet normalisation is part of the model). Outputs at the input's size:

    depth  float32 [B,1,H,W], metres at the reference focal length, within the output range
    seg    float32 [B,6,H,W], class logits

Depth in metres for a camera with focal length f is depth * f / f_ref (f and f_ref in pixels at the network's input
size): the student never sees intrinsics, and an identical image taken with a longer focal length shows a scene that is
farther away. This is the label transformation of Metric3D (Yin et al., ICCV 2023, arXiv:2307.10984, section 3.2).
"""

import math
import pickle
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_DEPTH = 2.0  # metres at the reference focal length; an untrained student predicts about this
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution of odd kernel size with 'same' padding, then batch norm."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def separable_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Depthwise then pointwise convolution, each with batch norm and ReLU, which runtimes fold into the convolution."""
    return nn.Sequential(
        *conv_bn(in_channels, in_channels, kernel, groups=in_channels),
        nn.ReLU(),
        *conv_bn(in_channels, out_channels),
        nn.ReLU(),
    )


def resize_to(features: Tensor, size: torch.Size) -> Tensor:
    """Bilinear resize of [B,C,h,w] to [B,C,*size] with half-pixel centres (align_corners=False)."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class Neck(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017, arXiv:1612.03144): each level adds the upsampled coarser level.

    Takes the encoder's feature maps (strides 4, 8, 16, 32) and returns the finest level, [B,channels,H/4,W/4].
    """

    def __init__(self, encoder_channels: list[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Sequential(*conv_bn(c, channels)) for c in encoder_channels)
        self.fuse = nn.ModuleList(separable_conv(channels, channels, 5) for _ in encoder_channels[:-1])

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Merge the maps, ordered from fine to coarse, into the finest level."""
        merged = self.lateral[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            lateral = self.lateral[level](maps[level])
            merged = self.fuse[level](lateral + resize_to(merged, lateral.shape[-2:]))
        return merged


class Decoder(nn.Module):
    """Decodes features [B,in_channels,H/4,W/4] to a map [B,out_channels,H/2,W/2]; the caller upsamples it to full size.

    All convolutions run at a quarter of the image's resolution. The head predicts four pixels from each pixel of the
    features, at a fraction of the cost of a convolution at half the resolution. It is a sub-pixel convolution (Shi et
    al., CVPR 2016, arXiv:1609.05158), written as a transposed convolution to avoid the pixel shuffle, and is
    initialised as in Aitken et al. (arXiv:1707.02937).

    The head always runs in float32. bfloat16 would quantise depth in steps of 18 mm at 2 to 4 m and 96 mm at 8 to 12 m,
    and no later cast could undo that.
    """

    def __init__(self, in_channels: int, head_channels: int, out_channels: int):
        super().__init__()
        self.refine = separable_conv(in_channels, head_channels, 5)
        self.head = nn.ConvTranspose2d(head_channels, out_channels, 2, stride=2)
        # Initialised as a 1x1 nn.Conv2d, the same for all four pixels, to avoid checkerboard artifacts.
        initial = nn.Conv2d(head_channels, out_channels, 1)
        assert self.head.bias is not None and initial.bias is not None
        with torch.no_grad():
            self.head.weight.copy_(initial.weight.transpose(0, 1).expand_as(self.head.weight))
            self.head.bias.copy_(initial.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Decode the neck's features to twice their height and width."""
        refined = self.refine(features)
        with torch.autocast(refined.device.type, enabled=False):
            return self.head(refined.to(self.head.weight.dtype))


class Student(nn.Module):
    """Predicts depth and classes from one RGB image; see the module docstring for shapes and units.

    Args:
        encoder: name of a timm model with feature maps at strides 4 to 32.
        channels: width of the neck.
        head_channels: input channels of each decoder's head.
        classes: number of classes.
        output_range: minimum and maximum depth, metres at the reference focal length.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, encoder: str, channels: int, head_channels: int, classes: int, output_range: tuple[float, float]
    ):
        super().__init__()
        self.output_range = output_range
        timm_model: Any = timm.create_model(encoder, features_only=True, pretrained=False)
        self.encoder: nn.Module = timm_model
        self.neck = Neck(timm_model.feature_info.channels(), channels)
        self.depth_decoder = Decoder(channels, head_channels, 1)
        self.seg_decoder = Decoder(channels, head_channels, classes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("variance", torch.tensor(IMAGENET_STD).square(), persistent=False)
        for module in self.encoder.modules():
            if isinstance(module, nn.Hardswish):
                module.inplace = False  # autograd needs the input and would copy it first
        # The inverse of bounded_depth() gives the bias at which an untrained student predicts INITIAL_DEPTH.
        nearest, farthest = output_range
        position = math.log(INITIAL_DEPTH / nearest) / math.log(farthest / nearest)
        assert self.depth_decoder.head.bias is not None
        nn.init.constant_(self.depth_decoder.head.bias, math.log(position / (1 - position)))

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Map RGB, float32 [B,3,H,W] in 0..1, to depth [B,1,H,W] in metres and class logits [B,classes,H,W]."""
        # normalisation as batch norm with fixed statistics: one pass over the image
        normalised = F.batch_norm(rgb, self.mean, self.variance, eps=0.0)
        features = self.neck(self.encoder(normalised.to(next(self.encoder.parameters()).dtype)))
        # Upsample the raw outputs, not the depth: log depth keeps edges between near and far surfaces sharper.
        raw_depth = resize_to(self.depth_decoder(features), rgb.shape[-2:])
        seg = resize_to(self.seg_decoder(features), rgb.shape[-2:])
        return bounded_depth(raw_depth, self.output_range), seg


def bounded_depth(raw: Tensor, output_range: tuple[float, float]) -> Tensor:
    """Map raw outputs, float32, to depth in metres by a sigmoid in log depth; the gradient is non-zero up to ±16."""
    nearest, farthest = output_range
    return nearest * torch.exp(math.log(farthest / nearest) * torch.sigmoid(raw))


def load_timm_weights(student: Student, encoder: str, path: str) -> None:
    """Load pretrained weights of the encoder in place, from a weights file that timm publishes.

    Args:
        student: the student to load into.
        encoder: name of its encoder in timm.
        path: .safetensors file of the whole timm model; the classifier's weights are ignored.

    Raises RuntimeError or OSError if the file does not hold this model's weights.
    """
    pretrained = timm.create_model(encoder, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": path})
    student.encoder.load_state_dict(pretrained.state_dict())


def load_encoder_state(student: Student, encoder: str, path: str) -> None:
    """Load the encoder's weights in place from a state dict that torch.save wrote.

    Arguments as for load_timm_weights(). Raises OSError or RuntimeError if the file is missing, is not a state dict or
    lacks tensors of the encoder.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, pickle.UnpicklingError):
        raise RuntimeError(f"{path} is not a state dict of tensors") from None
    if not isinstance(weights, dict):
        raise RuntimeError(f"{path} is not a state dict of tensors")
    missing, _ = student.encoder.load_state_dict(weights, strict=False)  # ignores a classifier's head
    if missing:
        raise RuntimeError(f"{path} lacks {len(missing)} tensors of {encoder}, among them {missing[0]}")
