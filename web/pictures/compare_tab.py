"""The tab "Compare": two settings or two models side by side, and grids over one or two options."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from foundation.errors import UserError
from generation.metadata import encode_image, last_part
from generation.names import FileNames
from generation.prompts import ImageSpec, PromptEntry, expand
from generation.reproduce import SIDES
from generation.xy_grid import (
    GRID_NAME,
    VARIED,
    OptionGrid,
    differences,
    labeled_grid,
    parse_grid,
    settings_of,
)
from web.call_queue import Caller, Stopped
from web.drawing import DrawCall, images_of
from web.open_models import ModelChoice
from web.option_form import NOTHING, make_seed_fields, make_setting_fields, renew_seed
from web.pictures.results import Results, make_buttons
from web.studio import (
    PRIVATE,
    STOPPED,
    Studio,
    caller_of,
    status_of,
    streamed_with_messages,
)

TAB = "compare"

SIDE_BY_SIDE, GRID = "Two settings or models", "Grid over options"
SAME = "(the same)"
SUFFIX = ".png"


@dataclass(frozen=True)
class Side:
    """A model and its settings."""

    model: ModelChoice
    entry: PromptEntry


@dataclass
class CompareTab:
    """The fields of the tab, and what happens when they are used."""

    studio: Studio
    model: gr.Dropdown

    def build(self) -> None:
        """Make the fields and connect them."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.way = gr.Radio([SIDE_BY_SIDE, GRID], value=SIDE_BY_SIDE, label="Compare")
                self.prompt = gr.Textbox(label="Prompt", lines=2, placeholder="red heart")
                self.negative = gr.Textbox(label="Negative prompt")
                self.button, self.stop = make_buttons("Compare")
                self.seeds = make_seed_fields()
                with gr.Group(visible=False) as self.axes:
                    self.x = make_axis_fields("From left to right", "guidance_scale", "1, 4, 8")
                    self.y = make_axis_fields("From top to bottom", "steps", "5, 10, 25")
                self.left_title = gr.Markdown("**Left:** the model above")
                self.left = make_setting_fields(self.studio.models)
                with gr.Column(visible=True) as self.right_side:
                    gr.Markdown("**Right**")
                    choices = [SAME, *self.studio.models.names()]
                    self.right_model = gr.Dropdown(choices, value=SAME, label="Model")
                    self.right = make_setting_fields(self.studio.models)
                    self.copy = gr.Button("Set as on the left", size="sm")
            with gr.Column(scale=3, min_width=320):
                self.whole = gr.Image(
                    label="All with labels",
                    show_label=False,
                    type="filepath",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
                self.results = Results(self.studio, has_actions=False)
                self.results.build()
        self.connect()

    def connect(self) -> None:
        results = self.results
        texts = [self.model, self.way, self.prompt, self.negative, *self.seeds.values()]
        axes = [*self.x, *self.y]
        inputs = [*texts, *axes, self.right_model, *self.left.values(), *self.right.values()]
        outputs = [self.whole, *results.outputs, self.seeds["seed"]]

        @streamed_with_messages
        def on_compare(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.compare(caller_of(request, TAB), *values)

        results.connect(self.button.click, on_compare, inputs, outputs)
        self.studio.connect_stop(self.stop, TAB)
        left, right = list(self.left.values()), list(self.right.values())
        self.copy.click(lambda *values: values, left, right, queue=False, **PRIVATE)
        shown = [self.axes, self.right_side, self.left_title, self.seeds["count"]]
        self.way.change(show_way, self.way, shown, queue=False, **PRIVATE)

    def compare(
        self,
        caller: Caller,
        model: str,
        way: str,
        prompt: str,
        negative: str,
        *values: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw what is to be compared, and put it side by side."""
        rest = iter(values)
        seeds = {name: next(rest) for name in self.seeds}
        axes = [axis_text(next(rest), next(rest)) for _ in (self.x, self.y)]
        right_model = next(rest)
        left, right = ({name: next(rest) for name in each} for each in (self.left, self.right))
        renew_seed(seeds)
        prompt, negative = prompt or "", negative or ""
        if way == GRID:
            grid = parse_grid(*axes)
            if grid is None:
                raise UserError("choose an option for one of the two axes, and type its values.")
            del seeds["count"]
            options = self.studio.options({**left, **seeds}, negative_prompt=negative)
            entry = PromptEntry("" if grid.has_prompts else prompt, options)
            shown = self.draw_grid(caller, self.studio.choice(model, left), entry, grid)
        elif way == SIDE_BY_SIDE:
            models = (model, model if right_model == SAME else right_model)
            sides = [
                Side(
                    self.studio.choice(name, form),
                    PromptEntry(
                        prompt,
                        self.studio.options({**form, **seeds}, negative_prompt=negative),
                    ),
                )
                for name, form in zip(models, (left, right), strict=True)
            ]
            shown = self.draw_sides(caller, sides)
        else:
            raise UserError(f"what is compared is one of: {SIDE_BY_SIDE}, {GRID}.")
        try:
            for each in shown:
                yield *each, seeds["seed"]
        except Stopped:
            yield gr.skip(), gr.skip(), gr.skip(), STOPPED, gr.skip(), seeds["seed"]

    def draw_grid(
        self, caller: Caller, model: ModelChoice, entry: PromptEntry, grid: OptionGrid
    ) -> Iterator[tuple[Any, ...]]:
        """Draw one picture for each pair of values."""
        images = list(expand(grid.entries(entry)))
        axes = {name: axis.text for name, axis in grid.named_axes().items()}
        prompt = None if grid.has_prompts else entry.prompt
        command = self.studio.command_line(model, prompt, entry.options, **axes)
        captions = [grid.caption(k) for k in range(len(images))]
        columns = grid.shape[0]
        with self.studio.queue.enter(caller) as turn:
            for status in self.studio.statuses(turn):
                yield None, gr.Gallery([], columns=4), [], status, command
            call = DrawCall(self.studio.open(model, turn), images, self.studio.folder, turn.stop)
            for progress in call:
                pictures = zip([*progress.files, *progress.previews], captions, strict=False)
                status = status_of(progress, call.stop.is_set())
                gallery = gr.Gallery(list(pictures), columns=columns)
                yield gr.skip(), gallery, [str(file) for file in progress.files], status, command
        if len(call.pictures) == len(images):
            whole, record = grid.finish(call.session, entry, call.pictures)
            file = self.write(whole, record)
            yield str(file), gr.skip(), gr.skip(), written(call, file), command

    def draw_sides(self, caller: Caller, sides: list[Side]) -> Iterator[tuple[Any, ...]]:
        """Draw the same pictures with two settings."""
        images = [images_of(side.entry) for side in sides]
        command = "\n".join(
            self.studio.command_line(side.model, side.entry.prompt, side.entry.options)
            for side in sides
        )
        labels = differences(
            *(
                {
                    "model": side.model.name,
                    "lora": side.model.lora,
                    "lora_scale": side.model.lora_scale,
                    **settings_of(side.entry.options),
                }
                for side in sides
            )
        )
        captions = [
            f"{name}, seed {image.seed}" for image in images[0] for name in ("left", "right")
        ]
        with self.studio.queue.enter(caller) as turn:
            for status in self.studio.statuses(turn):
                yield None, gr.Gallery([], columns=2), [], status, command
            # Both are checked before one is drawn.
            calls = [
                DrawCall(self.studio.open(side.model, turn), some, self.studio.folder, turn.stop)
                for side, some in zip(sides, images, strict=True)
            ]
            for name, call in zip(("Left", "Right"), calls, strict=True):
                for progress in call:
                    shown = [
                        (each.files, progress.previews if each is call else []) for each in calls
                    ]
                    gallery, files = in_turn(shown, captions)
                    status = f"{name}: {status_of(progress, call.stop.is_set())}"
                    yield gr.skip(), gr.Gallery(gallery, columns=2), files, status, command
                if len(call.files) < len(call.images):
                    return  # it was stopped
        whole, record = self.join(calls, images[0], labels)
        file = self.write(whole, record)
        yield str(file), gr.skip(), gr.skip(), written(calls[1], file, 2), command

    def join(
        self, calls: list[DrawCall], images: list[ImageSpec], labels: tuple[str, str]
    ) -> tuple[Image.Image, dict[str, Any]]:
        """Return the pictures of two calls side by side with labels, and the record of that."""
        pairs = zip(*(call.pictures for call in calls), strict=True)
        rows = [f"seed {image.seed}" for image in images]
        pictures = [picture for pair in pairs for picture in pair]
        whole = labeled_grid(pictures, labels, rows, images[0].prompt)
        records = [call.session.record(call.images[0]) for call in calls]
        shared = {"prompt": images[0].prompt, "seeds": [image.seed for image in images]}
        return whole, {**shared, SIDES: records}

    def write(self, picture: Image.Image, record: Mapping[str, Any]) -> Path:
        """Write a labeled picture into the folder of the pictures, and return its path."""
        names = FileNames(self.studio.folder, GRID_NAME, [SUFFIX])
        path = names.write({}, {SUFFIX: encode_image(picture, record)})
        return path.with_name(path.name + SUFFIX)


def make_axis_fields(title: str, option: str, values: str) -> list[Any]:
    """Make the fields of an axis: its option, and the values."""
    with gr.Row():
        return [
            gr.Dropdown([NOTHING, *VARIED], value=option, label=title, min_width=140),
            gr.Textbox(values, label="Values, with commas between them", min_width=140),
        ]


def axis_text(option: str, values: str) -> str:
    """Return an axis as the command line has it; empty for none."""
    return "" if option == NOTHING else f"{option}={values or ''}"


def in_turn(
    shown: list[tuple[list[Path], list[Image.Image]]], captions: list[str]
) -> tuple[list[tuple[Any, str]], list[str]]:
    """Return the pictures of both sides in turn, and the paths of those that are finished.

    What is still to be drawn is an empty picture. A path is empty for what has no file.
    """
    count = len(captions) // 2
    sides = [[*files, *previews][:count] for files, previews in shown]
    gallery: list[tuple[Any, str]] = []
    paths: list[str] = []
    drawn = max(map(len, sides))
    for k in range(drawn):
        for side, name in zip(sides, captions[2 * k : 2 * k + 2], strict=True):
            picture = side[k] if k < len(side) else Image.new("RGB", (8, 8), (128, 128, 128))
            gallery.append((picture, name))
            paths.append(str(picture) if isinstance(picture, Path) else "")
    return gallery, paths


def written(call: DrawCall, file: Path, times: int = 1) -> str:
    """Say what is ready."""
    return f"Ready: {times * len(call.files)} pictures, and {last_part(file)} with labels."


def show_way(way: str) -> tuple[Any, ...]:
    """Show the fields that this way of comparing needs, and hide the others."""
    is_grid = way == GRID
    title = "**What all have in common**" if is_grid else "**Left:** the model above"
    return (
        gr.Group(visible=is_grid),
        gr.Column(visible=not is_grid),
        title,
        gr.Slider(visible=not is_grid),
    )
