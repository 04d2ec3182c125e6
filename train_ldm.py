"""python train_ldm.py --data data/openmoji --vae runs/vae --text-encoder runs/clip --out runs/ldm

Stage 2: latents and captions -> U-Net. Every image and caption is encoded once, then trained on.
Stopped or killed, it goes on when the same command is run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import autoencoder.files
import conditioning.files
from autoencoder import Autoencoder
from conditioning import TextEncoder
from imagetext.batches import Order
from imagetext.cache import LatentCache, build_cache
from imagetext.folder import read_folder
from imagetext.images import ImageTransform, to_model
from imagetext.split import split
from ldm import TextToImage
from ldm.denoiser import Denoiser, check_prediction
from ldm.objective import ObjectiveConfig, denoising_loss, draw_noise
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import PRESETS as ARCHITECTURES
from ldm.unet import UNet
from ldm.validation import Validation, check_latents, verdict
from training.bounds import Finite, NotNegative, Part, Positive, Share
from training.cli import parse, pick_device, run_main
from training.ema import EMA
from training.grid import grid, pixels_of
from training.learning_rate import learning_rate, set_learning_rate
from training.loop import Plan, progress_bar, say, train
from training.precision import Precision, compile_for
from training.run import Run, plain
from training.seeding import derived_seed, generator

PREVIEWS = 8  # prompts that a preview shows
JUDGED = 256  # training pairs that the validation loss is measured on if none are held out


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path  # folder of captioned images
    vae: Path  # run folder of train_vae.py, the folder of any AutoencoderKL, or a single file
    text_encoder: str  # run or CLIPTextModel folder, a whole model's single file, NAME:PRETRAINED
    out: Path  # run folder; the same command again resumes it
    preset: str = "small-64"  # architecture and recipe
    size: Positive[int] = 64  # side of the training images in pixels
    steps: Positive[int] = 20_000  # optimizer steps
    batch_size: Positive[int] = 32  # images per step
    learning_rate: Positive[float] = 1e-3  # reached after the warm-up; used as given, never scaled
    warmup: NotNegative[int] = 100  # steps until the learning rate is reached
    cooldown: Share = 0.5  # share of the run, at its end, in which the rate falls to 0
    weight_decay: NotNegative[float] = 0.01  # of AdamW
    clip_norm: Positive[float] = 1.0  # the gradient is scaled down to this norm
    ema_halflife: Positive[float] = 0.02  # of the averaged weights, as a share of the run
    caption_dropout: Share = 0.1  # chance to train on the empty caption, which guidance needs
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    bf16: bool = True  # compute in bfloat16 where the hardware does; weights stay float32
    gradient_checkpointing: bool = False  # a third slower, much less memory
    held_out: Part = 0.02  # share of the pairs kept for the validation loss
    preview_prompts: tuple[str, ...] = ()  # drawn while training; the first held-out captions else
    preview_guidance: Finite = 4.0  # guidance scale of the previews
    look_every: Positive[int] = 500  # steps between previews
    save_every: Positive[int] = 500  # steps between saved states
    allow_missing_captions: bool = False  # train images without a caption on the empty one
    skip_unusable: bool = False  # leave out images that cannot be read
    seed: int = 0  # of everything that is random
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there
    dry_run: bool = False  # print the plan and stop


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    check_prediction(make_schedule(config.schedule), config.objective.prediction)
    device = pick_device(config.device)
    vae = Autoencoder.load(config.vae, device).requires_grad_(False)
    encoder = TextEncoder.load(config.text_encoder, device)
    unet = build_unet(config, vae, encoder)
    folder = read_folder(config.data, config.allow_missing_captions)
    if not config.skip_unusable:
        folder.require_all_usable()
    pairs, held_out = split(folder, config.held_out)
    order = Order(len(pairs), config.batch_size, derived_seed(config.seed, "order"))
    print_plan(config, unet, vae, len(pairs), len(held_out))
    if config.dry_run:
        return
    parts = hashes(config, vae, encoder)
    run = Run(config.out, plain(config) | parts)
    if run.finished(config.steps):
        return
    provenance = {
        "config": run.config,
        "weights": "averaged over the last steps (EMA)",
        "autoencoder": autoencoder.files.read_provenance(config.vae),
        "text_encoder": conditioning.files.read_provenance(config.text_encoder),
    }
    cache = cached(config, run, parts, pairs + held_out, vae, encoder)
    check_latents(cache.batch(order.indices(0), generator(config.seed, "check"), 0)[0])
    shown = (held_out or pairs)[:PREVIEWS]
    prompts = config.preview_prompts or [pair.captions[0] for pair in shown]
    stage = Stage(config, run, unet.to(device), vae, encoder, cache, order, prompts)
    train(run, stage.plan(), stage.parts, stage.step, stage.look, "train_ldm")
    stage.pipeline.save(run.model, provenance)
    print(f"the model is in {run.model}; draw with: python sample.py PROMPT --model {run.path}")


def build_unet(config: Config, vae: Autoencoder, encoder: TextEncoder) -> UNet:
    """The preset's U-Net, fitted to this autoencoder and text encoder."""
    halvings = len(ARCHITECTURES[config.preset].block_out_channels) - 1
    factor = vae.factor * 2**halvings
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


