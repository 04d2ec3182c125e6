"""The form of the drawing options: its fields, their values as options, and options as values."""

import random
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from foundation.errors import UserError, shown
from generation.metadata import last_part, read_record
from generation.options import DEFAULTS, GenerationOptions
from generation.prompts import PromptEntry
from generation.reproduce import RecordedCall, entries_of_record
from ldm.samplers import SAMPLERS
from ldm.timesteps import SPACINGS
from training.flags import flag_name
from web.open_models import ModelChoice, OpenModels

OPTIONAL_NUMBERS = (
    *("width", "height", "window", "order", "shift", "eta", "clip_range", "guidance_max_norm"),
)
WHOLE_NUMBERS = ("width", "height", "window", "order", "size", "noise_level")
NOTHING = "(none)"
INTERVAL = ("guide_from", "guide_to")  # two fields for one option


def make_fields(models: OpenModels) -> dict[str, Component]:
    """Make the fields of the options that every way of drawing has, by name of the option."""
    return {**make_seed_fields(), **make_setting_fields(models)}


def make_seed_fields() -> dict[str, Component]:
    """Make the fields that say which pictures are drawn, and how many."""
    with gr.Row():
        seed = gr.Textbox("0", label="Seed", max_length=100, scale=2)
        dice = gr.Button("New seed", scale=1, min_width=90, elem_classes="dice")
        locked = gr.Checkbox(False, label="Keep seed", scale=1, min_width=90)
        count = gr.Slider(1, 16, 4, step=1, label="Pictures", scale=2)
    private: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    dice.click(new_seed, None, seed, **private)
    for event in (dice.click, seed.input):  # a seed that somebody chose is not replaced
        event(None, None, locked, js="() => true", **private)
    return {"seed": seed, "locked": locked, "count": count}


def make_setting_fields(models: OpenModels) -> dict[str, Component]:
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
        with gr.Row():
            lists = weight_lists(models)
            fields["lora"] = gr.Dropdown(lists[0], value="", label="LoRA", min_width=160)
            fields["lora_scale"] = gr.Number(1.0, label="Scale of the LoRA", min_width=120)
            fields["weak_model"] = gr.Dropdown(
                lists[1], value="", label="Weak model (autoguidance)", min_width=160
            )
        fields["plain_prompts"] = gr.Checkbox(
            False, label="Read (red:1.3), [red] and AND as ordinary text"
        )
    return fields


def weight_lists(models: OpenModels) -> list[list[tuple[str, str]]]:
    """Return what the fields of LoRA and weak model offer: texts and values."""
    lists = (models.lora_names(), models.weak_names())
    return [[(NOTHING, ""), *((name, name) for name in names)] for names in lists]


def optional_number(label: str, placeholder: str, visible: bool = True) -> gr.Textbox:
    """Make a field that may be empty, which a field of numbers shows as 0."""
    return gr.Textbox(
        "", label=label, placeholder=placeholder, max_length=30, min_width=120, visible=visible
    )


def new_seed() -> str:
    return str(random.randrange(2**31))


def renew_seed(form: dict[str, Any]) -> None:
    """Put a new seed into the values of a form, unless the seed is to be kept."""
    if not form["locked"]:
        form["seed"] = new_seed()


def options_of(values: Mapping[str, Any], **others: Any) -> GenerationOptions:
    """Return the options for the values of the form.

    others: options that are no fields of the form, or whose values are not those of the fields.

    Raises:
        UserError: a field that needs a number is empty.
    """
    found = {
        name: value for name, value in values.items() if name in DEFAULTS and name not in others
    }
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


def values_of(
    options: GenerationOptions, names: Sequence[str], choice: ModelChoice | None = None
) -> list[Any]:
    """Return the values of the fields of these names for given options; "locked" becomes true.

    choice: has the LoRA; left out, there is none.
    """
    low, high = options.guidance_interval
    times = ", ".join(map(str, options.times or ()))
    special: dict[str, Any] = {"locked": True, "guide_from": low, "guide_to": high, "times": times}
    weak = options.weak_model
    special["weak_model"] = "" if weak is None else weak.as_posix()
    special["lora"] = "" if choice is None else choice.lora
    special["lora_scale"] = 1.0 if choice is None else choice.lora_scale
    for name in OPTIONAL_NUMBERS:
        value = getattr(options, name)
        special[name] = "" if value is None else str(value)
    return [special[name] if name in special else getattr(options, name) for name in names]


def call_of_picture(file: Path, models: OpenModels) -> tuple[PromptEntry, RecordedCall]:
    """Read from a picture how it was drawn, and by which model.

    Raises:
        UserError: it does not say; or it was drawn from another picture, which is not at hand, or
            with a weak model that the page does not offer or cannot tell from another.
    """
    given = GenerationOptions()
    if recorded := read_record(file).get("weak_model"):
        found = named(models.weak_names(), recorded)
        if len(found) != 1:
            raise UserError(
                f"it was drawn with the weak model {shown(recorded)}, and the list has "
                f"{len(found)} of this name. Choose the options yourself."
            )
        given = GenerationOptions(weak_model=models.weak_model(found[0]))
    entries, call = entries_of_record(file, given)
    return entries[0], call


def lora_of(call: RecordedCall, models: OpenModels) -> ModelChoice:
    """Return the LoRA that a picture was drawn with, if the page offers it, else none."""
    found = named(models.lora_names(), call.lora) if call.lora else []
    if not found:
        return ModelChoice("")
    return ModelChoice.of("", found[0], call.lora_scale)


def named(names: Sequence[str], recorded: Any) -> list[str]:
    """Return the names of a list that a record has in this short form."""
    return [name for name in names if last_part(Path(name)) == recorded]


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
