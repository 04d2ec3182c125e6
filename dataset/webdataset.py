"""Tar files ("shards") of images and captions, in the layout of the webdataset library.

    000123.jpg  000123.txt      members with the same name up to its first dot form a sample

Captions come from .txt or .caption, one per line, or else from the field `text` or `caption` of a
.json member, a string or a list of strings, which may have `caption_weights` and
`caption_languages` next to it. Tar files are not streamed: the position of each member is noted
once, so any of them can be read at any time, in any order.
"""

import glob
import hashlib
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.captions.rows import (
    LANGUAGES,
    TEXT_FIELDS,
    WEIGHTS,
    Caption,
    caption_list,
    check_caption,
    first_field,
    text_of,
    unique_captions,
)
from dataset.captions.sidecars import SIDECAR_SUFFIXES, split_lines
from dataset.images.formats import EXTENSIONS, unread_format
from dataset.index import MOST_PARTS, NOT_READ, Catalog, Section
from dataset.parallel import Progress, no_progress
from dataset.source import Member, Source, UnusableFile, as_lines
from dataset.stores.listing import expand_remote
from dataset.stores.remote import is_remote, parse_url
from dataset.table import NO_CAPTION, ComputedStrings, Root
from dataset.tar import DamagedTar, TarEntry, walk_tar
from foundation.errors import MissingFileError, UserError, listed, one_line, shown
from foundation.files import decode_text
from foundation.json_reading import load_json
from foundation.paths import common_folder

RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")  # {000..099}
ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")  # {a,b}
TAR = re.compile(r"\.tar(\.\w+)?$|\.tgz$")
PARQUET = (".parquet", ".parq", ".pq")  # tables, which stores may hold too
CAPTIONS = ("txt", "caption", "json")  # extensions of members that hold captions
LARGEST_CAPTION = 16 * 2**20  # bytes of such a member
MOST_LINKS = 40  # symbolic links that lead to each other
SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
MOST_DIGITS = 15  # of a number in braces
MOST_SHARDS = 1_000_000  # that a pattern may name
RULES = b"3"  # of reading shards: another number makes older indexes invalid


# Patterns -----------------------------------------------------------------------------------------


def is_shards(data: Path | str) -> bool:
    """Return whether this names tar files and not a folder."""
    text = str(data)
    remote = is_remote(text) and not text.lower().endswith(PARQUET)
    return bool(TAR.search(text) or remote) and not os.path.isdir(text)


def expand_shards(pattern: Path | str) -> tuple[Root, list[str]]:
    """Expand a pattern to (folder, names of the tar files relative to it), sorted by name.

    Raises:
        MissingFileError: a file does not exist; the first few are named.
        UserError: the tar files are compressed, or the store is not known.
        StoreError: the store cannot be reached.
    """
    text = parse_url(pattern) if is_remote(pattern) else str(pattern)
    if is_remote(text) and not TAR.search(text):
        raise UserError(
            f"{one_line(text, 1000)} names no .tar file; of stores shards and parquet are read."
        )
    if not text.endswith(".tar"):
        raise UserError(
            f"{text}: in a compressed tar file no image can be read without reading everything "
            "before it. Decompress it (the images in it are compressed anyway): gunzip or unxz FILE"
        )
    if is_remote(text):
        return expand_remote(text, list(expand_braces(text)))
    paths = [
        Path(path) for name in expand_braces(text) for path in (sorted(glob.glob(name)) or [name])
    ]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the {len(paths)} shards of {one_line(text, 1000)} are missing "
            f"(absolute path of the first one: {one_line(missing[0].absolute(), 1000)}):\n"
            f"{as_lines(missing)}"
        )
    root = common_folder([path.parent for path in paths])
    return root, sorted({path.relative_to(root).as_posix() for path in paths})


