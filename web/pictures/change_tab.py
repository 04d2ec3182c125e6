"""The tab "Change": pictures from a picture; and, as an inner tab, videos between two."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from foundation.errors import UserError
from web.line import Caller
from web.option_form import make_fields, renew_seed
from web.pictures.results import Results
from web.pictures.video_form import VideoForm
from web.studio import DRAWS, PRIVATE, Studio, caller_of, streamed_with_messages

TAB = "change"
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
            yield from self.change(caller_of(request, TAB), *values)

        own = [self.picture, self.way, self.prompt, self.negative, self.source, self.strength]
        inputs = [self.model, *own, *self.added, self.factor, *self.fields.values()]
        outputs = [*results.outputs, self.fields["seed"]]
        event = self.button.click(change, inputs, outputs, **DRAWS, **PRIVATE)
        event.then(results.show_history, None, results.history_outputs, **PRIVATE)
        self.studio.connect_stop(self.stop, TAB)
        shown = [self.hint, self.source, self.strength, self.sides, self.factor]
        self.way.change(show_way, self.way, shown, queue=False, **PRIVATE)

    def change(
        self,
        caller: Caller,
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
        yield from self.studio.draw_form(caller, model, prompt, form, **others)

    def keep(self, image: Image.Image) -> Path:
        """Write a picture that others are drawn from, once, and return its path."""
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return self.studio.keep(buffer.getvalue(), ".png")


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
