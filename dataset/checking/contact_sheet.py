"""Pairs as one picture: thumbnails with their captions below, from the whole data folder."""

import functools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dataset.checking.near_duplicates import on_white
from dataset.images.transform import load_image
from dataset.source import UnusableImage
from dataset.table import Pair
from foundation.errors import UserError, one_line, shortened
from foundation.files import atomic_file

COLUMNS, ROWS = 6, 4
SIDE, MARGIN = 200, 12  # pixels
LINES, LINE_HEIGHT = 4, 17  # of the text below a picture: lines, pixels
FONT_SIZE = 13  # pixels
NAME_END = 12  # characters at the end of a file name that are always shown
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_contact_sheet(pairs: Sequence[Pair], file: Path) -> int:
    """Draw pairs from the whole folder to a PNG file; return how many.

    Raises:
        UserError: the name of the file does not end in .png.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"the sheet {one_line(file)} must be a .png file.")
    count = min(len(pairs), COLUMNS * ROWS)
    chosen = [pairs[k * (len(pairs) - 1) // max(count - 1, 1)] for k in range(count)]
    columns = min(COLUMNS, max(count, 1))
    rows = -(-max(count, 1) // columns)
    width, height = SIDE + MARGIN, SIDE + LINES * LINE_HEIGHT + 2 * MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    for k, pair in enumerate(chosen):
        draw_pair(sheet, pair, (MARGIN + k % columns * width, MARGIN + k // columns * height))
    with atomic_file(file) as partial:
        sheet.save(partial, format="PNG")
    return count


def draw_pair(sheet: Image.Image, pair: Pair, corner: tuple[int, int]) -> None:
    """Draw a picture, and below it its captions and its name in gray."""
    left, top = corner
    draw, font = ImageDraw.Draw(sheet), caption_font()
    draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=(200, 200, 200))
    try:
        image = on_white(load_image(pair.path, shrink_to=SIDE))
        image.thumbnail((SIDE, SIDE))
        offset = left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2
        sheet.paste(image, offset)
    except UnusableImage:
        draw.text((left + 8, top + 8), "no 8-bit picture", fill="gray", font=font)
    captions = " | ".join(pair.captions)
    text = one_line(shortened(captions, 400)) or "(no caption)"
    name = one_line(pair.path).replace("\\", "/").rpartition("/")[2]
    lines = [(line, "black") for line in wrap(text, font)] + [(cut_middle(name, font), "gray")]
    for k, (line, color) in enumerate(lines):
        draw.text((left, top + SIDE + 6 + k * LINE_HEIGHT), line, fill=color, font=font)


def wrap(text: str, font: Font) -> list[str]:
    """Break a text into lines as wide as a picture; what is too long for them ends in dots."""
    lines: list[str] = []
    while text and len(lines) < LINES - 1:
        is_last = len(lines) == LINES - 2
        end = fitting(text, font)
        if end < len(text) and is_last:
            lines.append(text[: fitting(text, font, " ...")] + " ...")
            break
        space = text.rfind(" ", 0, end + 1)
        if end < len(text) and space > 0:
            end = space
        lines.append(text[:end])
        text = text[end:].lstrip()
    return lines


def cut_middle(name: str, font: Font) -> str:
    """Leave out the middle of a name that is wider than a picture; its end tells files apart."""
    if fitting(name, font) == len(name):
        return name
    end = f"...{name[-NAME_END:]}"
    return name[: fitting(name, font, end)] + end


def fitting(text: str, font: Font, end: str = "") -> int:
    """Return how many characters fit below a picture, with `end` after them; at least one."""
    count = 1
    while count < len(text) and font.getlength(text[: count + 1] + end) <= SIDE:
        count += 1
    return count


@functools.cache
def caption_font() -> Font:
    """Return a font of the system that has many characters; else Pillow's, which has ASCII only."""
    for name in FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)
