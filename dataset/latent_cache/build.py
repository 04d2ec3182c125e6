"""Building the latent cache, by all processes together, and over several attempts if need be.

Until it is complete it lies in <folder>.partial. Of n processes, process r encodes blocks r, r + n,
r + 2n, ... of each array. After a kill the next build reuses every finished block whose content
still has its hash.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dataset.buckets import Buckets
from dataset.captions.choice import CaptionDraws
from dataset.images.transform import ImageTransform, PixelTensor, refuse_random_crop
from dataset.latent_cache.block_file import BLOCKS, BlockFile, to_float16
from dataset.latent_cache.cache import CONTEXT, MARK, LatentCache, describe_cache, hash_pairs
from dataset.latent_cache.rows import CacheRows, assign_rows
from dataset.loader import read_pixels
from dataset.parallel import ALONE, Progress, WorkShare, no_progress, prefetch
from dataset.table import PairList
from foundation.errors import UserError
from foundation.files import (
    check_replaceable,
    explain_full_disk,
    put_in_place,
    read_json,
    remove,
    write_json,
)

PLAN = "plan.json"  # in an unfinished cache: what the finished cache will be bound to

Item = TypeVar("Item")
Value = TypeVar("Value")
EncodeImages = Callable[[PixelTensor], Float[Tensor, "b m h w"]]
EncodeTexts = Callable[[list[str]], Float[Tensor, "b l d"]]


def build_cache(
    pairs: PairList,
    transform: ImageTransform,
    encode_images: EncodeImages,
    encode_texts: EncodeTexts | None,
    folder: Path | str,
    identity: dict[str, Any],
    batch_size: int = 32,
    *,
    buckets: Buckets | None = None,
    draws: CaptionDraws | None = None,
    process: WorkShare = ALONE,
    progress: Progress = no_progress,
) -> LatentCache:
    """Encode all pairs, or those that an interrupted build has not encoded yet.

    Args:
        encode_images: pixels (b, c, h, w), as the transform gives them, -> moments (b, 2c, h, w),
            mean before log-variance.
        encode_texts: b texts -> (b, tokens, width); None: captions are numbered, not encoded.
        folder: replaced if it is an earlier latent cache.
        identity: JSON; all that the numbers depend on besides files and captions: the transform,
            the hashes of the weights, the precision of the encoding, the shapes.
        batch_size: images or texts that are encoded at once.
        draws: the texts of the pairs; None: their captions.

    Raises:
        UserError: an image cannot be used, or an encoding is not finite or too large for float16.
        OSError: the disk is full. The finished blocks are kept.
    """
    if transform.crop == "random":
        refuse_random_crop()
    folder = Path(folder).resolve()
    unfinished = folder.with_name(folder.name + ".partial")
    transforms = buckets.transforms(transform) if buckets else [transform]
    advice = "The finished blocks are kept. Free some space, and run the same command again."
    with explain_full_disk(folder, advice):
        plan = describe_cache(identity, hash_pairs(pairs))
        if process.rank == 0:
            check_replaceable(folder, MARK)
            prepare(unfinished, plan)
        process.barrier()
        rows = assign_rows(pairs, buckets, draws)
        write = partial(write_share, process=process, batch_size=batch_size, progress=progress)
        files: list[BlockFile] = []
        if encode_texts is not None:
            context = BlockFile(unfinished / CONTEXT, len(rows.captions))
            write(context, rows.captions, list, encode_texts, name="the caption {!r}".format)
            files.append(context)
        for k, bucket_transform in enumerate(transforms):
            paths = PairList(pairs.table, pairs.rows[rows.images[k]]).paths
            read = partial(read_pixels, transform=bucket_transform)
            moments = BlockFile(unfinished / f"moments-{k}.npy", len(paths))
            write(moments, paths, read, encode_images, name=str)
            files.append(moments)
        process.barrier()
        if process.rank == 0:
            finish(unfinished, folder, plan, pairs, rows, files)
        process.barrier()
    return LatentCache.open(folder, identity)


def prepare(unfinished: Path, plan: dict[str, Any]) -> None:
    """Make the folder of the unfinished cache, unless there is one that will be the same."""
    try:
        earlier_plan = read_json(unfinished / PLAN, default={})
    except UserError:
        earlier_plan = {}
    if earlier_plan != plan:
        remove(unfinished)
        unfinished.mkdir(parents=True)
        write_json(unfinished / PLAN, plan)
    (unfinished / BLOCKS).mkdir(exist_ok=True)


def write_share(
    file: BlockFile,
    items: Sequence[Item],
    read: Callable[[Sequence[Item]], Value],
    encode: Callable[[Value], Float[Tensor, "..."]],
    *,
    name: Callable[[Item], str],
    process: WorkShare,
    batch_size: int,
    progress: Progress,
) -> None:
    """Encode this process's share of the blocks, except for those that are finished.

    Args:
        items: the inputs of all rows.
        read: loads some items; a thread calls it ahead of time.
        encode: computes the rows of loaded items.
        name: returns how a message names an item.
    """
    blocks = unfinished_blocks(file, process)
    batches = [
        range(start, min(start + batch_size, file.block(number).stop))
        for number in blocks
        for start in file.block(number)[::batch_size]
    ]
    shown = progress(batches, f"encoding for {file.path.name}", len(batches))
    values = prefetch(lambda batch: read(items[batch.start : batch.stop]), shown)
    for number in blocks:
        rows = file.block(number)
        batches_per_block = -(-len(rows) // batch_size)
        encoded = torch.cat([encode(next(values)) for _ in range(batches_per_block)])
        file.write(number, to_float16(encoded, [name(items[k]) for k in rows]).numpy())


def unfinished_blocks(file: BlockFile, process: WorkShare) -> list[int]:
    """List the blocks that this process has to encode."""
    share = range(process.rank, file.count, process.world_size)
    finished = {number: sha256 for number, sha256 in file.finished().items() if number in share}
    intact = finished.keys() - set(file.find_damaged(finished))
    return [number for number in share if number not in intact]


def finish(
    unfinished: Path,
    folder: Path,
    plan: Mapping[str, Any],
    pairs: PairList,
    rows: CacheRows,
    files: Sequence[BlockFile],
) -> None:
    """Write the small arrays and the mark of a complete cache, and put the cache in its place."""
    arrays = {
        "image_rows": rows.image_rows,
        "shape": rows.shape,
        "caption_starts": rows.caption_starts,
        "caption_rows": rows.caption_rows,
        "sha256": pairs.column("sha256"),
        "captions_hash": pairs.column("captions_hash"),
    }
    hashes = {file.path.name: block_hashes(file) for file in files}
    mark = {**plan, "blocks": hashes}
    if rows.caption_chances is not None:
        arrays["caption_chances"] = rows.caption_chances
        mark["weighted"] = True
    for name, values in arrays.items():
        np.save(unfinished / f"{name}.npy", values)
    text = json.dumps(mark, indent=1)
    (unfinished / MARK).write_text(text, encoding="utf-8")
    put_in_place(unfinished, folder)
    # Only now, because without these files a build that is killed here would begin again. They do
    # no harm in a finished cache.
    remove(folder / PLAN)
    remove(folder / BLOCKS)


def block_hashes(file: BlockFile) -> list[str]:
    """Return the sha256 of all blocks, in order.

    Raises:
        UserError: some blocks have not been written.
    """
    finished = file.finished()
    missing = file.count - len(finished)
    if missing:
        raise UserError(
            f"{missing} blocks of {file.path} were not written, though all processes have "
            "finished. Do all of them see the same folder?"
        )
    return [finished[number] for number in range(file.count)]
