"""Which image files are read, by ending and by content, and the names of those that are not.

The content decides how a file is decoded; the ending only decides whether it is opened.
"""

from typing import Literal

from PIL import Image

Image.init()  # registers the endings of all formats that Pillow knows

Kind = Literal["BMP", "DIB", "GIF", "JPEG", "NPY", "PNG", "TIFF", "WEBP"]

# The one list of endings that are read, with the format that each of them promises.
READ: dict[str, Kind] = {
    ".apng": "PNG",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jif": "JPEG",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".mpo": "JPEG",
    ".npy": "NPY",
    ".pjp": "JPEG",
    ".pjpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
EXTENSIONS = frozenset(READ)

# Pictures that Pillow does not know, or knows under a name that says little.
NOT_READ = {
    ".arw": "a camera's raw format",
    ".btf": "BigTIFF",
    ".cr2": "a camera's raw format",
    ".cr3": "a camera's raw format",
    ".dcm": "DICOM",
    ".dng": "a camera's raw format",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".jng": "JNG",
    ".jxl": "JPEG XL",
    ".jxr": "JPEG XR",
    ".kra": "Krita",
    ".mng": "MNG",
    ".nef": "a camera's raw format",
    ".npz": "several arrays of NumPy",
    ".orf": "a camera's raw format",
    ".psb": "Photoshop",
    ".psd": "Photoshop",
    ".raf": "a camera's raw format",
    ".raw": "a camera's raw format",
    ".rw2": "a camera's raw format",
    ".svg": "SVG",
    ".svgz": "SVG",
    ".wdp": "JPEG XR",
    ".xcf": "GIMP",
}
KNOWN = {**Image.registered_extensions(), **NOT_READ}


def unread_format(ending: str) -> str | None:
    """Return the name of an image format that is not read; None for all other endings.

    ending: with its dot, such as ".heic", in capitals or not.
    """
    ending = ending.lower()
    return None if ending in EXTENSIONS else KNOWN.get(ending)


# Content ------------------------------------------------------------------------------------------

SIGNATURES: tuple[tuple[bytes, Kind], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\x93NUMPY", "NPY"),
)
DIB_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the header that such a file begins with
BRANDS = {  # of ISO media files: HEIC and AVIF are films of one picture
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "Canon's raw format": (b"crx ",),
}
FOREIGN = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xffO\xffQ", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"8BPS", "Photoshop"),
    (b"gimp xcf", "GIMP"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\0\0\x02\0", "a cursor (CUR)"),
    (b"icns", "an icon (ICNS)"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"SIMPLE  =", "FITS"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"FLV\x01", "a Flash video"),
    (b"PAR1", "Parquet"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)
TEXTS = (  # after white space, in any case
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML"),
    (b"{", "JSON"),
)


def recognize(head: bytes) -> Kind | None:
    """Return which of the formats that are read a file has, by its first bytes; None if none."""
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return "DIB" if int.from_bytes(head[:4], "little") in DIB_HEADERS and len(head) > 4 else None


def name_foreign(head: bytes) -> str | None:
    """Return the name of a format that is not read, by the first bytes of a file; None: unknown."""
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[k : k + 4] for k in range(16, min(len(head), 64), 4))]
        for name, known in BRANDS.items():
            if any(brand in known for brand in brands):
                return name
        return "a video (MP4)"
    if head[:4] == b"RIFF":
        return "an AVI video" if head[8:12] == b"AVI " else "a RIFF file, such as sound"
    for signature, name in FOREIGN:
        if head.startswith(signature):
            return name
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3].isspace():
        return "PPM"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, name in TEXTS:
        if text.startswith(start):
            return "SVG" if name == "XML" and b"<svg" in text else name
    return None
