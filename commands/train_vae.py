"""Stage 1 as train_vae.py runs it: from the data to an autoencoder."""

from collections.abc import Sequence

from autoencoder.training.step import AutoencoderTraining
from dataset.buckets import Buckets
from dataset.images.pixel_format import PixelFormat
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches, read_pixels
from dataset.order import check_batch_size
from dataset.report import value_range_notes
from dataset.source import Source
from dataset.table import Pair
from foundation import collectives
from foundation.seeds import derived_seed
from stages.autoencoder import (
    BEST,
    BEST_STATISTICS_IMAGES,
    EVAL_IMAGES,
    AutoencoderTrainer,
    build_networks,
    describe_missing_backbone,
    make_transform,
)
from stages.before_training import autoencoder_trials, print_batch_sizes, train_or_overfit
from stages.data import data_identity, read_pairs, read_shapes
from stages.finetune import print_other_format
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.memory import autoencoder_work
from stages.plan import RunPlan, describe_averages
from training.acceleration.compiled import check_compiler
from training.config_json import to_json
from training.device import pick_device
from training.logging.progress import progress_bar
from training.loop import train
from training.run import Run
from training.weights.best import BestModel


def run(config: AutoencoderTrainingConfig) -> None:
    """Train, or do what one of the flags asks for instead."""
    train_or_overfit(config, start)


def start(config: AutoencoderTrainingConfig) -> None:
    device = pick_device(config.device)
    if config.compile:
        check_compiler(device)
    networks = build_networks(config, device)
    pairs, held_out = read_pairs(config, allow_missing_captions=True)
    check_batch_size(config.batch_size, len(pairs))
    transform = make_transform(config, pairs[0].path)
    multiple = networks.autoencoder.factor
    buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
    print_plan(config, networks, len(pairs), len(held_out))
    print_format(config, transform.format, pairs.paths)
    plan = RunPlan(
        training="train_vae.py",
        config=config,
        device=device,
        work=lambda config: autoencoder_work(config, networks),
        pairs=pairs,
        held_out=len(held_out),
        keeps_best=(keeps_best := bool(held_out) and config.best_by != "none"),
    )
    plan.print_remarks()
    if config.dry_run:
        return print("\n".join(filter(None, [plan.describe(), describe_missing_backbone(config)])))
    if config.find_batch_size:
        trials = autoencoder_trials(config, networks)
        return print_batch_sizes(config, trials, plan.bytes_at_once, most=len(pairs))
    plan.check_memory()
    identity = data_identity(pairs, held_out, captions=False)
    with collectives.rank_zero_first():
        run = Run(config.out, to_json(config) | identity, lock=True)
    if run.finished(config.steps):
        return
    batches = make_batches(config, pairs, transform, buckets)
    eval_images = read_pixels((held_out or pairs)[:EVAL_IMAGES].paths, transform)
    trainer = AutoencoderTrainer(config, run, networks, batches, eval_images)
    best = None
    if keeps_best:
        few = min(config.statistics_images, BEST_STATISTICS_IMAGES)
        best = BestModel(run.best, BEST, lambda folder, facts: trainer.save(folder, facts, few))
    train(run, config.plan(), trainer.state, trainer.step, trainer.evaluate, "train_vae", best)
    trainer.save(run.model, {}, config.statistics_images)
    run.finish(config.steps)
    print(f"the autoencoder is in {run.model}; train on it with: train_ldm.py --vae {run.path}")


def make_batches(
    config: AutoencoderTrainingConfig,
    pairs: Sequence[Pair],
    transform: ImageTransform,
    buckets: Buckets,
) -> ImageBatches:
    return ImageBatches(
        pairs,
        transform,
        config.batch_size,
        derived_seed(config.seed, "order"),
        config.workers,
        buckets=buckets,
        rank=collectives.rank(),
        world_size=collectives.world_size(),
        progress=progress_bar,
    )


def print_format(
    config: AutoencoderTrainingConfig, pixels: PixelFormat, paths: Sequence[Source]
) -> None:
    print(f"pixel format: {pixels}")
    if config.init_from is not None:
        print_other_format(config.init_from, pixels)
    for note in value_range_notes(paths, pixels):
        print(f"note: {note}")


def print_plan(
    config: AutoencoderTrainingConfig, networks: AutoencoderTraining, images: int, held_out: int
) -> None:
    autoencoder = networks.autoencoder
    side, latent_channels = config.size // autoencoder.factor, autoencoder.config.latent_channels
    million = sum(weight.numel() for weight in autoencoder.parameters()) / 1e6
    print(
        f"autoencoder of {million:.1f} million parameters: images of {config.channels}x"
        f"{config.size}x{config.size} to latents of {latent_channels}x{side}x{side}; "
        f"{images} images ({held_out} held out), {config.steps} steps of {config.batch_size}: "
        f"{config.steps * config.batch_size / images:.1f} epochs.\n{networks.loss.describe()}"
    )
    print(describe_averages(config, autoencoder))
    if not held_out:
        print("note: nothing is held out, so training images are evaluated, and no best/ is kept.")
