"""What the operating systems do differently."""

import errno
import io
import sys

import pytest

from foundation import system
from foundation.errors import FileInUseError
from foundation.files import write_text
from foundation.system import FILE_IS_MAPPED, is_in_use, patiently, print_any_character


@pytest.fixture
def waits(monkeypatch):
    """On Windows, without waiting; the waits that would have been."""
    found: list[float] = []
    monkeypatch.setattr(system, "ON_WINDOWS", True)
    monkeypatch.setattr(system.time, "sleep", found.append)
    return found


def in_use(number: int = errno.EACCES, windows: int = 32) -> OSError:
    error = OSError(number, "in use")
    error.winerror = windows
    return error


def test_what_a_virus_scanner_has_open_is_tried_again(waits):
    results = [in_use(), in_use(errno.EINVAL, FILE_IS_MAPPED), "done"]

    def attempt(word):
        result = results.pop(0)
        if isinstance(result, OSError):
            raise result
        return result + word

    assert patiently(attempt, "!") == "done!"
    assert waits == list(system.WAITS[:2])


def test_other_errors_are_not_tried_again(waits):
    def attempt():
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        patiently(attempt)
    assert waits == []


def test_a_missing_right_is_not_a_file_in_use_elsewhere():
    assert not is_in_use(in_use())


def test_a_file_that_stays_in_use_is_named_and_untouched(tmp_path, waits, monkeypatch):
    write_text(tmp_path / "file", "old")

    def refuse(source, target):
        raise in_use()

    monkeypatch.setattr("foundation.files.os.replace", refuse)
    with pytest.raises(FileInUseError, match="file "):
        write_text(tmp_path / "file", "new")
    assert len(waits) == len(system.WAITS)
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [
        ("file", "old")
    ]


def test_a_character_that_the_console_lacks_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(UnicodeEncodeError):
        print("☃", file=stream)
    print_any_character()
    print("é☃", flush=True)
    assert stream.buffer.getvalue() == "é\\u2603\n".encode("cp1252")


def test_without_a_c_library_of_its_own_there_is_no_function(monkeypatch):
    def refuse(name, **options):
        raise TypeError("expected str")

    monkeypatch.setattr(system.ctypes, "CDLL", refuse)
    assert system.c_function("renameat2") is None
