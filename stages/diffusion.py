"""Stage 2: train a U-Net on latents and captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from autoencoder import Autoencoder
from dataset.latent_cache.cache import LatentCache
from dataset.options import ReadOptions
from dataset.order import BucketOrder
from foundation import collectives
from foundation.errors import UserError
from foundation.hashing import generators
from foundation.shapes import Latents, Scalar, Timesteps
from ldm import TextToImage
from ldm.denoiser import Conditioning, Denoiser
from ldm.loss import ObjectiveConfig, denoising_loss, sample_timesteps_and_noise
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import UNet
from ldm.validation import Validation, learning_status
from stages.condition import (
    Condition,
    ConditionName,
)
from stages.data import Aspect, CaptionTrainingConfig
from stages.lora import TARGETS, adapter_states, save_lora
from stages.previews import PromptPreviews
from stages.tasks.base import DRAWING, TrainingTask
from stages.tasks.options import TASK_FLAGS, TaskFlags
from training import distributed
from training.acceleration.captured import CapturedStep, Rate, is_recordable
from training.acceleration.compiled import compile_and_time, compile_in_place, eager_mode
from training.acceleration.prefetch import PrefetchedBatches
from training.checkpoint import Stateful
from training.config import EMATrainingConfig, extended
from training.flags import Finite, Fraction, Groups, NonNegative, Positive, Text, flag_name
from training.logging.image_grid import Cell, save_grid
from training.optimizer import OptimizerStep
from training.precision import DTYPES, Precision
from training.run import Run
from training.watchdog import report_progress
from training.weights.best import Criterion
from training.weights.ema import EMA
from training.weights.posthoc_ema import track_averages

BEST = Criterion(metric="val", words="held-out validation loss", higher_is_better=False)
PREVIEWS = 8  # prompts of a preview, each drawn by the averaged and by the live weights
EVAL_PAIRS = 1024  # held-out pairs of the validation loss, at most; their latents stay in memory
TRAINING_EVAL_PAIRS = 256  # training pairs of the validation loss, if none are held out


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig(EMATrainingConfig, CaptionTrainingConfig, TaskFlags):
    """Flags of train_ldm.py."""

    GROUPS: ClassVar[Groups] = extended(
        EMATrainingConfig.GROUPS,
        {
            "data": (
                *ReadOptions.READ_FLAGS,
                "size",
                "max_aspect",
                "allow_missing_captions",
                "verify_cache",
            ),
            "model": (
                *("vae", "condition", "text_encoder", "text_chunks", "init_from"),
                *("lora", "lora_alpha", "lora_targets"),
            ),
            "training": ("weight_decay", "clip_norm", "caption_dropout"),
            "captions": CaptionTrainingConfig.GROUPS["captions"],
            "task": ("task", *(name for names in TASK_FLAGS.values() for name in names)),
            "objective": ("objective",),
            "noise schedule": ("schedule",),
            "output": ("best_by", "preview_prompts", "preview_guidance"),
            "machine": ("gradient_checkpointing", "shard"),
        },
    )

    vae: Path  # autoencoder: a run of train_vae.py, any AutoencoderKL folder, or a single file
    # text: captions, through --text-encoder; class: captions are names of classes; none: images
    condition: ConditionName = "text"
    # run of train_clip.py, folder of a CLIPTextModel or XLMRobertaModel, single file, or
    # NAME:PRETRAINED of open_clip
    text_encoder: str | None = None
    init_from: Path | None = None  # begin with the weights of this U-Net, a folder or file
    lora: Positive[int] | None = None  # train a LoRA of this rank on --init-from
    lora_alpha: Positive[float] | None = None  # LoRA scale = alpha / rank; left out: scale 1
    lora_targets: tuple[str, ...] = TARGETS  # ends of the names of the modules that get a LoRA
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 1: squares; 2: also shapes up to 2:1 and 1:2, of the same area
    batch_size: Positive[int] = 32  # images per step, over all GPUs
    weight_decay: NonNegative[float] = 0.01  # of AdamW
    clip_norm: Positive[float] = 1.0  # the gradient is scaled down to this norm
    # contexts of the text encoder per caption, for long ones; left out: 1, or that of --init-from
    text_chunks: Positive[int] | None = None
    caption_dropout: Fraction = 0.1  # chance to train without text or class; guidance needs it
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gradient_checkpointing: bool = False  # a third slower, much less memory
    shard: bool = False  # spread weights and optimizer over the GPUs (FSDP), if one is too small
    # keep the weights with the lowest validation loss of held-out pairs in best/; none: do not
    best_by: Literal["val", "none"] = "val"
    preview_prompts: tuple[Text, ...] = ()  # drawn at each evaluation; left out: held-out captions
    preview_guidance: Finite = 4.0  # guidance scale of the previews
    allow_missing_captions: bool = False  # images without a caption get the empty one
    verify_cache: bool = False  # check that the latent cache and all images are unchanged

    def check(self) -> None:
        super().check()
        if self.averages_every and (self.shard or self.lora):
            other = "--shard" if self.shard else "--lora"
            raise UserError(f"--averages-every stores whole U-Nets, which {other} does not have.")
        if self.shard and self.lora:
            raise UserError("--lora trains too little to be spread; leave out --shard.")
        if self.shard and self.compile:
            raise UserError("--shard does not go with --compile; leave one of them out.")

    def check_condition(self) -> None:
        """Refuse a text condition without a text encoder, and settings of texts without texts."""
        self.check_task_flags(self.condition)
        if self.condition == "text":
            if self.text_encoder is None:
                raise UserError(
                    "--text-encoder is missing: the model reads captions through it. Give a run of "
                    "train_clip.py, a folder or file with a CLIP, or NAME:PRETRAINED of open_clip. "
                    "To train on classes or on images alone: --condition class, or none."
                )
            return
        of_texts = ("text_encoder", "text_chunks", *CaptionTrainingConfig.GROUPS["captions"])
        for name in of_texts:
            if getattr(self, name) not in (None, False):
                raise UserError(
                    f"{flag_name(name)} is about texts, which a model with --condition "
                    f"{self.condition} does not read. Leave one of both out."
                )


FLOW = {
    "objective": ObjectiveConfig(prediction="flow", times="logit_normal"),
    "schedule": ScheduleConfig(noise_schedule="flow"),
}
BASE = {
    "batch_size": 256,
    "learning_rate": 2e-4,
    "warmup": 2000,
    "cooldown": 0.2,
    "evaluate_every": 5000,
    "save_every": 2000,
    **FLOW,
}
# Each preset is an architecture of the same name (ldm/unet) and defaults for it.
PRESETS = {
    "tiny-32": {
        "size": 32,
        "steps": 900,
        "ema_halflife": 576,
        "evaluate_every": 450,
        "save_every": 450,
        **FLOW,
    },
    "fashion-32": {
        "size": 32,
        "steps": 5000,
        "cooldown": 0.7,
        "ema_halflife": 3200,
        "evaluate_every": 1000,
        **FLOW,
    },
    "demo": {
        "size": 48,
        "steps": 2200,
        "learning_rate": 1.2e-3,
        "cooldown": 0.7,
        "ema_halflife": 1408,
        "evaluate_every": 550,
        "save_every": 550,
        **FLOW,
    },
    "small-64": {
        "steps": 10_000,
        "cooldown": 0.7,
        "ema_halflife": 6400,
        "evaluate_every": 1000,
        **FLOW,
    },
    "small-128": {
        "size": 128,
        "steps": 40_000,
        "cooldown": 0.5,
        "ema_halflife": 25_600,
        "evaluate_every": 2000,
        **FLOW,
    },
    "base-128": {"size": 128, "steps": 200_000, "ema_halflife": 1_024_000, **BASE},
    "base-256": {"size": 256, "steps": 300_000, "ema_halflife": 1_536_000, "accumulate": 4, **BASE},
    "base-512": {
        "size": 512,
        "steps": 300_000,
        "ema_halflife": 1_536_000,
        "accumulate": 16,
        **BASE,
    },
    "sd15": {
        "size": 512,
        "steps": 500_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "warmup": 10_000,
        "cooldown": 0.1,
        "ema_halflife": 2_560_000,
        "objective": ObjectiveConfig(prediction="noise"),
        "schedule": ScheduleConfig(),
        "gradient_checkpointing": True,
    },
}


class DiffusionTrainer:
    """U-Net, optimizer and data of stage 2: one step, one evaluation, the model at the end."""

    def __init__(
        self,
        config: DiffusionTrainingConfig,
        run: Run,
        unet: UNet,
        vae: Autoencoder,
        condition: Condition,
        cache: LatentCache,
        order: BucketOrder,
        prompts: Sequence[str],
        task: TrainingTask = DRAWING,
    ):
        """
        Args:
            vae, condition: for the previews; training itself reads the cache.
            order: of the training pairs, which are the first ones of the cache.
            prompts: of the previews.
            task: what the U-Net gets besides noisy latents.
        """
        self.config, self.run, self.unet, self.cache, self.order = config, run, unet, cache, order
        self.condition, self.task = condition, task
        self.device = unet.conv_in.weight.device
        self.precision = Precision(self.device, config.precision)
        self.is_captured = not config.shard and is_recordable(self.device, self.precision)
        self.ema = EMA(unet, config.ema_halflife_steps)
        if config.shard:
            shard_unet(unet, self.precision.name)
            shard_unet(self.ema.module, "fp32")  # previews are drawn with it
        self.optimizer_step = self.make_optimizer_step()
        self.state: dict[str, Stateful] = {"unet": unet, "ema": self.ema}
        self.state["update"] = self.optimizer_step
        self.state |= adapter_states(unet, self.ema)
        self.power_averages = track_averages(
            run.path,
            unet,
            every=config.averages_every,
            steps=config.steps,
            half=config.averages_half,
        )
        if self.power_averages is not None:
            self.state["power_averages"] = self.power_averages
        schedule = make_schedule(config.schedule).to(self.device)
        self.network = unet if config.shard else distributed.data_parallel(unet)
        self.denoiser = Denoiser(self.network, schedule, config.objective.prediction)
        self.make_pipeline = partial(
            TextToImage,
            autoencoder=vae,
            text_encoder=condition.text_encoder,
            schedule=config.schedule,
            prediction=config.objective.prediction,
            classes=condition.classes,
            chunks=condition.chunks,
            low_res=task.low_res,
        )
        self.averaged_pipeline = self.make_pipeline(self.ema.module).to(self.device)
        self.live_pipeline = self.make_pipeline(unet).to(self.device)
        self.averaged_pipeline.use_cache = self.live_pipeline.use_cache = not config.shard
        self.validation = make_validation(
            config, condition, cache, order.count, len(schedule), self.device, task
        )
        has_held_out = len(cache) > order.count
        examples = range(order.count, len(cache)) if has_held_out else range(order.count)
        scale = 1.0 if condition.reads == "none" else config.preview_guidance
        self.prompts = prompts
        self.previews = PromptPreviews(prompts, config.seed, scale, task, examples)
        self.baseline = self.validation.baseline(self.denoiser, config.objective)
        self.batches = PrefetchedBatches(self.read, self.device)
        self.update = self.train_on
        if self.is_captured:
            clear = self.optimizer_step.clear_gradients
            self.update = CapturedStep(self.train_on, clear, always=config.compile)
        if config.compile:
            compile_and_time(lambda: compile_in_place(unet), self.make_gradients(), self.device)

    def make_gradients(self) -> Callable[[], None]:
        """Return a function that computes the gradients of a step and throws them away."""
        batch = self.with_inputs(*(tensor.to(self.device) for tensor in self.read(0)))

        def gradients() -> None:
            self.backward(*batch)
            self.unet.zero_grad()

        return gradients

    def make_optimizer_step(self) -> OptimizerStep:
        """Return AdamW on the weights that learn, with clipping and loss scaling."""
        optimizer = torch.optim.AdamW(
            self.unet.parameters(),
            betas=(0.9, 0.99),
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        return OptimizerStep(
            {"optimizer": optimizer},
            self.config.clip_norm,
            self.precision.scaler(),
            is_captured=self.is_captured,
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one optimizer step; return its metrics."""
        report_progress("reading latents")
        batch = self.with_inputs(*self.batches(step))
        report_progress("computing gradients")
        metrics = self.update(self.config.rate(step), self.ema.rate(step), *batch)
        if self.power_averages is not None:
            self.power_averages.update(self.unet, step)
        return metrics

    def read(self, step: int) -> tuple[Tensor, ...]:
        """Read what a step is computed from: latents, timesteps, noise, task and condition."""
        config = self.config
        numbers = collectives.rank_share(step * config.batch_size, config.batch_size)
        own = torch.tensor(collectives.rank_share(0, config.batch_size))
        indices = self.order.indices(step)[own]
        latents, captions = self.cache.batch(
            indices,
            generators(config.seed, "train", numbers),
            config.caption_dropout,
        )
        random = generators(config.seed, "noise", numbers)
        t, noise = sample_timesteps_and_noise(
            latents, self.denoiser.schedule, config.objective, random
        )
        made = ()
        if self.task.channels:
            made = self.task.read(indices, generators(config.seed, "task", numbers))
        return latents, t, noise, *made, *self.condition.read(self.cache, captions)

    def with_inputs(
        self, latents: Latents, t: Timesteps, noise: Latents, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the inputs of the task from what was read; the other tensors stay."""
        count = self.task.tensors_read
        if not count:
            return latents, t, noise, *rest
        with self.precision:
            inputs = self.task.inputs_at_once(rest[:count], self.config.images_at_once)
        return latents, t, noise, *inputs, *rest[count:]

    def conditioning(self, *given: Tensor) -> Conditioning:
        """Return what the network gets.

        given: inputs of the task, then what the condition reads.
        """
        count = len(given) - self.condition.tensors_read
        return self.task.join(self.condition.conditioning(*given[count:]), *given[:count])

    def train_on(
        self,
        learning_rate: Rate,
        average_rate: Rate,
        latents: Latents,
        t: Timesteps,
        noise: Latents,
        *given: Tensor,
    ) -> dict[str, Tensor]:
        """Compute gradients, move weights and their average; return metrics.

        The host reads no value here, and so does not wait for a GPU.

        given: inputs of the task, and what the condition reads.
        """
        loss = self.backward(latents, t, noise, *given)
        report_progress("updating weights")
        metrics = collectives.mean_metrics({"loss": loss})
        metrics |= self.optimizer_step(metrics, {"optimizer": learning_rate})
        self.ema.move(self.unet, average_rate, metrics["step_applied"])
        return metrics

    def backward(self, latents: Latents, t: Timesteps, noise: Latents, *given: Tensor) -> Scalar:
        """Add the gradient of the batch's mean loss to the weights; return that loss.

        The batch is computed in `accumulate` equal parts, one after the other.
        """
        parts, objective = self.config.accumulate, self.config.objective
        losses: list[Scalar] = []
        chunks = (tensor.chunk(parts) for tensor in (latents, t, noise, *given))
        for latents, t, noise, *rest in zip(*chunks, strict=True):
            with distributed.gradient_sync(self.network, now=len(losses) == parts - 1):
                with self.precision:
                    conditioning = self.conditioning(*rest)
                    loss = denoising_loss(
                        self.denoiser, latents, conditioning, objective, t=t, noise=noise
                    ).mean()
                (loss * self.optimizer_step.scale / parts).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def evaluate(self, step: int) -> dict[str, float | str]:
        """Measure the validation loss of the averaged weights, and write a preview.

        The preview has a picture of each prompt, as sample.py draws it: by the averaged weights
        above, by the live ones below; above these, what a task begins with.
        """
        with self.precision:
            losses = self.validation.loss(self.averaged_pipeline.denoiser, self.config.objective)
        pictures = {"averaged weights": self.previews.draw(self.averaged_pipeline)}
        self.unet.eval()
        with eager_mode():
            pictures["weights of this step"] = self.previews.draw(self.live_pipeline)
        self.unet.train()
        if self.task.channels:
            given = self.previews.beginnings(self.averaged_pipeline)
            pictures = {"given picture": given} | pictures
        columns = 4 if len(self.prompts) % 4 == 0 else len(self.prompts)
        if not collectives.rank():
            cells = [Cell(prompt, name) for name in pictures for prompt in self.prompts]
            grid = torch.cat(list(pictures.values()))
            save_grid(grid, columns, self.run.preview(step), cells)
        verdict = learning_status(losses, self.baseline, self.condition.reads)
        relative = {"val_loss_relative": losses["val"] / self.baseline}
        return {**losses, **relative, "verdict": verdict}

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Write a model: the averaged weights as a pipeline folder, or as a LoRA."""
        if self.config.lora is not None:
            if not collectives.rank():
                save_lora(self.ema.module, folder, provenance)
            return
        averages = self.ema.module.state_dict()
        weights = {name: distributed.full_tensor(each).cpu() for name, each in averages.items()}
        if collectives.rank():
            return
        with torch.device("meta"):
            unet = UNet(self.unet.config)
        unet.load_state_dict(weights, assign=True)
        self.make_pipeline(unet).save(folder, provenance)


def shard_unet(unet: UNet, precision: str) -> None:
    """Spread the weights over the ranks. precision: of the arithmetic with them."""
    if precision == "fp16":
        raise UserError("--shard goes with --precision bf16 or fp32, not with fp16.")
    distributed.shard(unet, unet.blocks, DTYPES[precision])


def make_validation(
    config: DiffusionTrainingConfig,
    condition: Condition,
    cache: LatentCache,
    trained: int,
    schedule_steps: int,
    device: torch.device,
    task: TrainingTask = DRAWING,
) -> Validation:
    """Return the validation loss on held-out pairs, or on training pairs if none are held out.

    Args:
        trained: how many pairs are trained on; in the cache the held-out ones come after these.
        task: its inputs are made once, and are the same at every call.
    """
    held_out = torch.arange(trained, len(cache), max(1, -(-(len(cache) - trained) // EVAL_PAIRS)))
    chosen = held_out if len(held_out) else torch.arange(min(trained, TRAINING_EVAL_PAIRS))
    chosen = cache.of_most_common_shape(chosen)
    random = generators(config.seed, "validation", chosen.tolist())
    latents, captions = cache.batch(chosen, random, 0.0)
    conditioning = condition.conditioning(*condition.read(cache, captions)).to(device)
    if task.channels:
        made = task.read(chosen, generators(config.seed, "validation task", chosen.tolist()))
        inputs = task.inputs_at_once([x.to(device) for x in made], config.batch_size)
        conditioning = task.join(conditioning, *inputs)
    return Validation(
        latents.to(device),
        conditioning,
        schedule_steps=schedule_steps,
        seed=config.seed,
        batch_size=config.batch_size,
        indices=collectives.rank_rows(len(chosen)),
        gather=collectives.gather_rows,
    )
