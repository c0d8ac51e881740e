"""The one Config: paths, classes, cameras, hyperparameters and cluster settings.

Every script takes its settings in the same order: the defaults below, then environment variables, then what the
data's own files say (camera.json, manifest.jsonl), then flags. A later one wins.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from cli import UserError

# Edit to True to train on the robot's own data in $SCRATCH/corridor_teacher_data
# (the environment variable USE_CORRIDOR_DATA=1 and the flag --use-corridor-data do the same).
USE_CORRIDOR_DATA = False

CLASS_NAMES = ("floor", "wall", "person", "furniture", "glass", "other")
IGNORE = 255  # in reference labels only: the pixel teaches and scores nothing
CLASS_COLOURS = (  # RGB, one per class, for pictures
    (128, 64, 0),
    (170, 170, 190),
    (230, 40, 60),
    (250, 170, 30),
    (60, 200, 230),
    (90, 120, 70),
)


# What a detector's classes are to the student, by COCO's names; a class that is not named here is `other`, so that
# geometry can't call a dog or a backpack floor. The principle is dataset/label_remapper.py's: furniture is sat at, lain
# on, stored in, worked at, or large and built in. Hence a television, a microwave, a toaster and a potted plant, which
# stand on furniture, are other, as is a suitcase, which comes and goes.
DETECTOR_CLASSES = {
    "person": "person",
    "bench": "furniture",
    "chair": "furniture",
    "couch": "furniture",
    "bed": "furniture",
    "dining table": "furniture",  # COCO's name for desks, too
    "toilet": "furniture",  # built in
    "oven": "furniture",  # as wide as a cupboard, unlike a microwave
    "sink": "furniture",  # with the cupboard under it
    "refrigerator": "furniture",
}


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels of an image of width x height pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def focal(self) -> float:
        """Mean focal length in pixels, (fx + fy) / 2."""
        return (self.fx + self.fy) / 2

    def resized(self, width: int, height: int) -> "Intrinsics":
        """The camera of the same picture resized to width x height pixels (pixel centres at half-integers)."""
        x, y = width / self.width, height / self.height
        cx, cy = (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5
        return Intrinsics(self.fx * x, self.fy * y, cx, cy, width, height)

    def cropped(self, left: int, top: int, width: int, height: int) -> "Intrinsics":
        """The camera of the window [top:top+height, left:left+width] of the picture."""
        return Intrinsics(self.fx, self.fy, self.cx - left, self.cy - top, width, height)

    def with_lens(self, factor: float) -> "Intrinsics":
        """The camera behind a lens of `factor` times the focal length."""
        return replace(self, fx=self.fx * factor, fy=self.fy * factor)


# Colour camera of NYU Depth V2, from the data set's toolbox (camera_params.m).
NYU_INTRINSICS = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362, 640, 480)

NETWORK_WIDTH, NETWORK_HEIGHT = 320, 240


def _path(variable: str, default: str | Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def _flag(variable: str, default: bool) -> bool:
    text = os.environ.get(variable, "").strip().lower()
    if text not in ("", "0", "1", "true", "false", "yes", "no"):
        raise UserError(f"environment variable {variable}={text}: use 1 or 0")
    return default if not text else text in ("1", "true", "yes")


def _data_root() -> Path:
    return _path("DATA_ROOT", os.environ.get("SCRATCH") or "data")


def _on_scratch(name: str) -> Path:
    return Path(os.environ.get("SCRATCH") or ".") / name


@dataclass
class Config:
    """All settings of a run. Built with no argument it holds defaults and environment variables."""

    # paths: on the cluster below $SCRATCH, locally below the current folder
    data_root: Path = field(default_factory=_data_root)
    checkpoint_dir: Path = field(default_factory=lambda: _path("CHECKPOINT_DIR", _on_scratch("checkpoints")))
    log_dir: Path = field(default_factory=lambda: _path("LOG_DIR", _on_scratch("runs")))
    engine_dir: Path = field(default_factory=lambda: _path("ENGINE_DIR", "engines"))
    weights_dir: Path = field(default_factory=lambda: _path("WEIGHTS_DIR", _on_scratch("model_weights")))
    use_corridor_data: bool = field(default_factory=lambda: _flag("USE_CORRIDOR_DATA", USE_CORRIDOR_DATA))

    # the network's input and camera
    width: int = NETWORK_WIDTH
    height: int = NETWORK_HEIGHT
    # Depth is learned as seen through this focal length (pixels at the network's input size): NYU's at 320 wide.
    reference_focal: float = NYU_INTRINSICS.resized(NETWORK_WIDTH, NETWORK_HEIGHT).focal
    min_depth: float = 0.1  # metres; what is nearer or farther is neither learned nor scored
    max_depth: float = 10.0

    # student
    encoder: str = "efficientvit_b1.r224_in1k"
    neck_channels: int = 48

    # loss
    confidence_threshold: float = 0.5  # tau: the sensor teaches where its confidence reaches it, DA3 elsewhere
    depth_weight: float = 1.0
    segmentation_weight: float = 0.5
    dice_weight: float = 0.5  # overlap of the classes, beside the cross-entropy
    smoothness_weight: float = 0.02
    class_balance: float = 0.5  # a pixel's class counts as its share of all pixels to the power of minus this

    # training
    epochs: int = 30
    batch_size: int = 16  # of all processes together
    # Parts that a batch goes through the model in: less memory and the same gradient, but that batch norm, while it
    # learns its statistics, normalises each part by the part's own.
    accumulation_steps: int = 1
    lr: float = 3e-3
    pretrained_encoder_lr: float = 0.3  # share of lr for an encoder that starts from ImageNet's or other weights
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.1
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    # Share of the steps, at the end, in which batch norm's statistics stand still: the weights come to fit those that
    # the student runs with. With small batches the two differ so much that depth is several per cent too near.
    frozen_statistics: float = 0.3
    seed: int = 0
    num_workers: int = 2
    # Augmentation: focal length times a factor in this range. A student that has seen few lenses ascribes to the room
    # what the lens does; one that has seen many needs more training to be as exact with any of them. Below 1 some steps
    # train on images smaller than the network's.
    zoom_min: float = 0.8
    zoom_max: float = 1.4
    texture: float = 1.0  # augmentation: how much sharpness and noise vary, 0 to 1
    cache_scale: int = 2  # training frames are kept at this many times the network's size, so that zooms stay sharp

    # cluster
    partition: str = "l40s_public"
    gres: str = "gpu:l40s:1"
    account: str = "torch_pr_742_general"
    module: str = "anaconda3/2025.06"
    conda_env: Path = field(default_factory=lambda: _on_scratch("conda_envs/nchsb_ml"))

    @property
    def teacher_data_dir(self) -> Path:
        """The data folder that training reads: data_root itself when it holds a manifest, else the set's own folder."""
        if (self.data_root / "manifest.jsonl").is_file():
            return self.data_root
        return self.data_root / ("corridor_teacher_data" if self.use_corridor_data else "nyu_teacher_data")
