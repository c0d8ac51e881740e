"""Flags of train.py and pack.py; with the defaults of config.py they make the recipe and the runtime."""

import argparse
import re
from argparse import Namespace

from cli import ArgumentParser, UserError, add_flags, flag_values, positive_int

from config import NETWORK_HEIGHT, NETWORK_WIDTH, Recipe, Runtime, student_path
from trainer.augment import MIN_ZOOM
from trainer.mixture import weighted_manifest

SIDE_STEP, MIN_SIDE = 16, 64  # pixels; the student's features need whole pixels at stride 16


def parse_arguments(description: str) -> tuple[Namespace, Recipe, Runtime]:
    """Parse the flags; returns them, the recipe and the runtime.

    Args:
        description: the script's docstring, for --help.

    Raises UserError if flags contradict each other.
    """
    arguments = _parser(description).parse_args()
    width, height = arguments.input_size
    recipe = Recipe(width=width, height=height, **flag_values(arguments, Recipe))
    runtime = Runtime(**flag_values(arguments, Runtime))
    low, high = recipe.zoom
    if low > high:
        raise UserError("--zoom LOW HIGH: LOW must not exceed HIGH")
    if low < MIN_ZOOM:
        raise UserError(f"--zoom LOW HIGH: LOW must be at least {MIN_ZOOM}")
    if arguments.init and arguments.encoder_weights:
        raise UserError("--init includes the encoder's weights: drop --encoder-weights")
    return arguments, recipe, runtime


def input_size(text: str) -> tuple[int, int]:
    """Argparse type: WIDTHxHEIGHT, as (width, height)."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    width, height = map(int, match.groups()) if match else (0, 0)
    if min(width, height) < MIN_SIDE or width % SIDE_STEP or height % SIDE_STEP:
        raise argparse.ArgumentTypeError(
            f"{text} is not WIDTHxHEIGHT with multiples of {SIDE_STEP}, {MIN_SIDE} or more"
        )
    return width, height


def _parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description)
    runtime = Runtime()
    parser.add_argument(
        "--manifest",
        type=weighted_manifest,
        nargs="+",
        metavar="PATH[:WEIGHT]",
        help="manifest.jsonl to train on (default: the one of --data-root); several are mixed in the proportions of "
        "their weights",
    )
    paths = ("data_root", "allow_links_to", "use_corridor_data", "cache_dir", "checkpoint_dir", "log_dir")
    add_flags(parser, runtime, *paths)
    parser.add_argument(
        "--input-size",
        type=input_size,
        default=(NETWORK_WIDTH, NETWORK_HEIGHT),
        metavar="WIDTHxHEIGHT",
        help=f"the network's input size (default: {NETWORK_WIDTH}x{NETWORK_HEIGHT}); 368x208 sees a whole 16:9 image "
        "at the same cost",
    )
    add_flags(parser, Recipe())
    add_flags(parser, runtime, "num_workers", "device", "compile")
    parser.add_argument("--data-limit", type=positive_int, help="maximum number of frames to train and to validate on")
    parser.add_argument("--resume", nargs="?", const="auto", help="a checkpoint, or auto: last.pt if there is one")
    parser.add_argument(
        "--encoder-weights",
        help="imagenet: fail if they are unavailable; auto (default): fall back to random; none: random; or a file",
    )
    parser.add_argument(
        "--init",
        type=student_path,
        metavar="STUDENT",
        help="start from this checkpoint's student, or from one of weights/: rooms has seen rendered rooms",
    )
    parser.add_argument("--require-data", action="store_true", help="fail rather than train on rendered rooms")
    return parser
