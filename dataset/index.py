"""The index of a data folder: what its images and captions are, found out once and kept beside it.

At the first start every image is decoded to its end and hashed. What is found is kept in
.latentsmith/ in the data folder (LATENTSMITH_INDEX=FOLDER puts it elsewhere) and holds as long as
no file's name, size or time changes. After a change only the files that changed are read again.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset.captions import Unusable, listed
from dataset.images.transform import EXTENSIONS, UnusableImage, inspect_image
from dataset.members import Member, Source
from dataset.progress import Progress
from dataset.table import Pairs, Rows, Table
from foundation.errors import UserError

# Another number, or another set of extensions, makes every index anew.
FORMAT = "1-" + hashlib.blake2b(" ".join(sorted(EXTENSIONS)).encode(), digest_size=4).hexdigest()
MARK = "index.json"
BLOCK = 4096  # images that are looked at side by side
KEEP_EVERY = 60.0  # seconds, after which what was found so far is kept, too
STAMP = ("size", "mtime_ns", "offset")  # a file in which these are the same is the same


@dataclass(frozen=True)
class Index:
    """All that is known of a data folder."""

    table: Table
    rule: str  # where the captions come from
    unusable: list[Unusable]  # left out, each with its reason
    notes: list[str]


@dataclass(frozen=True)
class Catalog:
    """What is to be indexed.

    Args:
        captions: of each image, by its name as `Table` has it.
        path: of the image of this name.
        shards: the tar files, with their times.
    """

    root: Path
    rule: str
    captions: dict[str, tuple[str, ...]]
    path: Callable[[str], Source]
    unusable: list[Unusable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=dict)


def kept_index(
    root: Path, kind: str, fingerprint: str, read: Callable[[], Catalog], progress: Progress
) -> Index:
    """The index with this fingerprint; made if there is none, with the help of an older one.

    Args:
        kind: tells apart what may be kept beside the same folder.
        fingerprint: another one means that files were added, removed or changed.
        read: finds images and captions, but opens no image.
    """
    place = index_place(root) / f"{kind}-{fingerprint}-{FORMAT}"
    if (index := load(place, root)) is not None:
        return index
    older = [path.parent for path in sorted(place.parent.glob(f"{kind}-*-{FORMAT}/{MARK}"))]
    earlier = [index.table for path in older if (index := load(path, root)) is not None]
    unfinished = place.with_name(f"{kind}-unfinished-{FORMAT}")

    def keep_meanwhile(so_far: Index) -> None:
        discard(unfinished)
        keep(so_far, unfinished)

    index = examine(read(), earlier, progress, keep_meanwhile)
    if not keep(index, place):
        return index
    discard(unfinished, *(path for path in older if path != place))
    return load(place, root) or index


def index_place(root: Path) -> Path:
    elsewhere = os.environ.get("LATENTSMITH_INDEX")
    if not elsewhere:
        return root / ".latentsmith"
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()
    return Path(elsewhere) / f"{root.resolve().name}-{digest[:16]}"


def examine(
    catalog: Catalog,
    earlier: list[Table],
    progress: Progress,
    keep_meanwhile: Callable[[Index], None],
) -> Index:
    """Opens every image that the earlier tables do not know."""
    known = Known(earlier)
    rows, unusable = Rows(), list(catalog.unusable)
    kept = time.monotonic()
    tars = {
        catalog.root / name: (k, mtime) for k, (name, mtime) in enumerate(catalog.shards.items())
    }

    def look(name: str) -> tuple[dict, str] | Unusable:
        path = catalog.path(name)
        try:
            return facts(name, path, tars, known)
        except UnusableImage as error:
            return Unusable(path, error.reason)
        except OSError as error:
            return Unusable(path, f"cannot be read: {error.strerror or error}")

    names = list(catalog.captions)
    looked = progress(side_by_side(look, names), "checking images", len(names))
    for name, found in zip(names, looked, strict=True):
        if isinstance(found, Unusable):
            unusable.append(found)
        else:
            rows.add(name, catalog.captions[name], *found)
        if time.monotonic() - kept > KEEP_EVERY:
            table = rows.table(catalog.root, catalog.shards)
            keep_meanwhile(Index(table, catalog.rule, [], []))
            del table  # its arrays are the rows' own memory, which cannot grow while they are seen
            kept = time.monotonic()
    table = rows.table(catalog.root, catalog.shards)
    return Index(table, catalog.rule, unusable, list(catalog.notes))


def side_by_side(function: Callable, items: list) -> Iterator:
    """function(item) of each item, in threads: Pillow and hashing run outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), BLOCK):  # a million futures would take gigabytes
            yield from pool.map(function, items[start : start + BLOCK])


