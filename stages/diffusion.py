"""Stage 2: latents and captions -> U-Net."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from autoencoder import Autoencoder
from conditioning import TextEncoder
from dataset.latent_cache.cache import LatentCache
from dataset.order import BucketOrder
from foundation import collectives
from foundation.errors import UserError
from foundation.hashing import derived_seed, generator, generators
from ldm import TextToImage
from ldm.denoiser import Denoiser
from ldm.loss import denoising_loss, sample_timesteps_and_noise
from ldm.schedule import make_schedule
from ldm.unet import PRESETS as ARCHITECTURES
from ldm.unet import UNet
from ldm.validation import Validation, learning_status
from stages.diffusion_config import Config
from stages.finetune import check_process, load_unet
from stages.lora import adapter_parts, add_adapter
from training import distributed
from training.ema import EMA
from training.logging.image_grid import image_grid, pil_to_tensor
from training.optimizer import OptimizerStep
from training.posthoc_ema import track_averages
from training.precision import DTYPES, Precision, compile_for, eager_mode
from training.run import Run
from training.watchdog import report_progress

PREVIEWS = 8  # prompts that a preview shows, each drawn by averaged and by live weights
JUDGED = 256  # training pairs that the validation loss is measured on if none are held out
HELD_OUT = 1024  # held-out pairs that it is measured on, at most; their latents stay in memory


def side_multiple(unet: UNet, vae: Autoencoder) -> int:
    """What the sides of an image must be a multiple of."""
    return vae.factor * 2 ** (len(unet.config.block_out_channels) - 1)


def build_unet(config: Config, vae: Autoencoder, encoder: TextEncoder) -> UNet:
    """That of `init_from`, or else the preset's, fitted to this autoencoder and text encoder."""
    if config.init_from is not None:
        unet = load_unet(config.init_from, config.size, vae, encoder)
        process = (config.schedule, config.objective.prediction)
        check_process(config.init_from, unet, encoder, process)
        check_size(config.size, vae.factor, levels=len(unet.config.block_out_channels))
    else:
        architecture = ARCHITECTURES[config.preset]
        check_size(config.size, vae.factor, levels=len(architecture.block_out_channels))
        torch.manual_seed(derived_seed(config.seed, "weights"))
        unet = UNet(
            replace(
                architecture,
                in_channels=vae.config.latent_channels,
                out_channels=vae.config.latent_channels,
                cross_attention_dim=encoder.width,
                sample_size=config.size // vae.factor,
            )
        )
    unet.gradient_checkpointing = config.gradient_checkpointing
    return unet


def check_size(size: int, shrink: int, levels: int) -> None:
    """shrink: of the autoencoder. levels: of the U-Net, which halves at all but the last."""
    halving = 2 ** (levels - 1)
    factor = shrink * halving
    if size % factor:
        raise UserError(
            f"--size {size} is not a multiple of {factor}: the autoencoder shrinks images "
            f"{shrink} times, and the U-Net its latents {halving} times. "
            f"Use --size {max(1, size // factor) * factor}."
        )


