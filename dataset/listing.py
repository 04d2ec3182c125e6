"""What lies in a data folder: images, captions, and what cannot be right."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from dataset.captions import SIDECARS, Found, Listing, Unusable, listed
from dataset.images.transform import EXTENSIONS
from foundation.errors import MissingFileError, UserError

CAPTION_FILES = ("metadata.jsonl", "metadata.csv", "captions.json")
NOT_READ = frozenset((".avif", ".dcm", ".eps", ".exr", ".heic", ".heif", ".jxl", ".psd", ".svg"))
TEST_SPLITS = frozenset(("test", "val", "valid", "validation"))


def existing_folder(root: Path) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{root} is a file; give the folder that holds the images.")
    siblings = [path.name for path in root.parent.glob("*/")] if root.parent.is_dir() else []
    near = get_close_matches(root.name, siblings, n=1)
    raise MissingFileError(
        f"there is no data folder {root} (looked at {root.absolute()})."
        + (f" Did you mean {root.parent / near[0]}?" if near else "")
    )


def list_files(root: Path) -> tuple[Listing, list[Unusable]]:
    """All files below root, through links too, without hidden ones."""
    listing = Listing(root, {}, {})
    unusable = []
    for on_disk in walk(root):
        path = root / on_disk
        try:
            on_disk.encode()
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
            names = listing.images if suffix in EXTENSIONS else listing.others
            names[normalize("NFC", on_disk)] = on_disk
    return listing, unusable


def walk(root: Path) -> Iterator[str]:
    """Names relative to root, with slashes, as the disk has them."""
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:  # a link back up, or a second link
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not hidden(name, folder=True))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inside == "." else inside + "/"
        yield from (prefix + name for name in sorted(files) if not hidden(name))


def hidden(name: str, folder: bool = False) -> bool:
    return name.startswith((".", "__MACOSX") if folder else ".")


def fingerprint(root: Path) -> str:
    """Of the names, sizes and times of all files that `walk` gives, whatever their order.

    A few seconds for a million files: nothing is opened, and no name is kept.
    """
    total, visited, folders = 0, set(), [(str(root), "")]
    while folders:
        folder, prefix = folders.pop()
        if (real := os.path.realpath(folder)) in visited:
            continue
        visited.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not hidden(entry.name, folder=True):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                elif not hidden(entry.name):
                    total += file_hash(prefix, entry)
    return f"{total % 2**128:032x}"


def file_hash(prefix: str, entry: os.DirEntry) -> int:
    try:
        stat = entry.stat()
    except FileNotFoundError:  # a broken link
        stat = entry.stat(follow_symlinks=False)
    line = f"{prefix}{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}"
    digest = hashlib.blake2b(line.encode(errors="surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def no_images(root: Path, listing: Listing, unusable: list[Unusable]) -> str:
    suffixes = (PurePosixPath(name).suffix.lower() for name in listing.others)
    kinds = Counter(suffix or "(no extension)" for suffix in suffixes)
    message = f"no images in {root}. Images end in {', '.join(sorted(EXTENSIONS))}; there are "
    message += ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files"
    if ".tar" in kinds:
        message += f". Tar files are given by name, in quotes: --data '{root}/*.tar'"
    return message + "." + (f"\nLeft out:\n{listed(unusable)}" if unusable else "")


def refuse_mixed_splits(listing: Listing) -> None:
    """Training on a folder that holds a test set by its side would spoil the test."""
    tops = {PurePosixPath(name).parts[0] for name in listing.images if "/" in name}
    tests = {top for top in tops if top.lower() in TEST_SPLITS}
    if tests and "train" in {top.lower() for top in tops}:
        train = next(top for top in tops if top.lower() == "train")
        raise UserError(
            f"{listing.root} holds {train}/ and {', '.join(sorted(tests))}/, which are meant to be "
            f"kept apart. Give one of them, for example {listing.root / train}."
        )


def near_misses(listing: Listing, found: Found) -> list[str]:
    """Notes on files that look like captions but are not read.

    If captions would be guessed from names although there are such files, it is an error.
    """
    notes = []
    for name in sorted(set(map(os.path.basename, listing.others)) - set(CAPTION_FILES)):
        near = get_close_matches(name.lower(), CAPTION_FILES, n=1, cutoff=0.8)
        if near:
            notes += [
                f"found {path}; did you mean {near[0]}?" for _, path in listing.others_called(name)
            ]
    if found.is_guess and (notes := notes + captions_elsewhere(listing)):
        raise UserError(
            f"{notes[0]}\nAs it is, captions would be guessed from {found.rule}. Rename or move "
            "the file, or remove it."
        )
    if found.rule.startswith("metadata.jsonl") and listing.others_called("metadata.csv"):
        notes.append("metadata.csv is not used, since there is a metadata.jsonl")
    return notes


def captions_elsewhere(listing: Listing) -> list[str]:
    """Captions one folder up, or beside the images but with another extension."""
    above = listing.root.absolute().parent
    files = [above / file for file in CAPTION_FILES if (above / file).is_file()]
    notes = [f"found {file}; did you mean the data folder {above}?" for file in files]
    stems = {os.path.splitext(name)[0] for name in listing.images}
    parts = map(os.path.splitext, listing.others)
    beside = Counter(kind for stem, kind in parts if stem in stems)
    for kind, count in beside.items():
        notes.append(
            f"found {count} {kind} files beside images of the same name; did you mean "
            f"{' or '.join(SIDECARS)}?"
        )
    return notes