class Known:
    """Rows of earlier tables, by name."""

    def __init__(self, tables: list[Table]):
        self.rows = {name: (table, row) for table in tables for row, name in enumerate(table.names)}

    def find(self, name: str, stamp: dict[str, int]) -> tuple[dict, str] | None:
        table, row = self.rows.get(name, (None, 0))
        if table is None or any(table.columns[key][row] != stamp[key] for key in STAMP):
            return None
        same = {key: int(table.columns[key][row]) for key in ("width", "height")}
        sha256 = table.columns["sha256"][row].tobytes()
        return same | {"sha256": sha256}, table.modes[table.columns["mode"][row]]


def facts(
    name: str, path: Source, tars: dict[Path, tuple[int, int]], known: Known
) -> tuple[dict, str]:
    """What `Rows.add` takes of an image: its columns, and the kind of its pixels.

    tars: number and time of each shard.
    """
    if isinstance(path, Member):
        shard, mtime = tars[path.shard]
        size, offset = path.size, path.offset
    else:
        stat = path.stat()
        size, mtime, shard, offset = stat.st_size, stat.st_mtime_ns, -1, 0
    stamp = {"size": size, "mtime_ns": mtime, "shard": shard, "offset": offset}
    if found := known.find(name, stamp):
        return stamp | found[0], found[1]
    (width, height), mode = inspect_image(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
    return stamp | {"width": width, "height": height, "sha256": sha256}, mode


def keep(index: Index, place: Path) -> bool:
    """Appears whole or not at all. Where it cannot be written a note says so."""
    unfinished = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
        index.table.save(unfinished)
        about = {
            "rule": index.rule,
            "notes": index.notes,
            "unusable": [kept_reason(entry, index.table.root) for entry in index.unusable],
        }
        text = json.dumps(about, ensure_ascii=False, indent=1)
        (unfinished / MARK).write_text(text, encoding="utf-8")
        unfinished.chmod(0o755)  # mkdtemp makes it private
        if place.exists() and load(place, index.table.root) is None:
            discard(place)  # damaged
        unfinished.rename(place)
    except OSError as error:
        if load(place, index.table.root) is not None:  # another process was faster
            return True
        index.notes.append(
            f"the index of the data cannot be kept in {place.parent} ({error.strerror}), so every "
            "start decodes all images. Set LATENTSMITH_INDEX to a folder that can be written."
        )
        return False
    finally:
        if unfinished is not None:
            discard(unfinished)
    return True


def verify_images(pairs: Pairs, progress: Progress) -> None:
    """Reads every file again, whatever its time says.

    Raises:
        ValueError: some are not what was indexed; they are named.
    """
    hashes = pairs.table.columns["sha256"]

    def changed(row: int) -> bool:
        with pairs.table.path(row).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() != hashes[row].tobytes()

    rows = pairs.rows.tolist()
    other = list(progress(side_by_side(changed, rows), "verifying images", len(rows)))
    if any(other):
        paths = pairs.where(np.array(other)).paths
        raise UserError(
            f"{len(paths)} images have changed, though their sizes and times are as before:\n"
            f"{listed(paths)}\n"
            "Restore them, or give them a new time (touch) to have them read anew."
        )


def discard(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def kept_reason(entry: Unusable, root: Path) -> list[str]:
    """Relative to the root, since a data folder may move."""
    inside = isinstance(entry.path, Member)
    path = entry.path.shard if inside else entry.path
    return [os.path.relpath(path, root), entry.path.name if inside else "", entry.reason]


def load(place: Path, root: Path) -> Index | None:
    """None: there is none, or it is damaged and has to be made again."""
    try:
        about = json.loads((place / MARK).read_text(encoding="utf-8"))
        table = Table.open(place, root)
    except (OSError, ValueError, EOFError):
        return None
    unusable = []
    for name, inside, reason in about["unusable"]:
        path = root / name
        unusable.append(Unusable(Member(path, inside, 0, 0) if inside else path, reason))
    return Index(table, about["rule"], unusable, about["notes"])
