"""The README.md of a whole model's pipeline folder."""

from collections.abc import Mapping
from typing import Any

from interop.model_card import (
    as_mapping,
    bullet_list,
    program_name,
    render_card,
    training_section,
)
from ldm.config import TRAIN_TIMESTEPS, Prediction, ScheduleConfig
from ldm.unet.model_card import bindings_section, height_and_width, trained_size

USE = """## Use

```python
from ldm import TextToImage  # Latentsmith's

pipeline = TextToImage.load(".")  # this folder
pictures = pipeline("a red apple", steps=25, guidance_scale={guidance}, seed=0)  # PIL images
```

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained(".")
picture = pipeline("a red apple", num_inference_steps=25, guidance_scale={guidance}).images[0]
```"""

LONG_PROMPTS = """## Long prompts

In training, every caption filled {chunks} contexts of the text encoder, one after the other. Each \
has {tokens} tokens with its own start and end token; if the caption was short, the last contexts \
hold only padding. `TextToImage` encodes prompts in the same way by itself. diffusers' pipeline \
encodes only the first context, on which the model was not trained, unless it is given all of them:

```python
from conditioning import TextEncoder  # Latentsmith's
from conditioning.prompt_weighting import encode_chunks

encoder = TextEncoder.load(".")
prompt, empty = encode_chunks(encoder, ["a red apple", ""], chunks={chunks}).split(1)
picture = pipeline(
    prompt_embeds=prompt,
    negative_prompt_embeds=empty,
    num_inference_steps=25,
    guidance_scale={guidance},
).images[0]
```"""

PREDICTIONS: dict[Prediction, str] = {
    "noise": "the noise that was added",
    "velocity": "the velocity, alpha noise - sigma z_0",
    "sample": "the clean latents",
    "flow": "the flow, noise - z_0",
}


def pipeline_card(
    *,
    sample_size: int | tuple[int, int] | None,
    autoencoder_factor: int,
    context_tokens: int | None,
    chunks: int,
    text_to_image: bool,
    schedule: ScheduleConfig,
    prediction: Prediction,
    bindings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """Return the model card of a whole model.

    Args:
        sample_size: of the U-Net's config.
        autoencoder_factor: by which the autoencoder shrinks both sides of an image.
        context_tokens: tokens in one context of the text encoder; None without a text encoder.
        chunks: contexts that a prompt fills.
        text_to_image: whether noise and text are all that it draws from; False if it needs an
            image, too.
        bindings: hashes of autoencoder and text encoder, as in latentsmith.json.
        provenance: as given to `TextToImage.save`.
    """
    size = height_and_width(sample_size, autoencoder_factor)
    facts = {
        "pictures": trained_size(size, " pixels"),
        "prompts": "none" if context_tokens is None else prompt_length(context_tokens, chunks),
        "the U-Net predicts": PREDICTIONS[prediction],
        "noise schedule": describe_schedule(schedule),
    }
    parts = "A U-Net" if context_tokens is None else "A text encoder, a U-Net"
    sections = [
        f"{parts} and an autoencoder in the layout of a Stable Diffusion pipeline, written by "
        f"{program_name()}.\n\n{bullet_list(facts)}"
    ]
    if text_to_image and context_tokens is not None:
        caption_dropout = as_mapping(provenance.get("config")).get("caption_dropout")
        sections += use_sections(context_tokens, chunks, caption_dropout)
    return render_card(
        "Text to image by latent diffusion",
        [*sections, *bindings_section(bindings), training_section(provenance)],
        library="diffusers",
        tags=["latent-diffusion", "stable-diffusion", "text-to-image"],
        task="text-to-image",
    )


def use_sections(context_tokens: int, chunks: int, caption_dropout: float | None) -> list[str]:
    """Return the sections with code, on long prompts if there are any, and on guidance."""
    guidance = 1.0 if caption_dropout == 0 else 4.0
    sections = [USE.format(guidance=guidance)]
    if chunks != 1:
        text = LONG_PROMPTS.format(tokens=context_tokens, chunks=chunks, guidance=guidance)
        sections.append(text)
    return [*sections, guidance_section(caption_dropout)]


def prompt_length(context_tokens: int, chunks: int) -> str:
    """Return the phrase about how long a prompt may be."""
    if chunks == 1:
        length = f"up to {context_tokens} tokens"
    else:
        tokens = chunks * (context_tokens - 2)
        length = f"up to {tokens} tokens, in {chunks} contexts of {context_tokens}"
    return f"{length}, start and end included; longer prompts are cut"


def describe_schedule(schedule: ScheduleConfig) -> str:
    """Return the phrase about a noise schedule."""
    if schedule.noise_schedule == "flow":
        shift = f", sampled with a shift of {schedule.shift}" if schedule.shift != 1 else ""
        return f"rectified flow, z_t = (1 - t) z_0 + t noise{shift}"
    phrase = f"{TRAIN_TIMESTEPS} steps, {schedule.noise_schedule}"
    if schedule.noise_schedule != "cosine":
        phrase += f", beta from {schedule.beta_start} to {schedule.beta_end}"
    if schedule.zero_terminal_snr:
        phrase += ", stretched to end in pure noise (zero terminal SNR)"
    return phrase


def guidance_section(caption_dropout: float | None) -> str:
    """Return the section on the guidance scale.

    caption_dropout: share of captions left out in training; None if it is unknown.
    """
    scale = (
        "`guidance_scale` 0 ignores the prompt (diffusers treats it like 1), 1 follows the prompt "
        "without guidance at half the cost, and values above 1 follow it more strongly."
    )
    if caption_dropout == 0:
        advice = "This model was not trained on empty captions, which guidance needs: use 1."
    else:
        advice = "Begin with 4; values that are too high give hard colors."
    if caption_dropout:
        share = f"{100 * caption_dropout:.3g} % of the captions"
        advice += f" In training {share} were left out for guidance."
    return f"## Guidance\n\n{scale} {advice}"
