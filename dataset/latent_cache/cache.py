"""Latents and text embeddings, computed once, so that a step of stage 2 runs neither network.

latent_cache.json   the identity (how and from what the numbers were made); sha256 of all blocks
moments-0.npy ...   float16 (images, 2c, h, w), one file per shape: mean and log-variance of each
                    posterior
context.npy         float16 (captions, tokens, width): text embeddings; row 0: the empty caption.
                    Only for models that read text
shape.npy           (pairs): number of the moments file
image_rows.npy      (pairs): row in that file
caption_starts.npy  (pairs + 1): where a pair's captions begin in caption_rows.npy
caption_rows.npy    number of every caption of every pair, or of every variant of one: its row in
                    context.npy
caption_chances.npy (captions): only if some are drawn more often; as in `CaptionDraws`
sha256.npy, captions_hash.npy       (pairs): of files and captions, to name those that changed

Files with equal bytes are stored once, and so are equal captions. Posteriors are stored instead of
samples; each use draws a new sample. The arrays are memory-mapped: they may be larger
than the memory, and the processes of a machine share them. `dataset.latent_cache.build` writes
these files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, Float64, Int, UInt8
from torch import Tensor

from dataset.captions.choice import draw_captions
from dataset.latent_cache.block_file import BlockFile, load_array, map_array
from dataset.parallel import Progress, no_progress
from dataset.table import PairList
from foundation.errors import MissingFileError, UserError
from foundation.files import read_json
from foundation.json_reading import from_json, load_object

MARK = "latent_cache.json"
CONTEXT = "context.npy"
FORMAT = 2


class LatentCache:
    """Latents and text embeddings of all pairs, numbered as they were when the cache was built."""

    def __init__(
        self,
        moments: list[Float16[Tensor, "images m h w"]],
        context: Float16[Tensor, "captions l d"] | None,
        shape: UInt8[Tensor, " pairs"],
        image_rows: Int[Tensor, " pairs"],
        caption_starts: Int[Tensor, " pairs_plus_1"],
        caption_rows: Int[Tensor, " rows"],
        caption_chances: Float64[Tensor, " rows"] | None = None,
    ):
        self.moments = moments
        self.context = context
        self.shape = shape
        self.image_rows = image_rows
        self.caption_starts = caption_starts
        self.caption_rows = caption_rows
        self.caption_chances = caption_chances

    @classmethod
    def open(
        cls, folder: Path | str, identity: dict[str, Any], pairs: PairList | None = None
    ) -> "LatentCache":
        """Open the cache in a folder if it is the one that this run would build.

        Args:
            identity: that of this run, as for `build_cache`.
            pairs: those of this run; None: they are not compared. They must be the pairs that the
                cache was built from: same files, same captions, same order.

        Raises:
            MissingFileError: there is no cache.
            UserError: it was built in another way, or from other data.
        """
        folder = Path(folder)
        cached = read_mark(folder)
        weighted = cached.pop("weighted", False)
        ours = describe_cache(identity, cached["data"] if pairs is None else hash_pairs(pairs))
        differences = list_differences(
            {**ours, "data": None}, {**cached, "data": None, "blocks": None}
        )
        if not differences and pairs is not None and ours["data"] != cached["data"]:
            differences = [f"the data: {describe_change(folder, pairs)}"]
        if differences:
            raise UserError(
                f"the latent cache {folder} does not fit this run:\n  "
                + "\n  ".join(differences)
                + f"\nDelete {folder} so that it is built again, or use the same settings and data "
                "as before."
            )
        has_context = CONTEXT in cached["blocks"]
        moments = [f"moments-{k}.npy" for k in range(len(cached["blocks"]) - has_context)]
        files = ["shape", "image_rows", "caption_starts", "caption_rows"]
        files += ["caption_chances"] * weighted
        return cls(
            [map_array(folder / name, 4) for name in moments],
            map_array(folder / CONTEXT, 3) if has_context else None,
            *(map_array(folder / f"{file}.npy", 1) for file in files),
        )

    def __len__(self) -> int:
        return len(self.image_rows)

    def of_most_common_shape(self, indices: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """Return those of these pairs whose images have the shape that most of them have."""
        shapes = self.shape.index_select(0, indices)
        return indices[shapes == shapes.mode().values]

    def batch(
        self,
        indices: Int[Tensor, " b"],
        generators: Sequence[torch.Generator],
        caption_dropout: float,
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]:
        """Sample latents from the posteriors of these pairs, and a caption of each.

        Args:
            indices: pairs whose images all have the same shape.
            generators: one per pair, so that the draws for a pair do not depend on the others.
            caption_dropout: chance of the empty caption; otherwise one of the pair's captions is
                drawn.

        Returns:
            latents, and the numbers of the captions; 0 is the empty one.
        """
        draws = [torch.rand(2, generator=each, dtype=torch.float64) for each in generators]
        caption_draw, dropout_draw = torch.stack(draws, dim=1)
        starts, chances = self.caption_starts, self.caption_chances
        captions = draw_captions(starts, chances, indices, caption_draw)
        numbers = self.caption_rows.index_select(0, captions)
        numbers = torch.where(dropout_draw < caption_dropout, 0, numbers)

        shapes = self.shape.index_select(0, indices)
        assert (shapes == shapes[0]).all(), "a batch holds images of one shape"
        rows = self.image_rows.index_select(0, indices)
        moments = self.moments[int(shapes[0])].index_select(0, rows).float()
        mean, logvar = moments.chunk(2, dim=1)
        noise = torch.stack([torch.randn(mean.shape[1:], generator=each) for each in generators])
        return mean + (0.5 * logvar).exp() * noise, numbers

    def contexts(self, numbers: Int[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        """Return the contexts of captions. numbers: as from `batch`."""
        assert self.context is not None, "this cache was built for a model that reads no text"
        return self.context.index_select(0, numbers).float()


@dataclass(frozen=True)
class CacheMark:
    """The types of what latent_cache.json holds."""

    format: int
    identity: dict[str, Any] = field(default_factory=dict[str, Any])
    data: str | None = None
    blocks: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    weighted: bool = False


def describe_cache(identity: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Return what a cache is bound to, as JSON gives it back: tuples become lists."""
    text = json.dumps({"format": FORMAT, "identity": identity, "data": data})
    return load_object(text, "the identity of this run", not_finite=True, raw_bytes=True)


