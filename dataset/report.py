"""A report on a data folder, as text: what to know about it before training on it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

import numpy as np
from jaxtyping import Float64

from dataset.buckets import Buckets, bucket_shapes
from dataset.folder import Folder
from dataset.images.decode import decoded
from dataset.images.pixel_format import FULL_RANGES, PixelFormat
from dataset.images.rasters import Raster
from dataset.images.transform import parse_mode
from dataset.parallel import map_in_threads
from dataset.source import Source, as_lines
from dataset.table import NO_CAPTION, Pair
from foundation.errors import UserError

BAR = 30  # characters of the longest bar of a histogram
BINS = 8  # most rows of a histogram
SAMPLES = 3  # pairs that are shown
MODE_NAMES = {
    "1": "black and white",
    "CMYK": "CMYK",
    "L": "gray",
    "LA": "gray with alpha",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGBA",
}
SAMPLED_FILES = 64  # files that a training reads to see which numbers there are
MOST_RATIO = 100  # if the largest numbers of two files differ by more, their units differ

Extents = Float64[np.ndarray, "files 2"]  # lowest and highest number of each file


def report(
    folder: Folder,
    size: int | None = None,
    tokens: int = 77,
    count_tokens: Callable[[str], int] | None = None,
) -> str:
    """Write the report on images and captions.

    Args:
        size: side of the training images in pixels, if it is known already.
        tokens: how many tokens the text encoder takes, including its start and end marks.
        count_tokens: returns the number of tokens of a text, including the marks, without a limit.
    """
    sections = [summarize(folder), summarize_sizes(folder, size)]
    captioned = [pair for pair in folder.pairs if pair.captions != NO_CAPTION]
    if captioned:
        sections += [summarize_captions(captioned, tokens, count_tokens), show_samples(captioned)]
    if folder.unusable:
        sections.append(["Left out", *as_lines(folder.unusable, limit=20).split("\n")])
    if folder.notes:
        sections.append(["Notes", *(f"  {note}" for note in folder.notes)])
    return "\n\n".join("\n".join(section) for section in sections)


def find_problems(
    folder: Folder, batch_size: int, allow_missing_captions: bool = False
) -> list[str]:
    """List what would stop a training on this folder."""
    problems: list[str] = []
    missing = folder.without_caption
    if missing and not allow_missing_captions:
        problems.append(f"{len(missing)} images have no caption:\n{as_lines(missing.paths)}")
    if folder.unusable:
        problems.append(f"{len(folder.unusable)} files cannot be used (see Left out).")
    if len(folder.pairs) < batch_size:
        problems.append(
            f"{len(folder.pairs)} images are fewer than one batch of {batch_size}; "
            f"train with batch_size {len(folder.pairs)} or smaller."
        )
    return problems


# Images and captions ------------------------------------------------------------------------------


def summarize(folder: Folder) -> list[str]:
    """Count images and captions."""
    captioned = [pair for pair in folder.pairs if pair.captions != NO_CAPTION]
    count = sum(len(pair.captions) for pair in captioned)
    distinct = len({caption for pair in captioned for caption in pair.captions})
    lines = [
        f"{folder.root}",
        f"  images           {len(folder.pairs)}",
        f"  with a caption   {len(captioned)}",
        f"  without caption  {len(folder.without_caption)}",
        f"  left out         {len(folder.unusable)}",
        f"  captions         {count}, {distinct} of them distinct",
        f"  caption source   {folder.rule}",
    ]
    if distinct == 1 < len(captioned):
        lines.append("  all captions are the same, so a prompt will make no difference")
    return lines


def summarize_sizes(folder: Folder, size: int | None) -> list[str]:
    """Describe how large the images are, and what cropping to a square of side `size` costs."""
    exact = Counter(folder.sizes)
    if len(exact) <= BINS:
        rows = [(f"{width}x{height}", count) for (width, height), count in exact.most_common()]
        lines = ["Sizes, in pixels", *draw_bars(rows)]
    else:
        shorter_sides = [min(sides) for sides in folder.sizes]
        lines = ["Shorter side, in pixels", *draw_bars(histogram(shorter_sides))]
    kinds = Counter(MODE_NAMES.get(mode, mode) for mode in folder.modes)
    lines.append("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    remaining = fmean(min(sides) / max(sides) for sides in folder.sizes)
    if remaining < 1:
        lines.append(
            f"  cropping to a centered square removes {1 - remaining:.0%} of the pixels on "
            f"average; with max_aspect 2 it is {1 - remaining_in_buckets(folder):.0%}"
        )
    if size is not None:
        small = sum(min(sides) < size for sides in folder.sizes)
        lines.append(f"  {small} are smaller than {size} pixels and would be enlarged")
    return lines


def remaining_in_buckets(folder: Folder) -> float:
    """Compute which fraction of the pixels remains on average after cropping to up to 2:1."""
    buckets = Buckets(bucket_shapes(2.0, 512, 32))
    shape_ratios = np.array([width / height for width, height in buckets.shapes])
    image_ratios = folder.pairs.column("width") / folder.pairs.column("height")
    nearest = shape_ratios[buckets.assign(folder.pairs)]
    return float(np.minimum(image_ratios / nearest, nearest / image_ratios).mean())


def summarize_captions(
    captioned: Sequence[Pair], tokens: int, count_tokens: Callable[[str], int] | None
) -> list[str]:
    """Describe how long the captions are."""
    texts = [text for pair in captioned for text in pair.captions]
    if count_tokens is None:
        title = "Caption length, in words (open_clip, which counts tokens, is not installed)"
        return [title, *draw_bars(histogram([len(text.split()) for text in texts]))]
    lengths = [count_tokens(text) for text in texts]
    too_long = sum(length > tokens for length in lengths)
    return [
        "Caption length, in tokens",
        *draw_bars(histogram(lengths)),
        f"  {too_long} of {len(texts)} are longer than {tokens} tokens and will be cut",
    ]


def show_samples(pairs: Sequence[Pair]) -> list[str]:
    """Show pairs from the whole folder: does each caption describe its image?"""
    chosen = [pairs[k * (len(pairs) - 1) // max(SAMPLES - 1, 1)] for k in range(SAMPLES)]
    chosen = list(dict.fromkeys(chosen))
    return ["Samples", *(f"  {pair.path}: {' | '.join(pair.captions)}" for pair in chosen)]


def histogram(values: Sequence[int]) -> list[tuple[str, int]]:
    """Count values in at most BINS ranges of the same round width."""
    low, high = min(values), max(values)
    width = next(w for w in round_numbers() if (high // w - low // w) < BINS)
    bins = Counter(value // width for value in values)
    return [
        (f"{k * width}" if width == 1 else f"{k * width}-{(k + 1) * width - 1}", bins[k])
        for k in range(low // width, high // width + 1)
    ]


def round_numbers() -> Iterator[int]:
    """Yield 1, 2, 5, 10, 20, 50, ..."""
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def draw_bars(rows: Sequence[tuple[str, int]]) -> list[str]:
    """Draw a bar of # for each (label, count)."""
    label_width = max(len(label) for label, _ in rows)
    most = max(count for _, count in rows)
    return [
        f"  {label:>{label_width}}  {count:>{len(str(most))}}  {'#' * -(-count * BAR // most)}"
        for label, count in rows
    ]


