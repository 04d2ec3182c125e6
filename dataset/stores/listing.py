"""Patterns of remote files: braces everywhere, wildcards where the store can list its files."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dataset.stores.backends import file_system, retry
from dataset.stores.remote import RemoteFile
from foundation.errors import MissingFileError, UserError, listed, one_line

THREADS = 32  # that ask for sizes at once


def expand_remote(text: str, urls: Sequence[str]) -> tuple[RemoteFile, list[str]]:
    """Return (folder, names of the files relative to it), sorted by name.

    Args:
        text: the pattern, for messages.
        urls: of the files, possibly with wildcards.

    Raises:
        MissingFileError: files are missing; the first few are named.
        StoreError: the store cannot be reached.
    """
    files = [RemoteFile(name) for url in urls for name in expand_wildcards(url)]
    with ThreadPoolExecutor(THREADS) as pool:
        missing = [file for file in pool.map(missing_file, files) if file]
    if missing or not files:
        raise MissingFileError(
            f"{len(missing)} of the {len(files)} shards of {one_line(text, 1000)} are missing: "
            f"{listed(missing)}."
        )
    folders = [file.url.split("/")[:-1] for file in files]
    common = folders[0]
    for folder in folders:
        while folder[: len(common)] != common:
            common = common[:-1]
    root = "/".join(common)
    return RemoteFile(root), sorted({file.url.removeprefix(f"{root}/") for file in files})


def expand_wildcards(url: str) -> list[str]:
    """Return the URLs that a URL with wildcards stands for."""
    scheme = url.partition("://")[0]
    if not re.search(r"[*\[]", url):
        return [url]
    if scheme in ("http", "https"):
        raise UserError(
            f"{one_line(url, 200)}: a web server does not list its files, so * and [] have no "
            "meaning there. Give numbers: {000..099}"
        )
    names = retry(url, lambda: file_system(scheme).glob(url))
    return [f"{scheme}://{name}" for name in sorted(names)]


def missing_file(file: RemoteFile) -> RemoteFile | None:
    """Return a file that does not exist."""
    try:
        file.info()
    except MissingFileError:
        return file
    return None