def expand_braces(text: str) -> Iterator[str]:
    """Expand braces as a shell does: a{0..1}{x,y} -> a0x, a0y, a1x, a1y.

    Raises:
        UserError: there are more than MOST_SHARDS. They are counted before any list is made.
    """
    choices: list[Sequence[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", text):
        if match := RANGE.fullmatch(piece):
            choices.append(NumberRange(*match.groups()))
        elif match := ALTERNATIVES.fullmatch(piece):
            choices.append(match[1].split(","))
        else:
            choices.append([piece])
    count = math.prod(map(len, choices))
    if count > MOST_SHARDS:
        raise UserError(
            f"{one_line(text, 200)} names {count:,} files; at most {MOST_SHARDS:,} are read. Is a "
            "number in the braces too large?"
        )
    return map("".join, product(*choices))


class NumberRange(ComputedStrings):
    """The numbers from one to another, upwards or downwards, as wide as the first is written."""

    def __init__(self, first: str, last: str):
        if max(len(first), len(last)) > MOST_DIGITS:
            raise UserError(
                f"a number in braces has {max(len(first), len(last)):,} digits; at most "
                f"{MOST_DIGITS} are read."
            )
        step = 1 if int(first) <= int(last) else -1
        self.numbers, self.width = range(int(first), int(last) + step, step), len(first)

    def __len__(self) -> int:
        return len(self.numbers)

    def string(self, k: int) -> str:
        return f"{self.numbers[k]:0{self.width}d}"


def shard_names_hash(shards: Sequence[str]) -> str:
    """Hash the names of shards."""
    return hashlib.blake2b("\0".join(shards).encode(), digest_size=8).hexdigest()


def shards_fingerprint(root: Root, shards: Sequence[str]) -> str:
    """Hash names, sizes and times of shards."""
    digest = hashlib.blake2b(RULES, digest_size=16)
    for name in shards:
        stat = (root / name).stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# Reading ------------------------------------------------------------------------------------------


@dataclass
class ShardContent:
    """What has been read from shards so far. Every entry of a tar file is counted exactly once.

    Args:
        images: shard/member name -> the image.
        captions: of the same names.
        extensions: how many members have each extension.
        counts: how many entries are no images of samples, by what they are instead.
        unread: how many have an ending that is not read, and no fault.
        examples: one member for each ending in `unread`.
        hashes: sha256 that .json members state, of the same names; None: they are not asked for.
    """

    images: dict[str, Member] = field(default_factory=dict)
    captions: dict[str, tuple[Caption, ...]] = field(default_factory=dict)
    unusable: list[UnusableFile] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Member] = field(default_factory=dict)
    hashes: dict[str, bytes] | None = None

    def leave_out(self, path: Source, use: str, reason: str) -> None:
        """Count a member and name it with the reason for which it is not used."""
        self.counts[use] += 1
        self.unusable.append(UnusableFile(path, reason))

    def count_unread(self, member: Member, extension: str) -> None:
        """Count a member with an ending that is not read."""
        self.unread[extension] += 1
        self.examples.setdefault(extension, member)

    def uses(self) -> dict[str, int]:
        """Return how many entries there are of each kind."""
        by_ending = {f"{NOT_READ}{extension}": count for extension, count in self.unread.items()}
        return {"image": len(self.images), **self.counts, **by_ending}


def shard_parts(root: Root, shards: Sequence[str], trust_hashes: bool = False) -> list[Section]:
    """Divide shards into parts of one shard or, if there are many, of several."""
    length = -(-len(shards) // MOST_PARTS)
    groups = [shards[start : start + length] for start in range(0, len(shards), length)]
    return [
        Section(
            shards_fingerprint(root, group),
            partial(read_shards, root, group, trust_hashes=trust_hashes),
        )
        for group in groups
    ]


def read_shards(
    root: Root,
    shards: Sequence[str],
    progress: Progress = no_progress,
    trust_hashes: bool = False,
) -> Catalog:
    """Note the position of every image, and read all captions.

    trust_hashes: read the sha256 of images that .json members state.
    """
    content = collect(root, shards, progress, {} if trust_hashes else None)
    times = {name: (root / name).stat().st_mtime_ns for name in shards}
    rule = "the .txt, .caption or .json member of each image's sample"
    locate = content.images.__getitem__
    return Catalog(
        root,
        rule,
        content.captions,
        locate,
        content.unusable,
        shards=times,
        uses=content.uses(),
        examples={ending: str(member) for ending, member in content.examples.items()},
        hashes=content.hashes,
    )


def collect(
    root: Root, shards: Sequence[str], progress: Progress, hashes: dict[str, bytes] | None = None
) -> ShardContent:
    """Read the headers and captions of shards, one shard after the other."""
    content = ShardContent(hashes=hashes)
    for name in progress(shards, "reading shards", len(shards)):
        read_shard(root / name, name, content)
    return content


def describe_no_images(root: Root, shards: Sequence[str]) -> str:
    """Write the message for shards without images: what there is instead."""
    content = collect(root, shards, no_progress)
    counts = content.extensions.most_common(8)
    members = ", ".join(f"{count} .{one_line(extension, 40)}" for extension, count in counts)
    return (
        f"no images in {len(shards)} shards of {root}. The name of an image must have one of "
        f"{', '.join(sorted(EXTENSIONS))} right after its first dot; there are "
        f"{members or 'no members'}."
        + (f"\nLeft out:\n{as_lines(content.unusable)}" if content.unusable else "")
    )


def read_shard(path: Root, shard: str, content: ShardContent) -> None:
    """Add the samples of one shard; `shard` is its name relative to the root."""
    samples: dict[str, dict[str, Member]] = {}  # name up to the first dot -> extension -> member
    blamed: set[str] = set()  # samples with a member that is named as unusable
    for member in read_members(path, content, blamed):
        stem, extension = split_name(member.name)
        sample = samples.setdefault(stem, {})
        content.extensions[extension] += 1
        if extension in sample:
            reason = "has the same name as an earlier member"
            content.leave_out(member, "duplicate", reason)
        sample.setdefault(extension, member)
    for stem, sample in samples.items():
        images = [extension for extension in sample if f".{extension}" in EXTENSIONS]
        add_leftovers(sample, images, stem in blamed, content)
        if images:
            image = sample[images[0]]
            name = f"{shard}/{image.name}"
            content.images[name] = image
            content.captions[name] = sample_captions(sample, content.unusable)
            if content.hashes is not None and (sha256 := stated_hash(sample)) is not None:
                content.hashes[name] = sha256


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a member at the first dot behind its folders; the ending in lower case."""
    folder, slash, name = name.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def add_leftovers(
    sample: dict[str, Member], images: list[str], is_blamed: bool, content: ShardContent
) -> None:
    """Count what is no image of a sample, and name what should perhaps be one, or belong to one.

    images: extensions of the images; the first is used.
    is_blamed: a member of this sample has been named already.
    """
    for extension in images[1:]:
        content.leave_out(sample[extension], "second image", "is the second image of its sample")
    no_image: list[str] = []
    for extension in sample.keys() - set(images):
        member, last = sample[extension], f".{extension.rpartition('.')[2]}"
        if extension in CAPTIONS and images:
            content.counts["caption"] += 1
        elif (unread := unread_format(last)) and (last == f".{extension}" or not images):
            reason = f"is {unread}, which is not read; convert it to PNG or JPEG"
            content.leave_out(member, "unusable", reason)
            is_blamed = True
        elif "." in extension and last in EXTENSIONS and not images:
            stem = PurePosixPath(member.name).name.partition(".")[0]
            content.leave_out(
                member,
                "unusable",
                f"has dots in its name. A sample is named up to the first dot, {shown(stem)}, so "
                f"this member ends in {shown(f'.{extension}')}, which is not read. Rename it",
            )
            is_blamed = True
        elif last in (".txt", ".caption", ".json") and not images:
            no_image.append(extension)
        else:
            content.count_unread(member, extension)
    for extension in sorted(no_image):
        if is_blamed:  # naming the image is enough
            content.counts["caption without image"] += 1
        else:
            reason = "is a caption, but its sample has no image"
            content.leave_out(sample[extension], "caption without image", reason)


def read_members(
    path: Root, content: ShardContent, blamed: set[str] | None = None
) -> Iterator[Member]:
    """Yield the files in a tar file, and links to them as the files that they lead to.

    Of a damaged tar file those before the damage are yielded. Everything else is counted in
    `content`, and named there with the reason if it could be an image or a caption.

    blamed: gets the samples of the members that are named.
    """
    files: dict[str, TarEntry] = {}  # the last one of each name
    links: list[TarEntry] = []

    def leave_out(entry: TarEntry, reason: str) -> None:
        content.leave_out(Member(path, entry.name, entry.offset, entry.size), "unusable", reason)
        if blamed is not None:
            blamed.add(split_name(entry.name)[0])

    try:
        with path.open("rb") as file:
            for entry in walk_tar(file, path.stat().st_size):
                hidden = is_hidden(entry.name)
                if entry.kind == "file":
                    files[entry.name] = entry
                target = files.get(posixpath.normpath(entry.link.lstrip("/")))
                if entry.kind == "hard link" and target:
                    entry = replace(target, name=entry.name, is_text=entry.is_text)
                    files[entry.name] = entry
                if entry.kind == "folder" or hidden:
                    content.counts["folder" if entry.kind == "folder" else "hidden"] += 1
                elif not entry.is_text:
                    leave_out(entry, "has a name that is not UTF-8 text")
                elif entry.kind == "symbolic link":
                    links.append(entry)
                elif entry.kind == "hard link":
                    target = shown(entry.link)
                    leave_out(entry, f"is a hard link to {target}, which is not before it there")
                elif entry.kind != "file":
                    leave_out(entry, f"is a {entry.kind}, which is not read")
                else:
                    yield Member(path, entry.name, entry.offset, entry.size)
    except DamagedTar as error:
        content.leave_out(path, "damaged shard", str(error))
        if blamed is not None and files:  # the sample that the damage divides
            blamed.add(split_name(next(reversed(files)))[0])
    except OSError as error:
        content.leave_out(path, "damaged shard", f"cannot be read: {error.strerror or error}")
    targets = {entry.name: entry.link for entry in links}
    for entry in links:
        target = files.get(follow_links(entry.name, targets))
        if target:
            yield Member(path, entry.name, target.offset, target.size)
        else:
            reason = f"is a symbolic link to {shown(entry.link)}, which is no file in this tar file"
            leave_out(entry, reason)


def follow_links(name: str, targets: Mapping[str, str]) -> str:
    """Return where symbolic links lead; "" out of the tar file or in a circle."""
    for _ in range(MOST_LINKS):
        link = targets.get(name)
        if link is None:
            return name
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return ""


def is_hidden(name: str) -> bool:
    """Return whether a member or a folder above it is hidden, or one that macOS adds."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") for part in parts) or "__MACOSX" in parts[:-1]


