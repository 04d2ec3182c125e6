"""Atomic files and folders, JSON, and the checks before a folder is replaced."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation import files
from foundation.errors import MissingFileError, UserError
from foundation.files import (
    append_line,
    atomic_file,
    atomic_folder,
    check_replaceable,
    decode_text,
    explain_full_disk,
    open_file,
    put_in_place,
    read_bytes,
    read_json,
    read_text,
    remove_folder,
    restore,
    write_json,
    write_text,
)

posix = pytest.mark.skipif(os.name != "posix", reason="needs symbolic links and file modes")


@pytest.fixture(params=["exchange", "two renames"])
def either_way(request, monkeypatch):
    """Run the test with the system's call that exchanges names, and without it."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "exchange_names", lambda a, b: False)


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> text, of all files in a folder, hidden ones included."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def write_folder(target: Path, content: str, **options: bool) -> None:
    with atomic_folder(target, **options) as partial:
        (partial / "a").write_text(content)
        (partial / "deeper").mkdir()
        (partial / "deeper" / "b").write_text(content)


# Files


def test_a_file_appears_with_its_parents_and_replaces_an_older_one(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    for content in ("old", "new", "ähnlich \u0394\n"):
        write_text(target, content)
        assert target.read_bytes() == content.encode()
    assert tree(tmp_path) == {"new/folder/file.txt": content}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_or_nothing(tmp_path, error):
    write_text(tmp_path / "old.txt", "old")
    for target in (tmp_path / "old.txt", tmp_path / "new" / "folder" / "new.txt"):
        with pytest.raises(type(error)), atomic_file(target) as partial:
            partial.write_text("half")
            raise error
    assert tree(tmp_path) == {"old.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    write_folder(tmp_path / "folder", "old")
    before = tree(tmp_path)
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "new")
    assert tree(tmp_path) == before


@posix
def test_a_symbolic_link_stays_a_link(tmp_path):
    write_text(tmp_path / "real.txt", "old")
    write_folder(tmp_path / "real", "old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link.txt", "new")
    write_folder(tmp_path / "link", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 4


def test_lines_are_appended(tmp_path):
    for line in ("one", "zwei ß"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\nzwei ß\n"


# Folders


@posix
@pytest.mark.usefixtures("either_way")
def test_a_folder_replaces_an_older_one(tmp_path):
    target = tmp_path / "new" / "folder"
    write_folder(target, "old")
    (target / "other").write_text("other")
    target.chmod(0o750)
    write_folder(target, "new")
    assert tree(tmp_path) == {"new/folder/a": "new", "new/folder/deeper/b": "new"}
    assert target.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


@posix
@pytest.mark.usefixtures("either_way")
def test_other_entries_are_kept_but_not_the_leftovers_of_a_kill(tmp_path):
    target = tmp_path / "folder"
    write_folder(target, "old")
    (target / "other").mkdir()
    (target / "other" / "file").write_text("kept")
    (target / "link").symlink_to("other/file")
    (target / ".a.partial").write_text("left over")
    (target / ".deeper.old").mkdir()
    inode = (target / "other" / "file").stat().st_ino
    with atomic_folder(target, keep_others=True) as partial:
        (partial / "a").write_text("new")
    expected = {"a": "new", "deeper/b": "old", "other/file": "kept", "link": "kept"}
    assert tree(target) == expected
    assert (target / "link").readlink() == Path("other/file")
    assert (target / "other" / "file").stat().st_ino == inode  # linked, not copied


def test_other_entries_are_copied_where_hard_links_do_not_exist(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    write_folder(tmp_path / "folder", "old")
    monkeypatch.setattr(os, "link", refuse)
    with atomic_folder(tmp_path / "folder", keep_others=True) as partial:
        (partial / "a").write_text("new")
    assert tree(tmp_path / "folder") == {"a": "new", "deeper/b": "old"}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("keep_others", [True, False])
def test_an_error_leaves_the_old_folder_or_nothing(tmp_path, keep_others):
    write_folder(tmp_path / "old", "old")
    before = tree(tmp_path)
    for target in (tmp_path / "old", tmp_path / "new" / "folder"):
        with pytest.raises(RuntimeError), atomic_folder(target, keep_others=keep_others) as partial:
            (partial / "a").write_text("half")
            raise RuntimeError
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_error_between_the_two_renames_is_undone(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", "old")
    rename, calls = os.replace, []

    def fail_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr(files, "exchange_names", lambda a, b: False)
    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(OSError, match="broken"):
        write_folder(tmp_path / "folder", "new")
    assert tree(tmp_path) == {"folder/a": "old", "folder/deeper/b": "old"}


def test_a_kill_between_the_two_renames_is_undone_by_restore(tmp_path):
    write_folder(tmp_path / "folder", "old")
    os.replace(tmp_path / "folder", tmp_path / ".folder.old")
    (tmp_path / ".folder.partial").mkdir()
    restore(tmp_path / "folder", tmp_path / "another")
    assert (tmp_path / "folder" / "a").read_text() == "old"
    os.replace(tmp_path / "folder", tmp_path / ".folder.old")
    with atomic_folder(tmp_path / "folder", keep_others=True) as partial:  # restores by itself
        (partial / "a").write_text("new")
    assert tree(tmp_path) == {"folder/a": "new", "folder/deeper/b": "old"}


def test_restore_never_replaces_what_is_there(tmp_path):
    write_folder(tmp_path / "folder", "new")
    write_folder(tmp_path / ".folder.old", "old")
    restore(tmp_path / "folder")
    assert (tmp_path / "folder" / "a").read_text() == "new"
    restore(Path("/"))  # which has no name


def test_folders_that_cannot_be_renamed_are_refused(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path("."), tmp_path / "here", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(tmp_path))), atomic_folder(target):
            pytest.fail("the block must not run")
    monkeypatch.undo()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "here")
    with (
        pytest.raises(UserError, match=re.escape(str(tmp_path / "here"))),
        atomic_folder(tmp_path / "here"),
    ):
        pytest.fail("the block must not run")
    with (
        pytest.raises(UserError, match=re.escape(str(tmp_path / "here"))),
        atomic_folder(tmp_path, keep_others=True),
    ):
        pass
    assert tree(tmp_path) == {"here/file": "mine"}


def test_the_call_that_exchanges_names_exists_on_linux(tmp_path):
    """Without it every other test of exchanging would silently test the two renames."""
    write_folder(tmp_path / "a", "a")
    write_folder(tmp_path / "b", "b")
    assert files.exchange_names(tmp_path / "a", tmp_path / "b") or os.name != "posix"
    with pytest.raises(FileNotFoundError):
        files.exchange_names(tmp_path / "a", tmp_path / "nowhere")


def test_a_removed_folder_is_gone_and_restore_does_not_bring_it_back(tmp_path):
    write_folder(tmp_path / "folder", "old")
    os.replace(tmp_path / "folder", tmp_path / ".folder.partial")  # killed while it was removed
    write_folder(tmp_path / "folder", "new")
    remove_folder(tmp_path / "folder")
    restore(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_complete_folder_made_elsewhere_is_put_in_place(tmp_path):
    for content in ("old", "new"):
        write_folder(tmp_path / "ready", content)
        put_in_place(tmp_path / "ready", tmp_path / "target")
    assert tree(tmp_path) == {"target/a": "new", "target/deeper/b": "new"}


# JSON

# Bytes that are no UTF-8, too, as in odd file names; Python holds them as U+DC80 to U+DCFF.
names = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from("\udc80\udcff"))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | names,
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(names, values))
def test_json_survives_a_round_trip(tmp_path, content):
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.endswith("\n")
    # Two lone surrogates that form a pair are one character in JSON; the standard library agrees.
    assert read_json(tmp_path / "x.json") == json.loads(json.dumps(content))


def test_json_is_written_to_be_read_by_people(tmp_path):
    write_json(tmp_path / "x.json", {"a": ["é", 1]})
    assert (tmp_path / "x.json").read_text("utf-8") == '{\n  "a": [\n    "é",\n    1\n  ]\n}\n'


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[1]", b'"text"', b"null", b"[" * 100_000], ids=range(7)
)
def test_damaged_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "x.json"))):
        read_json(tmp_path / "x.json", default={})


