"""The form of the drawing options: its fields, their values as options, and options as values."""

import random
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from foundation.errors import UserError, shown
from generation.options import DEFAULTS, GenerationOptions
from generation.prompts import PromptEntry
from generation.reproduce import RecordedCall, entries_of_record
from ldm.samplers import SAMPLERS
from ldm.timesteps import SPACINGS
from training.flags import flag_name

OPTIONAL_NUMBERS = (
    *("width", "height", "window", "order", "shift", "eta", "clip_range", "guidance_max_norm"),
)
WHOLE_NUMBERS = ("width", "height", "window", "order", "size")
INTERVAL = ("guide_from", "guide_to")  # two fields for one option


def make_fields() -> dict[str, Component]:
    """Make the fields of the options that every way of drawing has, by name of the option."""
    return {**make_seed_fields(), **make_setting_fields()}


def make_seed_fields() -> dict[str, Component]:
    """Make the fields that say which pictures are drawn, and how many."""
    with gr.Row():
        seed = gr.Textbox("0", label="Seed", max_length=100, scale=2)
        dice = gr.Button("New seed", scale=1, min_width=90)
        locked = gr.Checkbox(False, label="Keep seed", scale=1, min_width=90)
        count = gr.Slider(1, 16, 4, step=1, label="Pictures", scale=2)
    dice.click(new_seed, None, seed, queue=False, api_visibility="private")
    return {"seed": seed, "locked": locked, "count": count}


def make_setting_fields() -> dict[str, Component]:
    """Make the fields that say how they are drawn."""
    with gr.Row():
        steps = gr.Slider(1, 100, 25, step=1, label="Steps")
        guidance = gr.Slider(0, 20, 4, step=0.5, label="Guidance scale")
        sampler = gr.Dropdown(list(SAMPLERS), value="dpmpp_2m", label="Sampler")
    fields: dict[str, Component] = {
        "steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
    }
    with gr.Accordion("More options", open=False):
        with gr.Row():
            fields["width"] = optional_number("Width", "as trained")
            fields["height"] = optional_number("Height", "as trained")
            fields["spacing"] = gr.Dropdown(list(SPACINGS), value="trailing", label="Spacing")
            fields["shift"] = optional_number("Shift of the timesteps", "none")
            fields["eta"] = optional_number("Fresh noise per step (eta)", "as usual")
        with gr.Row():
            fields["window"] = optional_number("Side of windows (large pictures)", "none")
            fields["order"] = optional_number("Order of unipc", "as usual")
            fields["clip_range"] = optional_number("Bound of estimates (clip range)", "none")
            fields["times"] = gr.Textbox(
                label="Timesteps themselves", placeholder="999, 850, ..., 24", max_length=10_000
            )
        with gr.Row():
            fields["guidance_rescale"] = gr.Slider(0, 1, 0, label="Guidance rescale")
            fields["guide_from"] = gr.Slider(0, 1, 0, label="Guide from noise level")
            fields["guide_to"] = gr.Slider(0, 1, 1, label="Guide to noise level")
        with gr.Row():
            fields["guidance_parallel"] = gr.Slider(0, 1, 1, label="APG: parallel component")
            fields["guidance_max_norm"] = optional_number("APG: largest norm", "none")
            fields["guidance_momentum"] = gr.Number(0.0, label="APG: momentum")
        fields["plain_prompts"] = gr.Checkbox(
            False, label="Read (red:1.3), [red] and AND as ordinary text"
        )
    return fields


def optional_number(label: str, placeholder: str) -> gr.Textbox:
    """Make a field that may be empty, which a field of numbers shows as 0."""
    return gr.Textbox("", label=label, placeholder=placeholder, max_length=30, min_width=120)


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
        if name in OPTIONAL_NUMBERS:
            found[name] = parse_number(name, value)
        elif value is None and name != "times":
            raise UserError(f"the field {label_of(name)} is empty; it needs a number.")
    if all(name in values for name in INTERVAL):
        low, high = (float(values[name]) for name in INTERVAL)
        found["guidance_interval"] = (low, high)
    if "times" in found:
        found["times"] = parse_times(found["times"])
    for name in ("count", "steps"):
        if name in found:
            found[name] = int(found[name])
    if found.get("guidance_scale") in (0, 1):  # fields of guidance that it turns off
        for name in [name for name in found if name.startswith("guidance_")]:
            if name != "guidance_scale":
                del found[name]
    return GenerationOptions(**(found | others))


def parse_number(name: str, text: str | float | None) -> float | None:
    """Read an option that may be left out; None if its field is empty.

    Raises:
        UserError: it is no number, or not a whole one where that is needed.
    """
    if text is None or not str(text).strip():
        return None
    whole = name in WHOLE_NUMBERS
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise UserError(
            f"the field {label_of(name)} is {shown(text)}; it must be {kind}, or empty."
        ) from None


def parse_times(text: str | None) -> tuple[float, ...] | None:
    """Read timesteps with commas between them; None if the field is empty.

    Raises:
        UserError: one is no number.
    """
    try:
        return tuple(float(part) for part in (text or "").split(",") if part.strip()) or None
    except ValueError:
        raise UserError(
            f"the timesteps are {shown(text)}; they must be numbers with commas between them."
        ) from None


def label_of(name: str) -> str:
    return f'"{name.replace("_", " ")}"'


def values_of(options: GenerationOptions, names: list[str]) -> list[Any]:
    """Return the values of the fields of these names for given options; "locked" becomes true."""
    low, high = options.guidance_interval
    times = ", ".join(map(str, options.times or ()))
    special: dict[str, Any] = {"locked": True, "guide_from": low, "guide_to": high, "times": times}
    for name in OPTIONAL_NUMBERS:
        value = getattr(options, name)
        special[name] = "" if value is None else str(value)
    return [special[name] if name in special else getattr(options, name) for name in names]


def call_of_picture(file: Path) -> tuple[PromptEntry, RecordedCall]:
    """Read from a picture how it was drawn, and by which model.

    Raises:
        UserError: it does not say, or it was drawn from another picture, which is not at hand.
    """
    entries, call = entries_of_record(file, GenerationOptions())
    return entries[0], call


def entry_of_picture(file: Path) -> PromptEntry:
    """Read the prompt and the options of a picture; see `call_of_picture`."""
    return call_of_picture(file)[0]


def command_line(model: str, prompt: str | None, options: GenerationOptions, **others: Any) -> str:
    """Return the command of sample.py that draws the same.

    Args:
        prompt: None for none.
        others: flags that are no options of a picture, by name.
    """
    words = ["python", "sample.py", *([] if prompt is None else [prompt]), "--model", model]
    for name, value in {**options.non_defaults(), **others}.items():
        flag = flag_name(name)
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def for_the_page(error: Exception | str) -> str:
    """Return a message with the names of fields in place of those of flags."""
    return re.sub(r"--([a-z][a-z-]+)", lambda flag: label_of(flag[1].replace("-", "_")), str(error))
