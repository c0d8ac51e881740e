"""The flags of train.py, and the Config that they and config.py's defaults make."""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from cli import ArgumentParser, UserError, fraction, non_negative_int, positive_float, positive_int
from config import Config
from training.augment import SHORTEST_LENS


def parse_arguments(description: str) -> tuple[Namespace, Config]:
    """The command line's flags, and all settings of the run.

    Args:
        description: the script's text, for --help.

    Raises UserError when flags contradict each other.
    """
    arguments = _parser(description).parse_args()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    config = Config(**{setting.name: given[setting.name] for setting in fields(Config) if setting.name in given})
    if arguments.zoom:
        config.zoom_min, config.zoom_max = arguments.zoom
        if config.zoom_min > config.zoom_max:
            raise UserError("--zoom LOW HIGH: the first is the smaller one")
        if config.zoom_min < SHORTEST_LENS:
            raise UserError(f"--zoom LOW HIGH: lenses shorter than {SHORTEST_LENS} leave nothing of an image")
    if arguments.init and arguments.encoder_weights:
        raise UserError("--init brings the encoder's weights, too: leave --encoder-weights out")
    return arguments, config


def _parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description)
    defaults = Config()
    parser.add_argument("--manifest", type=Path, help="manifest.jsonl to train on (default: the one of --data-root)")
    parser.add_argument("--data-root", type=Path, help=f"folder of the data folders (default: {defaults.data_root})")
    parser.add_argument("--checkpoint-dir", type=Path, help=f"default: {defaults.checkpoint_dir}")
    parser.add_argument("--log-dir", type=Path, help=f"default: {defaults.log_dir}")
    parser.add_argument("--epochs", type=positive_int, help=f"default: {defaults.epochs}")
    parser.add_argument(
        "--batch-size", type=positive_int, help=f"frames a step, of all processes (default: {defaults.batch_size})"
    )
    parser.add_argument(
        "--accumulation-steps",
        type=positive_int,
        help=f"parts that a batch is worked through in, for want of memory (default: {defaults.accumulation_steps})",
    )
    parser.add_argument("--lr", type=positive_float, help=f"highest learning rate (default: {defaults.lr})")
    parser.add_argument(
        "--zoom",
        type=positive_float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="lenses to make out of the data by crops and smaller images, in focal lengths of its own, 0.2 or more; "
        f"for a robot with another camera data of several cameras serve better (default: {defaults.zoom_min} "
        f"{defaults.zoom_max})",
    )
    parser.add_argument(
        "--texture",
        type=fraction,
        help="blur and noise to be ready for, 0 (the data's own) to 1 (strong): 0 where training is too short to learn "
        f"to look through them (default: {defaults.texture})",
    )
    parser.add_argument("--seed", type=non_negative_int, help=f"default: {defaults.seed}")
    parser.add_argument("--num-workers", type=non_negative_int, help=f"threads (default: {defaults.num_workers})")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default); a GPU a process")
    parser.add_argument("--compile", action="store_true", help="compile the student first; pays off on a GPU")
    parser.add_argument("--data-limit", type=positive_int, help="train and validate on at most so many frames each")
    parser.add_argument("--resume", nargs="?", const="auto", help="a checkpoint, or auto: last.pt if there is one")
    parser.add_argument(
        "--encoder-weights",
        help="imagenet: an error when they can't be had; auto (default): a random start then; none; or a file",
    )
    parser.add_argument(
        "--init", type=Path, help="start from the student of this checkpoint, pretrained on rendered rooms, say"
    )
    parser.add_argument("--require-data", action="store_true", help="fail rather than train on rendered rooms")
    parser.add_argument(
        "--use-corridor-data", action="store_true", default=None, help="train on corridor_teacher_data of the data root"
    )
    return parser
