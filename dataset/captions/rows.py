"""One entry of a table of captions: which fields it has, and what they may hold."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from foundation.errors import UserError, listed, shown

IMAGE_FIELDS = ("file_name",)
TEXT_FIELDS = ("text", "caption")  # the first one that an entry has is used
WEIGHTS, LANGUAGES = "caption_weights", "caption_languages"  # further fields of a row
LONGEST_CAPTION = 100_000  # characters
LARGEST_WEIGHT = 1e9
LANGUAGE = re.compile(r"[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,4}")  # en, pt-br, zh-hans-cn


class MarkedCaption(NamedTuple):
    """A caption with a weight other than 1, or with a language."""

    text: str
    weight: float = 1.0
    language: str = ""


Caption = str | MarkedCaption  # most have no marks, and are plain strings


class Row(NamedTuple):
    """An image and its captions, as a table has them."""

    image: str  # relative to the folder of the table, or absolute
    captions: list[Caption]
    location: str  # such as "metadata.jsonl line 3"


def check_row(row: object, location: str, source: str) -> Row:
    """Check the fields of an entry; empty captions are left out.

    Args:
        location: of the entry, for later messages, such as "metadata.jsonl line 3".
        source: the same with the path of the table, for errors.

    Raises:
        UserError: the fields are missing, or hold something else.
    """
    image_field = first_field(row, IMAGE_FIELDS)
    text_field = first_field(row, TEXT_FIELDS)
    if not isinstance(row, dict) or image_field is None or text_field is None:
        has = f"it has {listed(list(row))}" if isinstance(row, dict) else f"it is {shown(row)}"
        raise UserError(
            f"{source}: a row needs 'file_name' (relative to the file) and 'text' or 'caption' (a "
            f"caption, or a list of captions), but {has}. Rename the fields."
        )
    image = row[image_field]
    if not isinstance(image, str):
        raise UserError(f"{source}: {image_field!r} must be a file name, not {shown(image)}.")
    try:
        captions = caption_list(row[text_field], row.get(WEIGHTS), row.get(LANGUAGES))
    except UserError as error:
        raise UserError(f"{source}, of {shown(image)}: {text_field!r} {error}.") from None
    return Row(image, captions, location)


def first_field(row: object, names: tuple[str, ...]) -> str | None:
    """Return the first of these fields that an entry has."""
    return next((name for name in names if isinstance(row, dict) and name in row), None)


def caption_list(value: object, weights: object = None, languages: object = None) -> list[Caption]:
    """Return the captions in a field: a string, a list of strings, or null for none.

    Empty ones are left out. Anything else is an error: `false` is not "no caption".

    Args:
        weights: of the captions, a number of each, or one for all; None: 1.
        languages: the same with names of languages; None or "": not said.

    Raises:
        UserError: the message continues "<field> ...".
    """
    texts: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"must be a string or a list of strings, not {shown(value)}")
    for text in texts:
        check_caption(text)
    if weights is None and languages is None:
        return [text.strip() for text in texts if text.strip()]
    own_weights = map(check_weight, value_of_each(weights, len(texts), WEIGHTS))
    own_languages = map(check_language, value_of_each(languages, len(texts), LANGUAGES))
    marked = zip(texts, own_weights, own_languages, strict=True)
    return [
        MarkedCaption(text.strip(), weight, language) if weight != 1 or language else text.strip()
        for text, weight, language in marked
        if text.strip()
    ]


def check_caption(text: str) -> None:
    """Refuse what no caption is; the message continues "<field> ..."."""
    if len(text) > LONGEST_CAPTION:
        raise UserError(
            f"has {len(text):,} characters, and a caption at most {LONGEST_CAPTION:,}: "
            f"{shown(text)}"
        )
    if "\0" in text:
        raise UserError(f"holds a zero character, so it is no text: {shown(text)}")


# Marks --------------------------------------------------------------------------------------------


def value_of_each(value: object, count: int, field: str) -> list[Any]:
    """Return a value for each of `count` captions; a value that is no list holds for all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise UserError(
            f"has {count} captions, but {field!r} has {len(value)} entries: {shown(value)}. It "
            "needs one for each caption, or one value for all"
        )
    return value


def check_weight(value: Any) -> float:
    """Return a weight; None stands for 1."""
    if value is None:
        return 1.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LARGEST_WEIGHT:
        raise UserError(
            f"has {shown(value)} in {WEIGHTS!r}; a weight is a number from 0 to "
            f"{LARGEST_WEIGHT:,.0f}"
        )
    return float(value)


def check_language(value: object) -> str:
    """Return a language in lower case with hyphens; None and "" stand for one that is not said."""
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or (language := normal_language(value)) is None:
        raise UserError(
            f"has {shown(value)} in {LANGUAGES!r}; a language is a code such as 'en' or 'pt-BR'"
        )
    return language


def normal_language(text: str) -> str | None:
    """Write a code of a language in lower case with hyphens; None if it is none."""
    code = text.strip().lower().replace("_", "-")
    return code if LANGUAGE.fullmatch(code) else None


def cells_to_marks(cells: dict[str, str]) -> dict[str, Any]:
    """Return the cells of a row of a CSV file with a number in the column of weights.

    What is no number stays text, and is refused by `check_weight`.
    """
    text = cells.get(WEIGHTS)
    if text is None:
        return dict(cells)
    try:
        weight = float(text) if text.strip() else None
    except ValueError:
        weight = text
    return {**cells, WEIGHTS: weight}


def text_of(caption: Caption) -> str:
    """Return a caption without its marks."""
    return caption.text if isinstance(caption, MarkedCaption) else caption


def language_of(caption: Caption) -> str:
    """Return the language of a caption; "" if it is not said."""
    return caption.language if isinstance(caption, MarkedCaption) else ""


def unique_captions(captions: Iterable[Caption]) -> tuple[Caption, ...]:
    """Remove empty captions, and those that are there before in the same language."""
    first: dict[tuple[str, str], Caption] = {}
    for caption in captions:
        if text_of(caption):
            first.setdefault((text_of(caption), language_of(caption)), caption)
    return tuple(first.values())


def captions_hash(captions: Sequence[Caption]) -> bytes:
    """Hash the captions of an image, in their order and with their marks, to 16 bytes."""
    text = "\0".join(map(text_of, captions))
    if any(isinstance(caption, MarkedCaption) for caption in captions):
        marks = (caption[1:] if isinstance(caption, MarkedCaption) else () for caption in captions)
        text += f"\0\0{list(marks)}"  # no caption holds a zero character
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
