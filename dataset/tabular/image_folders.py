"""The folder that the file names in a table are relative to."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from dataset.tabular.catalog import PathRow
from foundation.errors import UserError, listed, one_line, shown

TRIED_ROWS = 100  # one of the first rows must name an image that exists
TABLE_FOLDERS = frozenset(("annotations", "captions", "labels", "metadata"))
MOST_FOLDERS = 200  # that are looked into


def find_base(rows: Iterator[PathRow], table: Path) -> tuple[Path, Iterator[PathRow]]:
    """Return the folder of the images, and the rows again from the first one.

    It is the folder of the table, or else one near it in which an image of the first rows is found.

    Raises:
        UserError: the images are nowhere, in several folders, or in the network.
    """
    first = list(islice(rows, TRIED_ROWS))
    names = [row.image for row in first if isinstance(row.image, str) and row.image.strip()]
    if names and names[0].startswith(("http://", "https://")):
        raise UserError(
            f"{one_line(table)} names images in the network, such as {shown(names[0])}. Fetch them "
            "first, for example with img2dataset (pip install img2dataset), which writes shards."
        )
    rows = chain(first, rows)
    if not names or any(exists(table.parent, name) for name in names):
        return table.parent, rows
    folders = near_folders(table)
    for name in names:
        found = [folder for folder in folders if exists(folder, name)]
        alike = [folder for folder in found if folder.name in table.stem]
        if len(found) > 1 and len(alike) != 1:
            raise UserError(
                f"{one_line(table)} names {shown(name)}, which is in {listed(found)}. Put the "
                "table into the folder that is meant."
            )
        if found:
            return (alike or found)[0], rows
    raise UserError(
        f"{one_line(table)} names {shown(names[0])}, but there is no such image in "
        f"{one_line(table.parent)} (absolute path: {table.parent.absolute()}), nor in "
        f"{len(folders)} folders near it. Write names that are relative to the table, or choose "
        "another image_column."
    )


def exists(folder: Path, name: str) -> bool:
    """Return whether there is such a file; backslashes, as Windows writes them, are understood."""
    try:
        return (folder / name).is_file() or (folder / name.replace("\\", "/")).is_file()
    except (OSError, ValueError):
        return False


def near_folders(table: Path) -> list[Path]:
    """List the folders that may hold the images: below the table's, and next to `annotations`."""
    here, above = table.parent, table.absolute().parent.parent
    beside = table.absolute().parent.name.lower() in TABLE_FOLDERS
    roots = [here, here / "images", *((above, above / "images") if beside else ())]
    folders = [above] if beside else []
    for root in roots:
        if root.is_dir():
            below = (path for path in root.iterdir() if path.is_dir())
            folders += sorted(path for path in below if not path.name.startswith("."))
    distinct = {folder.resolve(): folder for folder in reversed(folders) if folder.exists()}
    return list(distinct.values())[::-1][:MOST_FOLDERS]
