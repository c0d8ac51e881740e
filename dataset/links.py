"""The files of a data folder by the paths that its manifest writes, and where links may lead out of it."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cli import UserError, existing_dir

from dataset.listing import find_name_variant, require_utf8

LINK_FLAG = "--allow-links-to"  # Runtime.allow_links_to


class DataFolder:
    """A manifest's folder: what its paths lead to, and which paths lead to a file."""

    def __init__(self, root: Path, allowed: Sequence[Path] = ()):
        """Take the folder.

        Args:
            root: the manifest's own folder.
            allowed: folders outside of it that links may lead to; raises UserError when one is not there.
        """
        self.root = root.resolve()
        self.allowed = tuple(existing_dir(folder, LINK_FLAG).resolve() for folder in allowed)
        self._folder_roots: dict[Path, Path] = {}  # of folders: asking for each file costs a round trip on a cluster
        self._relative: dict[Path, str | None] = {}

    def resolve(self, relative: object, where: str) -> Path:
        """The file that a path of a manifest names, links not resolved; it need not be there.

        Raises UserError naming `where` when the path isn't relative, has a `..`, or leads out by a link that is not
        allowed.
        """
        if not isinstance(relative, str) or "\0" in relative:
            raise UserError(f"{where}: a path is a string")
        require_utf8(relative, where)
        written = PurePosixPath(relative)
        if not written.parts or written.is_absolute() or ".." in written.parts:
            raise UserError(
                f"{where}: {relative} leads out of the manifest's folder: paths are relative to it, without .."
            )
        path = self.root / relative
        if not os.path.lexists(path):
            path = find_name_variant(self.root, written.as_posix()) or path
        self.find_root(path, where)
        return path

    def find_root(self, path: Path, where: str) -> Path:
        """The folder that a file of this one really lies below: its root, or one of those allowed.

        Raises UserError naming `where`, the link, its target and the flag when it lies below neither.
        """
        if path.parent not in self._folder_roots:
            self._folder_roots[path.parent] = self._find_root(path.parent, where)
        return self._find_root(path, where) if os.path.islink(path) else self._folder_roots[path.parent]

    def _find_root(self, path: Path, where: str) -> Path:
        home = self._root_above(path)
        if home is None:
            on_the_way = [*reversed(path.relative_to(self.root).parents), path.relative_to(self.root)]
            links = (self.root / part for part in on_the_way)
            link = next((link for link in links if link.is_symlink() and not self._root_above(link)), path)
            target = Path(os.path.realpath(link))
            below = target if target.is_dir() else target.parent
            raise UserError(
                f"{where}: {path.relative_to(self.root)} leads out of the manifest's folder: {link} is a link to "
                f"{target}, outside of the data folder: allow it with {LINK_FLAG} {below}"
            )
        return home

    def _root_above(self, path: Path) -> Path | None:
        target = Path(os.path.realpath(path))
        return next((home for home in (self.root, *self.allowed) if target.is_relative_to(home)), None)

    def relative(self, file: Path) -> str:
        """The path of a file as a manifest of this folder writes it, links inside the folder kept as they are.

        Raises UserError when the file does not lie below the folder.
        """
        path = Path(os.path.abspath(file))
        if path.parent not in self._relative:
            self._relative[path.parent] = self._below_root(path.parent)
        folder = self._relative[path.parent]
        if folder is not None:
            return (PurePosixPath(folder) / path.name).as_posix()
        target = Path(os.path.realpath(file))
        if not target.is_relative_to(self.root):
            raise UserError(f"{file} lies outside the manifest's folder {self.root}: write the manifest above all data")
        return target.relative_to(self.root).as_posix()

    def _below_root(self, folder: Path) -> str | None:
        """The folder's path below the root, which may be written otherwise, as $SCRATCH is; None for one outside."""
        above = (parent for parent in (folder, *folder.parents) if os.path.realpath(parent) == str(self.root))
        root = next(above, None)
        return folder.relative_to(root).as_posix() if root else None
