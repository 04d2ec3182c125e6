"""The latent cache is built by all processes together, and over several attempts if it must be.

Until it is complete it lies in <folder>.partial. Each process encodes every `ranks`-th block of
rows. After a kill the next build keeps all blocks that are on the disk as their hashes say.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.buckets import Buckets
from dataset.images.transform import ImageTransform
from dataset.latent_cache.block_file import BlockFile, to_float16
from dataset.latent_cache.cache import MARK, LatentCache, about, data_hash
from dataset.latent_cache.rows import Rows, assign_rows
from dataset.loader import read_pixels
from dataset.progress import Progress, silent
from dataset.table import Pairs, Paths
from foundation.errors import UserError
from foundation.files import check_replaceable, explain_full_disk, put_in_place

PLAN = "plan.json"  # of an unfinished cache: what it will be


@dataclass(frozen=True)
class Process:
    """Which of the processes that build together this one is.

    Args:
        barrier: returns when all of them have called it.
    """

    rank: int = 0
    ranks: int = 1
    barrier: Callable[[], None] = lambda: None


ALONE = Process()


def build_cache(
    pairs: Pairs,
    transform: ImageTransform,
    encode_images: Callable[[Tensor], Tensor],
    encode_texts: Callable[[list[str]], Tensor],
    folder: Path | str,
    identity: dict[str, Any],
    batch_size: int = 32,
    *,
    buckets: Buckets | None = None,
    process: Process = ALONE,
    progress: Progress = silent,
) -> LatentCache:
    """Encodes all pairs, or those that an interrupted build has left.

    Args:
        encode_images: pixels (b, c, h, w), as the transform gives them, -> moments (b, 2c, h, w),
            mean before log-variance.
        encode_texts: b texts -> (b, tokens, width).
        folder: replaced if it is an earlier latent cache.
        identity: JSON; all that the numbers depend on besides the files and captions: the
            transform, the weights' hashes, the precision of the encoding, the shapes.

    Raises ValueError if an image cannot be used, or an encoding is not finite or beyond float16,
    and OSError if the disk is full.
    """
    refuse_random_crop(transform)
    folder = Path(folder).resolve()
    unfinished = folder.with_name(folder.name + ".partial")
    transforms = buckets.transforms(transform) if buckets else [transform]
    left = "What was finished is kept. Free some space, and run the same command again."
    with explain_full_disk(folder, left):
        plan = about(identity, data_hash(pairs))
        if process.rank == 0:
            check_replaceable(folder, MARK)
            prepare(unfinished, plan)
        process.barrier()
        encoding = Encoding(unfinished, process, batch_size, progress)
        rows = assign_rows(pairs, buckets)
        files = [encoding.texts(rows.captions, encode_texts)]
        for k, shaped in enumerate(transforms):
            paths = Pairs(pairs.table, pairs.rows[rows.images[k]]).paths
            files.append(encoding.images(f"moments-{k}.npy", paths, shaped, encode_images))
        process.barrier()
        if process.rank == 0:
            finish(unfinished, folder, plan, pairs, rows, files)
        process.barrier()
    return LatentCache.open(folder, identity)


def refuse_random_crop(transform: ImageTransform) -> None:
    if transform.crop == "random":
        raise UserError(
            "a random crop is new at every reading, and here each image is read once and kept. "
            "Use crop center or letterbox."
        )


def prepare(unfinished: Path, plan: dict[str, Any]) -> None:
    """Keeps an unfinished cache if it is to become the same."""
    try:
        found = json.loads((unfinished / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    number = found.pop("attempt", 0)
    if found != plan:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    new = unfinished / f"{PLAN}.new"
    new.write_text(json.dumps(plan | {"attempt": number + 1}, indent=1), encoding="utf-8")
    new.replace(unfinished / PLAN)


class Encoding:
    """What a process does block by block.

    Args:
        batch_size: images or captions that are encoded at once.
    """

    def __init__(self, folder: Path, process: Process, batch_size: int, progress: Progress):
        self.folder, self.process = folder, process
        self.batch_size, self.progress = batch_size, progress
        attempt = json.loads((folder / PLAN).read_text(encoding="utf-8"))["attempt"]
        self.journal = f"{attempt:04d}-{process.rank:05d}"  # a later attempt is the one that counts

    def texts(self, captions: Sequence[str], encode: Callable[[list[str]], Tensor]) -> BlockFile:
        file = BlockFile(self.folder / "context.npy", len(captions))
        self.write(file, captions, list, encode, "the caption {!r}")
        return file

    def images(
        self, name: str, paths: Paths, transform: ImageTransform, encode: Callable[[Tensor], Tensor]
    ) -> BlockFile:
        file = BlockFile(self.folder / name, len(paths))
        self.write(file, paths, partial(read_pixels, transform=transform), encode, "{}")
        return file

    def write(
        self,
        file: BlockFile,
        items: Sequence,
        read: Callable[[Sequence], Any],
        encode: Callable[[Any], Tensor],
        form: str,
    ) -> None:
        """This process's share of the blocks, unless they are there already.

        form: how an item is named in a message.
        """
        todo = self.todo(file)
        parts = [
            range(start, min(start + self.batch_size, file.block(k).stop))
            for k in todo
            for start in file.block(k)[:: self.batch_size]
        ]
        shown = self.progress(parts, f"encoding for {file.path.name}", len(parts))
        values = ahead(lambda part: read(items[part.start : part.stop]), shown)
        for block in todo:
            count = -(-len(file.block(block)) // self.batch_size)
            encoded = torch.cat([encode(next(values)) for _ in range(count)])
            names = [form.format(items[k]) for k in file.block(block)]
            file.write(block, to_float16(encoded, names).numpy(), self.journal)

    def todo(self, file: BlockFile) -> list[int]:
        rank, ranks = self.process.rank, self.process.ranks
        done = {block: sha256 for block, sha256 in file.done().items() if block % ranks == rank}
        whole = done.keys() - set(file.damaged(done))
        return [k for k in range(rank, file.count, ranks) if k not in whole]


def ahead(function: Callable, items: Iterable, depth: int = 2) -> Iterator:
    """function(item) for each item, computed in a thread while earlier results are used."""
    with ThreadPoolExecutor(1) as pool:
        results = deque()
        for item in items:
            results.append(pool.submit(function, item))
            if len(results) > depth:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()


def finish(
    unfinished: Path,
    folder: Path,
    plan: dict[str, Any],
    pairs: Pairs,
    rows: Rows,
    files: list[BlockFile],
) -> None:
    """Writes the rest; the mark, by which a cache is known, last. Then it takes its place."""
    hashes = {}
    for file in files:
        done = file.done()
        missing = set(range(file.count)) - done.keys()
        if missing:
            raise UserError(
                f"{len(missing)} blocks of {file.path} were not written, though every process "
                "says it has finished. Do all of them see the same folder?"
            )
        hashes[file.path.name] = [done[k] for k in range(file.count)]
    arrays = {
        "image_rows": rows.image_rows,
        "shape": rows.shape,
        "caption_starts": rows.caption_starts,
        "caption_rows": rows.caption_rows,
        "sha256": pairs.column("sha256"),
        "captions_hash": pairs.column("captions_hash"),
    }
    for name, values in arrays.items():
        np.save(unfinished / f"{name}.npy", values)
    text = json.dumps(plan | {"blocks": hashes}, indent=1)
    (unfinished / MARK).write_text(text, encoding="utf-8")
    put_in_place(unfinished, folder)
    for notes in (folder / PLAN, *folder.glob("*.done")):  # not needed any more
        notes.unlink()
