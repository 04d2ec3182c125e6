"""The images that an evaluation measures with, and their features, kept next to the data."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dataset.captions.choice import choose_captions, without_captions
from dataset.captions.variants import CaptionChoice
from dataset.folder import Folder, read_folder
from dataset.images.transform import ImageTransform, PixelTensor, normalize_pixels, to_uint8
from dataset.index_files import index_folder
from dataset.loader import read_pixels
from dataset.parallel import WorkShare
from dataset.table import PairList, split
from evaluation.distances import check_features
from evaluation.feature_spaces.space import FeatureSpace
from foundation import collectives
from foundation.errors import UserError, printable
from foundation.hashing import generator
from stages.evaluation.blocks import Blocks, identity_hash
from stages.flags.evaluation import MeasuredCaptions, MeasuredImages
from training.logging.progress import progress_bar

FEATURES_FOLDER = "features"  # in the folder of the index, next to the data
MOST_KEPT = 2000  # held-out images that are reconstructed, and whose loss is measured
MOST_TRAINING = 50_000  # training images among which the nearest are looked for
SEEN_CHANNELS = (1, 3)  # of images that feature spaces can look at


@dataclass(frozen=True)
class ChosenImages:
    """Images of a data folder, in the order in which they are measured.

    Args:
        pairs: the images; their order is random, so that the first ones are a random choice, too.
        source: what they were chosen from, in words.
        unusable: files of the folder that were left out.
    """

    pairs: PairList
    source: str
    unusable: int

    def identity(self) -> dict[str, Any]:
        """Return as JSON which images these are: a hash of the files' bytes, in order."""
        digest = hashlib.sha256()
        for _, pieces in self.pairs.pieces("sha256"):
            digest.update(pieces[0].tobytes())
        return {"images": len(self.pairs), "sha256": digest.hexdigest()}


def choose_images(config: MeasuredImages, count: int) -> ChosenImages:
    """Read the data folder and choose images of the split that is named, else held-out ones.

    count: at most so many.

    Raises:
        UserError: the folder cannot be read, or fewer than two images are left.
    """
    share = WorkShare(collectives.rank(), collectives.world_size(), collectives.barrier)
    folder = read_folder(config.data, True, progress_bar, config, share)
    print_notes(folder)
    folder.require_one_dtype()
    pairs, source = candidates(config, folder)
    if min(len(pairs), count) < 2:
        raise UserError(
            f"{config.data} gives {min(len(pairs), count)} image to measure with ({source}); it "
            "needs at least 2, and thousands to tell small differences. Add images, or use all of "
            "them: held_out 0."
        )
    order = torch.randperm(len(pairs), generator=generator(config.seed, "images")).numpy()
    chosen = PairList(pairs.table, np.asarray(pairs.rows)[order[:count]])
    return ChosenImages(chosen, source, len(folder.unusable))


def print_notes(folder: Folder) -> None:
    """Print what a reader of the numbers should know about the data folder."""
    for note in folder.notes:
        print(f"note: {printable(note)}")
    if folder.unusable:
        print(f"note: {len(folder.unusable)} files cannot be used and are left out.")


def candidates(config: MeasuredImages, folder: Folder) -> tuple[PairList, str]:
    """Return the images to choose from, and what they are."""
    if config.split is not None:
        return folder.pairs, f"the split {config.split}"
    if not config.held_out:
        return folder.pairs, "all images, those of the training among them"
    return split(folder.pairs, config.held_out)[1], f"the {config.held_out:g} that is held out"


def pixel_reader(images: ChosenImages, transform: ImageTransform) -> Callable[[range], PixelTensor]:
    """Return a function that decodes the images of these numbers."""
    paths = images.pairs.paths
    return lambda numbers: read_pixels([paths[k] for k in numbers], transform)


def to_rgb(pixels: PixelTensor) -> UInt8[Tensor, "n 3 h w"]:
    """Return 8-bit RGB for feature spaces; gray is repeated, more than 8 bits are rounded."""
    pictures = pixels if pixels.dtype == torch.uint8 else to_uint8(normalize_pixels(pixels))
    return pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures


class Reference:
    """Features of the images themselves, and their mean, kept for later evaluations.

    They are kept next to the index of the data, or in `fallback` if that cannot be written.
    """

    def __init__(
        self, images: ChosenImages, transform: ImageTransform, fallback: Path, batch_size: int
    ):
        self.images, self.transform, self.batch_size = images, transform, batch_size
        self.read = pixel_reader(images, transform)
        self.identity = {**images.identity(), "transform": transform.describe(), "version": 1}
        self.home = writable(
            index_folder(images.pairs.table.root) / FEATURES_FOLDER, fallback / "reference"
        )

    def features(self, space: FeatureSpace, batches: "FeatureBatches") -> Blocks:
        """Compute the features of the images, or find those of an earlier evaluation."""
        identity = {**self.identity, "space": space.describe()}
        blocks = Blocks(self.home / identity_hash(identity), len(self.images.pairs))
        blocks.fill(
            self.read,
            lambda _, pixels: batches(space, to_rgb(pixels), "reference"),
            f"{space.name} of the images",
        )
        return blocks

    def mean_image(self) -> Tensor:
        """Return the mean of all images, (c, h, w), in the numbers of the pixels."""
        blocks = Blocks(self.home / identity_hash(self.identity), len(self.images.pairs))
        blocks.fill(
            self.read,
            lambda _, pixels: {"sum": pixels.double().sum(dim=0, keepdim=True)},
            "the mean image",
        )
        total = sum(blocks.parts("sum"), torch.zeros((), dtype=torch.float64))
        return (total / len(self.images.pairs))[0]


