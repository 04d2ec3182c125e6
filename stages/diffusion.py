"""Stage 2: train a U-Net on latents and captions."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoencoder import Autoencoder
from dataset.latent_cache.cache import LatentCache
from dataset.order import BucketOrder
from foundation import collectives
from foundation.errors import UserError
from foundation.hashing import generators
from foundation.parameters import all_but
from foundation.shapes import Latents, Scalar, Timesteps
from ldm import TextToImage
from ldm.denoiser import Conditioning, Denoiser
from ldm.loss import denoising_loss, sample_timesteps_and_noise
from ldm.schedule import make_schedule
from ldm.unet import UNet
from ldm.validation import Validation, learning_status
from stages.condition import Condition
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.lora import adapter_states, save_lora
from stages.previews import PromptPreviews
from stages.tasks.base import DRAWING, TrainingTask
from training import distributed
from training.acceleration.captured import CapturedStep, Rate, is_recordable
from training.acceleration.compiled import compile_and_time, compile_in_place, eager_mode
from training.acceleration.prefetch import PrefetchedBatches
from training.checkpoint import Stateful
from training.flags import with_flags
from training.logging.image_grid import Cell, save_grid
from training.optimizer import OptimizerStep
from training.precision import DTYPES, Precision
from training.run import Run
from training.watchdog import report_progress
from training.weights.best import Criterion
from training.weights.ema import EMA
from training.weights.muon import Muon
from training.weights.posthoc_ema import track_averages

BEST = Criterion(metric="val", words="held-out validation loss", higher_is_better=False)
PREVIEWS = 8  # prompts of a preview, each drawn by the averaged and by the live weights
EVAL_PAIRS = 1024  # held-out pairs of the validation loss, at most; their latents stay in memory
TRAINING_EVAL_PAIRS = 256  # training pairs of the validation loss, if none are held out


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
        """Return the optimizers of the weights that learn, with clipping and loss scaling."""
        uses_muon = self.config.optimizer == "muon" and self.config.lora is None
        matrices = self.unet.matrices() if uses_muon else []
        rest = all_but(matrices, self.unet)
        decay = self.config.weight_decay
        optimizers: dict[str, Optimizer] = {
            "optimizer": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        }
        if matrices:
            optimizers["matrices"] = Muon(matrices, weight_decay=decay)
        return OptimizerStep(
            optimizers,
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
        rates = {"optimizer": learning_rate, "matrices": learning_rate * self.config.matrix_rate}
        metrics |= self.optimizer_step(metrics, rates)
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
        status = learning_status(
            losses, self.baseline, self.condition.reads, self.validation.images
        )
        verdict = with_flags(status, ["held_out"])
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