def print_plan(config: Config, unet: UNet, vae: Autoencoder, images: int, held_out: int) -> None:
    side = config.size // vae.factor
    million = sum(weight.numel() for weight in unet.parameters()) / 1e6
    epochs = config.steps * config.batch_size / images
    print(
        f"U-Net of {million:.1f} million parameters on latents of "
        f"{vae.config.latent_channels}x{side}x{side}; {images} images ({held_out} held out), "
        f"{config.steps} steps of {config.batch_size}: {epochs:.1f} epochs."
    )
    if not held_out:
        print("note: nothing is held out, so the validation loss is one of images trained on.")


def hashes(config: Config, vae: Autoencoder, encoder: TextEncoder) -> dict[str, Any]:
    """What the U-Net is bound to from its first step on: paths may come to hold other weights."""
    statistics = *(vae.config.latents_mean or ()), *(vae.config.latents_std or ())
    return {
        "vae_sha256": vae.sha256,
        "vae_scaling": [vae.config.scaling_factor, vae.config.shift_factor, *statistics],
        "text_encoder_sha256": encoder.sha256,
    }


def cached(
    config: Config,
    run: Run,
    parts: dict[str, Any],
    pairs: list,
    vae: Autoencoder,
    encoder: TextEncoder,
) -> LatentCache:
    """Latents and contexts of all pairs, made on the first start and reused on the next."""
    transform = ImageTransform(config.size, vae.config.in_channels)
    identity = {**parts, "transform": transform.describe(), "encoded_in": "float32"}
    folder = run.path / "cache"
    if folder.exists():
        return LatentCache.open(folder, identity, pairs)
    device = next(vae.parameters()).device

    @torch.no_grad()
    def encode_images(pixels: Tensor) -> Tensor:
        posterior = vae.encode(to_model(pixels.to(device)), check=False)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    return build_cache(
        pairs, transform, encode_images, encoder, folder, identity, progress=progress_bar
    )


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
        order: Order,
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
        held_out = torch.arange(order.count, len(cache))
        judged = held_out if len(held_out) else torch.arange(min(order.count, JUDGED))
        self.validation = Validation(
            *self.draw(judged, "validation", 0),
            schedule_steps=len(schedule),
            generator=generator(config.seed, "validation noise"),
            batch_size=config.batch_size,
        )
        self.prompts = prompts
        self.baseline = self.validation.baseline(self.denoiser, config.objective)
        compile_for(self.device, unet)

    def plan(self) -> Plan:
        return Plan(
            steps=self.config.steps,
            images_per_step=self.config.batch_size,
            save_every=self.config.save_every,
            look_every=self.config.look_every,
        )

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
        rate = learning_rate(
            step,
            base=config.learning_rate,
            steps=config.steps,
            warmup=config.warmup,
            cooldown=config.cooldown,
        )
        set_learning_rate(self.optimizer, rate)
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


FLOW = {
    "objective": ObjectiveConfig(prediction="flow", times="logit_normal"),
    "schedule": ScheduleConfig(noise_schedule="flow"),
}
# Each preset is an architecture of the same name (ldm/unet.py) and a recipe for it.
PRESETS = {
    "tiny-32": {"size": 32, "steps": 900, "look_every": 450, "save_every": 450, **FLOW},
    "demo": {
        "size": 48,
        "steps": 2400,
        "learning_rate": 1.2e-3,
        "cooldown": 0.7,
        "look_every": 600,
        "save_every": 600,
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


if __name__ == "__main__":
    run_main(main)
