"""Stage 2: latents and captions -> U-Net."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from autoencoder import Autoencoder
from conditioning import TextEncoder
from imagetext.cache import LatentCache
from imagetext.order import BucketOrder
from ldm import TextToImage
from ldm.denoiser import Denoiser
from ldm.objective import ObjectiveConfig, denoising_loss, draw_noise
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import PRESETS as ARCHITECTURES
from ldm.unet import UNet
from ldm.validation import Validation, verdict
from stages.data import Aspect
from training.bounds import Finite, NotNegative, Positive, Share
from training.ema import EMA
from training.grid import grid, pixels_of
from training.learning_rate import set_learning_rate
from training.loop import say
from training.precision import Precision, compile_for
from training.recipe import Recipe
from training.run import Run
from training.seeding import derived_seed, generator

PREVIEWS = 8  # prompts that a preview shows
JUDGED = 256  # training pairs that the validation loss is measured on if none are held out
HELD_OUT = 1024  # held-out pairs that it is measured on, at most; their latents stay in memory


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    vae: Path  # run folder of train_vae.py, the folder of any AutoencoderKL, or a single file
    text_encoder: str  # run or CLIPTextModel folder, a whole model's single file, NAME:PRETRAINED
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 2: also shapes up to 2:1 and 1:2, of the same area; 1: squares
    batch_size: Positive[int] = 32  # images per step
    weight_decay: NotNegative[float] = 0.01  # of AdamW
    clip_norm: Positive[float] = 1.0  # the gradient is scaled down to this norm
    ema_halflife: Positive[float] = 0.02  # of the averaged weights, as a share of the run
    caption_dropout: Share = 0.1  # chance to train on the empty caption, which guidance needs
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gradient_checkpointing: bool = False  # a third slower, much less memory
    preview_prompts: tuple[str, ...] = ()  # drawn while training; the first held-out captions else
    preview_guidance: Finite = 4.0  # guidance scale of the previews
    allow_missing_captions: bool = False  # train images without a caption on the empty one
    verify_cache: bool = False  # read the cache and all images again, whether they are as they were


FLOW = {
    "objective": ObjectiveConfig(prediction="flow", times="logit_normal"),
    "schedule": ScheduleConfig(noise_schedule="flow"),
}
# Each preset is an architecture of the same name (ldm/unet.py) and a recipe for it.
PRESETS = {
    "tiny-32": {"size": 32, "steps": 900, "look_every": 450, "save_every": 450, **FLOW},
    "demo": {
        "size": 48,
        "steps": 2200,
        "learning_rate": 1.2e-3,
        "cooldown": 0.7,
        "look_every": 550,
        "save_every": 550,
        **FLOW,
    },
    "small-64": {"steps": 10_000, "cooldown": 0.7, "look_every": 1000, **FLOW},
    "sd15": {
        "size": 512,
        "steps": 500_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "warmup": 10_000,
        "cooldown": 0.1,
        "objective": ObjectiveConfig(prediction="noise"),
        "schedule": ScheduleConfig(),
        "gradient_checkpointing": True,
    },
}


def side_multiple(config: Config, vae: Autoencoder) -> int:
    """What the sides of an image must be a multiple of."""
    return vae.factor * 2 ** (len(ARCHITECTURES[config.preset].block_out_channels) - 1)


def build_unet(config: Config, vae: Autoencoder, encoder: TextEncoder) -> UNet:
    """The preset's U-Net, fitted to this autoencoder and text encoder."""
    halvings = len(ARCHITECTURES[config.preset].block_out_channels) - 1
    factor = side_multiple(config, vae)
    if config.size % factor:
        raise ValueError(
            f"--size {config.size} is not a multiple of {factor}: the autoencoder shrinks images "
            f"{vae.factor} times, and the U-Net its latents {2**halvings} times. "
            f"Use --size {max(1, config.size // factor) * factor}."
        )
    torch.manual_seed(derived_seed(config.seed, "weights"))
    unet = UNet(
        replace(
            ARCHITECTURES[config.preset],
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            cross_attention_dim=encoder.width,
            sample_size=config.size // vae.factor,
        )
    )
    unet.gradient_checkpointing = config.gradient_checkpointing
    return unet


class Stage:
    """All that one optimizer step of stage 2 touches: no autoencoder, no text tower."""

    def __init__(
        self,
        config: Config,
        run: Run,
        unet: UNet,
        vae: Autoencoder,
        encoder: TextEncoder,
        cache: LatentCache,
        order: BucketOrder,
        prompts: Sequence[str],
    ):
        self.config, self.run, self.unet, self.cache, self.order = config, run, unet, cache, order
        self.device = unet.conv_in.weight.device
        self.precision = Precision(self.device, config.bf16)
        self.ema = EMA(unet, config.ema_halflife * config.steps)
        self.optimizer = torch.optim.AdamW(
            unet.parameters(), betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.parts = {"unet": unet, "ema": self.ema, "optimizer": self.optimizer}
        schedule = make_schedule(config.schedule).to(self.device)
        self.denoiser = Denoiser(unet, schedule, config.objective.prediction)
        self.pipeline = TextToImage(
            self.ema.module, vae, encoder, config.schedule, config.objective.prediction
        ).to(self.device)
        count = len(cache) - order.count
        held_out = torch.arange(order.count, len(cache), max(1, -(-count // HELD_OUT)))
        judged = held_out if len(held_out) else torch.arange(min(order.count, JUDGED))
        judged = cache.of_one_shape(judged)
        self.validation = Validation(
            *self.draw(judged, "validation", 0),
            schedule_steps=len(schedule),
            generator=generator(config.seed, "validation noise"),
            batch_size=config.batch_size,
        )
        self.prompts = prompts
        self.baseline = self.validation.baseline(self.denoiser, config.objective)
        compile_for(self.device, unet)

    def draw(self, indices: Tensor, purpose: str, step: int) -> tuple[Tensor, Tensor]:
        """Latents and contexts of these pairs; captions are dropped in training only."""
        dropout = self.config.caption_dropout if purpose == "train" else 0.0
        random = generator(self.config.seed, purpose, step)
        latents, context = self.cache.batch(indices, random, dropout)
        return latents.to(self.device), context.to(self.device)

    def step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        latents, context = self.draw(self.order.indices(step), "train", step)
        random = generator(config.seed, "noise", step)
        t, noise = draw_noise(latents, self.denoiser.schedule, config.objective, random)
        with self.precision:
            loss = denoising_loss(
                self.denoiser, latents, context, config.objective, t=t, noise=noise
            ).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), config.clip_norm)
        set_learning_rate(self.optimizer, config.rate(step))
        self.optimizer.step()
        self.ema.update(self.unet, step)
        return {"loss": loss, "gradient_norm": norm}

    def look(self, step: int) -> dict[str, float]:
        """Validation loss of the averaged weights, its verdict, and a picture of each prompt."""
        with self.precision:
            losses = self.validation.loss(self.pipeline.denoiser, self.config.objective)
        say(f"step {step}: {verdict(losses, self.baseline)}")
        pictures = self.pipeline(
            self.prompts, guidance_scale=self.config.preview_guidance, seed=self.config.seed
        )
        grid(pixels_of(pictures), columns=4).save(self.run.preview(step))
        return losses
