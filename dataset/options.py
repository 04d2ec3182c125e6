"""How a data set is read: which split and which columns. Every script that takes data has these."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from foundation.errors import UserError

Layout = Literal["auto", "hwc", "chw"]  # order of the axes of an array: see images/pixel_format.py


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Flags of every script that reads a data set. What is left out is found, or is an error."""

    READ_FLAGS: ClassVar[tuple[str, ...]] = (
        *("split", "image_column", "caption_column"),
        "trust_hashes",
    )

    split: str | None = None  # read only this part of the data, such as train or test
    image_column: str | None = None  # of a table; left out: by its name and type
    caption_column: str | None = None  # of a table; left out: by its name and type
    trust_hashes: bool = False  # of shards: do not decode images whose .json states their sha256

    def refuse(self, names: Iterable[str], kind: str) -> None:
        """Raise a UserError if one of these options is given; kind: of the data, as in "shards"."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise UserError(
                    f"{name} is {getattr(self, name)!r}, but the data are {kind}, which have none. "
                    f"Leave out {name}."
                )


DEFAULT_OPTIONS = ReadOptions()
