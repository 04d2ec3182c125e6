"""Which training a run folder belongs to, for messages about what is no model of the kind."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.files import read_json

# A flag that no other training has -> its program and what it trains.
TRAININGS = {
    "text_encoder": ("train_ldm.py", "stage 2, the U-Net"),
    "loss": ("train_vae.py", "stage 1, the autoencoder"),
    "context_length": ("train_clip.py", "stage 0, the text encoder"),
}


def training_of(config: Mapping[str, Any]) -> str | None:
    """Return the program whose flags a run's config.json holds, such as "train_vae.py"."""
    return next((name for flag, (name, _) in TRAININGS.items() if flag in config), None)


def hub_hint(name: object) -> str:
    """Return a sentence on how to fetch a model of the Hugging Face Hub, or "" if it is no name.

    Nothing is fetched from there without being asked for.
    """
    text = str(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or Path(text).parent.exists():
        return ""
    return (
        f" If it is a model on the Hugging Face Hub, fetch it first: `hf download {text}` prints "
        "the folder to give."
    )


def run_hint(folder: Path, wanted: str, setting: str = "") -> str:
    """Return a sentence about a run folder in which a model is missing, or "" if it is none.

    It is a run of another training, or one that has not come to its end.

    Args:
        wanted: the program whose runs hold what is missing, such as "train_vae.py".
        setting: without which a run of it does not hold that, such as "lora".
    """
    try:
        config = read_json(folder / "config.json")
    except (OSError, UserError):
        return ""
    training = training_of(config)
    if training is None:
        return ""
    if training != wanted:
        stage = next(stage for name, stage in TRAININGS.values() if name == training)
        return f" It is a run of {training} ({stage}); a run of {wanted} is needed."
    if setting and config.get(setting) is None:
        return f" It is a run of {training} without --{setting}."
    return " The run is not finished: start the same command again."
