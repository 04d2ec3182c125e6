"""The index of a data folder: facts about its images and captions, saved next to them.

At the first start every image is decoded to its end and hashed. The result is saved in
.latentsmith/ in the data folder, for remote data in the user's cache (LATENTSMITH_INDEX=FOLDER puts
it elsewhere), and it is valid as long as no file's name, size or time changes. After a change only
the changed files are read again.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset.images.formats import EXTENSIONS
from dataset.images.transform import inspect_image
from dataset.parallel import Progress, map_in_threads
from dataset.source import Cell, Member, Source, UnusableFile, UnusableImage, as_lines
from dataset.stores.blocks import cache_home
from dataset.stores.remote import RemoteFile
from dataset.table import FileStamp, ImageFacts, PairList, Root, Table, TableBuilder
from foundation.errors import UserError
from foundation.files import read_json
from foundation.json_reading import from_json

# Part of the name of every index: another number or other extensions make old ones invalid.
FORMAT = "1-" + hashlib.blake2b(" ".join(sorted(EXTENSIONS)).encode(), digest_size=4).hexdigest()
INDEX_FOLDER = ".latentsmith"  # in the data folder
MARK = "index.json"  # the file that every index holds
SAVE_EVERY = 60.0  # seconds between two times that an unfinished index is saved


@dataclass(frozen=True)
class Index:
    """The facts about a data folder.

    Args:
        rule: where the captions come from.
        unusable: files that were left out.
        notes: what the user should know.
        uses: of shards, how many entries there are of each kind.
    """

    table: Table
    rule: str
    unusable: list[UnusableFile]
    notes: list[str]
    uses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalog:
    """The images and captions to index; no image has been opened yet.

    Args:
        captions: image name, as `Table.names` has it -> captions.
        locate: returns where the image of a name lies.
        shards: tar file or table, relative to the root -> its time of change in nanoseconds.
        uses: of shards, how many entries there are of each kind.
        image_column: of the tables in `shards`.
        by_name: bring the images into the order of their names after they have been read.
    """

    root: Root
    rule: str
    captions: dict[str, tuple[str, ...]]
    locate: Callable[[str], Source]
    unusable: list[UnusableFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    image_column: str = ""
    by_name: bool = False


def open_index(
    root: Root, kind: str, fingerprint: str, read: Callable[[], Catalog], progress: Progress
) -> Index:
    """Load the index with this fingerprint; if there is none, build it, reusing an older one.

    Args:
        kind: first part of the index's name; indexes of several kinds may lie next to each other.
        fingerprint: of all files; it changes when files are added, removed or changed.
        read: finds images and captions, but opens no image.
    """
    folder = index_folder(root) / f"{kind}-{fingerprint}-{FORMAT}"
    if (index := load_index(folder, root)) is not None:
        return index
    older = [mark.parent for mark in sorted(folder.parent.glob(f"{kind}-*-{FORMAT}/{MARK}"))]
    earlier = [index.table for path in older if (index := load_index(path, root)) is not None]
    unfinished = folder.with_name(f"{kind}-unfinished-{FORMAT}")

    def save_unfinished(index: Index) -> None:
        remove_folders(unfinished)
        save_index(index, unfinished)

    index = build_index(read(), EarlierRows(earlier), progress, save_unfinished)
    if not save_index(index, folder):
        return index
    remove_folders(unfinished, *(path for path in older if path != folder))
    return load_index(folder, root) or index


def index_folder(root: Root) -> Path:
    """Return the folder that holds the indexes of a data folder."""
    elsewhere = os.environ.get("LATENTSMITH_INDEX")
    if isinstance(root, RemoteFile):
        digest = hashlib.sha256(str(root).encode()).hexdigest()
        return Path(elsewhere or cache_home() / "indexes") / f"{root.name}-{digest[:16]}"
    if not elsewhere:
        return root / INDEX_FOLDER
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()
    return Path(elsewhere) / f"{root.resolve().name}-{digest[:16]}"


# Building -----------------------------------------------------------------------------------------


class EarlierRows:
    """Finds the facts about an image in earlier tables, if the file has not changed."""

    def __init__(self, tables: list[Table]):
        self.rows = {name: (table, row) for table in tables for row, name in enumerate(table.names)}

    def find(self, name: str, stamp: FileStamp) -> tuple[ImageFacts, str] | None:
        """Return the facts and the kind of pixels; None if they have to be read from the file."""
        table, row = self.rows.get(name, (None, 0))
        if table is None:
            return None
        columns = table.columns
        if (
            columns["size"][row] != stamp["size"]
            or columns["mtime_ns"][row] != stamp["mtime_ns"]
            or columns["offset"][row] != stamp["offset"]
        ):
            return None
        facts = ImageFacts(
            **stamp,
            width=int(columns["width"][row]),
            height=int(columns["height"][row]),
            sha256=columns["sha256"][row].tobytes(),
        )
        return facts, table.modes[columns["mode"][row]]


def build_index(
    catalog: Catalog,
    earlier: EarlierRows,
    progress: Progress,
    save_unfinished: Callable[[Index], None],
) -> Index:
    """Open every image whose facts are not in an earlier index."""
    builder, unusable = TableBuilder(), list(catalog.unusable)
    shards = {
        catalog.root / name: (k, mtime) for k, (name, mtime) in enumerate(catalog.shards.items())
    }

    def examine(name: str) -> tuple[ImageFacts, str] | UnusableFile:
        path = catalog.locate(name)
        try:
            stamp = stamp_file(path, shards)
            return earlier.find(name, stamp) or examine_image(path, stamp)
        except UnusableImage as error:
            return UnusableFile(path, error.reason)
        except OSError as error:
            return UnusableFile(path, f"cannot be read: {error.strerror or error}")

    names = list(catalog.captions)
    results = progress(map_in_threads(examine, names), "checking images", len(names))
    last_saved = time.monotonic()
    for name, result in zip(names, results, strict=True):
        if isinstance(result, UnusableFile):
            unusable.append(result)
        else:
            builder.add(name, catalog.captions[name], *result)
        if time.monotonic() - last_saved > SAVE_EVERY:
            table = builder.build(catalog.root, catalog.shards, catalog.image_column)
            save_unfinished(Index(table, catalog.rule, [], []))
            del table  # it shares the builder's memory, which cannot grow while it is in use
            last_saved = time.monotonic()
    table = builder.build(catalog.root, catalog.shards, catalog.image_column)
    if catalog.by_name:
        table = table.take(np.array(sorted(range(len(table)), key=table.names.__getitem__), int))
    return Index(table, catalog.rule, unusable, list(catalog.notes), catalog.uses)


def stamp_file(path: Source, shards: dict[Root, tuple[int, int]]) -> FileStamp:
    """Return where a file lies and when it was changed; shards: tar or table -> (number, time)."""
    if isinstance(path, Member):
        shard, mtime_ns = shards[path.shard]
        return FileStamp(size=path.size, mtime_ns=mtime_ns, shard=shard, offset=path.offset)
    if isinstance(path, Cell):
        shard, mtime_ns = shards[path.file]
        return FileStamp(size=0, mtime_ns=mtime_ns, shard=shard, offset=path.position)
    stat = path.stat()
    return FileStamp(size=stat.st_size, mtime_ns=stat.st_mtime_ns, shard=-1, offset=0)


def examine_image(path: Source, stamp: FileStamp) -> tuple[ImageFacts, str]:
    """Decode an image to its end and hash it; return the facts and the kind of its pixels."""
    (width, height), mode = inspect_image(path)
    sha256 = file_digest(path)
    return ImageFacts(**stamp, width=width, height=height, sha256=sha256), mode


def file_digest(path: Source) -> bytes:
    """Compute the sha256 of an image file, which may lie in a tar file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def verify_images(pairs: PairList, progress: Progress) -> None:
    """Read every image file again, whatever its time of change, and compare the hashes.

    Raises:
        UserError: some files are not those that were indexed; they are named.
    """
    hashes = pairs.table.columns["sha256"]

    def has_changed(row: np.integer) -> bool:
        return file_digest(pairs.table.path(int(row))) != hashes[row].tobytes()

    rows: Sequence[np.integer] = pairs.rows  # pyright: ignore[reportAssignmentType]  # sliced alike
    results = progress(map_in_threads(has_changed, rows), "verifying images", len(rows))
    changed = np.fromiter(results, bool, len(rows))
    if changed.any():
        paths = pairs.where(changed).paths
        raise UserError(
            f"{len(paths)} images have changed, though their sizes and times are as before:\n"
            f"{as_lines(paths)}\n"
            "Restore them, or give them a new time (touch) so that they are indexed again."
        )


