"""python train_ldm.py --data data/openmoji --vae runs/vae --text-encoder runs/clip --out runs/ldm

Stage 2: latents and captions -> U-Net. Every image and caption is encoded once, then trained on.
Stopped or killed, it goes on when the same command is run again. With --init-from MODEL it begins
with the weights of another U-Net, and with --lora RANK besides it learns a small change of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import autoencoder.io
import conditioning.io
from autoencoder import Autoencoder
from conditioning import TextEncoder
from dataset.order import BucketOrder
from foundation import collectives
from foundation.hashing import derived_seed, generators
from ldm.denoiser import check_prediction
from ldm.schedule import make_schedule
from ldm.unet import UNet
from ldm.validation import check_latent_std
from stages.captions import note_cut
from stages.data import data_identity, read_pairs, read_shapes
from stages.diffusion import PREVIEWS, Stage, adapt, build_unet, side_multiple
from stages.diffusion_config import PRESETS, Config
from stages.finetune import chunks_to_train, origin
from stages.latents import cached, hashes
from stages.lora import save_lora
from stages.overfit import learn_by_heart
from stages.plan import describe_averages, ldm_memory
from stages.trials import ldm_trials, tell_batch_size
from training.cli import parse, pick_device, run_main
from training.config_json import to_json
from training.loop import train
from training.run import Run


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    if config.overfit:
        learn_by_heart(config, start)
    else:
        start(config)


def start(config: Config) -> None:
    check_prediction(make_schedule(config.schedule), config.objective.prediction)
    device = pick_device(config.device)
    vae = Autoencoder.load(config.vae, device).requires_grad_(False)
    encoder = TextEncoder.load(config.text_encoder, device)
    config = replace(config, text_chunks=chunks_to_train(config.text_chunks, config.init_from))
    unet = build_unet(config, vae, encoder)
    pairs, held_out = read_pairs(config, config.allow_missing_captions)
    multiple = side_multiple(unet, vae)
    buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
    seed = derived_seed(config.seed, "order")
    order = BucketOrder(buckets.of(pairs), config.batch_size, seed)
    print_plan(config, unet, vae, len(pairs), len(held_out))
    note_cut(pairs, encoder, config.text_chunks)
    parts = hashes(config, vae, encoder) | origin(config.init_from, unet)
    adapt(config, unet)
    if config.dry_run or config.find_batch_size:
        return tell_memory(config, unet, vae, encoder, len(pairs))
    with collectives.rank_zero_first():
        run = Run(config.out, to_json(config) | parts | data_identity(pairs, held_out))
    if run.finished(config.steps):
        return
    provenance = {
        "config": run.config,
        "weights": "averaged over the last steps (EMA)",
        "autoencoder": autoencoder.io.read_provenance(config.vae),
        "text_encoder": conditioning.io.read_provenance(config.text_encoder),
    }
    cache = cached(config, run, parts, pairs + held_out, buckets, vae, encoder)
    first = range(config.batch_size)
    check_latent_std(cache.batch(order.indices(0), generators(config.seed, "check", first), 0)[0])
    shown = (held_out or pairs)[:PREVIEWS]
    prompts = config.preview_prompts or [pair.captions[0] for pair in shown]
    stage = Stage(config, run, unet.to(device), vae, encoder, cache, order, prompts)
    train(run, config.plan(), stage.parts, stage.step, stage.evaluate, "train_ldm")
    finish(config, run, stage, provenance)


def tell_memory(
    config: Config, unet: UNet, vae: Autoencoder, encoder: TextEncoder, images: int
) -> None:
    memory = ldm_memory(config, unet.to(pick_device(config.device)), vae, encoder)
    if config.dry_run:
        print(memory.describe())
        return
    with TemporaryDirectory() as folder:
        trials = ldm_trials(config, unet, vae, encoder, Path(folder))
        tell_batch_size(config, trials, memory, most=images)


def finish(config: Config, run: Run, stage: Stage, provenance: dict[str, Any]) -> None:
    if config.lora is None:
        stage.save(provenance)
        made, flag = "model", "--model"
    else:
        if not collectives.rank():
            save_lora(stage.ema.module, run.model, provenance)
        made, flag = "LoRA", "--lora"
    run.finish(config.steps)
    print(f"the {made} is in {run.model}; draw with: python sample.py PROMPT {flag} {run.path}")


def print_plan(config: Config, unet: UNet, vae: Autoencoder, images: int, held_out: int) -> None:
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
        print("note: nothing is held out, so the validation loss is one of images trained on.")


if __name__ == "__main__":
    run_main(main)
