"""The tab "Change": pictures from a picture; and, as an inner tab, videos between two."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from foundation.errors import UserError
from ldm.pipeline.compatibility import UNetKind
from web.call_queue import Caller
from web.option_form import make_fields, optional_number, parse_number, renew_seed
from web.pictures.results import Results, make_buttons
from web.pictures.video_form import VideoForm
from web.studio import AT_ONCE, Studio, caller_of, streamed_with_messages

TAB = "change"
REDRAW, REPAINT, EXTEND, ENLARGE, EDIT, RESTORE = (
    "Draw it anew",
    "Repaint what is painted",
    "Extend",
    "Enlarge",
    "Edit by description",
    "Restore",
)
HINTS = {
    REDRAW: "Strength says how much changes: 0 nothing, 1 all.",
    REPAINT: "Paint over what is to be drawn anew.",
    EXTEND: "How many pixels are added on each side.",
    ENLARGE: "The prompt helps with the details.",
    EDIT: "Say what the picture shows, and in the prompt what it should show.",
    RESTORE: "Removes noise, blur and what compression left. For models trained to restore.",
}
WAYS: dict[UNetKind, list[str]] = {  # that a kind of model can go
    "draw": [REDRAW, REPAINT, EXTEND, ENLARGE, EDIT],
    "inpaint": [REPAINT, EXTEND],
    "upscale": [ENLARGE],
    "restore": [RESTORE],
    "unknown": list(HINTS),
}
BRUSH = 6  # radius in pixels of the picture; gradio's is as large as half of a small picture
PICTURE = "picture"  # name of the inner tab
STRENGTH = {REDRAW: 0.6, ENLARGE: 0.3, EDIT: 1.0}  # where there is a choice, its usual value
FACTORS = (2, 4)  # of enlarging, unless the model has one of its own


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
                self.video = VideoForm(self.studio, self.model)
                self.video.build()
        self.connect()

    def build_form(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.picture = gr.ImageEditor(
                    label="Picture",
                    type="pil",
                    sources=("upload", "clipboard"),
                    brush=gr.Brush(BRUSH, colors=["#ff2d55"], color_mode="fixed"),
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
                with gr.Row():
                    self.factor = gr.Dropdown(
                        list(FACTORS), value=2, label="Times as large", visible=False
                    )
                    self.noise_level = optional_number(
                        "Noise level (models for upscaling)", "as usual", visible=False
                    )
                    self.resample = gr.Slider(
                        1,
                        50,
                        1,
                        step=1,
                        label="Repeats of each step (RePaint)",
                        info="Above 1 only with the sampler ddpm.",
                        visible=False,
                    )
                self.button, self.stop = make_buttons("Change")
                self.fields = make_fields(self.studio.models)
            with gr.Column(scale=3, min_width=320):
                self.results = Results(self.studio, has_actions=False)
                self.results.build()

    def connect(self) -> None:
        results = self.results

        @streamed_with_messages
        def on_change(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.change(caller_of(request, TAB), *values)

        own = [self.picture, self.way, self.prompt, self.negative, self.source, self.strength]
        more = [*self.added, self.factor, self.noise_level, self.resample]
        inputs = [self.model, *own, *more, *self.fields.values()]
        outputs = [*results.outputs, self.fields["seed"]]
        results.connect(self.button.click, on_change, inputs, outputs)
        self.studio.connect_stop(self.stop, TAB)
        self.way.change(self.show_way, [self.way, self.model], self.shown, **AT_ONCE)
        self.model.change(self.show_model, [self.way, self.model], self.shown, **AT_ONCE)

    @property
    def shown(self) -> list[Any]:
        """The fields that `show_way` shows or hides."""
        texts = [self.way, self.hint, self.source, self.strength, self.sides]
        return [*texts, self.factor, self.noise_level, self.resample]

    def show_way(self, way: str, model: str, *, begins: bool = True) -> tuple[Any, ...]:
        """Show the fields that this way of changing needs with a model, and hide the others.

        begins: the fields get their usual values.
        """
        facts = self.studio.models.facts(model)
        ways = WAYS[facts.kind]
        begins, way = begins or way not in ways, way if way in ways else ways[0]
        factors = list(FACTORS) if facts.factor is None else [facts.factor]
        has_strength = way in STRENGTH and (way != ENLARGE or facts.kind != "upscale")
        strength: dict[str, Any] = {"value": STRENGTH.get(way, 1.0)} if begins else {}
        factor: dict[str, Any] = {"value": factors[0]} if begins or facts.factor else {}
        return (
            gr.Radio(ways, value=way),
            HINTS[way],
            gr.Textbox(visible=way == EDIT),
            gr.Slider(visible=has_strength, **strength),
            gr.Row(visible=way == EXTEND),
            gr.Dropdown(factors, visible=way == ENLARGE, **factor),
            gr.Textbox(visible=way == ENLARGE and facts.kind != "draw"),
            gr.Slider(visible=way in (REPAINT, EXTEND) and facts.kind != "inpaint"),
        )

    def show_model(self, way: str, model: str) -> tuple[Any, ...]:
        """Show the fields that suit a model that was chosen."""
        return self.show_way(way, model, begins=False)

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
        count = len(self.added)
        added, (factor, noise_level, resample) = values[:count], values[count : count + 3]
        form = dict(zip(self.fields, values[count + 3 :], strict=True))
        renew_seed(form)
        if way not in HINTS:
            raise UserError(f"what is to be done is one of: {', '.join(HINTS)}.")
        kind = self.studio.models.facts(model).kind
        image, mask = image_and_mask(picture)
        others: dict[str, Any] = {"negative_prompt": negative or ""}
        beginnings = {EDIT: "style_image", RESTORE: "restore"}
        others[beginnings.get(way, "init_image")] = self.keep(image)
        level = None if kind == "draw" else parse_number("noise_level", noise_level)
        if way == ENLARGE:
            others["upscale"] = int(factor)
            others["noise_level"] = level
        if way in STRENGTH and not (way == ENLARGE and (kind == "upscale" or level is not None)):
            others["strength"] = float(strength)
        if way == REPAINT:
            if mask is None:
                raise UserError("nothing is painted. Paint over what is to be drawn anew.")
            others["mask"] = self.keep(mask)
        if way == EXTEND:
            others["outpaint"] = tuple(int(pixels or 0) for pixels in added)
        if way in (REPAINT, EXTEND) and kind != "inpaint":
            others["resample"] = int(resample)
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
