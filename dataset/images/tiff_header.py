"""The header of a TIFF, read without any library, and the rules on which files are read.

A TIFF says what its numbers mean in dozens of ways. Here each of them is understood or refused by
name, before a library sees the file. The library then gets the structure of the first page alone,
so that metadata cannot matter.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dataset.images.limits import MOST_SEGMENTS, check_size
from dataset.source import Source, UnusableImage

# Tags.
SUBFILE, OLD_SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
)
FILL_ORDER, OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, COUNTS = 266, 273, 274, 277, 278, 279
PLANAR, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS = 284, 317, 320, 322, 323, 324
TILE_COUNTS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 325, 332, 338, 339
JPEG_TABLES = 347
COEFFICIENTS, SUBSAMPLING, REFERENCE = 529, 530, 532
FAX_OPTIONS = (292, 293)
STRUCTURE = frozenset(
    {
        *(WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, OFFSETS, SAMPLES),
        *(ROWS_PER_STRIP, COUNTS, PLANAR, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_LENGTH),
        *(TILE_OFFSETS, TILE_COUNTS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES),
        *(COEFFICIENTS, SUBSAMPLING, REFERENCE, *FAX_OPTIONS),
    }
)
CODES = {
    1: "B",
    2: "B",
    3: "H",
    4: "I",
    6: "b",
    7: "B",
    8: "h",
    9: "i",
    13: "I",
    16: "Q",
    17: "q",
    18: "Q",
}
SIZES = {5: 8, 10: 8, 11: 4, 12: 8, **{kind: struct.calcsize(code) for kind, code in CODES.items()}}
INTEGERS = frozenset((1, 3, 4, 16))
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, SEPARATED, YCBCR = range(7)
COLORS = {  # the meanings of numbers that are not read
    4: "a transparency mask",
    8: "colors as CIE Lab",
    9: "colors as ICC Lab",
    10: "colors as ITU Lab",
    32803: "the mosaic of a camera's sensor",
    32844: "colors as LogL",
    32845: "colors as LogLuv",
    34892: "the raw colors of a camera",
    51177: "depths",
}
FORMATS = {1: "uint", 2: "int", 3: "float"}  # of samples
OLD_JPEG, JPEG = 6, 7
MOST_ENTRIES, MOST_PAGES = 4096, 1000


@dataclass(frozen=True)
class Entry:
    """One tag: its type, and its numbers if they are integers, and the bytes of its entry."""

    kind: int
    values: tuple[int, ...]
    raw: bytes


class TiffHeader:
    """The tags of the first page, and how many pages there are."""

    def __init__(self, content: bytes, path: Source):
        self.content, self.path = content, path
        self.order = "<" if content[:2] == b"II" else ">"
        self.big = content[2:4] in (b"+\0", b"\0+")
        (start,) = self.unpack("Q", 8) if self.big else self.unpack("I", 4)
        self.tags, following = self.read_page(start)
        self.pages = 1 + sum(self.count_pages(start, following))

    def unpack(self, code: str, position: int) -> tuple[int, ...]:
        return struct.unpack_from(self.order + code, self.content, position)

    def read_page(self, start: int) -> tuple[dict[int, Entry], int]:
        """Return the tags of the page at this byte, and where the next one is."""
        (count,) = self.unpack("Q" if self.big else "H", start)
        first, size = (start + 8, 20) if self.big else (start + 2, 12)
        if not 0 < count <= MOST_ENTRIES:
            raise UnusableImage(self.path, f"is damaged: a page of it has {count} tags")
        tags: dict[int, Entry] = {}
        for position in range(first, first + count * size, size):
            tag, kind = self.unpack("HH", position)
            raw = self.content[position : position + size]
            if len(raw) < size:
                raise UnusableImage(self.path, "is damaged: its list of tags is cut off")
            tags[tag] = Entry(kind, self.read_values(tag, kind, position), raw)
        (following,) = self.unpack("Q" if self.big else "I", first + count * size)
        return tags, following

    def read_values(self, tag: int, kind: int, position: int) -> tuple[int, ...]:
        """Return the numbers of a tag, if they are integers and matter here."""
        if tag not in STRUCTURE and tag not in (SUBFILE, OLD_SUBFILE, ORIENTATION):
            return ()
        (count,) = self.unpack("Q" if self.big else "I", position + 4)
        start, inside = (position + 12, 8) if self.big else (position + 8, 4)
        size = count * SIZES.get(kind, 1)
        if size > inside:
            (start,) = self.unpack("Q" if self.big else "I", start)
        if tag == ORIENTATION and start + size > len(self.content):
            return ()
        if count > max(MOST_SEGMENTS, 3 * 65536) or start + size > len(self.content):
            raise UnusableImage(
                self.path,
                f"is cut off, damaged or too finely divided: its tag {tag} has {count} values at "
                f"byte {start}, and the file has {len(self.content)} bytes",
            )
        return self.unpack(f"{count}{CODES[kind]}", start) if kind in CODES else ()

    def count_pages(self, start: int, following: int) -> Iterator[int]:
        """Yield 1 for every further page, 0 for a smaller copy of the first one."""
        seen = {0, start}
        while following not in seen:
            if len(seen) > MOST_PAGES:
                return
            seen.add(following)
            tags, following = self.read_page(following)
            reduced = self.first(tags, SUBFILE, 0) & 1 or self.first(tags, OLD_SUBFILE, 0) == 2
            yield 0 if reduced else 1

    @staticmethod
    def first(tags: dict[int, Entry], tag: int, default: int) -> int:
        """Return the first number of a tag."""
        return tags[tag].values[0] if tag in tags and tags[tag].values else default

    def get(self, tag: int, default: int) -> int:
        """Return the number of a tag of the first page, which must be an integer."""
        if tag in self.tags and self.tags[tag].kind not in INTEGERS:
            raise UnusableImage(self.path, f"is damaged: its tag {tag} is no integer")
        return self.first(self.tags, tag, default)

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return all numbers of a tag."""
        return self.tags[tag].values if tag in self.tags else ()

    @property
    def size(self) -> tuple[int, int]:
        return self.get(WIDTH, 0), self.get(LENGTH, 0)

    @property
    def samples(self) -> int:
        return self.get(SAMPLES, 1)

    @property
    def bits(self) -> int:
        """Bits of each number; 0 if samples have different ones."""
        bits = set(self.numbers(BITS)[: self.samples]) or {1}
        return bits.pop() if len(bits) == 1 else 0

    @property
    def dtype(self) -> str:
        """Type of the numbers, as numpy names it; "" for types that differ or are unknown."""
        formats = set(self.numbers(SAMPLE_FORMAT)[: self.samples]) or {1}
        name = FORMATS.get(formats.pop(), "") if len(formats) == 1 else ""
        return f"{name}{self.bits}" if name and self.bits else ""

    @property
    def photometric(self) -> int:
        return self.get(PHOTOMETRIC, -1)

    @property
    def orientation(self) -> int:
        """1 to 8; 1 for anything else."""
        entry = self.tags.get(ORIENTATION)
        value = entry.values[0] if entry and entry.kind in INTEGERS and entry.values else 1
        return value if 1 <= value <= 8 else 1

    @property
    def alpha(self) -> int:
        """Code of the last sample if it is additional, such as 2 for opacity; -1 if it is not."""
        return self.numbers(EXTRA_SAMPLES)[-1] if self.numbers(EXTRA_SAMPLES) else -1

    def structure(self) -> bytes:
        """Return the file with only the tags of the first page that the pixels depend on."""
        entries = [entry.raw for tag, entry in sorted(self.tags.items()) if tag in STRUCTURE]
        content = self.content + bytes(-len(self.content) % 8)
        pack = struct.Struct(self.order + ("Q" if self.big else "H")).pack
        link = struct.Struct(self.order + ("Q" if self.big else "I"))
        head = content[: 8 if self.big else 4] + link.pack(len(content))
        return (
            head + content[len(head) :] + pack(len(entries)) + b"".join(entries) + bytes(link.size)
        )


