"""Downloads tar files of images and captions ("shards"), to train on them from the disk.

    python recipes/fetch_shards.py 'https://example.org/set/{000..099}.tar' data/set
    python train_vae.py --data 'data/set/{000..099}.tar' --out runs/vae

The webdataset library downloads them (pip install webdataset). It supports http(s), sftp, gs, hf,
and pipe:COMMAND such as 'pipe:aws s3 cp s3://bucket/{000..099}.tar -'. If you stop the recipe, the
same command continues with the first shard that is missing. Every shard is read to its end before
it counts as fetched.
"""

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from foundation.errors import UserError
from training.cli import answer_early, parse, run_main


@dataclass(frozen=True)
class Options:
    url: tyro.conf.Positional[str]  # URL of the shards, with {000..099} for their numbers
    out: tyro.conf.Positional[Path]  # folder to write them to


if __name__ == "__main__":
    answer_early(Options, __doc__)  # the imports below take seconds


from tqdm import tqdm

from dataset.tar import DamagedTar, walk_tar
from dataset.webdataset import expand_braces
from foundation.files import atomic_file

TAR_NAME = re.compile(r"[^/\s=]+\.tar\b")

OpenURL = Callable[[str], AbstractContextManager[BinaryIO]]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    urls = list(expand_braces(options.url))
    targets = [options.out / shard_name(url) for url in urls]
    if len(set(targets)) < len(urls):
        raise UserError(f"some of the {len(urls)} shards of {options.url} have the same name.")
    options.out.mkdir(parents=True, exist_ok=True)
    open_url = import_gopen()
    for url, target in tqdm(list(zip(urls, targets, strict=True)), desc="fetching shards"):
        if not target.exists():
            fetch(open_url, url, target)
    print(
        f"{len(urls)} shards are in {options.out}; check them with: "
        f"python check.py '{options.out}/*.tar'"
    )


def import_gopen() -> OpenURL:
    """Return webdataset's function that opens a URL."""
    try:
        from webdataset.gopen import gopen
    except ModuleNotFoundError as error:
        raise UserError(
            "fetching shards needs the Python package webdataset, which is not installed. "
            "Run: pip install webdataset"
        ) from error
    return cast(OpenURL, gopen)  # its pipes can be read like files


def shard_name(url: str) -> str:
    """Return the file name in a URL or in a command."""
    names = TAR_NAME.findall(url)
    if not names:
        raise UserError(f"{url} names no .tar file; compressed ones are not supported.")
    return names[-1]


def fetch(open_url: OpenURL, url: str, target: Path) -> None:
    """Download one shard; it gets its name only if it is complete.

    Raises:
        UserError: it cannot be downloaded, or it arrives damaged.
    """
    with atomic_file(target) as partial:
        try:
            with open_url(url) as stream, partial.open("wb") as file:
                shutil.copyfileobj(stream, file, 2**20)
        except OSError as error:
            raise UserError(f"{url} could not be fetched: {error}") from error
        try:
            with partial.open("rb") as file:
                for _ in walk_tar(file, partial.stat().st_size):
                    pass
        except DamagedTar as error:
            raise UserError(f"{url} arrived, but it {error}.") from None


if __name__ == "__main__":
    run_main(main, Options)
