"""Which column of a table holds the images, and which the captions: as told, or as they look."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dataset.options import ReadOptions
from foundation.errors import UserError, listed, one_line, shown, unknown_name

# Names of columns as people give them, in lower case; a name with a dot is a field of a struct.
IMAGE_NAMES = frozenset(
    (
        *("file", "file_name", "file_path", "filename", "filepath", "image", "image_bytes"),
        *("image_file", "image_name", "image_path", "img", "img_path", "jpg", "path", "picture"),
        *("png", "webp"),
    )
)
CAPTION_NAMES = frozenset(
    (
        *("caption", "captions", "comment", "description", "en", "prompt", "sentence"),
        *("sentences", "text", "texts", "txt"),
    )
)
ADDRESSES = frozenset(("image_url", "url", "urls"))

Kind = Literal["image", "bytes", "text", "texts", "classes", "other"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        kind: image: a struct of bytes and path, as Hugging Face's datasets store pictures;
            bytes: the files' bytes; text: paths or captions; texts: lists of captions;
            classes: numbers that stand for names.
        type: as the file names it, for messages.
        classes: the names of the numbers.
    """

    name: str
    kind: Kind
    type: str = ""
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.type})" if self.type else self.name


def choose_columns(
    columns: Sequence[Column], options: ReadOptions, file: object
) -> tuple[Column, Column | None]:
    """Return the columns of images and of captions; None if there are no captions.

    Raises:
        UserError: there is no column of images, or several columns could be meant.
    """
    for name, count in Counter(column.name for column in columns).most_common(1):
        if count > 1:
            raise UserError(
                f"{one_line(file)} has {count} columns with the name {shown(name)}, and a name "
                "must mean one column. Rename them."
            )
    image = image_column(columns, options.image_column, file)
    others = [column for column in columns if column != image]
    return image, caption_column(others, options.caption_column, file)


def image_column(columns: Sequence[Column], name: str | None, file: object) -> Column:
    """Return the column that is named, or the one that holds images by its type or its name."""
    if name is not None:
        column = named(columns, name)
        if column.kind not in ("image", "bytes", "text"):
            raise UserError(
                f"the column {one_line(column)} of {one_line(file)} holds no images: needed are "
                "bytes, a struct of bytes and path, or paths. Choose another image_column."
            )
        return column
    by_name = [column for column in columns if column.name.lower() in IMAGE_NAMES]
    for found in (
        [column for column in columns if column.kind == "image"],
        [column for column in by_name if column.kind == "bytes"],
        [column for column in columns if column.kind == "bytes"],
        [column for column in by_name if column.kind == "text"],
    ):
        if found:
            return only(found, "image_column", "images", file)
    message = f"{one_line(file)} has no column of images: it has {listed(columns, 20)}."
    if addresses := [column.name for column in columns if column.name.lower() in ADDRESSES]:
        raise UserError(
            f"{message} The images that {addresses[0]!r} names are in the network. Fetch them "
            "first, for example with img2dataset (pip install img2dataset), which writes shards."
        )
    raise UserError(f"{message} Name the one that holds images or their paths: image_column.")


def caption_column(columns: Sequence[Column], name: str | None, file: object) -> Column | None:
    """Return the column that is named, or the one with a usual name, or else the classes."""
    if name is not None:
        column = named(columns, name)
        if column.kind not in ("text", "texts", "classes"):
            raise UserError(
                f"the column {one_line(column)} of {one_line(file)} holds no captions: needed are "
                "strings, lists of strings, or numbers of named classes. Choose another "
                "caption_column."
            )
        return column
    texts = [column for column in columns if column.kind in ("text", "texts")]
    for found in (
        [column for column in texts if column.name.lower() in CAPTION_NAMES],
        [column for column in columns if column.kind == "classes"],
    ):
        if found:
            return only(found, "caption_column", "captions", file)
    return None


def named(columns: Sequence[Column], name: str) -> Column:
    """Return the column with this name."""
    for column in columns:
        if column.name == name:
            return column
    raise unknown_name(name, [column.name for column in columns], "column")


def only(found: Sequence[Column], parameter: str, content: str, file: object) -> Column:
    """Return the one column that was found; several are an error."""
    if len(found) > 1:
        raise UserError(
            f"{one_line(file)} has {len(found)} columns that could hold the {content}: "
            f"{listed(found)}. Choose one: {parameter} {found[0].name}."
        )
    return found[0]
