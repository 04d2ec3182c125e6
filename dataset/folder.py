"""A folder of captioned images, or tar files of them, read and checked before any training."""

import errno
import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from dataset.captions.files import FileList, clashes, composed_names
from dataset.captions.rows import captions_hash, unique_captions
from dataset.captions.rules import find_captions, near_misses
from dataset.images.formats import EXTENSIONS, unread_format
from dataset.images.transform import parse_mode
from dataset.index import Catalog, Section, check_share, load_index_of, open_index, slices
from dataset.options import DEFAULT_OPTIONS, ReadOptions
from dataset.parallel import ALONE, Progress, WorkShare, no_progress
from dataset.source import UnusableFile, as_lines
from dataset.splits import choose_split, split_folders
from dataset.stores.remote import is_remote
from dataset.table import NO_CAPTION, PairList, Root
from dataset.tabular.discover import plan_tables
from dataset.webdataset import describe_no_images as describe_no_shard_images
from dataset.webdataset import (
    expand_shards,
    is_shards,
    shard_names_hash,
    shard_parts,
    shards_fingerprint,
)
from foundation.errors import MissingFileError, UserError, one_line

TRUSTED = (
    "images whose .json states their sha256 were not decoded. Each is compared with it when it is "
    "read, and a damaged one stops the training"
)
RULES = 2  # of reading folders: another number makes older indexes invalid; no image is read again


def count_values(values: Integer[np.ndarray, " n"]) -> dict[int, int]:
    """Return how often each value occurs, in the order in which they occur first."""
    found, firsts, counts = np.unique(values, return_index=True, return_counts=True)
    order = np.argsort(firsts)
    return dict(zip(found[order].tolist(), counts[order].tolist(), strict=True))


