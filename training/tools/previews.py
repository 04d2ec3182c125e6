"""The previews of a run on its report page: a step at a time, each picture with its prompt."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from training.logging.image_grid import Cell, read_cells
from training.tools.page import image_element

FEWEST_STEPS = 6  # on the page if there are so many, the first and the last among them
MOST_STEPS = 24
LARGEST = 20_000_000  # bytes of pictures, for more than the fewest
SMALL = 400  # pixels; wider pictures are not enlarged


def previews_section(files: Sequence[Path]) -> str:
    """Return previews evenly spread over the run; buttons choose the step, the last one at first.

    No script is needed: the buttons are radio buttons, and a rule of CSS shows what is chosen.
    """
    chosen = chosen_files(files)
    if not chosen:
        return ""
    rules = ", ".join(
        f".steps > input:nth-of-type({k}):checked ~ section:nth-of-type({k})"
        for k in range(1, len(chosen) + 1)
    )
    buttons = "".join(
        f"<input type=radio name=step id={file.stem}{' checked' if file == chosen[-1] else ''}>"
        f"<label for={file.stem}>{step_of(file):,}</label>"
        for file in chosen
    )
    sections = "".join(f"<section>{step_section(file)}</section>" for file in chosen)
    return (
        f"<h2>Pictures</h2><style>{rules} {{ display: block; }}</style>"
        f"<div class=steps><span class=faint>step</span> {buttons}{sections}</div>"
    )


def chosen_files(files: Sequence[Path]) -> list[Path]:
    """Return the previews that are shown: fewer if they are large."""
    sizes = [file.stat().st_size for file in files]
    largest = max(sizes, default=1)
    count = min(len(files), MOST_STEPS, max(FEWEST_STEPS, LARGEST // max(largest, 1)))
    if count < 2:
        return list(files[-1:])
    last = len(files) - 1
    return [files[round(k * last / (count - 1))] for k in range(count)]


def step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def step_section(file: Path) -> str:
    """Return the pictures of a step; those with the same caption share a figure."""
    cells = read_cells(file)
    if not cells:
        with Image.open(file) as picture:
            return figure([(Cell("", file.stem), picture.copy())], file.stem)
    groups: dict[str, list[tuple[Cell, Image.Image]]] = {}
    for cell, picture in cells:
        groups.setdefault(cell.caption, []).append((cell, picture))
    names = list(dict.fromkeys(cell.name for cell, _ in cells))
    figures = "".join(figure(group, caption) for caption, group in groups.items())
    order = f"<p class=faint>From left to right: {escape(', '.join(names))}.</p>"
    return f"{order if len(names) > 1 else ''}<div class=previews>{figures}</div>"


def figure(pictures: Iterable[tuple[Cell, Image.Image]], caption: str) -> str:
    """Return pictures next to each other, at twice their size if they are small, and a caption."""
    elements = "".join(
        image_element(
            picture,
            f"{cell.name}: {cell.caption}" if cell.caption else cell.name,
            width=picture.width * (2 if picture.width <= SMALL else 1),
        )
        for cell, picture in pictures
    )
    return f"<figure>{elements}<figcaption>{escape(caption)}</figcaption></figure>"
