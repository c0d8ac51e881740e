"""The report page of Table IV: one file, complete, accessible in what a test without a browser can see."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from small_run import call, copy_data, exit_code

import eval_distillation
from dataset.files import sha256_of, write_json

VOID = ("meta", "img", "br", "link", "use")  # elements without an end


class Page(HTMLParser):
    """The elements of a page, the text of each table, and whether all elements are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}  # by caption
        self.text, self._open, self._cells, self._cell = [], [], [], None
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._cells = []
        elif tag == "tr":
            self._cells.append([])
        elif tag in ("td", "th", "caption"):
            self._cell = ""

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag
        if tag in ("td", "th"):
            self._cells[-1].append(self._cell)
        elif tag == "caption":
            self.caption = self._cell
        elif tag == "table":
            self.tables.setdefault(self.caption, self._cells)
        self._cell = None if tag in ("td", "th", "caption") else self._cell

    def handle_data(self, data):
        self.text.append(data)
        if self._cell is not None:
            self._cell += data


def write(manifest, trained, output, *flags) -> tuple[str, dict]:
    """Run the script; returns the page's text and table_4.json."""
    checkpoint = trained / "checkpoints/best.pt"
    flags = ("--checkpoint", checkpoint, "--manifest", manifest, "--output-dir", output, "--device", "cpu", *flags)
    if "--engine-dir" not in flags:
        flags += ("--engine-dir", output / "no engines")
    assert call(eval_distillation.main, *flags, "--report", output / "report.html") == 0
    return (output / "report.html").read_text(encoding="utf-8"), json.loads((output / "table_4.json").read_text())


@pytest.fixture(scope="module")
def written(manifest, trained, tmp_path_factory):
    return write(manifest, trained, tmp_path_factory.mktemp("page"))


def test_page_is_one_file_without_scripts(written):
    text, _ = written
    assert len(text.encode()) < 5_000_000
    elements = Page(text).elements
    links = [value for _, given in elements for name, value in given.items() if name in ("src", "href", "xlink:href")]
    assert links and all(link.startswith(("#", "data:image/jpeg")) for link in links)
    assert not [tag for tag, _ in elements if tag in ("script", "link", "iframe")] and "@import" not in text


def test_ids_are_unique_and_targets_exist(written):
    elements = Page(written[0]).elements
    ids = Counter(given["id"] for _, given in elements if "id" in given)
    assert max(ids.values()) == 1
    targets = {given["href"][1:] for tag, given in elements if tag == "a"}
    targets |= set(re.findall(r"url\(#([^)]*)\)", written[0]))
    targets |= {name for _, given in elements for name in given.get("aria-labelledby", "").split()}
    assert targets <= set(ids)


def test_charts_have_text_a_title_and_a_description(written):
    elements = Page(written[0]).elements
    charts = [given for tag, given in elements if tag == "svg"]
    assert len(charts) >= 2 + 2 + 2 + 3  # rows, ranges, classes, training
    assert all(chart["role"] == "img" and len(chart["aria-labelledby"].split()) == 2 for chart in charts)
    counts = Counter(tag for tag, _ in elements)
    assert counts["title"] == len(charts) + 1 and counts["desc"] == len(charts)
    assert "AbsRel by range</title>" in written[0] and ">1.5-3 m</text>" in written[0]
    assert re.search(r"<desc [^>]*>AbsRel\. student: [\d.-]+ m \d", written[0])


def test_pictures_have_alternatives_and_are_320_wide(written):
    pictures = [given for tag, given in Page(written[0]).elements if tag == "img"]
    assert len(pictures) == 2 * 5  # two test frames: image, reference, teacher, student, error
    assert all(picture["alt"] and picture["width"] == "320" for picture in pictures)


def test_tables_hold_the_numbers_of_the_json(written):
    text, content = written
    tables = Page(text).tables
    depth = {row[0]: row[1:] for row in tables["Depth"]}
    for name, results in content["rows"].items():
        assert depth[name][0] == f"{results['depth']['rmse']:.3f}"
    ranges = content["slices"]["student vs reference"]["range"]
    lines = {row[0]: row for row in tables["student"]}
    for name, entry in ranges.items():
        if entry["pixels"]:
            assert lines[name][2] == f"{entry['rmse']:.3f}" and lines[name][6] == f"{entry['aligned_abs_rel']:.3f}"
    for _, *cells in tables["Reference class by predicted class"][1:]:
        assert sum(float(cell.rstrip("%")) for cell in cells) in (0, pytest.approx(100, abs=0.4))
    assert len(tables["By epoch"]) == 1 + 2


def test_page_says_what_was_measured(written, manifest, trained):
    page = Page(written[0])
    facts = {row[0]: row[1] for row in page.tables["Student and data"] if len(row) == 2}
    assert sha256_of(trained / "checkpoints/best.pt") in facts["student"] and sha256_of(manifest) in facts["data"]
    assert "reference" in facts["student: teachers"] and facts["frames"].startswith("2,")
    assert ["epochs", "2"] in page.tables["Recipe"]
    assert "REFERENCE TEACHERS" in "".join(page.text) and "In short" in "".join(page.text)


def test_same_input_gives_the_same_page(written, manifest, trained, tmp_path):
    assert write(manifest, trained, tmp_path)[0] == written[0]


def test_table_iii_is_shown_for_this_student_only(manifest, trained, tmp_path, capsys):
    engines = tmp_path / "engines"
    row = {"precision": "fp16", "runtime": "CPU", "median_ms": 12.5, "rmse": None}
    write_json(engines / "table_3.json", {"title": "Table III: here", "notice": "NOT TensorRT", "rows": [row]})
    write_json(engines / "student.json", {"checkpoint": {"sha256": "another"}})
    text, _ = write(manifest, trained, tmp_path / "other", "--engine-dir", engines)
    assert "Table III" not in text and "is another student's" in capsys.readouterr().err
    write_json(engines / "student.json", {"checkpoint": {"sha256": sha256_of(trained / "checkpoints/best.pt")}})
    text, _ = write(manifest, trained, tmp_path / "own", "--engine-dir", engines)
    assert "NOT TensorRT" in text and Page(text).tables["By precision"][1][:3] == ["fp16", "CPU", "12.500"]
    (engines / "table_3.json").write_text("[]")
    flags = ("--checkpoint", trained / "checkpoints/best.pt", "--manifest", manifest, "--output-dir", tmp_path / "bad")
    assert exit_code(eval_distillation.main, *flags, "--engine-dir", engines, "--report", tmp_path / "bad.html") == 2
    error = capsys.readouterr().err
    assert "is damaged: export and measure again" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "bad.html").exists()


def test_names_are_escaped_and_a_second_student_is_shown(manifest, trained, tmp_path):
    manifest = copy_data(manifest, tmp_path / "data")
    text = manifest.read_text().replace('"split": "test"', '"split": "test", "recording": "<b>&room"')
    manifest.write_text(text.replace('"backend": "reference"', '"backend": "<script>alert(1)</script>"'))
    other = trained / "checkpoints/last.pt"
    text, content = write(manifest, trained, tmp_path / "table", "--compare", other)
    assert "<script>" not in text and "&lt;script&gt;" in text
    page = Page(text)
    assert "Difference between the students" in "".join(page.text)
    assert "other student" in {row[0] for row in page.tables["Student and data"]}
    difference = content["differences"]["other student vs reference"]["all"]["all"]["rmse"]
    assert page.tables["other student vs reference"][1][1] == f"{difference:.3f}"
