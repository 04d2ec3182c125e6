"""What a part of benchmarks/gpu.py is told, and where it leaves its results.

A result is a line of JSON in a file, written at once: a part that crashes or is killed keeps those
that it had.
"""

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One part to run."""

    part: str  # MODULE:FUNCTION in this folder, perhaps with arguments after more colons
    device: str  # cuda or cpu
    rehearse: bool  # tiny sizes and few repeats, to see whether everything runs
    ends_at: float  # time.time() at which the part is killed
    folder: str  # an empty folder for its files
    out: str  # where files that are to be kept go
    data: str | None  # folder of captioned images for the demo recipe
    demo_preset: str = "demo"  # of the demo recipe

    @property
    def records(self) -> Path:
        return Path(self.folder) / "records.jsonl"

    @property
    def files(self) -> Path:
        return Path(self.folder)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def left(self) -> float:
        """Return the seconds until the part is killed."""
        return self.ends_at - time.time()

    def record(self, name: str, **values: Any) -> None:
        """Keep a result; a later one of the same name adds to it."""
        with self.records.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{name}: {values}", flush=True)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Record an exception of the block, and go on after it."""
        try:
            yield
        except Exception as error:  # whatever it is, the next measurement can still be made
            traceback.print_exc()
            self.record(name, error=describe(error))

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results of a part by name; a last line that is cut off is left out."""
    found: dict[str, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.setdefault(values.pop("name"), {}).update(values)
    return found


def describe(error: BaseException) -> str:
    """Return an exception as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )
