"""Which data it is: told by content, since names repeat and times of files change with every copy."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cli import UserError

import numpy as np

from dataset.manifest import OPTIONAL_MAPS, Row

BLOCK = 4096  # bytes that are read at a file's beginning, middle and end
SAMPLED_FRAMES = 1000  # whose files are read; of all others their sizes count
VERSION = "2:"  # begins a fingerprint; those of before took the files' times


def content_sample(path: Path) -> str:
    """16 hexadecimal digits over a file's size and three blocks of it; raises UserError when it can't be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, max(size // 2 - BLOCK // 2, 0), max(size - BLOCK, 0)):
                file.seek(start)
                digest.update(file.read(BLOCK))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


def fingerprint(rows: Sequence[Row]) -> str:
    """Identity of some rows: stems, splits, cameras, scales, all files' sizes, and content of SAMPLED_FRAMES of them.

    The same after a copy, a move or a touch. Raises UserError when a file is missing.
    """
    digest = hashlib.sha256()
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED_FRAMES)).round().astype(int)
    sampled = set(chosen.tolist())
    for index, row in enumerate(rows):
        digest.update(f"{row.stem}|{row.split}|{row.intrinsics}|{row.da3_scale}".encode())
        for name in ("rgb", "depth", *OPTIONAL_MAPS):
            file = getattr(row, name)
            if file is None:
                continue
            try:
                size = file.stat().st_size
            except OSError:
                raise UserError(f"frame {row.stem}: there is no file {file}") from None
            digest.update(f"|{name}:{size}:{content_sample(file) if index in sampled else ''}".encode())
    return VERSION + digest.hexdigest()
