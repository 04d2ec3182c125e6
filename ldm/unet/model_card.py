"""The README.md that lies with the weights of a U-Net."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from foundation.hashing import tensors_sha256
from interop.model_card import (
    bullet_list,
    parameter_count,
    program_name,
    render_card,
    training_section,
)

USE = """## Use

```python
import torch
from ldm.unet import UNet  # Latentsmith's

unet = UNet.load(".")  # this folder
latents, context = torch.randn({latents}), {context}
with torch.no_grad():
    output = unet(latents, torch.tensor([500]), context{labels})
```

```python
from diffusers import UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained(".")
with torch.no_grad():
    output = unet(latents, 500, context{labels}).sample
```

What the network predicts, and on which noise schedule it was trained, is recorded in the pipeline \
folder that it belongs to: in `scheduler/scheduler_config.json` and in README.md."""


def unet_card(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    text_chunks: int = 1,
) -> str:
    """Return the model card of a U-Net.

    Args:
        config: the entries of config.json.
        provenance: the entries of latentsmith.json.
        text_chunks: contexts of the text encoder that it reads one after the other.
    """
    width = config["cross_attention_dim"]
    blocks = [config[name] for name in ("down_block_types", "mid_block_type", "up_block_types")]
    reads_text = "CrossAttn" in str(blocks)
    has_labels = config["num_class_embeds"] or config["class_embed_type"]
    size = height_and_width(config["sample_size"])
    contexts = f", of {text_chunks} contexts one after the other" if text_chunks != 1 else ""
    facts = {
        "latents": f"{config['in_channels']} channels in, {config['out_channels']} out, "
        f"{trained_size(size)}",
        "text": f"token vectors of width {width}{contexts}" if reads_text else "none",
        "sha256 of the tensors": f"`{tensors_sha256(weights)}`",
    }
    kind = f"A U-Net of {parameter_count(weights)} in diffusers' layout of `UNet2DConditionModel`"
    use = USE.format(
        latents=", ".join(map(str, (1, config["in_channels"], *(size or (64, 64))))),
        context=f"torch.randn(1, 77, {width})" if reads_text else "None",
        labels=", class_labels=torch.tensor([20])" if has_labels else "",
    )
    return render_card(
        "U-Net of a latent diffusion model",
        [
            f"{kind}, written by {program_name()}.\n\n{bullet_list(facts)}",
            use,
            *bindings_section(provenance),
            training_section(provenance),
        ],
        library="diffusers",
        tags=["unet", "latent-diffusion"],
    )


def height_and_width(
    sample_size: int | Sequence[int] | None, factor: int = 1
) -> tuple[int, int] | None:
    """Return the size trained on, times a factor; None if the config does not say it.

    sample_size: an entry of config.json: null, one number for both sides, or height and width.
    """
    if sample_size is None:
        return None
    if isinstance(sample_size, int):
        return sample_size * factor, sample_size * factor
    height, width = sample_size
    return height * factor, width * factor


def trained_size(size: tuple[int, int] | None, unit: str = "") -> str:
    """Return the phrase about the size that a model was trained on."""
    return f"made for {'x'.join(map(str, size))}{unit}" if size else "of a size not recorded"


def bindings_section(facts: Mapping[str, Any]) -> list[str]:
    """Return the section on the autoencoder and text encoder; none if their hashes are unknown."""
    if not {"autoencoder_sha256", "text_encoder_sha256"} <= facts.keys():
        return []
    hashes = {
        "autoencoder": f"`{facts['autoencoder_sha256']}`",
        "text encoder": f"`{facts['text_encoder_sha256']}`",
    }
    return [
        "## Bound to\n\nThe U-Net was trained on the latents of one autoencoder and the vectors of "
        "one text encoder. With others it gives noise, so `TextToImage.load` refuses them. The "
        f"sha256 of their tensors (not of their files):\n\n{bullet_list(hashes)}"
    ]
