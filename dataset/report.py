"""A report on a data folder, as text: what to know about it before training on it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from dataset.captions.choice import without_weight
from dataset.checking.caption_statistics import (
    CaptionStatistics,
    count_captions,
    describe_words,
)
from dataset.checking.planned_run import describe_loss, size_loss
from dataset.folder import Folder
from dataset.images.decode import Picture, decode
from dataset.images.pixel_format import FULL_RANGES, PixelFormat
from dataset.images.rasters import Raster
from dataset.images.transform import parse_mode
from dataset.parallel import map_in_threads
from dataset.source import Source, as_lines
from dataset.table import Pair
from foundation.errors import UserError, one_line

BAR = 30  # characters of the longest bar of a histogram
BINS = 8  # most rows of a histogram
SAMPLES = 3  # pairs that are shown
SHOWN_CAPTION = 500  # characters of their captions
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
    captions: CaptionStatistics | None = None,
) -> str:
    """Write the report on images and captions.

    Args:
        size: side of the training images in pixels, if it is known already.
        tokens: how many tokens the text encoder takes, including its start and end marks.
        count_tokens: returns the number of tokens of a text, including the marks, without a limit.
        captions: the statistics, if they have been made already.
    """
    captions = captions or count_captions(folder, tokens, count_tokens)
    sections = [summarize(folder, captions), summarize_sizes(folder, size)]
    if captions.captions:
        sections += [summarize_captions(captions), show_samples(folder)]
    if folder.unusable:
        sections.append(["Left out", *as_lines(folder.unusable, limit=20).split("\n")])
    if folder.notes:
        sections.append(["Notes", *(f"  {one_line(note)}" for note in folder.notes)])
    return "\n\n".join("\n".join(section) for section in sections)


def find_problems(folder: Folder, allow_missing_captions: bool = False) -> list[str]:
    """List what would stop a training on this folder."""
    problems: list[str] = []
    missing = folder.without_caption
    if missing and not allow_missing_captions:
        problems.append(
            f"{len(missing)} images have no caption:\n{as_lines(missing.paths)}\n"
            "Write a .txt file next to each image (python recipes/caption.py lets a model do that) "
            "or a metadata.jsonl. Or train without: the autoencoder needs no captions, and stage 2 "
            "learns from images alone with condition='none', or from class folders with "
            "condition='class'; with allow_missing_captions some images may lack one."
        )
    if unweighted := without_weight(folder.pairs):
        problems.append(
            f"{len(unweighted)} images have only captions of weight 0, so none can be drawn:\n"
            f"{as_lines(unweighted.paths)}"
        )
    if folder.unusable:
        problems.append(f"{len(folder.unusable)} files cannot be used (see Left out).")
    return problems


# Images and captions ------------------------------------------------------------------------------


def summarize(folder: Folder, captions: CaptionStatistics) -> list[str]:
    """Count images and captions."""
    lines = [
        one_line(folder.root),
        f"  images           {len(folder.pairs)}",
        f"  with a caption   {len(folder.pairs) - captions.without}",
        f"  without caption  {captions.without}",
        f"  left out         {len(folder.unusable)}",
        f"  captions         {captions.captions}, {captions.distinct} of them distinct",
        f"  caption source   {one_line(folder.rule) if captions.captions else 'none found'}",
    ]
    if captions.distinct == 1 < captions.captions:
        lines.append("  all captions are the same, so a prompt will make no difference")
    return lines


def summarize_sizes(folder: Folder, size: int | None) -> list[str]:
    """Describe how large the images are, and what cropping to a square of side `size` costs."""
    exact = folder.sizes
    if len(exact) <= BINS:
        rows = [(f"{width}x{height}", count) for (width, height), count in exact.most_common()]
        lines = ["Sizes, in pixels", *draw_bars(rows)]
    else:
        shorter_sides: Counter[int] = Counter()
        for sides, count in exact.items():
            shorter_sides[min(sides)] += count
        lines = ["Shorter side, in pixels", *draw_bars(histogram(shorter_sides))]
    kinds = pixel_kinds(folder)
    lines.append("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return lines + describe_loss(size_loss(folder, size), size)


def pixel_kinds(folder: Folder) -> dict[str, int]:
    """Return how many images are gray, RGB, and so on, the most frequent first."""
    kinds: Counter[str] = Counter()
    for mode, count in folder.modes.items():
        kinds[MODE_NAMES.get(mode, mode)] += count
    return dict(kinds.most_common())


def summarize_captions(captions: CaptionStatistics) -> list[str]:
    """Describe how long the captions are, and which words they have."""
    title = f"Caption length, in {captions.unit}"
    if captions.cut is None:
        title += " (open_clip, which counts tokens, is not installed)"
    lines = [title, *draw_bars(histogram(captions.lengths))]
    if captions.cut is not None:
        lines.append(
            f"  {captions.cut} of {captions.captions} are longer than {captions.room} tokens and "
            "will be cut"
        )
    return lines + describe_words(captions)


def show_samples(folder: Folder) -> list[str]:
    """Show pairs from the whole folder: does each caption describe its image?"""
    return [
        "Samples",
        *(
            f"  {one_line(pair.path)}: {one_line(' | '.join(pair.captions), SHOWN_CAPTION)}"
            for pair in sample_pairs(folder)
        ),
    ]


def sample_pairs(folder: Folder) -> list[Pair]:
    """Return a few pairs with captions, the first and the last among them; none if none has one."""
    pairs = folder.with_caption
    if not pairs:
        return []
    chosen = [pairs[k * (len(pairs) - 1) // max(SAMPLES - 1, 1)] for k in range(SAMPLES)]
    return list(dict.fromkeys(chosen))


def histogram(counts: Mapping[int, int]) -> list[tuple[str, int]]:
    """Count values in at most BINS ranges of the same round width.

    counts: value -> how often it occurs.
    """
    low, high = min(counts), max(counts)
    width = next(w for w in round_numbers() if (high // w - low // w) < BINS)
    bins: Counter[int] = Counter()
    for value, count in counts.items():
        bins[value // width] += count
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
    kinds: Counter[tuple[str, int]] = Counter()
    for mode, count in folder.modes.items():
        kinds[parse_mode(mode)] += count
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

    def measure(found: Picture | Raster) -> tuple[float, float]:
        if isinstance(found, Raster):
            return float(found.values.min()), float(found.values.max())
        mode = "L" if found.image.mode in ("1", "L", "LA") else "RGB"
        extrema = found.image.convert(mode).getextrema()
        return float(np.min(extrema)), float(np.max(extrema))

    return decode(path, measure)


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