def sample_captions(sample: dict[str, Member], unusable: list[UnusableFile]) -> tuple[Caption, ...]:
    """Read the captions of a sample; NO_CAPTION if it has none."""
    for extension in (*(suffix.removeprefix(".") for suffix in SIDECAR_SUFFIXES), "json"):
        if extension not in sample:
            continue
        if sample[extension].size > LARGEST_CAPTION:
            reason = (
                f"has {sample[extension].size:,} bytes; captions have {LARGEST_CAPTION:,} at most"
            )
            unusable.append(UnusableFile(sample[extension], reason))
            continue
        try:
            text = decode_text(sample[extension].read_bytes())
            is_json = extension == "json"
            captions = parse_json_captions(text) if is_json else [*split_lines(text)]
            for caption in captions:
                check_caption(text_of(caption))
        except UserError as error:
            unusable.append(UnusableFile(sample[extension], str(error)))
        else:
            if captions:
                return unique_captions(captions)
    return NO_CAPTION


def stated_hash(sample: dict[str, Member]) -> bytes | None:
    """Return the sha256 that the .json member of a sample states; None if it states none."""
    member = sample.get("json")
    if member is None or member.size > LARGEST_CAPTION:
        return None
    try:
        content: Any = load_json(decode_text(member.read_bytes()))
    except UserError:
        return None
    text = content.get("sha256") if isinstance(content, dict) else None
    return bytes.fromhex(text) if isinstance(text, str) and SHA256.fullmatch(text) else None


def parse_json_captions(text: str) -> list[Caption]:
    """Return the captions in a .json member.

    Raises:
        UserError: it holds none; the message continues "<member> ...".
    """
    row: Any = load_json(text)
    name = first_field(row, TEXT_FIELDS)
    if name is None:
        has = f"it has {listed(list(row))}" if isinstance(row, dict) else f"it is {shown(row)}"
        raise UserError(f"needs 'text' or 'caption', a string or a list of strings, but {has}")
    try:
        return caption_list(row[name], row.get(WEIGHTS), row.get(LANGUAGES))
    except UserError as error:
        raise UserError(f"cannot be used: {name!r} {error}") from None