def read_mark(folder: Path) -> dict[str, Any]:
    """Read what a cache says about itself.

    Raises:
        MissingFileError: there is no cache in this folder.
    """
    if not (folder / MARK).is_file():
        raise MissingFileError(f"there is no latent cache in {folder} (no {MARK}).")
    mark = read_json(folder / MARK)
    try:
        from_json(CacheMark, mark, folder / MARK)
    except UserError as error:
        raise UserError(f"{error} Delete {folder}, so that it is built again.") from None
    return {"data": None, "blocks": {}, **mark}  # older formats lack these


def verify_cache(folder: Path | str, progress: Progress = no_progress) -> None:
    """Read the whole cache, which takes as long as the disk needs, and compare the hashes.

    Raises:
        UserError: some blocks are damaged; they are named.
    """
    folder = Path(folder)
    blocks = read_mark(folder)["blocks"]
    damaged: list[str] = []
    for name, hashes in progress(blocks.items(), "verifying the cache", len(blocks)):
        try:
            length = len(load_array(folder / name))
        except UserError:
            length = 0
        numbers = BlockFile(folder / name, length).find_damaged(dict(enumerate(hashes)))
        damaged += [f"block {number} of {name}" for number in numbers]
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise UserError(
            f"the latent cache {folder} is damaged: {', '.join(damaged[:3])}{more}. "
            f"Delete {folder} so that it is built again, and check the disk."
        )


def hash_pairs(pairs: PairList) -> str:
    """Hash the images' bytes and the captions, in order. Names do not count: folders are moved."""
    digest = hashlib.sha256()
    for name in ("sha256", "captions_hash"):
        for _, pieces in pairs.pieces(name):
            digest.update(pieces[0].tobytes())
    return digest.hexdigest()


def describe_change(folder: Path, pairs: PairList) -> str:
    """Name the first pair that differs from the one that the cache was built from."""
    hashes = load_array(folder / "sha256.npy")
    if len(hashes) != len(pairs):
        return f"{len(hashes)} pairs then, {len(pairs)} now"
    for name, change in (
        ("sha256", "is another image now"),
        ("captions_hash", "has other captions"),
    ):
        column = pairs.column(name)
        then = load_array(folder / f"{name}.npy")
        if then.shape != column.shape:
            raise UserError(f"{folder / name}.npy has the shape {then.shape}, not {column.shape}.")
        changed = (then != column).any(axis=1)
        if changed.any():
            return f"{pairs[int(changed.argmax())].path} {change}"
    return "it was written with another hash"


def list_differences(ours: Mapping[str, Any], cached: Mapping[str, Any]) -> list[str]:
    """List lines such as `autoencoder: cached with 5f3c..., now 90ab...`, also of nested keys."""
    lines: list[str] = []
    for key in sorted(ours.keys() | cached.keys()):
        before, now = cached.get(key), ours.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += list_differences(now, before)
        elif before != now:
            lines.append(f"{key}: cached with {before}, now {now}")
    return lines
