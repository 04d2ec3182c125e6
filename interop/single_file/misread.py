"""What others make of a file whose header they do not know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interop.single_file import compvis_text
from interop.single_file.noise import BETAS
from interop.single_file.reader import PARTS, SingleFile, open_file

# Notes that change no number, and what is told in another line.
IGNORED = ("sample_size", "force_upcast", "upcast_attention", "projection_dim", "tokenizer")


def misread(path: Path) -> list[str]:
    """One line for everything that a tool which sees only names and shapes would not know."""
    file = open_file(path)
    lines = [line for part in PARTS if part in file.header for line in differences(part, file)]
    return lines + padding(file) + noise(file.header.get("scheduler", {}))


def differences(part: str, file: SingleFile) -> list[str]:
    told, (names_of, infer) = file.header[part], PARTS[part]
    try:
        taken = infer(file, names_of(file))
    except ValueError as reason:
        return [f"{part}: {reason}"]
    return [
        f"{part}: {name} is {told.get(name)}, and would be taken for {value}"
        for name, value in taken.items()
        if name not in IGNORED and not alike(told.get(name), value)
    ]


def alike(told: Any, taken: Any) -> bool:
    """Lists as JSON and as Python has them; one value for all levels as one for each."""
    lists = [list(x) if isinstance(x, list | tuple) else x for x in (told, taken)]
    for one, other in (lists, lists[::-1]):
        if isinstance(one, list) and not isinstance(other, list):
            return all(x == other for x in one)
    return lists[0] == lists[1]


def padding(file: SingleFile) -> list[str]:
    if "text_encoder" not in file.header:
        return []
    usual = compvis_text.PADS[compvis_text.prefix_of(file.shapes)]
    pad = file.header["text_encoder"]["tokenizer"]["pad_token"]
    return [f"text_encoder: short prompts are padded with {pad}, not {usual}"] * (pad != usual)


def noise(scheduler: Mapping[str, Any]) -> list[str]:
    if not scheduler:
        return []
    if scheduler.get("use_flow_sigmas"):
        return ["noise: the model is a rectified flow, for which no name or shape is a sign"]
    lines = []
    betas = scheduler.get("beta_start"), scheduler.get("beta_end")
    if (scheduler.get("beta_schedule"), betas) != ("scaled_linear", BETAS):
        lines.append(f"noise: the schedule is {scheduler.get('beta_schedule')}, beta {betas}")
    if scheduler.get("rescale_betas_zero_snr"):
        lines.append("noise: the schedule has zero terminal SNR")
    if scheduler.get("prediction_type") != "epsilon":
        lines.append(f"noise: the U-Net predicts {scheduler.get('prediction_type')}, not epsilon")
    return lines
