"""Print the student's feature maps, parameters and multiply-accumulates (MACs), block by block.

Reads   a checkpoint, if one is given; otherwise the student of the default configuration is built.
Writes  nothing; prints two tables.

MACs are those of convolutions and matrix products for one image; activations and resizing are not counted.
"""

from argparse import Namespace
from pathlib import Path

from cli import ArgumentParser, run

import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config import Recipe
from models.student import Student
from trainer.checkpoint import build_student, load_student


def feature_map_shapes(student: Student, height: int, width: int) -> list[list[int]]:
    """Shapes [C,h,w] of the encoder's maps for an image of the given size, finest first."""
    with torch.inference_mode():
        return [list(features.shape[1:]) for features in student.encoder(torch.zeros(1, 3, height, width))]


def named_blocks(student: Student) -> dict[str, nn.Module]:
    """Blocks of the student by dotted name: the encoder's stages, the neck and the decoders."""
    stages = {f"encoder.{name}": stage for name, stage in student.encoder.named_children()}
    return stages | {name: getattr(student, name) for name in ("encoder", "neck", "depth_decoder", "seg_decoder")}


def complexity(student: Student, height: int, width: int) -> dict[str, tuple[int, int]]:
    """{block: (parameters, MACs)} for one image of the given size; 'total' is the whole student."""
    with torch.inference_mode(), FlopCounterMode(display=False, depth=2) as counter:
        student(torch.zeros(1, 3, height, width))
    flops = {name: sum(per_operator.values()) for name, per_operator in counter.get_flop_counts().items()}
    root = type(student).__name__
    table = {
        name: (count_parameters(block), flops.get(f"{root}.{name}", 0) // 2)  # one multiply-accumulate is two FLOPs
        for name, block in named_blocks(student).items()
    }
    return table | {"total": (count_parameters(student), flops[root] // 2)}


def count_parameters(block: nn.Module) -> int:
    """Number of trainable parameters of a module."""
    return sum(parameter.numel() for parameter in block.parameters())


def parse_arguments() -> Namespace:
    """Flags of the command line."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="best.pt of train.py (default: an untrained student)")
    return parser.parse_args()


def main() -> int:
    """Run the script; returns the exit code."""
    arguments = parse_arguments()
    if arguments.checkpoint:
        student, recipe, _ = load_student(arguments.checkpoint)
    else:
        recipe = Recipe()
        student = build_student(recipe).eval()
    size = (recipe.height, recipe.width)
    maps = [
        [f"1/{recipe.width // shape[2]}", " x ".join(map(str, shape))] for shape in feature_map_shapes(student, *size)
    ]
    print(f"input 3 x {recipe.height} x {recipe.width}\n")
    print(tabulate(maps, ["encoder map", "channels x height x width"]), end="\n\n")
    rows = [[name, count / 1e6, macs / 1e6] for name, (count, macs) in complexity(student, *size).items()]
    print(tabulate(rows, ["block", "parameters (M)", "MACs (M)"], floatfmt=".3f"))
    return 0


if __name__ == "__main__":
    run(main)
