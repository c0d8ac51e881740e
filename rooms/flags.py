"""The flags that both scripts of rendered rooms have: which rooms, through which lens."""

from argparse import ArgumentParser

from cli import UserError, non_negative_int, positive_float, positive_int

from config import NYU_INTRINSICS
from dataset.manifest import check_camera


def add_room_flags(parser: ArgumentParser, scenes: int, frames_per_scene: int) -> None:
    """--scenes, --frames-per-scene, --seed, --focal-scale, --view.

    Args:
        parser: which gets the flags.
        scenes: the default number of rooms.
        frames_per_scene: the default number of views of each.
    """
    default = "default: %(default)s"
    parser.add_argument("--scenes", type=positive_int, default=scenes, help=f"number of rooms ({default})")
    parser.add_argument(
        "--frames-per-scene", type=positive_int, default=frames_per_scene, help=f"views of each ({default})"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help=f"of everything random ({default})")
    parser.add_argument(
        "--focal-scale",
        type=positive_float,
        nargs="+",
        default=[1.0],
        metavar=("LOW", "HIGH"),
        help="factor on NYU's focal lengths, above 1 a longer lens; with two each room gets one between them "
        "(default: 1)",
    )
    parser.add_argument(
        "--view",
        choices=("handheld", "robot", "mixed"),
        default="handheld",
        help="height of the camera: 0.9 to 1.7 m, 0.15 to 0.4 m in rooms and corridors as a robot finds them, or half "
        f"of the rooms each ({default})",
    )


def lens_range(focal_scale: list[float]) -> tuple[float, float]:
    """--focal-scale as the shortest and the longest lens; raises UserError when it is no such pair."""
    shortest, longest = focal_scale[0], focal_scale[-1]
    if len(focal_scale) > 2 or shortest > longest:
        raise UserError("--focal-scale LOW HIGH: one factor, or two and the first is the smaller one")
    for factor in focal_scale:
        check_camera(NYU_INTRINSICS.with_focal_scale(factor), f"--focal-scale {factor:g}")
    return shortest, longest
