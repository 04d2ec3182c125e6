"""The border that image files cross: whatever a library raises over one becomes UnusableImage.

Image files come from anywhere, and the libraries that decode them raise almost anything over a
damaged one. So this is the one place where every exception is caught.
"""

import logging
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from PIL import Image

from dataset.images.formats import name_foreign
from dataset.images.limits import MIB, MOST_FILE_BYTES
from dataset.source import MissingLibrary, Source, UnusableImage
from dataset.stores.backends import StoreError
from foundation.errors import one_line
from foundation.system import after_fork

LONGEST_REASON = 200  # characters of what a library says
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it raises what matters


@contextmanager
def border(path: Source) -> Iterator[None]:
    """Turn every error of a library that reads this file into UnusableImage, with the reason.

    Only calls of libraries and the reading of headers belong inside, since it hides bugs.

    Raises:
        UnusableImage: the file is of no use.
        MissingLibrary: the library that reads it is not installed.
        StoreError: the store that holds it cannot be reached.
    """
    try:
        with QUIET.silence():
            yield
    except (UnusableImage, MissingLibrary, StoreError):
        raise
    except Image.UnidentifiedImageError as error:
        raise UnusableImage(path, "cannot be read: its header is damaged") from error
    except Image.DecompressionBombError as error:  # Pillow's limit is `limits.MOST_PIXELS`, too
        raise UnusableImage(path, f"is too large: {brief(error)}") from error
    except MemoryError as error:
        raise UnusableImage(path, "cannot be read: there is not enough memory for it") from error
    except OSError as error:
        raise UnusableImage(path, f"cannot be read: {error.strerror or brief(error)}") from error
    except Exception as error:
        raise UnusableImage(path, f"cannot be read: {brief(error)}") from error


def brief(error: Exception) -> str:
    """Return what an error says, as one short line that a terminal can show."""
    return one_line(" ".join(str(error).split()) or type(error).__name__, LONGEST_REASON)


class Quiet:
    """Silences warnings while any thread decodes: about metadata, which decides nothing here.

    `warnings.catch_warnings` alone is not safe in threads: the last one to leave may restore the
    filters of another.
    """

    def __init__(self):
        self.reset()
        after_fork(self.reset)

    def reset(self) -> None:
        """Forget who decodes: of a forked process, the threads are gone."""
        self.lock, self.users = Lock(), 0

    @contextmanager
    def silence(self) -> Iterator[None]:
        with self.lock:
            if self.users == 0:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.caught.__exit__(None, None, None)


QUIET = Quiet()


def file_size(path: Source) -> int:
    """Return the size of a file that can be opened without risk.

    Raises:
        UnusableImage: it is missing, no regular file, empty or too large.
    """
    with border(path):
        status = path.stat()
    mode = getattr(status, "st_mode", stat.S_IFREG)  # members of tar files have none
    if not stat.S_ISREG(mode):
        raise UnusableImage(path, "is not a regular file, so it is not opened")
    if status.st_size == 0:
        raise UnusableImage(path, "is empty (0 bytes)")
    if status.st_size > MOST_FILE_BYTES:
        raise UnusableImage(
            path,
            f"is a file of {status.st_size / MIB:,.0f} MiB; image files up to "
            f"{MOST_FILE_BYTES // MIB} MiB are read",
        )
    return status.st_size


def refuse_foreign(path: Source, head: bytes) -> UnusableImage:
    """Return the error for a file of a format that is not read, with its name if it is known."""
    name = name_foreign(head)
    if name is None:
        return UnusableImage(path, "is not an image, whatever its name says")
    convert = "" if name == "HTML" else "; convert it to PNG or JPEG"
    return UnusableImage(path, f"is {name} under another name{convert}")
