"""Which data it is: told by content, since names repeat and modification times change with every copy."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from cli import UserError

import numpy as np

from dataset.files import no_such_file
from dataset.manifest import Row

BLOCK, BLOCKS = 512, 17  # bytes, and how many such blocks are read, evenly spaced from a file's beginning to its end
VERSION = "2:"  # prefix of a fingerprint; older ones, without it, hashed modification times


def content_sample(path: Path) -> str:
    """16 hexadecimal digits over a file's size and BLOCKS blocks of it; raises UserError when it can't be read."""
    try:
        status = path.stat()
        return _sample(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


@cache
def _sample(path: Path, size: int, time: int) -> str:
    """The sample; the time only saves reading a file again in the same process."""
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for start in np.linspace(0, max(size - BLOCK, 0), BLOCKS).round().astype(int):
            file.seek(int(start))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


def fingerprint(rows: Sequence[Row]) -> str:
    """Identity of some rows: stems, splits, cameras, scales, and the size and samples of every file.

    The same after a copy, a move or a touch. Raises UserError when a file is missing.
    """
    digest = hashlib.sha256()
    for row in rows:
        unit = f"|{row.depth_unit}" if row.depth_unit else ""  # nothing: the same as before there were units
        digest.update(f"{row.stem}|{row.split}|{row.intrinsics}|{row.da3_scale}{unit}".encode())
        for name, file in row.files().items():
            if not file.is_file():
                raise UserError(f"frame {row.stem}: {no_such_file(file)}")
            digest.update(f"|{name}:{content_sample(file)}".encode())
    return VERSION + digest.hexdigest()
