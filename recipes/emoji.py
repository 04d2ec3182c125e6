"""Makes a data folder of captioned emojis in four styles: OpenMoji, Twemoji, Noto and Fluent.

    python recipes/emoji.py data/emoji --size 128
    python train_vae.py --data data/emoji/train --out runs/vae

Drawings: SVG from the npm packages @iconify-json/openmoji (CC BY-SA 4.0), twemoji (CC BY 4.0), noto
(Apache 2.0) and fluent-emoji-flat (MIT), rendered on white by resvg. `npm pack` fetches them.
Without npm or a network, give a folder that holds the four .tgz files: --packages FOLDER.

Captions: "rocket, noto style", "rocket", and the same in 13 more languages, with the names of
Unicode CLDR from the PyPI package emoji ("Rakete, noto style"). Each has its language beside it:
train_ldm.py --caption-languages en,de. Those that name a style are drawn three times as often as
"rocket", which belongs to several pictures.

About a tenth of the combinations of thing and style, and of person and skin tone, are not in train/
but in test/. A model has seen both parts of each, but never together. A hash of the caption
decides.

Almost half of the pictures are of persons with one of five skin tones. --skin-tones 0.2 leaves all
but a fifth of these out of train/, so that a training sees single things more often.

Needs: npm; pip install resvg-py emoji
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from tqdm import tqdm

if __name__ == "__main__":
    # Runs from the checkout, uninstalled. The folder of this script leaves the path: in it, `import
    # emoji` would find the script and not the package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from foundation.errors import UserError
from foundation.files import (
    atomic_folder,
    check_replaceable,
    explain_full_disk,
    read_json,
    write_json,
)
from recipes.drawings import (
    HELD_OUT,
    bare,
    caption_place,
    load_names,
    plain_name,
    render_svg,
    without_skin_tone,
)
from training.cli import parse, run_main
from training.flags import Fraction

MARK = "emoji.json"  # records what was made; a folder that holds it may be replaced
THRESHOLD = 0.12  # combinations whose hash is below it are candidates: a tenth is held out
PACKAGES = {  # style, as captions name it -> (npm package, version)
    "openmoji": ("@iconify-json/openmoji", "1.2.29"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
}
FILES = ("icons.json", "chars.json", "info.json")  # that are read from each package
LARGEST_FILE = 64 * 2**20  # bytes of one of them
LANGUAGES = ("de", "es", "fr", "it", "pt", "id", "tr", "ru", "fa", "ar", "ja", "ko", "zh")
WITH_STYLE, WITHOUT_STYLE = 3, 1  # weights of captions: how often they are drawn in training
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE = re.compile(rf"(?P<person>.+?)-(?P<tone>{'|'.join(TONES)})")
TONE_NUMBER = re.compile(r"(?P<person>.+)-tone(?P<number>[1-5])")
ATTRIBUTION = """\
The pictures in this folder are emojis of {style} by {author} ({url}).
License: {license}, {license_url}
Package: {package} {version}
Changed here: rendered to {size}x{size} pixels on white.
If you pass on the pictures, or what you adapt from them, keep this notice and follow the license.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    out: tyro.conf.Positional[Path]  # data folder to write
    size: int = 64  # side of the pictures, in pixels
    skin_tones: Fraction = 1.0  # share of the pictures with a skin tone that train/ keeps
    packages: Path | None = None  # folder with the .tgz files of the four npm packages


@dataclass(frozen=True)
class Style:
    """The content of one package.

    Args:
        icons: the drawings by name; each has an SVG `body`.
        box: left, top, width and height of the drawings, unless one has its own.
        characters: name -> the character, for the drawings that have one.
        info: author and license.
    """

    name: str
    icons: Mapping[str, Mapping[str, Any]]
    box: Mapping[str, float]
    characters: Mapping[str, str]
    info: Mapping[str, Any]


@dataclass
class Picture:
    """A rendered drawing; those of one style with equal pixels have the same thing."""

    style: str
    icon: str
    thing: str
    character: str | None
    file: Path

    @property
    def has_skin_tone(self) -> bool:
        return without_skin_tone(self.thing) != self.thing

    def is_held_out(self, held_out: set[tuple[str, str]]) -> bool:
        """Return whether one of its combinations is in `held_out`; then it belongs to test/."""
        return not held_out.isdisjoint({(self.style, self.thing), ("", self.thing)})


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if not 8 <= options.size <= 4096:
        raise UserError(f"--size {options.size} must be 8 to 4096 pixels.")
    check_packages()
    names = load_names(LANGUAGES)
    made = {
        "recipe": "emoji",
        "size": options.size,
        "packages": {name: version for name, version in PACKAGES.values()},
        "threshold": THRESHOLD,
        "skin_tones": options.skin_tones,
    }
    if made.items() <= read_json(options.out / MARK, default={}).items():
        print(f"{options.out} is there already, complete; nothing to do.")
        return
    check_replaceable(options.out, MARK)
    advice = "Nothing was written. Free some space, or choose another folder."
    with (
        tempfile.TemporaryDirectory() as temporary,
        explain_full_disk(options.out, advice),
        atomic_folder(options.out) as folder,
    ):
        styles = [
            read_style(style, unpack(style, options.packages, Path(temporary)))
            for style in PACKAGES
        ]
        pictures = render_all(styles, folder / "rendered", options.size)
        held_out = choose_held_out(pictures)
        kept = reduce_skin_tones(pictures, held_out, options.skin_tones)
        counts = write_splits(folder, kept, held_out, names)
        write_notices(folder, styles, options.size)
        write_json(folder / HELD_OUT, describe_held_out(held_out))
        write_json(folder / MARK, made | counts)
    print(f"{len(kept)} pictures of {options.size}x{options.size} pixels in 4 styles:")
    print(f"  {counts['train']} in train/, {counts['test']} in test/ ({HELD_OUT} lists why)")
    print(f"  check them with: python check.py {options.out}/train")


