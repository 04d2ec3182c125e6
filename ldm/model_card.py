"""The README.md beside a U-Net's weights, and that of a whole pipeline folder."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foundation.hashing import tensors_sha256
from interop.model_card import bullets, mapping, millions, model_card, training, writer
from ldm.denoiser import Prediction
from ldm.model_card_prompts import contexts, length, long_prompts
from ldm.schedule import ScheduleConfig

USE_UNET = """## Use

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

What the output means, and at which noise, stands in the pipeline that it is part of: \
`scheduler/scheduler_config.json`, and the README.md beside it."""

USE_PIPELINE = """## Use

```python
from ldm import TextToImage  # Latentsmith's

pipeline = TextToImage.load(".")  # this folder
pictures = pipeline(["a red apple"], steps=25, guidance_scale={guidance}, seed=0)  # PIL images
```

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(".")
picture = pipeline("a red apple", num_inference_steps=25, guidance_scale={guidance}).images[0]
```"""

PREDICTIONS: dict[Prediction, str] = {
    "noise": "the noise that was added",
    "velocity": "the velocity, alpha noise - sigma z_0",
    "sample": "the clean latents",
    "flow": "the flow, noise - z_0",
}


def unet_card(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], provenance: Mapping[str, Any]
) -> str:
    """config: as in config.json. provenance: as in latentsmith.json."""
    width = config["cross_attention_dim"]
    blocks = [config[name] for name in ("down_block_types", "mid_block_type", "up_block_types")]
    reads = "CrossAttn" in str(blocks)
    labeled = config["num_class_embeds"] or config["class_embed_type"]
    size = sides(config["sample_size"])
    facts = {
        "latents": f"{config['in_channels']} channels in, {config['out_channels']} out, "
        f"{made_for(size)}",
        "text": f"token vectors of width {width}{contexts(provenance)}" if reads else "none",
        "sha256 of the tensors": f"`{tensors_sha256(weights)}`",
    }
    kind = f"A U-Net of {millions(weights)} in diffusers' layout of `UNet2DConditionModel`"
    return model_card(
        "U-Net of a latent diffusion model",
        [
            f"{kind}, written by {writer()}.\n\n{bullets(facts)}",
            USE_UNET.format(
                latents=", ".join(map(str, (1, config["in_channels"], *(size or (64, 64))))),
                context=f"torch.randn(1, 77, {width})" if reads else "None",
                labels=", class_labels=torch.tensor([20])" if labeled else "",
            ),
            *binding(provenance),
            training(provenance),
        ],
        library="diffusers",
        tags=["unet", "latent-diffusion"],
    )


def pipeline_card(
    *,
    sample_size: int | tuple[int, int] | None,
    factor: int,
    tokens: int | None,
    chunks: int,
    plain: bool,
    schedule: ScheduleConfig,
    prediction: Prediction,
    bindings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """sample_size: in the U-Net's config. factor: by which the autoencoder shrinks pictures.

    tokens: that the text encoder reads; None without one. chunks: contexts of so many that a prompt
    fills. plain: it draws from noise and text alone, not from pictures, too.
    """
    facts = {
        "pictures": made_for(sides(sample_size, factor), " pixels"),
        "prompts": "none" if tokens is None else length(tokens, chunks),
        "the U-Net predicts": PREDICTIONS[prediction],
        "noise schedule": noising(schedule),
    }
    dropout = mapping(provenance.get("config")).get("caption_dropout")
    scale = 1.0 if dropout == 0 else 4.0
    use = [USE_PIPELINE.format(guidance=scale), guidance(dropout)]
    if tokens is not None:
        use[1:1] = long_prompts(tokens, chunks, scale)
    return model_card(
        "Text to image by latent diffusion",
        [
            f"{'A U-Net' if tokens is None else 'A text encoder, a U-Net'} and an autoencoder in "
            f"the layout of a Stable Diffusion pipeline, written by {writer()}."
            f"\n\n{bullets(facts)}",
            *(use if plain and tokens is not None else []),
            *binding(bindings),
            training(provenance),
        ],
        library="diffusers",
        tags=["latent-diffusion", "stable-diffusion", "text-to-image"],
        task="text-to-image",
    )


def sides(sample_size: Any, factor: int = 1) -> tuple[int, ...] | None:
    """Height and width trained on, if the config says."""
    if sample_size is None:
        return None
    pair = sample_size if isinstance(sample_size, list | tuple) else (sample_size,) * 2
    return tuple(side * factor for side in pair)


def made_for(size: tuple[int, ...] | None, unit: str = "") -> str:
    return f"made for {'x'.join(map(str, size))}{unit}" if size else "of a size not recorded"


def noising(schedule: ScheduleConfig) -> str:
    if schedule.noise_schedule == "flow":
        shift = f", sampled with a shift of {schedule.shift}" if schedule.shift != 1 else ""
        return f"rectified flow, z_t = (1 - t) z_0 + t noise{shift}"
    betas = f", beta from {schedule.beta_start} to {schedule.beta_end}"
    return (
        f"1000 steps, {schedule.noise_schedule}"
        + betas * (schedule.noise_schedule != "cosine")
        + ", stretched to end in noise alone" * schedule.zero_terminal_snr
    )


def guidance(caption_dropout: float | None) -> str:
    """caption_dropout: share of captions left out in training; None if it is not known."""
    scale = (
        "0 ignores the prompt (in diffusers it is like 1), 1 follows it plainly at half the cost, "
        "above 1 harder."
    )
    if caption_dropout == 0:
        advice = "This model knows no empty caption, from which guidance leads away: use 1."
    else:
        advice = "Begin with 4; too much gives hard colors."
    if caption_dropout:
        advice += (
            f" In training {100 * caption_dropout:.3g} % of the captions were left out for it."
        )
    return f"## Guidance\n\n{scale} {advice}"


def binding(facts: Mapping[str, Any]) -> list[str]:
    """The section on what the U-Net was trained with, if that is known."""
    if not {"autoencoder_sha256", "text_encoder_sha256"} <= facts.keys():
        return []
    hashes = {
        "autoencoder": f"`{facts['autoencoder_sha256']}`",
        "text encoder": f"`{facts['text_encoder_sha256']}`",
    }
    return [
        "## Bound to\n\nThe U-Net was trained on the latents of one autoencoder and the vectors of "
        "one text encoder; with others it gives noise, and `TextToImage.load` refuses them. Their "
        f"sha256, of tensors and not of files:\n\n{bullets(hashes)}"
    ]
