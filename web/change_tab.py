"""The tab "Change": pictures from a picture, and videos from one picture to another."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from foundation.errors import UserError
from generation.metadata import read_record
from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from generation.video import ENCODERS, Animation
from web.drawing import VideoCall, images_of
from web.option_form import (
    command_line,
    entry_of_picture,
    make_fields,
    make_setting_fields,
    options_of,
    renew_seed,
    values_of,
)
from web.results import Results, command_field
from web.studio import DRAWS, PRIVATE, Studio, status_of, streamed_with_messages, with_messages

REDRAW, REPAINT, EXTEND, ENLARGE, EDIT = (
    "Draw it anew",
    "Repaint what is painted",
    "Extend",
    "Enlarge",
    "Edit by description",
)
HINTS = {
    REDRAW: "Strength says how much changes: 0 nothing, 1 all.",
    REPAINT: "Paint over what is to be drawn anew.",
    EXTEND: "How many pixels are added on each side.",
    ENLARGE: "The prompt helps with the details.",
    EDIT: "Say what the picture shows, and in the prompt what it should show.",
}
PICTURE = "picture"  # name of the inner tab
VIDEO_DEFAULTS = {"video": "gif", "fps": 12.0}  # of sample.py
STRENGTH = {REDRAW: 0.6, ENLARGE: 0.3, EDIT: 1.0}  # where there is a choice, its usual value


@dataclass
class ChangeTab:
    """The fields of the tab, and what happens when they are used."""

    studio: Studio
    model: gr.Dropdown

    def build(self) -> None:
        """Make the fields and connect them."""
        with gr.Tabs() as self.kinds:
            with gr.Tab("A picture", id=PICTURE):
                self.build_form()
            with gr.Tab("A video between two", id="video"):
                VideoForm(self.studio, self.model).build()
        self.connect()

    def build_form(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.picture = gr.ImageEditor(
                    label="Picture",
                    type="pil",
                    sources=("upload", "clipboard"),
                    brush=gr.Brush(colors=["#ff2d55"], color_mode="fixed"),
                    transforms=(),
                    layers=False,
                    format="png",
                    height=420,
                )
                self.way = gr.Radio(list(HINTS), value=REDRAW, label="What is to be done")
                self.hint = gr.Markdown(HINTS[REDRAW])
                self.prompt = gr.Textbox(label="Prompt", lines=2)
                self.negative = gr.Textbox(label="Negative prompt")
                self.source = gr.Textbox(label="What the picture shows", visible=False)
                self.strength = gr.Slider(0, 1, STRENGTH[REDRAW], label="Strength")
                with gr.Row(visible=False) as self.sides:
                    self.added = [
                        gr.Number(0, label=side, precision=0, minimum=0, min_width=70)
                        for side in ("Left", "Top", "Right", "Bottom")
                    ]
                self.factor = gr.Dropdown([2, 4], value=2, label="Times as large", visible=False)
                with gr.Row():
                    self.button = gr.Button("Change", variant="primary")
                    self.stop = gr.Button("Stop")
                self.fields = make_fields()
            with gr.Column(scale=3, min_width=320):
                self.results = Results(self.studio, has_actions=False)
                self.results.build()

    def connect(self) -> None:
        results = self.results

        @streamed_with_messages
        def change(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.change(request.session_hash, *values)

        own = [self.picture, self.way, self.prompt, self.negative, self.source, self.strength]
        inputs = [self.model, *own, *self.added, self.factor, *self.fields.values()]
        outputs = [*results.outputs, self.fields["seed"]]
        event = self.button.click(change, inputs, outputs, **DRAWS, **PRIVATE)
        event.then(results.show_history, None, results.history_outputs, **PRIVATE)
        self.stop.click(self.studio.stop, None, None, queue=False, **PRIVATE)
        shown = [self.hint, self.source, self.strength, self.sides, self.factor]
        self.way.change(show_way, self.way, shown, queue=False, **PRIVATE)

    def change(
        self,
        session: str | None,
        model: str,
        picture: Mapping[str, Any] | None,
        way: str,
        prompt: str,
        negative: str,
        source: str,
        strength: float,
        *values: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw from the picture."""
        added, factor = values[: len(self.added)], values[len(self.added)]
        form = dict(zip(self.fields, values[len(self.added) + 1 :], strict=True))
        renew_seed(form)
        if way not in HINTS:
            raise UserError(f"what is to be done is one of: {', '.join(HINTS)}.")
        image, mask = image_and_mask(picture)
        others: dict[str, Any] = {"negative_prompt": negative or ""}
        others["style_image" if way == EDIT else "init_image"] = self.keep(image)
        if way in STRENGTH:
            others["strength"] = float(strength)
        if way == REPAINT:
            if mask is None:
                raise UserError("nothing is painted. Paint over what is to be drawn anew.")
            others["mask"] = self.keep(mask)
        if way == EXTEND:
            others["outpaint"] = tuple(int(pixels or 0) for pixels in added)
        if way == ENLARGE:
            others["upscale"] = int(factor)
        if way == EDIT:
            others["source_prompt"] = source or ""
        yield from self.studio.draw_form(session, model, prompt, form, **others)

    def keep(self, image: Image.Image) -> Path:
        """Write a picture that others are drawn from, once, and return its path."""
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return self.studio.keep(buffer.getvalue(), ".png")


