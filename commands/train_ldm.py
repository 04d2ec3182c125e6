"""Stage 2 as train_ldm.py runs it: from the data to a U-Net, or a LoRA."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import autoencoder.io
import conditioning.io
from autoencoder import Autoencoder
from conditioning import TextEncoder
from dataset.latent_cache.cache import LatentCache
from dataset.order import BucketOrder
from dataset.table import PairList
from foundation import collectives
from foundation.errors import listed
from foundation.hashing import generators
from foundation.seeds import derived_seed
from ldm.denoiser import check_prediction
from ldm.schedule import make_schedule
from ldm.unet import UNet
from ldm.validation import check_latent_std
from stages.before_training import diffusion_trials, print_batch_sizes, train_or_overfit
from stages.build_unet import build_unet, set_up_lora, side_multiple
from stages.condition import SHOWN_CLASSES, Condition
from stages.conditioned_data import make_condition, preview_prompts, read_conditioned_pairs
from stages.data import data_identity, print_long_captions, read_shapes
from stages.diffusion import BEST, DiffusionTrainer
from stages.finetune import choose_text_chunks, init_identity
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.latents import cache_bytes, encoder_hashes, open_latent_cache, open_pixels
from stages.memory import diffusion_work
from stages.plan import RunPlan, describe_averages
from stages.tasks.base import TrainingTask
from stages.tasks.choice import choose_task
from training.acceleration.compiled import check_compiler
from training.config_json import to_json
from training.device import pick_device
from training.loop import train
from training.run import Run
from training.weights.best import BestModel


def run(config: DiffusionTrainingConfig) -> None:
    """Train, or do what one of the flags asks for instead."""
    train_or_overfit(config, start)


def start(config: DiffusionTrainingConfig) -> None:
    config.check_condition()
    check_prediction(make_schedule(config.schedule), config.objective.prediction)
    device = pick_device(config.device)
    if config.compile:
        check_compiler(device)
    vae = Autoencoder.load(config.vae, device).requires_grad_(False)
    text_encoder = None
    if config.text_encoder is not None:
        text_encoder = TextEncoder.load(config.text_encoder, device)
        chunks = choose_text_chunks(config.text_chunks, config.init_from)
        config = replace(config, text_chunks=chunks)
    pairs, held_out = read_conditioned_pairs(config)
    condition = make_condition(config, text_encoder, pairs, held_out)
    prompts = preview_prompts(config, condition, held_out or pairs)
    task = choose_task(config, vae, config.vae)
    unet = build_unet(config, vae, condition, task)
    multiple = side_multiple(unet, vae)
    buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
    seed = derived_seed(config.seed, "order")
    order = BucketOrder(buckets.assign(pairs), config.batch_size, seed)
    print_plan(config, unet, vae, len(pairs), len(held_out))
    print_condition(condition, pairs)
    identity = encoder_hashes(vae, condition) | init_identity(config.init_from, unet)
    set_up_lora(config, unet)
    plan = RunPlan(
        training="train_ldm.py",
        config=config,
        device=device,
        work=lambda config: diffusion_work(config, unet, vae, condition, task),
        pairs=pairs,
        held_out=len(held_out),
        cache=cache_bytes(config, pairs + held_out, vae, condition),
        keeps_best=(keeps_best := bool(held_out) and config.best_by != "none"),
    )
    plan.print_remarks()
    if config.dry_run:
        return print(plan.describe())
    if config.find_batch_size:
        open_pixels(task, config, vae, pairs + held_out, buckets)
        return find_batch_size(plan, unet.to(device), vae, condition, task)
    plan.check_memory()
    with collectives.rank_zero_first():
        data = data_identity(pairs, held_out, captions=condition.reads != "none")
        settings = to_json(config) | identity | data | task.describe()
        run = Run(config.out, settings, lock=True)
    if run.finished(config.steps):
        return
    provenance = provenance_of(config, run)  # now: the folders may change while we train
    cache = open_latent_cache(
        config, run, pairs + held_out, len(pairs), buckets, vae, condition, identity
    )
    open_pixels(task, config, vae, pairs + held_out, buckets)
    check_first_batch(config, cache, order)
    unet = unet.to(device)
    trainer = DiffusionTrainer(config, run, unet, vae, condition, cache, order, prompts, task)
    best = None
    if keeps_best:
        best = BestModel(
            run.best, BEST, lambda folder, facts: trainer.save(folder, {**provenance, **facts})
        )
    train(run, config.plan(), trainer.state, trainer.step, trainer.evaluate, "train_ldm", best)
    finish(config, run, trainer, provenance)


def find_batch_size(
    plan: RunPlan[DiffusionTrainingConfig],
    unet: UNet,
    vae: Autoencoder,
    condition: Condition,
    task: TrainingTask,
) -> None:
    """Try batch sizes, in a folder that nobody needs afterwards."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps mapped files
        trials = diffusion_trials(plan.config, unet, vae, condition, Path(folder), task)
        print_batch_sizes(plan.config, trials, plan.bytes_at_once, most=len(plan.pairs))


def provenance_of(config: DiffusionTrainingConfig, run: Run) -> dict[str, Any]:
    facts = {
        "config": run.config,
        "weights": "averaged over the last steps (EMA)",
        "autoencoder": autoencoder.io.read_provenance(config.vae),
    }
    if config.text_encoder is None:
        return facts
    return facts | {"text_encoder": conditioning.io.read_provenance(config.text_encoder)}


def check_first_batch(
    config: DiffusionTrainingConfig, cache: LatentCache, order: BucketOrder
) -> None:
    random = generators(config.seed, "check", range(config.batch_size))
    latents, _ = cache.batch(order.indices(0), random, caption_dropout=0.0)
    check_latent_std(latents)


def finish(
    config: DiffusionTrainingConfig,
    run: Run,
    trainer: DiffusionTrainer,
    provenance: dict[str, Any],
) -> None:
    """Write the model, or the LoRA, and say how to draw with it."""
    trainer.save(run.model, provenance)
    kind, flag = ("model", "--model") if config.lora is None else ("LoRA", "--lora")
    run.finish(config.steps)
    prompt = {"text": "PROMPT", "class": f'"{trainer.prompts[0]}"', "none": '""'}
    print(
        f"the {kind} is in {run.model}; draw with: "
        f"python sample.py {prompt[config.condition]} {trainer.task.drawing_flags}{flag} {run.path}"
    )


def print_condition(condition: Condition, pairs: PairList) -> None:
    """Print which classes there are, or which captions are too long for the text encoder."""
    if condition.text_encoder is not None:
        print_long_captions(pairs, condition.text_encoder, condition.chunks)
    if condition.classes:
        names = listed(condition.classes, SHOWN_CLASSES)
        print(f"{len(condition.classes)} classes: {names}.")


def print_plan(
    config: DiffusionTrainingConfig, unet: UNet, vae: Autoencoder, images: int, held_out: int
) -> None:
    side = config.size // vae.factor
    million = sum(weight.numel() for weight in unet.parameters()) / 1e6
    epochs = config.steps * config.batch_size / images
    print(
        f"U-Net of {million:.1f} million parameters on latents of "
        f"{vae.config.latent_channels}x{side}x{side}; {images} images ({held_out} held out), "
        f"{config.steps} steps of {config.batch_size}: {epochs:.1f} epochs."
    )
    print(describe_averages(config, unet))
    if not held_out:
        print(
            "note: nothing is held out, so the validation loss is measured on training images, and "
            "no best/ is kept."
        )