# Numbers in the files -----------------------------------------------------------------------------


def report_numbers(
    folder: Folder, value_range: tuple[float, float] | None
) -> tuple[list[str], list[str]]:
    """Describe channels, type and range of files beyond 8-bit pictures.

    All files are read again if there are any of them, or if a range is given.

    Args:
        value_range: the numbers that become -1 and 1 in the planned training, if it states them.

    Returns:
        The lines of the report, and a list of problems.
    """
    kinds = Counter(parse_mode(mode) for mode in folder.modes)
    unusual = [
        (dtype, channels)
        for (dtype, channels), _ in kinds.most_common()
        if dtype != "uint8" or channels > 4
    ]
    lines = ["Channels and numbers"] if unusual or value_range else []
    lines += [f"  {kinds[kind]} files: {kind[1]} channels of {kind[0]}" for kind in unusual]
    try:
        dtype = folder.require_one_dtype()
    except UserError as error:
        return lines, [str(error)]
    problems: list[str] = []
    channel_counts = {channels for _, channels in kinds}
    if len(channel_counts) > 1 and max(channel_counts) > 4:
        problems.append(f"the files have different numbers of channels: {sorted(channel_counts)}.")
    if dtype == "uint8" and value_range is None:
        return lines, problems
    paths = folder.pairs.paths
    extents = np.array(list(map_in_threads(extent, paths)))
    low, high = extents[:, 0].min(), extents[:, 1].max()
    lines.append(f"  numbers from {low:g} to {high:g}")
    lines += describe_range_use(dtype, value_range, extents)
    problems += find_mixed_ranges(paths, extents)
    if value_range is None and dtype not in FULL_RANGES:
        problems.append(
            f"numbers of type {dtype} have no range of their own: train with value_range LOW HIGH, "
            f"which become -1 and 1. The files hold {low:g} to {high:g}."
        )
    return lines, problems