def test_missing_json_is_an_error_or_the_default(tmp_path):
    with pytest.raises(MissingFileError, match=re.escape(str(tmp_path / "x.json"))):
        read_json(tmp_path / "x.json")
    assert read_json(tmp_path / "x.json", default={"a": 1}) == {"a": 1}


# Checks


@pytest.mark.parametrize("number", files.DISK_FULL)
def test_a_full_disk_is_explained(tmp_path, number):
    with (
        pytest.raises(OSError, match=r"the reason.*Free some space") as error,
        explain_full_disk(tmp_path, "Free some space."),
    ):
        raise OSError(number, "the reason")
    assert error.value.errno == number and str(tmp_path) in str(error.value)


def test_other_errors_are_not_explained(tmp_path):
    with (
        pytest.raises(PermissionError, match="the reason") as error,
        explain_full_disk(tmp_path, ""),
    ):
        raise OSError(errno.EACCES, "the reason")
    assert str(tmp_path) not in str(error.value)


def test_only_folders_of_the_same_kind_are_replaceable(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("ours", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "ours" / "mark.json").write_text("")
    (tmp_path / "other" / "letter.txt").write_text("")
    for name in ("nowhere", "empty", "ours"):
        check_replaceable(tmp_path / name, "mark.json")
    for name in ("file", "other"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            check_replaceable(tmp_path / name, "mark.json")


# Reading


def hostile_files(folder: Path) -> dict[str, Path]:
    """Make things that are no small regular files; part of the message -> path."""
    paths = {
        "pipe": folder / "pipe",
        "device": folder / "zeros",
        "folder": folder / "directory",
        "leads to itself": folder / "loop",
        "no file": folder / "missing",
        "65": folder / "large",
        "cannot be": folder / ("long" * 200),
        "null": Path("a\0b"),
    }
    os.mkfifo(paths["pipe"])
    paths["device"].symlink_to("/dev/zero")
    paths["folder"].mkdir()
    paths["leads to itself"].symlink_to("loop")
    paths["65"].write_bytes(bytes(65))
    return paths


@posix
def test_only_small_regular_files_are_read(tmp_path):
    for reason, path in hostile_files(tmp_path).items():
        with pytest.raises(UserError, match=reason):
            read_bytes(path, limit=64)
        if reason != "65":
            with pytest.raises(UserError, match=reason):
                open_file(path)
    (tmp_path / "small").write_bytes(bytes(64))
    (tmp_path / "link").symlink_to("small")
    assert read_bytes(tmp_path / "link", limit=64) == bytes(64)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff")), st.booleans())
def test_text_is_read_with_or_without_a_byte_order_mark(text, with_mark):
    content = text.encode("utf-8-sig" if with_mark else "utf-8")
    assert decode_text(content) == text
    assert decode_text(content.replace(b"\n", b"\r\n")) == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("\u00e4pfel".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + "a".encode("utf-16-be"), "UTF-16"),
        ("a".encode("utf-32"), "UTF-32"),
        ("one\n\u00e4pfel".encode("cp1252"), "0xe4 in line 2"),
        (b"one\ntwo\nthr\0ee", "zero byte in line 3"),
        (b"\xed\xa0\x80", "0xed in line 1"),
    ],
)
def test_text_in_another_encoding_is_named(tmp_path, content, reason):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt is .*{reason}"):
        read_text(tmp_path / "a.txt")
