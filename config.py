"""Settings: classes, cameras, the recipe of a student, and the paths of a run.

Every script reads its settings in the same order: the defaults below, environment variables, the data's own files
(camera.json, manifest.jsonl), flags. Later ones win. The cluster's settings are in cluster/settings.sh.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cli import UserError, cpu_count, flag, fraction, non_negative_int, positive_float, positive_int

# Set to True to train on the robot's own data in $SCRATCH/corridor_teacher_data.
# The environment variable USE_CORRIDOR_DATA=1 and the flag --use-corridor-data do the same.
USE_CORRIDOR_DATA = False

CLASS_NAMES = ("floor", "wall", "person", "furniture", "glass", "other")
IGNORE = 255  # label of pixels that are excluded from the loss and the metrics
CLASS_COLOURS = (  # RGB, one per class, for visualisation
    (128, 64, 0),
    (170, 170, 190),
    (230, 40, 60),
    (250, 170, 30),
    (60, 200, 230),
    (90, 120, 70),
)


# Maps a detector's COCO classes to the student's. Classes that are not listed become `other`, so that the geometric
# rules can't label a dog or a backpack as floor. The criterion is that of dataset/label_remapper.py: furniture is what
# people sit at, lie on, store things in or work at, or what is large and built in. Objects that stand on furniture
# (television, microwave, toaster, potted plant) and movable ones (suitcase) are `other`.
DETECTOR_CLASSES = {
    "person": "person",
    "bench": "furniture",
    "chair": "furniture",
    "couch": "furniture",
    "bed": "furniture",
    "dining table": "furniture",  # COCO uses it for desks, too
    "toilet": "furniture",  # built in
    "oven": "furniture",  # built in, unlike a microwave
    "sink": "furniture",  # including the cabinet below
    "refrigerator": "furniture",
}


MIN_FOV, MAX_FOV = 10.0, 170.0  # degrees, horizontal and vertical; indoor cameras lie between
MAX_PIXEL_ASPECT = 1.25  # of fx / fy: cameras have square pixels, and images are cropped, never squeezed


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels, and the image size that they belong to."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def centred(cls, fx: float, fy: float, width: int, height: int) -> "Intrinsics":
        """A camera with its principal point at the image centre."""
        return cls(fx, fy, (width - 1) / 2, (height - 1) / 2, width, height)

    @property
    def problem(self) -> str | None:
        """Why these intrinsics can't be right, with the likely cause; None if they are plausible."""
        lengths = f"fx {self.fx:g} and fy {self.fy:g} for an image of {self.width}x{self.height} pixels"
        for focal, size in ((self.fx, self.width), (self.fy, self.height)):
            view = math.degrees(2 * math.atan(size / 2 / focal))
            if not MIN_FOV <= view <= MAX_FOV:
                cause = "are they for a different resolution, or in a different unit?"
                if 0.2 < focal < 5:
                    cause = "they look normalised by the image size: give pixels"
                elif focal < 0.2:
                    cause = "they look like metres: give pixels"
                return (
                    f"{lengths} mean a field of view of {view:.3g} degrees, outside {MIN_FOV:g} to {MAX_FOV:g}; {cause}"
                )
        if not 1 / MAX_PIXEL_ASPECT <= self.fx / self.fy <= MAX_PIXEL_ASPECT:
            return f"{lengths} differ by a factor above {MAX_PIXEL_ASPECT:g}: was the image squeezed, or a digit lost?"
        # values below 1 would lie in the first row or column: they are normalised by the image size
        if not (1 <= self.cx < self.width and 1 <= self.cy < self.height):
            cause = "it looks normalised: give pixels" if 0 < self.cx < 1 else "is it for a different resolution?"
            return (
                f"the principal point {self.cx:g}, {self.cy:g} lies outside the image of {self.width}x{self.height} "
                f"pixels; {cause}"
            )
        return None

    @property
    def focal(self) -> float:
        """Mean focal length in pixels, (fx + fy) / 2."""
        return (self.fx + self.fy) / 2

    def resized(self, width: int, height: int) -> "Intrinsics":
        """The camera after resizing the image to width x height pixels (half-pixel centres)."""
        x, y = width / self.width, height / self.height
        cx, cy = (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5
        return Intrinsics(self.fx * x, self.fy * y, cx, cy, width, height)

    def cropped(self, left: int, top: int, width: int, height: int) -> "Intrinsics":
        """The camera after cropping the image to [top:top+height, left:left+width]."""
        return Intrinsics(self.fx, self.fy, self.cx - left, self.cy - top, width, height)

    def with_focal_scale(self, factor: float) -> "Intrinsics":
        """The camera with `factor` times the focal length."""
        return replace(self, fx=self.fx * factor, fy=self.fy * factor)


# Colour camera of NYU Depth V2, from the dataset's toolbox (camera_params.m).
NYU_INTRINSICS = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362, 640, 480)
NYU_SOURCE = "NYU Depth V2, labelled set"  # `what` in source.json for the original NYU frames

