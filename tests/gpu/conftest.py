"""Fixtures of the tests that need a GPU. Each skips with a line that says what is missing."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def exact_float32(monkeypatch) -> None:
    """Switch TF32 off in convolutions; in matrix products it is off by default.

    Its ten bits of mantissa would hide other differences from a CPU.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def little_memory(gpu) -> Iterator[Callable[[int], None]]:
    """Return limit(more_bytes): cap this process's GPU memory at what it has reserved plus `more_bytes`."""

    def limit(more_bytes: int) -> None:
        torch.cuda.empty_cache()
        allowed = torch.cuda.memory_reserved() + more_bytes
        total = torch.cuda.get_device_properties(gpu).total_memory
        torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0))

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