@dataclass
class VideoForm:
    """The fields of a video from one picture to another, each with a prompt and a seed."""

    studio: Studio
    model: gr.Dropdown

    def build(self) -> None:
        """Make the fields and connect them."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.ends = [make_end("From"), make_end("To")]
                self.negative = gr.Textbox(label="Negative prompt")
                with gr.Row():
                    self.button = gr.Button("Draw the video", variant="primary")
                    self.stop = gr.Button("Stop")
                with gr.Row():
                    self.frames = gr.Slider(2, 240, 24, step=1, label="Frames between the two")
                    self.fps = gr.Slider(1, 50, 12, step=1, label="Frames per second")
                self.kind = gr.Radio(list(ENCODERS), value="gif", label="Format")
                self.fields = make_setting_fields()
            with gr.Column(scale=3, min_width=320):
                self.status = gr.Markdown("Nothing is drawn yet.")
                shown: dict[str, Any] = {"show_label": False, "interactive": False, "height": 440}
                buttons: list[Any] = ["download", "fullscreen"]
                self.moving = gr.Image(
                    type="filepath", format="png", buttons=buttons, elem_classes="moving", **shown
                )
                self.film = gr.Video(visible=False, autoplay=True, loop=True, **shown)
                self.record = gr.Code(label="How it was drawn", language="json", max_lines=12)
                self.command = command_field()
        self.connect()

    def connect(self) -> None:
        ends = [field for prompt, seed, _ in self.ends for field in (prompt, seed)]
        settings = [self.frames, self.fps, self.kind, *self.fields.values()]
        inputs = [self.model, *ends, self.negative, *settings]
        outputs = [self.status, self.moving, self.film, self.record, self.command]

        @streamed_with_messages
        def on_draw(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.draw(request.session_hash, *values)

        self.button.click(on_draw, inputs, outputs, **DRAWS, **PRIVATE)
        self.stop.click(self.studio.stop, None, None, queue=False, **PRIVATE)
        (prompt, seed, dropped), (last_prompt, last_seed, last_dropped) = self.ends
        filled = [prompt, seed, self.negative, *self.fields.values()]
        fill = with_messages(self.fill)
        dropped.upload(fill, dropped, filled, queue=False, **PRIVATE)
        fill_end = with_messages(end_of)
        last_dropped.upload(
            fill_end, last_dropped, [last_prompt, last_seed], queue=False, **PRIVATE
        )

    def fill(self, file: str) -> list[Any]:
        """Return prompt, seed and all settings with which a picture was drawn."""
        options = entry_of_picture(Path(file)).options
        settings = values_of(options, list(self.fields))
        return [*end_of(file), options.negative_prompt, *settings]

    def draw(
        self,
        session: str | None,
        model: str,
        first_prompt: str,
        first_seed: str,
        last_prompt: str,
        last_seed: str,
        negative: str,
        frames: float,
        fps: float,
        kind: str,
        *values: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Draw the video."""
        if kind not in ENCODERS:
            raise UserError(f"the format is one of: {', '.join(ENCODERS)}.")
        form = dict(zip(self.fields, values, strict=True))
        options = options_of(form, negative_prompt=negative or "")
        entries = [
            PromptEntry(prompt or "", replace(options, seed=seed), has_own_seed=True)
            for prompt, seed in ((first_prompt, first_seed), (last_prompt, last_seed))
        ]
        images = [image for entry in entries for image in images_of(entry)]
        video: dict[str, Any] = {"interpolate": int(frames), "video": kind, "fps": float(fps)}
        command = self.command_for(model, entries, options, video)
        yield "Opening the model ...", gr.Image(None, visible=True), off(), "", command
        animation = Animation(self.studio.models.open(model), images, **video)
        call = VideoCall(animation, self.studio.folder)
        for progress in self.studio.run(session, call):
            status = status_of(progress, call.stop.is_set())
            frame = progress.previews[0] if progress.previews else gr.skip()
            yield status, frame, gr.skip(), gr.skip(), command
        if call.files:
            [file] = call.files
            record = json.dumps(read_record(file), ensure_ascii=False, indent=1)
            words = f"Ready: {file.name}, {animation.frames} frames."
            if kind == "gif":
                yield words, str(file), gr.skip(), record, command
            else:
                film = gr.Video(str(file), visible=True)
                yield words, gr.Image(None, visible=False), film, record, command

    def command_for(
        self,
        model: str,
        entries: Sequence[PromptEntry],
        options: GenerationOptions,
        video: dict[str, Any],
    ) -> str:
        """Return the command that draws the same; two prompts are written into a file for it."""
        first, last = entries
        others = {name: value for name, value in video.items() if value != VIDEO_DEFAULTS.get(name)}
        others |= self.studio.models.flags
        if first.prompt == last.prompt:
            both = replace(options, seed=f"{first.options.seed},{last.options.seed}")
            return command_line(model, first.prompt, both, **others)
        lines = [{"prompt": entry.prompt, "seed": entry.options.seed} for entry in entries]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        file = self.studio.keep(text.encode(), ".jsonl")
        return command_line(model, None, options, prompts=file, **others)


