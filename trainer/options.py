"""The flags of train.py and pack.py, and the recipe and the runtime that they and config.py's defaults make."""

from argparse import Namespace
from pathlib import Path

from cli import ArgumentParser, UserError, add_flags, flag_values, positive_int

from config import Recipe, Runtime
from trainer.augment import SHORTEST_LENS


def parse_arguments(description: str) -> tuple[Namespace, Recipe, Runtime]:
    """The command line's flags, and all settings of the run.

    Args:
        description: the script's text, for --help.

    Raises UserError when flags contradict each other.
    """
    arguments = _parser(description).parse_args()
    recipe, runtime = Recipe(**flag_values(arguments, Recipe)), Runtime(**flag_values(arguments, Runtime))
    low, high = recipe.zoom
    if low > high:
        raise UserError("--zoom LOW HIGH: the first is the smaller one")
    if low < SHORTEST_LENS:
        raise UserError(f"--zoom LOW HIGH: lenses shorter than {SHORTEST_LENS} leave nothing of an image")
    if arguments.init and arguments.encoder_weights:
        raise UserError("--init brings the encoder's weights, too: leave --encoder-weights out")
    return arguments, recipe, runtime


def _parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description)
    runtime = Runtime()
    parser.add_argument("--manifest", type=Path, help="manifest.jsonl to train on (default: the one of --data-root)")
    paths = ("data_root", "allow_links_to", "use_corridor_data", "cache_dir", "checkpoint_dir", "log_dir")
    add_flags(parser, runtime, *paths)
    add_flags(parser, Recipe())
    add_flags(parser, runtime, "num_workers", "device", "compile")
    parser.add_argument("--data-limit", type=positive_int, help="maximum number of frames to train and to validate on")
    parser.add_argument("--resume", nargs="?", const="auto", help="a checkpoint, or auto: last.pt if there is one")
    parser.add_argument(
        "--encoder-weights",
        help="imagenet: fail if they are unavailable; auto (default): fall back to random; none: random; or a file",
    )
    parser.add_argument(
        "--init", type=Path, help="start from the student of this checkpoint, pretrained on rendered rooms, say"
    )
    parser.add_argument("--require-data", action="store_true", help="fail rather than train on rendered rooms")
    return parser
