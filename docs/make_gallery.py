"""python docs/make_gallery.py --only guidance walks

Draws docs/gallery.md and the pictures in docs/gallery by a model, the shipped one if none is given.
Every picture is drawn by a call of sample.py, and the page prints these calls. Start it in the
checkout. For 64 pixels it takes about half an hour on one core of a CPU.

A model whose captions name styles, or are written in several languages, is shown with these, too:

    python docs/make_gallery.py --styles openmoji twemoji noto fluent --languages de es zh ja ar

Nothing is chosen by its looks: prompts are fixed lists, and seeds count from 0.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from PIL import Image

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # runs from the checkout, uninstalled

from commands.sample import DEMO
from docs.gallery_sections import GIVEN, MASKS, SECTIONS, Gallery, introduction
from docs.gallery_sheets import Sheet, numbered, quoted
from foundation.errors import UserError, unknown_name
from foundation.files import write_text
from generation.options import DEFAULTS, Scale
from generation.session import GenerationSession
from training.cli import parse, run_main
from training.device import pick_device
from training.flags import Groups, Positive, flag_name

PAGE = "gallery.md"


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {
        "model": ("model", "styles", "languages"),
        "pictures": ("prompts", "words", "steps", "guidance_scale"),
        "output": ("only", "out"),
    }

    model: Path = DEMO  # run folder or model folder
    # styles that the captions of its training name, as in "rocket, noto style"
    styles: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()  # languages of these captions besides English
    prompts: Path = Path("docs/gallery-prompts.txt")  # of the large grid, one per line
    words: Path = Path("docs/single-word-prompts.txt")  # of the section of single words
    steps: Positive[int] = DEFAULTS["steps"]  # of the sampler, where they are not varied
    guidance_scale: Scale = DEFAULTS["guidance_scale"]  # where it is not varied
    only: tuple[str, ...] = ()  # sections whose pictures are drawn; left out: all of them
    out: Path = Path("docs")  # folder to write: gallery.md, and gallery/ with the pictures


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    for name in config.only:
        if name not in SECTIONS:
            raise unknown_name(name, list(SECTIONS), "section")
    session = GenerationSession(config.model, pick_device("auto"))
    gallery = make_gallery(config, session.pipeline.size)
    page = page_text(gallery, command_of(config))
    for name in config.only:
        if not sheets(gallery, name):
            raise UserError(f"the section {name} is left out; ask for it by --{name}.")
    gallery.folder.mkdir(parents=True, exist_ok=True)
    write_inputs(gallery, session)
    for name in config.only or SECTIONS:
        for sheet in sheets(gallery, name):
            sheet.draw(session, gallery.folder / sheet.name)
            print(f"wrote {gallery.folder / sheet.name}")
    write_text(config.out / PAGE, page)


def make_gallery(config: Config, size: int) -> Gallery:
    """Return what the flags ask for, for a model whose pictures have this side."""
    values = {name: value for name, value in vars(config).items() if name != "only"}
    return Gallery(**values, size=size)


def command_of(config: Config) -> str:
    """Return the command that makes the whole page, as the page prints it."""
    words = ["python", "docs/make_gallery.py"]
    for field in fields(Config):
        value = getattr(config, field.name)
        if field.name != "only" and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag_name(field.name), *map(str, values)]
    return " ".join(map(quoted, words))


def sheets(gallery: Gallery, section: str) -> list[Sheet]:
    return [part for part in SECTIONS[section](gallery) if isinstance(part, Sheet)]


def page_text(gallery: Gallery, command: str) -> str:
    """Return the page. It depends on the flags and the model's size, not on the pictures.

    command: it makes the page.
    """
    parts = introduction(gallery, command)
    parts += [part for make in SECTIONS.values() for part in make(gallery)]
    texts = [
        part.markdown(gallery.folder.name) if isinstance(part, Sheet) else part for part in parts
    ]
    return "\n\n".join(texts) + "\n"


def write_inputs(gallery: Gallery, session: GenerationSession) -> None:
    """Write the files that calls read: pictures, masks, single words and the prompts of walks."""
    for name, prompt in GIVEN.items():
        with tempfile.TemporaryDirectory() as temporary:
            [drawn] = numbered(gallery.call(prompt).draw(session, Path(temporary, name)))
            shutil.copy(drawn, gallery.folder / f"{name}.png")
    for name, box in MASKS.items():
        mask = Image.new("L", (gallery.size, gallery.size))
        mask.paste(255, tuple(round(gallery.size * side) for side in box))
        mask.save(gallery.folder / f"{name}.png")
    for name, prompts in gallery.words_in_styles().items():
        write_text(gallery.folder / f"{name}.txt", "".join(f"{prompt}\n" for prompt in prompts))
    for name, prompts in gallery.walks().items():
        lines = [json.dumps({"prompt": prompt, "seed": 0}) + "\n" for prompt in prompts]
        write_text(gallery.folder / f"{name}.jsonl", "".join(lines))


if __name__ == "__main__":
    run_main(main, Config)
