"""Caption files next to the images: red apple.txt or red apple.jpg.txt for red apple.jpg."""

import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dataset.captions.files import FileList
from dataset.captions.rows import check_caption
from dataset.source import UnusableFile
from foundation.errors import UserError, one_line
from foundation.files import MEGABYTE, decode_text, read_bytes

SIDECAR_SUFFIXES = (".txt", ".caption")  # where an image has both, the first one is used
NOT_CAPTIONS = ("attribution", "classes", "copying", "labels", "license", "readme", "requirements")
LARGEST_SIDECAR = MEGABYTE  # bytes


@dataclass(frozen=True)
class Sidecars:
    """Which caption file belongs to which image.

    Args:
        files: image -> caption file; names as in `FileList`.
        unused: caption files of images that have another one.
        without_image: caption files that belong to no image.
    """

    files: dict[str, str]
    unused: list[str]
    without_image: list[str]


def match_sidecars(files: FileList) -> Sidecars:
    """Find the caption file of each image; none is opened.

    The name without its ending counts first, then the name with it, then either of them without
    regard to capitals if only one image and one caption file fit.
    """
    found: dict[str, str] = {}
    with_image: set[str] = set()
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for image in (*files.images, *files.other_splits):
        by_stem[stem(image)].append(image)
    captions = {
        name: name[: -len(suffix)]
        for suffix in SIDECAR_SUFFIXES
        for name in files.others
        if name.lower().endswith(suffix)
    }
    full = {image: name for name, image in reversed(captions.items()) if image in files.images}
    for name, image in captions.items():
        for fitting in by_stem.get(image, ()):
            with_image.add(name)
            own = len(by_stem[image]) > 1 and fitting in full  # a.png.txt, next to a.jpg and a.png
            if fitting in files.images and not own:
                found.setdefault(fitting, name)
    for name, image in captions.items():
        if image in files.images:
            with_image.add(name)
            found.setdefault(image, name)
    match_without_case(files, {k: v for k, v in captions.items() if k not in with_image}, found)
    used = set(found.values())
    return Sidecars(
        found,
        [name for name in captions if name in with_image and name not in used],
        [name for name in captions if name not in with_image and name not in used],
    )


def match_without_case(files: FileList, captions: Mapping[str, str], found: dict[str, str]) -> None:
    """Add unique matches that differ in capitals; captions: file -> name of the image it wants."""
    if not captions:
        return
    images: defaultdict[str, set[str]] = defaultdict(set)
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for image in files.images:
        for key in {image.casefold(), stem(image).casefold()}:
            images[key].add(image)
    for name, image in captions.items():
        wanted[image.casefold()].append(name)
    for key, names in wanted.items():
        if len(names) == 1 and len(images[key]) == 1:
            (image,) = images[key]
            found.setdefault(image, names[0])


def stem(name: str) -> str:
    """Return a name without its ending."""
    return posixpath.splitext(name)[0]


def is_caption_like(name: str) -> bool:
    """Return whether a text file may hold captions, unlike a license or a README."""
    return not posixpath.basename(name).lower().startswith(NOT_CAPTIONS)


def read_sidecar(files: FileList, name: str) -> list[str] | UnusableFile:
    """Read the captions in a file, one per line; or return why that is not possible."""
    path = files.root / files.others[name]
    try:
        captions = split_lines(decode_text(read_bytes(path, LARGEST_SIDECAR)))
        for caption in captions:
            check_caption(caption)
    except UserError as error:
        return UnusableFile(path, str(error).removeprefix(f"{one_line(path)} "))
    return captions


def split_lines(text: str) -> list[str]:
    """Return the lines of a text that are not empty, without white space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]
