"""A run is a folder; running the same command again goes on where it stopped.

config.json            every flag, resolved; under "overrides" what was changed on the way
history.jsonl          when it was started, resumed, changed and finished, and at which step
metrics.jsonl  tb/     numbers, one JSON object a line, and the same for TensorBoard
previews/              pictures
state/step-0000500/    to resume
model/                 to use
"""

import json
import shutil
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundation import collectives
from foundation.errors import MissingFileError, UserError
from foundation.files import (
    append_line,
    partial_path,
    read_json,
    sync,
    sync_names,
    write_json,
)
from training.checkpoint import load_state, remove_leftovers, save_state, saved_states

# Flags that say how to run, not what to compute; they may differ when a run is resumed.
FREE_FLAGS = (
    *("out", "device", "workers", "accumulate", "shard", "rank_timeout", "wandb"),
    *("dry_run", "find_batch_size", "overfit", "verify_cache"),
)
ABSENT = object()  # the value of a flag that only the other side has


def plain(value: Any) -> Any:
    """A config as JSON holds it: dataclasses as dicts, paths as strings, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Name -> (before, now) of every flag that changes what is computed; `loss.kl_weight` if
    nested."""
    found = {}
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, ABSENT), new.get(key, ABSENT)
        if before == now or (not prefix and key in FREE_FLAGS):
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found |= differences(before, now, f"{prefix}{key}.")
        else:
            found[prefix + key] = (before, now)
    return found


def lines(changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """Lines such as `steps: 500 -> 900`."""
    both = {key: pair for key, pair in changed.items() if ABSENT not in pair}
    told = [f"{key}: {before} -> {now}" for key, (before, now) in both.items()]
    for side, where in ((1, "there"), (0, "here")):
        if keys := [key for key, pair in changed.items() if pair[side] is ABSENT]:
            told.append(f"only {where}: {', '.join(keys)}")
    return told


class Run:
    """One run folder. Opening it for the second time means resuming it."""

    def __init__(self, path: Path, config: Any):
        """Creates the folder, or checks that it was made with the same config.

        config: `override`, if it has that, names flags that may differ, as `name=value`.

        Raises:
            ValueError: the folder holds something else, or a run with other settings.
        """
        self.path = Path(path)
        self.config = plain(config)
        named = {flag_of(text) for text in self.config.pop("override", ())}
        self.changed: dict[str, tuple[Any, Any]] = {}  # by --override, since the last start
        if collectives.rank() and not self.config_file.is_file():
            raise UserError(
                f"rank 0 has begun a run in {self.path}, and rank {collectives.rank()} does not "
                "see it. Let --out be on a file system that all machines share."
            )
        make_folder(self.path)
        if self.config_file.is_file():
            self.compare(read_json(self.config_file), named)
        elif {file.name for file in self.path.iterdir()} - {partial_path(self.config_file).name}:
            raise UserError(
                f"{self.path} is not empty and is not a run folder (no config.json in it). "
                "Choose another --out, or empty it."
            )
        else:
            write_json(self.config_file, plain(self.config))
            sync_names(self.path.parent)

    def compare(self, old: dict[str, Any], named: set[str]) -> None:
        """Refuses what differs from the config on disk, unless it is named."""
        overrides = old.pop("overrides", [])
        self.config.pop("overrides", None)  # there if this is the config of a run
        self.changed = differences(old, self.config)
        refused = {key: pair for key, pair in self.changed.items() if flag_of(key) not in named}
        if refused:
            raise UserError(
                f"{self.path} holds a run with other settings:\n  "
                + "\n  ".join(lines(refused))
                + "\nGive the old settings to resume it, or another --out to start afresh. To go "
                "on with a flag changed, name it: --override NAME=VALUE."
            )
        if self.changed:
            overrides = [*overrides, {"step": self.saved_step, "flags": lines(self.changed)}]
        if overrides:
            self.config["overrides"] = overrides

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def states(self) -> Path:
        return self.path / "state"

    @property
    def saved_step(self) -> int:
        """That of the newest state; 0 if there is none."""
        states = saved_states(self.states)
        return int(states[-1].name.removeprefix("step-")) if states else 0

    def preview(self, step: int) -> Path:
        """Where the picture of this step goes."""
        require(self.path)
        folder = self.path / "previews"
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:07d}.png"

    def save(self, step: int, parts: dict[str, Any]) -> None:
        require(self.path)
        save_state(self.states, step, parts)

    def resume(self, parts: dict[str, Any]) -> int:
        """Loads the newest state into `parts`, or leaves them as they are if there is none; says
        which it was. Returns the step that the run is at."""
        if not collectives.rank():
            remove_leftovers(self.states)
        states = saved_states(self.states)
        step = load_state(states[-1], parts) if states else 0
        given = self.config.get("init_from")
        if states:
            event = f"resumed from {states[-1].name}"
            text = f"resuming {self.path} at step {step}"
            text += f"; {given} was read at its beginning, not now." if given else "."
        else:
            event = f"begun with the weights of {given}" if given else "begun with random weights"
            text = f"a fresh run in {self.path}, {event}."
        print(text)
        if self.changed:
            if not collectives.rank():
                write_json(self.config_file, plain(self.config))
            changed = "; ".join(lines(self.changed))
            print(f"changed from step {step} on: {changed}")
            event += f", changed: {changed}"
        self.note(step, event)
        return step

    def note(self, step: int, event: str) -> None:
        """Adds a line to the history."""
        if collectives.rank():
            return
        require(self.path)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"step": step, "event": event, "time": time}, ensure_ascii=False)
        append_line(self.history, line)

    def finish(self, steps: int) -> None:
        """To be called when the model is written: it is complete and on the disk from here on."""
        if not collectives.rank():
            for left in self.path.glob(".model*"):  # by a process that was killed while it wrote
                shutil.rmtree(left)
            sync(self.model)
            self.note(steps, "finished")
        collectives.barrier()

    def finished(self, steps: int) -> bool:
        """Whether all steps are done and the model is written; says so. Nothing is left to do."""
        done = self.model.is_dir() and last_event(self.history) == (steps, "finished")
        if done:
            late = ", so the override changes nothing" if self.changed else ""
            print(f"{self.path} is finished: {steps} steps{late}. Its model is in {self.model}.")
        return done


def require(run: Path) -> None:
    """To be called before anything new is written: where a disk was mounted may now be an empty
    folder of another one.

    Raises:
        FileNotFoundError: the run that is training here has gone.
    """
    if not (run / "config.json").is_file():
        raise MissingFileError(
            f"the run folder {run} is no longer there. Was its disk removed, or the folder moved? "
            "With it back, the same command goes on from the last state in it."
        )


def flag_of(text: str) -> str:
    """`kl_weight`, of `kl-weight=1e-5` or of `loss.kl_weight`."""
    return text.partition("=")[0].replace("-", "_").rpartition(".")[2]


def last_event(history: Path) -> tuple[int, str] | None:
    """None if there is none, or if the last line was cut short."""
    try:
        event = json.loads(history.read_text(encoding="utf-8").splitlines()[-1])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return event["step"], event["event"]


def make_folder(path: Path) -> None:
    """Makes a folder for results, unless it is there.

    Raises:
        ValueError: something is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"--out {path} cannot be a folder: it, or a part of it, is a file. Choose another."
        ) from error