# Packages -----------------------------------------------------------------------------------------


def check_packages() -> None:
    """Raise a UserError if a package that this recipe needs is not installed."""
    try:
        import emoji  # noqa: F401  used by `load_names`; both are imported here to fail early
        import resvg_py  # noqa: F401  used by `render`
    except ModuleNotFoundError as error:
        raise UserError(
            f"the Python package {error.name} is not installed; this recipe needs two packages "
            "for names and rendering: pip install emoji resvg-py"
        ) from error


def unpack(style: str, packages: Path | None, temporary: Path) -> Path:
    """Return a new folder with the files of a style's package; fetch the package if necessary.

    Raises:
        UserError: it is not in the folder of packages, or cannot be fetched or read.
    """
    package, version = PACKAGES[style]
    file_name = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if packages is None:
        fetch(f"{package}@{version}", temporary)
    source = (packages or temporary) / file_name
    if not source.is_file():
        raise UserError(
            f"there is no {source}. On a machine with npm: npm pack {package}@{version}"
        )
    target = temporary / style
    target.mkdir()
    try:
        with tarfile.open(source, "r:gz") as archive:
            for name in FILES:
                member = archive.getmember(f"package/{name}")
                stream = archive.extractfile(member)
                if stream is None or member.size > LARGEST_FILE:
                    raise UserError(f"{source}: {name} is not a file, or too large.")
                (target / name).write_bytes(stream.read())
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise UserError(
            f"{source} is not a whole npm package ({error}); fetch it again."
        ) from error
    return target


def fetch(package: str, folder: Path) -> None:
    """Download an npm package as a .tgz file; nothing in it is run.

    Raises:
        UserError: there is no npm, or it fails.
    """
    npm = shutil.which("npm")
    advice = (
        "Install Node.js, or fetch the packages on another machine (npm pack NAME@VERSION: "
        + ", ".join("@".join(entry) for entry in PACKAGES.values())
        + ") and give their folder: --packages FOLDER"
    )
    if npm is None:
        raise UserError(f"{package} is fetched with npm, which is not installed. {advice}")
    done = subprocess.run(
        [npm, "pack", package, "--silent"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"npm cannot fetch {package}: {done.stderr.strip()[-500:]}\n{advice}")


def read_style(style: str, folder: Path) -> Style:
    """Read the files of a style's package."""
    icons, characters, info = (read_json(folder / name) for name in FILES)
    # The lowest code points of a name are written last: a name keeps its plainest character.
    names = sorted(characters.items(), key=lambda entry: len(entry[0]), reverse=True)
    return Style(
        name=style,
        icons=icons["icons"],
        box={key: icons.get(key, default) for key, default in BOX.items()},
        characters={name: from_code_points(code_points) for code_points, name in names},
        info=info,
    )


BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's defaults


def from_code_points(code_points: str) -> str:
    """Turn '1f469-200d-1f680' into the character."""
    return "".join(chr(int(code, 16)) for code in code_points.split("-"))


# Pictures -----------------------------------------------------------------------------------------


def render_all(styles: Sequence[Style], folder: Path, size: int) -> list[Picture]:
    """Write <folder>/<style>/<name>.png for every drawing."""
    pictures: list[Picture] = []
    total = sum(len(style.icons) for style in styles)
    with tqdm(total=total, desc="rendering", unit=" pictures", disable=None) as progress:
        for style in styles:
            (folder / style.name).mkdir(parents=True)
            same: defaultdict[bytes, list[Picture]] = defaultdict(list)  # pixels -> pictures
            for icon in sorted(style.icons):
                image = render(style, icon, size)
                file = folder / style.name / f"{icon}.png"
                image.save(file)
                character = style.characters.get(icon)
                thing = thing_of(icon, style.icons)
                same[hashlib.sha256(image.tobytes()).digest()].append(
                    Picture(style.name, icon, thing, character, file)
                )
                progress.update()
            for group in same.values():
                best = min(group, key=lambda picture: (picture.character is None, picture.icon))
                for picture in group:
                    picture.thing, picture.character = best.thing, best.character
                pictures += group
    return pictures


def render(style: Style, icon: str, size: int) -> Image.Image:
    """Render a drawing on white, with antialiasing, at the given size.

    Raises:
        UserError: it is not a drawing that resvg can render.
    """
    drawing = style.icons[icon]
    box = " ".join(str(drawing.get(key, value)) for key, value in style.box.items())
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{drawing["body"]}</svg>'
    )
    try:
        image = render_svg(size, svg_string=svg)
    except ValueError as error:
        raise UserError(f"{style.name}: {icon} cannot be rendered ({error}).") from error
    if image.size == (size, size):
        return image
    square = Image.new("RGB", (size, size), "white")  # a drawing that is not square
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def thing_of(icon: str, icons: Iterable[str]) -> str:
    """Return the name of a drawing in words, with older spellings of skin tones made equal."""
    if match := TONE_NUMBER.fullmatch(icon):
        icon = f"{match['person']}-{TONES[int(match['number']) - 1]}-skin-tone"
    elif (match := TONE.fullmatch(icon)) and f"{match['person']}-medium-light" in icons:
        icon = f"{icon}-skin-tone"
    elif icon[-1] in "23" and icon[:-1] in icons:
        icon = icon[:-1]  # a second drawing of the same thing
    return icon.replace("-", " ")