@dataclass(frozen=True)
class Folder:
    """The content of a data folder.

    Args:
        root: the folder, or the pattern that names the tar files.
        rule: where the captions come from.
        pairs: all usable images, in the order of their names.
        unusable: files that were left out, each with the reason.
        notes: what the user should know.
        uses: of shards and tables, how many members or rows there are of each kind.
    """

    root: Root
    rule: str
    pairs: PairList
    unusable: list[UnusableFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)

    @property
    def without_caption(self) -> PairList:
        """The pairs that have no caption."""
        return self.pairs.where(~self.has_caption)

    @property
    def with_caption(self) -> PairList:
        """The other ones."""
        return self.pairs.where(self.has_caption)

    @property
    def has_caption(self) -> Bool[np.ndarray, " pairs"]:
        """Which pairs have one."""
        no_caption = np.frombuffer(captions_hash(NO_CAPTION), np.uint8)

        def is_given(
            hashes: UInt8[np.ndarray, "n bytes"],
        ) -> Bool[np.ndarray, " n"]:
            return (hashes != no_caption).any(axis=1)

        return self.pairs.compute(is_given, bool, "captions_hash")

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Width and height, and how many images have them."""
        sides = [self.pairs.column(name).astype(np.int64) for name in ("width", "height")]
        counts = count_values(sides[0] << 32 | sides[1])
        return Counter({(k >> 32, k & 0xFFFFFFFF): count for k, count in counts.items()})

    @property
    def modes(self) -> Counter[str]:
        """The kinds of pixels, as `inspect_image` names them, and how many images have each."""
        counts = count_values(self.pairs.column("mode"))
        return Counter({self.pairs.table.modes[k]: count for k, count in counts.items()})

    def require_all_usable(self) -> None:
        """Raise a UserError that names the files that were left out, if there are any."""
        if self.unusable:
            raise UserError(
                f"{len(self.unusable)} files of {self.root} cannot be used:\n"
                f"{as_lines(self.unusable)}\n"
                "Repair or remove them, or leave them out: skip_unusable. "
                f"To see all of them: python check.py {shlex.quote(str(self.root))}"
            )

    def require_one_dtype(self) -> str:
        """Return the type of the numbers in all files, as numpy names it.

        Raises:
            UserError: the files hold numbers of several types. A file of another depth would be
                trained on as nearly black, or clipped to white, and nobody would see why.
        """
        numbers = self.pairs.column("mode")
        counts: Counter[str] = Counter()
        firsts = sorted((int((numbers == k).argmax()), k) for k in np.unique(numbers).tolist())
        examples: dict[str, int] = {}  # dtype -> the first of its images
        for first, number in firsts:
            dtype, _ = parse_mode(self.pairs.table.modes[number])
            counts[dtype] += int((numbers == number).sum())
            examples.setdefault(dtype, first)
        if len(counts) == 1:
            return next(iter(counts))
        shown = ", ".join(
            f"{count} of {dtype} (such as {self.pairs[examples[dtype]].path})"
            for dtype, count in counts.most_common()
        )
        raise UserError(
            f"{self.root} mixes pixel formats: {shown}. Convert all files to one, or split the "
            "folder."
        )


def read_folder(
    data: Path | str,
    allow_missing_captions: bool = False,
    progress: Progress = no_progress,
    options: ReadOptions = DEFAULT_OPTIONS,
    share: WorkShare = ALONE,
) -> Folder:
    """Find images and captions, and decode every image that is not in the index yet.

    Several processes that read the same folder decode a share of the images each.

    Args:
        data: a folder, for which the first rule of `dataset.captions` that fits is used; or tar
            files in WebDataset's layout, by a pattern such as 'shards/{000..099}.tar' or
            'shards/*.tar'; or tables (parquet, Arrow, CSV, JSON) by a file, a pattern or a folder.
        allow_missing_captions: accept images without a caption; they get the empty caption.
        options: what to read of it.

    Raises:
        UserError: there is nothing to train on, captions are missing, or a file looks like
            captions but does not have the right name.
        MissingFileError: the folder or a tar file does not exist.
    """
    plan = plan_index(data, options, progress)
    index = open_index(*plan, progress, share)
    if is_shards(data) and not index.uses.get("image", 1):
        raise UserError(describe_no_shard_images(plan.root, expand_shards(data)[1]))
    if not len(index.table):
        raise UserError(f"none of the images in {data} can be used:\n{as_lines(index.unusable)}")
    shown_root = plan.root if is_remote(data) else Path(data)
    notes = [*index.notes, TRUSTED] if index.table.is_trusted else index.notes
    folder = Folder(shown_root, index.rule, index.table.pairs, index.unusable, notes, index.uses)
    if not allow_missing_captions:
        require_captions(folder)
    return folder


def check_part(
    data: Path | str, number: int, count: int, progress: Progress, options: ReadOptions
) -> tuple[int, int]:
    """Check one of `count` parts of the images, and join all of them if this is the last one.

    number: counted from 1.

    Returns:
        How many pieces of the data set have been checked by now, and of how many.
    """
    share = WorkShare(number - 1, count)
    _, done, total = check_share(*plan_index(data, options, progress), progress, share)
    return done, total


class DataPlan(NamedTuple):
    """What `open_index` needs to know."""

    root: Root
    kind: str
    fingerprint: str
    list_parts: Callable[[], list[Section]]


def plan_index(data: Path | str, options: ReadOptions, progress: Progress) -> DataPlan:
    """Find out what the data are, and how they are indexed."""
    if is_shards(data):
        options.refuse(("split", "image_column", "caption_column"), "shards")
        root, shards = expand_shards(data)
        kind, fingerprint = f"shards-{shard_names_hash(shards)}", shards_fingerprint(root, shards)
        # Where all images have been decoded already, nothing must be trusted.
        trust = options.trust_hashes and load_index_of(root, kind, fingerprint) is None
        parts = partial(shard_parts, root, shards, trust)
        return DataPlan(root, f"trusted_{kind}" if trust else kind, fingerprint, parts)
    if options.trust_hashes:
        raise UserError(
            f"trust_hashes is for shards, whose .json members state the sha256 of images; {data} "
            "is a folder or a table. Leave out trust_hashes."
        )
    if (plan := plan_tables(data, options, progress)) is not None:
        root, kind, fingerprint, read = plan
    else:
        options.refuse(("image_column", "caption_column"), "a folder of images")
        root = require_folder(Path(data))
        kind = "folder" if options.split is None else f"{index_name(options.split)}_folder"
        fingerprint, read = folder_fingerprint(root), partial(read_catalog, root, options.split)
    return DataPlan(root, kind, fingerprint, partial(slices, read, fingerprint))


def index_name(split: str) -> str:
    """Return a split as the name of its index has it; the split may turn out not to exist."""
    return re.sub(r"\W", "-", split.lower(), flags=re.ASCII)[:40]


def require_captions(folder: Folder) -> None:
    """Raise a UserError if images have no caption; entries that fit no image may be the cause."""
    missing = folder.without_caption
    if not missing:
        return
    left_out = ""
    if folder.unusable:
        left_out = (
            f"{len(folder.unusable)} files or entries of {folder.root} cannot be used:\n"
            f"{as_lines(folder.unusable)}\nPerhaps for that reason, "
        )
    raise UserError(
        f"{left_out}{len(missing)} of {len(folder.pairs)} images in {folder.root} have no caption "
        f"(captions come from {folder.rule}):\n"
        f"{as_lines(missing.paths)}\n"
        "Add captions, remove these images, or train without them where that is possible "
        "(stage 2): allow_missing_captions."
    )


def require_folder(root: Path) -> Path:
    """Return the folder if it exists; otherwise name the most similar one next to it."""
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{root} is a file; give the folder that holds the images.")
    siblings = [path.name for path in root.parent.glob("*/")] if root.parent.is_dir() else []
    near = get_close_matches(root.name, siblings, n=1)
    raise MissingFileError(
        f"there is no data folder {root} (absolute path: {root.absolute()})."
        + (f" Did you mean {root.parent / near[0]}?" if near else "")
    )


# Files --------------------------------------------------------------------------------------------


def read_catalog(root: Path, split: str | None = None) -> Catalog:
    """Find the images and captions of a folder.

    Raises:
        UserError: there are no images, training and test images are mixed, or captions would be
            guessed although a file looks like captions.
    """
    files, unusable = list_files(root)
    if not files.images:
        raise UserError(describe_no_images(root, files, unusable))
    files = only_split(files, split)
    result = find_captions(files)
    notes = result.notes + near_misses(files, result)
    notes += [
        f"two images have names that differ only in Unicode's form: {one_line(root / one)} and "
        f"{other!a}. Both are used; their captions may be mixed up. Rename one."
        for one, other in clashes(files.images)
    ]
    captions = {
        on_disk: unique_captions(result.captions.get(name, ())) or NO_CAPTION
        for name, on_disk in sorted(files.images.items())
    }
    unusable += result.unusable
    return Catalog(root, result.rule, captions, root.joinpath, unusable, notes)


def list_files(root: Path) -> tuple[FileList, list[UnusableFile]]:
    """List all files below the root, through links too, without hidden ones."""
    images: list[str] = []
    others: list[str] = []
    unusable: list[UnusableFile] = []
    for entry in walk(root):
        path = root / entry.name
        suffix = path.suffix.lower()
        if reason := name_problem(entry.name):
            unusable.append(UnusableFile(path, reason))
        elif unread := unread_format(suffix):
            reason = f"is {unread}, which is not read; convert it to PNG or JPEG"
            unusable.append(UnusableFile(path, reason))
        elif entry.is_unread_folder or (suffix in EXTENSIONS and not entry.is_file):
            unusable.append(UnusableFile(path, describe_special(path)))
        elif suffix in EXTENSIONS:
            images.append(entry.name)
        else:
            others.append(entry.name)
    return FileList(root, composed_names(images), composed_names(others)), unusable


def name_problem(name: str) -> str:
    """Return why a file with this name cannot be used; "" if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8; rename it"
    return ""


