"""Shards: tar files of images and captions, named as WebDataset names them.

    000123.jpg  000123.txt      up to the first dot of its name, all members of a sample are alike

A caption comes from .txt or .caption, of which every line is one, or else from .json, from its
`text` or `caption`, a string or a list of strings. Tar files are read in place: where each member
lies is noted once, so any of them can be read at any time, in any order.
"""

import glob
import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from dataset.captions import SIDECARS, Unusable, caption_lines, listed
from dataset.images.transform import EXTENSIONS
from dataset.index import Catalog
from dataset.members import Member
from dataset.progress import Progress
from dataset.table import NO_CAPTION
from foundation.errors import MissingFileError, UserError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {000..099}
LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")  # {a,b}
TAR = re.compile(r"\.tar(\.\w+)?$|\.tgz$")
TEXT_FIELDS = ("text", "caption")  # of a .json member, in this order
BLOCK = 512  # bytes; a tar file ends with a block of zeros
URL = re.compile(r"^(\w{2,}:/|pipe:)")


def is_shards(data: Path | str) -> bool:
    """Whether this names tar files, and no folder."""
    text = str(data)
    return bool(TAR.search(text) or URL.match(text)) and not Path(text).is_dir()


def expand(pattern: Path | str) -> tuple[Path, list[str]]:
    """(folder, the tar files relative to it), in the order of their names.

    Raises:
        FileNotFoundError: a file is not there; the first few are named.
        ValueError: it is a URL, or compressed.
    """
    text = str(pattern)
    if URL.match(text):
        raise UserError(
            f"{text} is not on this machine. An exact order that survives a stop needs any image "
            "at any time, which streams do not give. Fetch the shards once, then train on the "
            "files: python recipes/fetch_shards.py URL FOLDER"
        )
    if not text.endswith(".tar"):
        raise UserError(
            f"{text}: in a compressed tar file no image can be read without all before it. "
            "Decompress it (images are compressed as they are): gunzip or unxz FILE"
        )
    paths = [Path(path) for name in braces(text) for path in (sorted(glob.glob(name)) or [name])]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the {len(paths)} shards of {text} are not there (looked at "
            f"{missing[0].absolute()}):\n{listed(missing)}"
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return root, sorted({path.relative_to(root).as_posix() for path in paths})


def braces(text: str) -> Iterator[str]:
    """a{0..1}{x,y} -> a0x, a0y, a1x, a1y, as a shell does"""
    parts = re.split(r"(\{[^{}]*\})", text)
    choices = []
    for part in parts:
        if found := RANGE.fullmatch(part):
            first, last = found.groups()
            choices.append([f"{k:0{len(first)}d}" for k in range(int(first), int(last) + 1)])
        elif found := LIST.fullmatch(part):
            choices.append(found[1].split(","))
        else:
            choices.append([part])
    return map("".join, product(*choices))


def shards_hash(shards: Sequence[str]) -> str:
    """Of their names alone."""
    return hashlib.blake2b("\0".join(shards).encode(), digest_size=8).hexdigest()


def shards_fingerprint(root: Path, shards: Sequence[str]) -> str:
    """Of their names, sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for name in shards:
        stat = (root / name).stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@dataclass
class Found:
    """What was read from the shards so far."""

    members: dict[str, Member] = field(default_factory=dict)  # of images, by shard/member
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unusable: list[Unusable] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)  # extensions of all members


def read_shards(root: Path, shards: Sequence[str], progress: Progress) -> Catalog:
    """Notes where every image lies, and reads all captions.

    Raises:
        ValueError: there is no image with a caption in any of them.
    """
    found = Found()
    times = {name: (root / name).stat().st_mtime_ns for name in shards}
    for name in progress(shards, "reading shards", len(shards)):
        read_shard(root / name, name, found)
    if not found.members:
        kinds = ", ".join(f"{count} .{kind}" for kind, count in found.kinds.most_common(8))
        raise UserError(
            f"no images in {len(shards)} shards of {root}. The members that are images end in "
            f"{', '.join(sorted(EXTENSIONS))} right after the first dot of their name; there are "
            f"{kinds or 'no members'}."
            + (f"\nLeft out:\n{listed(found.unusable)}" if found.unusable else "")
        )
    rule = "the .txt, .caption or .json members beside each image"
    return Catalog(root, rule, found.captions, found.members.__getitem__, found.unusable, [], times)


def read_shard(path: Path, shard: str, found: Found) -> None:
    samples: dict[str, dict[str, Member]] = {}
    for member in members(path, found.unusable):
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        kind = kind.lower()
        found.kinds[kind] += 1
        if kind in sample:
            found.unusable.append(Unusable(member, "has a second member of the same name"))
        sample.setdefault(kind, member)
    for sample in samples.values():
        images = [kind for kind in sample if f".{kind}" in EXTENSIONS]
        for kind in images[1:]:
            found.unusable.append(Unusable(sample[kind], "is the second image of its sample"))
        if images:
            image = sample[images[0]]
            name = f"{shard}/{image.name}"
            found.members[name] = image
            found.captions[name] = captions_of(sample, found.unusable)


def members(path: Path, unusable: list[Unusable]) -> Iterator[Member]:
    """All files in a tar file; if it is damaged those before the damage, which is noted."""
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            end = path.stat().st_size
            for entry in tar:
                tar.members = []  # which it would keep all
                if not entry.isfile() or entry.name.rpartition("/")[2].startswith("."):
                    continue
                last = Member(path, entry.name.removeprefix("./"), entry.offset_data, entry.size)
                if last.offset + last.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                yield last
            closed = tar.offset + BLOCK <= end
        if not closed:
            where = f"after {last.name}" if last else "at its beginning"
            reason = f"is cut off {where}: the mark at its end is missing. Fetch or write it again"
            unusable.append(Unusable(path, reason))
    except tarfile.TarError as error:
        where = f"at member {last.name}" if last else "at its beginning"
        reason = f"is damaged or cut off {where} ({error}). Fetch or write it again"
        unusable.append(Unusable(path, reason))


def captions_of(sample: dict[str, Member], unusable: list[Unusable]) -> tuple[str, ...]:
    for kind in (*(suffix.removeprefix(".") for suffix in SIDECARS), "json"):
        if kind not in sample:
            continue
        try:
            text = sample[kind].read_bytes().decode("utf-8-sig")
            texts = json_captions(text) if kind == "json" else caption_lines(text)
        except ValueError as error:
            reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            unusable.append(Unusable(sample[kind], reason))
            continue
        if texts:
            return tuple(dict.fromkeys(texts))
    return NO_CAPTION


def json_captions(text: str) -> list[str]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"is not valid JSON: {error}") from error
    keys = [key for key in TEXT_FIELDS if isinstance(row, dict) and key in row]
    if not keys:
        has = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is {row!r}"
        raise UserError(f"needs 'text' or 'caption', a string or a list of strings, but {has}")
    texts = row[keys[0]] if isinstance(row[keys[0]], list) else [row[keys[0]] or ""]
    if not all(isinstance(caption, str) for caption in texts):
        raise UserError(f"{keys[0]!r} must be a string or a list of strings, not {texts!r}")
    return [caption.strip() for caption in texts if caption.strip()]