# Splits and captions ------------------------------------------------------------------------------


def choose_held_out(pictures: Sequence[Picture]) -> set[tuple[str, str]]:
    """Choose combinations: (style, thing), or ("", thing) for a person with a skin tone.

    Of each thing at most one style is chosen, and of each person at most one skin tone.
    """
    groups: defaultdict[tuple[bool, str], set[tuple[str, str]]] = defaultdict(set)
    for picture in pictures:
        style = "" if picture.has_skin_tone else picture.style
        person = without_skin_tone(picture.thing)
        groups[picture.has_skin_tone, person].add((style, picture.thing))
    candidates = [min(group, key=place) for group in groups.values() if len(group) > 1]
    return {combination for combination in candidates if place(combination) < THRESHOLD}


def reduce_skin_tones(
    pictures: Sequence[Picture], held_out: set[tuple[str, str]], share: float
) -> list[Picture]:
    """Keep this share of the pictures with a skin tone, and all others and those held out."""
    return [
        picture
        for picture in pictures
        if not picture.has_skin_tone
        or picture.is_held_out(held_out)
        or place((picture.style, picture.thing)) < share
    ]


def describe_held_out(held_out: set[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the captions of the combinations, as held-out.json lists them."""
    return {
        "thing and style": sorted(f"{thing}, {style} style" for style, thing in held_out if style),
        "person and skin tone": sorted(thing for style, thing in held_out if not style),
    }


def place(combination: tuple[str, str]) -> float:
    """Hash a combination to a number in [0, 1)."""
    style, thing = combination
    return caption_place(f"{thing}, {style} style" if style else thing)


def write_splits(
    folder: Path,
    pictures: Sequence[Picture],
    held_out: set[tuple[str, str]],
    names: Mapping[str, Mapping[str, str]],
) -> dict[str, int]:
    """Move the pictures to train/ and test/, with their captions; return how many are in each."""
    counts = {"train": 0, "test": 0}
    rows: dict[str, list[str]] = {split: [] for split in counts}
    for picture in pictures:
        split = "test" if picture.is_held_out(held_out) else "train"
        file_name = f"images/{picture.style}/{picture.icon}.png"
        target = folder / split / file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.file.rename(target)
        languages, texts, weights = zip(*captions(picture, names), strict=True)
        row = {
            "file_name": file_name,
            "text": texts,
            "caption_languages": languages,
            "caption_weights": weights,
        }
        rows[split].append(json.dumps(row, ensure_ascii=False) + "\n")
        counts[split] += 1
    for split, lines in rows.items():
        (folder / split).mkdir(exist_ok=True)
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(folder / "rendered")
    return counts


def captions(
    picture: Picture, names: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, str, int]]:
    """Yield (language, caption, weight).

    They are "<thing>, <style> style" and "<thing>" in English, then the former in every other
    language. Those without a style belong to up to four pictures, so they teach less and weigh
    less.
    """
    yield "en", f"{picture.thing}, {picture.style} style", WITH_STYLE
    yield "en", picture.thing, WITHOUT_STYLE
    entry = names.get(bare(picture.character or ""), {})
    for language in LANGUAGES:
        if language in entry:
            yield language, f"{plain_name(entry[language])}, {picture.style} style", WITH_STYLE


def write_notices(folder: Path, styles: Sequence[Style], size: int) -> None:
    """Write ATTRIBUTION-<style>.txt into the folder and into both splits."""
    for style in styles:
        package, version = PACKAGES[style.name]
        author, license = style.info["author"], style.info["license"]
        text = ATTRIBUTION.format(
            style=style.info["name"],
            author=author["name"],
            url=author["url"],
            license=license["title"],
            license_url=license["url"],
            package=package,
            version=version,
            size=size,
        )
        for target in (folder, folder / "train", folder / "test"):
            (target / f"ATTRIBUTION-{style.name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_main(main, Options)
