"""The index of a data folder: facts about its images and captions, saved next to them.

At the first start every image is decoded to its end and hashed. The result is saved in
.latentsmith/ in the data folder, for remote data in the user's cache (LATENTSMITH_INDEX=FOLDER puts
it elsewhere), and it is valid as long as no file's name, size or time changes. After a change only
the changed files are read again.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from dataset.captions.rows import Caption
from dataset.images.decode import read_header
from dataset.images.transform import inspect_image
from dataset.index_files import (
    FORMAT,
    MARK,
    Index,
    index_folder,
    load_index,
    remove_folders,
    save_index,
    write_index,
)
from dataset.joining import JoinedTables, empty_table
from dataset.parallel import ALONE, Progress, WorkShare, map_in_threads, no_progress
from dataset.source import Cell, Member, Source, UnusableFile, UnusableImage, as_lines
from dataset.table import (
    FileStamp,
    ImageFacts,
    PairList,
    Root,
    Table,
    TableBuilder,
    name_hash,
    smallest_int,
)
from foundation.errors import UserError, one_line

SAVE_EVERY = 60.0  # seconds between two times that an unfinished part is saved
MOST_PARTS = 1024  # that the images are divided into
TRIES = 5  # to join parts that other processes join and remove at the same time
LEAST_IMAGES = 256  # in a part of a folder or a table
NOT_READ = "not read ."  # before an ending, among the uses of members


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
        examples: of shards, a member for each ending that is not read.
        hashes: image name -> sha256 that the shard states; these images are not decoded.
    """

    root: Root
    rule: str
    captions: dict[str, tuple[Caption, ...]]
    locate: Callable[[str], Source]
    unusable: list[UnusableFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    image_column: str = ""
    by_name: bool = False
    examples: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, bytes] | None = None


@dataclass(frozen=True)
class Section:
    """A part of the images, which one process checks.

    Args:
        key: of the files; it changes when they change.
        read: finds images and captions, but opens no image.
        by_name: as in `Catalog`; the same in all parts.
    """

    key: str
    read: Callable[[], Catalog]
    by_name: bool = False