# Saving and loading -------------------------------------------------------------------------------


def save_index(index: Index, folder: Path) -> bool:
    """Write an index that appears whole or not at all; return whether it is there now.

    If it cannot be written, a note is added to the index. Several processes may do this at once,
    each in a temporary folder of its own; the first one to rename its folder wins. Nothing is
    flushed to the disk: an index that a power cut damages is built again.
    """
    root, unfinished = index.table.root, None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        index.table.save(unfinished)
        content = {
            "rule": index.rule,
            "notes": index.notes,
            "uses": index.uses,
            "unusable": [pack_unusable(entry, root) for entry in index.unusable],
        }
        text = json.dumps(content, indent=1)  # names that are not UTF-8 survive as escapes
        (unfinished / MARK).write_text(text, encoding="utf-8")
        unfinished.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        if folder.exists() and load_index(folder, root) is None:
            remove_folders(folder)  # damaged
        unfinished.rename(folder)
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


def load_index(folder: Path, root: Root) -> Index | None:
    """Load an index; None if there is none, or if it is damaged and has to be built again."""
    try:
        content = from_json(IndexFile, read_json(folder / MARK, limit=LARGEST_MARK), folder / MARK)
        table = Table.open(folder, root)
    except (OSError, ValueError, EOFError):
        return None
    unusable = [unpack_unusable(entry, root) for entry in content.unusable]
    return Index(table, content.rule, unusable, content.notes, content.uses)


def pack_unusable(entry: UnusableFile, root: Root) -> list[str]:
    """Make [path, member name or "", reason]; relative to the root, since a folder may be moved."""
    path, member = entry.path, ""
    if isinstance(path, Member):
        path, member = path.shard, path.name
    elif isinstance(path, Cell):
        path, member = path.file, path.place
    if isinstance(path, RemoteFile):
        return [str(path).removeprefix(f"{root}/"), member, entry.reason]
    return [os.path.relpath(path, root), member, entry.reason]


def unpack_unusable(entry: Sequence[str], root: Root) -> UnusableFile:
    """Undo `pack_unusable`."""
    name, member, reason = entry
    path = root / name
    return UnusableFile(Member(path, member, offset=0, size=0) if member else path, reason)


def remove_folders(*folders: Path) -> None:
    """Remove folders that may not exist."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
