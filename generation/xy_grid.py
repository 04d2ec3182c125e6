"""Pictures side by side: grids over one or two options, and the labeled picture of them.

An axis is an option and its values, written as OPTION=VALUE,VALUE. A value that contains a comma
stands in double quotes, as in a table: prompt="red heart, small",blue heart.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, get_args

from PIL import Image, ImageDraw, ImageFont

from foundation.errors import UserError, did_you_mean, one_line, shown
from generation.limits import MAX_GRID, check_prompt
from generation.meaning import check_options
from generation.options import INPUT_FILES, GenerationOptions, parse_seeds
from generation.prompts import OPTION_TYPES, PromptEntry, error_location, expand
from generation.session import GenerationSession
from ldm.pipeline.image_processor import MAX_PIXELS

PROMPT = "prompt"
GRID_NAME = "grid-{number:04d}"  # of the files
KINDS = (int, float, str, bool)  # of values that can be typed
# Options that a picture of the grid has no use for, or whose files it must not read.
LEFT_OUT = ("count", "resample", "noise_level", *INPUT_FILES, "weak_model")
SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

SMALLEST_CELL = 144  # pixels; smaller pictures are enlarged by a whole factor
GAP, FONT_SIZE, LINE = 8, 15, 19  # pixels between pictures, of letters, from line to line
LONGEST_ROW_LABEL = 190  # pixels; longer ones are broken into lines
MOST_LINES, LONGEST_LABEL = 4, 600  # lines and characters of a label
INK, PAPER = (20, 20, 20), (255, 255, 255)


def kinds_of(option: str) -> tuple[Any, ...]:
    """Return the types that an option's value may have."""
    kind = OPTION_TYPES[option]
    return tuple(one for one in get_args(kind) or (kind,) if one is not type(None))


VARIED = (
    PROMPT,
    *(
        name
        for name in OPTION_TYPES
        if name not in LEFT_OUT and all(kind in KINDS for kind in kinds_of(name))
    ),
)  # what an axis may vary


@dataclass(frozen=True)
class Axis:
    """An option and the values that it has along one side of a grid."""

    option: str
    values: tuple[Any, ...]
    text: str  # as it was typed

    @property
    def labels(self) -> list[str]:
        """What stands beside the pictures of each value."""
        if self.option == PROMPT:
            return [str(value) for value in self.values]
        return [label_of(self.option, value) for value in self.values]


def label_of(option: str, value: Any) -> str:
    """Return a short text for the value of an option, such as "guidance scale 4"."""
    number = isinstance(value, float)
    text = f"{value:g}" if number else "as usual" if value is None else str(value)
    return f"{option.replace('_', ' ')} {text or 'empty'}"


def parse_axis(text: str) -> Axis:
    """Read an axis from OPTION=VALUE,VALUE.

    Raises:
        UserError: there is no such option, a value is of another type, or one stands there twice.
    """
    name, found, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not found or name not in VARIED:
        hint = did_you_mean(name, VARIED)
        raise UserError(
            "an axis of a grid is OPTION=VALUE,VALUE,..., such as 'guidance_scale=1,4,8', and not "
            f"{shown(text)}.{hint} Options: {', '.join(map(shown, VARIED))}."
        )
    check_prompt(values, f"the axis {name}")
    if name == "seed":
        read: list[Any] = [str(seed) for seed in parse_seeds(values, 1)]
    else:
        [words] = csv.reader([values.replace("\n", " ")], skipinitialspace=True) or [[]]
        read = [read_value(name, word.strip()) for word in words]
    if len(set(read)) < len(read) or not read:
        raise UserError(f"the axis {shown(text)} needs one or more values, each of them once.")
    return Axis(name, tuple(read), f"{name}={values}")


def read_value(name: str, text: str) -> Any:
    """Read one value of an option.

    Raises:
        UserError: it is of another type than the option.
    """
    if name == PROMPT:
        return text
    kinds = kinds_of(name)
    try:
        if str in kinds:
            return text
        if bool in kinds:
            return SWITCH[text.lower()]
        number = int(text) if int in kinds else float(text)
        if not isfinite(number):
            raise ValueError
        return number
    except (ValueError, KeyError):
        needed = "true or false" if bool in kinds else "a whole number" if int in kinds else ""
        raise UserError(
            f"the axis {name} has the value {shown(text)}; it must be {needed or 'a number'}."
        ) from None


