"""A run folder: starting the same command again goes on where the run stopped.

run.lock               locked while a training runs, and says which
config.json            every flag, resolved; "overrides" lists those that were changed later
history.jsonl          when the run was started, resumed, changed and finished, and at which step
metrics.jsonl  tb/     numbers, one JSON object a line, and the same for TensorBoard
previews/              images
state/step-0000500/    to resume
model/                 to use
best/                  to use: the weights of the best evaluation, with best.json
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundation import collectives
from foundation.errors import MissingFileError, UserError, one_line
from foundation.files import (
    append_line,
    partial_path,
    read_bytes,
    read_json,
    sync,
    sync_names,
    write_json,
)
from foundation.json_reading import check_type, from_json, load_object
from foundation.paths import ROOM, check_new_path
from foundation.run_kind import training_of
from foundation.system import patiently
from training.checkpoint import (
    Stateful,
    load_state,
    remove_leftovers,
    save_state,
    saved_states,
    step_of,
)
from training.config_json import REMOVED, to_json, with_current_names
from training.flags import flag_name
from training.run_lock import LOCK, RunLock

# Flags that say how to run, not what to compute; they may differ when a run is resumed.
FREE_FLAGS = (
    *("out", "device", "compile", "workers", "accumulate", "shard", "rank_timeout", "wandb"),
    *("dry_run", "images_per_second", "find_batch_size", "overfit", "verify_cache", "best_by"),
)
LARGEST_HISTORY = 2**30  # bytes
# Flags that are newer than some runs, with what these did.
ADDED = {"condition": "text", "task": "draw"}
ABSENT = object()  # stands for the value of a flag that only the other config has
Differences = dict[str, tuple[Any, Any]]  # name of a flag -> (value before, value now)


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Differences:
    """Return every flag that differs and changes what is computed; `loss.kl_weight` if nested."""
    differences: Differences = {}
    for key in sorted(old.keys() | new.keys()):
        absent = ABSENT if prefix else ADDED.get(key, ABSENT)
        before, now = old.get(key, absent), new.get(key, ABSENT)
        if before == now or (not prefix and key in FREE_FLAGS):
            continue
        if before is ABSENT and (now is None or now is False or now in ((), [], "")):
            continue  # a flag that the program did not have then, and that is off now
        if isinstance(before, dict) and isinstance(now, dict):
            differences |= config_differences(before, now, f"{prefix}{key}.")
        else:
            differences[prefix + key] = (before, now)
    return differences


def describe_differences(differences: Differences) -> list[str]:
    """Return lines such as `steps: 500 -> 900`; the flags that one side lacks share a line."""
    lines = [
        f"{key}: {one_line(before, 300)} -> {one_line(now, 300)}"
        for key, (before, now) in differences.items()
        if before is not ABSENT and now is not ABSENT
    ]
    if only_old := [key for key, (_, now) in differences.items() if now is ABSENT]:
        lines.append(f"only there: {', '.join(only_old)}")
    if only_new := [key for key, (before, _) in differences.items() if before is ABSENT]:
        lines.append(f"only here: {', '.join(only_new)}")
    return lines


def as_override(differences: Differences) -> str:
    """Return the flag that changes these settings in a run, such as `--override steps=900`."""
    words: list[str] = []
    for key, (_, now) in differences.items():
        if isinstance(now, bool | int | float | str):
            value = str(now).lower() if isinstance(now, bool) else one_line(now, 100)
            words.append(f"{flag_of(key).replace('_', '-')}={value}")
    return f"--override {' '.join(words or ['NAME=VALUE'])}"


@dataclass(frozen=True)
class Event:
    """A line of history.jsonl."""

    step: int
    event: str


class Run:
    """One run folder. Opening it for the second time means resuming it."""

    def __init__(self, path: Path, config: Any, *, lock: bool = False):
        """Make the folder, or check that it was made with the same config.

        Args:
            path: the folder.
            config: dataclass or dict. If it has `override`, a list of `name=value`, these flags
                may differ from those in the folder.
            lock: keep other trainings out of the folder until `release`, or as long as this object
                is used.

        Raises:
            UserError: the folder holds something else, or a run with other settings; or another
                process trains in it.
        """
        self.path = Path(path)
        self.config = with_current_names(to_json(config))
        override = self.config.pop("override", ())
        override = check_type(override, tuple[str, ...], self.config_file, "override")
        overridden = {flag_of(text) for text in override}
        self.changed: Differences = {}  # by --override, since the last start
        self.renamed = False  # whether config.json has flags under old names
        if collectives.rank() and not self.config_file.is_file():
            raise UserError(
                f"rank 0 has begun a run in {self.path}, and rank {collectives.rank()} does not "
                "see it. Let --out be on a file system that all machines share."
            )
        make_folder(self.path)
        self._refuse_other_content()
        self.lock: RunLock | None = None
        is_new = not self.config_file.is_file()
        if lock and is_new and not collectives.rank():
            self.lock = RunLock(self.path)
        if self.config_file.is_file():
            old = read_json(self.config_file)
            self.renamed = with_current_names(old) != old
            self._compare(with_current_names(old), overridden)
        else:
            write_json(self.config_file, self.config)
            sync_names(self.path.parent)
        if lock and not is_new and not collectives.rank():  # after all that writes nothing
            self.lock = RunLock(self.path)

    def _refuse_other_content(self) -> None:
        """Refuse a folder that is neither empty nor a run folder."""
        of_a_beginning = {partial_path(self.config_file).name, LOCK}
        others = {file.name for file in self.path.iterdir()} - of_a_beginning
        if others and not self.config_file.is_file():
            raise UserError(
                f"{self.path} is not empty and is not a run folder (no config.json in it). "
                "Choose another --out, or empty it."
            )

    @contextmanager
    def released_after_errors(self) -> Iterator[None]:
        """Give the lock back if the block fails, also where the error is kept and looked at."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let other processes train in this folder."""
        if self.lock is not None:
            self.lock.release()

    def _compare(self, old: dict[str, Any], overridden: set[str]) -> None:
        """Refuse flags that differ from the config on disk, unless they are overridden."""
        kind = list[dict[str, Any]]
        overrides = check_type(old.pop("overrides", []), kind, self.config_file, "overrides")
        self.config.pop("overrides", None)  # there if `config` was read from a run folder
        for name, why in REMOVED.items():
            if old.pop(name, False):
                raise UserError(
                    f"{self.path} holds a run with {flag_name(name)}, which is no longer there: "
                    f"{why} The model in that folder can still be used. To train, give another "
                    "--out."
                )
        made_by, training = training_of(old), training_of(self.config)
        if made_by and training and made_by != training:
            raise UserError(
                f"{self.path} is the folder of a run of {made_by}, and this is {training}. Choose "
                "another --out."
            )
        self.changed = config_differences(old, self.config)
        refused = {k: pair for k, pair in self.changed.items() if flag_of(k) not in overridden}
        goes_back = self._goes_back()
        possible = {k: pair for k, pair in refused.items() if not (goes_back and k == "steps")}
        if not all(is_longer_run(name, *pair) for name, pair in possible.items()):
            raise UserError(
                f"{self.path} holds a run with other settings:\n  "
                + "\n  ".join(describe_differences(refused))
                + "\nTo resume it, give the old settings; to start afresh, give another --out. "
                "To go on with the new settings, start the old command with "
                f"{as_override(possible)} at its end."
            )
        if goes_back:
            raise UserError(
                f"steps={self.config['steps']} is before step {self.saved_step}, which {self.path} "
                "has reached already; a run cannot go back. Give more steps, or another --out to "
                "start afresh."
            )
        if self.changed:
            change = {"step": self.saved_step, "flags": describe_differences(self.changed)}
            overrides = [*overrides, change]
        if overrides:
            self.config["overrides"] = overrides

    def _goes_back(self) -> bool:
        """Return whether fewer steps are asked for than are done."""
        steps = self.config.get("steps")
        return "steps" in self.changed and isinstance(steps, int) and steps < self.saved_step

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
    def best(self) -> Path:
        return self.path / "best"

    @property
    def states(self) -> Path:
        return self.path / "state"

    @property
    def saved_step(self) -> int:
        """The step of the newest state; 0 if there is none."""
        states = saved_states(self.states)
        return step_of(states[-1]) if states else 0

    def preview(self, step: int) -> Path:
        """Return the file for the preview of a step; make its folder."""
        check_run_exists(self.path)
        folder = self.path / "previews"
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:07d}.png"

    def save(self, step: int, state: Mapping[str, Stateful]) -> None:
        """Save the state of a step; see `save_state`."""
        check_run_exists(self.path)
        save_state(self.states, step, state)

    def resume(self, state: Mapping[str, Stateful]) -> int:
        """Load the newest state if there is one, print which, and return the run's step."""
        if not collectives.rank():
            remove_leftovers(self.states)
        states = saved_states(self.states)
        step = load_state(states[-1], state) if states else 0
        source = self.config.get("init_from")
        if states:
            event = f"resumed from {states[-1].name}"
            text = f"resuming {self.path} at step {step}"
            text += f"; {source} was read at its beginning, not now." if source else "."
        else:
            event = f"begun with the weights of {source}" if source else "begun with random weights"
            text = f"a fresh run in {self.path}, {event}."
        print(text)
        if (self.changed or self.renamed) and not collectives.rank():
            write_json(self.config_file, self.config)
        if self.renamed:
            print(f"note: some flags have new names; {self.config_file} has them from here on.")
        if self.changed:
            changed = "; ".join(describe_differences(self.changed))
            print(f"changed from step {step} on: {changed}")
            event += f", changed: {changed}"
        self.add_history(step, event)
        return step

    def add_history(self, step: int, event: str) -> None:
        """Add a line to the history, on rank 0 only."""
        if collectives.rank():
            return
        check_run_exists(self.path)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"step": step, "event": event, "time": time}, ensure_ascii=False)
        append_line(self.history, line)

    def finish(self, steps: int) -> None:
        """Mark the run as finished; call it on every rank when the model is written."""
        if not collectives.rank():
            for name in (".model*", ".best*"):  # of a process killed while it wrote
                for leftover in self.path.glob(name):
                    patiently(shutil.rmtree, leftover)
            sync(self.model)
            self.add_history(steps, "finished")
        collectives.barrier()
        self.release()

    def finished(self, steps: int) -> bool:
        """Return whether all steps are done and the model is written; print so if it is."""
        if last_event(self.history) != (steps, "finished"):
            return False
        done = any(self.model.rglob("*.safetensors"))
        if not done:
            print(f"note: the run was finished, but {self.model} holds no weights any more.")
        else:
            self.release()
            late = ", so the override changes nothing" if self.changed else ""
            print(f"{self.path} is finished: {steps} steps{late}. Its model is in {self.model}.")
        return done


