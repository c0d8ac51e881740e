"""Checkpoints: all state of an exact resume, written atomically, loaded with weights_only=True."""

import copy
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli import UserError

import torch
from torch import nn

from config import CLASS_NAMES, Recipe, parse_recipe
from dataset.files import atomic_path
from models.student import Student
from trainer import shared_weights

FORMAT = "indoor-student-2"
READABLE_FORMATS = ("indoor-student-1", FORMAT)  # version 1 also stored paths and cluster settings
SHARED_KEYS = {"format", "ema", "config", "class_names", "reference_focal", "step"}  # also in a student to share
REQUIRED_KEYS = SHARED_KEYS | {"model"}


def build_student(recipe: Recipe) -> Student:
    """Build the student of a recipe, with random weights."""
    widths = (recipe.neck_channels, recipe.decoder_channels)
    return Student(recipe.encoder, *widths, len(CLASS_NAMES), recipe.output_range)


class MovingAverage:
    """Exponential moving average of a model's weights and running statistics (Polyak averaging).

    Args:
        model: the model to average.
        decay: maximum decay, see decay_at().
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.model = decay, copy.deepcopy(model).eval().requires_grad_(False)
        # collected once: calling state_dict() in each step would take longer than the averaging
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self.floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    def decay_at(self, step: int) -> float:
        """Decay at a step: small at first, so that the average forgets the random initial weights.

        It reaches 0.998 at step 4490; a short run ends with less.
        """
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the model's current state."""
        decay = self.decay_at(step)
        average, current = map(list, zip(*self.floating, strict=True))
        torch._foreach_lerp_(average, current, 1 - decay)
        for count, current_count in self.counters:
            count.copy_(current_count)


def freeze_batch_norm(model: nn.Module) -> None:
    """Freeze batch norm: normalise by the running statistics without updating them, until the next model.train()."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def save_checkpoint(path: str | Path, recipe: Recipe, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically; content holds the rest of REQUIRED_KEYS as plain values and tensors."""
    header = {"format": FORMAT, "config": asdict(recipe), "class_names": list(CLASS_NAMES)}
    with atomic_path(path) as temporary:
        torch.save(header | {"reference_focal": recipe.reference_focal} | content, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint, or a student to share, to the CPU.

    Raises UserError if it is missing, broken, unsafe, or of a different project.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train.py writes one")
    if path.suffix == shared_weights.SUFFIX:
        content = shared_weights.read_shared_weights(path)
        if not content.keys() >= SHARED_KEYS:
            raise UserError(f"{path} lacks {', '.join(sorted(SHARED_KEYS - content.keys()))}")
        return content
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds objects other than tensors and plain values; it was not loaded") from None
    except Exception as error:  # torch raises many types for a damaged file
        raise UserError(f"{path} is not a readable checkpoint: {str(error).partition('. ')[0]}") from None
    if (
        not isinstance(content, dict)
        or content.get("format") not in READABLE_FORMATS
        or not content.keys() >= REQUIRED_KEYS
    ):
        raise UserError(f"{path} is not a checkpoint of this student (train.py writes them)")
    return content


def recipe_from_checkpoint(content: dict[str, Any], path: str | Path) -> Recipe:
    """The recipe in a checkpoint's content; raises UserError if this revision can't read it."""
    if not isinstance(content["config"], dict):
        raise UserError(f"{path} holds no settings")
    return parse_recipe(content["config"], str(path))


def load_student(path: str | Path) -> tuple[Student, Recipe, dict[str, Any]]:
    """Load the student of a checkpoint (the moving average of its weights), its recipe, and the whole content.

    The student is in eval mode on the CPU. Raises UserError like load_checkpoint(), or if the weights do not fit the
    recipe or are not finite.
    """
    content = load_checkpoint(path)
    if tuple(content["class_names"]) != CLASS_NAMES:
        raise UserError(f"{path} was trained on the classes {', '.join(content['class_names'])}")
    recipe = recipe_from_checkpoint(content, path)
    try:
        student = build_student(recipe)
        student.load_state_dict(content["ema"])
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds the weights of a different model: {reason}") from None
    not_finite = [name for name, value in student.state_dict().items() if not value.isfinite().all()]
    if not_finite:
        raise UserError(f"{path}: {len(not_finite)} of its tensors are not finite, for example {not_finite[0]}")
    return student.eval(), recipe, content
