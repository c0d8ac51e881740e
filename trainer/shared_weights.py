"""Students to share: a .safetensors file with a student's weights and what it takes to run and fine-tune it.

It is a checkpoint without what a resume needs: weights are the moving average in half precision, running statistics in
single precision. The file's metadata holds the rest as JSON, and the hashes of the training images are a tensor.
"""

import json
from pathlib import Path
from typing import Any

from cli import UserError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dataset.files import atomic_path

SUFFIX = ".safetensors"
FORMAT = "indoor-student-shared-1"  # of the file's metadata
HASHES = "train_images"  # tensor uint8 [N,8]: content_sample() of the training images
NOTES = ("encoder_start", "camera", "teachers", "git_revision", "data_fingerprint", "history")  # kept of the notes


def write_shared_weights(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a student to share, atomically.

    Args:
        path: the file, with the suffix SUFFIX.
        checkpoint: content of a checkpoint, from trainer.checkpoint.load_student().

    Raises UserError, and writes nothing, if a weight exceeds the range of half precision.
    """
    tensors = {name: _stored(name, value) for name, value in checkpoint["ema"].items()}
    overflowing = [name for name, value in tensors.items() if not value.isfinite().all()]
    if overflowing:
        raise UserError(f"{path}: {overflowing[0]} has weights beyond half precision's 65504; nothing was written")
    notes = checkpoint.get("notes", {})
    if hashes := notes.get(HASHES):
        tensors[HASHES] = torch.tensor([list(bytes.fromhex(text)) for text in hashes], dtype=torch.uint8)
    description = {name: checkpoint[name] for name in ("config", "class_names", "reference_focal", "step")}
    description["notes"] = {name: notes[name] for name in NOTES if name in notes}
    metadata = {"format": FORMAT, "description": json.dumps(description)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    # variances may lie outside the range of half precision
    keep = "running_" in name or not value.is_floating_point()
    return (value if keep else value.half()).contiguous()


def read_shared_weights(path: Path) -> dict[str, Any]:
    """Read a student to share as the content of a checkpoint; raises UserError if it is damaged or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is not a student of this project (deployment/share_weights.py writes them)")
        content = json.loads(metadata["description"])
        hashes = tensors.pop(HASHES, None)
        if hashes is not None:
            content["notes"][HASHES] = [bytes(row).hex() for row in hashes.tolist()]
        floats = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        return content | {"format": FORMAT, "ema": floats}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable student: {str(error)[:200]}") from None
