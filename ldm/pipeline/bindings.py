"""What a U-Net is bound to: the autoencoder and the text encoder that it was trained with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.errors import UserError

SAME_LATENTS = "same_latents_as_sha256"  # in the provenance of one with a frozen encoder
GOLDEN_TOLERANCE = 1e-3  # of the golden embedding's largest value: other machines round otherwise


def bindings(autoencoder_sha256: str, text_encoder: nn.Module | None) -> dict[str, Any]:
    """As latentsmith.json holds them.

    golden: the golden sentence's last token, which in a causal tower has seen the whole sentence.
    Without a text encoder, the autoencoder's alone.
    """
    if text_encoder is None:
        return {"autoencoder_sha256": autoencoder_sha256}
    return {
        "autoencoder_sha256": autoencoder_sha256,
        "text_encoder_sha256": text_encoder.sha256,
        "golden": [round(value, 6) for value in text_encoder.golden()[-1].tolist()],
    }


def check_bindings(
    trained: Mapping[str, Any],
    found: Mapping[str, Any],
    folder: Path,
    same_latents: Sequence[str] = (),
) -> None:
    """The U-Net must be sampled with the autoencoder and text encoder it was trained with.

    same_latents: sha256 of other autoencoders that encode as the one in the folder does.
    """
    if not found.keys() <= trained.keys():
        raise UserError(
            f"{folder / 'latentsmith.json'} does not say what the U-Net was trained with. Copy the "
            "model folder again, or, to load it without that check, remove the file."
        )
    for part in ("autoencoder", "text_encoder"):
        if f"{part}_sha256" not in found:  # a model that reads no text, whose encoder was left out
            continue
        expected, sha256 = (bound[f"{part}_sha256"] for bound in (trained, found))
        if sha256 != expected and not (part == "autoencoder" and expected in same_latents):
            raise UserError(
                f"{folder} was trained with the {part} of sha256 {expected}, but the one in it has "
                f"sha256 {sha256}. Put the right one back; another one gives noise."
            )
    if "golden" not in found:
        return
    golden = torch.tensor(trained["golden"])
    drift = (torch.tensor(found["golden"]) - golden).abs().max() / golden.abs().max()
    if drift > GOLDEN_TOLERANCE:
        raise UserError(
            f"{folder}: the text encoder has the right weights, but embeds the golden sentence "
            f"differently than in training (by {drift:.2g} of its range). Tokenizer files, or the "
            "version of open_clip, changed."
        )
