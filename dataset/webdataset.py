"""Tar files ("shards") of images and captions, in the layout of the webdataset library.

    000123.jpg  000123.txt      members with the same name up to its first dot form a sample

Captions come from .txt or .caption, one per line, or else from the field `text` or `caption` of a
.json member, a string or a list of strings. Tar files are not streamed: the position of each member
is noted once, so any of them can be read at any time, in any order.
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

from dataset.captions import SIDECAR_SUFFIXES, split_lines
from dataset.images.formats import EXTENSIONS
from dataset.index import Catalog
from dataset.parallel import Progress
from dataset.source import Member, UnusableFile, as_lines
from dataset.table import NO_CAPTION
from foundation.errors import MissingFileError, UserError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {000..099}
ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")  # {a,b}
TAR = re.compile(r"\.tar(\.\w+)?$|\.tgz$")
TEXT_FIELDS = ("text", "caption")  # of a .json member; the first one that it has is used
BLOCK = 512  # bytes; a tar file ends with a block of zeros
URL = re.compile(r"^(\w{2,}:/|pipe:)")


# Patterns -----------------------------------------------------------------------------------------


def is_shards(data: Path | str) -> bool:
    """Return whether this names tar files and not a folder."""
    text = str(data)
    return bool(TAR.search(text) or URL.match(text)) and not Path(text).is_dir()


def expand_shards(pattern: Path | str) -> tuple[Path, list[str]]:
    """Expand a pattern to (folder, names of the tar files relative to it), sorted by name.

    Raises:
        MissingFileError: a file does not exist; the first few are named.
        UserError: the pattern is a URL, or the tar files are compressed.
    """
    text = str(pattern)
    if URL.match(text):
        raise UserError(
            f"{text} is not on this machine. Training needs any image at any time, for an exact "
            "order that survives a stop; streams cannot give that. Fetch the shards once, then "
            "train on the files: python recipes/fetch_shards.py URL FOLDER"
        )
    if not text.endswith(".tar"):
        raise UserError(
            f"{text}: in a compressed tar file no image can be read without reading everything "
            "before it. Decompress it (the images in it are compressed anyway): gunzip or unxz FILE"
        )
    paths = [
        Path(path) for name in expand_braces(text) for path in (sorted(glob.glob(name)) or [name])
    ]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise MissingFileError(
            f"{len(missing)} of the {len(paths)} shards of {text} are missing (absolute path of "
            f"the first one: {missing[0].absolute()}):\n{as_lines(missing)}"
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return root, sorted({path.relative_to(root).as_posix() for path in paths})


def expand_braces(text: str) -> Iterator[str]:
    """Expand braces as a shell does: a{0..1}{x,y} -> a0x, a0y, a1x, a1y."""
    choices: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", text):
        if match := RANGE.fullmatch(piece):
            first, last = match.groups()
            numbers = range(int(first), int(last) + 1)
            choices.append([f"{number:0{len(first)}d}" for number in numbers])
        elif match := ALTERNATIVES.fullmatch(piece):
            choices.append(match[1].split(","))
        else:
            choices.append([piece])
    return map("".join, product(*choices))


def shard_names_hash(shards: Sequence[str]) -> str:
    """Hash the names of shards."""
    return hashlib.blake2b("\0".join(shards).encode(), digest_size=8).hexdigest()


def shards_fingerprint(root: Path, shards: Sequence[str]) -> str:
    """Hash names, sizes and times of shards."""
    digest = hashlib.blake2b(digest_size=16)
    for name in shards:
        stat = (root / name).stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# Reading ------------------------------------------------------------------------------------------


@dataclass
class ShardContent:
    """What has been read from shards so far.

    Args:
        images: shard/member name -> the image.
        captions: of the same names.
        extensions: how many members have each extension.
    """

    images: dict[str, Member] = field(default_factory=dict)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unusable: list[UnusableFile] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)


def read_shards(root: Path, shards: Sequence[str], progress: Progress) -> Catalog:
    """Note the position of every image, and read all captions.

    Raises:
        UserError: there is no image in any of the shards.
    """
    content = ShardContent()
    times = {name: (root / name).stat().st_mtime_ns for name in shards}
    for name in progress(shards, "reading shards", len(shards)):
        read_shard(root / name, name, content)
    if not content.images:
        counts = content.extensions.most_common(8)
        members = ", ".join(f"{count} .{extension}" for extension, count in counts)
        raise UserError(
            f"no images in {len(shards)} shards of {root}. The name of an image must have one of "
            f"{', '.join(sorted(EXTENSIONS))} right after its first dot; there are "
            f"{members or 'no members'}."
            + (f"\nLeft out:\n{as_lines(content.unusable)}" if content.unusable else "")
        )
    rule = "the .txt, .caption or .json member of each image's sample"
    locate = content.images.__getitem__
    return Catalog(root, rule, content.captions, locate, content.unusable, [], times)


def read_shard(path: Path, shard: str, content: ShardContent) -> None:
    """Add the samples of one shard; `shard` is its name relative to the root."""
    samples: dict[str, dict[str, Member]] = {}  # name up to the first dot -> extension -> member
    for member in read_members(path, content.unusable):
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        content.extensions[extension] += 1
        if extension in sample:
            reason = "has the same name as an earlier member"
            content.unusable.append(UnusableFile(member, reason))
        sample.setdefault(extension, member)
    for sample in samples.values():
        images = [member for extension, member in sample.items() if f".{extension}" in EXTENSIONS]
        for image in images[1:]:
            content.unusable.append(UnusableFile(image, "is the second image of its sample"))
        if images:
            name = f"{shard}/{images[0].name}"
            content.images[name] = images[0]
            content.captions[name] = sample_captions(sample, content.unusable)


def read_members(path: Path, unusable: list[UnusableFile]) -> Iterator[Member]:
    """Yield the files in a tar file; of a damaged one those before the damage, which is noted."""
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            end = path.stat().st_size
            for entry in tar:
                # tarfile would keep all members in memory; typeshed does not list the attribute.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if not entry.isfile() or entry.name.rpartition("/")[2].startswith("."):
                    continue
                last = Member(path, entry.name.removeprefix("./"), entry.offset_data, entry.size)
                if last.offset + last.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                yield last
            has_end_mark = tar.offset + BLOCK <= end
        if not has_end_mark:
            position = f"after {last.name}" if last else "at its beginning"
            reason = f"is cut off {position}: the mark at its end is missing."
            unusable.append(UnusableFile(path, f"{reason} Fetch or write it again"))
    except tarfile.TarError as error:
        position = f"at member {last.name}" if last else "at its beginning"
        reason = f"is damaged or cut off {position} ({error}). Fetch or write it again"
        unusable.append(UnusableFile(path, reason))


def sample_captions(sample: dict[str, Member], unusable: list[UnusableFile]) -> tuple[str, ...]:
    """Read the captions of a sample; NO_CAPTION if it has none."""
    for extension in (*(suffix.removeprefix(".") for suffix in SIDECAR_SUFFIXES), "json"):
        if extension not in sample:
            continue
        try:
            text = sample[extension].read_bytes().decode("utf-8-sig")
            captions = parse_json_captions(text) if extension == "json" else split_lines(text)
        except UnicodeDecodeError:
            unusable.append(UnusableFile(sample[extension], "is not UTF-8 text"))
        except UserError as error:
            unusable.append(UnusableFile(sample[extension], str(error)))
        else:
            if captions:
                return tuple(dict.fromkeys(captions))
    return NO_CAPTION


def parse_json_captions(text: str) -> list[str]:
    """Return the captions in a .json member.

    Raises:
        UserError: it holds none; the message continues "<member> ...".
    """
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"is not valid JSON: {error}") from error
    fields = [name for name in TEXT_FIELDS if isinstance(row, dict) and name in row]
    if not fields:
        has = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is {row!r}"
        raise UserError(f"needs 'text' or 'caption', a string or a list of strings, but {has}")
    value = row[fields[0]]
    captions = value if isinstance(value, list) else [value or ""]
    if not all(isinstance(caption, str) for caption in captions):
        raise UserError(f"{fields[0]!r} must be a string or a list of strings, not {captions!r}")
    return [caption.strip() for caption in captions if caption.strip()]
