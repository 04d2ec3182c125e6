"""Captions from the names of folders and images, which may have been chosen for another purpose."""

import re
from pathlib import PurePosixPath

from dataset.captions.files import FileList

COUNTER = re.compile(r"[\s(]*\d+\)?$")  # the end of "red apple 003" and of "red apple (3)"
REPEATS = re.compile(r"^\d+_")  # kohya-ss's scripts name folders 10_cat: ten repeats per epoch
MOST_REPEATS = 999  # of the data folder itself; 2024_cats is a year
CAMERA = re.compile(r"(dsc[fn]?|frame|gopr|image|img|mvi|photo|pic|picture|screenshot|untitled)?")


def class_captions(files: FileList) -> dict[str, list[str]] | None:
    """Return the name of each image's folder, if there are several folders and each is a word.

    A single folder counts if it is named as kohya-ss's scripts want it, such as 10_cat. That may be
    the data folder itself.
    """
    root_name = files.root.resolve().name
    folders = {name: PurePosixPath(name).parent.name for name in files.images}
    repeats = REPEATS.match(root_name)
    if not any(folders.values()) and repeats and int(repeats[0][:-1]) <= MOST_REPEATS:
        folders = dict.fromkeys(folders, root_name)
    classes = set(folders.values())
    with_repeats = all(REPEATS.match(folder) for folder in classes)
    if with_repeats:
        folders = {name: REPEATS.sub("", folder) for name, folder in folders.items()}
    captions = {name: [plain_words(folder)] for name, folder in folders.items()}
    if with_repeats:
        meant = all(any(map(str.isalpha, text)) for (text,) in captions.values())
    else:
        meant = len(classes) > 1 and all(has_word(text) for (text,) in captions.values())
    return captions if meant else None


def name_captions(files: FileList) -> dict[str, list[str]]:
    """Return each image's own name without a counter at its end.

    Names that cameras give, and names without a word, are not used.
    """
    captions: dict[str, list[str]] = {}
    for name in files.images:
        words = COUNTER.sub("", plain_words(PurePosixPath(name).stem)).strip()
        if has_word(words) and not CAMERA.fullmatch(words.lower()):
            captions[name] = [words]
    return captions


def plain_words(name: str) -> str:
    """Turn a name into words: 'red_apple-tree' -> 'red apple tree'."""
    return re.sub(r"[\s_-]+", " ", name).strip()


def has_word(text: str) -> bool:
    """Return whether any word has letters and no digit, unlike "0017", "1F469 200D" or "a8f3c2"."""
    return any(
        any(character.isalpha() for character in word)
        and not any(character.isdigit() for character in word)
        for word in text.split()
    )
