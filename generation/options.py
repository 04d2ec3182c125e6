"""What one picture is drawn with: flags of sample.py, and what a line of a prompt file may say."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from PIL import Image

from dataset.images.transform import load_image, to_channels
from foundation.errors import UserError
from generation.seeds import parse_seeds
from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.image_processor import check_pixel_count
from ldm.pipeline.sampling import Sampling
from ldm.tasks.base import TEXT_TO_IMAGE, Task
from training.flags import Finite, Fraction, Groups, Positive, check_bounds


@dataclass(frozen=True, kw_only=True)
class Options:
    GROUPS: ClassVar[Groups] = {
        "pictures": (
            *("count", "seed", "negative_prompt", "plain_prompts", "height", "width", "window"),
        ),
        "sampling": ("steps", "sampler", "spacing", "times", "shift", "eta", "order"),
        "guidance": (
            *("guidance_scale", "guidance_rescale", "guidance_interval", "guidance_parallel"),
            *("guidance_max_norm", "guidance_momentum", "weak_model"),
        ),
        "from a picture": (
            *("init_image", "strength", "mask", "outpaint", "resample", "upscale", "noise_level"),
            *("style_image", "source_prompt", "variation"),
        ),
    }

    count: Annotated[Positive[int], tyro.conf.arg(aliases=["-n"])] = 1  # pictures of each prompt
    seed: str = "0"  # of picture 0, k uses seed + k; or those of each prompt, such as 1,5,10-20
    negative_prompt: str = ""  # what guidance leads away from
    plain_prompts: bool = False  # (red:1.3), [red] and AND are words, as in a caption
    height: int | None = None  # pixels; the size trained on when left out, or that of --init-image
    width: int | None = None  # pixels
    window: Positive[int] | None = None  # draw larger pictures through windows of this side, pixels

    steps: int = 25  # network evaluations per picture
    sampler: str = "dpmpp_2m"  # of those in ldm/samplers; an unknown name lists them
    order: int | None = None  # of unipc: 1, 2 or 3; 2 if left out
    eta: float | None = None  # share of fresh noise, for ddim, euler_a, dpmpp_2m_sde, dpmpp_3m_sde
    spacing: str = "trailing"  # of the steps: trailing, leading, linspace, karras, exponential
    times: tuple[float, ...] | None = None  # the steps' times instead, from 999 (noise) down
    shift: Positive[float] | None = None  # of a flow: above 1, more of the steps at high noise
    guidance_scale: Finite = 4.0  # 0 ignores the prompt, 1 follows it plainly, above 1 harder
    guidance_rescale: Fraction = 0.0  # against the overexposure of high scales; 0.7 is usual
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guided there only; 0 clean, 1 noise
    guidance_parallel: Fraction = 1.0  # APG: share kept of what saturates colors; 0 is usual
    guidance_max_norm: Positive[float] | None = None  # APG: of the change, per picture; 15 is usual
    guidance_momentum: Finite = 0.0  # APG: of earlier changes; -0.5 is usual
    weak_model: Path | None = None  # guide away from RUN/state/step-... or a smaller model

    init_image: Path | None = None  # a picture to begin with
    # how much of it is drawn anew; left out: 0.6, with --upscale 0.3, with --mask 1
    strength: Fraction | None = None
    mask: Path | None = None  # of --init-image: white is drawn anew, black stays
    outpaint: tuple[int, int, int, int] | None = None  # pixels added to it left, top, right, bottom
    resample: Positive[int] = 1  # with a mask: how often a step is taken (RePaint; sampler ddpm)
    upscale: Positive[int] | None = None  # enlarge --init-image so many times
    noise_level: int | None = None  # of upscaling models: noise on the small picture, 0 to 350
    style_image: Path | None = None  # a picture whose noise to begin with: style, edits, variations
    source_prompt: str = ""  # what --style-image shows, to edit it
    variation: Fraction = 0.0  # how far noise of its own leads each picture from --style-image

    def check(self) -> None:
        """Refuses what the types allow and still makes no sense."""
        check_bounds(self, Options)
        self.sampling()
        parse_seeds(self.seed, self.count)
        if self.times is not None and (self.given("steps") or self.given("spacing")):
            raise UserError("--times are all steps there are; leave out --steps and --spacing.")
        if self.given("weak_model") and self.given("negative_prompt"):
            raise UserError(
                "with --weak-model guidance leads away from that model, and not from a negative "
                "prompt; leave out one of the two."
            )
        unguided = self.guidance_scale == 1 or (self.guidance_scale == 0 and not self.weak_model)
        if unguided:
            ignored = ["guidance_rescale", "guidance_interval", "guidance_parallel"]
            ignored += ["guidance_max_norm", "guidance_momentum"]
            ignored += ["weak_model"] * (self.guidance_scale == 1)
            ignored += ["negative_prompt"] * (self.guidance_scale == 1)
            for name in filter(self.given, ignored):
                raise UserError(
                    f"{flag(name)} is for guided pictures, and at --guidance-scale "
                    f"{self.guidance_scale:g} nothing is guided; leave one of them out."
                )
        needs = {
            "mask": "init_image",
            "outpaint": "init_image",
            "upscale": "init_image",
            "noise_level": "upscale",
            "source_prompt": "style_image",
            "variation": "style_image",
        }
        for name, needed in needs.items():
            if self.given(name) and not self.given(needed):
                raise UserError(f"{flag(name)} is for {flag(needed)}, which is not given.")
        kinds = [name for name in ("mask", "outpaint", "upscale") if self.given(name)]
        if self.given("init_image") and self.given("style_image"):
            kinds = ["init_image", "style_image"]
        if len(kinds) > 1:
            raise UserError(f"{' and '.join(map(flag, kinds))} do not go together; choose one.")
        if self.given("strength") and not (self.init_image or self.style_image):
            raise UserError("--strength is for --init-image or --style-image; neither is given.")
        if self.resample > 1 and not (self.given("mask") or self.given("outpaint")):
            raise UserError("--resample is for --mask or --outpaint; neither is given.")
        if self.resample > 1 and self.sampler != "ddpm":
            raise UserError(
                "--resample goes with the sampler ddpm, whose steps can be taken back, not with "
                f"{self.sampler}."
            )

    def given(self, name: str) -> bool:
        return getattr(self, name) != DEFAULTS[name]

    def changed(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in DEFAULTS if self.given(name)}

    def sampling(self) -> Sampling:
        return Sampling(
            sampler=self.sampler,
            steps=self.steps,
            spacing=self.spacing,
            times=self.times,
            shift=self.shift,
            eta=self.eta,
            order=self.order,
            guidance=Guidance(
                scale=self.guidance_scale,
                rescale=self.guidance_rescale,
                interval=self.guidance_interval,
                parallel=self.guidance_parallel,
                max_norm=self.guidance_max_norm,
                momentum=self.guidance_momentum,
            ),
        )

    def files(self) -> list[Path]:
        """Pictures that the result depends on."""
        named = (self.init_image, self.mask, self.style_image)
        return [file for file in named if file is not None]

    def task(self, pipeline: TextToImage) -> Task:
        strength = {} if self.strength is None else {"strength": self.strength}
        if self.style_image is not None:
            given = {"source_prompt": self.source_prompt, "variation": self.variation}
            picture = self.picture(self.style_image, pipeline)
            return tasks.edit(pipeline, picture, **strength, **given, window=self.window)
        if self.init_image is None:
            return TEXT_TO_IMAGE
        picture = self.picture(self.init_image, pipeline)
        if self.upscale is not None:
            level = {} if self.noise_level is None else {"noise_level": self.noise_level}
            return tasks.upscale(pipeline, picture, self.upscale, **strength, **level)
        if self.outpaint is not None:
            grow, again = self.outpaint, self.resample
            return tasks.outpaint(pipeline, picture, grow, **strength, resample=again)
        if self.mask is not None:
            mask = to_channels(load_image(self.mask), 1, background=(0, 0, 0))
            return tasks.inpaint(pipeline, picture, mask, **strength, resample=self.resample)
        return tasks.img2img(pipeline, picture, **strength)

    def picture(self, file: Path, pipeline: TextToImage) -> Image.Image:
        """As many channels as the model has, and resized if a size was asked for."""
        channels = pipeline.autoencoder.config.in_channels
        picture = to_channels(load_image(file), channels, background=(255, 255, 255))
        asked, own = (self.width, self.height), picture.size
        size = tuple(b if a is None else a for a, b in zip(asked, own, strict=True))
        check_pixel_count(*size)
        if size == picture.size or self.given("upscale") or self.given("outpaint"):
            return picture
        return picture.resize(size, Image.Resampling.LANCZOS)


DEFAULTS = {field.name: field.default for field in fields(Options)}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
