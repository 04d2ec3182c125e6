"""The sections of docs/gallery.md: what is drawn for each, and what the page says about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from os.path import relpath
from pathlib import Path

from commands.sample import DEMO
from docs.gallery_sheets import (
    COLORS,
    Call,
    Sheet,
    enlarge_animation,
    join_captioned,
    join_enlarged,
    join_rows,
    prompt_axis,
    take_grid,
)
from foundation.errors import UserError
from generation.options import DEFAULTS
from ldm.pipeline.io import read_model_provenance
from recipes.drawings import bare, load_names, plain_name
from training.flags import flag_name

PROMPTS = ("woman astronaut", "angry face", "three o'clock", "person biking")
EDITS = ("woman farmer", "woman vampire", "woman mage", "man police officer")
STATIONS = ("woman astronaut", "man farmer", "woman mage", "angry face", "woman astronaut")
GIVEN = {"given": "woman astronaut", "given-face": "angry face"}  # file of an input picture: prompt
MASKS = {"mask-right": (0.5, 0, 1, 1), "mask-top": (0, 0, 1, 0.5)}  # what is drawn anew, in sides
THINGS = {  # English name -> character, by which its names in other languages are found
    "rocket": "\U0001f680",
    "red heart": "\u2764",
    "pizza": "\U0001f355",
    "cat face": "\U0001f431",
    "rainbow": "\U0001f308",
    "umbrella with rain drops": "\u2614",
    "face with tears of joy": "\U0001f602",
    "woman astronaut": "\U0001f469\u200d\U0001f680",
}
UNKNOWN = (  # no emoji shows this, so no caption says it
    *("green cat", "blue banana", "two red hearts", "seven stars", "cat on a bicycle"),
    *("astronaut riding a horse", "house on fire", "red circle left of a blue square"),
    *("the word HELLO", "photograph of a woman", "man with three arms", "sunset behind a castle"),
)
SCALES = "0,1,2,4,6,8,12"  # of guidance
STEP_COUNTS = "2,3,5,8,12,25,50"
STRENGTHS = "0.2,0.4,0.6,0.8,1"
FRAMES = 6  # of a walk, from one picture to the next
UPSCALE = 4  # factor of enlargements
COLUMNS = 8  # of a sheet with many pictures


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What is shown, and where it is written.

    Args:
        model, styles, languages, prompts, words, steps, guidance_scale, out: the flags of
            docs/make_gallery.py.
        size: side of the model's pictures, in pixels.
    """

    model: Path
    styles: tuple[str, ...]
    languages: tuple[str, ...]
    prompts: Path
    words: Path
    steps: int
    guidance_scale: float
    out: Path
    size: int

    @property
    def folder(self) -> Path:
        return self.out / "gallery"

    def path(self, name: str) -> str:
        """Return the path of a file of the gallery, as commands have it."""
        return (self.folder / name).as_posix()

    def call(self, *texts: str, **flags: object) -> Call:
        """Make a call of sample.py from prompts and flags.

        Steps and guidance scale are those of the gallery, unless the flags set or vary them.
        """
        for name in ("steps", "guidance_scale"):
            varied = str(flags.get("grid_x", "")).startswith(f"{name}=")
            if getattr(self, name) != DEFAULTS[name] and not varied:
                flags.setdefault(name, getattr(self, name))
        if self.model != DEMO:
            flags["model"] = self.model.as_posix()
        words: list[object] = [*texts]
        for name, value in flags.items():
            words += [flag_name(name), *(value if isinstance(value, tuple) else (value,))]
        return Call(tuple(map(str, words)))

    def walks(self) -> Mapping[str, Sequence[str]]:
        """Return the prompts of walks from prompt to prompt, by the name of their file."""
        thing, *_ = THINGS
        found: dict[str, Sequence[str]] = {"walk-prompts": STATIONS}
        if self.styles:
            ways = (*self.styles, self.styles[0])
            found["walk-styles"] = [in_style(thing, style) for style in ways]
        return found

    def words_in_styles(self) -> Mapping[str, Sequence[str]]:
        """Return the captions of the single words in each style, by the name of their file."""
        names = self.words.read_text(encoding="utf-8").splitlines()
        return {
            f"words-{style}": [in_style(name, style) for name in names] for style in self.styles
        }

    def names_of_things(self, language: str) -> list[str]:
        """Return the names of all things in a language.

        Raises:
            UserError: the package emoji is not installed, or lacks the language or a name.
        """
        if find_spec("emoji") is None:
            raise UserError(
                "--languages needs the package emoji, which has the names of things in them: "
                "pip install emoji"
            )
        names = load_names([language])
        lacking = [
            each for each, character in THINGS.items() if language not in names[bare(character)]
        ]
        if lacking:
            raise UserError(f"the package emoji has no {language} name of {lacking[0]}.")
        return [plain_name(names[bare(character)][language]) for character in THINGS.values()]


