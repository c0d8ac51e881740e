"""Checkpoints: everything an exact resume needs, written whole, loaded without running what is in the file."""

import copy
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cli import UserError
from config import CLASS_NAMES, Config
from dataset.files import atomic_path
from models.student import Student

FORMAT = "indoor-student-1"
KEYS = {"format", "model", "ema", "config", "class_names", "reference_focal", "step"}


def build_student(config: Config) -> Student:
    """The student of a configuration, with random weights."""
    return Student(config.encoder, config.neck_channels, len(CLASS_NAMES))


class MovingAverage:
    """Exponential moving average of a model's weights and batch-norm statistics (Polyak averaging)."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.model = decay, copy.deepcopy(model).eval().requires_grad_(False)
        # state_dict()'s tensors are the modules' own; to collect them in each step takes longer than the average
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self.floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take one step towards the model; early on the average is short, so that it forgets the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, current = map(list, zip(*self.floating, strict=True))
        torch._foreach_lerp_(average, current, 1 - decay)
        for count, current_count in self.counters:
            count.copy_(current_count)


def freeze_statistics(model: nn.Module) -> None:
    """Let batch norm normalise by its running statistics and leave them as they are, until the next model.train()."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; content holds at least KEYS less 'format'."""
    with atomic_path(path) as temporary:
        torch.save(content | {"format": FORMAT}, temporary)


def plain_config(config: Config) -> dict[str, Any]:
    """The configuration as plain types that load without pickling."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; raises UserError when it is missing, broken, unsafe, or not of this project."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; train.py writes one")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols, before the one line that matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds objects other than tensors and plain values; it was not loaded") from None
    except Exception as error:  # torch's reader fails in any way on a damaged file
        raise UserError(f"{path} is not a readable checkpoint: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= KEYS:
        raise UserError(f"{path} is not a checkpoint of this student (train.py writes them)")
    return content


def load_student(path: str | Path) -> tuple[Student, dict[str, Any]]:
    """The student in a checkpoint (moving average of its weights), in eval mode on the CPU, and the whole content.

    Raises UserError like load_checkpoint, and when the weights do not fit the configuration beside them.
    """
    content = load_checkpoint(path)
    if tuple(content["class_names"]) != CLASS_NAMES:
        raise UserError(f"{path} was trained on the classes {', '.join(content['class_names'])}")
    try:
        config = content["config"]
        student = Student(config["encoder"], config["neck_channels"], len(CLASS_NAMES))
        student.load_state_dict(content["ema"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds the weights of another model: {str(error)[:200]}") from None
    return student.eval(), content