def is_longer_run(name: str, before: Any, now: Any) -> bool:
    """Return whether a flag asks for more steps than before: the run goes on without more words."""
    return name == "steps" and isinstance(before, int) and isinstance(now, int) and now > before


def check_run_exists(run: Path) -> None:
    """Refuse to write into a folder that is no run folder any more.

    Call it before anything new is written: where a disk was mounted there may now be an empty
    folder of another disk.

    Raises:
        MissingFileError: the run that is training here is gone.
    """
    if not (run / "config.json").is_file():
        raise MissingFileError(
            f"the run folder {run} is no longer there. Was its disk removed, or the folder moved? "
            "With it back, the same command goes on from the last state in it."
        )


def flag_of(text: str) -> str:
    """Return the name of a flag: `kl_weight`, of `kl-weight=1e-5` or of `loss.kl_weight`."""
    return text.partition("=")[0].replace("-", "_").rpartition(".")[2]


def last_event(history: Path) -> tuple[int, str] | None:
    """Return (step, event) of the last line; None without one, or if it was cut short."""
    try:
        lines = read_bytes(history, LARGEST_HISTORY).splitlines()
        event = from_json(Event, load_object(lines[-1], history), history)
    except (UserError, IndexError):
        return None
    return event.step, event.event


def make_folder(path: Path) -> None:
    """Make a folder for results, unless it is there.

    Raises:
        UserError: it, or a folder above it, is a file.
    """
    check_new_path(path, ROOM)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"--out {path} cannot be a folder: it, or a part of it, is a file. Choose another."
        ) from error