def slices(read: Callable[[], Catalog], fingerprint: str) -> list[Section]:
    """Divide a catalog that is read as a whole into parts of some hundred images or more."""
    catalog = read()
    names = list(catalog.captions)
    length = max(LEAST_IMAGES, -(-len(names) // MOST_PARTS))

    def part(start: int) -> Catalog:
        own = names[start : start + length]
        captions = {name: catalog.captions[name] for name in own}
        if start:
            return replace(catalog, captions=captions, unusable=[], notes=[], uses={})
        return replace(catalog, captions=captions)

    starts = range(0, max(len(names), 1), length)
    return [
        Section(f"{fingerprint}.{start}", partial(part, start), catalog.by_name) for start in starts
    ]


def open_index(
    root: Root,
    kind: str,
    fingerprint: str,
    list_parts: Callable[[], Sequence[Section]],
    progress: Progress,
    share: WorkShare = ALONE,
) -> Index:
    """Load the index with this fingerprint; if there is none, build it, reusing an older one.

    Processes that share a disk check a part of the images each; rank 0 joins the parts. The result
    does not depend on how many there are. What is still missing then, because they share no disk,
    each makes itself.

    Args:
        kind: first part of the index's name; indexes of several kinds may lie next to each other.
        fingerprint: of all files; it changes when files are added, removed or changed.
        list_parts: divides the images, in the order that the index will have.
    """
    folder = index_folder(root) / f"{kind}-{fingerprint}-{FORMAT}"
    index, check = load_index(folder, root), None
    if index is None:
        check = Check(root, kind, list_parts(), progress)
        check.run(range(share.rank, len(check.parts), share.world_size))
    share.barrier()
    if check is not None and share.rank == 0:
        index = check.join(folder)
    share.barrier()
    if index is None and (index := load_index(folder, root)) is None:
        assert check is not None
        index = check.join(folder)
    return index


def load_index_of(root: Root, kind: str, fingerprint: str) -> Index | None:
    """Load the index with this fingerprint if there is one."""
    return load_index(index_folder(root) / f"{kind}-{fingerprint}-{FORMAT}", root)


def check_share(
    root: Root,
    kind: str,
    fingerprint: str,
    list_parts: Callable[[], Sequence[Section]],
    progress: Progress,
    share: WorkShare,
) -> tuple[Index | None, int, int]:
    """Check the parts of one of several processes that do not wait for each other.

    The one that finishes last joins all parts.

    Returns:
        The index if it is complete, how many parts are finished, and of how many.
    """
    folder = index_folder(root) / f"{kind}-{fingerprint}-{FORMAT}"
    if (index := load_index(folder, root)) is not None:
        return index, 1, 1
    check = Check(root, kind, list_parts(), progress)
    check.run(range(share.rank, len(check.parts), share.world_size))
    if check.kept:
        raise UserError(
            f"the result cannot be saved in {folder.parent}. Set LATENTSMITH_INDEX to a folder "
            "that can be written, the same for all parts."
        )
    done = sum((check.folder(k) / MARK).is_file() for k in range(len(check.parts)))
    if done < len(check.parts):  # or another process has joined them just now
        return load_index(folder, root), done, len(check.parts)
    return check.join(folder), done, done


class VanishedPart(Exception):
    """A part that was there has been removed."""


class Check:
    """The check of all images, in parts that are saved one by one.

    Args:
        kind, progress: as for `open_index`.
    """

    def __init__(self, root: Root, kind: str, parts: Sequence[Section], progress: Progress):
        self.root, self.kind, self.parts, self.progress = root, kind, parts, progress
        self.kept: dict[int, Index] = {}  # parts that could not be saved
        home = index_folder(root)
        own = {self.folder(k) for k in range(len(parts))}
        marks = sorted(home.glob(f"{kind}-*-{FORMAT}/{MARK}"))
        self.older = [mark.parent for mark in marks if mark.parent not in own]
        found = (load_index(path, root) for path in self.older)
        self.earlier = EarlierRows([index.table for index in found if index is not None])

    def folder(self, number: int) -> Path:
        """Return where a part is saved."""
        key = hashlib.blake2b(self.parts[number].key.encode(), digest_size=16).hexdigest()
        return index_folder(self.root) / f"{self.kind}-part.{key}-{FORMAT}"

    def run(self, numbers: Sequence[int]) -> None:
        """Check these parts, except for those that are finished."""
        missing = [k for k in numbers if k not in self.kept and not self.is_finished(k)]
        is_one = len(self.parts) == 1
        shown = missing if is_one else self.progress(missing, "checking parts", len(missing))
        for k in shown:
            folder = self.folder(k)
            unfinished = folder.with_name(folder.name.replace("-part.", "-unfinished."))

            def save_unfinished(index: Index, folder: Path = unfinished) -> None:
                remove_folders(folder)
                save_index(index, folder)

            bar = self.progress if is_one else no_progress
            index = build_index(self.parts[k].read(), self.earlier, bar, save_unfinished)
            notes = list(index.notes)
            if not save_index(index, folder):
                self.kept[k] = replace(index, notes=notes)
            remove_folders(unfinished)

    def is_finished(self, number: int) -> bool:
        """Return whether a part has been checked; a damaged one is checked again."""
        return (self.folder(number) / MARK).is_file() and self.load(number) is not None

    def load(self, number: int) -> Index | None:
        """Return a part, without keeping it."""
        return self.kept.get(number) or load_index(self.folder(number), self.root)

    def part(self, number: int) -> Index:
        """Return a part that must be there."""
        index = self.load(number)
        if index is None:
            raise VanishedPart(number)
        return index

    def join(self, folder: Path) -> Index:
        """Check what is missing, join all parts, save the result and remove what is older."""
        for _ in range(TRIES):
            if (index := load_index(folder, self.root)) is not None:
                remove_folders(*map(self.folder, range(len(self.parts))))
                return index
            try:
                return self.join_once(folder)
            except VanishedPart:  # another process has joined the parts and removed them
                continue
        raise UserError(
            f"parts of the index vanish from {folder.parent} again and again. Do several programs "
            "check these data, and change them meanwhile? Start again."
        )

    def join_once(self, folder: Path) -> Index:
        """Join all parts if they are there until the end."""
        numbers = range(len(self.parts))
        self.run(numbers)
        parts = [replace(self.part(k), table=empty_table(self.root)) for k in numbers]
        table_of = lru_cache(1)(lambda k: self.part(k).table)
        joined = JoinedTables([partial(table_of, k) for k in numbers])
        index = join_facts(parts)
        if self.parts[0].by_name:
            table = joined.in_memory()
            order = np.array(sorted(range(len(table)), key=table.names.__getitem__), int)
            index = replace(index, table=table.take(order))
            saved = save_index(index, folder)
        else:
            saved = write_index(index, folder, joined.save)
        if not saved:
            return index if len(index.table) else replace(index, table=joined.in_memory())
        stale = [path for path in self.older if path != folder]
        loaded = load_index(folder, self.root)
        self.earlier = EarlierRows([])  # Windows removes no file that is mapped
        remove_folders(*map(self.folder, numbers), *stale)
        return loaded or index


def join_facts(parts: Sequence[Index]) -> Index:
    """Join what parts say besides their rows, as if they had been one."""
    uses: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for part in parts:
        for kind, count in part.uses.items():
            uses[kind] += count
        examples = {**part.examples, **examples}
    unread = {kind: count for kind, count in uses.items() if kind.startswith(NOT_READ)}
    read = {kind: count for kind, count in uses.items() if kind not in unread}
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if unread:
        notes.insert(0, describe_unread(unread, examples))
    unusable = [entry for part in parts for entry in part.unusable]
    unusable += [entry for part in parts for entry in part.broken]
    return Index(parts[0].table, parts[0].rule, unusable, notes, read | unread)


def describe_unread(unread: Mapping[str, int], examples: Mapping[str, str]) -> str:
    """Write a note on the endings of members that are not read."""
    common = Counter(unread).most_common(8)
    endings = [f"{n:,} .{one_line(kind.removeprefix(NOT_READ), 40)}" for kind, n in common]
    example = examples[common[0][0].removeprefix(NOT_READ)]
    return (
        f"{sum(unread.values()):,} members of the shards are not read: {', '.join(endings)}, "
        f"such as {one_line(example, 500)}"
    )


# Building -----------------------------------------------------------------------------------------


class EarlierRows:
    """Finds the facts about an image in earlier tables, if the file has not changed.

    Names are found by their hashes: some bytes of memory per name, where a dict takes hundreds.
    """

    def __init__(self, tables: list[Table]):
        self.tables = tables
        self.ends = np.cumsum([len(table) for table in tables])
        places = np.concatenate([[], *(table.columns["place"] for table in tables)])
        self.order = places.argsort().astype(smallest_int(len(places)))
        self.places = places[self.order]

    def find(self, name: str, stamp: FileStamp) -> tuple[ImageFacts, str] | None:
        """Return the facts and the kind of pixels; None if they have to be read from the file."""
        if not len(self.order):
            return None
        place = name_hash(name)
        first, end = self.places.searchsorted(place), self.places.searchsorted(place, "right")
        for number in self.order[first:end].tolist():
            k = int(np.searchsorted(self.ends, number, "right"))
            table, row = self.tables[k], number - int(self.ends[k]) + len(self.tables[k])
            columns = table.columns
            if (
                table.names[row] == name
                and columns["size"][row] == stamp["size"]
                and columns["mtime_ns"][row] == stamp["mtime_ns"]
                and columns["offset"][row] == stamp["offset"]
            ):
                facts = ImageFacts(
                    **stamp,
                    width=int(columns["width"][row]),
                    height=int(columns["height"][row]),
                    sha256=columns["sha256"][row].tobytes(),
                )
                return facts, table.modes[columns["mode"][row]]
        return None


def build_index(
    catalog: Catalog,
    earlier: EarlierRows,
    progress: Progress,
    save_unfinished: Callable[[Index], None],
) -> Index:
    """Open every image whose facts are not in an earlier index, and return those of this part."""
    builder, broken = TableBuilder(), list[UnusableFile]()
    shards = {
        catalog.root / name: (k, mtime) for k, (name, mtime) in enumerate(catalog.shards.items())
    }
    trusted = catalog.hashes or {}
    samples = first_of_each_shard(catalog, trusted)

    def examine(name: str) -> tuple[ImageFacts, str] | UnusableFile:
        path = catalog.locate(name)
        try:
            stamp = stamp_file(path, shards)
            if (found := earlier.find(name, stamp)) is not None:
                return found
            if name in trusted and name not in samples:
                return trust_image(path, stamp, trusted[name])
            facts, mode = examine_image(path, stamp)
            if name in samples:
                refuse_other_hash(path, facts["sha256"], trusted[name])
            return facts, mode
        except UnusableImage as error:
            return UnusableFile(path, error.reason)
        except OSError as error:
            return UnusableFile(path, f"cannot be read: {error.strerror or error}")

    def build() -> Table:
        is_trusted = catalog.hashes is not None
        return builder.build(catalog.root, catalog.shards, catalog.image_column, is_trusted)

    names = list(catalog.captions)
    results = progress(map_in_threads(examine, names), "checking images", len(names))
    last_saved = time.monotonic()
    for name, result in zip(names, results, strict=True):
        if isinstance(result, UnusableFile):
            broken.append(result)
        else:
            builder.add(name, catalog.captions[name], *result)
        if time.monotonic() - last_saved > SAVE_EVERY:
            save_unfinished(Index(build(), catalog.rule, [], []))
            last_saved = time.monotonic()
    return Index(
        build(),
        catalog.rule,
        catalog.unusable,
        list(catalog.notes),
        catalog.uses,
        broken,
        catalog.examples,
    )


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


def first_of_each_shard(catalog: Catalog, names: Iterable[str]) -> set[str]:
    """Return the first of these images in each shard."""
    found: dict[Root, str] = {}
    for name in names:
        path = catalog.locate(name)
        if isinstance(path, Member):
            found.setdefault(path.shard, name)
    return set(found.values())


def refuse_other_hash(path: Source, sha256: bytes, stated: bytes) -> None:
    """Raise a UserError if a hash that a shard states is not that of the image next to it."""
    if sha256 != stated:
        raise UserError(
            f"{path} has the sha256 {sha256.hex()}, but its .json states {stated.hex()}, so the "
            "hashes of these shards cannot be trusted. img2dataset states the hash of the file "
            "that it fetched; if it has resized the image, that is another. Leave out trust_hashes."
        )


def trust_image(path: Source, stamp: FileStamp, sha256: bytes) -> tuple[ImageFacts, str]:
    """Return the facts about an image with this hash, from its header if that says enough."""
    assert isinstance(path, Member), "only shards state hashes"
    try:
        header = read_header(path)
    except UnusableImage:
        header = None  # perhaps only its beginning is odd
    if header is None:
        facts, mode = examine_image(path, stamp)
        return ImageFacts(**{**facts, "sha256": sha256}), mode
    (width, height), mode = header
    return ImageFacts(**stamp, width=width, height=height, sha256=sha256), mode


def verify_images(pairs: PairList, progress: Progress) -> None:
    """Read every image file again, whatever its time of change, and compare the hashes.

    Raises:
        UserError: some files are not those that were indexed; they are named.
    """
    hashes = pairs.table.columns["sha256"]

    def has_changed(k: int) -> bool:
        row = int(pairs.rows[k])
        return file_digest(pairs.table.path(row)) != hashes[row].tobytes()

    count = len(pairs)
    results = progress(map_in_threads(has_changed, range(count)), "verifying images", count)
    changed = np.fromiter(results, bool, count)
    if changed.any():
        paths = pairs.where(changed).paths
        raise UserError(
            f"{len(paths)} images have changed, though their sizes and times are as before:\n"
            f"{as_lines(paths)}\n"
            "Restore them, or give them a new time (touch) so that they are indexed again."
        )
