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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imagetext.captions import Unusable
from imagetext.images import UnusableImage, inspect_image
from imagetext.members import Member
from imagetext.pairs import COLUMNS, Rows, Strings, Table
from imagetext.progress import Progress

FORMAT = 1
MARK = "index.json"
BLOCK = 4096  # images that are looked at side by side
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
    path: Callable[[str], Path | Member]
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
    older = sorted(place.parent.glob(f"{kind}-*-{FORMAT}/{MARK}"))
    earlier = load(older[-1].parent, root) if older else None
    index = examine(read(), earlier.table if earlier else None, progress)
    try:
        save(index, place)
    except OSError as error:
        index.notes.append(
            f"the index of {root} cannot be kept in {place.parent} ({error.strerror}), so every "
            "start decodes all images. Set LATENTSMITH_INDEX to a folder that can be written."
        )
        return index
    for path in older:
        shutil.rmtree(path.parent, ignore_errors=True)
    return load(place, root) or index


def index_place(root: Path) -> Path:
    elsewhere = os.environ.get("LATENTSMITH_INDEX")
    if not elsewhere:
        return root / ".latentsmith"
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()
    return Path(elsewhere) / f"{root.resolve().name}-{digest[:16]}"


def examine(catalog: Catalog, earlier: Table | None, progress: Progress) -> Index:
    """Opens every image that `earlier` does not know."""
    known = Known(earlier)
    rows, unusable = Rows(), list(catalog.unusable)
    tars = {catalog.root / name: (k, time) for k, (name, time) in enumerate(catalog.shards.items())}

    def look(name: str) -> tuple[dict, str] | Unusable:
        path = catalog.path(name)
        try:
            return facts(name, path, tars, known)
        except UnusableImage as error:
            return Unusable(path, error.reason)
        except OSError as error:
            return Unusable(path, f"cannot be read: {error.strerror}")

    names = list(catalog.captions)
    looked = progress(side_by_side(look, names), "checking images", len(names))
    for name, found in zip(names, looked, strict=True):
        if isinstance(found, Unusable):
            unusable.append(found)
        else:
            rows.add(name, catalog.captions[name], *found)
    table = rows.table(catalog.root, catalog.shards)
    return Index(table, catalog.rule, unusable, list(catalog.notes))


def side_by_side(function: Callable, items: list) -> Iterator:
    """function(item) of each item, in threads: Pillow and hashing run outside Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), BLOCK):  # a million futures would take gigabytes
            yield from pool.map(function, items[start : start + BLOCK])


class Known:
    """Rows of an earlier index, by name."""

    def __init__(self, table: Table | None):
        self.table = table
        self.row_of = {name: row for row, name in enumerate(table.names)} if table else {}

    def find(self, name: str, stamp: dict[str, int]) -> tuple[dict, str] | None:
        row = self.row_of.get(name)
        if row is None or any(self.table.columns[key][row] != stamp[key] for key in STAMP):
            return None
        columns = self.table.columns
        same = {key: int(columns[key][row]) for key in ("width", "height")}
        sha256 = columns["sha256"][row].tobytes()
        return same | {"sha256": sha256}, self.table.modes[columns["mode"][row]]


def facts(
    name: str, path: Path | Member, tars: dict[Path, tuple[int, int]], known: Known
) -> tuple[dict, str]:
    """What `Rows.add` takes of an image: its columns, and the kind of its pixels.

    tars: number and time of each shard.
    """
    if isinstance(path, Member):
        shard, time = tars[path.shard]
        size, offset = path.size, path.offset
    else:
        stat = path.stat()
        size, time, shard, offset = stat.st_size, stat.st_mtime_ns, -1, 0
    stamp = {"size": size, "mtime_ns": time, "shard": shard, "offset": offset}
    if found := known.find(name, stamp):
        return stamp | found[0], found[1]
    (width, height), mode = inspect_image(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
    return stamp | {"width": width, "height": height, "sha256": sha256}, mode


def save(index: Index, place: Path) -> None:
    """Appears whole or not at all; of two processes that write the same one, the first wins."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
    table = index.table
    try:
        arrays = {
            "names": table.names.data,
            "name_starts": table.names.starts,
            "captions": table.captions.data,
            "text_starts": table.captions.starts,
            "caption_starts": table.caption_starts,
            **table.columns,
        }
        for name, values in arrays.items():
            np.save(partial / f"{name}.npy", values)
        about = {
            "rule": index.rule,
            "notes": index.notes,
            "unusable": [[str(entry.path), entry.reason] for entry in index.unusable],
            "root": str(table.root),
            "shards": table.shards,
            "modes": table.modes,
        }
        text = json.dumps(about, ensure_ascii=False, indent=1)
        (partial / MARK).write_text(text, encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp makes it private
        if not (place / MARK).is_file():
            partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(place: Path, root: Path) -> Index | None:
    """None: there is none, or it is damaged and has to be made again."""
    try:
        about = json.loads((place / MARK).read_text(encoding="utf-8"))
        names = ("names", "name_starts", "captions", "text_starts", "caption_starts", *COLUMNS)
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError, EOFError):
        return None
    table = Table(
        root,
        tuple(about["shards"]),
        tuple(about["modes"]),
        Strings(arrays["names"], arrays["name_starts"]),
        Strings(arrays["captions"], arrays["text_starts"]),
        arrays["caption_starts"],
        {name: arrays[name] for name in COLUMNS},
    )
    unusable = [Unusable(Path(path), reason) for path, reason in about["unusable"]]
    return Index(table, about["rule"], unusable, about["notes"])
