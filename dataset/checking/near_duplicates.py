"""Pictures that look the same: scaled, saved again, or with slightly other colors.

A picture becomes a hash of 64 bits: the signs of its lowest spatial frequencies (a cosine transform
of 32 x 32 gray pixels) against their median. Hashes of similar pictures differ in few bits. What is
found that way is compared again as a small picture in color, because drawings of few lines have
similar hashes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image

from dataset.images.transform import load_image
from dataset.parallel import Progress, map_in_threads
from dataset.source import Source, UnusableImage

SIDE = 32  # pixels of the picture that is hashed
FREQUENCIES = 8  # in each direction
THUMB = 16  # pixels of the picture that is compared
MOST_BITS = 7  # in which the hashes of similar pictures differ
MOST_DIFFERENCE = 6.0  # of 255, the mean over the small picture
BANDS = 4  # of a hash, 16 bits each: if 7 bits differ, one band has at most 1 of them
CHUNK = 4_000_000  # candidates that are compared at once
MOST_PAIRS = 1_000_000  # that are found; a set of nothing but copies has more

Pairs = Int64[np.ndarray, "pairs 2"]
BIT_COUNTS = np.array([bin(k).count("1") for k in range(2**16)], np.uint8)


def near_duplicates(paths: Sequence[Source], progress: Progress) -> list[tuple[int, int]]:
    """Return the pairs of pictures that look the same, as numbers of the paths.

    Of several equal ones each is paired with the first. Files that are no 8-bit or 16-bit pictures
    are left out.
    """
    hashes = np.zeros(len(paths), np.uint64)
    thumbs = np.zeros((len(paths), THUMB, THUMB, 3), np.uint8)
    usable = np.zeros(len(paths), bool)
    results = progress(map_in_threads(small_picture, paths), "comparing images", len(paths))
    pending: list[Float32[np.ndarray, "32 32"]] = []
    rows: list[int] = []
    for k, result in enumerate(results):
        if result is None:
            continue
        gray, thumbs[k] = result
        usable[k] = True
        rows.append(k)
        pending.append(gray)
        if len(pending) == 1024:
            hashes[rows] = perceptual_hashes(np.stack(pending))
            pending, rows = [], []
    if pending:
        hashes[rows] = perceptual_hashes(np.stack(pending))
    numbers = np.flatnonzero(usable)
    if len(numbers) < 2:
        return []
    pairs = numbers[similar_hashes(hashes[numbers])]
    same = np.concatenate(
        [looks_same(thumbs, pairs[k : k + 10_000]) for k in range(0, len(pairs), 10_000)] or [[]]
    ).astype(bool)
    return [(int(a), int(b)) for a, b in pairs[same]]


def small_picture(
    path: Source,
) -> tuple[Float32[np.ndarray, "32 32"], UInt8[np.ndarray, "16 16 3"]] | None:
    """Return a picture in gray, to be hashed, and in color, to be compared; None if it is none."""
    try:
        image = load_image(path, shrink_to=2 * SIDE)
    except UnusableImage:
        return None
    image = on_white(image)
    gray = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX)
    return np.asarray(gray, np.float32), np.asarray(thumb, np.uint8)


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture as RGB; transparent parts become white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def perceptual_hashes(gray: Float32[np.ndarray, "n 32 32"]) -> UInt64[np.ndarray, " n"]:
    """Hash pictures of 32 x 32 pixels to 64 bits each."""
    positions = (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    cosines = np.cos(np.arange(FREQUENCIES)[:, None] * positions).astype(np.float32)
    low = np.einsum("fy,nyx,gx->nfg", cosines, gray, cosines, optimize=True)
    low = low.reshape(len(gray), -1)
    median = np.median(low[:, 1:], axis=1, keepdims=True)  # without the mean brightness
    # The noise of rounding decides no bit: a picture of one color has the hash 0.
    bits = low > np.maximum(median, 1e-2 * SIDE)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def similar_hashes(hashes: UInt64[np.ndarray, " n"]) -> Pairs:
    """Return the pairs of hashes that differ in at most MOST_BITS, the lower number first.

    Only candidates are compared: of two such hashes one of the four bands differs in at most one
    bit, so sorted bands are searched for each band and for each band with a bit turned.
    """
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    firsts = first[inverse.reshape(-1)]
    copies = np.flatnonzero(firsts != np.arange(len(hashes)))
    found: list[Pairs] = [np.stack([firsts[copies], copies], axis=1)[:MOST_PAIRS]]
    total = len(found[0])
    for pairs in candidates(distinct):
        different = distinct[pairs[:, 0]] ^ distinct[pairs[:, 1]]
        parts = different.view(np.uint16).reshape(-1, BANDS)
        close = pairs[BIT_COUNTS[parts].sum(axis=1) <= MOST_BITS]
        found.append(np.sort(first[close], axis=1))
        total += len(close)
        if total > MOST_PAIRS:
            break
    return np.unique(np.concatenate(found), axis=0)


def candidates(hashes: UInt64[np.ndarray, " n"]) -> Iterator[Pairs]:
    """Yield pairs of hashes of which a band is equal but for one bit, in chunks."""
    numbers = np.arange(len(hashes))
    for band in range(BANDS):
        keys = ((hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        for turned in (0, *(1 << bit for bit in range(16))):
            begin = np.searchsorted(in_order, keys ^ turned, "left")
            counts = np.searchsorted(in_order, keys ^ turned, "right") - begin
            ends = np.cumsum(counts)
            start = 0
            while start < len(hashes):
                done = int(ends[start - 1]) if start else 0
                stop = max(int(np.searchsorted(ends, done + CHUNK)), start + 1)
                part = counts[start:stop]
                left = np.repeat(numbers[start:stop], part)
                offsets = np.arange(len(left)) - np.repeat(np.cumsum(part) - part, part)
                right = order[np.repeat(begin[start:stop], part) + offsets]
                yield np.stack([left, right], axis=1)[left < right]
                start = stop


def looks_same(thumbs: UInt8[np.ndarray, "n 16 16 3"], pairs: Pairs) -> np.ndarray:
    """Return for each pair whether the small pictures differ little."""
    one, other = (thumbs[pairs[:, k]].astype(np.float32) for k in (0, 1))
    return np.abs(one - other).mean(axis=(1, 2, 3)) <= MOST_DIFFERENCE
