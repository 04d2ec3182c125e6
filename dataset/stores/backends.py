"""Ranges of remote files through fsspec: retried, checked for a change under way, errors by name.

Credentials are found by fsspec's libraries in the environment. Nothing here keeps them, and what
libraries say is cleaned of them before it becomes a message.
"""

import asyncio
import hashlib
import importlib
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from foundation.errors import MissingFileError, UserError, one_line

Result = TypeVar("Result")

PACKAGES = {  # scheme -> Python package that fsspec needs for it
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "https": "aiohttp",
    "http": "aiohttp",
}
TRIES = 6  # of one request
FIRST_WAIT = 0.5  # seconds before the second try; it doubles each time
LONGEST_WAIT = 30.0
SILENCE = 30.0  # seconds without a byte after which a request is given up
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses for which another try may help
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|KEY|CREDENTIAL|CONNECTION_STRING|SIGNATURE", re.I)
REFUSALS = ("Forbidden", "AccessDenied", "NoCredentials", "403", "401", "InvalidAccessKeyId")


class StoreError(UserError):
    """A remote file that cannot be read now, or has changed; it may be fine tomorrow."""


class FileInfo(NamedTuple):
    """What a store says about a file."""

    size: int
    version: int  # hash of size and ETag (or time of change), 62 bits
    mark: str  # the ETag or the time of change; "" if the server gives neither


class PassingError(Exception):
    """A failure for which another try may help."""


class Stores:
    """The file systems and the known files of this process.

    fsspec runs a thread of its own, which a forked process lacks; so a new process begins anew.
    """

    def __init__(self):
        self.process = os.getpid()
        self.systems: dict[str, Any] = {}
        self.infos: dict[str, FileInfo] = {}
        self.lock = threading.Lock()


STORES = Stores()


def stores() -> Stores:
    global STORES
    if STORES.process != os.getpid():
        STORES = Stores()
    return STORES


def file_system(scheme: str) -> Any:
    """Return fsspec's file system.

    Raises:
        UserError: a package is missing.
    """
    own = stores()
    with own.lock:
        if scheme not in own.systems:
            own.systems[scheme] = open_file_system(scheme)
        return own.systems[scheme]


def open_file_system(scheme: str) -> Any:
    """Make a file system that keeps no listings: a file that changes must be seen."""
    try:
        fsspec = importlib.import_module("fsspec")
        importlib.import_module(PACKAGES[scheme])
    except ModuleNotFoundError as error:
        raise UserError(
            f"{scheme}:// needs the Python package {error.name}, which is not installed. Run: "
            f"pip install fsspec {PACKAGES[scheme]}"
        ) from error
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        aiohttp = importlib.import_module("aiohttp")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}  # proxies, ~/.netrc
    if scheme == "s3":
        limits = {
            "connect_timeout": SILENCE,
            "read_timeout": SILENCE,
            "retries": {"max_attempts": 1},
        }
        options["config_kwargs"] = limits
    return fsspec.filesystem(scheme, **options)


# Requests -----------------------------------------------------------------------------------------


def file_info(url: str, fresh: bool = False) -> FileInfo:
    """Return size and version of a file; a process asks the store once, unless `fresh`."""
    own = stores()
    if fresh or url not in own.infos:
        info = retry(url, lambda: ask_info(url))
        if fresh:
            return info
        own.infos.setdefault(url, info)
    return own.infos[url]


def ask_info(url: str) -> FileInfo:
    scheme = url.partition("://")[0]
    system = file_system(scheme)
    if scheme in ("http", "https"):
        return run(system, http_info(system, url))
    return described(system.info(url, refresh=True) if scheme == "s3" else system.info(url))


def described(info: dict[str, Any]) -> FileInfo:
    """Return the facts in what fsspec says about a file."""
    if info.get("type") == "directory":
        raise IsADirectoryError("it is a folder")
    marks = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime")
    mark = next((str(info[name]) for name in marks if info.get(name)), "")
    return make_info(int(info["size"]), mark)


def make_info(size: int, mark: str) -> FileInfo:
    digest = hashlib.blake2b(f"{size}\0{mark}".encode(), digest_size=8).digest()
    return FileInfo(size, int.from_bytes(digest) >> 2, mark)


