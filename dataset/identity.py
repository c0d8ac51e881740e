"""Fingerprints of datasets by content, since names repeat and copying changes modification times."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from cli import UserError

from dataset.files import missing_file_error
from dataset.manifest import Row
from dataset.parallel import threaded_map

BLOCK_BYTES, BLOCK_COUNT = 512, 17  # a block's size, and how many are read, evenly spaced over the file
FINGERPRINT_VERSION = "2:"  # prefix; version 1 had no prefix and hashed modification times
READ_THREADS = 8


def content_sample(path: Path) -> str:
    """Hash of a file's size and BLOCK_COUNT blocks of it, 16 hex digits; raises UserError if it can't be read."""
    try:
        status = path.stat()
        return _sample(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


@cache
def _sample(path: Path, size: int, time: int) -> str:
    """The hash; the modification time is only a cache key within this process."""
    digest, last = hashlib.sha256(str(size).encode()), max(size - BLOCK_BYTES, 0)
    with open(path, "rb", buffering=0) as file:
        for block in range(BLOCK_COUNT):
            digest.update(os.pread(file.fileno(), BLOCK_BYTES, round(block * last / (BLOCK_COUNT - 1))))
    return digest.hexdigest()[:16]


def describe_row(row: Row) -> str:
    """A row's stem, split, camera and scale, and content_sample() of its files; UserError if a file is missing."""
    unit = f"|{row.depth_unit.name}" if row.depth_unit else ""  # keeps the fingerprints of rows without a unit
    text = f"{row.stem}|{row.split}|{row.intrinsics}|{row.da3_scale}{unit}"
    for name, file in row.files().items():
        if not file.is_file():
            raise UserError(f"frame {row.stem}: {missing_file_error(file)}")
        text += f"|{name}:{content_sample(file)}"
    return text


def describe_rows(rows: Sequence[Row]) -> list[str]:
    """describe_row() of each row, in threads, since cluster file systems are slow on many small files."""
    return list(threaded_map(describe_row, rows, READ_THREADS))


def fingerprint(rows: Sequence[Row]) -> str:
    """Fingerprint of rows, unchanged by copying, moving or touching files. Raises UserError if a file is missing."""
    return fingerprint_descriptions(describe_rows(rows))


def fingerprint_descriptions(described: Iterable[str]) -> str:
    """Fingerprint of rows from their describe_rows()."""
    digest = hashlib.sha256()
    for text in described:
        digest.update(text.encode())
    return FINGERPRINT_VERSION + digest.hexdigest()
