"""The settings: classes, cameras, the recipe of a student, and where a run finds and leaves its files.

Every script takes its settings in the same order: the defaults below, then environment variables, then what the
data's own files say (camera.json, manifest.jsonl), then flags. A later one wins. The cluster's settings are in
cluster/settings.sh.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cli import UserError, cpu_count, flag, fraction, non_negative_int, positive_float, positive_int

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


NARROWEST_VIEW, WIDEST_VIEW = 10.0, 170.0  # degrees; no camera that looks through a room does so with less or more
WIDEST_PIXEL = 1.25  # ratio of fx and fy: cameras have square pixels, and the student sees crops, never squeezed images


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels of an image of width x height pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def centred(cls, fx: float, fy: float, width: int, height: int) -> "Intrinsics":
        """The camera of those focal lengths that looks through the middle of its image."""
        return cls(fx, fy, (width - 1) / 2, (height - 1) / 2, width, height)

    @property
    def fault(self) -> str | None:
        """What says that there is no such camera, with the likely cause; None when there may be one."""
        lengths = f"fx {self.fx:g} and fy {self.fy:g} of an image of {self.width}x{self.height} pixels"
        for focal, size in ((self.fx, self.width), (self.fy, self.height)):
            view = math.degrees(2 * math.atan(size / 2 / focal))
            if not NARROWEST_VIEW <= view <= WIDEST_VIEW:
                cause = "another resolution, or another unit?"
                if 0.2 < focal < 5:
                    cause = "they seem to be divided by the image's size: give pixels"
                elif focal < 0.2:
                    cause = "they seem to be in metres: give pixels"
                return (
                    f"{lengths} are a field of view of {view:.3g} degrees, not {NARROWEST_VIEW:g} to {WIDEST_VIEW:g}; "
                    f"{cause}"
                )
        if not 1 / WIDEST_PIXEL <= self.fx / self.fy <= WIDEST_PIXEL:
            return f"{lengths} differ by more than {WIDEST_PIXEL:g} times; was the image squeezed, or a digit lost?"
        # below 1 it would be in the outermost row or column; there lie those that are divided by the image's size
        if not (1 <= self.cx < self.width and 1 <= self.cy < self.height):
            cause = "divided by the image's size: give pixels" if 0 < self.cx < 1 else "are they of another resolution?"
            return (
                f"the principal point {self.cx:g}, {self.cy:g} lies outside an image of {self.width}x{self.height} "
                f"pixels; {cause}"
            )
        return None

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
NYU_SOURCE = "NYU Depth V2, labelled set"  # what source.json of a data folder says of NYU's own frames

NETWORK_WIDTH, NETWORK_HEIGHT = 320, 240


def _path(variable: str, default: str | Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def _switch(variable: str, default: bool) -> bool:
    text = os.environ.get(variable, "").strip().lower()
    if text not in ("", "0", "1", "true", "false", "yes", "no"):
        raise UserError(f"environment variable {variable}={text}: use 1 or 0")
    return default if not text else text in ("1", "true", "yes")


def _data_root() -> Path:
    return _path("DATA_ROOT", os.environ.get("SCRATCH") or "data")


def _on_scratch(name: str) -> Path:
    return Path(os.environ.get("SCRATCH") or ".") / name


@dataclass(frozen=True)
class Recipe:
    """What makes a student the one it is: all that changes its weights, or what its outputs mean.

    A checkpoint holds its recipe, and evaluation, prediction and export take it from there. Fields made with flag() are
    flags of train.py.
    """

    # the network's input and camera
    width: int = NETWORK_WIDTH
    height: int = NETWORK_HEIGHT
    # Depth is learned as seen through this focal length (pixels at the network's input size): NYU's at 320 wide.
    reference_focal: float = NYU_INTRINSICS.resized(NETWORK_WIDTH, NETWORK_HEIGHT).focal
    min_depth: float = 0.1  # metres; what is nearer or farther is neither learned nor scored
    max_depth: float = 10.0
    # Metres at the reference focal length that the student can say: the range above through lenses of 0.4 to 2.5 times
    # that length. Training widens it where the lenses of its data ask for more, see trainer.start.with_output_range().
    output_range: tuple[float, float] = (0.1 / 2.5, 10.0 / 0.4)

    # student
    encoder: str = "efficientvit_b1.r224_in1k"
    neck_channels: int = 48
    decoder_channels: int = 32  # that a decoder's head reads

    # loss
    confidence_threshold: float = 0.5  # tau: the sensor teaches where its confidence reaches it, DA3 elsewhere
    depth_weight: float = 1.0
    segmentation_weight: float = 0.5
    dice_weight: float = 0.5  # overlap of the classes, beside the cross-entropy
    smoothness_weight: float = 0.02
    class_balance: float = 0.5  # a pixel's class counts as its share of all pixels to the power of minus this

    # schedule
    epochs: int = flag(30, type=positive_int)
    batch_size: int = flag(16, "frames a step, of all processes", type=positive_int)
    # Less memory and the same gradient, but that batch norm, while it learns its statistics, normalises each part by
    # the part's own.
    accumulation_steps: int = flag(
        1, "micro-batches a batch is split into, to save memory", type=positive_int
    )
    lr: float = flag(3e-3, "highest learning rate", type=positive_float)
    pretrained_encoder_lr: float = 0.3  # share of lr for an encoder that starts from ImageNet's or other weights
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.1
    gradient_clip: float = 1.0
    ema_decay: float = 0.998  # at the most; the log says which one a run has come to, see trainer.checkpoint
    # Share of the steps, at the end, in which batch norm's statistics stand still: the weights come to fit those that
    # the student runs with. With small batches the two differ so much that depth is several per cent too near.
    frozen_statistics: float = 0.3
    seed: int = flag(0, type=non_negative_int)

    # Augmentation: focal length times a factor in this range. A student that has seen few lenses ascribes to the room
    # what the lens does; one that has seen many needs more training to be as exact with any of them. Below 1 some steps
    # train on images smaller than the network's.
    zoom: tuple[float, float] = flag(
        (0.8, 1.4),
        "lenses to make out of the data by crops and smaller images, in focal lengths of its own, 0.2 or more; for a "
        "robot with another camera data of several cameras serve better",
        type=positive_float,
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    texture: float = flag(
        1.0,
        "blur and noise to be ready for, 0 (the data's own) to 1 (strong): 0 where training is too short to learn to "
        "look through them",
        type=fraction,
    )
    cache_scale: int = 2  # training frames are kept at this many times the network's size, so that zooms stay sharp


# Checkpoints of older revisions: today's name of a setting -> its value from the settings that such a checkpoint holds.
FORMER_SETTINGS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "zoom": lambda former: (former["zoom_min"], former["zoom_max"]),
    "output_range": lambda former: (0.05, 20.0),
    "decoder_channels": lambda former: 32,
}


def recipe_from(settings: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that a checkpoint holds, of this or an older revision.

    Args:
        settings: plain values by their names; other names than a recipe's are left out.
        where: the checkpoint, for messages.

    Raises UserError when a setting is missing or of another type.
    """
    values: dict[str, Any] = {}
    for setting in fields(Recipe):
        try:
            known = setting.name in settings or setting.name not in FORMER_SETTINGS
            value = settings[setting.name] if known else FORMER_SETTINGS[setting.name](settings)
        except KeyError as missing:
            raise UserError(f"{where} is of another version of train.py: it has no setting {missing}") from None
        values[setting.name] = value = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, (int, float) if setting.type is float else type(setting.default)):
            raise UserError(f"{where}: its setting {setting.name} is {value!r}")
    return Recipe(**values)


