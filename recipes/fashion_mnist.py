"""Makes a data folder of 60,000 gray images with captions, offline: Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    python recipes/fashion_mnist.py data/fashion
    python train_vae.py --preset fashion-32 --data data/fashion/train --out runs/fashion-vae

Photos of Zalando's articles (MIT license, arXiv:1708.07747), 28x28 pixels in gray, padded with
their black background to 32x32. Captions such as "a photo of an ankle boot". data/fashion/train
and data/fashion/test are two data folders: train on the first, evaluate on the second.

Without the Debian package, download the four .gz files of
https://github.com/zalandoresearch/fashion-mnist into a folder, and give it as --source.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from foundation.errors import MissingFileError, UserError
from foundation.files import atomic_folder, check_replaceable, explain_full_disk, read_json
from training.cli import parse, run_main

MARK = "fashion_mnist.json"  # records what was made; a folder that holds it may be replaced
SPLITS = {"train": "train", "test": "t10k"}  # folder -> first part of the source files' names
PADDING = 2  # pixels on each side: 28 -> 32, which halves five times
CAPTIONS = (  # by label
    "a photo of a t-shirt",
    "a photo of trousers",
    "a photo of a pullover",
    "a photo of a dress",
    "a photo of a coat",
    "a photo of a sandal",
    "a photo of a shirt",
    "a photo of a sneaker",
    "a photo of a bag",
    "a photo of an ankle boot",
)
ATTRIBUTION = """\
Fashion-MNIST, Copyright 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist
MIT license. Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms, arXiv:1708.07747.
Changed here: padded from 28x28 to 32x32 pixels; captions made from the labels.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    out: tyro.conf.Positional[Path]  # folder to write; train/ and test/ in it are data folders
    source: Path = Path("/usr/share/datasets/fashion-mnist")  # folder with the four .gz files


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    splits = {split: read_split(options.source, name) for split, name in SPLITS.items()}
    made = {
        "recipe": "fashion_mnist",
        "padding": PADDING,
        "captions": list(CAPTIONS),
        "pairs": {split: len(labels) for split, (_, labels) in splits.items()},
    }
    if read_json(options.out / MARK, default={}) == made:
        print(f"{options.out} is there already, complete; nothing to do.")
        return
    check_replaceable(options.out, MARK)
    advice = "Nothing was written. Free some space, or choose another folder."
    with explain_full_disk(options.out, advice), atomic_folder(options.out) as folder:
        for split, (images, labels) in splits.items():
            write_pairs(folder / split, images, labels)
        (folder / "ATTRIBUTION.txt").write_text(ATTRIBUTION, encoding="utf-8")
        (folder / MARK).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for split, count in made["pairs"].items():
        print(f"  {options.out / split}: {count} pairs of 32x32 pixels, one channel")


def read_split(source: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, 28, 28) and labels (n,)."""
    images = read_idx(source / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{name}-labels-idx1-ubyte.gz")
    if len(images) != len(labels) or labels.max() >= len(CAPTIONS):
        raise UserError(
            f"{source}: {len(images)} images and {len(labels)} labels up to {labels.max()} do not "
            f"match; each image needs a label below {len(CAPTIONS)}. Download them again."
        )
    return images, labels


def read_idx(file: Path) -> np.ndarray:
    """Read unsigned bytes in IDX format: 0 0 8 rank, sizes as big-endian int32, then the data."""
    if not file.is_file():
        raise MissingFileError(
            f"{file} is missing. It comes with a Debian package: apt-get install "
            "dataset-fashion-mnist. On other systems, give the folder that holds it: --source DIR."
        )
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is damaged ({error}); download it again.") from error
    if data[:4] not in (b"\0\0\x08\x01", b"\0\0\x08\x03"):
        raise UserError(f"{file} is not an IDX file of labels or images; download it again.")
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">i4", count=rank, offset=4))
    if len(data) != 4 + 4 * rank + np.prod(shape, dtype=np.int64):
        raise UserError(f"{file} is cut off: its header announces {shape}; download it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def write_pairs(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images/00/00000.png and so on, at most 1000 per folder, and metadata.jsonl."""
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    for thousand in range(0, len(images), 1000):
        (folder / f"images/{thousand // 1000:02d}").mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for k, label in enumerate(tqdm(labels, desc=folder.name, unit=" images", disable=None)):
            file = f"images/{k // 1000:02d}/{k:05d}.png"
            Image.fromarray(padded[k]).save(folder / file, compress_level=1)
            row = {"file_name": file, "text": CAPTIONS[label]}
            metadata.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    run_main(main, Options)