Parts = list[str | Sheet]  # paragraphs and sheets, in the order of the page


def in_style(thing: str, style: str) -> str:
    """Return the caption of a thing in a style, as recipes/emoji.py writes it."""
    return f"{thing}, {style} style"


def introduction(gallery: Gallery, command: str) -> Parts:
    """Return the beginning of the page, which `command` makes."""
    model, card = gallery.model.as_posix(), gallery.model / "README.md"
    about = f"[`{model}`]({relpath(card, gallery.out)})" if card.is_file() else f"`{model}`"
    data = read_model_provenance(gallery.model).get("config", {}).get("data")
    trained = f", which was trained on `{data}`," if data else ""
    return [
        "# Gallery",
        f"What the model {about}{trained} draws, good and bad. This page and its pictures are "
        f"written by `{command}`; do not edit it here.",
        "- **Every picture can be drawn again.** Under each sheet are the commands that drew it. "
        "Picture k of a command has seed k; in a grid all have seed 0. On the same kind of CPU the "
        "pixels are equal.\n"
        "- **Nothing is chosen by its looks.** Prompts are fixed lists, seeds count from 0, and no "
        "picture is left out.\n"
        f"- **Settings**, where a command has no others: {gallery.steps} steps of the sampler "
        f"`{DEFAULTS['sampler']}`, guidance scale {gallery.guidance_scale:g}.\n"
        f"- The model draws {gallery.size}x{gallery.size} pixels. They are enlarged here without "
        f"smoothing, and each sheet is reduced to {COLORS} colors.",
    ]


def large(gallery: Gallery) -> Parts:
    file = gallery.prompts.as_posix()
    finish = partial(join_captioned, columns=COLUMNS)
    return [
        "## A large grid",
        f"The prompts are the lines of `{file}`: every 62nd of the 3,963 names in the package "
        "emoji 2.16, in the order of Unicode, from which the captions of the emojis are made. The "
        "picture in README.md has those kinds alone that the data has many of.",
        Sheet("large.png", "A picture for each prompt", [gallery.call(prompts=file)], finish),
    ]


def words(gallery: Gallery) -> Parts:
    file = gallery.words.as_posix()
    finish = partial(join_captioned, columns=COLUMNS)
    if gallery.styles:
        return [
            "## Single words",
            f"The words are the lines of `{file}`, each in every style. Few of these things look "
            "like others in the data, so they are the hardest part of it.",
            *(
                Sheet(
                    f"words-{style}.png",
                    f"A picture for each word, {style} style",
                    [gallery.call(prompts=gallery.path(f"words-{style}.txt"))],
                    finish,
                )
                for style in gallery.styles
            ),
        ]
    return [
        "## Single words",
        f"The prompts are the lines of `{file}`: every eleventh of the 508 names of one word in "
        "the package emoji 2.16, in the order of Unicode. Few of these things look like others in "
        "the data, so they are the hardest part of it.",
        Sheet("words.png", "A picture for each word", [gallery.call(prompts=file)], finish),
    ]


def seeds(gallery: Gallery) -> Parts:
    call = gallery.call(*PROMPTS[:2], count=COLUMNS)
    finish = partial(join_captioned, columns=COLUMNS)
    return [
        "## One prompt, many seeds",
        "The seed decides what the prompt leaves open.",
        Sheet("seeds.png", "Eight pictures for each of two prompts", [call], finish),
    ]


