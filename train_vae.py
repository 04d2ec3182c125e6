"""python train_vae.py --data data/openmoji --out runs/vae

Stage 1: images -> autoencoder. Captions are not needed. Stopped or killed, it goes on when the same
command is run again. The small presets need no download; from base-256 on the loss has LPIPS in it.
"""

from collections.abc import Sequence

from autoencoder.training.step import AutoencoderTraining
from dataset.images.numbers import notes_on
from dataset.images.pixel_format import PixelFormat
from dataset.loader import ImageBatches, read_pixels
from dataset.members import Source
from dataset.order import check_batch_size
from foundation import collectives
from foundation.hashing import derived_seed
from stages.autoencoder import JUDGED, PRESETS, Config, Stage, build, transform_of
from stages.data import data_identity, read_pairs, read_shapes
from stages.finetune import note_format
from stages.overfit import learn_by_heart
from stages.plan import describe_averages, vae_memory
from stages.trials import tell_batch_size, vae_trials
from training.cli import parse, pick_device, run_main
from training.config_json import to_json
from training.logging.progress import progress_bar
from training.loop import train
from training.run import Run


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    if config.overfit:
        learn_by_heart(config, start)
    else:
        start(config)


def start(config: Config) -> None:
    device = pick_device(config.device)
    training = build(config, device)
    pairs, held_out = read_pairs(config, allow_missing_captions=True)
    check_batch_size(config.batch_size, len(pairs))
    transform = transform_of(config, pairs[0].path)
    multiple = training.autoencoder.factor
    buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
    print_plan(config, training, len(pairs), len(held_out))
    tell_format(config, transform.format, pairs.paths)
    if config.dry_run:
        print(vae_memory(config, training).describe())
        return
    if config.find_batch_size:
        memory = vae_memory(config, training)
        return tell_batch_size(config, vae_trials(config, training), memory, most=len(pairs))
    identity = data_identity(pairs, held_out, captions=False)
    with collectives.rank_zero_first():
        run = Run(config.out, to_json(config) | identity)
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
        rank=collectives.rank(),
        ranks=collectives.world_size(),
        progress=progress_bar,
    )
    judged = read_pixels((held_out or pairs)[:JUDGED].paths, transform)
    stage = Stage(config, run, training, batches, judged)
    train(run, config.plan(), stage.parts, stage.step, stage.evaluate, "train_vae")
    stage.save()
    run.finish(config.steps)
    print(f"the autoencoder is in {run.model}; train on it with: train_ldm.py --vae {run.path}")


def tell_format(config: Config, pixels: PixelFormat, paths: Sequence[Source]) -> None:
    print(f"numbers in the files: {pixels}")
    if config.init_from is not None:
        note_format(config.init_from, pixels)
    for note in notes_on(paths, pixels):
        print(f"note: {note}")


def print_plan(config: Config, training: AutoencoderTraining, images: int, held_out: int) -> None:
    autoencoder = training.autoencoder
    side, latent_channels = config.size // autoencoder.factor, autoencoder.config.latent_channels
    million = sum(weight.numel() for weight in autoencoder.parameters()) / 1e6
    print(
        f"autoencoder of {million:.1f} million parameters: images of {config.channels}x"
        f"{config.size}x{config.size} to latents of {latent_channels}x{side}x{side}; "
        f"{images} images ({held_out} held out), {config.steps} steps of {config.batch_size}: "
        f"{config.steps * config.batch_size / images:.1f} epochs.\n{training.loss.describe()}"
    )
    print(describe_averages(config, autoencoder))


if __name__ == "__main__":
    run_main(main)
