"""Logs of a run: history.csv, TensorBoard, pictures of validation frames, curves."""

import csv
import threading
from pathlib import Path

import matplotlib.figure
import numpy as np
from torch.utils.tensorboard import SummaryWriter

from dataset.disk import reraise_disk_full
from dataset.files import atomic_path, write_png
from dataset.pictures import stack

CURVES = (("loss",), ("rmse",), ("abs_rel", "delta1", "miou"), ("images_per_second",))  # one plot each


def log_epoch(run_dir: Path, history: list[dict], panels: list[np.ndarray]) -> None:
    """Rewrite the files of a run folder, and add the last epoch to TensorBoard.

    Args:
        run_dir: the run's folder.
        history: one dict of numbers per epoch, including 'epoch' and 'step'.
        panels: of validation frames, see trainer.validation.
    """
    write_history(run_dir / "history.csv", history)
    plot_history(run_dir / "curves.png", history)
    picture = stack(panels) if panels else None
    if picture is not None:
        write_png(run_dir / "validation.png", picture)
    log_to_tensorboard(run_dir, history[-1], picture)


def log_to_tensorboard(run_dir: Path, entry: dict, picture: np.ndarray | None) -> None:
    """Write an epoch's numbers and picture, uint8 [H,W,3], to TensorBoard."""
    hook = threading.excepthook
    threading.excepthook = lambda error: None  # close() raises here what the writer's thread would print
    try:
        with reraise_disk_full(run_dir / "events"), SummaryWriter(run_dir) as board:
            for name, value in entry.items():
                board.add_scalar(name, value, entry["step"])
            if picture is not None:
                board.add_image("validation", picture, entry["step"], dataformats="HWC")
    finally:
        threading.excepthook = hook


def write_history(path: Path, history: list[dict]) -> None:
    """Write the history as CSV, one line per epoch."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[-1]))  # entries of older code have fewer fields
        writer.writeheader()
        writer.writerows(history)


def plot_history(path: Path, history: list[dict]) -> None:
    """Plot the curves over the epochs as a PNG."""
    figure = matplotlib.figure.Figure(figsize=(10, 6), layout="constrained")
    epochs = [entry["epoch"] for entry in history]
    for axes, names in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        for name in names:
            axes.plot(epochs, [entry[name] for entry in history], marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
