"""Texts that image files hold next to the pixels: chunks of a PNG, comments, a comment in EXIF.

They come from anywhere: they are unpacked within a limit, and what cannot be read is left out.
"""

import zlib
from io import BytesIO

from PIL import ExifTags, Image

from dataset.images.border import border, file_size, refuse_foreign
from dataset.images.containers import split_jpeg, split_png, split_webp
from dataset.images.decode import read_content
from dataset.images.formats import recognize
from dataset.images.limits import MOST_TEXT_BYTES
from dataset.source import Source, UnusableImage

USER_COMMENT = 0x9286  # tag of EXIF
UNICODE = b"UNICODE\0"  # says how the comment is encoded: UTF-16, big-endian
COMMENT = "comment"  # the name of texts that have none


def read_texts(path: Source) -> dict[str, str]:
    """Return the texts of an image file by name; those without a name are called "comment".

    Raises:
        UnusableImage: it is no image, it is damaged, or the texts are too large.
    """
    file_size(path)
    with border(path):
        content = read_content(path)
        kind = recognize(content[:64])
        if kind is None:
            raise refuse_foreign(path, content[:1024])
        if kind == "PNG":
            parts = split_png(content, path)
            return {**user_comment(parts.exif), **png_texts(parts.texts, path)}
        if kind == "JPEG":
            parts = split_jpeg(content, path)
            last = parts.texts[-1][1].decode("utf-8", "replace") if parts.texts else ""
            return ({COMMENT: last} if last else {}) | user_comment(parts.exif)
        if kind == "WEBP":
            return user_comment(split_webp(content, path).exif)
        if kind == "GIF":
            with Image.open(BytesIO(content), formats=("GIF",)) as image:
                comment = image.info.get("comment", b"")
            return {COMMENT: comment.decode("utf-8", "replace")} if comment else {}
    return {}


def user_comment(exif: bytes) -> dict[str, str]:
    """Return the user's comment in EXIF; nothing if there is none, or if EXIF is damaged."""
    try:
        content = Image.Exif()
        content.load(exif)
        comment = content.get_ifd(ExifTags.IFD.Exif).get(USER_COMMENT, b"")
        if isinstance(comment, bytes) and comment.startswith(UNICODE):
            return {COMMENT: comment.removeprefix(UNICODE).decode("utf-16-be", "replace")}
    except Exception:  # metadata never decides whether a file can be read
        pass
    return {}


def png_texts(chunks: list[tuple[bytes, bytes]], path: Source) -> dict[str, str]:
    """Unpack the text chunks of a PNG; damaged ones are left out.

    Raises:
        UnusableImage: they are too large.
    """
    texts: dict[str, str] = {}
    left = MOST_TEXT_BYTES
    for kind, data in chunks:
        name, separator, rest = data.partition(b"\0")
        packed, encoding = kind == b"zTXt", "latin-1"
        if kind == b"zTXt":
            rest = rest[1:]  # the number of the compression; there is only one
        elif kind == b"iTXt":
            packed, encoding = rest[:1] == b"\1", "utf-8"
            rest = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated name
        if packed:
            unpacker = zlib.decompressobj()
            try:
                rest = unpacker.decompress(rest, left + 1)
            except zlib.error:
                continue
        left -= len(rest)
        if left < 0:
            raise UnusableImage(
                path,
                f"holds texts of more than {MOST_TEXT_BYTES >> 20} MiB; remove its metadata",
            )
        if separator:
            texts[name.decode("latin-1")] = rest.decode(encoding, "replace")
    return texts
