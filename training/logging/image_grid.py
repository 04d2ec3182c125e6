"""Image grids for previews, whose files say what each picture of the grid is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from foundation.errors import UserError
from foundation.files import atomic_file, to_json
from foundation.json_reading import from_json, load_object

BACKGROUND = 128  # gray level
GAP = 2  # pixels between images and around them
ENTRY = "latentsmith-grid"  # of the texts of a PNG


@dataclass(frozen=True)
class Cell:
    """What a picture of a grid is.

    Args:
        caption: what it shows, such as its prompt.
        name: which of several pictures of that, such as "reconstruction".
    """

    caption: str
    name: str


@dataclass(frozen=True)
class Grid:
    """How the pictures of a grid lie, as its file has it."""

    width: int
    height: int
    columns: int
    cells: tuple[Cell, ...]


def image_grid(
    images: UInt8[Tensor, "n channels height width"], columns: int, gap: int = GAP
) -> Image.Image:
    """Arrange images row by row on gray, as one picture.

    Args:
        images: gray (1 channel), RGB (3) or RGBA (4); of any other number of channels, only the
            first is shown.
        gap: pixels between images and around them.
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3, 4):
        images, channels = images[:, :1], 1
    rows = -(-count // columns)
    size = (channels, rows * (height + gap) + gap, columns * (width + gap) + gap)
    canvas = torch.full(size, BACKGROUND, dtype=torch.uint8)
    for k, image in enumerate(images.cpu()):
        top = gap + k // columns * (height + gap)
        left = gap + k % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    pixels = canvas.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save_grid(
    images: UInt8[Tensor, "n channels height width"],
    columns: int,
    file: Path,
    cells: Sequence[Cell] = (),
) -> None:
    """Write images side by side as a PNG that appears whole or not at all.

    cells: what each image is; `read_cells` finds it in the file.
    """
    texts = PngImagePlugin.PngInfo()
    if cells:
        height, width = images.shape[-2:]
        texts.add_itxt(ENTRY, to_json(asdict(Grid(width, height, columns, tuple(cells)))))
    with atomic_file(file) as partial:
        image_grid(images, columns).save(partial, "PNG", pnginfo=texts)


def read_cells(file: Path) -> list[tuple[Cell, Image.Image]]:
    """Return the pictures of a grid with what each is; none if the file does not say it."""
    with Image.open(file) as whole:
        text = getattr(whole, "text", {}).get(ENTRY)
        try:
            grid = from_json(Grid, load_object(text or "{}", file), file)
        except UserError:
            return []
        found: list[tuple[Cell, Image.Image]] = []
        for k, cell in enumerate(grid.cells):
            row, column = divmod(k, max(grid.columns, 1))
            left, top = GAP + column * (grid.width + GAP), GAP + row * (grid.height + GAP)
            box = (left, top, left + grid.width, top + grid.height)
            if grid.width < 1 or grid.height < 1 or box[2] > whole.width or box[3] > whole.height:
                return []  # it is not the picture that the text is about
            found.append((cell, whole.crop(box)))
        return found


def pil_to_tensor(images: Sequence[Image.Image]) -> UInt8[Tensor, "n channels height width"]:
    """Stack PIL images of equal size and mode."""
    arrays = [np.atleast_3d(np.asarray(image)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
