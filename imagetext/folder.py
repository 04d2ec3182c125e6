"""A folder of captioned images, read and checked before anything is trained on it."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from imagetext.captions import RULES, SIDECARS, Found, Listing, Unusable
from imagetext.images import EXTENSIONS, UnusableImage, inspect_image

CAPTION_FILES = ("metadata.jsonl", "metadata.csv", "captions.json")
NOT_READ = frozenset((".avif", ".dcm", ".eps", ".exr", ".heic", ".heif", ".jxl", ".psd", ".svg"))
TEST_SPLITS = frozenset(("test", "val", "valid", "validation"))
NO_CAPTION = ("",)  # what an image without a caption is trained on: the null text
SHOWN = 5  # paths named in a message


@dataclass(frozen=True)
class Pair:
    """An image and its captions, at least one; NO_CAPTION if it has none."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """What `read_folder` found. Pairs are in the order of their names."""

    root: Path
    rule: str  # where the captions come from
    pairs: list[Pair]
    unusable: list[Unusable]  # left out, each with its reason
    notes: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height, per pair
    modes: list[str] = field(default_factory=list)  # Pillow's, per pair

    @property
    def missing(self) -> list[Pair]:
        """The pairs without a caption."""
        return [pair for pair in self.pairs if pair.captions == NO_CAPTION]

    def require_all_usable(self) -> None:
        """Stops if anything was left out, naming it."""
        if self.unusable:
            raise ValueError(
                f"{len(self.unusable)} files of {self.root} cannot be used:\n"
                f"{listed(self.unusable)}\n"
                "Repair or remove them, or leave them out with --skip-unusable. "
                f"All of them: python check.py {self.root}"
            )


def read_folder(
    root: Path | str, allow_missing_captions: bool = False, verify: bool = True
) -> Folder:
    """Finds images and captions below `root` by the first rule that fits (imagetext/captions.py).

    Args:
        allow_missing_captions: take images without a caption too, with the empty caption.
        verify: decode every image to its end, so that a broken one is named now and not in the
            middle of a training. Takes about as long as one pass over the data.

    Raises:
        FileNotFoundError, ValueError: nothing to train on, or captions are missing, or a file
            that looks like captions is not called so.
    """
    root = existing_folder(Path(root))
    listing, unusable = list_files(root)
    if not listing.images:
        raise ValueError(no_images(root, listing, unusable))
    refuse_mixed_splits(listing)
    found = next(found for rule in RULES if (found := rule(listing)) is not None)
    notes = near_misses(listing, found)
    pairs = [
        Pair(path, tuple(dict.fromkeys(found.captions.get(name, ()))) or NO_CAPTION)
        for name, path in sorted(listing.images.items())
    ]
    unusable += found.unusable
    folder = Folder(root, found.rule, pairs, unusable, notes)
    if verify:
        folder = without_broken_images(folder)
    if not folder.pairs:
        raise ValueError(f"none of the images in {root} can be used:\n{listed(folder.unusable)}")
    if folder.missing and not allow_missing_captions:
        raise ValueError(
            f"{len(folder.missing)} of {len(folder.pairs)} images in {root} have no caption "
            f"(captions come from {folder.rule}):\n"
            f"{listed([pair.path for pair in folder.missing])}\n"
            "Add captions or remove these images. Stage 2 can also take them without a caption: "
            "train_ldm.py --allow-missing-captions."
        )
    return folder


def existing_folder(root: Path) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise ValueError(f"{root} is a file; give the folder that holds the images.")
    siblings = [path.name for path in root.parent.glob("*/")] if root.parent.is_dir() else []
    near = get_close_matches(root.name, siblings, n=1)
    raise FileNotFoundError(
        f"there is no data folder {root} (looked at {root.absolute()})."
        + (f" Did you mean {root.parent / near[0]}?" if near else "")
    )


def list_files(root: Path) -> tuple[Listing, list[Unusable]]:
    """All files below root, through links too, without hidden ones."""
    listing = Listing(root, {}, {})
    unusable = []
    for path in walk(root):
        try:
            name = normalize("NFC", path.relative_to(root).as_posix())
            name.encode()
        except UnicodeEncodeError:
            shown = Path(str(path).encode(errors="replace").decode())
            unusable.append(Unusable(shown, "has a name that is not UTF-8; rename it"))
            continue
        suffix = path.suffix.lower()
        if suffix in EXTENSIONS and path.is_symlink() and not path.exists():
            unusable.append(Unusable(path, f"is a broken link to {os.readlink(path)}"))
        elif suffix in NOT_READ:
            unusable.append(Unusable(path, f"{suffix} is not read; convert it to PNG or JPEG"))
        else:
            (listing.images if suffix in EXTENSIONS else listing.others)[name] = path
    return listing, unusable


def walk(root: Path) -> Iterator[Path]:
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:  # a link back up, or a second link
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(s for s in subfolders if not s.startswith((".", "__MACOSX")))
        yield from (Path(folder, file) for file in sorted(files) if not file.startswith("."))


def no_images(root: Path, listing: Listing, unusable: list[Unusable]) -> str:
    kinds = Counter(path.suffix.lower() or "(no extension)" for path in listing.others.values())
    message = f"no images in {root}. Images end in {', '.join(sorted(EXTENSIONS))}; there are "
    message += ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files"
    if ".tar" in kinds:
        message += ". Shards (.tar) are not read; unpack them"
    return message + "." + (f"\nLeft out:\n{listed(unusable)}" if unusable else "")


def refuse_mixed_splits(listing: Listing) -> None:
    """Training on a folder that holds a test set by its side would spoil the test."""
    tops = {PurePosixPath(name).parts[0] for name in listing.images if "/" in name}
    tests = {top for top in tops if top.lower() in TEST_SPLITS}
    if tests and "train" in {top.lower() for top in tops}:
        train = next(top for top in tops if top.lower() == "train")
        raise ValueError(
            f"{listing.root} holds {train}/ and {', '.join(sorted(tests))}/, which are meant to be "
            f"kept apart. Give one of them, for example {listing.root / train}."
        )


def near_misses(listing: Listing, found: Found) -> list[str]:
    """Notes on files that look like captions but are not read.

    If captions would be guessed from names although there are such files, it is an error.
    """
    notes = []
    for path in listing.others.values():
        near = get_close_matches(path.name.lower(), CAPTION_FILES, n=1, cutoff=0.8)
        if near and path.name not in CAPTION_FILES:
            notes.append(f"found {path}; did you mean {near[0]}?")
    if found.is_guess and (notes := notes + captions_elsewhere(listing)):
        raise ValueError(
            f"{notes[0]}\nAs it is, captions would be guessed from {found.rule}. Rename or move "
            "the file, or remove it."
        )
    names = {path.name for path in listing.others.values()}
    if found.rule.startswith("metadata.jsonl") and "metadata.csv" in names:
        notes.append("metadata.csv is not used, since there is a metadata.jsonl")
    return notes


def captions_elsewhere(listing: Listing) -> list[str]:
    """Captions one folder up, or beside the images but with another extension."""
    above = listing.root.absolute().parent
    files = [above / file for file in CAPTION_FILES if (above / file).is_file()]
    notes = [f"found {file}; did you mean the data folder {above}?" for file in files]
    stems = {path.with_suffix("") for path in listing.images.values()}
    beside = Counter(p.suffix for p in listing.others.values() if p.with_suffix("") in stems)
    for kind, count in beside.items():
        notes.append(
            f"found {count} {kind} files beside images of the same name; did you mean "
            f"{' or '.join(SIDECARS)}?"
        )
    return notes


def without_broken_images(folder: Folder) -> Folder:
    """Decodes all images; keeps size and mode of the good ones, and the reasons of the others."""
    pairs, sizes, modes, broken = [], [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        for pair, result in zip(folder.pairs, pool.map(try_image, folder.pairs), strict=True):
            if isinstance(result, str):
                broken.append(Unusable(pair.path, result))
                continue
            pairs.append(pair)
            sizes.append(result[0])
            modes.append(result[1])
    return Folder(
        folder.root, folder.rule, pairs, folder.unusable + broken, folder.notes, sizes, modes
    )


def try_image(pair: Pair) -> tuple[tuple[int, int], str] | str:
    """Size and mode, or the reason why the image cannot be used."""
    try:
        return inspect_image(pair.path)
    except UnusableImage as error:
        return error.reason


def listed(items: list, most: int = SHOWN) -> str:
    """The first few, one a line."""
    lines = [f"  {item}" for item in items[:most]]
    more = len(items) - most
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)
