"""What one should know about a data folder before training on it, as text."""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from dataset.buckets import Buckets, shapes_up_to
from dataset.captions import listed
from dataset.folder import Folder
from dataset.table import NO_CAPTION, Pair

BAR = 30  # characters of the longest bar
BINS = 8  # rows of a histogram, at most
SAMPLES = 3
MODES = {
    "1": "black and white",
    "CMYK": "CMYK",
    "L": "gray",
    "LA": "gray with alpha",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGBA",
}


def report(
    folder: Folder,
    size: int | None = None,
    tokens: int = 77,
    count_tokens: Callable[[str], int] | None = None,
) -> str:
    """The report.

    Args:
        size: side of the training images in pixels, if it is known.
        tokens: how many the text encoder takes, its start and end mark included.
        count_tokens: of a text, uncut, start and end mark included.
    """
    sections = [counts(folder), sizes(folder, size)]
    captioned = [pair for pair in folder.pairs if pair.captions != NO_CAPTION]
    if captioned:
        sections += [captions(captioned, tokens, count_tokens), samples(captioned)]
    if folder.unusable:
        sections.append(["Left out", *listed(folder.unusable, most=20).split("\n")])
    if folder.notes:
        sections.append(["Notes", *(f"  {note}" for note in folder.notes)])
    return "\n\n".join("\n".join(section) for section in sections)


def problems(folder: Folder, batch_size: int, allow_missing_captions: bool = False) -> list[str]:
    """What would make a training on this folder go wrong, or do other than one expects."""
    found = []
    if folder.missing and not allow_missing_captions:
        paths = listed(folder.missing.paths)
        found.append(f"{len(folder.missing)} images have no caption:\n{paths}")
    if folder.unusable:
        found.append(f"{len(folder.unusable)} files cannot be used (see Left out).")
    if len(folder.pairs) < batch_size:
        found.append(
            f"{len(folder.pairs)} images are fewer than one batch of {batch_size}; "
            f"train with --batch-size {len(folder.pairs)} or smaller."
        )
    return found


def counts(folder: Folder) -> list[str]:
    captioned = [pair for pair in folder.pairs if pair.captions != NO_CAPTION]
    number = sum(len(pair.captions) for pair in captioned)
    distinct = len({caption for pair in captioned for caption in pair.captions})
    lines = [
        f"{folder.root}",
        f"  images          {len(folder.pairs)}",
        f"  with a caption  {len(captioned)}",
        f"  without         {len(folder.missing)}",
        f"  left out        {len(folder.unusable)}",
        f"  captions        {number}, {distinct} of them distinct",
        f"  they come from  {folder.rule}",
    ]
    if distinct == 1 < len(captioned):
        lines.append("  all captions are the same, so a prompt will make no difference")
    return lines


def sizes(folder: Folder, size: int | None) -> list[str]:
    """How large the images are, and what a centered square of side `size` makes of them."""
    exact = Counter(folder.sizes)
    if len(exact) <= BINS:
        rows = [(f"{width}x{height}", count) for (width, height), count in exact.most_common()]
        lines = ["Sizes, in pixels", *bars(rows)]
    else:
        shorter = histogram([min(both) for both in folder.sizes])
        lines = ["Shorter side, in pixels", *bars(shorter)]
    kinds = Counter(MODES.get(mode, mode) for mode in folder.modes)
    lines.append("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    kept = fmean(min(both) / max(both) for both in folder.sizes)
    if kept < 1:
        lines.append(
            f"  a centered square cuts off {1 - kept:.0%} of the pixels on average; "
            f"with --max-aspect 2 it is {1 - kept_by_shapes(folder):.0%}"
        )
    if size is not None:
        small = sum(min(both) < size for both in folder.sizes)
        lines.append(f"  {small} are smaller than {size} pixels and would be enlarged")
    return lines


def kept_by_shapes(folder: Folder) -> float:
    """Share of the pixels that is left on average if the trainings crop to shapes up to 2:1."""
    buckets = Buckets(shapes_up_to(2.0, 512, 32))
    ratios = np.array([width / height for width, height in buckets.shapes])
    own = folder.pairs.column("width") / folder.pairs.column("height")
    nearest = ratios[buckets.of(folder.pairs)]
    return float(np.minimum(own / nearest, nearest / own).mean())


def captions(
    captioned: Sequence[Pair], tokens: int, count_tokens: Callable[[str], int] | None
) -> list[str]:
    texts = [text for pair in captioned for text in pair.captions]
    if count_tokens is None:
        words = histogram([len(text.split()) for text in texts])
        return ["Caption length, in words (no tokenizer: open_clip is not there)", *bars(words)]
    lengths = [count_tokens(text) for text in texts]
    cut = sum(length > tokens for length in lengths)
    return [
        "Caption length, in tokens",
        *bars(histogram(lengths)),
        f"  {cut} of {len(texts)} are longer than {tokens} tokens and will be cut",
    ]


def samples(pairs: Sequence[Pair]) -> list[str]:
    """A few pairs from all over the folder, to see whether caption and image belong together."""
    chosen = [pairs[k * (len(pairs) - 1) // max(SAMPLES - 1, 1)] for k in range(SAMPLES)]
    chosen = list(dict.fromkeys(chosen))
    return ["Samples", *(f"  {pair.path}: {' | '.join(pair.captions)}" for pair in chosen)]


def histogram(values: Sequence[int]) -> list[tuple[str, int]]:
    """Counts in at most BINS ranges of equal, round width."""
    low, high = min(values), max(values)
    width = next(w for w in round_numbers() if (high // w - low // w) < BINS)
    bins = Counter(value // width for value in values)
    return [
        (f"{k * width}" if width == 1 else f"{k * width}-{(k + 1) * width - 1}", bins[k])
        for k in range(low // width, high // width + 1)
    ]


def round_numbers():
    """1, 2, 5, 10, 20, 50, ..."""
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def bars(rows: Sequence[tuple[str, int]]) -> list[str]:
    widest = max(len(name) for name, _ in rows)
    most = max(count for _, count in rows)
    return [
        f"  {name:>{widest}}  {count:>{len(str(most))}}  {'#' * -(-count * BAR // most)}"
        for name, count in rows
    ]
