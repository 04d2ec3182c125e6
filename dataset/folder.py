"""A folder of captioned images, or tar files of them, read and checked before any training."""

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from dataset.captions import (
    CAPTION_FILES,
    SIDECAR_SUFFIXES,
    CaptionSet,
    FileList,
    find_captions,
)
from dataset.images.formats import EXTENSIONS
from dataset.images.transform import parse_mode
from dataset.index import Catalog, open_index
from dataset.options import DEFAULT_OPTIONS, ReadOptions
from dataset.parallel import Progress, no_progress
from dataset.source import UnusableFile, as_lines
from dataset.table import NO_CAPTION, PairList, captions_hash
from dataset.webdataset import (
    expand_shards,
    is_shards,
    read_shards,
    shard_names_hash,
    shards_fingerprint,
)
from foundation.errors import MissingFileError, UserError

NOT_READ = frozenset((".avif", ".dcm", ".eps", ".exr", ".heic", ".heif", ".jxl", ".psd", ".svg"))
TEST_SPLITS = frozenset(("test", "val", "valid", "validation"))


@dataclass(frozen=True)
class Folder:
    """The content of a data folder.

    Args:
        root: the folder, or the pattern that names the tar files.
        rule: where the captions come from.
        pairs: all usable images, in the order of their names.
        unusable: files that were left out, each with the reason.
        notes: what the user should know.
    """

    root: Path
    rule: str
    pairs: PairList
    unusable: list[UnusableFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def without_caption(self) -> PairList:
        """The pairs that have no caption."""
        no_caption = np.frombuffer(captions_hash(NO_CAPTION), np.uint8)
        return self.pairs.where((self.pairs.column("captions_hash") == no_caption).all(axis=1))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image."""
        widths, heights = (self.pairs.column(name).tolist() for name in ("width", "height"))
        return list(zip(widths, heights, strict=True))

    @property
    def modes(self) -> list[str]:
        """The kind of pixels of each image, as `inspect_image` names it."""
        return [self.pairs.table.modes[row] for row in self.pairs.column("mode").tolist()]

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
        modes = self.modes
        counts: Counter[str] = Counter()
        example_modes: dict[str, str] = {}  # dtype -> one of its modes
        for mode, count in Counter(modes).items():
            dtype, _ = parse_mode(mode)
            counts[dtype] += count
            example_modes.setdefault(dtype, mode)
        if len(counts) == 1:
            return next(iter(counts))
        shown = ", ".join(
            f"{count} of {dtype} (such as {self.pairs[modes.index(example_modes[dtype])].path})"
            for dtype, count in counts.most_common()
        )
        raise UserError(
            f"the files of {self.root} hold numbers of different depths: {shown}. The same number "
            "would mean different things. Convert all to one type, or keep them in separate "
            "folders."
        )


def read_folder(
    data: Path | str,
    allow_missing_captions: bool = False,
    progress: Progress = no_progress,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Folder:
    """Find images and captions, and decode every image that is not in the index yet.

    If several processes read the same folder, let one process of each machine go first: it builds
    the index, which the others then load.

    Args:
        data: a folder, for which the first rule of `dataset.captions` that fits is used; or tar
            files in WebDataset's layout, by a pattern such as 'shards/{000..099}.tar' or
            'shards/*.tar'.
        allow_missing_captions: accept images without a caption; they get the empty caption.
        options: what to read of it.

    Raises:
        UserError: there is nothing to train on, captions are missing, or a file looks like
            captions but does not have the right name.
        MissingFileError: the folder or a tar file does not exist.
    """
    if is_shards(data):
        options.refuse(options.READ_FLAGS, "shards")
        root, shards = expand_shards(data)
        kind, fingerprint = f"shards-{shard_names_hash(shards)}", shards_fingerprint(root, shards)
        read = partial(read_shards, root, shards, progress)
    else:
        options.refuse(options.READ_FLAGS, "a folder of images")
        root = require_folder(Path(data))
        kind, fingerprint = "folder", folder_fingerprint(root)
        read = partial(read_catalog, root)
    index = open_index(root, kind, fingerprint, read, progress)
    if not len(index.table):
        raise UserError(f"none of the images in {data} can be used:\n{as_lines(index.unusable)}")
    folder = Folder(Path(data), index.rule, index.table.pairs, index.unusable, index.notes)
    missing = folder.without_caption
    if missing and not allow_missing_captions:
        raise UserError(
            f"{len(missing)} of {len(folder.pairs)} images in {data} have no caption "
            f"(captions come from {folder.rule}):\n"
            f"{as_lines(missing.paths)}\n"
            "Add captions, remove these images, or train without them where that is possible "
            "(stage 2): allow_missing_captions."
        )
    return folder


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


def read_catalog(root: Path) -> Catalog:
    """Find the images and captions of a folder.

    Raises:
        UserError: there are no images, training and test images are mixed, or captions would be
            guessed although a file looks like captions.
    """
    files, unusable = list_files(root)
    if not files.images:
        raise UserError(describe_no_images(root, files, unusable))
    refuse_mixed_splits(files)
    result = find_captions(files)
    notes = near_misses(files, result)
    captions = {
        on_disk: unique_captions(result.captions.get(name, ()))
        for name, on_disk in sorted(files.images.items())
    }
    unusable += result.unusable
    return Catalog(root, result.rule, captions, root.joinpath, unusable, notes)


def unique_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Remove repeated captions; NO_CAPTION if there are none."""
    return tuple(dict.fromkeys(captions)) or NO_CAPTION


def list_files(root: Path) -> tuple[FileList, list[UnusableFile]]:
    """List all files below the root, through links too, without hidden ones."""
    files = FileList(root, {}, {})
    unusable: list[UnusableFile] = []
    for on_disk in walk(root):
        path = root / on_disk
        try:
            on_disk.encode()
        except UnicodeEncodeError:
            shown = Path(str(path).encode(errors="replace").decode())
            unusable.append(UnusableFile(shown, "has a name that is not UTF-8; rename it"))
            continue
        suffix = path.suffix.lower()
        if suffix in EXTENSIONS and path.is_symlink() and not path.exists():
            unusable.append(UnusableFile(path, f"is a broken link to {os.readlink(path)}"))
        elif suffix in NOT_READ:
            reason = f"{suffix} is not supported; convert it to PNG or JPEG"
            unusable.append(UnusableFile(path, reason))
        else:
            names = files.images if suffix in EXTENSIONS else files.others
            names[normalize("NFC", on_disk)] = on_disk
    return files, unusable


def walk(root: Path) -> Iterator[str]:
    """Yield the names of all files, relative to the root, with slashes, as the disk has them."""
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder above, or a second link
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name, folder=True))
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if relative == "." else relative + "/"
        yield from (prefix + name for name in sorted(files) if not is_hidden(name))


