"""The data of a training: read, checked, split, and assigned to shapes; captions too long."""

import hashlib
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from conditioning import TextEncoder
from conditioning.prompt_weighting import truncated_words
from dataset.buckets import Buckets, bucket_shapes, choose_buckets
from dataset.captions.choice import choose_captions
from dataset.folder import read_folder
from dataset.order import bucket_sizes
from dataset.parallel import WorkShare
from dataset.table import Pair, PairList, split
from foundation import collectives
from foundation.errors import UserError, one_line, printable
from stages.flags.data import CaptionTrainingConfig, DataTrainingConfig
from training import distributed
from training.logging.progress import progress_bar
from training.watchdog import report_progress

CHECKED_PAIRS = 10_000  # whose captions are checked for their length, at most
SHOWN_CHARACTERS = 200  # of a caption's end that is cut off


def read_pairs(
    config: DataTrainingConfig, allow_missing_captions: bool = False
) -> tuple[PairList, PairList]:
    """Read the data folder; return the pairs to train on and the held-out ones.

    Raises:
        UserError: flags do not go together, or files cannot be used.
    """
    config.check()
    report_progress("reading the data folder")
    distributed.check_batch_size(config.batch_size, config.accumulate)
    share = WorkShare(collectives.rank(), collectives.world_size(), collectives.barrier)
    folder = read_folder(config.data, allow_missing_captions, progress_bar, config, share)
    print(f"{len(folder.pairs)} images; captions come from {printable(folder.rule)}.")
    for note in folder.notes:
        print(f"note: {printable(note)}")
    if not config.skip_unusable:
        folder.require_all_usable()
    folder.require_one_dtype()
    pairs = folder.pairs
    if isinstance(config, CaptionTrainingConfig):
        pairs = choose_captions(pairs, config.caption_choice())
        if (variants := config.variants()) is not None:
            print(f"{variants.count} variants of each caption are made; each step draws one.")
    if config.overfit > len(pairs):
        raise UserError(f"--overfit {config.overfit}: there are {len(pairs)} images.")
    if config.overfit:
        return pairs[: config.overfit], pairs[:0]
    return split(pairs, config.held_out)


def data_identity(pairs: PairList, held_out: PairList, captions: bool = True) -> dict[str, Any]:
    """Return what the run folder stores about the data, so that a run resumes with the same.

    It changes with the content of the files and with their order, on which it depends what a step
    sees. It does not change with the folder or the names.

    captions: whether the captions are trained on.
    """
    digest = hashlib.sha256()
    for column in ("sha256", "captions_hash") if captions else ("sha256",):
        for _, pieces in (pairs + held_out).pieces(column):
            digest.update(pieces[0].tobytes())
    counts = {"training": len(pairs), "held_out": len(held_out)}
    return {"data_files": {**counts, "sha256": digest.hexdigest()}}


def read_shapes(
    pairs: PairList, max_aspect: float, size: int, multiple: int, batch_size: int
) -> Buckets:
    """Return the shapes that the images are cropped to; print how many take which.

    Args:
        size: side in pixels of the square shape; the others have about the same area.
        multiple: of which all sides must be multiples.
    """
    buckets = choose_buckets(pairs, bucket_shapes(max_aspect, size, multiple), batch_size)
    if max_aspect > 1:
        counts = bucket_sizes(buckets.assign(pairs), len(buckets.shapes))
        by_shape = zip(buckets.shapes, counts.tolist(), strict=True)
        text = ", ".join(f"{count} of {width}x{height}" for (width, height), count in by_shape)
        print(f"images by shape: {text}; a batch holds one of them.")
    return buckets


def print_long_captions(pairs: Sequence[Pair], encoder: TextEncoder, chunks: int) -> None:
    """Print how many captions are cut off, the lost end of one, and what would hold them all.

    chunks: contexts of the text encoder that a caption fills.
    """
    captions = [(pair.path, caption) for pair in pairs[:CHECKED_PAIRS] for caption in pair.captions]
    room = encoder.tokens - 2  # without start and end
    lengths = [encoder.count_tokens(caption) - 2 for _, caption in captions]
    too_long = [k for k, length in enumerate(lengths) if length > chunks * room]
    if not too_long:
        return
    path, caption = captions[too_long[0]]
    lost = shorten(truncated_words(encoder, caption, chunks), SHOWN_CHARACTERS, placeholder=" ...")
    print(
        f"note: {len(too_long)} of {len(captions)} captions are longer than "
        f"{chunks} context{'s' * (chunks > 1)} of {encoder.tokens} tokens, and lose their end: of "
        f"that of {one_line(path)} the model does not see {lost!r}. The longest would fit with "
        f"--text-chunks {-(-max(lengths) // room)}."
    )