def only_split(files: FileList, split: str | None) -> FileList:
    """Return the files of one split and those that belong to none, such as a table at the root.

    Raises:
        UserError: there are several splits and none is chosen, or there is no such split.
    """
    folders = split_folders(files.images)
    shown = " and ".join(f"{folder}/" for folder in folders)
    chosen = choose_split(list(folders.values()), split, files.root, shown)
    if chosen is None:
        return files
    prefixes = tuple(f"{folder}/" for folder, name in folders.items() if name != chosen)
    own = tuple(f"{folder}/" for folder, name in folders.items() if name == chosen)
    images = {name: on_disk for name, on_disk in files.images.items() if name.startswith(own)}
    others = {k: v for k, v in files.others.items() if not k.startswith(prefixes)}
    return FileList(files.root, images, others, frozenset(files.images.keys() - images.keys()))


class Entry(NamedTuple):
    """A file below a folder, or a folder that cannot be listed."""

    name: str  # relative to the root, with slashes, as the disk has it
    is_file: bool  # False for a pipe, a device, a broken link
    is_hidden: bool = False
    is_unread_folder: bool = False


def walk(root: Path, with_hidden: bool = False) -> Iterator[Entry]:
    """Yield all files, through links too; a folder that is linked twice is visited once.

    Visible files come in the order of their names, those of a folder before those of the folders in
    it. Hidden folders come last.

    with_hidden: also what has a hidden name or lies in a hidden folder.
    """
    visited: set[str] = set()
    visible: list[tuple[str, bool]] = [("", False)]
    hidden: list[tuple[str, bool]] = []
    while visible or hidden:
        prefix, is_hidden_folder = (visible or hidden).pop()
        folder = os.path.join(root, prefix)
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above, or a second link
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if not prefix:
                raise
            yield Entry(prefix.rstrip("/"), False, is_hidden_folder, is_unread_folder=True)
            continue
        subfolders: list[tuple[str, bool]] = []
        for entry in found:
            is_folder = is_kind(entry.is_dir)
            is_hidden_entry = is_hidden_folder or is_hidden(entry.name, is_folder)
            if is_hidden_entry and not with_hidden:
                continue
            if is_folder:
                queue = hidden if is_hidden_entry and not is_hidden_folder else subfolders
                queue.append((f"{prefix}{entry.name}/", is_hidden_entry))
            else:
                yield Entry(prefix + entry.name, is_kind(entry.is_file), is_hidden_entry)
        (hidden if is_hidden_folder else visible).extend(reversed(subfolders))


