"""The account of a folder: what became of every file in it. The sum is the number of files."""

import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from dataset.captions.rules import caption_files
from dataset.folder import Folder, list_files, only_split, walk
from dataset.index_files import INDEX_FOLDER
from foundation.errors import one_line

SHOWN = 5  # entries of a list in the text


@dataclass
class Kind:
    """Files of one ending that are not read."""

    count: int
    example: str


@dataclass
class Account:
    """What became of the files of a folder; names are relative to it.

    Args:
        files: all of them, hidden ones too, but not the index that this project makes.
        used: images, each different from the others.
        duplicates: images with the bytes of another one -> that one. They are used, too.
        captions: files that hold the captions.
        broken: files that cannot be used -> the reason.
        not_read: ending -> files that are no images and no captions, or of another split.
        hidden: files with a hidden name or in a hidden folder.
    """

    files: int = 0
    used: int = 0
    duplicates: dict[str, str] = field(default_factory=dict)
    captions: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    not_read: dict[str, Kind] = field(default_factory=dict)
    hidden: int = 0

    @property
    def total(self) -> int:
        """The sum over all kinds; it is equal to `files`."""
        lists = len(self.duplicates) + len(self.broken)
        not_read = sum(kind.count for kind in self.not_read.values())
        return self.used + lists + self.captions + not_read + self.hidden


def account_for(folder: Folder, split: str | None = None) -> Account:
    """Look at every file of a folder again, and say what became of it.

    split: the one that was read.
    """
    root = Path(folder.root)
    files = only_split(list_files(root)[0], split)
    captions = {files.others[name] for name in caption_files(files)}
    reasons = {str(entry.path): entry.reason for entry in folder.unusable}
    duplicates = equal_files(folder)
    used = set(folder.pairs.table.names)
    account = Account()
    for entry in walk(root, with_hidden=True):
        if entry.name.startswith(f"{INDEX_FOLDER}/"):
            continue
        account.files += 1
        name = one_line(entry.name)
        if entry.is_hidden:
            account.hidden += 1
        elif (first := duplicates.get(entry.name)) is not None:
            account.duplicates[unique_key(name, account.duplicates)] = one_line(first)
        elif entry.name in used:
            account.used += 1
        elif (reason := reasons.get(str(root / entry.name))) is not None:
            account.broken[unique_key(name, account.broken)] = one_line(reason)
        elif entry.name in captions:
            account.captions += 1
        else:
            ending = one_line(posixpath.splitext(entry.name)[1].lower() or "(no ending)", 40)
            kind = account.not_read.setdefault(ending, Kind(0, name))
            kind.count += 1
    return account


def entry_account(folder: Folder) -> dict[str, int]:
    """Say what became of every member of shards, or of every row of tables; {} for a folder."""
    if not folder.uses:
        return {}
    others = {kind: count for kind, count in folder.uses.items() if kind != "image"}
    read, found = len(folder.pairs), folder.uses.get("image", 0)
    return {"image": read, "image that cannot be read": found - read, **others}


def describe_entries(account: dict[str, int]) -> list[str]:
    """Write the account of shards or tables; the numbers add up to the first one."""
    lines = [f"  {count:,} {kind}" for kind, count in account.items() if count]
    return ["Members of the shards, or rows of the tables", f"  {sum(account.values()):,}", *lines]


def unique_key(name: str, taken: dict[str, str]) -> str:
    """Return the name, or one like it: two odd names may be equal as they are printed."""
    while name in taken:
        name += "'"
    return name


def equal_files(folder: Folder) -> dict[str, str]:
    """Map the images with the same bytes as an earlier one to that one."""
    first: dict[bytes, str] = {}
    result: dict[str, str] = {}
    hashes = folder.pairs.column("sha256")
    for name, digest in zip(folder.pairs.table.names, hashes, strict=True):
        known = first.setdefault(digest.tobytes(), name)
        if known != name:
            result[name] = known
    return result


def describe_account(account: Account) -> list[str]:
    """Return the lines of the report."""
    lines = [
        "Files",
        f"  {account.files} files in the folder",
        f"  {account.used} images, each different",
    ]
    if account.duplicates:
        copy, first = next(iter(account.duplicates.items()))
        lines.append(
            f"  {len(account.duplicates)} images with the bytes of another one, such as {copy}, "
            f"equal to {first}; they are used, too"
        )
    lines.append(f"  {account.captions} files with captions")
    for ending, kind in sorted(account.not_read.items(), key=lambda item: -item[1].count):
        lines.append(f"  {kind.count} {ending} not read, such as {kind.example}")
    lines.append(f"  {len(account.broken)} that cannot be used")
    lines.append(f"  {account.hidden} hidden")
    return lines
