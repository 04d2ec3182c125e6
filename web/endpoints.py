"""The endpoints for programs: typed, with names of their own; the page itself calls others."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from foundation.errors import UserError
from foundation.json_reading import convert_value
from generation.options import INPUT_FILES, GenerationOptions
from generation.prompts import PromptEntry, entry_from
from generation.video import ENCODERS, Animation
from stages.evaluation.reconstruction import inspect_picture
from stages.flags.evaluation import NOISE
from web.call_queue import Caller, Stopped, Turn
from web.drawing import BackgroundCall, DrawCall, VideoCall, images_of
from web.model_facts import look_at
from web.open_models import ModelChoice, OpenAutoencoders
from web.pictures.autoencoder_tab import AMPLIFY, checked_settings
from web.pictures.video_form import VIDEO_DEFAULTS, entries_of
from web.studio import DRAWS, Studio, caller_of, with_messages

# Task -> the option that the picture is, and another one without which it is not possible.
TASKS = {
    "redraw": ("init_image", None),
    "extend": ("init_image", "outpaint"),
    "enlarge": ("init_image", "upscale"),
    "edit": ("style_image", None),
    "restore": ("restore", None),
}
FRAMES = 24  # usual number between two pictures of a video
OPTIONS = (
    'Options have the names of the flags of sample.py, such as {"steps": 10, "seed": 7, "count": '
    '2}. The values of "lora" and "weak_model" are names that /models lists. An empty model is the '
    "first of the list."
)


@dataclass
class Endpoints:
    """What programs can call."""

    studio: Studio
    autoencoders: OpenAutoencoders

    def build(self) -> None:
        """Make the endpoints and their fields, which the page does not show."""
        with gr.Column(visible=False):
            # Empty is the first model. Its name as the default would be told without the password.
            model, options = gr.Textbox("", label="model"), gr.JSON({}, label="options")
            self.build_drawing(model, options)
            self.build_reconstruction(model)
            listing = gr.JSON(label="models")
            add(self.models, [], listing, "List the names that the other endpoints take.")
            gr.Button().click(
                self.stop,
                None,
                None,
                queue=False,
                api_name="stop",
                api_description="End all that this client draws; what is finished is returned.",
            )

    def build_drawing(self, model: gr.Textbox, options: gr.JSON) -> None:
        """Make the endpoints that draw."""
        prompt = gr.Textbox("", label="prompt")
        picture, mask = make_picture("picture"), make_picture("mask")
        task = gr.Dropdown(list(TASKS), value="redraw", label="task")
        pictures = gr.Gallery(label="pictures", format="png")
        add(self.draw, [prompt, model, options], pictures, f"Draw pictures of a prompt. {OPTIONS}")
        add(
            self.change,
            [picture, prompt, task, model, options],
            pictures,
            'Draw pictures from a picture. extend needs the option "outpaint": [left, top, right, '
            f'bottom]; enlarge the option "upscale": how many times. {OPTIONS}',
        )
        add(
            self.repaint,
            [picture, mask, prompt, model, options],
            pictures,
            f"Draw the part of a picture anew that is white in a mask of the same size. {OPTIONS}",
        )
        ends = [
            gr.Textbox("", label="first_prompt"),
            gr.Textbox("0", label="first_seed"),
            gr.Textbox("", label="last_prompt"),
            gr.Textbox("0", label="last_seed"),
        ]
        settings = [
            gr.Number(FRAMES, precision=0, label="frames"),
            gr.Dropdown(list(ENCODERS), value=VIDEO_DEFAULTS["video"], label="video"),
            gr.Number(VIDEO_DEFAULTS["fps"], label="fps"),
        ]
        add(
            self.interpolate,
            [*ends, *settings, model, options],
            gr.File(label="file"),
            "Draw a video from one prompt and seed to another, with this many frames between the "
            f"two. {OPTIONS}",
        )

    def build_reconstruction(self, model: gr.Textbox) -> None:
        """Make the endpoint for autoencoders."""
        inputs = [
            make_picture("picture"),
            model,
            gr.Number(0, precision=0, label="size"),
            gr.JSON(list(NOISE), label="noise"),
            gr.Number(AMPLIFY, label="amplify"),
            gr.Number(0, precision=0, label="seed"),
        ]
        outputs = [gr.Gallery(label="pictures", format="png"), gr.JSON(label="numbers")]
        add(
            self.reconstruct,
            inputs,
            outputs,
            "Encode and decode the centered square of a picture, also from latents with noise of "
            "these strengths. Size 0 is that of the training. An empty model is the first "
            "autoencoder of the list.",
        )

    def draw(self, request: gr.Request, prompt: str, model: str, options: dict[str, Any]) -> Any:
        choice, entry = self.read(prompt, model, options)
        return self.draw_all(caller_of(request), choice, entry)

    def change(
        self,
        request: gr.Request,
        picture: str | None,
        prompt: str,
        task: str,
        model: str,
        options: dict[str, Any],
    ) -> Any:
        if task not in TASKS:
            raise UserError(f"the task is one of: {', '.join(TASKS)}.")
        name, needed = TASKS[task]
        if needed is not None and needed not in options:
            raise UserError(f"the task {task} needs the option {needed}.")
        choice, entry = self.read(prompt, model, options, **{name: self.keep(picture)})
        return self.draw_all(caller_of(request), choice, entry)

    def repaint(
        self,
        request: gr.Request,
        picture: str | None,
        mask: str | None,
        prompt: str,
        model: str,
        options: dict[str, Any],
    ) -> Any:
        files = {"init_image": self.keep(picture), "mask": self.keep(mask)}
        choice, entry = self.read(prompt, model, options, **files)
        return self.draw_all(caller_of(request), choice, entry)

    def interpolate(
        self,
        request: gr.Request,
        first_prompt: str,
        first_seed: str,
        last_prompt: str,
        last_seed: str,
        frames: int,
        video: str,
        fps: float,
        model: str,
        options: dict[str, Any],
    ) -> str | None:
        choice, entry = self.read(first_prompt, model, options)
        ends = [(first_prompt, first_seed), (last_prompt, last_seed)]
        entries = entries_of(ends, entry.options)
        images = [image for each in entries for image in images_of(each)]

        def make(turn: Turn) -> BackgroundCall:
            session = self.studio.open(choice, turn)
            animation = Animation(session, images, int(frames), video, float(fps))
            return VideoCall(animation, self.studio.folder, turn.stop)

        return next(iter(self.finish(caller_of(request), make)), None)

    def reconstruct(
        self,
        request: gr.Request,
        picture: str | None,
        model: str,
        size: int,
        noise: list[float],
        amplify: float,
        seed: int,
    ) -> tuple[list[tuple[Image.Image, str]], dict[str, Any]]:
        strengths = tuple(convert_value(noise, list[float], "noise"))
        settings = checked_settings(size or None, strengths, seed)
        file = self.keep(picture)
        try:
            with self.studio.queue.enter(caller_of(request)) as turn:
                wait(turn)
                autoencoder, pixels = self.autoencoders.open(model or self.autoencoders.names()[0])
                turn.check()
                device = self.studio.models.device
                found = inspect_picture(autoencoder, file, pixels, device, **settings)
        except Stopped:
            return [], {}
        pictures = found.pictures(float(amplify))
        return [(each, name) for name, each in pictures.items()], found.numbers()

    def models(self) -> dict[str, list[Any]]:
        """List what can be named: models with what they do, autoencoders, LoRAs, weak models."""
        models = self.studio.models
        known = [{"name": name, **asdict(look_at(path))} for name, path in models.known().items()]
        return {
            "models": known,
            "autoencoders": self.autoencoders.names(),
            "loras": models.lora_names(),
            "weak_models": models.weak_names(),
        }

    def stop(self, request: gr.Request) -> None:
        """End all that this client draws; what is finished is returned."""
        self.studio.queue.stop(caller_of(request))

    def read(
        self, prompt: str, model: str, options: dict[str, Any], **files: Path
    ) -> tuple[ModelChoice, PromptEntry]:
        """Return the model, and what is drawn.

        files: input pictures, by option.

        Raises:
            UserError: an option is unknown or wrong, or names a file of the server.
        """
        if not isinstance(options, dict) or not isinstance(prompt, str):
            raise UserError("the prompt is a text, and the options are an object of JSON.")
        if named := [name for name in INPUT_FILES if name in options]:
            raise UserError(f"the option {named[0]} names a file of the server, which is not read.")
        rest = dict(options)
        lora = convert_value(rest.pop("lora", ""), str, "lora")
        scale = convert_value(rest.pop("lora_scale", 1.0), float, "lora_scale")
        weak = convert_value(rest.pop("weak_model", ""), str, "weak_model")
        fixed: dict[str, Any] = {**files, "weak_model": self.studio.models.weak_model(weak)}
        entry = entry_from({**rest, "prompt": prompt}, GenerationOptions(**fixed))
        return ModelChoice.of(model or self.studio.models.names()[0], lora, scale), entry

    def keep(self, picture: str | None) -> Path:
        """Keep an uploaded picture, and return its path.

        Raises:
            UserError: there is none, or it is not named as a picture.
        """
        if not picture:
            raise UserError("there is no picture. Send one: gradio_client.handle_file(PATH).")
        return self.studio.keep(Path(picture).read_bytes(), Path(picture).suffix)

    def draw_all(self, caller: Caller, choice: ModelChoice, entry: PromptEntry) -> list[str]:
        """Draw the pictures of a prompt, and return their paths."""
        images = images_of(entry)

        def make(turn: Turn) -> BackgroundCall:
            session = self.studio.open(choice, turn)
            return DrawCall(session, images, self.studio.folder, turn.stop)

        return self.finish(caller, make)

    def finish(self, caller: Caller, make: Callable[[Turn], BackgroundCall]) -> list[str]:
        """Wait for the turn of a call, draw, and return the paths of what was written."""
        try:
            with self.studio.queue.enter(caller) as turn:
                wait(turn)
                call = make(turn)
                for _ in call:
                    pass
        except Stopped:
            return []
        return [str(file) for file in call.files]


def wait(turn: Turn) -> None:
    """Wait for the turn of a call."""
    for _ in turn.wait():
        pass


def make_picture(label: str) -> gr.Image:
    """Make a field for a picture that is uploaded, whose file is not changed."""
    return gr.Image(label=label, type="filepath", image_mode=None)


def add(action: Callable[..., Any], inputs: Sequence[Any], outputs: Any, description: str) -> None:
    """Add an endpoint that uses a model, of the name of its function."""
    gr.Button().click(
        with_messages(action),
        list(inputs),
        outputs,
        api_name=action.__name__,
        api_description=description,
        **DRAWS,
    )
