"""The panel of a form: pictures as they are drawn, their records, and earlier pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from foundation.errors import UserError, shown
from generation.metadata import read_record
from generation.reproduce import SIDES
from web.studio import DRAWS, FILLS, PRIVATE, Studio, with_messages

GRID = {"grid_x", "grid_y", SIDES}  # entries of the record of a grid
FAILED = "Nothing more was drawn: see the message."
CAPTION = 60  # characters of a prompt below an earlier picture


@dataclass
class Results:
    """The panel's fields, and what happens when somebody clicks a picture."""

    studio: Studio
    has_actions: bool = True  # whether the form of its tab can draw a picture again, and vary it

    def build(self) -> None:
        """Make the fields where the page is being made."""
        self.status = gr.Markdown("Nothing is drawn yet.", elem_classes="status")
        buttons: list[Any] = ["download", "fullscreen"]
        self.gallery = gr.Gallery(
            label="Pictures",
            columns=2,
            height="auto",
            object_fit="contain",
            format="png",
            buttons=buttons,
            elem_classes="drawn",
        )
        with gr.Row():
            actions: dict[str, Any] = {"size": "sm", "interactive": False}
            self.again = gr.Button("Again with these options", visible=self.has_actions, **actions)
            self.vary = gr.Button("Variations", visible=self.has_actions, **actions)
            self.use = gr.Button("Use as start", **actions)
        self.record = gr.Code(label="How it was drawn", language="json", visible=False)
        self.command = command_field()
        with gr.Accordion("Earlier pictures", open=False):
            self.history = gr.Gallery(
                columns=6, height=340, format="png", show_label=False, buttons=buttons
            )
        self.files = gr.State([])  # paths of the pictures in the gallery
        self.earlier = gr.State([])  # those of the history
        self.chosen = gr.State("")  # path of the picture that was clicked
        for gallery, files in ((self.gallery, self.files), (self.history, self.earlier)):
            gallery.select(on_select, files, self.click_outputs, **FILLS)

    @property
    def outputs(self) -> list[Any]:
        """The fields that a call fills while it draws."""
        return [self.gallery, self.files, self.status, self.command]

    @property
    def click_outputs(self) -> list[Any]:
        """The fields that tell of the picture that was clicked."""
        return [self.chosen, self.record, self.again, self.vary, self.use]

    @property
    def history_outputs(self) -> list[Any]:
        return [self.history, self.earlier]

    def connect(
        self,
        trigger: Callable[..., Dependency],
        draw: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
    ) -> None:
        """Let an event of the tab draw, then show the history; progress covers the gallery alone.

        An error, too, is marked on all that shows progress.
        """
        event = trigger(draw, inputs, outputs, show_progress_on=self.gallery, **DRAWS, **PRIVATE)
        event.failure(lambda: FAILED, None, self.status, queue=False, **PRIVATE)
        event.then(self.show_history, None, self.history_outputs, **PRIVATE)
        clicked = [self.chosen, self.files]
        event.success(forget_older, clicked, [self.gallery, *self.click_outputs], **FILLS)

    def show_history(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Return the earlier pictures with their prompts, and their paths."""
        files = [str(file) for file in self.studio.earlier()]
        return [(file, prompt_of(file)) for file in files], files


def prompt_of(file: str) -> str:
    """Return the prompt that a picture was drawn from; empty if it does not say."""
    try:
        return read_record(Path(file))["prompt"][:CAPTION]
    except UserError:
        return ""


def forget_older(chosen: str, files: Sequence[str]) -> Any:
    """Show no record, and all pictures of a call, unless one of these was clicked meanwhile."""
    if not chosen or chosen in files:
        return gr.skip()  # all fields stay as they are
    return gr.Gallery(selected_index=None), *unknown()


def unknown() -> tuple[Any, ...]:
    """Return what a click on no picture shows."""
    off = gr.Button(interactive=False)
    return "", gr.Code(visible=False), off, off, off


@with_messages
def on_select(files: list[str], event: gr.SelectData) -> tuple[Any, ...]:
    """Show the record of the picture that was clicked, and what can be done with it."""
    place = event.index if isinstance(event.index, int) else -1
    if not 0 <= place < len(files) or not files[place]:  # a preview of one that is not finished
        return unknown()
    file = Path(files[place])
    try:
        record = read_record(file)
    except UserError as error:  # a grid of sample.py has none, and PyAV may be missing
        off, code = gr.Button(interactive=False), gr.Code(str(error), visible=True)
        return files[place], code, off, off, gr.Button(interactive=is_picture(file, {}))
    text = json.dumps(record, ensure_ascii=False, indent=1)
    label = f"How {shown(file.name)} was drawn"
    is_one = gr.Button(interactive=is_picture(file, record))
    again = gr.Button(interactive=SIDES not in record)
    return files[place], gr.Code(text, visible=True, label=label), again, is_one, is_one


def is_picture(file: Path, record: Mapping[str, Any]) -> bool:
    """Return whether a file is one picture, and no video and no grid of several."""
    is_grid = file.name.startswith("grid-") or not GRID.isdisjoint(record)
    return file.suffix not in (".gif", ".mp4") and not is_grid


def make_buttons(label: str) -> tuple[gr.Button, gr.Button]:
    """Make the button that begins what a tab does, and the one that stops it."""
    with gr.Row():
        return gr.Button(label, variant="primary"), gr.Button("Stop")


def command_field() -> gr.Code:
    """Make the field for the command that draws the same."""
    label = "The same on the command line"
    looks: dict[str, Any] = {"lines": 2, "max_lines": 6, "wrap_lines": True}
    return gr.Code(label=label, language="shell", elem_classes="command", **looks)