def styles(gallery: Gallery) -> Parts:
    heading, names = "## Styles by things", gallery.styles
    if not names:
        return [
            heading,
            "Left out: the program got no `--styles`. They are for models whose captions name a "
            "style, as those of `recipes/emoji.py` do.",
        ]
    prompts = [[in_style(thing, style) for thing in THINGS] for style in names]
    calls = [gallery.call(grid_x=prompt_axis(row)) for row in prompts]
    walk = gallery.call(prompts=gallery.path("walk-styles.jsonl"), interpolate=FRAMES)
    return [
        heading,
        "A row for each style, a column for each thing. All pictures begin with the same noise.",
        Sheet(
            "styles.png",
            "Things in several styles",
            calls,
            partial(join_rows, rows=names, columns=[*THINGS]),
        ),
        "From style to style, and back:",
        Sheet("walk-styles.gif", "A thing that changes its style", [walk], enlarge_animation),
    ]


def languages(gallery: Gallery) -> Parts:
    heading, codes = "## Languages", list(dict.fromkeys(("en", *gallery.languages)))
    if not gallery.languages:
        return [
            heading,
            "Left out: the program got no `--languages` besides English. "
            "[languages.md](languages.md) is about models that know several.",
        ]
    rows = [gallery.names_of_things(code) for code in codes]
    if gallery.styles:  # in which the recipe writes all captions that are not English
        rows = [[in_style(name, gallery.styles[0]) for name in row] for row in rows]
    calls = [gallery.call(grid_x=prompt_axis(row)) for row in rows]
    return [
        heading,
        "A row for each language, a column for each thing, by its name in Unicode CLDR. All "
        "pictures begin with the same noise.",
        Sheet(
            "languages.png",
            "Things in several languages",
            calls,
            partial(join_rows, rows=codes, columns=[*THINGS]),
        ),
    ]


def guidance(gallery: Gallery) -> Parts:
    call = gallery.call(grid_x=f"guidance_scale={SCALES}", grid_y=prompt_axis(PROMPTS))
    return [
        "## Guidance",
        "A scale of 0 ignores the prompt, 1 follows it plainly. Scales that are too high make "
        "colors hard and break shapes ([sampling.md](sampling.md#guidance)).",
        Sheet("guidance.png", "Four prompts with guidance from 0 to 12", [call], take_grid),
    ]


def steps(gallery: Gallery) -> Parts:
    call = gallery.call(grid_x=f"steps={STEP_COUNTS}", grid_y=prompt_axis(PROMPTS))
    return [
        "## Steps",
        "From 2 to 50 calls of the network ([sampling.md](sampling.md#samplers)).",
        Sheet("steps.png", "Four prompts with 2 to 50 steps", [call], take_grid),
    ]


def walks(gallery: Gallery) -> Parts:
    prompts = gallery.call(prompts=gallery.path("walk-prompts.jsonl"), interpolate=FRAMES)
    noise = gallery.call(PROMPTS[0], seed="0,1,2,0", interpolate=FRAMES)
    free = gallery.call(guidance_scale=0, seed="0,1,2,3,0", interpolate=FRAMES)
    return [
        "## Walks through the latent space",
        f"From prompt to prompt, with the noise of one seed: {', '.join(STATIONS)}. The context "
        "changes along a straight line ([tasks.md](tasks.md#between-pictures)).",
        Sheet(
            "walk-prompts.gif", "A picture that changes its prompt", [prompts], enlarge_animation
        ),
        f"From noise to noise along arcs, with the prompt *{PROMPTS[0]}*:",
        Sheet("walk-noise.gif", "A picture that changes its noise", [noise], enlarge_animation),
        "From noise to noise without a prompt:",
        Sheet("walk-free.gif", "Pictures of any kind on a way", [free], enlarge_animation),
    ]


