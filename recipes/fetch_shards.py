"""Fetches shards (tar files of images and captions), once, to be trained on from the disk.

    python recipes/fetch_shards.py 'https://example.org/set/{000..099}.tar' data/set
    python train_vae.py --data 'data/set/{000..099}.tar' --out runs/vae

By the webdataset library (pip install webdataset), which knows http(s), sftp, gs, hf, and
pipe:COMMAND such as 'pipe:aws s3 cp s3://bucket/{000..099}.tar -'. Stopped, it goes on with the
first shard that is not there. Every shard is read to its end before it counts as fetched.
"""

import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import tyro
from tqdm import tqdm

from foundation.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from dataset.captions import Unusable
from dataset.webdataset import braces, members
from training.cli import parse, run_main

NAME = re.compile(r"[^/\s=]+\.tar\b")


@dataclass(frozen=True)
class Options:
    url: tyro.conf.Positional[str]  # with {000..099} for the numbers of the shards
    out: tyro.conf.Positional[Path]  # folder for them


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    urls = list(braces(options.url))
    targets = [options.out / name_of(url) for url in urls]
    if len(set(targets)) < len(urls):
        raise UserError(f"some of the {len(urls)} shards of {options.url} have the same name.")
    options.out.mkdir(parents=True, exist_ok=True)
    open_url = opener()
    bar = tqdm(list(zip(urls, targets, strict=True)), desc="fetching shards")
    for url, target in bar:
        if not target.exists():
            fetch(open_url, url, target)
    print(
        f"{len(urls)} shards are in {options.out}; look at them with: "
        f"python check.py '{options.out}/*.tar'"
    )


def opener() -> Callable[[str], BinaryIO]:
    try:
        from webdataset.gopen import gopen
    except ModuleNotFoundError as error:
        raise UserError(
            "to fetch shards, webdataset is needed, which is not installed. "
            "Run: pip install webdataset"
        ) from error
    return gopen


def name_of(url: str) -> str:
    found = NAME.findall(url)
    if not found:
        raise UserError(f"{url} names no .tar file; compressed ones are not read.")
    return found[-1]


def fetch(open_url: Callable[[str], BinaryIO], url: str, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    try:
        with open_url(url) as stream, partial.open("wb") as file:
            shutil.copyfileobj(stream, file, 2**20)
    except OSError as error:
        raise UserError(f"{url} could not be fetched: {error}") from error
    damage: list[Unusable] = []
    for _ in members(partial, damage):
        pass
    if damage:
        raise UserError(f"{url} came, but {damage[0].reason}.")
    partial.replace(target)


if __name__ == "__main__":
    run_main(main)