NETWORK_WIDTH, NETWORK_HEIGHT = 320, 240

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"  # students that come with the code
INCLUDED_STUDENT = "rooms"  # trained on rendered rooms alone


def student_path(text: str) -> Path:
    """Argparse type: the path of a student, or the name of one in weights/, such as 'rooms'."""
    included = WEIGHTS_FOLDER / f"{text}.safetensors"
    return included if text.isidentifier() and included.is_file() else Path(text)


def _env_path(variable: str, default: str | Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def _env_flag(variable: str, default: bool) -> bool:
    text = os.environ.get(variable, "").strip().lower()
    if text not in ("", "0", "1", "true", "false", "yes", "no"):
        raise UserError(f"environment variable {variable}={text}: use 1 or 0")
    return default if not text else text in ("1", "true", "yes")


def _default_data_root() -> Path:
    return _env_path("DATA_ROOT", os.environ.get("SCRATCH") or "data")


def _scratch_path(name: str) -> Path:
    return Path(os.environ.get("SCRATCH") or ".") / name


@dataclass(frozen=True)
class Recipe:
    """Everything that changes a student's weights or the meaning of its outputs.

    Checkpoints store the recipe; evaluation, prediction and export read it from there. Fields made with flag() are
    flags of train.py.
    """

    # network input and camera
    width: int = NETWORK_WIDTH
    height: int = NETWORK_HEIGHT
    # Depth targets are rescaled to this focal length (pixels at the network's input size): NYU's at 320 wide.
    reference_focal: float = NYU_INTRINSICS.resized(NETWORK_WIDTH, NETWORK_HEIGHT).focal
    min_depth: float = 0.1  # metres; depth outside [min_depth, max_depth] is masked in loss and metrics
    max_depth: float = 10.0
    # Range of the depth output in metres at the reference focal length: the range above for focal lengths of 0.4 to 2.5
    # times the reference. Training widens it if the data needs more, see trainer.start.with_output_range().
    output_range: tuple[float, float] = (0.1 / 2.5, 10.0 / 0.4)

    # student
    encoder: str = "efficientvit_b1.r224_in1k"
    neck_channels: int = 48
    decoder_channels: int = 32  # input channels of each decoder's head

    # loss
    confidence_threshold: float = 0.5  # tau: the target is the sensor's depth where confidence >= tau, else DA3's
    depth_weight: float = 1.0
    segmentation_weight: float = 0.5
    dice_weight: float = 0.5  # Dice loss, added to the cross-entropy
    smoothness_weight: float = 0.02
    class_balance: float = 0.5  # class weights are proportional to class frequency ** -class_balance

    # schedule
    epochs: int = flag(30, type=positive_int)
    batch_size: int = flag(16, "frames per step, over all processes", type=positive_int)
    # Less memory, same gradient. Exception: until its running statistics are frozen, batch norm normalises each
    # micro-batch by that micro-batch's own statistics.
    accumulation_steps: int = flag(1, "micro-batches per batch, to save memory", type=positive_int)
    lr: float = flag(3e-3, "peak learning rate", type=positive_float)
    pretrained_encoder_lr_factor: float = 0.3  # multiplies lr for a pretrained encoder
    weight_decay: float = 1e-2
    warmup_fraction: float = 0.1
    gradient_clip: float = 1.0
    ema_decay: float = 0.998  # maximum; it grows during training and the log prints it, see trainer.checkpoint
    # Fraction of the steps, at the end, with batch norm's running statistics frozen, so that the weights adapt to the
    # statistics used at inference. With small batches, depth is several per cent too near otherwise.
    freeze_bn_fraction: float = 0.3
    seed: int = flag(0, type=non_negative_int)

    # Augmentation: the focal length is multiplied by a random factor in this range. With a narrow range the student
    # confuses the lens with the size of the room; a wide range takes longer to reach the same accuracy. Factors below 1
    # make some steps train on images smaller than the network's input.
    zoom: tuple[float, float] = flag(
        (0.8, 1.4),
        "range of focal lengths to simulate by crops and smaller images, as factors of the data's own, 0.2 or more; if "
        "the robot has a different camera, data from several cameras works better",
        type=positive_float,
        nargs=2,
        metavar=("LOW", "HIGH"),
    )
    texture: float = flag(
        1.0,
        "strength of blur and noise augmentation, 0 (none) to 1; use 0 for short training runs",
        type=fraction,
    )
    camera_jitter: float = flag(
        0.0,
        "strength of random light, exposure, white balance, tone curve and vignetting, 0 (none) to 1; for training on "
        "rendered images",
        type=fraction,
    )
    cache_scale: float = flag(
        2.0,
        "size of the packed training frames as a multiple of the input size; above 1, zooms stay sharp",
        type=positive_float,
    )


# For checkpoints of older revisions: current name of a setting -> function that derives it from the stored settings.
LEGACY_SETTINGS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "zoom": lambda settings: (settings["zoom_min"], settings["zoom_max"]),
    "output_range": lambda settings: (0.05, 20.0),
    "decoder_channels": lambda settings: 32,
    "camera_jitter": lambda settings: 0.0,
    "freeze_bn_fraction": lambda settings: settings["frozen_statistics"],
    "pretrained_encoder_lr_factor": lambda settings: settings["pretrained_encoder_lr"],
}


