"""The tab "Draw": pictures from a prompt."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from foundation.errors import shown
from web.call_queue import Caller
from web.option_form import call_of_picture, lora_of, make_fields, renew_seed, values_of
from web.pictures.results import Results, make_buttons
from web.studio import (
    FILLS,
    Studio,
    caller_of,
    streamed_with_messages,
    with_messages,
)

TAB = "draw"
VARIATION, VARIATIONS = 0.3, 4  # how far variations are from a picture, and how many


@dataclass
class DrawTab:
    """The fields of the tab, and what happens when they are used."""

    studio: Studio
    model: gr.Dropdown

    def build(self) -> None:
        """Make the fields and connect them."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.prompt = gr.Textbox(
                    label="Prompt",
                    lines=2,
                    autofocus=True,
                    placeholder="red heart (Shift+Enter draws)",
                )
                self.negative = gr.Textbox(label="Negative prompt")
                self.button, self.stop = make_buttons("Draw")
                self.fields = make_fields(self.studio.models)
                self.dropped = gr.File(
                    label="Drop a picture here to read how it was drawn",
                    file_types=[".png", ".jpg", ".webp"],
                    height=150,
                )
            with gr.Column(scale=3, min_width=320):
                self.results = Results(self.studio)
                self.results.build()
        self.connect()

    @property
    def texts(self) -> list[Any]:
        return [self.prompt, self.negative]

    def connect(self) -> None:
        results = self.results
        inputs = [self.model, *self.texts, *self.fields.values()]
        outputs = [*results.outputs, self.fields["seed"]]

        @streamed_with_messages
        def on_draw(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.draw(caller_of(request, TAB), *values)

        @streamed_with_messages
        def on_vary(request: gr.Request, chosen: str, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.vary(caller_of(request, TAB), chosen, *values)

        results.connect(self.button.click, on_draw, inputs, outputs)
        results.connect(self.prompt.submit, on_draw, inputs, outputs)
        results.connect(results.vary.click, on_vary, [results.chosen, *inputs], outputs)
        self.studio.connect_stop(self.stop, TAB)
        filled = [*self.texts, *self.fields.values()]
        fill = with_messages(self.fill)
        chosen, dropped = [results.chosen, self.model], [self.dropped, self.model]
        results.again.click(fill, chosen, filled, **FILLS)
        self.dropped.upload(fill, dropped, filled, **FILLS)

    def draw(
        self, caller: Caller, model: str, prompt: str, negative: str, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Draw, first with a new seed unless it is to be kept."""
        form = dict(zip(self.fields, values, strict=True))
        renew_seed(form)
        others = {"negative_prompt": negative or ""}
        yield from self.studio.draw_form(caller, model, prompt, form, **others)

    def vary(
        self, caller: Caller, chosen: str, model: str, prompt: str, negative: str, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Draw pictures that are like one that was clicked."""
        form = dict(zip(self.fields, values, strict=True))
        renew_seed(form)
        others: dict[str, Any] = {"negative_prompt": negative or "", "count": VARIATIONS}
        others |= {"style_image": Path(chosen), "variation": VARIATION}
        yield from self.studio.draw_form(caller, model, prompt, form, **others)

    def fill(self, file: str | None, model: str) -> list[Any]:
        """Return the values of all fields with which a picture was drawn.

        The model stays the one that is chosen; a message says so if the picture has another one.
        """
        if not file:
            return [gr.skip() for _ in (*self.texts, *self.fields)]
        models = self.studio.models
        entry, call = call_of_picture(Path(file), models)
        if not models.has_drawn(model, call.model, call.hashes):
            gr.Warning(
                f"It was drawn by the model {shown(call.model)}, and this is {shown(model)}."
            )
        lora, options = lora_of(call, models), entry.options
        if call.lora and not lora.lora:
            gr.Warning(f"It was drawn with the LoRA {shown(call.lora)}, which is not in the list.")
        values = values_of(options, list(self.fields), lora)
        return [entry.prompt, options.negative_prompt, *values]
