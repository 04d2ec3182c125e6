"""Shards that are damaged, odd or made to do harm: what is lost is named, by member and byte.

Every case is a tar file `a.tar` that `check.py` reads. What must come of it is the number of images
that are used, and a pattern in what is printed; None where all members must be used.
"""

import gzip
import os
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.hostile import Check, HostileCase, Outcome, check_case, in_ci, refused, script
from tests.helpers.hostile_tars import (
    BLOCK,
    END,
    FIELDS,
    GOOD,
    HEADERS,
    WHOLE,
    between,
    flipped,
    header,
    info,
    jpeg,
    member,
    padded,
    pax,
    record,
    sample,
    with_field,
)

# What must come of it -----------------------------------------------------------------------------


def found(images: int, pattern: str | None) -> Check:
    """Require this number of images, and that what is lost is named."""

    def check(outcome: Outcome, folder: Path) -> None:
        if images == 0:
            refused(pattern or "no images")(outcome, folder)
            return
        counted = re.search(r"images +(\d+)", outcome.output)
        assert counted and int(counted[1]) == images, outcome.text
        assert outcome.status == (0 if pattern is None else 1), outcome.text
        if pattern is not None:
            assert re.search(pattern, outcome.output, re.DOTALL), outcome.output
        assert pattern is not None or "Left out" not in outcome.output, outcome.output

    return check


def noted(images: int, pattern: str) -> Check:
    """Require this number of images, no problem, and a note."""

    def check(outcome: Outcome, folder: Path) -> None:
        found(images, None)(outcome, folder)
        assert re.search(pattern, outcome.output, re.DOTALL), outcome.output

    return check


