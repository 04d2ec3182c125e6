"""A folder of captioned images, or shards, read and checked before anything is trained on it."""

import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dataset.captions import RULES, Unusable, listed
from dataset.index import Catalog, kept_index
from dataset.listing import (
    existing_folder,
    fingerprint,
    list_files,
    near_misses,
    no_images,
    refuse_mixed_splits,
)
from dataset.progress import Progress, silent
from dataset.table import NO_CAPTION, Pairs, captions_hash
from dataset.webdataset import expand, is_shards, read_shards, shards_fingerprint, shards_hash
from foundation.errors import UserError


@dataclass(frozen=True)
class Folder:
    """What `read_folder` found. Pairs are in the order of their names."""

    root: Path
    rule: str  # where the captions come from
    pairs: Pairs
    unusable: list[Unusable] = field(default_factory=list)  # left out, each with its reason
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> Pairs:
        """The pairs without a caption."""
        none = np.frombuffer(captions_hash(NO_CAPTION), np.uint8)
        return self.pairs.where((self.pairs.column("captions_hash") == none).all(1))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each pair's image."""
        sides = (self.pairs.column(name).tolist() for name in ("width", "height"))
        return list(zip(*sides, strict=True))

    @property
    def modes(self) -> list[str]:
        """Pillow's name for each image's kind of pixels."""
        return [self.pairs.table.modes[row] for row in self.pairs.column("mode").tolist()]

    def require_all_usable(self) -> None:
        """Stops if anything was left out, naming it."""
        if self.unusable:
            raise UserError(
                f"{len(self.unusable)} files of {self.root} cannot be used:\n"
                f"{listed(self.unusable)}\n"
                "Repair or remove them, or leave them out with --skip-unusable. "
                f"All of them: python check.py {shlex.quote(str(self.root))}"
            )


def read_folder(
    data: Path | str, allow_missing_captions: bool = False, progress: Progress = silent
) -> Folder:
    """Finds images and captions, and decodes every image that it has not seen before.

    Of several processes let one of each machine read first: it leaves the index to the others.

    Args:
        data: a folder, searched by the first rule that fits (imagetext/captions.py); or tar files
            as WebDataset has them, by a pattern such as 'shards/{000..099}.tar' or 'shards/*.tar'.
        allow_missing_captions: take images without a caption too, with the empty caption.

    Raises:
        FileNotFoundError, ValueError: nothing to train on, or captions are missing, or a file
            that looks like captions is not called so.
    """
    if is_shards(data):
        root, shards = expand(data)
        stamp = shards_fingerprint(root, shards)
        read = partial(read_shards, root, shards, progress)
        index = kept_index(root, f"shards-{shards_hash(shards)}", stamp, read, progress)
    else:
        root = existing_folder(Path(data))
        read = partial(find_pairs, root)
        index = kept_index(root, "folder", fingerprint(root), read, progress)
    if not len(index.table):
        raise UserError(f"none of the images in {data} can be used:\n{listed(index.unusable)}")
    folder = Folder(Path(data), index.rule, index.table.pairs, index.unusable, index.notes)
    missing = folder.missing
    if missing and not allow_missing_captions:
        raise UserError(
            f"{len(missing)} of {len(folder.pairs)} images in {data} have no caption "
            f"(captions come from {folder.rule}):\n"
            f"{listed(missing.paths)}\n"
            "Add captions or remove these images. Stage 2 can also take them without a caption: "
            "train_ldm.py --allow-missing-captions."
        )
    return folder


def find_pairs(root: Path) -> Catalog:
    listing, unusable = list_files(root)
    if not listing.images:
        raise UserError(no_images(root, listing, unusable))
    refuse_mixed_splits(listing)
    found = next(found for rule in RULES if (found := rule(listing)) is not None)
    notes = near_misses(listing, found)
    captions = {
        on_disk: distinct(found.captions.get(name, ()))
        for name, on_disk in sorted(listing.images.items())
    }
    unusable += found.unusable
    return Catalog(root, found.rule, captions, root.__truediv__, unusable, notes)


def distinct(captions) -> tuple[str, ...]:
    return tuple(dict.fromkeys(captions)) or NO_CAPTION
