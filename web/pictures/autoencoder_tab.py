"""The tab "Autoencoder": what one makes of a picture, and how much noise its decoder bears."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from foundation.errors import UserError, shown
from stages.evaluation.autoencoder import channel_rows
from stages.evaluation.autoencoder_report import channels_section, robustness_section
from stages.evaluation.reconstruction import Inspection, inspect_picture
from stages.flags.evaluation import NOISE
from web.call_queue import Caller, Stopped
from web.open_models import OpenAutoencoders
from web.option_form import optional_number, parse_number
from web.pictures.results import command_field, make_buttons
from web.studio import DRAWS, PRIVATE, Studio, caller_of, streamed_with_messages

TAB = "autoencoder"
LARGEST_SIZE = 2048  # pixels of the side of a picture
MOST_STRENGTHS, STRONGEST = 16, 100.0  # of the noise
AMPLIFY = 4  # usual factor of the difference
COMMAND = ("python", "evaluate.py", "reconstruct")
METRICS = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "lpips": "LPIPS {:.4f}"}


@dataclass
class AutoencoderTab:
    """The fields of the tab, and what happens when they are used."""

    studio: Studio
    opened: OpenAutoencoders = field(init=False)

    def __post_init__(self):
        self.opened = OpenAutoencoders(self.studio.models)

    def build(self) -> None:
        """Make the fields and connect them."""
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.make_form()
            with gr.Column(scale=3, min_width=320):
                self.make_results()
        inputs = [self.model, self.picture, self.size, self.amplify, self.noise, self.seed]
        outputs = [*self.panels, self.numbers, self.latents, self.noisy, self.curve, self.table]

        @streamed_with_messages
        def on_show(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self.show(caller_of(request, TAB), *values)

        self.button.click(
            on_show,
            inputs,
            [*outputs, self.command],
            show_progress_on=self.panels,
            **DRAWS,
            **PRIVATE,
        )
        self.studio.connect_stop(self.stop, TAB)

    def make_form(self) -> None:
        names = self.opened.names()
        self.model = gr.Dropdown(names, value=names[0], label="Autoencoder")
        self.picture = gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=300,
            elem_classes="pixels",
        )
        self.button, self.stop = make_buttons("Reconstruct")
        with gr.Row():
            self.size = optional_number("Size", "as trained")
            self.seed = gr.Number(0, label="Seed of the noise", precision=0, min_width=120)
        self.amplify = gr.Slider(1, 32, AMPLIFY, step=1, label="Amplify the difference")
        self.noise = gr.Textbox(
            ", ".join(f"{strength:g}" for strength in NOISE),
            label="Strengths of the noise, with commas between them",
            info="In standard deviations of the latents.",
        )

    def make_results(self) -> None:
        image: dict[str, Any] = {
            "format": "png",
            "interactive": False,
            "height": 250,
            "min_width": 150,
            "buttons": ["fullscreen"],
            "elem_classes": "pixels",
        }
        gallery: dict[str, Any] = {
            "format": "png",
            "height": "auto",
            "object_fit": "contain",
            "buttons": ["download", "fullscreen"],
            "elem_classes": "pixels",
        }
        with gr.Row():
            titles = ("Original", "Reconstruction", "Difference")
            self.panels = [gr.Image(label=title, **image) for title in titles]
        self.numbers = gr.Markdown("Nothing is reconstructed yet.")
        self.latents = gr.Gallery(
            label="Latents, black to white",
            columns=4,
            **gallery,
        )
        self.noisy = gr.Gallery(label="From latents with noise", columns=3, **gallery)
        self.curve = gr.HTML()
        self.table = gr.HTML()
        self.command = command_field()

    def show(
        self,
        caller: Caller,
        model: str,
        picture: str | None,
        size_text: str,
        amplify: float,
        noise: str,
        seed: float | None,
    ) -> Iterator[tuple[Any, ...]]:
        """Reconstruct a picture, and yield what the page shows."""
        if not picture:
            raise UserError("there is no picture. Drop one.")
        settings = checked_settings(parse_number("size", size_text), parse_strengths(noise), seed)
        file = self.studio.keep(Path(picture).read_bytes(), Path(picture).suffix)
        words = [*COMMAND, model, str(file), "--amplify", f"{amplify:g}"]
        if settings["size"] is not None:
            words += ["--size", str(settings["size"])]
        words += ["--noise", *(f"{strength:g}" for strength in settings["noise"])]
        command = shlex.join([*words, "--seed", str(settings["seed"])])
        unchanged = [gr.skip() for _ in self.panels]
        rest = [gr.skip(), gr.skip(), gr.skip(), gr.skip(), command]
        try:
            with self.studio.queue.enter(caller) as turn:
                for status in self.studio.statuses(turn):
                    yield *unchanged, status, *rest
                autoencoder, pixels = self.opened.open(model)
                turn.check()
                device = self.studio.models.device
                found = inspect_picture(autoencoder, file, pixels, device, **settings)
        except Stopped:
            yield *unchanged, "Stopped. Nothing is reconstructed.", *rest
        else:
            yield *results_of(found, float(amplify)), command


def checked_settings(
    size: float | None, noise: Sequence[float], seed: float | None
) -> dict[str, Any]:
    """Return the settings of a reconstruction as `inspect_picture` takes them.

    Raises:
        UserError: one is out of bounds.
    """
    if size is not None and not 0 < size <= LARGEST_SIZE:
        raise UserError(f"the size is {size:g}; it must be from 1 to {LARGEST_SIZE}.")
    if not 0 < len(noise) <= MOST_STRENGTHS or not all(0 < x <= STRONGEST for x in noise):
        raise UserError(
            f"the strengths of the noise are {shown(noise)}; they must be 1 to {MOST_STRENGTHS} "
            f"numbers above 0, {STRONGEST:g} at most, such as 0.1, 0.2, 0.4."
        )
    if seed is None or not 0 <= seed < 2**63:
        raise UserError("the seed of the noise must be a number, 0 or more.")
    return {
        "size": None if size is None else int(size),
        "noise": tuple(noise),
        "seed": int(seed),
    }


def results_of(found: Inspection, amplify: float) -> tuple[Any, ...]:
    """Return the pictures, the numbers, the curve and the table for the page."""
    pictures = found.pictures(amplify)
    first = [enlarged(pictures[name], 250) for name in ("original", "reconstruction")]
    difference = gr.Image(enlarged(pictures["difference"], 250), label=f"Difference x {amplify:g}")
    numbers = ", ".join(METRICS[name].format(value) for name, value in found.metrics.items())
    numbers += f". The difference is shown {amplify:g} times, on gray."
    latents = [
        (enlarged(picture), f"{k}: {low:.2g} to {high:.2g}")
        for k, (picture, (low, high)) in enumerate(found.latent_pictures())
    ]
    noisy = [
        (enlarged(pictures[f"noise-{strength:g}"]), f"noise {strength:g}: {value:.4g} dB")
        for strength, value in found.robustness[1:]
    ]
    curve = robustness_section(found.robustness, {})
    return (
        *first,
        difference,
        numbers,
        latents,
        noisy,
        curve,
        channels_section(channel_rows(found.channels)),
    )


def enlarged(picture: Image.Image, smallest: int = 128) -> Image.Image:
    """Enlarge a small picture by a whole factor, so that its pixels can be seen."""
    factor = max(1, smallest // max(picture.size))
    size = (factor * picture.width, factor * picture.height)
    return picture.resize(size, Image.Resampling.NEAREST)


def parse_strengths(text: str) -> tuple[float, ...]:
    """Read the strengths of the noise.

    Raises:
        UserError: one is no number.
    """
    try:
        found = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise UserError(
            f"the strengths of the noise are {shown(text)}; they must be numbers with commas "
            "between them."
        ) from None
    return tuple(dict.fromkeys(found))
