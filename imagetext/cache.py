"""Latents and text embeddings, computed once, so that a step of stage 2 runs neither network.

latent_cache.json   the identity: what the numbers were made with
contents.jsonl      per pair: sha256 of the image file, its size and time, its captions
moments.npy         float16 (images, 2c, h, w): mean and log-variance of each posterior
context.npy         float16 (captions, tokens, width): text embeddings; row 0: the empty caption
image_rows.npy      (pairs): row in moments.npy
caption_starts.npy  (pairs + 1): where a pair's captions begin in caption_rows.npy
caption_rows.npy    row in context.npy of every caption of every pair

Files of equal bytes are stored once, and so are equal captions. Posteriors are stored, not samples
of them, which are drawn anew at every reading. The arrays are memory-mapped: they may be larger
than memory, and the processes of one machine share them.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from imagetext.arrays import map_array, write_rows
from imagetext.atomic import whole_folder
from imagetext.batches import Progress, read_pixels, silent
from imagetext.contents import Content, contents_of, difference
from imagetext.folder import Pair
from imagetext.images import ImageTransform

MARK = "latent_cache.json"
FORMAT = 1


def build_cache(
    pairs: Sequence[Pair],
    transform: ImageTransform,
    encode_images: Callable[[Tensor], Tensor],
    encode_texts: Callable[[list[str]], Tensor],
    folder: Path | str,
    identity: dict[str, Any],
    batch_size: int = 32,
    progress: Progress = silent,
) -> "LatentCache":
    """Encodes all pairs and writes `folder`, as a whole or not at all.

    Args:
        encode_images: pixels (b, c, h, w), as the transform gives them, -> moments (b, 2c, h, w),
            mean before log-variance.
        encode_texts: b texts -> (b, tokens, width).
        folder: replaced if it is an earlier latent cache.
        identity: JSON; all that the numbers depend on besides the files and captions: the
            transform, the weights' hashes, the precision of the encoding.

    Raises:
        ValueError: an image cannot be used, or an encoding is not finite or beyond float16.
        OSError: the disk is full.
    """
    contents = contents_of(pairs, progress)
    image_rows, distinct = numbered(content.sha256 for content in contents)
    paths = [pairs[k].path for k in distinct]
    texts = ["", *(caption for pair in pairs for caption in pair.captions)]
    caption_rows, distinct = numbered(texts)
    captions = [texts[k] for k in distinct]
    with whole_folder(Path(folder), MARK) as partial:
        blocks = batched(captions, batch_size, progress, "encoding captions")
        names = [f"the caption {caption!r}" for caption in captions]
        write_rows(partial / "context.npy", names, map(encode_texts, blocks))
        blocks = batched(paths, batch_size, progress, "encoding images")
        pixels = ahead(lambda block: read_pixels(block, transform), blocks)
        names = [str(path) for path in paths]
        write_rows(partial / "moments.npy", names, map(encode_images, pixels))
        starts = accumulate((len(pair.captions) for pair in pairs), initial=0)
        np.save(partial / "image_rows.npy", np.array(image_rows, np.int64))
        np.save(partial / "caption_rows.npy", np.array(caption_rows[1:], np.int64))
        np.save(partial / "caption_starts.npy", np.fromiter(starts, np.int64))
        lines = [json.dumps(asdict(content), ensure_ascii=False) + "\n" for content in contents]
        (partial / "contents.jsonl").write_text("".join(lines), encoding="utf-8")
        text = json.dumps({"format": FORMAT, "identity": identity}, indent=1)
        (partial / MARK).write_text(text, encoding="utf-8")
    return LatentCache.open(folder, identity)


class LatentCache:
    """Latents and contexts of all pairs; pair k is the k-th that the cache was built from."""

    def __init__(
        self,
        moments: Float16[Tensor, "images m h w"],
        context: Float16[Tensor, "captions l d"],
        image_rows: Int[Tensor, " pairs"],
        caption_starts: Int[Tensor, " starts"],
        caption_rows: Int[Tensor, " rows"],
    ):
        self.moments = moments
        self.context = context
        self.image_rows = image_rows
        self.caption_starts = caption_starts
        self.caption_rows = caption_rows

    @classmethod
    def open(
        cls,
        folder: Path | str,
        identity: dict[str, Any],
        pairs: Sequence[Pair] | None = None,
    ) -> "LatentCache":
        """Opens what `build_cache` wrote, if it is what this run would write.

        Args:
            pairs: if given, must be those the cache was built from: same files, same captions,
                same order. A file is read only if its size or time has changed.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was made with something else, or from something else.
        """
        folder = Path(folder)
        if not (folder / MARK).is_file():
            raise FileNotFoundError(f"there is no latent cache in {folder} (no {MARK}).")
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
        ours = json.loads(json.dumps({"format": FORMAT, "identity": identity}))  # tuples to lists
        differences = differing(ours, found)
        if (
            not differences
            and pairs is not None
            and (other := difference(read_contents(folder), pairs))
        ):
            differences = [f"the data: {other}"]
        if differences:
            raise ValueError(
                f"the latent cache {folder} does not fit this run:\n  "
                + "\n  ".join(differences)
                + f"\nDelete {folder} to have it made anew, or use what it was made with."
            )
        files = ("moments", "context", "image_rows", "caption_starts", "caption_rows")
        return cls(*(map_array(folder / f"{file}.npy") for file in files))

    def __len__(self) -> int:
        return len(self.image_rows)

    def batch(
        self,
        indices: Int[Tensor, " b"],
        generator: torch.Generator,
        caption_dropout: float,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b l d"]]:
        """Latents sampled from the posteriors of these pairs, and their contexts.

        Of several captions one is drawn; with chance `caption_dropout` it is the empty one.
        """
        chosen, dropped = torch.rand(2, len(indices), generator=generator, dtype=torch.float64)
        starts = self.caption_starts.index_select(0, indices)
        counts = self.caption_starts.index_select(0, indices + 1) - starts
        rows = self.caption_rows.index_select(0, starts + (chosen * counts).long())
        rows = torch.where(dropped < caption_dropout, 0, rows)
        context = self.context.index_select(0, rows).float()
        moments = self.moments.index_select(0, self.image_rows.index_select(0, indices)).float()
        mean, logvar = moments.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        return mean + (0.5 * logvar).exp() * noise, context


def numbered(keys: Iterable[str]) -> tuple[list[int], list[int]]:
    """The row of each key if equal keys share one, and the position of the first of each row."""
    rows, firsts, row_of = [], [], {}
    for position, key in enumerate(keys):
        if key not in row_of:
            row_of[key] = len(row_of)
            firsts.append(position)
        rows.append(row_of[key])
    return rows, firsts


def batched(items: Sequence, size: int, progress: Progress, title: str) -> Iterator[Sequence]:
    starts = range(0, len(items), size)
    for start in progress(starts, title, len(starts)):
        yield items[start : start + size]


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


def read_contents(folder: Path) -> list[Content]:
    lines = (folder / "contents.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    return [Content(**row | {"captions": tuple(row["captions"])}) for row in rows]


def differing(ours: dict[str, Any], cached: dict[str, Any]) -> list[str]:
    """Lines such as `autoencoder: cached with 5f3c..., now 90ab...`; nested keys by themselves."""
    lines = []
    for key in sorted(ours.keys() | cached.keys()):
        before, now = cached.get(key), ours.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differing(now, before)
        elif before != now:
            lines.append(f"{key}: cached with {before}, now {now}")
    return lines