def writable(folder: Path, otherwise: Path) -> Path:
    """Return the first folder if files can be written there, else the second, with a note."""
    problem = ""
    if not collectives.rank():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = error.strerror or str(error)
    if not collectives.any_rank(bool(problem)):
        return folder
    if not collectives.rank():
        print(f"note: features cannot be kept in {folder} ({problem}); they are in {otherwise}.")
    return otherwise


class FeatureBatches:
    """Computes features of many images, some at a time."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def __call__(
        self, space: FeatureSpace, pictures: UInt8[Tensor, "n 3 h w"], name: str
    ) -> dict[str, Tensor]:
        """Return the features of images by `name/space`, and what classes they show.

        Raises:
            NotFiniteError: a feature is NaN or infinite.
        """
        found = [space(some) for some in pictures.split(self.batch_size)]
        vectors = torch.cat([one.vectors for one in found])
        rows = {f"{name}/{space.name}": check_features(vectors, f"{name} in {space.name}")}
        logits = [one.logits for one in found if one.logits is not None]
        if logits:
            rows[f"{name}/{space.name}/logits"] = torch.cat(logits)
        return rows


# Captions of a whole model.


def chosen_pairs(
    config: MeasuredCaptions, choice: CaptionChoice, captions: bool = True, notes: bool = True
) -> tuple[PairList, PairList]:
    """Return the pairs for prompts, and those to reconstruct: a split that is named is both.

    Args:
        choice: which captions of a pair the model was trained on.
        captions: whether the model reads them; if not, images may lack them, and they are left out.
        notes: whether to print what a reader should know about the data.

    Raises:
        UserError: a held-out split is named, and not that of the training.
    """
    if config.held_out_split is not None and config.split is None:
        raise UserError(
            f"held_out_split {config.held_out_split!r} also needs the split of the training, "
            "such as split 'train'."
        )
    pairs = read_pairs(config, choice, captions, notes)
    if config.is_one_split:
        if notes:
            print(f"evaluated is the whole split {config.split!r}: {len(pairs)} images.")
        return pairs, pairs
    trained, held_out = split(pairs, config.held_out)
    if config.held_out_split is None:
        return trained, held_out
    other = replace(config, split=config.held_out_split)
    return trained, read_pairs(other, choice, captions, notes)


def read_pairs(
    config: MeasuredCaptions, choice: CaptionChoice, captions: bool, notes: bool
) -> PairList:
    """Return the pairs of the split that is named, with the captions that are trained on."""
    folder = read_folder(config.data, allow_missing_captions=not captions, options=config)
    if notes:
        print_notes(folder)
    return choose_captions(folder.pairs, choice) if captions else without_captions(folder.pairs)


def training_images(config: MeasuredCaptions, pairs: PairList, order: Tensor) -> ChosenImages:
    """Return the images of the training, at most `MOST_TRAINING`; none if they are not known.

    order: random.
    """
    count = 0 if config.is_one_split else MOST_TRAINING
    return ChosenImages(shuffled(pairs, order, count), describe_choice(config), 0)


def kept_images(config: MeasuredCaptions, pairs: PairList) -> PairList:
    """Choose at most `MOST_KEPT` of the held-out images."""
    order = torch.randperm(len(pairs), generator=generator(config.seed, "kept images"))
    return shuffled(pairs, order, MOST_KEPT)


def unseen_captions(
    config: MeasuredCaptions, training: PairList, held_out: PairList, count: int
) -> ChosenImages:
    """Choose held-out images for whose captions pictures are drawn, too; none with a split.

    Those are left out whose caption is also that of a training image.
    """
    count = 0 if config.is_one_split else count
    order = torch.randperm(len(held_out), generator=generator(config.seed, "held-out captions"))
    chosen = shuffled(held_out, order, count)
    captions = [pair.captions[0] for pair in chosen]
    wanted = set(captions)
    seen: set[str] = set()
    if wanted:
        seen = {text for pair in training for text in pair.captions if text in wanted}
    rows = chosen.rows[np.array([text not in seen for text in captions], dtype=bool)]
    return ChosenImages(PairList(held_out.table, rows), "images that the training held out", 0)


def shuffled(pairs: PairList, order: Tensor, count: int) -> PairList:
    """Return the first `count` pairs in an order, or all if there are fewer."""
    return PairList(pairs.table, pairs.rows[order[:count].numpy()])


def describe_choice(config: MeasuredCaptions) -> str:
    """Return what captions are chosen from."""
    if config.is_one_split:
        return f"the split {config.split}"
    if config.split is None:
        return f"the images of the training (held out: {config.held_out:g})"
    return (
        f"the images of the training (split {config.split}, held out: {config.held_out:g} of it, "
        f"and the split {config.held_out_split})"
    )
