"""Folders that appear whole or not at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_folder(target: Path, mark: str) -> Iterator[Path]:
    """Gives an empty folder beside `target`; it takes the place of `target` if the block ends well.

    After an error nothing is left. After a kill only `<target>.partial` is, which is not mistaken
    for `target` and is removed by the next attempt.

    Args:
        target: may not exist yet, or be empty, or be an earlier folder of the same kind.
        mark: name of a file that every folder of this kind holds; it shows that `target` is ours
            to replace.
    """
    target = Path(target).resolve()
    check_target(target, mark)
    partial = target.with_name(target.name + ".partial")
    remove(partial)
    left = "Nothing of it was kept; free some space or choose another place."
    try:
        with disk_full_explained(target, left):
            partial.mkdir(parents=True)
            yield partial
            assert (partial / mark).is_file(), f"a folder of this kind must hold {mark}"
            put_in_place(partial, target)
    finally:
        remove(partial)


@contextmanager
def disk_full_explained(target: Path, left: str) -> Iterator[None]:
    """left: what is left of what was written, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OSError(
            error.errno,
            "the disk is full, or a limit is reached, while writing "
            f"{target} ({error.strerror}). {left}",
        ) from error


def check_target(target: Path, mark: str) -> None:
    """Refuses to put something in the place of files that are not ours."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; a folder is to be written there. Choose another.")
    if target.is_dir() and any(target.iterdir()) and not (target / mark).is_file():
        raise ValueError(
            f"{target} is not empty, and it has no {mark}, so it holds something else. "
            "Choose another folder, or empty this one."
        )


def put_in_place(partial: Path, target: Path) -> None:
    old = target.with_name(target.name + ".old")
    remove(old)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    remove(old)


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
