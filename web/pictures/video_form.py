"""The form of a video from one picture to another, in the tab "Change"."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from foundation.errors import UserError
from generation.metadata import SUFFIXES, read_record
from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from generation.video import ENCODERS, Animation
from web.call_queue import Caller, Stopped
from web.drawing import VideoCall, images_of
from web.open_models import ModelChoice
from web.option_form import call_of_picture, lora_of, make_setting_fields, values_of
from web.pictures.results import FAILED, command_field, make_buttons
from web.studio import (
    DRAWS,
    FILLS,
    PRIVATE,
    STOPPED,
    Studio,
    caller_of,
    status_of,
    streamed_with_messages,
    with_messages,
)

TAB = "video"
VIDEO_DEFAULTS = {"video": "gif", "fps": 12.0}  # of sample.py


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
                self.button, self.stop = make_buttons("Draw the video")
                with gr.Row():
                    self.frames = gr.Slider(2, 240, 24, step=1, label="Frames between the two")
                    self.fps = gr.Slider(1, 50, 12, step=1, label="Frames per second")
                self.kind = gr.Radio(list(ENCODERS), value="gif", label="Format")
                self.fields = make_setting_fields(self.studio.models)
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
            yield from self.draw(caller_of(request, TAB), *values)

        covered = [self.moving, self.film]
        event = self.button.click(
            on_draw, inputs, outputs, show_progress_on=covered, **DRAWS, **PRIVATE
        )
        event.failure(lambda: FAILED, None, self.status, queue=False, **PRIVATE)
        self.studio.connect_stop(self.stop, TAB)
        (prompt, seed, dropped), (last_prompt, last_seed, last_dropped) = self.ends
        filled = [prompt, seed, self.negative, *self.fields.values()]
        fill = with_messages(self.fill)
        dropped.upload(fill, dropped, filled, **FILLS)
        fill_end = with_messages(self.fill_end)
        last_dropped.upload(fill_end, last_dropped, [last_prompt, last_seed], **FILLS)

    def fill_end(self, file: str) -> list[str]:
        """Return prompt and seed of a picture."""
        return end_of(call_of_picture(Path(file), self.studio.models)[0])

    def fill(self, file: str) -> list[Any]:
        """Return prompt, seed and all settings with which a picture was drawn."""
        entry, call = call_of_picture(Path(file), self.studio.models)
        lora = lora_of(call, self.studio.models)
        settings = values_of(entry.options, list(self.fields), lora)
        return [*end_of(entry), entry.options.negative_prompt, *settings]

    def draw(
        self,
        caller: Caller,
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
        options = self.studio.options(form, negative_prompt=negative or "")
        entries = entries_of([(first_prompt, first_seed), (last_prompt, last_seed)], options)
        images = [image for entry in entries for image in images_of(entry)]
        video: dict[str, Any] = {"interpolate": int(frames), "video": kind, "fps": float(fps)}
        choice = self.studio.choice(model, form)
        command = self.command_for(choice, entries, options, video)
        moving, film = gr.Image(None, visible=True), gr.Video(None, visible=False)
        try:
            with self.studio.queue.enter(caller) as turn:
                for status in self.studio.statuses(turn):
                    yield status, moving, film, "", command
                animation = Animation(self.studio.open(choice, turn), images, **video)
                call = VideoCall(animation, self.studio.folder, turn.stop)
                for progress in call:
                    status = status_of(progress, call.stop.is_set())
                    frame = progress.previews[0] if progress.previews else gr.skip()
                    yield status, frame, gr.skip(), gr.skip(), command
        except Stopped:
            yield STOPPED, gr.skip(), gr.skip(), gr.skip(), command
        else:
            for file in call.files:
                yield self.finished(file, animation.frames, command)

    def finished(self, file: Path, frames: int, command: str) -> tuple[Any, ...]:
        """Return what the page shows of a video that is written."""
        record = json.dumps(read_record(file), ensure_ascii=False, indent=1)
        words = f"Ready: {file.name}, {frames} frames."
        if file.suffix == SUFFIXES["gif"]:
            return words, str(file), gr.skip(), record, command
        film = gr.Video(str(file), visible=True)
        return words, gr.Image(None, visible=False), film, record, command

    def command_for(
        self,
        model: ModelChoice,
        entries: Sequence[PromptEntry],
        options: GenerationOptions,
        video: dict[str, Any],
    ) -> str:
        """Return the command that draws the same; two prompts are written into a file for it."""
        first, last = entries
        others = {name: value for name, value in video.items() if value != VIDEO_DEFAULTS.get(name)}
        if first.prompt == last.prompt:
            both = replace(options, seed=f"{first.options.seed},{last.options.seed}")
            return self.studio.command_line(model, first.prompt, both, **others)
        lines = [{"prompt": entry.prompt, "seed": entry.options.seed} for entry in entries]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        file = self.studio.keep(text.encode(), ".jsonl")
        return self.studio.command_line(model, None, options, prompts=file, **others)


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


def entries_of(
    ends: Sequence[tuple[str | None, str]], options: GenerationOptions
) -> list[PromptEntry]:
    """Return what is drawn at the ends of a video, each with a prompt and a seed."""
    return [
        PromptEntry(prompt or "", replace(options, seed=seed), has_own_seed=True)
        for prompt, seed in ends
    ]


def end_of(entry: PromptEntry) -> list[str]:
    """Return prompt and seed of what was drawn."""
    return [entry.prompt, entry.options.seed]