def is_kind(test: Callable[[], bool]) -> bool:
    """Return what a method of `os.DirEntry` says; False for a link that leads to itself."""
    try:
        return test()
    except OSError:
        return False


def is_hidden(name: str, folder: bool = False) -> bool:
    """Return whether a name begins with a dot, or is a folder that macOS adds to archives."""
    return name.startswith((".", "__MACOSX") if folder else ".")


def describe_special(path: Path) -> str:
    """Return why this is no file that can be read; the text continues "<path> ..."."""
    if path.is_symlink():
        try:
            path.stat()
        except OSError as error:
            target = one_line(os.readlink(path))
            loops = error.errno == errno.ELOOP
            return (
                f"is a link to {target}, which leads to itself"
                if loops
                else (f"is a broken link to {target}")
            )
    if path.is_dir():
        return "is a folder that cannot be listed; do you have the right to read it?"
    return "is no file but a pipe, a socket or a device"


def folder_fingerprint(root: Path) -> str:
    """Hash names, sizes and times of all files that `walk` yields, independent of their order.

    It takes a few seconds for a million files: no file is opened, and no name is kept in memory.
    """
    total = RULES
    visited: set[str] = set()
    folders = [(str(root), "")]
    while folders:
        folder, prefix = folders.pop()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        try:
            entries = os.scandir(folder)
        except OSError:  # `list_files` names it
            if not prefix:
                raise
            continue
        with entries:
            for entry in entries:
                if is_kind(entry.is_dir):
                    if not is_hidden(entry.name, folder=True):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif not is_hidden(entry.name):
                    total += entry_hash(prefix, entry)
    return f"{total % 2**128:032x}"


def entry_hash(prefix: str, entry: "os.DirEntry[str]") -> int:
    """Hash name, size and time of one file to 128 bits."""
    try:
        stat = entry.stat()
    except OSError:  # a broken link
        stat = entry.stat(follow_symlinks=False)
    line = f"{prefix}{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}"
    digest = hashlib.blake2b(line.encode(errors="surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest, "little")


# Likely mistakes ----------------------------------------------------------------------------------


def describe_no_images(root: Path, files: FileList, unusable: list[UnusableFile]) -> str:
    """Write the message for a folder without images: what there is instead."""
    suffixes = (PurePosixPath(name).suffix.lower() for name in files.others)
    kinds = Counter(suffix or "(no extension)" for suffix in suffixes)
    message = f"no images in {root}. Images end in {', '.join(sorted(EXTENSIONS))}; there are "
    message += ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files"
    message += "."
    if ".tar" in kinds:
        message += f" Tar files are given by a pattern, in quotes: '{root}/*.tar'."
    return message + (f"\nLeft out:\n{as_lines(unusable)}" if unusable else "")
