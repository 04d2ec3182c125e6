"""The names of the files in a data folder, and which image a name in a table means."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from foundation.paths import DRIVE, is_below


@dataclass(frozen=True)
class FileList:
    """The files below a folder.

    Names are relative to the folder, with slashes, in Unicode's composed form (NFC). The
    dictionaries map them to the same names as the disk has them. Where two names differ only in
    Unicode's form, the one that is not composed stands for itself.

    Args:
        other_splits: images that lie in a split which is not read, such as test/.
    """

    root: Path
    images: dict[str, str]
    others: dict[str, str]
    other_splits: frozenset[str] = frozenset()

    def find(self, file_name: str) -> list[tuple[PurePosixPath, Path]]:
        """Return (folder relative to the root, path) of every file with this name."""
        paths = [
            (PurePosixPath(name), self.root / on_disk)
            for name, on_disk in self.others.items()
            if name.endswith(file_name)
        ]
        return [(name.parent, path) for name, path in paths if name.name == file_name]

    def find_image(self, written: str, folder: PurePosixPath) -> str | None:
        """Return the name of the image that a table means; None if there is none.

        Names with backslashes, as Windows writes them, and absolute paths below the root are
        understood.

        Args:
            written: as it stands in the table.
            folder: that of the table, relative to the root.
        """
        for form in self._forms(written, folder):
            if form in self.images or form in self.other_splits:
                return form
        return None

    def find_without_case(self, written: str, folder: PurePosixPath) -> str | None:
        """Return the only image whose name differs in capitals at most; else None."""
        for form in self._forms(written, folder):
            if len(names := self._by_folded_name.get(form.casefold(), ())) == 1:
                return names[0]
        return None

    def _forms(self, written: str, folder: PurePosixPath) -> Iterator[str]:
        """Yield the names that an image may have which a table means."""
        for text in dict.fromkeys((written, written.replace("\\", "/"))):
            for name in self._relative(text, folder):
                yield from (name, normalize("NFC", name))

    @cached_property
    def _by_folded_name(self) -> dict[str, list[str]]:
        """Images by their names without capitals."""
        result: defaultdict[str, list[str]] = defaultdict(list)
        for name in (*self.images, *self.other_splits):
            result[name.casefold()].append(name)
        return dict(result)

    def _relative(self, text: str, folder: PurePosixPath) -> Iterable[str]:
        """Yield what a path of a table may be relative to the root."""
        if not (text.startswith("/") or DRIVE.match(text)):
            yield posixpath.normpath((folder / text).as_posix())
            return
        for root in self._roots:
            if is_below(text, root):
                yield posixpath.normpath(text[len(root) + 1 :])

    @cached_property
    def _roots(self) -> list[str]:
        """The absolute paths of the root: as it was given, and without links."""
        paths = (self.root.absolute(), self.root.resolve())
        return [path.as_posix().rstrip("/") for path in dict.fromkeys(paths)]


def composed_names(names: Iterable[str]) -> dict[str, str]:
    """Map names in Unicode's composed form to those on the disk; none is lost if two are equal."""
    result: dict[str, str] = {}
    for on_disk in names:
        name = normalize("NFC", on_disk)
        if name == on_disk and name in result:  # the composed name keeps its place
            other = result[name]
            result[other] = other
        elif name in result:
            name = on_disk
        result[name] = on_disk
    return result


def clashes(names: dict[str, str]) -> list[tuple[str, str]]:
    """Return the pairs of names on the disk that differ only in Unicode's form."""
    return [
        (names[composed], on_disk)
        for name, on_disk in names.items()
        if (composed := normalize("NFC", name)) != name and composed in names
    ]
