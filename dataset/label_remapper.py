"""Map the 894 class names of NYU Depth V2 to the student's six classes.

The mapping is `nyu_classes.csv` in this folder, one row per name; edit a row to change a class. Id 0 (unlabelled)
becomes 255 = ignore.

The robot's teacher, which consists of geometric rules (planes, holes in the time-of-flight depth) and a detector, must
be able to produce the same classes. Therefore floor is the drivable surface; wall is any large vertical plane; glass is
what is transparent or reflective and breaks the sensor's depth; furniture stands on the floor or is built in, and
people sit at it, lie on it, store things in it or work at it; other is the rest. Ambiguous cases:

floor      Includes rug and floor mat. A rolled rug or carpet and a yoga mat (usually rolled up) are obstacles: other,
           since a false floor is the dangerous error.
ceiling    other: neither drivable nor a vertical obstacle. Labelling it wall would blur the border that geometry finds
           most reliably. Includes lights, fans, ducts and vents on the ceiling.
door       wall, including frame, knob and lock: a closed door is a vertical plane. `door way` is other: it usually
           means the opening, which must not be learned as wall. Its arch is wall.
curtain    wall, as are blinds, shower curtain, door curtain and window cover: opaque vertical surfaces with good depth.
flat on    wall: picture, map, sign, plaque, calendar, certificate, boards, projector screen, switches and outlets lie
a wall     within centimetres of the plane, where geometry can't separate them. Objects that protrude (clock, wreath,
           fire extinguisher, dispensers, hooks, rods, shower fittings) or often stand on a desk (photo) are other.
structure  wall: column, pillar, chimney, fireplace and mantel, floor trim, room divider.
glass      Window including frame and bars (annotators include them), pane, mirror, fish tank, and all names with
           `reflection`, whose surface is a mirror or pane. `glass` (id 612) is a pane; NYU-40 assigns it to structure.
           Drinking glasses, glass dishes and their racks are too small to affect the sensor: other. A display case is
           mostly body and shelves: furniture.
appliances furniture if large and free-standing or built in (refrigerator, dishwasher, washer, dryer, stove, range hood,
           radiator, water heater, furnace, water cooler). Appliances on a counter (microwave, toaster oven, water
           dispenser) and window air conditioners are other.
sanitary   furniture: sink, bathtub, toilet, shower base and water fountain are fixed obstacles, and detectors know two
           of them. A faucet, burner, handle or drawer knob has the class of the object it is attached to.
bedding    furniture, including pillow, blanket, throw, mattress, tablecloth and table runner: they are the visible
           surface of a bed, sofa or table and inside its detector mask. Packed or rolled bedding is other.
storage    Shelves, racks, stands and chests on the floor are furniture. Loose containers (box, bin, basket, crate,
           suitcase, hamper) and counter racks (dish, spice, wine, knife) are other.
sport      Games tables, exercise machines, trampoline and slide are furniture: large and hard to move.
on wheels  Bicycle, stroller, cart and trolley are other: they move, and few detectors know them.
barriers   Stairs, railing, banister, gate and ladder are other: neither a drivable plane nor a vertical one.
toys       other, including toy chair, toy sofa and doll house; a shelf, rack or chest for toys is furniture.
beings     `person` and `leg of a girl` are person; dolls, masks, sculptures and animals, including their beds and
           cages, are other.
the rest   Television, monitor and other electronics, lamps, plants, clothes, food and small objects are other, as are
           `unknown` and names that fit two classes equally well (`bar`, `stick`).
"""

import csv
import difflib
import functools
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

try:
    from cli import ArgumentParser, UserError, run