# Rules --------------------------------------------------------------------------------------------


def judge_header(header: TiffHeader) -> None:
    """Refuse what is not read, by name.

    Raises:
        UnusableImage: the file is too large, damaged, or its numbers mean something else.
    """
    path, (width, height) = header.path, header.size
    if header.samples > 4096:
        raise UnusableImage(path, f"is damaged: it has {header.samples} samples per pixel")
    check_size(path, width, height, header.samples, max(1, header.bits // 8))
    if header.get(SUBFILE, 0) & 1:
        raise UnusableImage(
            path, "begins with a preview, as raw files of cameras do; convert it to PNG or JPEG"
        )
    check_numbers(header)
    check_colors(header)
    check_segments(header)


def check_numbers(header: TiffHeader) -> None:
    """Refuse numbers of other types than those of numpy, but 1, 2 and 4 bits of one channel."""
    few = header.bits in (1, 2, 4) and header.samples == 1 and header.dtype.startswith("uint")
    if few or header.dtype in (
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    ):
        return
    formats = {5: "complex integers", 6: "complex numbers", 4: "numbers of undefined type"}
    name = formats.get(header.get(SAMPLE_FORMAT, 1), f"numbers of {header.bits} bits")
    if not header.bits:
        name = f"numbers of {', '.join(map(str, header.numbers(BITS)[:8]))} bits"
    raise UnusableImage(
        header.path,
        f"holds {name} in {header.samples} channels, which cannot be pixels; 8, 16, 32 or 64 bits "
        "are read. Convert it",
    )


def check_colors(header: TiffHeader) -> None:
    """Refuse colors that are not gray, RGB, a palette, 8-bit CMYK or 8-bit YCbCr."""
    photometric, dtype, samples = header.photometric, header.dtype, header.samples

    def refuse(name: str) -> None:
        raise UnusableImage(header.path, f"holds {name}, which is not read; convert it to RGB")

    if photometric < 0:
        refuse("numbers of unknown meaning (it has no tag 262)")
    if photometric in COLORS or photometric > YCBCR:
        refuse(COLORS.get(photometric, f"colors of kind {photometric}"))
    if photometric == PALETTE and (header.bits > 8 or not dtype.startswith("uint") or samples > 2):
        refuse(f"a palette of {header.bits}-bit numbers in {samples} channels")
    if photometric == RGB and samples < 3:
        refuse(f"RGB in {samples} channels")
    if photometric == WHITE_IS_ZERO and dtype not in ("uint1", "uint2", "uint4", "uint8", "uint16"):
        refuse(f"{dtype} numbers in which 0 is white")
    if photometric == SEPARATED and (
        dtype != "uint8" or samples != 4 or header.get(INK_SET, 1) != 1
    ):
        refuse(f"inks as {samples} channels of {dtype}, other than 8-bit CMYK,")
    if photometric == YCBCR:
        check_ycbcr(header)
    if header.get(COMPRESSION, 1) == OLD_JPEG:
        refuse("an old kind of JPEG (compression 6)")
    if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and header.get(COMPRESSION, 1) in (
        34676,
        34677,
    ):
        refuse("colors as LogL")


def check_ycbcr(header: TiffHeader) -> None:
    """Refuse YCbCr that libraries would take for something else; JPEG is the usual case."""
    plain = header.numbers(SUBSAMPLING) == (1, 1) and not {COEFFICIENTS, REFERENCE} & set(
        header.tags
    )
    compressed = header.get(COMPRESSION, 1) != 1
    if header.dtype != "uint8" or header.samples != 3 or not (plain or compressed):
        raise UnusableImage(
            header.path,
            f"holds YCbCr colors ({header.samples} channels of {header.dtype}, subsampled or with "
            "coefficients of their own), which is not read; convert it to RGB",
        )


def check_segments(header: TiffHeader) -> None:
    """Refuse a file in which strips or tiles are missing, too many, or beyond its end."""
    (width, height), path = header.size, header.path
    tiled = TILE_OFFSETS in header.tags
    offsets = header.numbers(TILE_OFFSETS if tiled else OFFSETS)
    counts = header.numbers(TILE_COUNTS if tiled else COUNTS)
    if tiled:
        columns, rows = header.get(TILE_WIDTH, 0), header.get(TILE_LENGTH, 0)
    else:
        columns, rows = width, min(header.get(ROWS_PER_STRIP, height), height)
    if columns < 1 or rows < 1:
        raise UnusableImage(path, "is damaged: its strips or tiles have no pixels")
    check_size(path, columns, rows, header.samples, max(1, header.bits // 8))
    separate = header.get(PLANAR, 1) == 2
    needed = -(-width // columns) * -(-height // rows) * (header.samples if separate else 1)
    if needed > MOST_SEGMENTS:
        raise UnusableImage(
            path, f"is divided into {needed:,} strips or tiles; up to {MOST_SEGMENTS:,} are read"
        )
    if len(offsets) < needed or (len(counts) != len(offsets) and (counts or needed > 1)):
        raise UnusableImage(path, f"is damaged: it has {len(offsets)} of {needed} strips or tiles")
    row = -(-columns * header.bits * (1 if separate else header.samples) // 8)
    raw, down = header.get(COMPRESSION, 1) == 1, -(-height // rows)
    for k, offset in enumerate(offsets[:needed]):
        least = row * (rows if tiled else min(rows, height - k % down * rows)) if raw else 1
        size = counts[k] if counts else least
        if size < least or offset < 8 or offset + size > len(header.content):
            raise UnusableImage(
                path,
                f"is cut off or damaged: strip or tile {k} should be {least} bytes or more at byte "
                f"{offset}; it has {size}, and the file ends at {len(header.content)}",
            )
