"""The parts of PNG, JPEG and WebP files: what the pixels depend on, kept apart from metadata.

A decoder gets only the parts that decide about pixels. So nothing in EXIF, color profiles, texts or
previews can change an image, or stop it from being read. The orientation in EXIF is the one
exception, and it is read here.
"""

import struct
import zlib
from dataclasses import dataclass, field

from PIL import Image

from dataset.images.limits import MOST_SCANS
from dataset.source import Source, UnusableImage

PNG_START = 8  # bytes of the signature
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION = 0x0112  # EXIF and TIFF tag; 5 to 8 exchange width and height
EXIF = b"Exif\0\0"
FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
START_OF_SCAN, COMMENT = 0xDA, 0xFE
APPLICATION = range(0xE0, 0xF0)
ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # JPEG markers without a length


@dataclass
class Parts:
    """A file without its metadata, and the metadata.

    Args:
        pixels: the file as a decoder gets it.
        exif: without the identifier that JPEG puts before it.
        texts: chunks of a PNG or comments of a JPEG, still packed: (kind, content).
        size: width and height; None if only the decoder knows it.
        scans: of a JPEG; more than one need memory for all coefficients.
        transparent: the tRNS chunk of a PNG.
    """

    pixels: bytes
    exif: bytes = b""
    texts: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    scans: int = 1
    transparent: bytes = b""


def read_orientation(exif: bytes) -> int:
    """Return the orientation that EXIF states, 1 to 8; 1 if it states none or anything else."""
    try:
        content = Image.Exif()
        content.load(exif)
        value = content.get(ORIENTATION)
    except Exception:  # metadata never decides whether an image can be read
        return 1
    return value if type(value) is int and 1 <= value <= 8 else 1


# PNG ----------------------------------------------------------------------------------------------


def split_png(content: bytes, path: Source) -> Parts:
    """Keep the chunks that the pixels depend on: the critical ones, and transparency.

    Raises:
        UnusableImage: a checksum of these is wrong.
    """
    kept, parts, position = [content[:PNG_START]], Parts(b""), PNG_START
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        data = content[position + 8 : end - 4]
        if kind == b"eXIf":
            parts.exif = data
        elif kind in PNG_TEXTS:
            parts.texts.append((kind, data))
        elif kind == b"tRNS" or kind[:1].isupper():
            check_chunk(content, position, end, path)
            kept.append(content[position:end])
            if kind == b"tRNS":
                parts.transparent = data
        if kind == b"IEND":
            break
        position = end
    parts.pixels = b"".join(kept)
    return parts


def check_chunk(content: bytes, position: int, end: int, path: Source) -> None:
    """Compare the checksum of a chunk, which Pillow does not do for pixels; cut off ones pass."""
    checksum = content[end - 4 : end]
    if end <= len(content) and zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(
        checksum
    ):
        name = content[position + 4 : position + 8].decode("ascii", "replace")
        raise UnusableImage(
            path, f"is damaged: the checksum of its chunk {name!r} at byte {position} is wrong"
        )


# JPEG ---------------------------------------------------------------------------------------------


def split_jpeg(content: bytes, path: Source) -> Parts:
    """Keep the segments that the pixels depend on; JFIF and Adobe's say how colors are stored.

    Raises:
        UnusableImage: it has so many scans that decoding it may take hours.
    """
    kept, parts, position = [content[:2]], Parts(b""), 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == START_OF_SCAN:
            break
        if marker in ALONE:
            position += 2
            continue
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4])
        data = content[position + 4 : end]
        if marker == COMMENT:
            parts.texts.append((b"comment", data))
        elif marker in APPLICATION and not data.startswith((b"JFIF\0", b"Adobe")):
            if data.startswith(EXIF) and not parts.exif:
                parts.exif = data[len(EXIF) :]
        else:
            kept.append(content[position:end])
            if marker in FRAMES and len(data) >= 6:
                height, width = struct.unpack_from(">HH", data, 1)
                parts.size = width, height
        position = end
    kept.append(content[position:])
    parts.pixels = b"".join(kept)
    parts.scans = parts.pixels.count(b"\xff\xda")
    if parts.scans > MOST_SCANS:
        raise UnusableImage(
            path,
            f"is a JPEG of {parts.scans} scans, which would take long to decode; files of up to "
            f"{MOST_SCANS} are read. Save it again",
        )
    return parts


# WebP ---------------------------------------------------------------------------------------------


def split_webp(content: bytes, path: Source) -> Parts:
    """Keep all chunks but metadata; read the size, since Pillow allocates the canvas at once.

    Raises:
        UnusableImage: the file is shorter than it says.
    """
    length = 8 + int.from_bytes(content[4:8], "little")
    if length > len(content) + 1:  # some programs leave out the last byte, which is padding
        raise UnusableImage(path, f"is cut off: {len(content):,} of {length:,} bytes are there")
    kept, parts, position = [], Parts(b""), 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        end = position + 8 + length + length % 2
        data = content[position + 8 : position + 8 + length]
        if kind == b"EXIF":
            parts.exif = data.removeprefix(EXIF)
        elif kind not in (b"XMP ", b"ICCP"):
            kept.append(content[position:end])
            parts.size = parts.size or webp_size(kind, data)
        position = end
    body = b"WEBP" + b"".join(kept)
    if kept and kept[0][:4] == b"VP8X":
        flags = kept[0][8] & ~0b0010_1100  # no profile, EXIF or XMP any more
        body = body[:12] + bytes([flags]) + body[13:]
    parts.pixels = b"RIFF" + len(body).to_bytes(4, "little") + body
    return parts


def webp_size(kind: bytes, data: bytes) -> tuple[int, int] | None:
    """Read width and height from the first chunk of a WebP file."""
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None
