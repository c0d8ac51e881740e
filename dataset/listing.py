"""Which files below a folder count, and which names are the same name."""

import heapq
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from cli import UserError

Value = TypeVar("Value")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What systems and programs leave in folders, in lower case; whatever begins with a dot is left out, too.
SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
)
MAX_SHOWN_SUFFIXES = 5  # suffixes named in one message
MAX_CACHED_LISTINGS = 256  # folders whose listings are kept at once


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data: hidden (.ipynb_checkpoints) or a system's own."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def normalize_name(name: str) -> str:
    """A name in the form that names are compared in: macOS decomposes the letters of file names, others don't (NFC)."""
    return unicodedata.normalize("NFC", name)


def normalize_stems(content: Mapping[str, Value], where: str | Path) -> dict[str, Value]:
    """What a file says of each stem, under normalize_name() stems; raises UserError naming `where` when two become one."""
    stems = {normalize_name(stem): value for stem, value in content.items()}
    if len(stems) < len(content):
        raise UserError(f"{where}: two stems are the same letters, once composed and once decomposed: remove one")
    return stems


def stem_of(relative: Path) -> str:
    """The stem of a file by its path in its folder; raises UserError when the name can't be written as text."""
    require_utf8(str(relative))
    return normalize_name(relative.with_suffix("").as_posix())


def require_utf8(name: str | Path, where: str = "") -> None:
    """Raise UserError when a name or path is no UTF-8: JSON can't hold it, and on such a path OpenCV crashes."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        before = f"{where}: " if where else ""
        raise UserError(f"{before}{ascii(str(name))} is a name that is no UTF-8: rename it") from None


def find_data_folder(images: Path) -> Path:
    """The data folder that a folder of images belongs to: the one above it.

    Of a linked folder the one above the link, where that holds more of the data, else the one above its target.
    """
    written = Path(os.path.abspath(images)).parent
    known = ("camera.json", "splits.json", "source.json", "depth")
    return written if any((written / name).exists() for name in known) else images.resolve().parent


def require_separate_output(output: Path, flag: str, *inputs: Path | None) -> None:
    """Raise UserError naming `flag` when the output lies in a folder that is read: the next run would read it, too."""
    place = Path(os.path.realpath(output))
    for folder in inputs:
        if folder and place.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"{flag} {output} lies in {folder}, which is read: its files would be taken for input in the next run; "
                "choose a folder beside it"
            )


def walk_folders(root: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]], list[os.DirEntry[str]]]]:
    """(folder, its sub-folders, its files) of a folder and of all below it; linked ones are followed.

    Folders that is_ignored() names are not among them. A folder that is reached twice is listed once, under its own
    name where it has one below the root, and a link to a folder that the link itself lies in is not followed: both are
    told on stderr.
    """
    home = os.path.realpath(root)
    listed: set[str] = set()
    folders, links = [Path(root)], list[Path]()
    while folders or links:
        linked = not folders
        folder = heapq.heappop(links) if linked else folders.pop()
        place = os.path.realpath(folder)
        holds_itself = linked and any(Path(f).is_relative_to(place) for f in (home, os.path.realpath(folder.parent)))
        if holds_itself or place in listed:
            notice = f"{folder} is a link to {place}, which is listed already or holds the link: left out"
            print(notice, file=sys.stderr)
            continue
        listed.add(place)
        with os.scandir(folder) as entries:
            found = [(entry, _is_folder(entry)) for entry in entries]
        below = [entry for entry, is_folder in found if is_folder and not is_ignored(entry.name)]
        for entry in below:
            if entry.is_symlink():
                heapq.heappush(links, folder / entry.name)
            else:
                folders.append(folder / entry.name)
        yield folder, below, [entry for entry, is_folder in found if not is_folder]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def find_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], Counter[str]]:
    """({stem: file} of the files of some suffixes below a folder, in no order; number of the others by their suffix).

    Suffixes are compared in lower case. Raises UserError when two files share a stem, a name is no UTF-8, or a link
    leads nowhere that may have been a folder of such files.
    """
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    for below, folders, entries in walk_folders(folder):
        # a folder 1.png is listed, so that whoever reads it says what it is
        named_alike = [entry for entry in folders if Path(entry.name).suffix.lower() in suffixes]
        for entry in (*entries, *named_alike):
            path = below / entry.name
            if is_ignored(entry.name):
                continue
            if path.suffix.lower() in suffixes:
                add_file(files, stem_of(path.relative_to(folder)), path)
            elif entry.is_symlink() and not os.path.exists(path):
                raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there: mend or remove it")
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    return files, others


def add_file(files: dict[str, Path], stem: str, path: Path) -> None:
    """Add a file to those found; raises UserError when its stem is taken."""
    if stem in files:
        first, second = str(files[stem]), path.name
        if files[stem].suffix == path.suffix:  # to the eye they are the same
            first, second = ascii(first), f"{ascii(second)}, composed and decomposed letters,"
        raise UserError(f"{first} and {second} share the stem {stem}: remove one")
    files[stem] = path


def list_images(folder: Path) -> dict[str, Path]:
    """{stem: image file} of all images below a folder, in no order; how many other files there are goes to stderr.

    Raises UserError when there is no image, else as find_files().
    """
    images, others = find_files(folder, IMAGE_SUFFIXES)
    ranked = sorted(others, key=lambda suffix: (-others[suffix], suffix))
    kinds = ", ".join(ranked[:MAX_SHOWN_SUFFIXES]) + (", ..." if len(ranked) > MAX_SHOWN_SUFFIXES else "")
    if not images:
        found = f": its {others.total()} files are others ({kinds})" if others else ""
        raise UserError(f"{folder} holds no .png or .jpg image, nor {', '.join(IMAGE_SUFFIXES[3:])}{found}")
    if others:
        share = f"{others.total()} of {others.total() + len(images)}"
        print(f"{folder}: {share} files are no images that are read here ({kinds}): skipped", file=sys.stderr)
    return images


def find_name_variant(folder: Path, relative: str) -> Path | None:
    """The file below a folder that has this name in other writing; None when there is none.

    Other writing is a suffix in upper case, or letters composed where these are decomposed. Raises UserError when two
    files have it.
    """
    *parents, name = relative.split("/")
    for part in parents:
        folder = folder / part if os.path.isdir(folder / part) else folder / _find_variant(folder, part)
    written = _find_variant(folder, name)
    return folder / written if written and os.path.isfile(folder / written) else None


def _find_variant(folder: Path, name: str) -> str:
    try:
        names = _name_variants(folder, os.stat(folder).st_mtime_ns).get(_comparison_key(name), [])
    except OSError:
        return ""
    if len(names) > 1:
        raise UserError(f"{folder}: {' and '.join(map(ascii, names))} are one name in two writings: remove one")
    return names[0] if names else ""


@lru_cache(MAX_CACHED_LISTINGS)
def _name_variants(folder: Path, time: int) -> dict[str, list[str]]:
    """{name as it is compared: names} of a folder's files, without those that are written as they are compared.

    Few are, so the table is small. The folder's time makes a new one when files have come.
    """
    writings: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if (compared := _comparison_key(entry.name)) != entry.name:
                writings.setdefault(compared, []).append(entry.name)
    return writings


def _comparison_key(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return normalize_name(stem) + suffix.lower()
