"""Which files and captions something was made from, and whether they are still the same."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imagetext.batches import Progress, silent
from imagetext.folder import Pair


@dataclass(frozen=True)
class Content:
    """A pair's content. Its path is no part of it, so that a data folder may move."""

    sha256: str  # of the file's bytes
    size: int  # of the file
    mtime_ns: int
    captions: tuple[str, ...]


def contents_of(pairs: Sequence[Pair], progress: Progress = silent) -> list[Content]:
    """Reads every file once."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(progress(pool.map(content_of, pairs), "hashing images", len(pairs)))


def content_of(pair: Pair) -> Content:
    stat = pair.path.stat()
    return Content(sha256(pair.path), stat.st_size, stat.st_mtime_ns, pair.captions)


def difference(contents: Sequence[Content], pairs: Sequence[Pair]) -> str | None:
    """What is no longer the same, in words. Files of the same size and time are not read again."""
    if len(contents) != len(pairs):
        return f"{len(contents)} pairs then, {len(pairs)} now"
    for content, pair in zip(contents, pairs, strict=True):
        stat = pair.path.stat()
        unchanged = (stat.st_size, stat.st_mtime_ns) == (content.size, content.mtime_ns)
        if not unchanged and sha256(pair.path) != content.sha256:
            return f"{pair.path} is another image now"
        if content.captions != pair.captions:
            return f"{pair.path} has other captions now"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