def edits(gallery: Gallery) -> Parts:
    given, source = gallery.path("given.png"), GIVEN["given"]
    first = [(Path(given), "given")]
    inverted = {"style_image": given, "source_prompt": source}
    edit = gallery.call(*EDITS, **inverted)
    vary = gallery.call(source, count=5, variation=0.4, **inverted)
    axes = {"grid_x": f"strength={STRENGTHS}", "grid_y": prompt_axis(EDITS)}
    noised = gallery.call(init_image=given, **axes)
    finish = partial(join_captioned, columns=len(EDITS) + 2, before=first)
    return [
        "## Edits",
        f"Everything here begins with `{given}`:",
        f"    {gallery.call(source).command('samples/given')}",
        "By inversion: DDIM finds the noise from which the model would have drawn the picture, and "
        "another prompt draws from it ([tasks.md](tasks.md#editing-style-and-variations)).",
        Sheet("edits.png", "A picture, and four edits of it", [edit], finish),
        "Variations: this noise, turned towards that of each seed.",
        Sheet("variations.png", "A picture, and five variations", [vary], finish),
        "Image to image: noise is added, and removed again with another prompt. The strength says "
        "how much ([tasks.md](tasks.md#image-to-image)).",
        Sheet("image-to-image.png", "Four prompts with five strengths", [noised], take_grid),
    ]


def inpainting(gallery: Gallery) -> Parts:
    given = gallery.path("given.png")
    parts: Parts = [
        "## Inpainting",
        "The white part of a mask is drawn anew, the black part stays as it is to the bit "
        "([tasks.md](tasks.md#inpainting-and-outpainting)).",
    ]
    for name in MASKS:
        mask, sheet = gallery.path(f"{name}.png"), name.replace("mask", "inpainting")
        finish = partial(
            join_captioned,
            columns=len(EDITS) + 2,
            before=[(Path(given), "given"), (Path(mask), "mask")],
        )
        call = gallery.call(*EDITS, init_image=given, mask=mask)
        parts.append(Sheet(f"{sheet}.png", "A picture, a mask, and four pictures", [call], finish))
    wider = gallery.call(*EDITS[:3], init_image=given, outpaint=(0, 0, gallery.size, 0))
    finish = partial(join_captioned, columns=3)
    return [
        *parts,
        "Outpainting: the same area again is added at the right.",
        Sheet("outpainting.png", "Three pictures that were extended", [wider], finish),
    ]


def enlargements(gallery: Gallery) -> Parts:
    files = [gallery.path(f"{name}.png") for name in GIVEN]
    flags = {"guidance_scale": 0, "upscale": UPSCALE, "strength": 0.2, "window": gallery.size}
    calls = [gallery.call(init_image=file, **flags) for file in files]
    finish = partial(join_enlarged, originals=[Path(file) for file in files])
    wide = gallery.call(PROMPTS[0], width=5 * gallery.size, window=gallery.size)
    return [
        "## Enlargements",
        f"{UPSCALE} times as large: enlarged by a filter, then redrawn in overlapping windows "
        "([tasks.md](tasks.md#super-resolution)).",
        Sheet("enlargements.png", "Two pictures, enlarged in three ways", calls, finish),
        "Five times as wide, in overlapping windows:",
        Sheet("wide.png", "A wide picture", [wide], partial(join_captioned, columns=1)),
    ]


def failures(gallery: Gallery) -> Parts:
    given, side = gallery.path("given.png"), 2 * gallery.size
    unknown = gallery.call(*UNKNOWN)
    larger = gallery.call(*PROMPTS[:2], height=side, width=side)
    flags = {"init_image": given, "upscale": 2, "strength": 0.8, "window": gallery.size}
    windows = gallery.call(GIVEN["given"], **flags)
    before = [(Path(given), "given")]
    return [
        "## Failures",
        "Besides those above: single words, too few steps, too little and too much guidance.",
        "**What no caption said.** No emoji shows these things.",
        Sheet("unknown.png", "Twelve pictures", [unknown], partial(join_captioned, columns=6)),
        f"**Other sizes than in training.** {side}x{side} pixels at once, without windows.",
        Sheet("larger.png", "Two pictures", [larger], partial(join_captioned, columns=2)),
        "**The whole prompt in each window.** With a high strength, every window draws the subject "
        "again. A low strength and a guidance scale of 0, as above, prevent it.",
        Sheet(
            "windows.png",
            "An enlarged picture",
            [windows],
            partial(join_captioned, columns=2, before=before),
        ),
    ]


SECTIONS: dict[str, Callable[[Gallery], Parts]] = {
    "large": large,
    "words": words,
    "seeds": seeds,
    "styles": styles,
    "languages": languages,
    "guidance": guidance,
    "steps": steps,
    "walks": walks,
    "edits": edits,
    "inpainting": inpainting,
    "enlargements": enlargements,
    "failures": failures,
}