def adapt(config: Config, unet: UNet) -> None:
    """With --lora: from here on it is not the U-Net itself that learns."""
    if config.lora is None:
        return
    if config.init_from is None:
        raise UserError("--lora changes a model that is there; say which one: --init-from MODEL.")
    torch.manual_seed(derived_seed(config.seed, "lora"))
    add_adapter(unet, config.lora, config.lora_alpha or config.lora, config.lora_targets)
    learned = sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)
    print(f"LoRA of rank {config.lora}: {learned / 1e6:.3g} million parameters learn.")


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
        self.precision = Precision(self.device, config.precision)
        self.ema = EMA(unet, config.ema_halflife_steps)
        if config.shard:
            spread(unet, self.precision.name)
            spread(self.ema.module, "fp32")  # previews are drawn in it
        optimizer = torch.optim.AdamW(
            unet.parameters(), betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        scaler = self.precision.scaler()
        self.update = OptimizerStep({"optimizer": optimizer}, config.clip_norm, scaler)
        self.parts = {"unet": unet, "ema": self.ema, "update": self.update}
        self.parts |= adapter_parts(unet, self.ema)
        self.averages = track_averages(
            run.path,
            unet,
            every=config.averages_every,
            steps=config.steps,
            half=config.averages_half,
            evaluator="stages.diffusion_averages",
        )
        if self.averages is not None:
            self.parts["power_averages"] = self.averages
        schedule = make_schedule(config.schedule).to(self.device)
        self.network = unet if config.shard else distributed.data_parallel(unet)
        self.denoiser = Denoiser(self.network, schedule, config.objective.prediction)
        self.whole = partial(
            TextToImage,
            autoencoder=vae,
            text_encoder=encoder,
            schedule=config.schedule,
            prediction=config.objective.prediction,
            chunks=config.text_chunks,
        )
        self.pipeline = self.whole(self.ema.module).to(self.device)
        self.live = self.whole(unet).to(self.device)
        self.pipeline.use_cache = self.live.use_cache = not config.shard
        self.validation = held_out_loss(config, cache, order.count, len(schedule), self.device)
        self.prompts = prompts
        self.baseline = self.validation.baseline(self.denoiser, config.objective)
        if not config.shard:
            compile_for(self.device, unet)

    def step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        report_progress("reading latents")
        numbers = collectives.rank_share(step * config.batch_size, config.batch_size)
        own = torch.tensor(collectives.rank_share(0, config.batch_size))
        latents, context = self.cache.batch(
            self.order.indices(step)[own],
            generators(config.seed, "train", numbers),
            config.caption_dropout,
        )
        latents, context = latents.to(self.device), context.to(self.device)
        random = generators(config.seed, "noise", numbers)
        t, noise = sample_timesteps_and_noise(
            latents, self.denoiser.schedule, config.objective, random
        )
        report_progress("computing gradients")
        loss = self.backward(latents, context, t, noise)
        report_progress("updating weights")
        metrics = collectives.mean_metrics({"loss": loss})
        metrics |= self.update(metrics, {"optimizer": config.rate(step)})
        self.ema.update(self.unet, step, metrics["step_applied"])
        if self.averages is not None:
            self.averages.update(self.unet, step)
        return metrics

    def backward(self, *batch: Tensor) -> Tensor:
        """Adds the gradient of the batch's mean loss, and returns that loss. The batch (latents,
        context, t, noise) is computed in equal parts, of which each adds its share."""
        parts, losses = self.config.accumulate, []
        for latents, context, t, noise in zip(*(x.chunk(parts) for x in batch), strict=True):
            with distributed.gradient_sync(self.network, now=len(losses) == parts - 1):
                with self.precision:
                    loss = denoising_loss(
                        self.denoiser, latents, context, self.config.objective, t=t, noise=noise
                    ).mean()
                (loss * self.update.scale / parts).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def evaluate(self, step: int) -> dict[str, float | str]:
        """Validation loss of the averaged weights, its verdict, and a picture of each prompt: by
        the averaged weights above, by the live ones below, as sample.py draws them."""
        with self.precision:
            losses = self.validation.loss(self.pipeline.denoiser, self.config.objective)
        seen = self.drawn(self.pipeline)
        self.unet.eval()
        with eager_mode(self.device):
            seen = torch.cat([seen, self.drawn(self.live)])
        self.unet.train()
        columns = 4 if len(self.prompts) % 4 == 0 else len(self.prompts)
        if not collectives.rank():
            image_grid(seen, columns).save(self.run.preview(step))
        share = {"val_loss_relative": losses["val"] / self.baseline}
        return {**losses, **share, "verdict": learning_status(losses, self.baseline)}

    def drawn(self, pipeline: TextToImage) -> UInt8[Tensor, "n c h w"]:
        """A picture of each prompt, on every rank."""
        own = collectives.rank_rows(len(self.prompts)).tolist()
        pictures = pipeline(
            [self.prompts[k] for k in own],
            guidance_scale=self.config.preview_guidance,
            seed=self.config.seed + own[0],
        )
        return collectives.gather_rows(pil_to_tensor(pictures), len(self.prompts))

    def save(self, provenance: dict[str, Any]) -> None:
        """Writes the model: the averaged weights with all that is needed to draw."""
        averages = self.ema.module.state_dict()
        weights = {name: distributed.full_tensor(each).cpu() for name, each in averages.items()}
        if collectives.rank():
            return
        with torch.device("meta"):
            unet = UNet(self.unet.config)
        unet.load_state_dict(weights, assign=True)
        self.whole(unet).save(self.run.model, provenance)


def spread(unet: UNet, precision: str) -> None:
    """Shares its weights out among the ranks. precision: of what is computed with them."""
    if precision == "fp16":
        raise UserError("--shard goes with --precision bf16 or fp32, not with fp16.")
    distributed.shard(unet, unet.blocks, DTYPES[precision])


def held_out_loss(
    config: Config, cache: LatentCache, trained: int, schedule_steps: int, device: torch.device
) -> Validation:
    """On the pairs after the first `trained`; if there are none, on some that are trained on."""
    held_out = torch.arange(trained, len(cache), max(1, -(-(len(cache) - trained) // HELD_OUT)))
    judged = held_out if len(held_out) else torch.arange(min(trained, JUDGED))
    judged = cache.of_one_shape(judged)
    random = generators(config.seed, "validation", judged.tolist())
    latents, context = cache.batch(judged, random, 0.0)
    return Validation(
        latents.to(device),
        context.to(device),
        schedule_steps=schedule_steps,
        generator=generator(config.seed, "validation noise"),
        batch_size=config.batch_size,
        indices=collectives.rank_rows(len(judged)),
        gather=collectives.gather_rows,
    )
