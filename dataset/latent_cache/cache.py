"""Latents and text embeddings, computed once, so that a step of stage 2 runs neither network.

latent_cache.json   the identity: what the numbers were made with, and from; sha256 of their blocks
moments-0.npy ...   float16 (images, 2c, h, w): mean and log-variance of each posterior, by shape
context.npy         float16 (captions, tokens, width): text embeddings; row 0: the empty caption
shape.npy           (pairs): which moments file
image_rows.npy      (pairs): row in that file
caption_starts.npy  (pairs + 1): where a pair's captions begin in caption_rows.npy
caption_rows.npy    row in context.npy of every caption of every pair
sha256.npy, captions_hash.npy       (pairs): of the files and captions, to name what has changed

Files of equal bytes are stored once, and so are equal captions. Posteriors are stored, not samples
of them, which are drawn anew at every reading. The arrays are memory-mapped: they may be larger
than memory, and the processes of one machine share them. imagetext/cache_build.py writes all this.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from dataset.latent_cache.block_file import BlockFile, map_array
from dataset.progress import Progress, silent
from dataset.table import Pairs
from foundation.errors import MissingFileError, UserError

MARK = "latent_cache.json"
FORMAT = 2
CHUNK = 65536  # pairs that are compared at once


class LatentCache:
    """Latents and contexts of all pairs; pair k is the k-th that the cache was built from."""

    def __init__(
        self,
        moments: list[Float16[Tensor, "images m h w"]],
        context: Float16[Tensor, "captions l d"],
        shape: UInt8[Tensor, " pairs"],
        image_rows: Int[Tensor, " pairs"],
        caption_starts: Int[Tensor, " starts"],
        caption_rows: Int[Tensor, " rows"],
    ):
        self.moments = moments
        self.context = context
        self.shape = shape
        self.image_rows = image_rows
        self.caption_starts = caption_starts
        self.caption_rows = caption_rows

    @classmethod
    def open(
        cls, folder: Path | str, identity: dict[str, Any], pairs: Pairs | None = None
    ) -> "LatentCache":
        """Opens what `build_cache` wrote, if it is what this run would write.

        Args:
            pairs: if given, must be those the cache was built from: same files, same captions,
                same order.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was made with something else, or from something else.
        """
        folder = Path(folder)
        found = read_mark(folder)
        ours = about(identity, found["data"] if pairs is None else data_hash(pairs))
        differences = differing({**ours, "data": None}, {**found, "data": None, "blocks": None})
        if not differences and ours["data"] != found["data"]:
            differences = [f"the data: {difference(folder, pairs)}"]
        if differences:
            raise UserError(
                f"the latent cache {folder} does not fit this run:\n  "
                + "\n  ".join(differences)
                + f"\nDelete {folder} to have it made anew, or use what it was made with."
            )
        moments = [f"moments-{k}.npy" for k in range(len(found["blocks"]) - 1)]
        files = ("context", "shape", "image_rows", "caption_starts", "caption_rows")
        return cls(
            [map_array(folder / name) for name in moments],
            *(map_array(folder / f"{file}.npy") for file in files),
        )

    def __len__(self) -> int:
        return len(self.image_rows)

    def of_one_shape(self, indices: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """Those of these pairs whose images have the shape that most of them have."""
        shapes = self.shape.index_select(0, indices)
        return indices[shapes == shapes.mode().values]

    def batch(
        self,
        indices: Int[Tensor, " b"],
        generators: Sequence[torch.Generator],
        caption_dropout: float,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b l d"]]:
        """Latents sampled from the posteriors of these pairs, and their contexts.

        The images must be of one shape. Of several captions one is drawn; with chance
        `caption_dropout` it is the empty one.
        generators: one for each pair, so that what is drawn for it does not depend on the others.
        """
        chances = [torch.rand(2, generator=each, dtype=torch.float64) for each in generators]
        chosen, dropped = torch.stack(chances, dim=1)
        starts = self.caption_starts.index_select(0, indices)
        counts = self.caption_starts.index_select(0, indices + 1) - starts
        rows = self.caption_rows.index_select(0, starts + (chosen * counts).long())
        rows = torch.where(dropped < caption_dropout, 0, rows)
        context = self.context.index_select(0, rows).float()
        shapes = self.shape.index_select(0, indices)
        assert (shapes == shapes[0]).all(), "a batch holds images of one shape"
        rows = self.image_rows.index_select(0, indices)
        moments = self.moments[int(shapes[0])].index_select(0, rows).float()
        mean, logvar = moments.chunk(2, dim=1)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=each) for each in generators])
        return mean + (0.5 * logvar).exp() * noise, context


def about(identity: dict[str, Any], data: str) -> dict[str, Any]:
    """What a cache is bound to, as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps({"format": FORMAT, "identity": identity, "data": data}))


def read_mark(folder: Path) -> dict[str, Any]:
    if not (folder / MARK).is_file():
        raise MissingFileError(f"there is no latent cache in {folder} (no {MARK}).")
    found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    return {"data": None, "blocks": {}, **found}  # older formats lack these


def verify_cache(folder: Path | str, progress: Progress = silent) -> None:
    """Reads everything, which takes as long as the disk needs.

    Raises:
        ValueError: some of it is not what was written.
    """
    folder = Path(folder)
    blocks = read_mark(folder)["blocks"]
    broken = []
    for name, hashes in progress(blocks.items(), "verifying the cache", len(blocks)):
        count = len(np.load(folder / name, mmap_mode="r")) if (folder / name).is_file() else 0
        damaged = BlockFile(folder / name, count).damaged(dict(enumerate(hashes)))
        broken += [f"block {k} of {name}" for k in damaged]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise UserError(
            f"the latent cache {folder} is damaged: {', '.join(broken[:3])}{more}. "
            f"Delete {folder} to have it made anew, and check the disk."
        )


def data_hash(pairs: Pairs) -> str:
    """Of the images' bytes and the captions, in order. Names are no part of it: folders move."""
    digest = hashlib.sha256()
    for name in ("sha256", "captions_hash"):
        column = pairs.table.columns[name]
        for start in range(0, len(pairs), CHUNK):
            digest.update(column[pairs.rows[start : start + CHUNK]].tobytes())
    return digest.hexdigest()


def difference(folder: Path, pairs: Pairs) -> str:
    """The first thing that is no longer the same, in words."""
    before = np.load(folder / "sha256.npy", mmap_mode="r")
    if len(before) != len(pairs):
        return f"{len(before)} pairs then, {len(pairs)} now"
    for name, what in (("sha256", "is another image now"), ("captions_hash", "has other captions")):
        other = (np.load(folder / f"{name}.npy") != pairs.column(name)).any(1)
        if other.any():
            return f"{pairs[int(other.argmax())].path} {what}"
    return "it was written with another hash"


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
