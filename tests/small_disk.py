"""Mount a small file system to test full and read-only disks; needs root."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(
    folder: Path, size: str, fill: Callable | None = None, source: Path | None = None, name: str = "", read_only=False
) -> Iterator[Path]:
    """Mount a tmpfs of `size` ('1m') and fill it with fill(source, folder / name); skips the test without root."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        if fill:
            fill(source, folder / name)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