@dataclass(frozen=True)
class OptionGrid:
    """One picture for each pair of values: x from left to right, y from top to bottom."""

    x: Axis | None
    y: Axis | None

    def __post_init__(self):
        """Raise UserError for two axes of one option, and for too many pictures."""
        if self.x is not None and self.y is not None and self.x.option == self.y.option:
            raise UserError(f"both axes of the grid are {self.x.option}; choose another for one.")
        columns, rows = self.shape
        if columns * rows > MAX_GRID:
            raise UserError(
                f"a grid of {columns} x {rows} pictures is asked for, and it holds {MAX_GRID} at "
                "most. Leave out some values."
            )

    @property
    def axes(self) -> list[Axis]:
        return [axis for axis in (self.x, self.y) if axis is not None]

    def named_axes(self) -> dict[str, Axis]:
        """Return the axes by the names that records and flags have for them."""
        named = {"grid_x": self.x, "grid_y": self.y}
        return {name: axis for name, axis in named.items() if axis is not None}

    def caption(self, number: int) -> str:
        """Return the values of the picture of this number, counted row by row."""
        row, column = divmod(number, self.shape[0])
        places = ((self.x, column), (self.y, row))
        values = [axis.values[k] for axis, k in places if axis is not None]
        return ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)

    @property
    def has_prompts(self) -> bool:
        return any(axis.option == PROMPT for axis in self.axes)

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows."""
        x, y = ([None] if axis is None else axis.values for axis in (self.x, self.y))
        return len(x), len(y)

    def entries(self, entry: PromptEntry) -> list[PromptEntry]:
        """List what is drawn, row by row.

        Args:
            entry: has the prompt and the options that the axes leave as they are.

        Raises:
            UserError: an axis replaces a prompt that is given, options do not go together, or the
                entry asks for several pictures.
        """
        self._check(entry)
        found: list[PromptEntry] = []
        for y_value in [None] if self.y is None else self.y.values:
            for x_value in [None] if self.x is None else self.x.values:
                values = {}
                for axis, value in ((self.y, y_value), (self.x, x_value)):
                    if axis is not None:
                        values[axis.option] = value
                found.append(self._cell(entry, values))
        return found

    def _cell(self, entry: PromptEntry, values: dict[str, Any]) -> PromptEntry:
        prompt = values.pop(PROMPT, entry.prompt)
        place = ", ".join(label_of(name, value) for name, value in values.items())
        with error_location(place):
            options = replace(entry.options, **values)
            check_options(options)
        return PromptEntry(prompt, options, has_own_seed=True, location=place)

    def _check(self, entry: PromptEntry) -> None:
        varied = [axis.option for axis in self.axes]
        if PROMPT in varied and entry.prompt:
            raise UserError(
                f"the prompts of the grid are those of its axis; leave out {shown(entry.prompt)}."
            )
        seeds = 1 if "seed" in varied else len(parse_seeds(entry.options.seed, 1))
        if entry.options.count > 1 or seeds > 1:
            raise UserError(
                "a grid has one picture for each pair of values; leave out --count, and give one "
                "--seed, or let an axis vary it."
            )

    def finish(
        self, session: GenerationSession, entry: PromptEntry, pictures: Sequence[Image.Image]
    ) -> tuple[Image.Image, dict[str, Any]]:
        """Return the pictures, row by row, as one picture with labels, and its record.

        entry: what `entries` was given.
        """
        columns = [""] if self.x is None else self.x.labels
        rows = [""] if self.y is None else self.y.labels
        picture = labeled_grid(pictures, columns, rows, entry.prompt)
        [base] = expand([replace(entry, has_own_seed=True)])
        axes = {name: axis.text for name, axis in self.named_axes().items()}
        return picture, {**session.record(base), **axes}


def parse_grid(x: str, y: str) -> OptionGrid | None:
    """Read the axes of a grid; None if both texts are empty.

    Raises:
        UserError: see `parse_axis` and `OptionGrid`.
    """
    axes = [parse_axis(text) if text.strip() else None for text in (x, y)]
    return None if axes == [None, None] else OptionGrid(*axes)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str]:
    """Say what differs between two settings, for a label of each.

    Raises:
        UserError: they are equal.
    """
    differing = [name for name in first if first[name] != second[name]]
    if not differing:
        raise UserError("both sides are the same. Change a setting or the model of one of them.")
    left, right = (
        "\n".join(
            str(side[name]) if name == "model" else label_of(name, side[name]) for name in differing
        )
        for side in (first, second)
    )
    return left, right


def settings_of(options: GenerationOptions) -> dict[str, Any]:
    """Return all options by name, but for those that say which pictures are drawn."""
    return {name: getattr(options, name) for name in OPTION_TYPES if name not in ("seed", "count")}


# The labeled picture.


def labeled_grid(
    pictures: Sequence[Image.Image],
    columns: Sequence[str],
    rows: Sequence[str],
    title: str = "",
    *,
    below: bool = False,
) -> Image.Image:
    """Return pictures, given row by row, as one picture with a title and labels at both sides.

    Pictures smaller than a label are enlarged by a whole factor, so that no pixel is blurred.

    below: write the labels of the columns under the pictures and not above them.

    Raises:
        UserError: the result would have too many pixels.
    """
    font = ImageFont.load_default(FONT_SIZE)
    factor = enlargement(pictures, SMALLEST_CELL)
    width, height = (factor * max(picture.size[k] for picture in pictures) for k in (0, 1))
    left = [wrapped(text, font, LONGEST_ROW_LABEL) for text in rows]
    labels = [wrapped(text, font, width) for text in columns]
    x_0 = GAP + int(max((font.getlength(line) for lines in left for line in lines), default=0))
    x_0 += GAP if any(rows) else 0
    full = x_0 + len(columns) * (width + GAP)
    head = wrapped(title, font, full - 2 * GAP)
    y_0 = GAP + LINE * len(head) + (GAP if head else 0)
    lines_height = LINE * max(map(len, labels))
    top = y_0 if below else y_0 + lines_height
    bottom = top + GAP // 2 + len(rows) * (height + GAP)
    size = full, bottom + (lines_height if below else 0)
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"a grid of {len(columns)} x {len(rows)} pictures of {width}x{height} is too large for "
            "one picture. Leave out some values."
        )
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    write(pen, font, head, GAP, GAP)
    for k, lines in enumerate(labels):
        write(pen, font, lines, x_0 + k * (width + GAP), bottom - GAP // 2 if below else y_0)
    for k, lines in enumerate(left):
        y = top + GAP // 2 + k * (height + GAP)
        write(pen, font, lines, GAP, y + max(0, height - LINE * len(lines)) // 2)
    for k, picture in enumerate(enlarge([on_paper(each) for each in pictures], factor)):
        row, column = divmod(k, len(columns))
        place = (x_0 + column * (width + GAP), top + GAP // 2 + row * (height + GAP))
        canvas.paste(picture, place)
    return canvas


def enlargement(pictures: Sequence[Image.Image], smallest: int) -> int:
    """Return the whole factor by which a cell that holds all pictures becomes large enough.

    smallest: side of the cell in pixels.
    """
    sides = [max(picture.size[k] for picture in pictures) for k in (0, 1)]
    return max(1, -(-smallest // min(sides)))


def enlarge(pictures: Sequence[Image.Image], factor: int) -> list[Image.Image]:
    """Enlarge pictures by a whole factor, so that no pixel is blurred."""
    return [
        picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
        for picture in pictures
    ]


def on_paper(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB; what is transparent has the color of the paper."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    paper = Image.new("RGBA", picture.size, (*PAPER, 255))
    return Image.alpha_composite(paper, picture).convert("RGB")


def write(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    lines: Sequence[str],
    x: int,
    y: int,
) -> None:
    for k, line in enumerate(lines):
        pen.text((x, y + k * LINE), line, INK, font)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines that are not wider than `width`; words that are, too."""
    lines: list[str] = []
    for paragraph in text.split("\n", MOST_LINES):
        line = ""
        for word in one_line(paragraph, LONGEST_LABEL).split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
            while (fits := fitting(line, font, width)) < len(line):
                lines.append(line[:fits])
                line = line[fits:]
        if line:
            lines.append(line)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][:-3] + "..."]
    return lines


def fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> int:
    """Return how many characters of a line fit, at least one."""
    if font.getlength(line) <= width:
        return len(line)
    count = 1
    while font.getlength(line[: count + 1]) <= width:
        count += 1
    return count
