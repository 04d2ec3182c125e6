"""Where the index of a data folder lies, and how it is written and read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dataset.images.formats import EXTENSIONS
from dataset.source import Cell, Member, UnusableFile
from dataset.stores.blocks import cache_home
from dataset.stores.remote import RemoteFile
from dataset.table import Root, Table
from foundation import system
from foundation.files import read_json, remove_folder
from foundation.json_reading import from_json
from foundation.system import patiently

# Part of the name of every index: another number or other extensions make old ones invalid.
FORMAT = "1-" + hashlib.blake2b(" ".join(sorted(EXTENSIONS)).encode(), digest_size=4).hexdigest()
INDEX_FOLDER = ".latentsmith"  # in the data folder
MARK = "index.json"  # the file that every index holds


@dataclass(frozen=True)
class Index:
    """The facts about a data folder, or about a part of it.

    Args:
        rule: where the captions come from.
        unusable: files that were left out.
        notes: what the user should know.
        uses: of shards, how many entries there are of each kind.
        broken: of a part, images that were left out; in a whole index they are in `unusable`.
        examples: of a part, a member for each ending that is not read.
    """

    table: Table
    rule: str
    unusable: list[UnusableFile]
    notes: list[str]
    uses: dict[str, int] = field(default_factory=dict)
    broken: list[UnusableFile] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


def index_folder(root: Root) -> Path:
    """Return the folder that holds the indexes of a data folder."""
    elsewhere = os.environ.get("LATENTSMITH_INDEX")
    if isinstance(root, RemoteFile):
        digest = hashlib.sha256(str(root).encode()).hexdigest()
        name = root.name.replace(":", "-") if system.ON_WINDOWS else root.name  # of a port
        return Path(elsewhere or cache_home() / "indexes") / f"{name}-{digest[:16]}"
    if not elsewhere:
        return root / INDEX_FOLDER
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()
    return Path(elsewhere) / f"{root.resolve().name}-{digest[:16]}"


def save_index(index: Index, folder: Path) -> bool:
    """Write an index that appears whole or not at all; return whether it is there now."""
    return write_index(index, folder, index.table.save)


def write_index(index: Index, folder: Path, save_table: Callable[[Path], None]) -> bool:
    """Write an index that appears whole or not at all; return whether it is there now.

    If it cannot be written, a note is added to the index. Several processes may do this at once,
    each in a temporary folder of its own; the first one to rename its folder wins. Nothing is
    flushed to the disk: an index that a power cut damages is built again.
    """
    root, unfinished = index.table.root, None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        save_table(unfinished)
        content = {
            "rule": index.rule,
            "notes": index.notes,
            "uses": index.uses,
            "unusable": [pack_unusable(entry, root) for entry in index.unusable],
        }
        if index.broken:
            content["broken"] = [pack_unusable(entry, root) for entry in index.broken]
        if index.examples:
            content["examples"] = index.examples
        text = json.dumps(content, indent=1)  # names that are not UTF-8 survive as escapes
        (unfinished / MARK).write_text(text, encoding="utf-8")
        unfinished.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        if folder.exists() and load_index(folder, root) is None:
            remove_folders(folder)  # damaged
        patiently(unfinished.rename, folder)
    except OSError as error:
        if load_index(folder, root) is not None:  # another process was faster
            return True
        index.notes.append(
            f"the index of the data cannot be saved in {folder.parent} ({error.strerror}), so "
            "every start decodes all images. Set LATENTSMITH_INDEX to a folder that can be written."
        )
        return False
    finally:
        if unfinished is not None:
            remove_folders(unfinished)
    return True


LARGEST_MARK = 2**30  # bytes


@dataclass(frozen=True)
class IndexFile:
    """What the file that marks an index holds, besides what it is compared by."""

    rule: str
    unusable: list[tuple[str, str, str]]
    notes: list[str]
    uses: dict[str, int] = field(default_factory=dict[str, int])
    broken: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    examples: dict[str, str] = field(default_factory=dict[str, str])


def load_index(folder: Path, root: Root) -> Index | None:
    """Load an index; None if there is none, or if it is damaged and has to be built again."""
    try:
        content = from_json(IndexFile, read_json(folder / MARK, limit=LARGEST_MARK), folder / MARK)
        table = Table.open(folder, root)
    except (OSError, ValueError, EOFError):
        return None
    unusable, broken = (
        [unpack_unusable(entry, root) for entry in entries]
        for entries in (content.unusable, content.broken)
    )
    notes, uses, examples = content.notes, content.uses, content.examples
    return Index(table, content.rule, unusable, notes, uses, broken, examples)


def pack_unusable(entry: UnusableFile, root: Root) -> list[str]:
    """Make [path, member name or "", reason]; relative to the root, since a folder may be moved."""
    path, member = entry.path, ""
    if isinstance(path, Member):
        path, member = path.shard, path.name
    elif isinstance(path, Cell):
        path, member = path.file, path.place
    if isinstance(path, RemoteFile):
        return [str(path).removeprefix(f"{root}/"), member, entry.reason]
    return [Path(os.path.relpath(path, root)).as_posix(), member, entry.reason]


def unpack_unusable(entry: Sequence[str], root: Root) -> UnusableFile:
    """Undo `pack_unusable`."""
    name, member, reason = entry
    path = root / name
    return UnusableFile(Member(path, member, offset=0, size=0) if member else path, reason)


def remove_folders(*folders: Path) -> None:
    """Remove folders that may not exist. One that Windows does not let go of stays whole."""
    for folder in folders:
        with suppress(OSError):
            remove_folder(folder)
