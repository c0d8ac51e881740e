"""Resolve the paths in a manifest, and restrict links that lead out of its folder."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cli import UserError, existing_dir

from dataset.listing import find_name_variant, require_utf8

LINK_FLAG = "--allow-links-to"  # Runtime.allow_links_to


class DataFolder:
    """A manifest's folder: converts between the manifest's relative paths and files."""

    def __init__(self, root: Path, allowed: Sequence[Path] = ()):
        """Set the folder and the allowed link targets.

        Args:
            root: the manifest's own folder.
            allowed: folders outside of it that links may lead to; raises UserError if one does not exist.
        """
        self.root = root.resolve()
        self.allowed = tuple(existing_dir(folder, LINK_FLAG).resolve() for folder in allowed)
        self._folder_roots: dict[Path, Path] = {}  # cached per folder: on a cluster each lookup is a network round trip
        self._relative: dict[Path, str | None] = {}

    def locate(self, relative: object, where: str) -> Path:
        """The file for a manifest path, with links unresolved; it need not exist.

        Raises UserError naming `where` if the path is not relative, contains `..`, or leads outside through a link that
        is not allowed.
        """
        if not isinstance(relative, str) or "\0" in relative:
            raise UserError(f"{where}: a path must be a string")
        require_utf8(relative, where)
        posix = PurePosixPath(relative)
        if not posix.parts or posix.is_absolute() or ".." in posix.parts:
            raise UserError(
                f"{where}: {relative} points outside the manifest's folder: use paths relative to it, without .."
            )
        path = self.root / relative
        if not os.path.lexists(path):
            path = find_name_variant(self.root, posix.as_posix()) or path
        self.find_root(path, where)
        return path

    def find_root(self, path: Path, where: str) -> Path:
        """The folder that contains the real path of a file: the root or an allowed folder.

        Raises UserError naming `where`, the link, its target and the flag if it is in neither.
        """
        if path.parent not in self._folder_roots:
            self._folder_roots[path.parent] = self._find_root(path.parent, where)
        return self._find_root(path, where) if os.path.islink(path) else self._folder_roots[path.parent]

    def _find_root(self, path: Path, where: str) -> Path:
        root = self._root_above(path)
        if root is None:
            prefixes = [*reversed(path.relative_to(self.root).parents), path.relative_to(self.root)]
            links = (self.root / part for part in prefixes)
            link = next((link for link in links if link.is_symlink() and not self._root_above(link)), path)
            target = Path(os.path.realpath(link))
            below = target if target.is_dir() else target.parent
            raise UserError(
                f"{where}: {path.relative_to(self.root)} points outside the manifest's folder, because {link} is a "
                f"link to {target}: allow it with {LINK_FLAG} {below}"
            )
        return root

    def _root_above(self, path: Path) -> Path | None:
        target = Path(os.path.realpath(path))
        return next((root for root in (self.root, *self.allowed) if target.is_relative_to(root)), None)

    def relative(self, file: Path) -> str:
        """The path of a file relative to the folder, as written to a manifest; links inside the folder are kept.

        Raises UserError if the file is outside the folder.
        """
        path = Path(os.path.abspath(file))
        if path.parent not in self._relative:
            self._relative[path.parent] = self._below_root(path.parent)
        folder = self._relative[path.parent]
        if folder is not None:
            return (PurePosixPath(folder) / path.name).as_posix()
        target = Path(os.path.realpath(file))
        if not target.is_relative_to(self.root):
            raise UserError(f"{file} is outside the manifest's folder {self.root}: put the manifest above all data")
        return target.relative_to(self.root).as_posix()

    def _below_root(self, folder: Path) -> str | None:
        """The folder's path relative to the root, also if it is given through a link, as $SCRATCH; None if outside."""
        parents = (parent for parent in (folder, *folder.parents) if os.path.realpath(parent) == str(self.root))
        root = next(parents, None)
        return folder.relative_to(root).as_posix() if root else None