def parse_recipe(settings: Mapping[str, Any], where: str) -> Recipe:
    """Build the recipe from a checkpoint's settings, of this or an older revision.

    Args:
        settings: {name: plain value}; unknown names are ignored.
        where: the checkpoint's name, for error messages.

    Raises UserError if a setting is missing or has the wrong type.
    """
    values: dict[str, Any] = {}
    for setting in fields(Recipe):
        try:
            known = setting.name in settings or setting.name not in LEGACY_SETTINGS
            value = settings[setting.name] if known else LEGACY_SETTINGS[setting.name](settings)
        except KeyError as missing:
            raise UserError(f"{where} was written by a different version of train.py: no setting {missing}") from None
        values[setting.name] = value = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, (int, float) if setting.type is float else type(setting.default)):
            raise UserError(f"{where}: setting {setting.name} is {value!r}, which has the wrong type")
    return Recipe(**values)


@dataclass(frozen=True)
class Runtime:
    """Paths and execution settings of a run, which don't change the student.

    Runtime() takes its values from defaults and environment variables. Paths are below $SCRATCH on the cluster, below
    the current folder elsewhere. Fields made with flag() are flags of the scripts that use them.
    """

    data_root: Path = flag(_default_data_root, "folder that contains the data folders", type=Path)
    checkpoint_dir: Path = flag(lambda: _env_path("CHECKPOINT_DIR", _scratch_path("checkpoints")), type=Path)
    log_dir: Path = flag(lambda: _env_path("LOG_DIR", _scratch_path("runs")), type=Path)
    engine_dir: Path = flag(lambda: _env_path("ENGINE_DIR", "engines"), type=Path)
    weights_dir: Path = field(default_factory=lambda: _env_path("WEIGHTS_DIR", _scratch_path("model_weights")))
    use_corridor_data: bool = flag(
        lambda: _env_flag("USE_CORRIDOR_DATA", USE_CORRIDOR_DATA),
        "train on corridor_teacher_data in the data root",
        action="store_true",
    )
    allow_links_to: tuple[Path, ...] = flag(
        (),
        "also accept links to data below this folder; may be repeated (default: links must stay inside the manifest's "
        "folder)",
        type=Path,
        action="append",
        metavar="DIR",
    )
    cache_dir: Path | None = flag(None, "folder for packed frames (default: .cache beside the manifest)", type=Path)
    num_workers: int = flag(cpu_count, "threads that pack frames", type=non_negative_int)
    device: str = flag("auto", "cpu, cuda, cuda:N, or auto (a GPU if there is one)")
    compile: bool = flag(False, "run the student through torch.compile; pays off on a GPU", action="store_true")

    @property
    def teacher_data_dir(self) -> Path:
        """The data folder that training reads: data_root if it holds a manifest, else the dataset's folder in it."""
        if (self.data_root / "manifest.jsonl").is_file():
            return self.data_root
        return self.data_root / ("corridor_teacher_data" if self.use_corridor_data else "nyu_teacher_data")
