"""Members of tar files, and the captions in them."""

import io
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from dataset.parallel import no_progress
from dataset.source import Member
from dataset.tar import walk_tar
from dataset.webdataset import read_shards
from tests.hostile.fuzz import FuzzTarget


def shard(layout: int) -> bytes:
    """Write a shard with most kinds of members."""
    picture, file = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), (200, 90, 9)).save(picture, "PNG")
    with tarfile.open(fileobj=file, mode="w", format=layout) as tar:
        for name, content in {
            "0.png": picture.getvalue(),
            "0.txt": b"a red square\nanother",
            f"folder/{'long name ' * 12}.png": picture.getvalue(),
            f"folder/{'long name ' * 12}.json": b'{"caption": ["one", "two"]}',
            "1.heic": b"heic",
            "2.cls": b"7",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, kind in (("3.png", tarfile.LNKTYPE), ("4.png", tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "0.png"
            tar.addfile(entry)
    return file.getvalue()


def seeds() -> Sequence[bytes]:
    layouts = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [shard(layout)[:10240] for layout in layouts]


def read(file: Path) -> int:
    """Read a shard; every entry must be counted, whatever the bytes are."""
    catalog = read_shards(file.parent, [file.name], no_progress)
    for name in catalog.captions:
        member = catalog.locate(name)
        assert isinstance(member, Member) and len(member.read_bytes()) == member.size
    entries = 0
    try:
        with file.open("rb") as stream:
            for _ in walk_tar(stream, file.stat().st_size):
                entries += 1
    except ValueError:
        entries += 1  # the damage itself is named
    assert sum(catalog.uses.values()) == entries, (catalog.uses, entries)
    return entries


TARGETS = [FuzzTarget("a.tar", partial(seeds), read)]
