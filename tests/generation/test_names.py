"""Names of the files that sample.py writes: patterns, what a name may be, names that are free."""

import errno
import os
import time
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.images.write import remove_leftovers, write_new_files
from foundation.errors import UNPRINTABLE, UserError
from generation.names import (
    LONGEST_NAME,
    MAX_PROMPT_BYTES,
    MAX_PROMPT_LENGTH,
    FileNames,
    check_name,
    slug,
)

FIELDS = {"seed": 5, "prompt": "a/b: c?", "sampler": "ddim", "steps": 7}


def names_of(folder: Path, pattern: str, images: list[dict]) -> list[str]:
    names = FileNames(folder, pattern, [".png"])
    names.check(images)
    return [path.name for path in names.planned(images)]


def test_names_are_filled_in_and_safe(tmp_path):
    names = names_of(tmp_path, "{prompt}-{seed:04d}-{number}", [FIELDS] * 2)
    assert names == ["a-b-c-0005-0", "a-b-c-0005-1"]
    assert names_of(tmp_path, "{prompt:.3}", [FIELDS]) == ["a-b"]


@given(st.text())
def test_any_prompt_gives_a_file_name(prompt):
    name = slug(prompt)
    assert 0 < len(name) <= MAX_PROMPT_LENGTH and len(name.encode()) <= MAX_PROMPT_BYTES
    assert name == Path(name).name and not set(name) & set('/\\:*?"<>|.\0\n')


@pytest.mark.parametrize("prompt", ["", "../..", "?"])
def test_a_prompt_without_letters_has_a_name_too(prompt):
    assert slug(prompt) == "no-prompt"


def test_numbers_continue_from_the_highest_and_leave_gaps(tmp_path):
    (tmp_path / "x-0041.png").touch()
    (tmp_path / "x-0050.jpg").touch()
    assert names_of(tmp_path, "x-{number:04d}", [FIELDS]) == ["x-0042"]


BAD_PATTERNS = {  # pattern -> what the message contains
    "same": "same",
    "{nonsense}": "{number}, {seed}",
    "a/{number}": "folder",
    "{number": "{number",
    "{prompt:d}": "{prompt:d}",
    "": "--name",
    "{seed:c}": "{seed:c}",
    "..{seed:c}esc": "{seed:c}",
    "{number:1000000000d}": "1000000000d",
    "{number:0999d}": "0999d",
    "{number:x}": "{number:x}",
    "{number!r}": "{number}",
    "{seed.real}": "seed.real",
    "{seed[0]}": "seed",
    "{seed:{number}}": "{number}",
    "{}": "''",
    "{0}": "'0'",
    "{seed}{seed}": "twice",
    "{seed:05n}": "05n",
    "{prompt:>99}": ">99",
    "{prompt:.999}": "999",
    ".{number}": "dot",
    "..": "dot",
    "{number}.": "dot",
    "{number} ": "space",
    "a:{number}": "':'",
    "{number}?": "'?'",
    "a\n{number}": r"\\n",
    "\x1b[31m{number}": r"\\x1b",
    "\u202e{number}": r"\\u202e",
    "\0{number}": r"\\x00",
    "C:\\{number}": "folder",
    "CON": "Windows",
    "nul.{number}": "Windows",
    "Com1": "Windows",
    "x" * 300: "200 bytes",
    "{number}" + "é" * 120: "200 bytes",
    "y" * 10_000: "1000",
}


@pytest.mark.parametrize("pattern", BAD_PATTERNS, ids=lambda pattern: ascii(pattern)[:30])
def test_patterns_that_cannot_name_the_files_are_refused(tmp_path, pattern):
    with pytest.raises(UserError) as refused:
        names_of(tmp_path, pattern, [FIELDS] * 2)
    text = str(refused.value)
    assert BAD_PATTERNS[pattern] in text or BAD_PATTERNS[pattern].replace("\\\\", "\\") in text
    assert len(text) < 700 and text.isprintable()


PIECES = st.sampled_from(
    ["{number}", "{seed}", "{prompt}", "{number:05d}", "{prompt:.9}", "{steps}", "..", "/", "\\"]
)
PATTERNS = st.lists(PIECES | st.text(max_size=4), max_size=6).map("".join)


