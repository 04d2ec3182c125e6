"""Why a file of the data folder is not read."""

from dataset.members import Source
from foundation.errors import UserError


class UnusableImage(UserError):
    """A file that cannot be trained on, and why."""

    def __init__(self, path: Source, reason: str):
        super().__init__(path, reason)  # as they came, so that it survives pickling
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class MissingLibrary(UserError):
    """One that would read the file is not installed: no fault of the file."""
