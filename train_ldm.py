"""python train_ldm.py --data data/openmoji --vae runs/vae --text-encoder runs/clip --out runs/ldm

Stage 2: latents and captions -> U-Net. Every image and caption is encoded once, then trained on.
Stopped or killed, it goes on when the same command is run again.
"""

from collections.abc import Sequence

import autoencoder.files
import conditioning.files
from autoencoder import Autoencoder
from conditioning import TextEncoder
from imagetext.order import BucketOrder
from ldm.denoiser import check_prediction
from ldm.schedule import make_schedule
from ldm.unet import UNet
from ldm.validation import check_latents
from stages.cache import cached, hashes
from stages.data import read_pairs, read_shapes
from stages.ldm import PRESETS, PREVIEWS, Config, Stage, build_unet, side_multiple
from training.cli import parse, pick_device, run_main
from training.loop import train
from training.run import Run, plain
from training.seeding import derived_seed, generator


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    check_prediction(make_schedule(config.schedule), config.objective.prediction)
    device = pick_device(config.device)
    vae = Autoencoder.load(config.vae, device).requires_grad_(False)
    encoder = TextEncoder.load(config.text_encoder, device)
    unet = build_unet(config, vae, encoder)
    pairs, held_out = read_pairs(config, config.allow_missing_captions)
    multiple = side_multiple(config, vae)
    buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
    seed = derived_seed(config.seed, "order")
    order = BucketOrder(buckets.of(pairs), config.batch_size, seed)
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
    cache = cached(config, run, parts, pairs + held_out, buckets, vae, encoder)
    check_latents(cache.batch(order.indices(0), generator(config.seed, "check"), 0)[0])
    shown = (held_out or pairs)[:PREVIEWS]
    prompts = config.preview_prompts or [pair.captions[0] for pair in shown]
    stage = Stage(config, run, unet.to(device), vae, encoder, cache, order, prompts)
    train(run, config.plan(), stage.parts, stage.step, stage.look, "train_ldm")
    stage.pipeline.save(run.model, provenance)
    print(f"the model is in {run.model}; draw with: python sample.py PROMPT --model {run.path}")


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


if __name__ == "__main__":
    run_main(main)
