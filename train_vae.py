"""python train_vae.py --data data/openmoji --out runs/vae

Stage 1: images -> autoencoder. Captions are not needed. Stopped or killed, it goes on when the same
command is run again. The small presets need no download; from base-256 on the loss has LPIPS in it.
"""

from collections.abc import Sequence

from autoencoder.optimization import TrainingStep
from imagetext.batches import ImageBatches, read_pixels
from imagetext.images import ImageTransform
from imagetext.order import check_batch_size
from stages.data import read_pairs, read_shapes
from stages.vae import JUDGED, PRESETS, Config, Stage, build
from training.cli import parse, pick_device, run_main
from training.loop import progress_bar, train
from training.run import Run
from training.seeding import derived_seed


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    device = pick_device(config.device)
    training = build(config, device)
    pairs, held_out = read_pairs(config, allow_missing_captions=True)
    check_batch_size(config.batch_size, len(pairs))
    transform = ImageTransform(config.size, config.channels)
    multiple = training.autoencoder.factor
    buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
    print_plan(config, training, len(pairs), len(held_out))
    if config.dry_run:
        return
    run = Run(config.out, config)
    if run.finished(config.steps):
        return
    seed = derived_seed(config.seed, "order")
    batches = ImageBatches(
        pairs,
        transform,
        config.batch_size,
        seed,
        config.workers,
        buckets=buckets,
        progress=progress_bar,
    )
    judged = read_pixels((held_out or pairs)[:JUDGED].paths, transform)
    stage = Stage(config, run, training, batches, judged)
    train(run, config.plan(), stage.parts, stage.step, stage.look, "train_vae")
    stage.save()
    print(f"the autoencoder is in {run.model}; train on it with: train_ldm.py --vae {run.path}")


def print_plan(config: Config, training: TrainingStep, images: int, held_out: int) -> None:
    autoencoder = training.autoencoder
    side, latent_channels = config.size // autoencoder.factor, autoencoder.config.latent_channels
    million = sum(weight.numel() for weight in autoencoder.parameters()) / 1e6
    print(
        f"autoencoder of {million:.1f} million parameters: images of {config.channels}x"
        f"{config.size}x{config.size} to latents of {latent_channels}x{side}x{side}; "
        f"{images} images ({held_out} held out), {config.steps} steps of {config.batch_size}: "
        f"{config.steps * config.batch_size / images:.1f} epochs.\n{training.loss.describe()}"
    )


if __name__ == "__main__":
    run_main(main)
