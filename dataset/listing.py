"""List the data files below a folder, and compare file names across operating systems."""

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
# Files and folders that operating systems create, in lower case. Names that start with a dot are ignored, too.
SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
)
MAX_SHOWN_SUFFIXES = 5  # in one message
MAX_CACHED_LISTINGS = 256  # folders


def is_ignored(name: str) -> bool:
    """Whether a file or folder is not data: hidden (.ipynb_checkpoints) or created by the operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def normalize_name(name: str) -> str:
    """The NFC form of a name, for comparisons: macOS stores file names decomposed (NFD), other systems don't."""
    return unicodedata.normalize("NFC", name)


def normalize_stems(content: Mapping[str, Value], where: str | Path) -> dict[str, Value]:
    """The mapping with normalised stems; raises UserError naming `where` if two stems become equal."""
    stems = {normalize_name(stem): value for stem, value in content.items()}
    if len(stems) < len(content):
        raise UserError(f"{where}: two stems differ only in Unicode composition: remove one")
    return stems


def stem_of(relative: Path) -> str:
    """The stem of a file from its path relative to the folder; raises UserError if the name is not UTF-8."""
    require_utf8(str(relative))
    return normalize_name(relative.with_suffix("").as_posix())


def require_utf8(name: str | Path, where: str = "") -> None:
    """Raise UserError if a name or path is not UTF-8: JSON can't store it, and OpenCV crashes on it."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        prefix = f"{where}: " if where else ""
        raise UserError(f"{prefix}the name {ascii(str(name))} is not UTF-8: rename it") from None


def find_data_folder(images: Path) -> Path:
    """The data folder that contains a folder of images: its parent.

    For a linked folder: the parent of the link if that looks like a data folder, else the parent of the target.
    """
    parent = Path(os.path.abspath(images)).parent
    known = ("camera.json", "splits.json", "source.json", "depth")
    return parent if any((parent / name).exists() for name in known) else images.resolve().parent


def require_separate_output(output: Path, flag: str, *inputs: Path | None) -> None:
    """Raise UserError naming `flag` if the output is inside an input folder: the next run would read it as input."""
    target = Path(os.path.realpath(output))
    for folder in inputs:
        if folder and target.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"{flag} {output} is inside the input folder {folder}, so the next run would read its files as input: "
                "choose another folder"
            )


def walk_folders(root: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]], list[os.DirEntry[str]]]]:
    """Yield (folder, subfolders, files) for a folder and all folders below it, following links.

    Skips folders for which is_ignored() is true. A folder reachable by several paths is listed once, if possible under
    its real path. Links to a folder that contains the link are not followed. Both cases print a line on stderr.
    """
    real_root = os.path.realpath(root)
    listed: set[str] = set()
    folders, links = [Path(root)], list[Path]()
    while folders or links:
        linked = not folders
        folder = heapq.heappop(links) if linked else folders.pop()
        target = os.path.realpath(folder)
        is_cycle = linked and any(Path(f).is_relative_to(target) for f in (real_root, os.path.realpath(folder.parent)))
        if is_cycle or target in listed:
            notice = f"{folder} is a link to {target}, which is already listed or contains the link: skipped"
            print(notice, file=sys.stderr)
            continue
        listed.add(target)
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
    """Find files by suffix below a folder.

    Returns ({stem: file}, {other suffix: count}), unordered. Suffixes are compared in lower case. Raises UserError if
    two files share a stem, a name is not UTF-8, or a link without such a suffix is broken: its target may have been a
    folder of such files.
    """
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    for below, folders, entries in walk_folders(folder):
        # include a folder named 1.png, so that reading it fails with a clear error
        folders_with_suffix = [entry for entry in folders if Path(entry.name).suffix.lower() in suffixes]
        for entry in (*entries, *folders_with_suffix):
            path = below / entry.name
            if is_ignored(entry.name):
                continue
            if path.suffix.lower() in suffixes:
                add_file(files, stem_of(path.relative_to(folder)), path)
            elif entry.is_symlink() and not os.path.exists(path):
                raise UserError(f"{path} is a link to {os.readlink(path)}, which does not exist: fix or remove it")
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    return files, others


def add_file(files: dict[str, Path], stem: str, path: Path) -> None:
    """Add a file under its stem; raises UserError if the stem is already in use."""
    if stem in files:
        first, second = str(files[stem]), path.name
        if files[stem].suffix == path.suffix:  # the names look identical
            first, second = ascii(first), f"{ascii(second)} (composed and decomposed Unicode)"
        raise UserError(f"{first} and {second} share the stem {stem}: remove one")
    files[stem] = path


def list_images(folder: Path) -> dict[str, Path]:
    """{stem: image file} of all images below a folder, unordered; prints the number of other files on stderr.

    Raises UserError if there are no images, and as find_files() does.
    """
    images, others = find_files(folder, IMAGE_SUFFIXES)
    ranked = sorted(others, key=lambda suffix: (-others[suffix], suffix))
    kinds = ", ".join(ranked[:MAX_SHOWN_SUFFIXES]) + (", ..." if len(ranked) > MAX_SHOWN_SUFFIXES else "")
    if not images:
        found = f", only {others.total()} other files ({kinds})" if others else ""
        raise UserError(f"{folder} contains no images ({', '.join(IMAGE_SUFFIXES)}){found}")
    if others:
        skipped = f"{others.total()} of {others.total() + len(images)}"
        print(f"{folder}: skipped {skipped} files, which are not supported images ({kinds})", file=sys.stderr)
    return images


def find_name_variant(folder: Path, relative: str) -> Path | None:
    """The file below a folder whose name equals `relative` except for suffix case or Unicode composition.

    Returns None if there is none; raises UserError if there are two.
    """
    *parents, name = relative.split("/")
    for part in parents:
        folder = folder / part if os.path.isdir(folder / part) else folder / _find_variant(folder, part)
    variant = _find_variant(folder, name)
    return folder / variant if variant and os.path.isfile(folder / variant) else None


def _find_variant(folder: Path, name: str) -> str:
    try:
        names = _name_variants(folder, os.stat(folder).st_mtime_ns).get(_comparison_key(name), [])
    except OSError:
        return ""
    if len(names) > 1:
        raise UserError(
            f"{folder}: {' and '.join(map(ascii, names))} differ only in suffix case or Unicode composition: remove one"
        )
    return names[0] if names else ""


@lru_cache(MAX_CACHED_LISTINGS)
def _name_variants(folder: Path, time: int) -> dict[str, list[str]]:
    """{comparison key: names} of the files whose name differs from its key; these are few, so the table is small.

    The folder's modification time is part of the cache key, so that a changed folder is listed again.
    """
    variants: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if (key := _comparison_key(entry.name)) != entry.name:
                variants.setdefault(key, []).append(entry.name)
    return variants


def _comparison_key(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return normalize_name(stem) + suffix.lower()
