"""Makes a data folder of captioned crops of photographs: a small test of training on photographs.

    python recipes/photographs.py data/photographs --size 128
    python train_vae.py --preset small-128 --data data/photographs/train --out runs/vae-photographs

Photographs: 47 from four Debian packages of wallpapers and puzzles, from scikit-image and from
scikit-learn. Each gives the same number of square crops, at random places and of random sizes, from
the whole height to 1.5 times the size. `apt-get download` fetches the packages, and installs
nothing. On other systems, give a folder that holds the four .deb files: --packages FOLDER. They are
on https://packages.debian.org.

Six whole photographs are not in train/ but in test/.

The licenses allow to change and share the crops: Creative Commons (BY, BY-SA, CC0), GPL, LGPL and
the public domain. ATTRIBUTION.txt names the photographer and license of each.

Needs: pip install python-debian scikit-image scikit-learn
"""

import importlib.util
import io
import json
import lzma
import math
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image
from tqdm import tqdm

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # runs from the checkout, uninstalled

from foundation.errors import UserError
from foundation.files import (
    atomic_folder,
    check_replaceable,
    explain_full_disk,
    read_json,
    write_json,
)
from training.cli import parse, run_main
from training.flags import Positive

MARK = "photographs.json"  # records what was made; a folder that holds it may be replaced
DEBIAN = (
    "lomiri-wallpapers-16.04",
    "mate-backgrounds",
    "palapeli-data",
    "plasma-workspace-wallpapers",
)
LARGEST_FILE = 64 * 2**20  # bytes of one photograph
SMALLEST_CROP = 1.5  # times the size: a smaller one shows blur where a photograph has no detail
FOLDERS = {  # source -> where its photographs lie: in a Debian package, or in a Python package
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
    "palapeli-data": "usr/share/palapeli/collection",
    "plasma-workspace-wallpapers": "usr/share/wallpapers",
    "skimage": "data",
    "sklearn": "datasets/images",
}
PYPI = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
ATTRIBUTION = """\
The pictures in this folder are crops of photographs, resized to {size}x{size} pixels. If you pass
them on, or what you adapt from them, name the photographers and follow the licenses.

"""


@dataclass(frozen=True)
class Photograph:
    """A photograph in a package.

    Args:
        source: a Debian package, or the name under which a Python package is imported.
        file: its path below the folder of the source's photographs.
    """

    source: str
    file: str
    caption: str
    author: str
    license: str
    is_test: bool = False

    @property
    def name(self) -> str:
        """Return a name for files, which no other photograph has."""
        plain = self.file.removesuffix("/contents/images/2560x1600.jpg")
        return f"{self.source}-{Path(plain).stem}".lower().replace("_", "-")


def lomiri(
    file: str, caption: str, author: str, license: str = "CC BY 4.0", is_test: bool = False
) -> Photograph:
    name = f"{file}_by_{author.replace(' ', '_')}.jpg"
    return Photograph("lomiri-wallpapers-16.04", name, caption, author, license, is_test)


def mate(file: str, caption: str, author: str, is_test: bool = False) -> Photograph:
    return Photograph("mate-backgrounds", f"{file}.jpg", caption, author, "GPL-2+", is_test)


def palapeli(file: str, caption: str, author: str, is_test: bool = False) -> Photograph:
    return Photograph("palapeli-data", f"{file}.jpg", caption, author, "GPL-2+", is_test)


def plasma(
    folder: str, caption: str, author: str = "Risto Saukonpää", is_test: bool = False
) -> Photograph:
    file = f"{folder}/contents/images/2560x1600.jpg"
    return Photograph("plasma-workspace-wallpapers", file, caption, author, "LGPL-3", is_test)