def write(content: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(content)


CHECK = ("check", "a.tar", "--batch-size", "1")


def case(name: str, content: bytes, images: int, pattern: str | None = None) -> HostileCase:
    return HostileCase(name, partial(write, content), script(*CHECK), found(images, pattern))


def inside(name: str, extra: bytes, images: int, pattern: str | None = None) -> HostileCase:
    """Make a case of members between two good ones."""
    return case(name, between(extra), images, pattern)


def note(name: str, content: bytes, pattern: str, images: int = 4) -> HostileCase:
    return HostileCase(name, partial(write, content), script(*CHECK), noted(images, pattern))


# Cases --------------------------------------------------------------------------------------------


def damaged(k: int) -> tuple[int, str]:
    """Return how many images are left, and what is said, if the header of member k is damaged."""
    position, last = HEADERS[k], f"{(k - 1) // 2}.{('txt', 'jpg')[k % 2]}"
    if k == 0:
        return 0, r"a\.tar: .*beginning"
    return (k + 1) // 2, rf"a\.tar: .*byte {position:,} after {last}.*{len(WHOLE) - position:,} of"


CASES = [
    case(
        f"a flipped bit in {field} of member {k}",
        flipped(HEADERS[k] + start + 1 % size),
        *damaged(k),
    )
    for k in (0, 3, 4, 7)
    for field, (start, size) in FIELDS.items()
]
CASES += [
    case(
        f"zeros over the header of member {k}",
        WHOLE[:position] + bytes(BLOCK) + WHOLE[position + BLOCK :],
        *(damaged(k) if k else (0, r"a\.tar: ")),
    )
    for k, position in enumerate(HEADERS)
]
CASES += [
    case(
        f"a whole header of {value:#x} in member {k}",
        WHOLE[: HEADERS[k]] + bytes([value]) * BLOCK + WHOLE[HEADERS[k] + BLOCK :],
        *damaged(k),
    )
    for k in (2, 5)
    for value in (0x20, 0xFF)
]

AFTER = rf"a\.tar: .*byte {len(WHOLE) - len(END):,} after 3\.txt"
CASES += [
    case("two tars joined", WHOLE + WHOLE, 4, AFTER + rf".*{len(WHOLE) + len(END):,} of"),
    case("two tars joined behind long padding", WHOLE + bytes(20 * BLOCK) + WHOLE, 4, AFTER),
    case("a tar and its compressed copy", WHOLE + gzip.compress(WHOLE), 4, AFTER),
    case("a byte behind the end", WHOLE + b"x", 4, AFTER),
    case("a line behind the end", WHOLE + b"\n", 4, AFTER),
    case("a byte in the last block", WHOLE[:-1] + b"x", 4, AFTER),
    case("a byte in the first block of the end", WHOLE[:-900] + b"x" + WHOLE[-899:], 4, AFTER),
    case("long padding", WHOLE + bytes(100 * BLOCK), 4),
    case("padding that is no block", WHOLE + bytes(7), 4),
    case("one block of zeros at the end", WHOLE[:-BLOCK], 4),
    case("no block of zeros at the end", WHOLE[: -2 * BLOCK], 4, r"a\.tar: .*3\.txt.*zeros"),
    case("half a block of zeros at the end", WHOLE[: -2 * BLOCK + 100], 4, r"a\.tar: .*3\.txt"),
]


def sparse_zeros(folder: Path) -> None:
    """Write a shard with a terabyte of zeros behind it, which takes no place on the disk."""
    write(WHOLE, folder)
    os.truncate(folder / "a.tar", 10**12)


CASES.append(
    HostileCase(
        "a terabyte of zeros", sparse_zeros, script(*CHECK), found(4, r"1,000,000,0\d\d,|99\d,")
    )
)

# Pax headers
LAST = GOOD[3]
IN = r"a\.tar: .*byte [\d,]+ after 1\.txt.*of its [\d,]+ bytes"
BAD_RECORDS = {
    "a length of zero": b"0 path=x.jpg\n",
    "a length that is too short": b"5 path=x.jpg\n",
    "a length that is too long": b"900 path=x.jpg\n",
    "a length that is no number": b"abc path=x.jpg\n",
    "a negative length": b"-14 path=x.jpg\n",
    "a length of many digits": b"9" * 5000 + b" path=x.jpg\n",
    "no line break": b"14 path=x.jpg#",
    "no equal sign": b"14 path.x.jpg\n",
    "zeros behind the records": record("path=x.jpg") + bytes(20),
    "a size that is no number": record("size=abc"),
    "a negative size": record("size=-5"),
    "an empty size": record("size="),
    "a size with a point": record("size=1e3"),
    "a size with an underscore": record("size=1_0"),
    "a size of many digits": record("size=" + "9" * 4000),
    "a size beyond the file": record("size=99999999999"),
}
CASES += [
    inside(f"pax: {name}", pax(records) + sample(9), 2, IN) for name, records in BAD_RECORDS.items()
]
CASES += [
    inside("pax: a size that is true", pax(record(f"size={len(jpeg(9))}")) + sample(9), 5),
    inside("pax: a size that is too small", pax(record("size=3")) + sample(9), 2, r"byte"),
    inside(
        "pax: a long name",
        pax(record(f"path={'a' * 3000}.jpg"))
        + member("short", jpeg(9))
        + pax(record(f"path={'a' * 3000}.txt"))
        + member("short", b"long"),
        5,
    ),
    inside(
        "pax: a name that is not UTF-8",
        pax(record("path=\udcff.jpg")) + member("x", jpeg(9)),
        4,
        r"UTF-8",
    ),
    inside(
        "pax: a name with a zero byte", pax(record("path=x\0.jpg")) + member("x", jpeg(9)), 4, r"."
    ),
    inside(
        "pax: times and owners",
        pax(record("mtime=1.5") + record("uname=ö") + record("LIBARCHIVE.x=1")) + sample(9),
        5,
    ),
    inside("pax: a comment for all", pax(record("comment=made by hand"), b"g") + sample(9), 5),
    inside("pax: a size for all", pax(record("size=3"), b"g") + sample(9), 2, IN),
    inside("pax: a path for all", pax(record("path=x.jpg"), b"g") + sample(9), 2, IN),
    case(
        "pax: nothing behind it",
        b"".join(GOOD) + pax(record("path=x.jpg")) + END,
        4,
        r"byte .*after 3",
    ),
    inside("pax: a hundred headers", 100 * pax(record("mtime=1")) + sample(9), 2, IN),
    inside("pax: two headers", 2 * pax(record("mtime=1")) + sample(9), 5),
    inside(
        "pax: eight gigabytes", header(info("pax", b"x", size=8 * 2**30 - 1)) + sample(9), 2, IN
    ),
    case("pax: cut off", (b"".join(GOOD) + pax(record("path=x.jpg")))[:-300], 4, r"byte .*after 3"),
    inside("pax: the old type of Solaris", pax(record("mtime=1"), b"X") + sample(9), 5),
]

# Names
TEXT = member("9.txt", b"x")
LONG = "b" * 300
CASES += [
    inside("GNU: long names", member(f"{LONG}.jpg", jpeg(9)) + member(f"{LONG}.txt", b"x"), 5),
    inside(
        "GNU: a long name of a gigabyte",
        header(info("././@LongLink", b"L", size=2**30)) + sample(9),
        2,
        IN,
    ),
    case(
        "GNU: a long name at the end",
        b"".join(GOOD) + header(info("././@LongLink", b"L", size=5)) + padded(b"x.jpg") + END,
        4,
        r"after 3",
    ),
    inside(
        "a name of a ustar prefix",
        member(f"{'c' * 90}/{'d' * 90}.jpg", jpeg(9), tarfile.USTAR_FORMAT)
        + member(f"{'c' * 90}/{'d' * 90}.txt", b"x", tarfile.USTAR_FORMAT),
        5,
    ),
    inside("a name in Latin-1", member("\udcfc.jpg", jpeg(9)), 4, r"UTF-8"),
    inside("a name with a line break", member("a\nb.jpg", jpeg(9)) + member("a\nb.txt", b"x"), 5),
    inside("a name with an escape sequence", member("\x1b[31m.jpg", b"no"), 4, r"x1b\[31m"),
    inside("an empty name", member("", jpeg(9)), 4),
    inside("a name of dots and slashes", member("././/", jpeg(9)), 4),
    inside("an absolute name", member("/tmp/x.jpg", jpeg(9)) + member("/tmp/x.txt", b"x"), 5),
    inside("a name outside", member("../../x.jpg", jpeg(9)) + member("../../x.txt", b"x"), 5),
    inside(
        "dots in a name",
        member("shot 22.05.jpg", jpeg(9)) + member("shot 22.05.txt", b"x"),
        4,
        r"shot 22\.05\.jpg.*'shot 22'",
    ),
    inside(
        "dots in many names",
        b"".join(member(f"v1.{k}.png", jpeg(k)) for k in range(9)),
        4,
        r"v1\.0\.png",
    ),
    inside("a picture that is not read", member("9.heic", jpeg(9)) + TEXT, 4, r"9\.heic.*HEIC"),
    inside("capitals", member("9.JPG", jpeg(9)) + member("9.TXT", b"x"), 5),
    inside("the same name twice", sample(1), 4, r"1\.jpg: .*earlier"),
    inside(
        "two images of a sample",
        member("9.jpg", jpeg(9)) + member("9.png", jpeg(8)) + TEXT,
        5,
        r"9\.png: .*second",
    ),
    note(
        "hidden members",
        between(
            member("._1.jpg", b"x") + member("__MACOSX/2.jpg", b"x") + member(".git/3.jpg", b"x")
        ),
        "No problems",
    ),
    note(
        "an ending that is not read",
        between(member("1.cls", b"7") + member("2.cls", b"7")),
        r"2 \.cls.*a\.tar: 1\.cls",
    ),
    note(
        "a second picture by a longer ending",
        between(member("1.seg.png", jpeg(9))),
        r"1 \.seg\.png",
    ),
    note("folders", between(header(info("x/", b"5")) + header(info("y.jpg", b"5"))), "No problems"),
]

# Links and what is no file
CASES += [
    inside("a hard link", header(info("9.jpg", b"1", "0.jpg")) + TEXT, 5),
    inside(
        "a hard link to a hard link",
        header(info("8.jpg", b"1", "0.jpg"))
        + member("8.txt", b"x")
        + header(info("9.jpg", b"1", "8.jpg"))
        + TEXT,
        6,
    ),
    inside("a hard link with ./", header(info("./9.jpg", b"1", "./0.jpg")) + TEXT, 5),
    inside(
        "a hard link as a caption",
        member("9.jpg", jpeg(9)) + header(info("9.txt", b"1", "0.txt")),
        5,
    ),
    inside(
        "a hard link to a later member",
        header(info("9.jpg", b"1", "3.jpg")),
        4,
        r"9\.jpg: .*'3\.jpg'",
    ),
    inside(
        "a hard link to nothing",
        header(info("9.jpg", b"1", "none.jpg")),
        4,
        r"9\.jpg: .*'none\.jpg'",
    ),
    inside("a hard link to itself", header(info("9.jpg", b"1", "9.jpg")), 4, r"9\.jpg: "),
    inside(
        "a hard link to a folder",
        header(info("x/", b"5")) + header(info("9.jpg", b"1", "x")),
        4,
        r"9\.jpg: ",
    ),
    inside("a hard link with a size", header(info("9.jpg", b"1", "0.jpg", size=700)), 5, r"."),
    inside("a symbolic link", header(info("9.jpg", b"2", "0.jpg")) + TEXT, 5),
    inside("a symbolic link to a later member", header(info("9.jpg", b"2", "3.jpg")) + TEXT, 5),
    inside(
        "a symbolic link through folders",
        member("b/0", jpeg(9)) + header(info("s/9.jpg", b"2", "../b/0")) + member("s/9.txt", b"x"),
        5,
        None,
    ),
    inside(
        "a symbolic link out of the file",
        header(info("9.jpg", b"2", "../blobs/4")) + TEXT,
        4,
        r"9\.jpg: .*'\.\./blobs/4'",
    ),
    inside(
        "a symbolic link to /etc/passwd",
        header(info("9.txt", b"2", "/etc/passwd")) + member("9.jpg", jpeg(9)),
        5,
        r"9\.txt: .*/etc/passwd",
    ),
    inside("a symbolic link to itself", header(info("9.jpg", b"2", "9.jpg")), 4, r"9\.jpg: "),
    inside(
        "symbolic links in a circle",
        header(info("8.jpg", b"2", "9.jpg")) + header(info("9.jpg", b"2", "8.jpg")),
        4,
        r"8\.jpg: .*9\.jpg: ",
    ),
    inside("a character device", header(info("9.jpg", b"3")), 4, r"9\.jpg: .*device"),
    inside("a block device", header(info("9.jpg", b"4")), 4, r"9\.jpg: .*device"),
    inside("a pipe", header(info("9.txt", b"6")), 4, r"9\.txt: .*pipe"),
    inside(
        "a contiguous file",
        header(info("9.jpg", b"7", size=len(jpeg(9)))) + padded(jpeg(9)) + TEXT,
        5,
    ),
    inside(
        "an unknown type",
        header(info("9.jpg", b"Z", size=5)) + padded(b"12345"),
        4,
        r"9\.jpg: .*'Z'",
    ),
    inside(
        "the rest of another volume",
        header(info("9.jpg", b"M", size=5)) + padded(b"12345"),
        4,
        r"9\.jpg: .*'M'",
    ),
    inside("the name of a volume", header(info("backup", b"V")), 4, r"backup: .*'V'"),
    inside(
        "a sparse file of GNU",
        header(info("9.jpg", b"S", size=5)) + padded(b"12345"),
        4,
        r"9\.jpg: .*sparse",
    ),
    inside(
        "a sparse file of pax",
        pax(
            record("GNU.sparse.major=1")
            + record("GNU.sparse.minor=0")
            + record("GNU.sparse.name=9.jpg")
            + record("GNU.sparse.realsize=99999999999999")
        )
        + member("GNUSparseFile.0/9.jpg", jpeg(9)),
        4,
        r"9\.jpg: .*sparse",
    ),
]

# Sizes
SIZED = header(info("9.jpg", size=len(jpeg(9))))
CASES += [
    inside(
        "a size in base 256",
        with_field(SIZED, "size", b"\x80" + len(jpeg(9)).to_bytes(11, "big"))
        + padded(jpeg(9))
        + TEXT,
        5,
    ),
    inside(
        "a huge size in base 256",
        with_field(SIZED, "size", b"\x80" + b"\xff" * 11) + padded(jpeg(9)),
        2,
        r"9\.jpg has 309,485,009,821,345,068,724,781,055 bytes",
    ),
    inside(
        "a negative size in base 256",
        with_field(SIZED, "size", b"\xff" * 11 + b"\x01") + padded(jpeg(9)),
        2,
        IN,
    ),
    inside("a negative size", with_field(SIZED, "size", b"-0000000001\0") + padded(jpeg(9)), 2, IN),
    inside(
        "a size of spaces",
        with_field(SIZED, "size", b" " * 12) + member("8.cls", b"x"),
        4,
        r"9\.jpg: .*0 bytes",
    ),
    inside(
        "a size that is no number", with_field(SIZED, "size", b"x" * 12) + padded(jpeg(9)), 2, IN
    ),
    inside("an image of no bytes", member("9.jpg", b"") + TEXT, 4, r"9\.jpg: .*0 bytes"),
]

# Ends
CASES += [
    case("no bytes", b"", 0, r"a\.tar"),
    case("one byte", b"x", 0, r"a\.tar"),
    case("511 zeros", bytes(511), 0, r"a\.tar"),
    case("only the end", END, 0, r"no members"),
    case("ten kilobytes of zeros", bytes(10240), 0, r"no members"),
    case("a gzip file", gzip.compress(WHOLE), 0, r"a\.tar: .*gzip"),
    case("a web page", b"<!DOCTYPE html><html>404</html>" * 99, 0, r"a\.tar: .*HTML"),
    case("a picture", jpeg(0) * 3, 0, r"a\.tar"),
    case("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\n" * 20, 0, r"LFS"),
    case(
        "cut off in a header", WHOLE[: HEADERS[4] + 100], 2, r"a\.tar: .*after 1\.txt.*100 of its"
    ),
    case("cut off in an image", WHOLE[: HEADERS[4] + 600], 2, r"2\.jpg has \d+ bytes, and 88 are"),
    case("cut off in a caption", WHOLE[: HEADERS[5] + 515], 3, r"a\.tar: .*after 2\.jpg"),
    case("cut off in padding", WHOLE[: HEADERS[6] - 100], 3, r"a\.tar: .*after 2\.txt"),
    case("cut off between members", WHOLE[: HEADERS[6]], 3, r"a\.tar: .*after 2\.txt.*zeros"),
    case("cut off between image and caption", WHOLE[: HEADERS[5]], 3, r"a\.tar: .*after 2\.jpg"),
]

# Captions
CAPTIONS = {
    "not UTF-8": ("txt", b"\xe4pfel", r"9\.txt: .*UTF-8"),
    "a zero byte": ("txt", b"a\0b", r"9\.txt: "),
    "UTF-16": ("txt", "apple".encode("utf-16"), r"9\.txt: .*UTF-16"),
    "twenty megabytes": ("txt", b"x" * 20_000_000, r"9\.txt: .*20,000,000"),
    "JSON that is cut off": ("json", b'{"caption": "x', r"9\.json: "),
    "JSON of another kind": ("json", b"null", r"9\.json: "),
    "JSON without a caption": ("json", b'{"title": "x"}', r"9\.json: .*title"),
    "JSON with a number": ("json", b'{"caption": 5}', r"9\.json: .*5"),
    "JSON with an object": ("json", b'{"caption": {"en": "x"}}', r"9\.json: "),
    "JSON with half a character": ("json", b'{"caption": "\\ud800"}', r"9\.json: "),
    "deep JSON": ("json", b"[" * 100_000, r"9\.json: "),
    "JSON with a number of many digits": (
        "json",
        b'{"caption": ' + b"9" * 5000 + b"}",
        r"9\.json: ",
    ),
}
CASES += [
    inside(
        f"a caption: {name}", member("9.jpg", jpeg(9)) + member(f"9.{ending}", content), 5, pattern
    )
    for name, (ending, content, pattern) in CAPTIONS.items()
]
CASES += [
    inside("a caption without an image", member("9.txt", b"lonely"), 4, r"9\.txt: .*no image"),
    inside("JSON without an image", member("9.json", b"{}"), 4, r"9\.json: .*no image"),
    inside(
        "an image without a caption",
        member("9.jpg", jpeg(9)),
        5,
        r"1 .*no caption|without caption  1",
    ),
    inside(
        "an escape sequence in a caption",
        member("9.jpg", jpeg(9)) + member("9.txt", b"\x1b]0;title\x07"),
        5,
        None,
    ),
    inside("an image that is none", member("9.jpg", b"no") + TEXT, 4, r"9\.jpg: "),
]


# Patterns


def nothing(folder: Path) -> None:
    write(WHOLE, folder)


def pattern_case(
    name: str, pattern: str, message: str, make: Callable[[Path], object] = nothing
) -> HostileCase:
    return HostileCase(name, make, script("check", pattern), refused(message), seconds=5.0)


CASES += [
    pattern_case("a thousand million shards", "x/{0..999999999}.tar", r"1,000,000,000"),
    pattern_case("a product of ranges", "{0..9999}/{0..9999}.tar", r"100,000,000"),
    pattern_case("many alternatives", "{a,b}" * 60 + ".tar", r"1,152,921,504,606,846,976"),
    pattern_case("a number of many digits", "{0.." + "9" * 5000 + "}.tar", r"5,000 digits"),
    pattern_case("shards that are missing", "{0..9}.tar", r"10 of the 10"),
    pattern_case("a name that is too long", "x" * 5000 + ".tar", r"xxx"),
    pattern_case(
        "a shard that is a pipe", "a.tar", r"a\.tar", lambda folder: os.mkfifo(folder / "a.tar")
    ),
    pattern_case(
        "a link to a device",
        "a.tar",
        r"a\.tar",
        lambda folder: (folder / "a.tar").symlink_to("/dev/zero"),
    ),
    pattern_case(
        "a link to itself",
        "a.tar",
        r"a\.tar",
        lambda folder: (folder / "a.tar").symlink_to("a.tar"),
    ),
    pattern_case("a compressed shard", "a.tar.gz", r"gunzip"),
]


@pytest.mark.parametrize("case", in_ci(CASES, 24))
def test_shards(case, world, tmp_path):
    check_case(case, world, tmp_path)


def test_there_are_many_cases():
    assert len(CASES) >= 80