@dataclass(frozen=True)
class Runtime:
    """Where things lie and how a run is carried out; a student is the same for all of it.

    Built with no argument it holds defaults and environment variables. On the cluster paths are below $SCRATCH, locally
    below the current folder. Fields made with flag() are flags of the scripts that use them.
    """

    data_root: Path = flag(_data_root, "folder of the data folders", type=Path)
    checkpoint_dir: Path = flag(lambda: _path("CHECKPOINT_DIR", _on_scratch("checkpoints")), type=Path)
    log_dir: Path = flag(lambda: _path("LOG_DIR", _on_scratch("runs")), type=Path)
    engine_dir: Path = flag(lambda: _path("ENGINE_DIR", "engines"), type=Path)
    weights_dir: Path = field(default_factory=lambda: _path("WEIGHTS_DIR", _on_scratch("model_weights")))
    use_corridor_data: bool = flag(
        lambda: _switch("USE_CORRIDOR_DATA", USE_CORRIDOR_DATA),
        "train on corridor_teacher_data of the data root",
        action="store_true",
    )
    allow_links_to: tuple[Path, ...] = flag(
        (),
        "take data that is linked from somewhere below this folder, too; may be repeated (default: links may not lead "
        "out of the manifest's folder)",
        type=Path,
        action="append",
        metavar="DIR",
    )
    cache_dir: Path | None = flag(None, "folder of the packed frames (default: .cache beside the manifest)", type=Path)
    num_workers: int = flag(cpu_count, "threads that pack frames", type=non_negative_int)
    device: str = flag("auto", "cpu, cuda, cuda:N, or auto: a GPU where there is one")
    compile: bool = flag(False, "compile the student first; pays off on a GPU", action="store_true")

    @property
    def teacher_data_dir(self) -> Path:
        """The data folder that training reads: data_root itself when it holds a manifest, else the set's own folder."""
        if (self.data_root / "manifest.jsonl").is_file():
            return self.data_root
        return self.data_root / ("corridor_teacher_data" if self.use_corridor_data else "nyu_teacher_data")