def make_end(title: str) -> tuple[gr.Textbox, gr.Textbox, gr.File]:
    """Make the fields of a picture that a video begins or ends with."""
    with gr.Group():
        prompt = gr.Textbox(label=f"{title}: prompt", placeholder="red heart")
        seed = gr.Textbox("0", label=f"{title}: seed", max_length=100)
        dropped = gr.File(
            label=f"{title}: or drop a picture that was drawn here",
            file_types=[".png", ".jpg", ".webp"],
            height=120,
        )
    return prompt, seed, dropped


def end_of(file: str) -> list[str]:
    """Return prompt and seed of a picture."""
    entry = entry_of_picture(Path(file))
    return [entry.prompt, entry.options.seed]


def off() -> gr.Video:
    return gr.Video(None, visible=False)


def image_and_mask(
    picture: Mapping[str, Any] | None,
) -> tuple[Image.Image, Image.Image | None]:
    """Return the picture of the editor, and what is painted over it: white on black, if anything.

    Raises:
        UserError: there is no picture.
    """
    image = None if picture is None else picture.get("background")
    if picture is None or not isinstance(image, Image.Image):
        raise UserError("there is no picture. Drop one, or choose one by its button below.")
    mask = Image.new("L", image.size, 0)
    for layer in picture.get("layers") or ():
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 127))
        mask = ImageChops.lighter(mask, painted.resize(image.size, Image.Resampling.NEAREST))
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    return image, mask if mask.getbbox() else None


def as_start(file: Path) -> dict[str, Any]:
    """Return the editor's value for a picture of this project."""
    return {"background": str(file), "layers": [], "composite": str(file)}


def show_way(way: str) -> tuple[Any, ...]:
    """Show the fields that this way of changing needs, and hide the others."""
    return (
        HINTS.get(way, ""),
        gr.Textbox(visible=way == EDIT),
        gr.Slider(value=STRENGTH.get(way, 1.0), visible=way in STRENGTH),
        gr.Row(visible=way == EXTEND),
        gr.Dropdown(visible=way == ENLARGE),
    )
