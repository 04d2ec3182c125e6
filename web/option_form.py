"""The form of the drawing options: its fields, their values as options, and options as values."""

import random
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from foundation.errors import UserError
from generation.options import DEFAULTS, GenerationOptions
from generation.prompts import PromptEntry
from generation.reproduce import entries_of_record
from ldm.samplers import SAMPLERS
from ldm.timesteps import SPACINGS
from training.flags import flag_name

OPTIONAL_NUMBERS = ("width", "height", "shift", "eta", "guidance_max_norm", "strength")
INTERVAL = ("guide_from", "guide_to")  # two fields for one option


def make_fields() -> dict[str, Component]:
    """Make the fields of the options that every way of drawing has, by name of the option."""
    with gr.Row():
        seed = gr.Textbox("0", label="Seed", max_length=100, scale=2)
        dice = gr.Button("New seed", scale=1, min_width=90)
        locked = gr.Checkbox(False, label="Keep seed", scale=1, min_width=90)
        count = gr.Slider(1, 16, 4, step=1, label="Pictures", scale=2)
    with gr.Row():
        steps = gr.Slider(1, 100, 25, step=1, label="Steps")
        guidance = gr.Slider(0, 20, 4, step=0.5, label="Guidance scale")
        sampler = gr.Dropdown(list(SAMPLERS), value="dpmpp_2m", label="Sampler")
    dice.click(new_seed, None, seed, queue=False, api_visibility="private")
    fields: dict[str, Component] = {
        "seed": seed,
        "locked": locked,
        "count": count,
        "steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
    }
    with gr.Accordion("More options", open=False):
        with gr.Row():
            trained = "empty: as trained"
            fields["width"] = gr.Number(None, label="Width", precision=0, placeholder=trained)
            fields["height"] = gr.Number(None, label="Height", precision=0, placeholder=trained)
            fields["spacing"] = gr.Dropdown(list(SPACINGS), value="trailing", label="Spacing")
            fields["shift"] = gr.Number(None, label="Shift of the timesteps")
            fields["eta"] = gr.Number(None, label="Fresh noise per step (eta)")
        with gr.Row():
            fields["guidance_rescale"] = gr.Slider(0, 1, 0, label="Guidance rescale")
            fields["guide_from"] = gr.Slider(0, 1, 0, label="Guide from noise level")
            fields["guide_to"] = gr.Slider(0, 1, 1, label="Guide to noise level")
        with gr.Row():
            fields["guidance_parallel"] = gr.Slider(0, 1, 1, label="APG: parallel component")
            fields["guidance_max_norm"] = gr.Number(None, label="APG: largest norm")
            fields["guidance_momentum"] = gr.Number(0.0, label="APG: momentum")
        fields["plain_prompts"] = gr.Checkbox(
            False, label="Read (red:1.3), [red] and AND as ordinary text"
        )
    return fields


def new_seed() -> str:
    return str(random.randrange(2**31))


def renew_seed(form: dict[str, Any]) -> None:
    """Put a new seed into the values of a form, unless the seed is to be kept."""
    if not form["locked"]:
        form["seed"] = new_seed()


def options_of(values: Mapping[str, Any], **others: Any) -> GenerationOptions:
    """Return the options for the values of the form.

    Raises:
        UserError: a field that needs a number is empty.
    """
    found = {name: value for name, value in values.items() if name in DEFAULTS}
    for name, value in found.items():
        if value is None and name not in OPTIONAL_NUMBERS:
            raise UserError(f"the field {label_of(name)} is empty; it needs a number.")
    if all(name in values for name in INTERVAL):
        low, high = (float(values[name]) for name in INTERVAL)
        found["guidance_interval"] = (low, high)
    for name in ("count", "steps", "width", "height"):
        if found.get(name) is not None:
            found[name] = int(found[name])
    if found.get("guidance_scale") in (0, 1):  # fields of guidance that it turns off
        for name in [name for name in found if name.startswith("guidance_")]:
            if name != "guidance_scale":
                del found[name]
    return GenerationOptions(**(found | others))


def label_of(name: str) -> str:
    return f'"{name.replace("_", " ")}"'


def values_of(options: GenerationOptions, names: list[str]) -> list[Any]:
    """Return the values of the fields of these names for given options; "locked" becomes true."""
    low, high = options.guidance_interval
    special = {"locked": True, "guide_from": low, "guide_to": high}
    return [special[name] if name in special else getattr(options, name) for name in names]


def entry_of_picture(file: Path) -> PromptEntry:
    """Read from a picture how it was drawn.

    Raises:
        UserError: it does not say, or it was drawn from another picture, which is not at hand.
    """
    entries, _ = entries_of_record(file, GenerationOptions())
    return entries[0]


def command_line(model: str, prompt: str, options: GenerationOptions) -> str:
    """Return the command of sample.py that draws the same."""
    words = ["python", "sample.py", prompt, "--model", model]
    for name, value in options.non_defaults().items():
        flag = flag_name(name)
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def for_the_page(error: Exception) -> str:
    """Return a message with the names of fields in place of those of flags."""
    return re.sub(r"--([a-z][a-z-]+)", lambda flag: label_of(flag[1].replace("-", "_")), str(error))
