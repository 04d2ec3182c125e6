"""Members of shards that are odd or made to do harm: their names, kinds, sizes and captions."""

import tarfile

import pytest

from tests.helpers.data.hostile_tars import (
    END,
    GOOD,
    IN,
    between,
    case,
    header,
    info,
    inside,
    jpeg,
    member,
    note,
    padded,
    pax,
    record,
    sample,
    with_field,
)
from tests.helpers.hostile import check_case, in_ci

# Names
TEXT = member("9.txt", b"x")
LONG = "b" * 300
CASES = [
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


@pytest.mark.parametrize("case", in_ci(CASES, 12))
def test_members(case, world, tmp_path):
    check_case(case, world, tmp_path)


def test_there_are_many_cases():
    assert len(CASES) >= 60
