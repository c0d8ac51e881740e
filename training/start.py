"""What a run starts from: data, weights, and what its notes say of code and data."""

import json
import subprocess
from pathlib import Path

from cli import UserError
from config import Config
from dataset.frames import to_network_camera
from dataset.manifest import Row
from dataset.prepare_rooms import prepare_rooms
from models.student import Student, load_encoder_weights
from training.checkpoint import load_student
from training.feed import PackedFrames

RESUMED_SETTINGS = (
    *("epochs", "batch_size", "accumulation_steps", "lr", "frozen_statistics", "seed"),
    *("confidence_threshold", "depth_weight", "segmentation_weight", "dice_weight", "smoothness_weight"),
    "class_balance",
    *("encoder", "neck_channels", "reference_focal", "zoom_min", "zoom_max", "texture"),
)


def find_manifest(named: Path | None, config: Config, required: bool) -> tuple[Path, str | None]:
    """The manifest to train on, and what to tell the user when it is the rendered rooms' for want of data.

    Args:
        named: the one that the user names.
        required: whether it is an error that there is none.
    """
    if named:
        return named, None
    manifest = config.teacher_data_dir / "manifest.jsonl"
    if manifest.is_file():
        return manifest, None
    if required or config.use_corridor_data:
        raise UserError(f"there is no {manifest}: run the teachers first (README), or name one with --manifest")
    notice = (
        f"*** NO DATA: there is no {manifest}. This run trains on RENDERED ROOMS with reference labels. ***\n"
        "*** Its figures say that the code runs, nothing about real rooms. ***"
    )
    print(notice)
    return prepare_rooms(config.data_root / "rooms_teacher_data"), notice


def pack(rows: list[Row], manifest: Path, config: Config, scale: int) -> PackedFrames:
    """The rows' packed cache at `scale` times the network's size, kept beside their manifest."""
    size, focal = (config.width * scale, config.height * scale), config.reference_focal * scale
    return PackedFrames(rows, manifest.parent / ".cache", size, focal, config.num_workers)


def load_start(model: Student, config: Config, weights: str | Path) -> str:
    """Load the weights that training starts from, in place.

    Args:
        weights: a Path is another run's checkpoint, all of whose student is taken; a string is a choice of
            load_encoder_weights().

    Returns: where the weights are from. Raises UserError when they can't be had or don't fit.
    """
    return _student(model, config, weights) if isinstance(weights, Path) else _encoder(model, config, weights)


def _encoder(model: Student, config: Config, choice: str) -> str:
    try:
        start = load_encoder_weights(model, config.encoder, choice)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--encoder-weights {choice}: {error}") from None
    if start == "random" and choice == "auto":
        print("WARNING: ImageNet weights of the encoder can't be had; it starts from random weights")
    return start


def _student(model: Student, config: Config, path: Path) -> str:
    student, content = load_student(path)
    if content["reference_focal"] != config.reference_focal:
        raise UserError(f"--init {path}: its metres are those of another reference focal length")
    try:
        model.load_state_dict(student.state_dict())
    except RuntimeError:
        raise UserError(f"--init {path} is a student of another encoder or width") from None
    return f"student of {path}, whose encoder started from {content.get('notes', {}).get('encoder_start')}"


def refuse_other_settings(path: Path, trained: dict, config: Config) -> None:
    """Raise UserError when a run that was begun with the settings `trained` would end as another with those of now."""
    for name in RESUMED_SETTINGS:
        if name not in trained:
            raise UserError(f"{path} is of another version of train.py: start anew in another --checkpoint-dir")
        if trained[name] != getattr(config, name):
            raise UserError(
                f"{path} was trained with {name} {trained.get(name)}, not {getattr(config, name)}: "
                "give the same settings, or start anew in another --checkpoint-dir"
            )


def describe(rows: list[Row], config: Config) -> dict:
    """What later stages want to know of the training data: its camera when all of it has one, and its teachers."""
    size = (config.width, config.height)
    cameras = {to_network_camera(row.intrinsics, *size) if row.intrinsics else None for row in rows}
    camera = cameras.pop() if len(cameras) == 1 else None
    teachers = {json.dumps(row.made_by, sort_keys=True) for row in rows}
    return {
        "camera": vars(camera) if camera else None,
        "teachers": [json.loads(text) for text in sorted(teachers)],
        "train_stems": [row.stem for row in rows],
    }


def git_revision() -> str:
    """The commit of this code, 'unknown' outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parents[1]), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
