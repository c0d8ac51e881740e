"""Command-line flags shared by the scripts that render rooms."""

from argparse import ArgumentParser

from cli import UserError, non_negative_int, positive_float, positive_int

from config import NYU_INTRINSICS, Intrinsics
from dataset.manifest import check_camera


def add_room_flags(parser: ArgumentParser, scenes: int, frames_per_scene: int) -> None:
    """Add --scenes, --frames-per-scene, --seed, --focal-scale and --view.

    Args:
        parser: the parser to add the flags to.
        scenes: default number of rooms.
        frames_per_scene: default number of views per room.
    """
    default = "default: %(default)s"
    parser.add_argument("--scenes", type=positive_int, default=scenes, help=f"number of rooms ({default})")
    parser.add_argument(
        "--frames-per-scene", type=positive_int, default=frames_per_scene, help=f"views per room ({default})"
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help=f"random seed ({default})")
    parser.add_argument(
        "--focal-scale",
        type=positive_float,
        nargs="+",
        default=[1.0],
        metavar=("LOW", "HIGH"),
        help="factor on the camera's focal lengths; above 1 means a longer lens. With two values, each room draws a "
        "factor between them (default: 1)",
    )
    parser.add_argument(
        "--view",
        choices=("handheld", "robot", "mixed"),
        default="handheld",
        help="height of the camera: 0.9 to 1.7 m; 0.15 to 0.4 m in rooms and corridors as a robot finds them; or half "
        f"of the rooms each ({default})",
    )


def focal_scale_range(focal_scale: list[float], camera: Intrinsics = NYU_INTRINSICS) -> tuple[float, float]:
    """Return --focal-scale as (lowest, highest); raises UserError if the values are not valid for the camera."""
    low, high = focal_scale[0], focal_scale[-1]
    if len(focal_scale) > 2 or low > high:
        raise UserError("--focal-scale: give one factor, or two with the smaller one first")
    for factor in focal_scale:
        check_camera(camera.with_focal_scale(factor), f"--focal-scale {factor:g}")
    return low, high