def is_hidden(name: str, folder: bool = False) -> bool:
    """Return whether a name begins with a dot, or is a folder that macOS adds to archives."""
    return name.startswith((".", "__MACOSX") if folder else ".")


def folder_fingerprint(root: Path) -> str:
    """Hash names, sizes and times of all files that `walk` yields, independent of their order.

    It takes a few seconds for a million files: no file is opened, and no name is kept in memory.
    """
    total = 0
    visited: set[str] = set()
    folders = [(str(root), "")]
    while folders:
        folder, prefix = folders.pop()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not is_hidden(entry.name, folder=True):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif not is_hidden(entry.name):
                    total += entry_hash(prefix, entry)
    return f"{total % 2**128:032x}"


def entry_hash(prefix: str, entry: "os.DirEntry[str]") -> int:
    """Hash name, size and time of one file to 128 bits."""
    try:
        stat = entry.stat()
    except FileNotFoundError:  # a broken link
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


def refuse_mixed_splits(files: FileList) -> None:
    """Raise a UserError if both train/ and a test set lie in the folder.

    A model that has been trained on test images can no longer be tested on them.
    """
    tops = {PurePosixPath(name).parts[0] for name in files.images if "/" in name}
    tests = {top for top in tops if top.lower() in TEST_SPLITS}
    if tests and "train" in {top.lower() for top in tops}:
        train = next(top for top in tops if top.lower() == "train")
        raise UserError(
            f"{files.root} holds {train}/ and {', '.join(sorted(tests))}/, which must be kept "
            f"apart. Give one of them, for example {files.root / train}."
        )


def near_misses(files: FileList, captions: CaptionSet) -> list[str]:
    """Write notes on files that look like captions but are not read.

    Raises:
        UserError: there are such files, and captions would be guessed from names.
    """
    notes: list[str] = []
    for name in sorted({os.path.basename(name) for name in files.others} - set(CAPTION_FILES)):
        near = get_close_matches(name.lower(), CAPTION_FILES, n=1, cutoff=0.8)
        if near:
            notes += [f"found {path}; did you mean {near[0]}?" for _, path in files.find(name)]
    if captions.is_guess:
        notes += misplaced_captions(files)
        if notes:
            raise UserError(
                f"{notes[0]}\nWithout it, captions would be guessed from {captions.rule}. "
                "Rename or move the file, or remove it."
            )
    if captions.rule.startswith("metadata.jsonl") and files.find("metadata.csv"):
        notes.append("metadata.csv is not used, since there is a metadata.jsonl")
    return notes


def misplaced_captions(files: FileList) -> list[str]:
    """Write notes on captions one folder up, or next to the images with another extension."""
    above = files.root.absolute().parent
    tables = [above / name for name in CAPTION_FILES if (above / name).is_file()]
    notes = [f"found {table}; did you mean the data folder {above}?" for table in tables]
    image_stems = {os.path.splitext(name)[0] for name in files.images}
    others = (os.path.splitext(name) for name in files.others)
    counts = Counter(suffix for stem, suffix in others if stem in image_stems)
    for suffix, count in counts.items():
        notes.append(
            f"found {count} {suffix} files next to images of the same name; did you mean "
            f"{' or '.join(SIDECAR_SUFFIXES)}?"
        )
    return notes
