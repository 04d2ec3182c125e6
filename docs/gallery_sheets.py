"""Sheets for docs/make_gallery.py: calls of sample.py, and a file of the pictures they drew."""

import io
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageSequence

from commands.flags.sample import Config
from commands.sample import run
from foundation.files import atomic_file
from generation.metadata import read_record
from generation.session import GenerationSession
from generation.video import encode_gif
from generation.xy_grid import GAP, PAPER, labeled_grid
from training.cli import parse

COLORS = 256  # of a sheet
FPS = 12  # frames per second
SMALLEST_SIDE = 128  # pixels; smaller animations are enlarged by a whole factor
GRID_FILE = "grid-0000.png"  # that sample.py writes


@dataclass(frozen=True)
class Call:
    """A call of sample.py: its arguments, without its output folder."""

    words: tuple[str, ...]

    def command(self, folder: str) -> str:
        """Return the command as a page prints it."""
        return " ".join(map(quoted, ("python", "sample.py", *self.words, "--out", folder)))

    def draw(self, session: GenerationSession, folder: Path) -> Path:
        """Draw the pictures into a new folder; return it.

        session: the model that the command opens.
        """
        run(parse(Config, [*self.words, "--out", str(folder)], None), session)
        return folder


Finish = Callable[[Sequence[Path]], bytes]  # folders that calls wrote -> content of a file


@dataclass(frozen=True)
class Sheet:
    """A file of pictures.

    Args:
        name: of the file.
        shows: what is on it, for who cannot see it.
        calls: they draw what is on it.
        finish: makes the file of the folders that the calls wrote.
    """

    name: str
    shows: str
    calls: Sequence[Call]
    finish: Finish

    def draw(self, session: GenerationSession, file: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folders = [
                call.draw(session, Path(temporary, str(k))) for k, call in enumerate(self.calls)
            ]
            content = self.finish(folders)
        with atomic_file(file) as partial:
            partial.write_bytes(content)

    def markdown(self, folder: str) -> str:
        """Return the picture, which lies in `folder`, and its commands as a page has them."""
        stem = Path(self.name).stem
        names = [stem] if len(self.calls) == 1 else [f"{stem}-{k}" for k in range(len(self.calls))]
        commands = (
            f"    {call.command(f'samples/{name}')}"
            for call, name in zip(self.calls, names, strict=True)
        )
        return f"![{self.shows}]({folder}/{self.name})\n\n" + "\n".join(commands)


def quoted(word: str) -> str:
    """Quote a word of a command, by double quotes where these suffice."""
    if re.fullmatch(r"[\w ',=.:/-]*", word) and re.search(r"[ ']", word):
        return f'"{word}"'
    return word if re.fullmatch(r"[\w,=.:/-]+", word) else shlex.quote(word)


def prompt_axis(prompts: Sequence[str]) -> str:
    """Return an axis of a grid, for --grid-x and --grid-y, that varies the prompt."""
    return "prompt=" + ",".join(f'"{each}"' if "," in each else each for each in prompts)


def numbered(folder: Path) -> list[Path]:
    """List the pictures that a call wrote, without grids."""
    return sorted(folder.glob("[0-9]*.png"))


# Ways to finish a sheet ---------------------------------------------------------------------------


def join_captioned(
    folders: Sequence[Path], columns: int, before: Sequence[tuple[Path, str]] = ()
) -> bytes:
    """Show pictures in rows, each with prompt and seed under it.

    before: pictures with captions that come first.
    """
    shown = [(load(file), caption) for file, caption in before]
    for folder in folders:
        shown += [(load(file), caption_of(file)) for file in numbered(folder)]
    rows = []
    for first in range(0, len(shown), columns):
        pictures, captions = zip(*shown[first : first + columns], strict=True)
        rows.append(labeled_grid(pictures, captions, [""], below=True))
    height = sum(row.height for row in rows) + (len(rows) - 1) * GAP
    sheet = Image.new("RGB", (max(row.width for row in rows), height), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return encode_sheet(sheet)


def caption_of(file: Path) -> str:
    """Return prompt and seed of a picture, as its record has them."""
    record = read_record(file)
    return f"{record['prompt'] or 'no prompt'}, seed {record['seed']}"


def join_rows(folders: Sequence[Path], columns: Sequence[str], rows: Sequence[str]) -> bytes:
    """Show the pictures of each call in a row, with labels at both sides."""
    pictures = [load(file) for folder in folders for file in numbered(folder)]
    return encode_sheet(labeled_grid(pictures, columns, rows))


def take_grid(folders: Sequence[Path]) -> bytes:
    """Show the labeled grid that one call wrote."""
    [folder] = folders
    return encode_sheet(load(folder / GRID_FILE))


def join_enlarged(folders: Sequence[Path], originals: Sequence[Path]) -> bytes:
    """Show each original with its pixels repeated, enlarged by Lanczos, and as a call enlarged it.

    originals: one for each folder.
    """
    pictures = []
    for folder, original in zip(folders, originals, strict=True):
        [file] = numbered(folder)
        enlarged = load(file)
        for filter_ in (Image.Resampling.NEAREST, Image.Resampling.LANCZOS):
            pictures.append(load(original).resize(enlarged.size, filter_))
        pictures.append(enlarged)
    columns = ("repeated pixels", "Lanczos", "the model")
    return encode_sheet(labeled_grid(pictures, columns, [""] * len(originals)))


def enlarge_animation(folders: Sequence[Path]) -> bytes:
    """Return the animation that one call wrote, in pixels that are large enough to see."""
    [file] = (file for folder in folders for file in folder.glob("*.gif"))
    with Image.open(file) as animation:
        factor = max(1, -(-SMALLEST_SIDE // min(animation.size)))
        size = (factor * animation.width, factor * animation.height)
        frames = [
            frame.convert("RGB").resize(size, Image.Resampling.NEAREST)
            for frame in ImageSequence.Iterator(animation)
        ]
    return encode_gif(frames, FPS, {"enlarged_from": read_record(file)})


def load(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def encode_sheet(sheet: Image.Image) -> bytes:
    """Encode a sheet as a PNG of few colors."""
    buffer = io.BytesIO()
    method = Image.Quantize.MAXCOVERAGE  # of white paper, the others keep too many shades
    few = sheet.quantize(COLORS, method, kmeans=1, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
