"""What the tabs share: the models, the folder of the pictures, and the calls that run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr

from foundation.errors import UserError, listed, shown
from foundation.files import atomic_file
from generation.prompts import PromptEntry
from training.logging.progress import format_duration
from training.run import make_folder
from web.drawing import BackgroundCall, DrawCall, Progress, images_of
from web.open_models import OpenModels
from web.option_form import command_line, for_the_page, options_of

MOST_EARLIER = 60  # pictures of the history that the page shows
KEPT = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jsonl")
QUEUE = "model"  # calls that draw wait for each other: the models share a device
# Only the page itself calls these events; the API has its own.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
DRAWS: dict[str, Any] = {"concurrency_id": QUEUE, "concurrency_limit": 1}
Shown = tuple[list[tuple[Any, str]], list[str], str, str]  # gallery, its files, status, command


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
    running: dict[str, BackgroundCall] = field(default_factory=dict)  # by session of the page

    def draw(self, session: str | None, model: str, entry: PromptEntry) -> Iterator[Shown]:
        """Draw the pictures of a prompt; yield what the page shows.

        Raises:
            UserError: an option does not suit the model, or the model cannot be opened.
        """
        images = images_of(entry)
        command = command_line(model, entry.prompt, entry.options, **self.models.flags)
        yield [], [], "Opening the model ...", command
        call = DrawCall(self.models.open(model), images, self.folder)
        seeds = [f"seed {image.seed}" for image in images]
        for progress in self.run(session, call):
            pictures = [*progress.files, *progress.previews]
            gallery = list(zip(pictures, seeds, strict=False))
            status = status_of(progress, call.stop.is_set())
            yield gallery, [str(file) for file in progress.files], status, command

    def run(self, session: str | None, call: BackgroundCall) -> Iterator[Progress]:
        """Run a call that this session of the page can stop; yield its progress."""
        self.running[str(session)] = call
        try:
            yield from call
        finally:
            self.running.pop(str(session), None)

    def draw_form(
        self,
        session: str | None,
        model: str,
        prompt: str,
        form: Mapping[str, Any],
        **others: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw with the values of a form; yield what the page shows, and the seed.

        others: options that are no fields of the form.
        """
        entry = PromptEntry(prompt or "", options_of(form, **others))
        for update in self.draw(session, model, entry):
            yield *update, form["seed"]

    def stop(self, request: gr.Request) -> None:
        """Stop what this session of the page draws."""
        call = self.running.get(str(request.session_hash))
        if call is not None:
            call.stop.set()

    def keep(self, content: bytes, suffix: str) -> Path:
        """Write a file that others are made from, once, and return its path.

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
        return file

    def earlier(self) -> list[Path]:
        """List the newest pictures and animations of the folder, the newest first."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        pictures = [file for file in files if file.suffix in (".png", ".gif")]
        own = [file for file in pictures if file.stem.isdecimal() and not file.is_symlink()]
        return sorted(own, key=lambda file: file.stat().st_mtime_ns, reverse=True)[:MOST_EARLIER]


def status_of(progress: Progress, stopped: bool) -> str:
    """Say in words how far a call is."""
    count = len(progress.files)
    if progress.done >= progress.total and not progress.previews:
        return f"Ready: {count} {'picture' if count == 1 else 'pictures'}."
    if stopped:
        return f"Stopped. {count} {'picture is' if count == 1 else 'pictures are'} finished."
    seconds = progress.seconds_left
    left = "" if seconds is None else f", {format_duration(seconds)} left"
    return f"Step {progress.done} of {progress.total}{left}"


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
