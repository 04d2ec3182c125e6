"""What a model does and reads, as its configuration says, so that the page shows what suits it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import autoencoder.io
import ldm.unet.io
from foundation.errors import UserError, listed, shown
from foundation.json_reading import check_type, from_json
from interop.provenance import read_facts
from ldm.pipeline.compatibility import UNetKind, extra_channels, unet_kind
from ldm.pipeline.io import PROVENANCE, find_pipeline
from ldm.tasks.upscale import cell_side
from ldm.unet import UNetConfig

Reads = Literal["texts", "classes", "nothing", "unknown"]
MOST_CLASSES = 12  # that are named


@dataclass(frozen=True)
class ModelFacts:
    """What a model does and reads; "unknown" where its files do not say so without being opened."""

    kind: UNetKind = "unknown"
    reads: Reads = "unknown"
    classes: tuple[str, ...] = ()
    factor: int | None = None  # of a model for upscaling: how many times larger a picture becomes

    @property
    def note(self) -> str:
        """What somebody should know who draws with it; empty for the usual kind of model."""
        notes = {
            "inpaint": "It fills masks: Change, *Repaint what is painted* or *Extend*.",
            "upscale": f"It enlarges pictures {self.factor} times: Change, *Enlarge*.",
            "restore": "It restores damaged pictures: Change, *Restore*.",
        }
        words = [notes[self.kind]] if self.kind in notes else []
        if self.reads == "nothing":
            words.append("It reads no prompt: leave the fields of prompts empty.")
        elif self.reads == "classes" and self.classes:
            names = listed([shown(name) for name in self.classes], MOST_CLASSES)
            words.append(f"Its prompts are names of classes: {names}.")
        elif self.reads == "classes":
            words.append("Its prompts are numbers of classes.")
        return " ".join(words)


def look_at(model: Path) -> ModelFacts:
    """Read what a model does and reads from the configurations in its folder.

    A single file, or a folder that cannot be read, is unknown; opening it says more.
    """
    try:
        return read_model_facts(find_pipeline(model)) if model.is_dir() else ModelFacts()
    except (UserError, OSError):
        return ModelFacts()


def read_model_facts(folder: Path) -> ModelFacts:
    """Read the facts of a pipeline folder.

    Raises:
        UserError: a configuration is damaged or missing.
    """
    names = {entry.name for entry in fields(UNetConfig)}
    config = ldm.unet.io.read_config(folder / "unet", names)
    unet: UNetConfig = from_json(UNetConfig, config, folder / "unet" / ldm.unet.io.CONFIG)
    kind, known = unet_kind(unet), read_facts(folder / PROVENANCE)
    recorded: Any = known.get("classes", ())
    classes = check_type(recorded, tuple[str, ...], folder / PROVENANCE, "classes")
    reads: Reads = "texts" if unet.conditional else "nothing"
    if reads == "nothing" and unet.num_class_embeds is not None and kind != "upscale":
        reads = "classes"
    factor = None
    if kind == "upscale":
        widths = autoencoder.io.read_config(folder / "vae")["block_out_channels"]
        factor = 2 ** (len(widths) - 1) // cell_side(extra_channels(unet))
    return ModelFacts(kind, reads, classes, factor)
