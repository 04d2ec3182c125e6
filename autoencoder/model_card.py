"""The README.md in the folder of an autoencoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from foundation.hashing import tensors_sha256
from interop.model_card import (
    as_mapping,
    bullet_list,
    parameter_count,
    program_name,
    render_card,
    training_section,
)

USE = """## Use

```python
import torch
from autoencoder import Autoencoder  # Latentsmith's

autoencoder = Autoencoder.load(".")  # this folder
images = torch.rand(1, {channels}, {side}, {side}) * 2 - 1  # in place of pictures in [-1, 1]
with torch.no_grad():
    latents = autoencoder.encode(images).sample()  # {latents}
    again = autoencoder.decode(latents)
```

```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained(".")  # {note}
with torch.no_grad():
    latents = {encode}
    again = vae.decode({decode}).sample
```"""


def model_card_text(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> str:
    """Return the text of the model card.

    Args:
        config: as in config.json.
        provenance: as in latentsmith.json.
    """
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    statistics = as_mapping(provenance.get("latent_statistics_folded_in"))
    sections = [
        f"A KL autoencoder of {parameter_count(weights)} in diffusers' layout of `AutoencoderKL`, "
        f"written by {program_name()}.\n\n{bullet_list(facts_about(config, weights, provenance))}",
        usage(config),
        *([statistics_section(statistics)] if statistics else []),
        training_section(provenance),
    ]
    return render_card(
        f"Autoencoder: images to latents {factor} times smaller, and back",
        sections,
        library="diffusers",
        tags=["autoencoder", "vae"],
    )


def facts_about(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> dict[str, str]:
    """Return the facts that the card lists, by name."""
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    standardized = as_mapping(provenance.get("latent_statistics_folded_in"))
    statistics = "zero mean and unit variance in every channel, " if standardized else ""
    facts = {
        "images": f"{config['in_channels']} channels, values in [-1, 1], sides multiples of "
        f"{factor}; made for {config['sample_size']}x{config['sample_size']} pixels",
        "latents": f"{config['latent_channels']} channels, {statistics}"
        f"sides {factor} times smaller",
        "sha256 of the tensors": f"`{tensors_sha256(weights)}`",
    }
    if "largest_activation" in provenance:
        room = "float16 has room" if provenance.get("fits_float16") else "too much for float16"
        facts["activations"] = f"up to {provenance['largest_activation']:.3g} measured, {room}"
    if pixels := as_mapping(provenance.get("pixels")):
        low, high = pixels["value_range"]
        facts["pixel format"] = f"{pixels['dtype']}; {low:g} became -1, {high:g} became 1"
    return facts


def usage(config: Mapping[str, Any]) -> str:
    """Return the section with code that uses the model, here and in diffusers."""
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    side = max(1, config["sample_size"] // factor) * factor
    latents = (1, config["latent_channels"], side // factor, side // factor)
    return USE.format(
        channels=config["in_channels"], side=side, latents=latents, **diffusers_scaling(config)
    )


def diffusers_scaling(config: Mapping[str, Any]) -> dict[str, str]:
    """Return code by which users of diffusers have to scale the latents, and a note about it."""
    encode, decode = "vae.encode(images).latent_dist.sample()", "latents"
    if mean := config["latents_mean"]:
        named = (("mean", mean), ("std", config["latents_std"]))
        shapes = [f"{name} = torch.tensor({list(values)})[:, None, None]" for name, values in named]
        return {
            "note": "its statistics are to be applied as follows\n" + "\n".join(shapes),
            "encode": f"({encode} - mean) * vae.config.scaling_factor / std",
            "decode": "latents * std / vae.config.scaling_factor + mean",
        }
    if config["scaling_factor"] == 1 and not config["shift_factor"]:
        note = "scaling_factor is 1.0: nothing to multiply"
        return {"note": note, "encode": encode, "decode": decode}
    decode = "latents / vae.config.scaling_factor"
    if config["shift_factor"]:
        encode, decode = (
            f"({encode} - vae.config.shift_factor)",
            f"{decode} + vae.config.shift_factor",
        )
    return {
        "note": f"scaling_factor is {config['scaling_factor']}, to be applied as follows",
        "encode": f"{encode} * vae.config.scaling_factor",
        "decode": decode,
    }


def statistics_section(statistics: Mapping[str, Any]) -> str:
    """Return the section on the latent statistics that were measured and folded in."""
    measured = {
        "mean": joined(statistics["mean"]),
        "standard deviation": joined(statistics["std"]),
    }
    return (
        f"## Latent statistics\n\nOver {statistics['images']} training images, before they were "
        "folded into `quant_conv` and `post_quant_conv`, channel by channel:\n\n"
        f"{bullet_list(measured)}\n\nThey are history, not to be applied again. Before training "
        "on latents of other pictures, check that their standard deviation lies in [0.8, 1.25]."
    )


def joined(values: Sequence[float]) -> str:
    """Join numbers by commas, each with five digits."""
    return ", ".join(f"{value:.5g}" for value in values)