PHOTOGRAPHS = (
    lomiri("Bridge", "cables of a bridge before a blue sky", "Sander Klootwijk", "CC BY-SA 4.0"),
    lomiri("Dragonfly", "leaves of a tree in the sun", "Bolly", "CC BY-SA 4.0"),
    lomiri("Picture_0B", "half a fig in a red bowl", "freespace"),
    lomiri("Picture_1A", "paint brushes of many colors", "freespace"),
    Photograph(
        "lomiri-wallpapers-16.04",
        "Wine_by_Jakkub_Mede.jpg",
        "wine on a table in a room",
        "Jakub Mede",
        "CC BY 4.0",
    ),
    lomiri("aitzgorri", "a meadow and an autumn forest below mountains", "Aitzol Berasategi"),
    lomiri("free", "a toy bird that hangs below a lamp", "Peter Nerlich", "CC BY-SA 4.0"),
    lomiri("friends", "two dogs at the window of a wooden house", "Aitzol Berasategi"),
    lomiri("greentock", "a gray clock", "Peter Nerlich", "CC BY-SA 4.0"),
    lomiri("life", "a stream between rocks in a forest", "Aitzol Berasategi"),
    lomiri("picosdeeuropa", "a path below rocky mountains", "Aitzol Berasategi", is_test=True),
    Photograph(
        "lomiri-wallpapers-16.04",
        "seeding_by_Clements_Engelhardt.jpg",
        "dandelions in the evening sun",
        "Clemens Engelhardt",
        "CC0 1.0",
    ),
    lomiri("sunset", "sunset over hills", "Aitzol Berasategi"),
    mate("Aqua", "a drop that falls into water", "Charles Barbin"),
    mate("Blinds", "a green leaf from near", "Lennart Poettering, Andrea Cimitan"),
    mate("Dune", "dry grass on a dune", "Marco Cogoni, Hylke Bons"),
    mate("FreshFlower", "an orange flower from near", "Jens Ansorg"),
    mate("Garden", "a red and yellow flower", "Charles Barbin", is_test=True),
    mate("GreenMeadow", "green grass", "Timothy Schellhase, Lapo Calamandrei"),
    mate("LadyBird", "a ladybird on a blade of grass", "Charles Barbin"),
    mate("RainDrops", "rain drops on green leaves", "blackcombwhistler07"),
    mate("Storm", "storm clouds over a road", "Sergey Nazarov"),
    mate("TwoWings", "two dandelion seeds", "Charles Barbin, Hylke Bons"),
    mate("Wood", "white wood", "Jean-François Fortin Tam"),
    mate("YellowFlower", "a yellow flower", "Charles Barbin"),
    palapeli("castle-maintenon", "a castle with towers", "Eric Pouhier"),
    palapeli("cincinnati-bridge", "a bridge with lights at night", "Derek Jensen", is_test=True),
    palapeli("citrus-fruits", "slices of citrus fruits", "US Department of Agriculture"),
    palapeli("european-honey-bee", "a honey bee on a violet flower", "John Severns"),
    palapeli("panther-chameleon-female", "a chameleon on a branch", "B. Navez and others"),
    plasma("BytheWater", "wooden planks by the water", "Maciej Wiklo"),
    plasma("ColdRipple", "a wooden pier in the fog"),
    plasma("ColorfulCups", "colorful paper cups", "Dmitri Popov"),
    plasma("DarkestHour", "fog over a lake at night"),
    plasma("EveningGlow", "boats on a shore in the evening", "Ian Hex"),
    plasma("FallenLeaf", "fallen leaves in autumn", "Martin Klapetek"),
    plasma("Grey", "a white building with curved lines", "Sigi Sagi"),
    plasma("Kite", "a kite in a blue sky"),
    plasma("OneStandsOut", "green moss from above", is_test=True),
    plasma("Path", "a path in a dark forest"),
    plasma("summer_1am", "a lake in a violet summer night"),
    Photograph("skimage", "astronaut.png", "a woman astronaut", "NASA", "public domain"),
    Photograph("skimage", "chelsea.png", "a cat", "Stefan van der Walt", "CC0 1.0", True),
    Photograph("skimage", "coffee.png", "a cup of coffee", "Rachel Michetti", "CC0 1.0"),
    Photograph("skimage", "rocket.jpg", "a rocket at night", "SpaceX", "public domain"),
    Photograph("sklearn", "china.jpg", "a Chinese tower", "Daniel Buechele", "CC BY 2.0"),
    Photograph("sklearn", "flower.jpg", "an orange dahlia", "vultilion", "CC BY 2.0", True),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    out: tyro.conf.Positional[Path]  # data folder to write
    size: int = 128  # side of the crops, in pixels
    crops: Positive[int] = 80  # crops of each photograph
    packages: Path | None = None  # folder with the .deb files of the four Debian packages


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    if not 8 <= options.size <= 512:
        raise UserError(f"--size {options.size} must be 8 to 512 pixels, or crops show blur only.")
    check_packages()
    made = {"recipe": "photographs", "size": options.size, "crops": options.crops}
    if made.items() <= read_json(options.out / MARK, default={}).items():
        print(f"{options.out} is there already, complete; nothing to do.")
        return
    check_replaceable(options.out, MARK)
    advice = "Nothing was written. Free some space, or choose another folder."
    with (
        tempfile.TemporaryDirectory() as temporary,
        explain_full_disk(options.out, advice),
        atomic_folder(options.out) as folder,
        ExitStack() as opened,
    ):
        if options.packages is None:
            fetch(Path(temporary))
        debian = open_packages(options.packages or Path(temporary), opened)
        counts = write_crops(folder, debian, options.size, options.crops)
        write_notices(folder, options.size)
        write_json(folder / MARK, made | counts)
    print(f"{counts['train'] + counts['test']} crops of {options.size}x{options.size} pixels:")
    print(f"  {counts['train']} in train/, {counts['test']} in test/, of other photographs")
    print(f"  check them with: python check.py {options.out}/train")


# Packages -----------------------------------------------------------------------------------------


def check_packages() -> None:
    """Check that the Python packages are installed.

    Raises:
        UserError: one is not.
    """
    names = {"debian": "python-debian", **PYPI}
    missing = [pypi for module, pypi in names.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            "this recipe needs Python packages that are not installed: pip install "
            + " ".join(missing)
        )


def fetch(folder: Path) -> None:
    """Download the Debian packages; nothing is installed, and nothing in them is run.

    Raises:
        UserError: there is no apt-get, or it fails.
    """
    advice = (
        "Fetch them on another machine (https://packages.debian.org) and give their folder: "
        "--packages FOLDER"
    )
    apt = shutil.which("apt-get")
    if apt is None:
        raise UserError(
            f"the packages {', '.join(DEBIAN)} are fetched with apt-get, which this system does "
            f"not have. {advice}"
        )
    done = subprocess.run([apt, "download", *DEBIAN], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"apt-get cannot fetch packages: {done.stderr.strip()[-500:]}\n{advice}")


def open_packages(folder: Path, opened: ExitStack) -> Mapping[str, tarfile.TarFile]:
    """Open the content of the Debian packages in a folder, by name; `opened` closes it.

    Raises:
        UserError: a package is missing or damaged.
    """
    from debian.arfile import ArError
    from debian.debfile import DebError, DebFile

    contents: dict[str, tarfile.TarFile] = {}
    for package in DEBIAN:
        files = sorted(folder.glob(f"{package}_*.deb"))
        if not files:
            raise UserError(
                f"there is no {package}_VERSION_all.deb in {folder}. On Debian or Ubuntu: "
                f"apt-get download {package}"
            )
        try:
            file = opened.enter_context(DebFile(files[-1]))
            contents[package] = file.data.tgz()
        except (ArError, DebError, tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise UserError(
                f"{files[-1]} is not a whole Debian package ({error}); fetch it again."
            ) from error
    return contents


def read_photograph(photograph: Photograph, debian: Mapping[str, tarfile.TarFile]) -> Image.Image:
    """Read a photograph from its package.

    Raises:
        UserError: the package does not have it, or it is no picture.
    """
    path = f"{FOLDERS[photograph.source]}/{photograph.file}"
    try:
        if photograph.source in debian:
            stream = debian[photograph.source].extractfile(f"./{path}")
            data = b"" if stream is None else stream.read(LARGEST_FILE)
        else:
            spec = importlib.util.find_spec(photograph.source)
            assert spec is not None and spec.origin is not None, "check_packages() was called"
            data = (Path(spec.origin).parent / path).read_bytes()
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (KeyError, tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(
            f"the photograph {path} is not in this version of {photograph.source}, or damaged "
            f"({error}). Debian 12 (bookworm) has packages that hold all of them."
        ) from error


# Crops --------------------------------------------------------------------------------------------


def write_crops(
    folder: Path, debian: Mapping[str, tarfile.TarFile], size: int, crops: int
) -> dict[str, int]:
    """Write train/ and test/ with crops and captions; return how many each has."""
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for split in rows:
        (folder / split / "images").mkdir(parents=True)
    with tqdm(total=crops * len(PHOTOGRAPHS), unit=" crops", disable=None) as progress:
        for photograph in PHOTOGRAPHS:
            image = read_photograph(photograph, debian)
            split = "test" if photograph.is_test else "train"
            for number, box in enumerate(boxes(photograph.name, image.size, size, crops)):
                file_name = f"images/{photograph.name}-{number:03}.png"
                crop = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
                crop.save(folder / split / file_name)
                row = {"file_name": file_name, "text": caption(photograph, image.size, box)}
                rows[split].append(json.dumps(row, ensure_ascii=False) + "\n")
                progress.update()
    for split, lines in rows.items():
        (folder / split / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return {split: len(lines) for split, lines in rows.items()}


def boxes(
    name: str, image_size: tuple[int, int], size: int, count: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (left, top, right, bottom) of random squares, always the same for a name.

    Their sides are spread evenly on a logarithmic scale.
    """
    chance = random.Random(name)
    largest = min(image_size)
    smallest = min(largest, round(SMALLEST_CROP * size))
    for _ in range(count):
        side = round(math.exp(chance.uniform(math.log(smallest), math.log(largest))))
        left, top = (chance.randint(0, length - side) for length in image_size)
        yield left, top, left + side, top + side


def caption(
    photograph: Photograph, image_size: tuple[int, int], box: tuple[int, int, int, int]
) -> str:
    """Return the photograph's caption; a crop of less than half of the height is a detail."""
    is_detail = box[2] - box[0] < min(image_size) / 2
    return f"{'detail of ' if is_detail else ''}{photograph.caption}"


def write_notices(folder: Path, size: int) -> None:
    """Write ATTRIBUTION.txt into the folder and into both splits."""
    lines = [
        f"{photograph.name}: {photograph.author}, {photograph.license}; from {photograph.source}"
        for photograph in PHOTOGRAPHS
    ]
    text = ATTRIBUTION.format(size=size) + "\n".join(lines) + "\n"
    for target in (folder, folder / "train", folder / "test"):
        (target / "ATTRIBUTION.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_main(main, Options)