except ModuleNotFoundError:
    print("error: the project is not installed in this Python: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np

from config import CLASS_NAMES, IGNORE

TABLE = Path(__file__).with_name("nyu_classes.csv")
N_NAMES = 894


class ClassRow(NamedTuple):
    """One NYU name: `nyu_id` 1..894, `name` as spelled in the dataset, `class_id` index in config.CLASS_NAMES."""

    nyu_id: int
    name: str
    class_id: int


@functools.cache
def load_class_table(path: Path = TABLE) -> tuple[ClassRow, ...]:
    """Read the table: 894 rows with ids 1..894, in order.

    Raises UserError if an id or name is missing or a class is unknown.
    """
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
        for expected_id, record in enumerate(csv.DictReader(file), start=1):
            if record.get("id") != str(expected_id) or not record.get("name"):
                raise UserError(f"{path}: row {expected_id} must have id {expected_id} and a name, but is {record}")
            if record.get("class") not in CLASS_NAMES:
                raise UserError(f"{path}: {record['name']}: the class must be one of {', '.join(CLASS_NAMES)}")
            rows.append(ClassRow(expected_id, record["name"], CLASS_NAMES.index(record["class"])))
    if len(rows) != N_NAMES:
        raise UserError(f"{path}: {len(rows)} rows, but NYU Depth V2 has {N_NAMES} names")
    return tuple(rows)


@functools.cache
def lookup_table() -> np.ndarray:
    """Read-only uint8 [895] that maps NYU ids to classes 0..5, and id 0 (unlabelled) to 255."""
    table = np.array([IGNORE, *(row.class_id for row in load_class_table())], dtype=np.uint8)
    table.setflags(write=False)
    return table


def remap(labels: np.ndarray) -> np.ndarray:
    """Map NYU ids to classes.

    Args:
        labels: uint16 [H,W] (or any integer type and shape), 0 = unlabelled.

    Returns uint8 of the same shape, 0..5 or 255 = ignore. Raises UserError naming the first id outside 0..894.
    """
    unknown = labels[(labels < 0) | (labels > N_NAMES)]
    if unknown.size:
        raise UserError(f"labels: id {unknown[0]} is outside NYU Depth V2's 0..{N_NAMES}; is this the labeled set?")
    return lookup_table()[labels]


def check_names(names: Sequence[str]) -> None:
    """Compare the `names` of a .mat file (names[0] has id 1) with the table.

    Raises UserError naming the first difference, or the two lengths.
    """
    for row, name in zip(load_class_table(), names, strict=False):
        if name != row.name:
            raise UserError(f"names: id {row.nyu_id} is {name!r}, but {row.name!r} in {TABLE.name}: different classes")
    if len(names) != N_NAMES:
        raise UserError(f"names: {len(names)} names, but {TABLE.name} has {N_NAMES}: different classes")


def format_name(name: str) -> str:
    """Describe an NYU name in one line; raises UserError with similar names if it does not exist."""
    rows = {row.name: row for row in load_class_table()}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"--name: NYU Depth V2 has no class {name!r}{hint}")
    row = rows[name]
    return f"{row.name} (id {row.nyu_id}) -> {row.class_id} {CLASS_NAMES[row.class_id]}"


def format_table() -> str:
    """All names, one paragraph per class."""
    paragraphs = []
    for class_id, class_name in enumerate(CLASS_NAMES):
        names = [row.name for row in load_class_table() if row.class_id == class_id]
        listing = textwrap.fill(", ".join(names), width=100, initial_indent="  ", subsequent_indent="  ")
        paragraphs.append(f"{class_id} {class_name}: {len(names)} names\n{listing}")
    return "\n\n".join(paragraphs)


def main() -> None:
    """Run the script."""
    parser = ArgumentParser(
        f"Reads dataset/{TABLE.name}; writes nothing.\n\n"
        "Prints the student's class for each of the 894 class names of NYU Depth V2.\n"
        "The docstring of this file explains the choices."
    )
    parser.add_argument("--name", help="print this NYU name only (default: the whole table)")
    args = parser.parse_args()
    print(format_name(args.name) if args.name is not None else format_table())


if __name__ == "__main__":
    run(main)