def value_range_notes(paths: Sequence[Source], pixels: PixelFormat) -> list[str]:
    """Write notes on the numbers in files to train on, from a sample of them.

    `report_numbers` reads all files instead.
    """
    if pixels.eight_bit:
        return []
    sample = paths[:: -(-len(paths) // SAMPLED_FILES)]
    extents = np.array([extent(path) for path in sample])
    notes = describe_range_use(pixels.dtype, (pixels.low, pixels.high), extents)
    return [note.strip() for note in notes + find_mixed_ranges(sample, extents)]


def extent(path: Source) -> tuple[float, float]:
    """Read the lowest and the highest number of a file."""
    with decoded(path) as found:
        if isinstance(found, Raster):
            return float(found.values.min()), float(found.values.max())
        image = found.image
    extrema = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB").getextrema()
    return float(np.min(extrema)), float(np.max(extrema))


def find_mixed_ranges(paths: Sequence[Source], extents: Extents) -> list[str]:
    """Name two files whose numbers have ranges so different that their units must differ."""
    peaks = np.abs(extents).max(axis=1)
    peaks = np.where(
        extents[:, 0] == extents[:, 1], 0, peaks
    )  # images of one color are no evidence
    if not peaks.any():
        return []
    least, most = int(np.where(peaks, peaks, np.inf).argmin()), int(peaks.argmax())
    if peaks[most] <= MOST_RATIO * peaks[least]:
        return []
    return [
        f"the files hold numbers of different ranges: {paths[least]} from "
        f"{extents[least][0]:g} to {extents[least][1]:g}, {paths[most]} from "
        f"{extents[most][0]:g} to {extents[most][1]:g}. Convert them to one unit, or keep them in "
        "separate folders."
    ]


def describe_range_use(
    dtype: str, value_range: tuple[float, float] | None, extents: Extents
) -> list[str]:
    """Describe how many files exceed the range, and how much of it they leave unused."""
    stated = value_range or FULL_RANGES.get(dtype)
    if stated is None:
        return []
    low, high = stated
    lines: list[str] = []
    outside = int(((extents[:, 0] < low) | (extents[:, 1] > high)).sum())
    if outside:
        lines.append(
            f"  {outside} of {len(extents)} files exceed {low:g} to {high:g} and are clipped"
        )
    used = (extents[:, 1].max() - extents[:, 0].min()) / (high - low)
    if used < 0.5:
        lines.append(
            f"  they use {used:.1%} of {low:g} to {high:g}; for more contrast in training, state "
            "the range that they use: value_range LOW HIGH"
        )
    return lines
