"""The block cache: parts of remote files on the local disk, of bounded size.

Blocks lie in the folder LATENTSMITH_CACHE (~/.cache/latentsmith/blocks if that is not set), which
takes at most LATENTSMITH_CACHE_GB (20 if not set). Any number of processes use it at once: a block
appears whole or not at all, and carries a hash of its bytes. The blocks that were not used for
longest go first.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from dataset.stores import backends
from dataset.stores.backends import FileInfo
from foundation.errors import UserError, one_line, shown

BLOCK = 2**18  # bytes
LONGEST = 16  # blocks in one request
AHEAD = 16  # blocks that are fetched in advance when a file is read from front to back
DIGEST = 16  # bytes of hash behind each block
THREADS = 16  # that fetch in advance
IN_MEMORY = 64  # blocks that a process also keeps in memory
KEEP = 0.9  # of the size, after blocks were removed
DEFAULT_GB = 20.0


def read(url: str, info: FileInfo, start: int, end: int) -> bytes:
    """Read a range of a file, through the cache."""
    if end <= start:
        return b""
    first, last = start // BLOCK, (end - 1) // BLOCK
    own = cache()
    own.note_access(url, info, first, last)
    content = b"".join(own.blocks(url, info, first, last))
    return content[start - first * BLOCK : end - first * BLOCK]


class BlockCache:
    """The cache as one process sees it.

    Raises:
        UserError: its folder cannot be written, or its size is no number.
    """

    def __init__(self):
        self.process = os.getpid()
        self.folder = cache_folder()
        self.limit = cache_size()
        self.lock = threading.Lock()
        self.recent: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self.under_way: dict[tuple[str, int, int], Future[None]] = {}
        self.last_block: OrderedDict[str, int] = OrderedDict()  # of each file, what was read last
        self.pool: ThreadPoolExecutor | None = None
        self.written = self.limit  # bytes since blocks were last removed: look at the first write
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("no right to write")
        except OSError as error:
            raise UserError(
                f"the cache of remote data cannot be made in {self.folder} "
                f"({error.strerror or error}). Set LATENTSMITH_CACHE to a folder that can be "
                "written."
            ) from error

    def blocks(self, url: str, info: FileInfo, first: int, last: int) -> list[bytes]:
        """Return blocks first ... last; what is missing is fetched in few requests."""
        found: dict[int, bytes] = {}
        for number in range(first, last + 1):
            waiting = self.under_way.get((url, info.version, number))
            if waiting is not None:
                waiting.exception()  # wait; a failure there is met again here
            content = self.load(url, info, number)
            if content is not None:
                found[number] = content
        missing = [number for number in range(first, last + 1) if number not in found]
        for run in runs(missing):
            found |= self.fetch(url, info, run)
        return [found[number] for number in range(first, last + 1)]

    def fetch(self, url: str, info: FileInfo, run: range) -> dict[int, bytes]:
        """Fetch blocks that follow each other, and keep them."""
        start, end = run.start * BLOCK, min(run.stop * BLOCK, info.size)
        content = backends.fetch(url, info, start, end)
        parts = {k: content[(k - run.start) * BLOCK :][:BLOCK] for k in run}
        for number, part in parts.items():
            self.store(url, info, number, part)
        return parts

    # On the disk.

    def path(self, url: str, info: FileInfo, number: int) -> Path:
        name = hashlib.blake2b(f"{url}\0{info.version}".encode(), digest_size=12).hexdigest()
        return self.folder / name[:2] / name[2:] / f"{number:x}"

    def load(self, url: str, info: FileInfo, number: int) -> bytes | None:
        """Return a block that is in the cache; None if it is not, or damaged."""
        key = (url, info.version, number)
        with self.lock:
            if key in self.recent:
                self.recent.move_to_end(key)
                return self.recent[key]
        path = self.path(url, info, number)
        try:
            raw = path.read_bytes()
            os.utime(path)  # it was used now
        except OSError:
            return None
        content, digest = raw[:-DIGEST], raw[-DIGEST:]
        size = min(BLOCK, info.size - number * BLOCK)
        if len(content) != size or hash_of(content) != digest:
            return None
        self.remember(key, content)
        return content

    def remember(self, key: tuple[str, int, int], content: bytes) -> None:
        with self.lock:
            self.recent[key] = content
            while len(self.recent) > IN_MEMORY:
                self.recent.popitem(last=False)

    def store(self, url: str, info: FileInfo, number: int, content: bytes) -> None:
        """Keep a block; a full disk only means that it has to be fetched again."""
        self.remember((url, info.version, number), content)
        path = self.path(url, info, number)
        partial = path.with_name(f".{number:x}-{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.write_bytes(content + hash_of(content))
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            self.remove_oldest()
            return
        self.written += len(content)
        if self.written > self.limit // 20:
            self.remove_oldest()

    def remove_oldest(self) -> None:
        """Remove the blocks that were not used for longest, until the cache is small enough.

        Several processes may do so at once; each removes what is too much.
        """
        self.written = 0
        entries: list[tuple[int, int, str]] = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    stat = os.stat(os.path.join(folder, name))
                    entries.append((stat.st_mtime_ns, stat.st_size, os.path.join(folder, name)))
        total = sum(size for _, size, _ in entries)
        if total <= self.limit:
            return
        for _, size, name in sorted(entries):
            if total <= KEEP * self.limit:
                break
            with suppress(OSError):
                os.unlink(name)
            total -= size

    # In advance.

    def note_access(self, url: str, info: FileInfo, first: int, last: int) -> None:
        """Fetch the next blocks in advance if a file is read from front to back."""
        with self.lock:
            before = self.last_block.pop(url, -2)
            self.last_block[url] = last
            if len(self.last_block) > 1000:
                self.last_block.popitem(last=False)
        if before in (first, first - 1) and last != before:
            count = -(-info.size // BLOCK)
            self.prefetch(url, info, last + 1, min(last + AHEAD, count - 1))

    def prefetch(self, url: str, info: FileInfo, first: int, last: int) -> None:
        """Fetch blocks in threads, unless they are there or under way."""
        keys = [(url, info.version, number) for number in range(first, last + 1)]
        with self.lock:
            wanted = [k for k in keys if k not in self.under_way and k not in self.recent]
            wanted = [k for k in wanted if not self.path(url, info, k[2]).exists()]
            if self.pool is None:
                self.pool = ThreadPoolExecutor(THREADS, "latentsmith-prefetch")
            for run in runs([number for _, _, number in wanted]):
                future = self.pool.submit(self.fetch_quietly, url, info, run)
                for number in run:
                    self.under_way[url, info.version, number] = future

    def fetch_quietly(self, url: str, info: FileInfo, run: range) -> None:
        """Fetch; whoever needs the blocks will meet the error again."""
        try:
            with suppress(UserError):
                self.fetch(url, info, run)
        finally:
            with self.lock:
                for number in run:
                    self.under_way.pop((url, info.version, number), None)


def runs(numbers: list[int]) -> list[range]:
    """Group numbers that follow each other, at most LONGEST in a group."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number and len(found[-1]) < LONGEST:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def hash_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


CACHE: BlockCache | None = None


def cache() -> BlockCache:
    """Return the cache of this process; a forked process, which has no threads, gets its own."""
    global CACHE
    if CACHE is None or CACHE.process != os.getpid():
        CACHE = BlockCache()
    return CACHE


def cache_home() -> Path:
    """Return the folder of the user for what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "latentsmith"


def cache_folder() -> Path:
    return Path(os.environ.get("LATENTSMITH_CACHE") or cache_home() / "blocks")


def cache_size() -> int:
    """Return the most bytes that the cache takes."""
    text = os.environ.get("LATENTSMITH_CACHE_GB") or f"{DEFAULT_GB}"
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0.05 <= size < 1e9:
        raise UserError(
            f"LATENTSMITH_CACHE_GB is {shown(one_line(text, 100))}; it must be a number of "
            "gigabytes of at least 0.05."
        )
    return int(size * 1e9)
