"""Compiling a student that trains on images of several sizes."""

from collections.abc import Callable

import torch
from torch import nn


def compile_for_sizes(model: nn.Module, sizes: int, backend: str | Callable = "inductor") -> None:
    """Compile a model in place, so that its checkpoints' names stay, with a graph for each image size.

    A graph for all sizes makes Inductor of PyTorch 2.14 fail. Each size has two graphs, since batch norm learns its
    statistics at first and then keeps them. Past its limit of graphs, 8 by default, Dynamo would run the model
    uncompiled without a word.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * sizes)
    model.compile(dynamic=False, backend=backend)
