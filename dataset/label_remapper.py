"""The 894 class names of NYU Depth V2 -> the student's six classes.

`nyu_classes.csv` beside this file holds one row a name and is the source of truth: to decide a name otherwise, edit
its row. Id 0 (unlabelled) becomes 255 and is ignored.

The principle: a mobile robot's teacher, made of geometry (planes, holes in the time-of-flight depth) and a detector,
has to be able to produce the same classes. So floor is the surface to drive on, wall is any large vertical plane,
glass is what sees through or mirrors and defeats the sensor, furniture is what stands on the floor or is built in and
is sat at, lain on, stored in or worked at, and other is the rest. Where the principle leaves a choice:

floor      Rug and floor mat are driven on. A rolled rug or carpet and a yoga mat (mostly rolled up) are obstacles:
           other, because a false floor is the dangerous mistake.
ceiling    other: neither drivable nor a vertical obstacle; wall would blur the one border that geometry knows best.
           Lights, fans, ducts and vents that hang on it go with it.
door       wall, with its frame, knob and lock: closed, it is a vertical plane. `door way` is other: it mostly names
           the opening, and a passage must not be taught as wall. Its arch is wall.
curtain    wall, like blinds, shower curtain, door curtain and window cover: an opaque vertical sheet with good depth.
flat on    wall, like picture, map, sign, plaque, calendar, certificate, boards, projector screen, switches and
a wall     outlets: within centimetres of the plane, no geometry tells them apart. What sticks out (clock, wreath,
           fire extinguisher, dispensers, hooks, rods, shower fittings) or as well stands on a desk (photo) is other.
structure  wall: column, pillar, chimney, fireplace and mantel, floor trim, room divider.
glass      Window with its frame and bars (whoever outlines a window takes them in), pane, mirror, fish tank, and all
           names with `reflection`, for that surface is a mirror or pane. `glass` (id 612) is a pane: NYU-40 files it
           under structure. Drinking glasses, glass dishes and the rack for them are too small for the sensor to show:
           other. A display case is mostly body and shelves: furniture.
appliances furniture when large and standing or built in (refrigerator, dishwasher, washer, dryer, stove, range hood,
           radiator, water heater, furnace, water cooler); what stands on a counter (microwave, toaster oven, water
           dispenser) and an air conditioner in a window is other.
sanitary   furniture: sink, bathtub, toilet, shower base, water fountain are fixed obstacles, two of them known to
           detectors. A faucet, burner, handle or drawer knob goes with the piece it is fixed to.
bedding    furniture, with pillow, blanket, throw, mattress, tablecloth and table runner: they are the visible surface
           of the bed, sofa or table and lie inside the detector's mask of it. Packed or rolled bedding is other.
storage    Shelves, racks, stands and chests that stand on the floor are furniture. Loose containers (box, bin,
           basket, crate, suitcase, hamper) and racks for a counter (dish, spice, wine, knife) are other.
sport      Games tables, exercise machines, trampoline and slide are furniture: as large and as immovable.
on wheels  Bicycle, stroller, cart, trolley are other: they come and go, and few detectors know them.
barriers   Stairs, railing, banister, gate, ladder are other: no plane to drive on, none to lean on.
toys       other, also toy chair, toy sofa and doll house; a shelf, rack or chest for toys is furniture.
beings     person is `person` and `leg of a girl`; dolls, masks, sculptures and animals, with their beds and cages,
           are other.
the rest   Television, monitor and other electronics, lamps, plants, clothes, food and small objects are other.
           `unknown` is other, too, and so is every name that fits two classes equally well (`bar`, `stick`).
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
    print("error: this Python lacks the project itself: run make setup, or bash setup_hpc.sh", file=sys.stderr)
    sys.exit(2)

import numpy as np

from config import CLASS_NAMES, IGNORE

TABLE = Path(__file__).with_name("nyu_classes.csv")
N_NAMES = 894


class ClassRow(NamedTuple):
    """One NYU name: `nyu_id` 1..894, `name` as the data set spells it, `class_id` index in config.CLASS_NAMES."""

    nyu_id: int
    name: str
    class_id: int


@functools.cache
def load_class_table(path: Path = TABLE) -> tuple[ClassRow, ...]:
    """The table in order of id: 894 rows, ids 1..894.

    Raises UserError when an edit has left the file without that shape or with an unknown class.
    """
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
        for expected_id, record in enumerate(csv.DictReader(file), start=1):
            if record.get("id") != str(expected_id) or not record.get("name"):
                raise UserError(f"{path}: row {expected_id} must have id {expected_id} and a name, not {record}")
            if record.get("class") not in CLASS_NAMES:
                raise UserError(f"{path}: {record['name']}: class is none of {', '.join(CLASS_NAMES)}")
            rows.append(ClassRow(expected_id, record["name"], CLASS_NAMES.index(record["class"])))
    if len(rows) != N_NAMES:
        raise UserError(f"{path}: {len(rows)} rows, NYU Depth V2 has {N_NAMES} names")
    return tuple(rows)


@functools.cache
def lookup_table() -> np.ndarray:
    """uint8 [895], read-only: index = NYU id, value = class 0..5; index 0 (unlabelled) = 255."""
    table = np.array([IGNORE, *(row.class_id for row in load_class_table())], dtype=np.uint8)
    table.setflags(write=False)
    return table


def remap(labels: np.ndarray) -> np.ndarray:
    """NYU ids -> classes.

    labels: uint16 [H,W] (any integer type and shape does), 0 = unlabelled.
    Returns uint8 of the same shape, 0..5, 255 = ignore. Raises UserError naming the first id outside 0..894.
    """
    unknown = labels[(labels < 0) | (labels > N_NAMES)]
    if unknown.size:
        raise UserError(f"labels: id {unknown[0]} is not one of NYU Depth V2 (0..{N_NAMES}); is this the labeled set?")
    return lookup_table()[labels]


def check_names(names: Sequence[str]) -> None:
    """Check a .mat file's own `names` (names[0] belongs to id 1) against the table.

    Raises UserError naming the first that differs, or the two lengths.
    """
    for row, name in zip(load_class_table(), names, strict=False):
        if name != row.name:
            raise UserError(f"names: id {row.nyu_id} is {name!r}, in {TABLE.name} {row.name!r}: not the same classes")
    if len(names) != N_NAMES:
        raise UserError(f"names: {len(names)} names, {TABLE.name} has {N_NAMES}: not the same classes")


def format_name(name: str) -> str:
    """One line about an NYU name; raises UserError, with the nearest spellings, when there is no such name."""
    rows = {row.name: row for row in load_class_table()}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UserError(f"--name: NYU Depth V2 has no class {name!r}{hint}")
    row = rows[name]
    return f"{row.name} (id {row.nyu_id}) -> {row.class_id} {CLASS_NAMES[row.class_id]}"


def format_table() -> str:
    """All names, one paragraph a class."""
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
        "Prints which of the student's six classes each of the 894 class names of NYU Depth V2 becomes.\n"
        "The reasons stand at the top of this file."
    )
    parser.add_argument("--name", help="print this NYU name only (default: the whole table)")
    args = parser.parse_args()
    print(format_name(args.name) if args.name is not None else format_table())


if __name__ == "__main__":
    run(main)
