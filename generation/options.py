"""Options of one generated image: flags of `sample.py` and entries of a JSON Lines prompt file.

Nothing here imports torch; what the options mean to a pipeline is in generation/meaning.py.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from foundation.errors import LONGEST_VALUE, UserError, one_line, shown
from generation.limits import (
    MAX_BATCH,
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SIDE,
)
from training.flags import Bound, Fraction, Groups, Needs, Positive, flag_name, needs

SIDE = Bound(lambda x: 0 < x <= MAX_SIDE, f"from 1 to {MAX_SIDE}", on_help_page=False)
SCALE = f"from -{MAX_GUIDANCE} to {MAX_GUIDANCE}"
Side = Annotated[int, SIDE]
Scale = Annotated[float, Bound(lambda x: abs(x) <= MAX_GUIDANCE, SCALE, on_help_page=False)]
BATCH = f"from 1 to {MAX_BATCH}"
BatchSize = Annotated[int, Bound(lambda x: 0 < x <= MAX_BATCH, BATCH, on_help_page=False)]
INPUT_FILES = ("init_image", "mask", "style_image", "restore")
BEGINNINGS = ("init_image", "style_image", "restore")  # pictures of which one can be given


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Everything but the prompt that determines an image of a given model."""

    GROUPS: ClassVar[Groups] = {
        "images": (
            *("count", "seed", "negative_prompt", "plain_prompts", "height", "width", "window"),
        ),
        "sampling": ("steps", "sampler", "order", "eta", "spacing", "times", "shift", "clip_range"),
        "guidance": (
            *("guidance_scale", "guidance_rescale", "guidance_interval", "guidance_parallel"),
            *("guidance_max_norm", "guidance_momentum", "weak_model"),
        ),
        "input image": (
            *("init_image", "strength", "mask", "outpaint", "resample", "upscale", "noise_level"),
            *("style_image", "source_prompt", "variation", "restore"),
        ),
    }

    NEEDS: ClassVar[Needs] = (
        needs("steps", "spacing", times=False),
        needs("mask", "outpaint", "upscale", init_image=True),
        needs("strength", init_image=True, style_image=True),
        needs("noise_level", upscale=True),
        needs("resample", mask=True, outpaint=True),
        needs("source_prompt", "variation", style_image=True),
    )

    # images per prompt
    count: Annotated[
        int,
        Bound(lambda x: 0 < x <= MAX_COUNT, f"from 1 to {MAX_COUNT}"),
        tyro.conf.arg(aliases=["-n"]),
    ] = 1
    # first seed: image k of the call uses seed + k; or all seeds of each prompt, as in 1,5,10-20
    seed: str = "0"
    negative_prompt: str = ""  # text that guidance leads away from
    plain_prompts: bool = False  # read (red:1.3), [red] and AND as ordinary text
    height: Side | None = None  # pixels; left out: as trained, or as the input image
    width: Side | None = None  # pixels; left out: as trained, or as the input image
    window: Side | None = None  # pixels; side of overlapping windows (MultiDiffusion)

    steps: int = 25  # number of sampling steps
    sampler: str = "dpmpp_2m"  # name of the sampler; a wrong name lists all
    order: int | None = None  # order of the sampler unipc: 1, 2 or 3; left out: 2
    # amount of fresh noise per step, 0 to 1; samplers ddim, euler_a, dpmpp_2m_sde, dpmpp_3m_sde
    eta: float | None = None
    # spacing of the timesteps: trailing, leading, linspace, karras or exponential
    spacing: str = "trailing"
    times: tuple[float, ...] | None = None  # the timesteps themselves, descending from 999 (noise)
    shift: Positive[float] | None = None  # rectified flow: above 1, more steps at high noise
    # bound of each estimate of the clean latents; for noise prediction with the cosine schedule
    clip_range: Positive[float] | None = None
    # 0 ignores the prompt, 1 uses it without guidance, higher values follow it more closely
    guidance_scale: Scale = 4.0
    guidance_rescale: Fraction = 0.0  # reduces overexposure at high scales; typical: 0.7
    # guide only between these noise levels; 0 is clean, 1 is pure noise
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_parallel: Fraction = 1.0  # APG: weight of the parallel component; typical: 0
    # APG: largest norm of the guidance update; typical: 15
    guidance_max_norm: Positive[float] | None = None
    guidance_momentum: Scale = 0.0  # APG: weight of earlier updates; typical: -0.5
    # autoguidance: an earlier or smaller model, such as RUN/state/step-0005000
    weak_model: Path | None = None

    init_image: Path | None = None  # image to start from, for img2img and the four flags below
    # how much of the image changes: 0 nothing, 1 all; left out: 0.6, with --upscale 0.3, else 1
    strength: Fraction | None = None
    mask: Path | None = None  # inpainting: generate the white area, keep the black one
    outpaint: tuple[int, int, int, int] | None = None  # pixels to add: left, top, right, bottom
    # inpainting by RePaint: how often each step is repeated; only with the sampler ddpm
    resample: Annotated[int, Bound(lambda x: 0 < x <= 1000, "from 1 to 1000")] = 1
    # factor by which the image is enlarged
    upscale: Annotated[int, Bound(lambda x: 0 < x <= 256, "from 1 to 256")] | None = None
    noise_level: int | None = None  # upscaling models: noise added to the image, 0 to 350
    style_image: Path | None = None  # image to edit, or whose style to use, by DDIM inversion
    source_prompt: str = ""  # text that describes the image to edit
    # how far the noise of each image is from the inverted noise
    variation: Fraction = 0.0
    restore: Path | None = None  # damaged image, for models that were trained to restore

    def check_guidance(self) -> None:
        """Raise UserError for options of guidance that would have no effect."""
        if self.is_set("weak_model") and self.is_set("negative_prompt"):
            raise UserError(
                "with --weak-model, guidance leads away from that model and not from a negative "
                "prompt; leave out one of the two."
            )
        if self.guidance_scale not in (0, 1) or (self.guidance_scale == 0 and self.weak_model):
            return
        needs_guidance = [
            "guidance_rescale",
            "guidance_interval",
            "guidance_parallel",
            "guidance_max_norm",
            "guidance_momentum",
        ]
        if self.guidance_scale == 1:
            needs_guidance += ["weak_model", "negative_prompt"]
        for name in filter(self.is_set, needs_guidance):
            raise UserError(
                f"{flag_name(name)} needs guidance, and --guidance-scale "
                f"{self.guidance_scale:g} turns it off; leave out one of them."
            )

    def check_input_images(self) -> None:
        """Raise UserError for input images that cannot be combined."""
        exclusive = [name for name in ("mask", "outpaint", "upscale") if self.is_set(name)]
        beginnings = [name for name in BEGINNINGS if self.is_set(name)]
        if len(beginnings) > 1:
            exclusive = beginnings
        if len(exclusive) > 1:
            flags = " and ".join(map(flag_name, exclusive))
            raise UserError(f"{flags} cannot be combined; choose one.")
        if self.resample > 1 and self.sampler != "ddpm":
            raise UserError(
                "--resample works only with the sampler ddpm, whose steps can be reversed, not "
                f"with {self.sampler}."
            )

    def is_set(self, name: str) -> bool:
        """Return whether an option differs from its default."""
        return getattr(self, name) != DEFAULTS[name]

    def non_defaults(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by name."""
        return {name: getattr(self, name) for name in DEFAULTS if self.is_set(name)}

    def input_files(self) -> dict[str, Path]:
        """Return the image files that the result depends on, by the name of the option."""
        files = {name: getattr(self, name) for name in INPUT_FILES}
        return {name: file for name, file in files.items() if file is not None}


DEFAULTS = {field.name: field.default for field in fields(GenerationOptions)}


def parse_seeds(text: str, count: int) -> tuple[int, ...]:
    """Parse seeds such as "7" or "1,5,10-20".

    Args:
        count: images per prompt. It must be 1 for several seeds, which already are one per image.

    Returns:
        One seed, the first of consecutive ones, or the seeds of all images of a prompt.

    Raises:
        UserError: a seed is malformed or above 2^63 - 1, a range falls, or there are too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last > MAX_SEED:
            raise UserError(
                f"--seed {one_line(text, LONGEST_VALUE)} cannot be read at {shown(part)}: give a "
                "number from 0 to 2^63 - 1, or numbers and rising ranges separated by commas, such "
                "as 1,5,10-20."
            )
        if len(seeds) + last - first >= MAX_COUNT:
            raise UserError(
                f"--seed {one_line(text, LONGEST_VALUE)} asks for more than {MAX_COUNT} images per "
                "prompt."
            )
        seeds += range(first, last + 1)
    if len(seeds) > 1 and count > 1:
        raise UserError(
            f"--seed {one_line(text, LONGEST_VALUE)} is {len(seeds)} seeds, so {len(seeds)} images "
            f"per prompt; leave out --count {count}."
        )
    return tuple(seeds)
