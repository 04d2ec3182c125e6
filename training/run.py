"""A run is a folder; running the same command again goes on where it stopped.

config.json            every flag, resolved
metrics.jsonl  tb/     numbers, one JSON object a line, and the same for TensorBoard
previews/              pictures
state/step-0000500/    to resume
model/                 to use
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from training.checkpoint import load_state, save_state, saved_states, state_folder

# Flags that say how to run, not what to compute; they may differ when a run is resumed.
FREE_FLAGS = ("out", "device", "workers", "dry_run", "verify_cache")


def plain(value: Any) -> Any:
    """A config as JSON holds it: dataclasses as dicts, paths as strings, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines such as `steps: 500 -> 900`, for every flag that changes what is computed."""
    lines = []
    for key in sorted(old.keys() & new.keys()):
        before, after = old[key], new[key]
        if before == after or (not prefix and key in FREE_FLAGS):
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    for keys, where in ((old.keys() - new.keys(), "there"), (new.keys() - old.keys(), "here")):
        if keys := sorted(keys - set(FREE_FLAGS)):
            lines.append(f"only {where}: {', '.join(prefix + key for key in keys)}")
    return lines


class Run:
    """One run folder. Opening it for the second time means resuming it."""

    def __init__(self, path: Path, config: Any):
        """Creates the folder, or checks that it was made with the same config.

        Raises:
            ValueError: the folder holds something else, or a run with other settings.
        """
        self.path = Path(path)
        self.config = plain(config)
        file = self.path / "config.json"
        make_folder(self.path)
        if file.is_file():
            changed = differences(read_json(file), self.config)
            if changed:
                raise ValueError(
                    f"{self.path} holds a run with other settings:\n  "
                    + "\n  ".join(changed)
                    + "\n"
                    "Give the old settings to resume it, or another --out to start afresh."
                )
        elif any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty and is not a run folder (no config.json in it). "
                "Choose another --out, or empty it."
            )
        else:
            write_json(file, self.config)

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def states(self) -> Path:
        return self.path / "state"

    def preview(self, step: int) -> Path:
        """Where the picture of this step goes."""
        folder = self.path / "previews"
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:07d}.png"

    def save(self, step: int, parts: dict[str, Any]) -> None:
        save_state(self.states, step, parts)

    def resume(self, parts: dict[str, Any]) -> int:
        """Loads the newest state into `parts`; returns its step, 0 for a fresh run."""
        states = saved_states(self.states)
        return load_state(states[-1], parts) if states else 0

    def finished(self, steps: int) -> bool:
        """Whether all steps are done and the model is written; says so. Nothing is left to do."""
        done = state_folder(self.states, steps).is_dir() and self.model.is_dir()
        if done:
            print(f"{self.path} is finished: {steps} steps. Its model is in {self.model}.")
        return done


def make_folder(path: Path) -> None:
    """Makes a folder for results, unless it is there.

    Raises:
        ValueError: something is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"--out {path} cannot be a folder: it, or a part of it, is a file. Choose another."
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}). Put the right one back, or choose another --out."
        ) from error


def write_json(file: Path, value: Any) -> None:
    """Atomic: a crash leaves the old file or the new one."""
    write_text(file, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Atomic, too."""
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to write into; it takes the place of `folder` if all goes well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    partial.chmod(0o755)  # mkdtemp makes it private
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
