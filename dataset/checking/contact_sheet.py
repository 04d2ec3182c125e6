"""Pairs as one picture: thumbnails with their captions below, from the whole data folder."""

import functools
import textwrap
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
LINES, LINE_HEIGHT, LINE_WIDTH = 4, 17, 31  # of the caption: lines, pixels, characters
FONT_SIZE = 13  # pixels
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


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
    lines = textwrap.wrap(text, LINE_WIDTH, max_lines=LINES - 1, placeholder=" ...")
    name = one_line(pair.path).replace("\\", "/").rpartition("/")[2]
    for k, (line, color) in enumerate(
        [*((line, "black") for line in lines), (shortened(name, LINE_WIDTH - 16), "gray")]
    ):
        draw.text((left, top + SIDE + 6 + k * LINE_HEIGHT), line, fill=color, font=font)


@functools.cache
def caption_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of the system that has many characters; else Pillow's, which has ASCII only."""
    for name in FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, FONT_SIZE)
    return ImageFont.load_default(FONT_SIZE)
