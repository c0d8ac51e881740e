"""The mapping of NYU's 894 class names to six classes, and NYU's official split."""

import json
import subprocess
import sys
from pathlib import Path

from cli import UserError

import numpy as np
import pytest

from config import CLASS_NAMES, IGNORE
from dataset import label_remapper

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "dataset" / "label_remapper.py"

DECIDED = {
    "floor": ["floor", "rug", "floor mat"],
    "wall": [
        "wall", "door", "garage door", "door frame", "door knob", "door way arch", "column",
        "floor trim", "picture", "whiteboard", "projector screen", "curtain", "blinds", "shower curtain",
        "light switch", "fireplace", "room divider",
    ],
    "person": ["person", "leg of a girl"],
    "furniture": [
        "cabinet", "chair", "refridgerator", "washing machine", "range hood", "radiator", "sink", "toilet", "bathtub",
        "faucet", "display case", "pillow", "blanket", "tablecloth", "drawer handle", "toys shelf", "treadmill",
        "piano", "desser",
    ],
    "glass": [
        "window", "window frame", "mirror", "glass pane", "glass", "fish tank", "doorreflection",
        "light switchreflection",
    ],
    "other": [
        "ceiling", "stairs", "railing", "door way", "glass rack", "wine glass", "glass box", "eye glasses",
        "glass ware", "fiberglass case", "television", "lamp", "plant", "microwave", "toy chair", "toy sofa",
        "doll house", "doll", "hand sculpture", "dog", "rolled carpet", "rolled up rug", "yoga mat", "desk mat",
        "shower head", "window box", "dish rack", "stroller", "books", "clock", "unknown",
    ],
}  # fmt: skip


def table_names() -> list[str]:
    return [row.name for row in label_remapper.load_class_table()]


def test_table_is_complete():
    rows = label_remapper.load_class_table()
    assert [row.nyu_id for row in rows] == list(range(1, 895))
    assert len({row.name for row in rows}) == 894
    assert {row.class_id for row in rows} == set(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_decided_names(class_name):
    classes = {row.name: CLASS_NAMES[row.class_id] for row in label_remapper.load_class_table()}
    assert {name: classes[name] for name in DECIDED[class_name]} == dict.fromkeys(DECIDED[class_name], class_name)


def test_only_three_names_are_floor():
    """A wrong name in floor would make the robot drive into it."""
    floor = [row.name for row in label_remapper.load_class_table() if CLASS_NAMES[row.class_id] == "floor"]
    assert sorted(floor) == ["floor", "floor mat", "rug"]


def test_known_ids():
    """Ids of the dataset itself, to detect a shifted table."""
    names = ("book", "floor", "wall", "chair", "window", "mirror", "person", "glass pane", "torah")
    assert [table_names().index(name) + 1 for name in names] == [1, 11, 21, 5, 59, 122, 331, 412, 894]


def test_remap():
    labels = np.array([[0, 11, 21], [331, 5, 59], [1, 894, 412]], dtype=np.uint16)
    classes = label_remapper.remap(labels)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[IGNORE, 0, 1], [2, 3, 4], [5, 5, 4]]


def test_lookup_table_is_read_only():
    table = label_remapper.lookup_table()
    assert table.dtype == np.uint8 and table.shape == (895,) and table[0] == IGNORE and IGNORE not in table[1:]
    with pytest.raises(ValueError):
        table[1] = 0


@pytest.mark.parametrize("bad", [895, 65535, -1])
def test_unknown_id_is_rejected(bad):
    with pytest.raises(UserError, match=f"id {bad} "):
        label_remapper.remap(np.array([[1, bad]], dtype=np.int32))


def test_check_names_accepts_the_table():
    label_remapper.check_names(table_names())


def test_check_names_finds_swapped_names():
    names = table_names()
    names[58], names[121] = names[121], names[58]
    with pytest.raises(UserError, match="id 59 is 'mirror', .* 'window'"):
        label_remapper.check_names(names)


@pytest.mark.parametrize("change", [lambda names: names[:-1], lambda names: [*names, "new"]])
def test_check_names_finds_missing_or_added_names(change):
    with pytest.raises(UserError, match="89[35] names"):
        label_remapper.check_names(change(table_names()))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("5,chair,furniture\n", "", "row 5 "),
        ("5,chair,furniture", "5,chair,furnitur", "chair: the class must be one of"),
        ("894,torah,other\n", "", "893 rows"),
    ],
)
def test_broken_table_is_rejected(tmp_path, old, new, message):
    text = label_remapper.TABLE.read_text()
    assert text.count(f"\n{old}") == 1
    (tmp_path / "table.csv").write_text(text.replace(f"\n{old}", f"\n{new}"))
    with pytest.raises(UserError, match=message):
        label_remapper.load_class_table(tmp_path / "table.csv")


def run_script(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *flags], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_script_prints_table_and_name(tmp_path):
    table = run_script(cwd=tmp_path)
    assert table.returncode == 0 and "0 floor: 3 names\n  floor, rug, floor mat\n" in table.stdout
    assert run_script("--name", "glass pane", cwd=tmp_path).stdout == "glass pane (id 412) -> 4 glass\n"


def test_script_rejects_unknown_name(tmp_path):
    result = run_script("--name", "refrigerator", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "refridgerator" in result.stderr


def test_official_split():
    split = json.loads((ROOT / "dataset" / "nyu_official_split.json").read_text())
    assert len(split["train"]) == 795 and len(split["test"]) == 654
    assert sorted(split["train"] + split["test"]) == list(range(1, 1450))


def test_table_saved_by_a_spreadsheet(tmp_path):
    """With a byte-order mark and Windows line endings."""
    text = label_remapper.TABLE.read_text(encoding="utf-8")
    (tmp_path / "table.csv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert label_remapper.load_class_table(tmp_path / "table.csv") == label_remapper.load_class_table()