@settings(max_examples=50)
@given(PATTERNS, st.text(max_size=20), st.integers(0, 2**63 - 1))
def test_every_name_that_a_pattern_gives_is_a_file_in_the_folder(pattern, prompt, seed):
    """Whatever the pattern and the values are: refused, or valid on every system."""
    folder = Path("/somewhere/out")
    try:
        (name,) = names_of(folder, pattern, [{**FIELDS, "prompt": prompt, "seed": seed}])
    except UserError:
        return
    path = Path(os.path.normpath(folder / f"{name}.png"))
    assert path.parent == folder and path.name == f"{name}.png"
    assert PureWindowsPath(name).name == name and not PureWindowsPath(name).is_reserved()
    assert len(path.name.encode()) <= LONGEST_NAME and name[0] != "."
    assert not UNPRINTABLE.search(name)


def test_names_are_checked_with_their_suffix():
    check_name("x" * 190, "p", [".png"])
    with pytest.raises(UserError, match="200"):
        check_name("x" * 190, "p", [".png", ".safetensors"])


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "x-0041.png").touch()
    with pytest.raises(UserError, match="x-0041"):
        names_of(tmp_path, "x-0041", [FIELDS])


def test_names_that_differ_in_case_only_are_the_same_on_some_systems(tmp_path):
    images = [{**FIELDS, "prompt": prompt} for prompt in ("Red", "red")]
    with pytest.raises(UserError, match="red"):
        names_of(tmp_path, "{prompt}", images)
    assert names_of(tmp_path, "{prompt}-{number}", images) == ["Red-0", "red-1"]


@pytest.mark.parametrize("pattern", ["{number:05d}", "{prompt}-{seed}"])
def test_a_name_that_another_process_has_taken_is_left_to_it(tmp_path, pattern, capsys):
    """Nothing that was drawn is lost, and nothing is overwritten."""
    names = FileNames(tmp_path, pattern, [".png"])
    names.check([FIELDS])
    (planned,) = names.planned([FIELDS])
    other = planned.with_name(planned.name + ".png")
    other.write_bytes(b"of the other")
    path = names.write(FIELDS, {".png": b"ours"})
    assert path != planned and path.name in capsys.readouterr().err
    assert path.with_name(path.name + ".png").read_bytes() == b"ours"
    assert other.read_bytes() == b"of the other"
    following = names.write({**FIELDS, "seed": 6}, {".png": b"next"})
    assert following not in (path, planned)
    assert len(list(tmp_path.iterdir())) == 3


def test_files_of_one_image_appear_together_or_not_at_all(tmp_path):
    names = FileNames(tmp_path, "{number}", [".safetensors", ".png"])
    (tmp_path / "0.png").write_bytes(b"of another")
    path = names.write(FIELDS, {".safetensors": b"latents", ".png": b"picture"})
    assert path.name == "1"
    found = sorted(file.name for file in tmp_path.iterdir())
    assert found == ["0.png", "1.png", "1.safetensors"]


@pytest.fixture
def no_hard_links(monkeypatch):
    """A file system without them, such as FAT."""

    def fail(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_no_name_is_ever_that_of_an_empty_file(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def look_and_replace(source, target):
        seen.append(sorted(path.name for path in tmp_path.iterdir() if path.name[0] != "."))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_and_replace)
    for k in range(2):
        write_new_files({tmp_path / f"{k}.png": b"picture"})
    assert seen == [[], ["0.png"]]
    with pytest.raises(FileExistsError, match=r"/0\.png"):
        write_new_files({tmp_path / "0.png": b"another"})
    (tmp_path / ".3.png.claim.partial").touch()  # another process is at it
    with pytest.raises(FileExistsError, match=r"/3\.png"):
        write_new_files({tmp_path / "3.png": b"another"})
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"0.png": b"picture", "1.png": b"picture", ".3.png.claim.partial": b""}


def test_old_hidden_files_of_killed_calls_are_removed_and_no_others(tmp_path):
    ours = [".0.png.0123abcd.partial", ".0.png.claim.partial", ".00000-001.png.partial"]
    others = ["0.png", ".notes", ".partial", "x.png.partial", ".run.partial", ".0.png.old"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)  # another call may be writing them
    assert {path.name for path in tmp_path.iterdir()} == {*ours, *others}
    for path in tmp_path.iterdir():
        os.utime(path, (0, time.time() - 3700))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)