def fetch(url: str, info: FileInfo, start: int, end: int) -> bytes:
    """Read a range of a file from its store.

    Raises:
        StoreError: the store cannot be reached, or the file is another one than `info` says.
    """

    def once() -> bytes:
        scheme = url.partition("://")[0]
        system = file_system(scheme)
        if scheme in ("http", "https"):
            return run(system, http_range(system, url, info, start, end))
        content = system.cat_file(url, start=start, end=end)
        if ask_info(url).version != info.version:  # asked afterwards: no change can be missed
            raise changed(url)
        return content

    try:
        content = retry(url, once)
    except MissingFileError:
        raise changed(url) from None
    if len(content) != end - start:
        raise StoreError(
            f"{one_line(url)} gave {len(content):,} bytes where {end - start:,} were asked for "
            f"(from byte {start:,})"
        )
    return content


def changed(url: str) -> StoreError:
    return StoreError(
        f"{one_line(url)} has changed while it was read (another size or ETag). Start again when "
        "it no longer changes: the index is then made anew"
    )


def run(system: Any, coroutine: Any) -> Any:
    """Wait for a coroutine in the thread of a file system."""
    return asyncio.run_coroutine_threadsafe(coroutine, system.loop).result()


async def http_info(system: Any, url: str) -> FileInfo:
    """Ask a web server for the first byte: the answer says the size, and that ranges work."""
    async with await http_get(system, url, 0, 1) as response:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status == 416 and total == "0":
            return make_info(0, http_mark(response.headers))
        refuse_status(url, response.status)
        if response.status != 206 or not total.isdigit():
            raise StoreError(
                f"{one_line(url)}: the server gives only whole files (status {response.status} for "
                "a range of bytes), so no image can be read without all before it. Fetch the files "
                "once: python recipes/fetch_shards.py URL FOLDER"
            )
        return make_info(int(total), http_mark(response.headers))


async def http_range(system: Any, url: str, info: FileInfo, start: int, end: int) -> bytes:
    """Read a range from a web server, and see that it is of the file that was indexed."""
    async with await http_get(system, url, start, end) as response:
        refuse_status(url, response.status)
        given = response.headers.get("Content-Range", "")
        total = given.rpartition("/")[2]
        is_same = total == f"{info.size}" and http_mark(response.headers) == info.mark
        if response.status != 206 or not is_same:
            raise changed(url)
        if not given.startswith(f"bytes {start}-{end - 1}/"):
            raise StoreError(f"{one_line(url)}: asked for bytes {start}-{end - 1}, got {given!r}")
        content = await response.content.read(end - start)
        while len(content) < end - start:
            more = await response.content.read(end - start - len(content))
            if not more:
                raise PassingError(f"the answer ended after {len(content):,} bytes")
            content += more
        return content


async def http_get(system: Any, url: str, start: int, end: int) -> Any:
    session = await system.set_session()
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    return session.get(system.encode_url(url), headers=headers)


def http_mark(headers: Any) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def refuse_status(url: str, status: int) -> None:
    """Raise the error for a status that is no success."""
    if status in PASSING:
        raise PassingError(f"the server answered with status {status}")
    if status in (404, 410):
        raise FileNotFoundError(url)
    if status >= 400:
        raise PermissionError(f"the server answered with status {status}")


# Failures -----------------------------------------------------------------------------------------


def retry(url: str, request: Callable[[], Result]) -> Result:
    """Return what a request gives; try again after failures that may pass, with growing pauses.

    Raises:
        MissingFileError: there is no such file.
        StoreError: every try failed, or another try would not help.
    """
    said, number = "", 0
    for number in range(TRIES):
        if number:
            wait = min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT)
            time.sleep(wait * (0.5 + random.random() / 2))
        try:
            return request()
        except UserError:
            raise
        except FileNotFoundError as error:
            raise MissingFileError(f"there is no file {one_line(url)}.") from error
        except PassingError as error:
            said = str(error)
        except Exception as error:  # stores raise what their libraries raise
            said = without_secrets(f"{type(error).__name__}: {error}")
            if is_final(error):
                break
    raise StoreError(
        f"{one_line(url)} cannot be read ({one_line(said, 300)}; tries: {number + 1}). Check the "
        "network, the name and the credentials, which come from the environment"
    )


def is_final(error: Exception) -> bool:
    """Return whether another try would give the same."""
    text = f"{type(error).__name__} {error}"
    wrong = isinstance(error, PermissionError | IsADirectoryError | TypeError | KeyError)
    return wrong or any(word in text for word in REFUSALS)


def without_secrets(text: str) -> str:
    """Remove what the environment holds as a secret, and user and query of URLs."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) > 3:
            text = text.replace(value, "***")
    text = re.sub(r"://[^/?#\s]*@", "://", text)
    return re.sub(r"(://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1", text)
