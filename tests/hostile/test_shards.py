"""Shards that are damaged, odd or made to do harm: what is lost is named, by member and byte."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.data.hostile_tars import (
    BLOCK,
    CHECK,
    END,
    FIELDS,
    GOOD,
    HEADERS,
    IN,
    WHOLE,
    case,
    flipped,
    found,
    header,
    info,
    inside,
    jpeg,
    member,
    pax,
    record,
    sample,
    write,
)
from tests.helpers.hostile import HostileCase, check_case, in_ci, refused, script

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


@pytest.mark.parametrize("case", in_ci(CASES, 14))
def test_shards(case, world, tmp_path):
    check_case(case, world, tmp_path)


def test_there_are_many_cases():
    assert len(CASES) >= 80
