"""The flags of check.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from dataset.options import ReadOptions
from stages.flags.check import CheckOptions
from training.flags import Groups, Needs, needs


@dataclass(frozen=True, kw_only=True)
class Options(CheckOptions):
    ESSENTIAL: ClassVar[Sequence[str]] = ("data", "preset", "sheet")
    GROUPS: ClassVar[Groups] = {
        "data": ("data", *ReadOptions.READ_FLAGS, "allow_missing_captions"),
        "planned training": (
            *("preset", "text_encoder", "size", "batch_size", "context_length", "text_chunks"),
            "value_range",
        ),
        "report": ("near_duplicates", "sheet", "json", "part"),
    }
    NEEDS: ClassVar[Needs] = (
        needs(
            *("preset", "text_encoder", "size", "batch_size", "context_length", "text_chunks"),
            *("value_range", "allow_missing_captions", "near_duplicates", "sheet", "json"),
            part=False,
        ),
    )
    RENAMED: ClassVar[Mapping[str, str]] = {"tokens": "context_length"}

    data: tyro.conf.Positional[Path]  # data folder, or tar files: 'shards/{000..099}.tar'
    sheet: Path | None = None  # draw pairs to this PNG file
    json: bool = False  # print the report as one JSON object
    part: str | None = None  # K/N: only check part K of N for the index, on one of N machines
