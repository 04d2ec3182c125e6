"""Which numbers the files of a folder hold: of one type and one range, or else it is an error.

A file of another depth among the rest would be trained on as nearly black, or clipped to white, and
nobody would see why.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dataset.folder import Folder
from dataset.images.pixel_format import NATURAL_RANGES, PixelFormat
from dataset.images.rasters import read_raster
from dataset.images.transform import kind_of, load_image
from dataset.members import Source
from foundation.errors import UserError

TRIED = 64  # files that a training looks at
APART = 100  # times; of two files whose largest numbers differ by more, one has another unit


def the_type(folder: Folder) -> str:
    """Of the numbers in all files, as numpy calls it.

    Raises:
        ValueError: there are several.
    """
    modes = folder.modes
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}  # the first mode of a type
    for mode, count in Counter(modes).items():
        name, _ = kind_of(mode)
        counts[name] += count
        examples.setdefault(name, mode)
    if len(counts) > 1:
        listed = ", ".join(
            f"{count} of {name} (such as {folder.pairs[modes.index(examples[name])].path})"
            for name, count in counts.most_common()
        )
        raise UserError(
            f"the files of {folder.root} hold numbers of different depths: {listed}. The same "
            "number would mean different things. Convert all to one type, or keep them in folders "
            "of their own."
        )
    return next(iter(counts))


def report_numbers(
    folder: Folder, value_range: tuple[float, float] | None
) -> tuple[list[str], list[str]]:
    """Lines on channels, type and range of what is more than 8-bit pictures, and what is wrong.

    Reads all files once more if there are such, or if another range is asked about.
    """
    kinds = Counter(map(kind_of, folder.modes))
    odd = [kind for kind, _ in kinds.most_common() if kind[0] != "uint8" or kind[1] > 4]
    lines = ["Channels and numbers"] if odd or value_range else []
    lines += [f"  {kinds[kind]} files: {kind[1]} channels of {kind[0]}" for kind in odd]
    problems = []
    try:
        dtype = the_type(folder)
    except ValueError as error:
        return lines, [str(error)]
    if len(channels := {kind_of(mode)[1] for mode in folder.modes}) > 1 and max(channels) > 4:
        problems.append(f"the files have different numbers of channels: {sorted(channels)}.")
    if dtype == "uint8" and value_range is None:
        return lines, problems
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [pair.path for pair in folder.pairs]
        extents = np.array(list(pool.map(extent, paths)))
    low, high = extents[:, 0].min(), extents[:, 1].max()
    lines.append(f"  numbers from {low:g} to {high:g}")
    problems += mixed_ranges(paths, extents)
    return lines + clipped(dtype, value_range, extents), problems + unstated(
        dtype, value_range, (low, high)
    )


def notes_on(paths: Sequence[Source], pixels: PixelFormat) -> list[str]:
    """What one should know of a training on these files, by a few of them; check.py tries all."""
    if pixels.eight_bit:
        return []
    tried = paths[:: -(-len(paths) // TRIED)]
    extents = np.array([extent(path) for path in tried])
    value_range = (pixels.low, pixels.high)
    lines = clipped(pixels.dtype, value_range, extents) + mixed_ranges(tried, extents)
    return [line.strip() for line in lines]


def extent(path: Source) -> tuple[float, float]:
    """Lowest and highest number of a file."""
    raster = read_raster(path)
    if raster is None:
        image = load_image(path)
        extrema = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB").getextrema()
        return float(np.min(extrema)), float(np.max(extrema))
    return float(raster.values.min()), float(raster.values.max())


def mixed_ranges(paths: Sequence[Source], extents: np.ndarray) -> list[str]:
    peaks = np.abs(extents).max(axis=1)
    peaks = np.where(extents[:, 0] == extents[:, 1], 0, peaks)  # empty pictures say nothing
    if not peaks.any():
        return []
    least, most = int(np.where(peaks, peaks, np.inf).argmin()), int(peaks.argmax())
    if peaks[most] <= APART * peaks[least]:
        return []
    return [
        f"the files hold numbers of different ranges: {paths[least]} from "
        f"{extents[least][0]:g} to {extents[least][1]:g}, {paths[most]} from "
        f"{extents[most][0]:g} to {extents[most][1]:g}. Convert them to one unit, or keep them in "
        "folders of their own."
    ]


def clipped(dtype: str, value_range: tuple[float, float] | None, extents: np.ndarray) -> list[str]:
    """What the range leaves out, or leaves unused."""
    low, high = value_range or NATURAL_RANGES.get(dtype) or (-np.inf, np.inf)
    outside = int(((extents[:, 0] < low) | (extents[:, 1] > high)).sum())
    lines = [
        f"  {outside} of {len(extents)} files reach beyond {low:g} to {high:g} and are clipped"
    ] * bool(outside)
    used = (extents[:, 1].max() - extents[:, 0].min()) / (high - low)
    if used < 0.5:
        lines.append(
            f"  they use {used:.1%} of {low:g} to {high:g}; for more contrast in training, state "
            "the range that they use: --value-range LOW HIGH"
        )
    return lines if np.isfinite(high) else []


def unstated(
    dtype: str, value_range: tuple[float, float] | None, found: tuple[float, float]
) -> list[str]:
    if value_range is not None or dtype in NATURAL_RANGES:
        return []
    return [
        f"numbers of type {dtype} have no range of their own: train with --value-range LOW HIGH, "
        f"which become -1 and 1. The files hold {found[0]:g} to {found[1]:g}."
    ]
