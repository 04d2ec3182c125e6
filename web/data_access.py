"""The data folders that the page may read and write, and their images page by page."""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dataset.checking.near_duplicates import on_white
from dataset.editing.captions import editable_source
from dataset.folder import Folder, read_folder
from dataset.images.limits import MOST_PIXELS
from dataset.images.transform import load_image
from dataset.source import Source, UnusableImage
from dataset.table import NO_CAPTION
from foundation.errors import UserError, listed, one_line, shown
from foundation.paths import name_problem

LONGEST_PATH = 1000  # characters
LONGEST_NAME = 60
MOST_NAMES = 500  # folders that are offered
THUMBNAIL = 192  # pixels
ALL, WITHOUT, UNUSABLE = "All", "Without caption", "Cannot be used"


@dataclass(frozen=True)
class AllowedFolders:
    """Data sets lie below these folders; new ones are written to the first."""

    roots: Sequence[Path]

    def names(self) -> list[str]:
        """List the folders that may hold data sets, in the order of their names."""
        return [path.as_posix() for root in self.roots for path in subfolders(root)][:MOST_NAMES]

    def find(self, text: str | None) -> Path:
        """Return the data folder that somebody has chosen or written.

        Raises:
            UserError: it does not lie below these folders, links in it lead out of them, or it is
                no folder. The message does not say whether something lies elsewhere.
        """
        text = (text or "").strip()
        if not text:
            raise UserError("no data folder is chosen. Choose one of the list, or drop files.")
        if len(text) > LONGEST_PATH or "\0" in text:
            raise UserError("this cannot be the name of a folder.")
        real = Path(os.path.realpath(text))
        for root in self.roots:
            if real.is_relative_to(inside := root.resolve()):
                path = root / real.relative_to(inside)
                if not path.is_dir():
                    raise UserError(f"there is no data folder {shown(text)}.")
                self.refuse_links_out(path)
                return path
        raise UserError(
            f"{shown(text)} does not lie in a folder that the page may read: "
            f"{listed([root.as_posix() for root in self.roots])}. The flag data of app.py names "
            "others."
        )

    def refuse_links_out(self, folder: Path) -> None:
        """Raise a UserError if a link below a folder leads to a file or folder of others."""
        inside = [root.resolve() for root in self.roots]
        for link in links_below(folder):
            real = link.resolve()
            if not any(real.is_relative_to(root) for root in inside):
                raise UserError(
                    f"{one_line(link)} is a link that leads out of the folders that the page may "
                    "read. Remove it, or name its target with the flag data of app.py."
                )

    def new(self, name: str | None) -> Path:
        """Return the path of a new data folder.

        Raises:
            UserError: no folder can have this name.
        """
        name = (name or "").strip()
        reason = name_problem(name)
        if not reason and (name[0] in ".-" or len(name) > LONGEST_NAME):
            reason = f"begins with a dot or a hyphen, or has more than {LONGEST_NAME} characters"
        if reason:
            raise UserError(f"{shown(name)} cannot be the name of a data folder: it {reason}.")
        return self.roots[0] / name


def subfolders(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder that really lie in it."""
    inside = root.resolve()
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        hidden = path.name.startswith(".")
        if not hidden and path.is_dir() and path.resolve().is_relative_to(inside):
            yield path


def links_below(folder: Path) -> Iterator[Path]:
    """Yield all links below a folder, also behind links to folders."""
    visited: set[str] = set()
    waiting = [str(folder)]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in visited:
            continue
        visited.add(real)
        try:
            entries = list(os.scandir(current))
        except OSError:
            continue
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            if Path(entry.path).is_dir():
                waiting.append(entry.path)


# Images -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """An image of a data folder, as the page shows it.

    Args:
        name: relative to the folder.
        problem: why it cannot be used; "": it can.
    """

    name: str
    path: Source
    captions: tuple[str, ...] = ()
    problem: str = ""

    @property
    def can_be_edited(self) -> bool:
        """Whether its captions can be shown as lines of a text."""
        several = any(len(caption.splitlines()) > 1 for caption in self.captions)
        return isinstance(self.path, Path) and not self.problem and not several


@dataclass(frozen=True)
class DataView:
    """A data folder that was read, and where its captions stand ("": they cannot be written)."""

    folder: Folder
    source: str

    def count(self, which: str) -> int:
        """Return how many images there are of a kind: ALL, WITHOUT or UNUSABLE."""
        if which == UNUSABLE:
            return len(self.folder.unusable)
        if which == WITHOUT:
            return len(self.folder.without_caption)
        return len(self.folder.pairs) + len(self.folder.unusable)

    def items(self, which: str, first: int, count: int) -> list[Item]:
        """Return some images of a kind; of ALL, those that cannot be used are the last."""
        last = first + count
        pairs = self.folder.without_caption if which == WITHOUT else self.folder.pairs
        unusable = [] if which == WITHOUT else self.folder.unusable
        if which == UNUSABLE:
            pairs = pairs[:0]
        found = [
            Item(self.name_of(pair.path), pair.path, given(pair.captions))
            for pair in pairs[first:last]
        ]
        rest = unusable[max(first - len(pairs), 0) : max(last - len(pairs), 0)]
        return found + [
            Item(self.name_of(file.path), file.path, problem=file.reason) for file in rest
        ]

    def name_of(self, path: Source) -> str:
        root = self.folder.root
        if isinstance(path, Path) and isinstance(root, Path) and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
        return str(path)


def given(captions: tuple[str, ...]) -> tuple[str, ...]:
    return () if captions == NO_CAPTION else captions


def read_view(path: Path) -> DataView:
    """Read a data folder; images without a caption are accepted.

    Raises:
        UserError: there is nothing to train on, or captions cannot be understood.
    """
    with usual_limits():
        return DataView(read_folder(path, allow_missing_captions=True), editable_source(path))


@contextmanager
def usual_limits() -> Iterator[None]:
    """Read images of all sizes that a training reads; the page itself takes smaller ones.

    What is found to be too large is written into the index of the folder, which trainings use.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def thumbnail(path: Source) -> str:
    """Return a small picture as an address that holds it itself; "" if it cannot be shown."""
    try:
        image = on_white(load_image(path, shrink_to=THUMBNAIL))
    except (UnusableImage, OSError):
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
