"""What the tabs share: the models, the folder of the pictures, and the calls that run."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import gradio as gr

from foundation.errors import UserError, listed, shown
from foundation.files import atomic_file
from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from generation.session import GenerationSession
from training.logging.progress import format_duration
from training.run import make_folder
from web.call_queue import Caller, CallQueue, Stopped, Turn
from web.drawing import DrawCall, Progress, images_of
from web.open_models import ModelChoice, OpenModels
from web.option_form import command_line, for_the_page, options_of

OPENING = "Opening the model ..."
MOST_EARLIER = 60  # pictures of the history that the page shows
EARLIER = re.compile(r"(grid-)?\d+\.(png|jpg|webp|gif|mp4)")  # names of what the page shows
KEPT = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jsonl")
# Only the page itself calls these events; the API has its own.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
# Of an event that may raise an error and fills fields, which a mark of the error would cover. The
# error is a message of its own, if the event waits in gradio's queue.
FILLS: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
# Of an event that can't fail: it answers at once, also while others wait in the queue.
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
DRAWS: dict[str, Any] = {"concurrency_limit": None}  # they wait for each other in `Studio.queue`
Shown = tuple[Any, Any, str, str]  # gallery, its files, status, command


@dataclass
class Studio:
    """Draws for all sessions of the page, one call after the other.

    Args:
        folder: that pictures are written to.
        data: folders that data sets are read from; new ones are written to the first.
    """

    models: OpenModels
    folder: Path
    data: Sequence[Path] = (Path("data"),)
    queue: CallQueue = field(default_factory=CallQueue)

    def draw(self, caller: Caller, model: ModelChoice, entry: PromptEntry) -> Iterator[Shown]:
        """Draw the pictures of a prompt; yield what the page shows.

        Raises:
            UserError: an option does not suit the model, or the model cannot be opened.
        """
        images = images_of(entry)
        command = self.command_line(model, entry.prompt, entry.options)
        seeds = [f"seed {image.seed}" for image in images]
        try:
            with self.queue.enter(caller) as turn:
                for status in self.statuses(turn):
                    yield [], [], status, command
                call = DrawCall(self.open(model, turn), images, self.folder, turn.stop)
                for progress in call:
                    gallery = list(zip([*progress.files, *progress.previews], seeds, strict=False))
                    status = status_of(progress, call.stop.is_set())
                    yield gallery, [str(file) for file in progress.files], status, command
        except Stopped:
            yield [], [], STOPPED, command

    def statuses(self, turn: Turn) -> Iterator[str]:
        """Wait for the turn of a call; yield what the page says until the model is open.

        Raises:
            Stopped: it was stopped meanwhile.
        """
        for ahead in turn.wait():
            yield f"Waiting: {ahead} {'call is' if ahead == 1 else 'calls are'} before this one."
        yield OPENING

    def open(self, model: ModelChoice, turn: Turn) -> GenerationSession:
        """Open a model for a call whose turn it is.

        Raises:
            UserError: the page does not offer it, or it cannot be opened.
            Stopped: the call was stopped meanwhile.
        """
        session = self.models.open(model)
        turn.check()
        return session

    def command_line(
        self, model: ModelChoice, prompt: str | None, options: GenerationOptions, **others: Any
    ) -> str:
        """Return the command of sample.py that draws the same.

        Args:
            prompt: None for none.
            others: flags that are neither options of a picture nor of the model, by name.
        """
        flags = {**others, **model.flags, **self.models.flags}
        return command_line(model.name, prompt, options, **flags)

    def draw_form(
        self, caller: Caller, model: str, prompt: str, form: Mapping[str, Any], **others: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Draw with the values of a form; yield what the page shows, and the seed.

        others: options that are no fields of the form.
        """
        entry = PromptEntry(prompt or "", self.options(form, **others))
        for update in self.draw(caller, self.choice(model, form), entry):
            yield *update, form["seed"]

    def options(self, form: Mapping[str, Any], **others: Any) -> GenerationOptions:
        """Return the options for the values of a form; see `options_of`."""
        weak_model = self.models.weak_model(form.get("weak_model"))
        return options_of(form, weak_model=weak_model, **others)

    def choice(self, model: str, form: Mapping[str, Any]) -> ModelChoice:
        """Return the model with the LoRA that is chosen in a form."""
        return ModelChoice.of(model, form.get("lora"), form.get("lora_scale"))

    def connect_stop(self, button: gr.Button, tab: str) -> None:
        """Let a button stop what its tab draws, also what waits for its turn."""

        def on_stop(request: gr.Request) -> None:
            self.queue.stop(caller_of(request, tab))

        button.click(on_stop, None, None, queue=False, **PRIVATE)

    def keep(self, content: bytes, suffix: str) -> Path:
        """Write a file that others are made from, once, and return its path, as short as it can be.

        Raises:
            UserError: it is not named as a picture or a list of prompts.
        """
        if suffix.lower() not in KEPT:
            raise UserError(
                f"a file named {shown(suffix)} is not read. There are: {listed(KEPT, 9)}."
            )
        folder = self.folder / "inputs"
        make_folder(folder)
        file = folder / f"{sha256(content).hexdigest()[:16]}{suffix.lower()}"
        if not file.exists():
            with atomic_file(file) as partial:
                partial.write_bytes(content)
        here = Path.cwd()
        return file.relative_to(here) if file.is_relative_to(here) else file

    def earlier(self) -> list[Path]:
        """List the newest pictures, videos and grids of the folder, the newest first."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        own = [file for file in files if EARLIER.fullmatch(file.name) and not file.is_symlink()]
        return sorted(own, key=lambda file: file.stat().st_mtime_ns, reverse=True)[:MOST_EARLIER]


def caller_of(request: gr.Request, tab: str = "") -> Caller:
    """Return who calls: a session of the page, and the tab in it; nobody else if it has none."""
    return Caller(request.session_hash or token_hex(8), tab)


def status_of(progress: Progress, stopped: bool) -> str:
    """Say in words how far a call is."""
    count = len(progress.files)
    if progress.done >= progress.total and not progress.previews:
        return f"Ready: {count} {'picture' if count == 1 else 'pictures'}."
    if stopped:
        return stopped_with(count)
    seconds = progress.seconds_left
    left = "" if seconds is None else f", {format_duration(seconds)} left"
    return f"Step {progress.done} of {progress.total}{left}"


def stopped_with(count: int) -> str:
    """Say that a call was stopped, and how many pictures it finished."""
    return f"Stopped. {count} {'picture is' if count == 1 else 'pictures are'} finished."


STOPPED = stopped_with(0)  # of a call that had not begun


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show the errors of a block as messages of the page."""
    try:
        yield
    except (UserError, FloatingPointError, OSError) as error:
        raise gr.Error(for_the_page(error), print_exception=False) from error


def with_messages(action: Callable[..., Any]) -> Callable[..., Any]:
    """Show the errors of a function as messages of the page."""

    @wraps(action)
    def checked(*arguments: Any) -> Any:
        with errors_shown():
            return action(*arguments)

    return checked


def streamed_with_messages(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Do the same for a function that yields."""

    @wraps(action)
    def checked(*arguments: Any) -> Iterator[Any]:
        with errors_shown():
            yield from action(*arguments)

    return checked
