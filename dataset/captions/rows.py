"""One entry of a table of captions: which fields it has, and what they may hold."""

from typing import Any, NamedTuple

from foundation.errors import UserError, listed, shown

IMAGE_FIELDS = ("file_name",)
TEXT_FIELDS = ("text", "caption")  # the first one that an entry has is used
LONGEST_CAPTION = 100_000  # characters


class Row(NamedTuple):
    """An image and its captions, as a table has them."""

    image: str  # relative to the folder of the table, or absolute
    captions: list[str]
    location: str  # such as "metadata.jsonl line 3"


def check_row(row: object, location: str, source: str) -> Row:
    """Check the two fields of an entry; empty captions are left out.

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
        return Row(image, caption_list(row[text_field]), location)
    except UserError as error:
        raise UserError(f"{source}, of {shown(image)}: {text_field!r} {error}.") from None


def first_field(row: object, names: tuple[str, ...]) -> str | None:
    """Return the first of these fields that an entry has."""
    return next((name for name in names if isinstance(row, dict) and name in row), None)


def caption_list(value: object) -> list[str]:
    """Return the captions in a field: a string, a list of strings, or null for none.

    Empty ones are left out. Anything else is an error: `false` is not "no caption".

    Raises:
        UserError: the message continues "<field> ...".
    """
    texts: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"must be a string or a list of strings, not {shown(value)}")
    for text in texts:
        check_caption(text)
    return [text.strip() for text in texts if text.strip()]


def check_caption(text: str) -> None:
    """Refuse what no caption is; the message continues "<field> ..."."""
    if len(text) > LONGEST_CAPTION:
        raise UserError(
            f"has {len(text):,} characters, and a caption at most {LONGEST_CAPTION:,}: "
            f"{shown(text)}"
        )
    if "\0" in text:
        raise UserError(f"holds a zero character, so it is no text: {shown(text)}")
