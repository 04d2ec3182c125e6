"""python train_vae.py --data data/openmoji --out runs/vae

Stage 1: images -> autoencoder. Captions are not needed. Stopped or killed, it goes on when the same
command is run again. The small presets need no download; from base-256 on the loss has LPIPS in it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from autoencoder import PRESETS as ARCHITECTURES
from autoencoder import Autoencoder
from autoencoder.discriminator import DiscriminatorConfig, balance
from autoencoder.losses import LossConfig
from autoencoder.optimization import TrainingStep, prepare
from autoencoder.statistics import fold, measure, without_scaling
from evaluation.reconstruction import psnr
from imagetext.batches import ImageBatches, check_batch_size, read_pixels
from imagetext.folder import read_folder
from imagetext.images import ImageTransform, to_model, to_uint8
from imagetext.split import split
from training.bounds import NotNegative, Part, Positive, Share
from training.cli import parse, pick_device, run_main
from training.ema import EMA
from training.grid import grid
from training.learning_rate import learning_rate
from training.loop import Plan, progress_bar, train
from training.metrics import Averages
from training.precision import Precision
from training.run import Run
from training.seeding import derived_seed, generator

JUDGED = 256  # held-out images that the PSNR is measured on, at most
SHOWN = 16  # of them in a preview


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path  # folder of images
    out: Path  # run folder; the same command again resumes it
    preset: str = "small-64"  # architecture and recipe
    init_from: Path | None = None  # begin with this autoencoder, a folder or single file, instead
    size: Positive[int] = 64  # side of the training images in pixels
    channels: int = 3  # 1 gray, 3 RGB, 4 RGBA
    steps: Positive[int] = 20_000  # optimizer steps
    batch_size: Positive[int] = 16  # images per step
    learning_rate: Positive[float] = 1e-3  # reached after the warm-up; used as given, never scaled
    warmup: NotNegative[int] = 100  # steps until the learning rate is reached
    cooldown: Share = 0.5  # share of the run, at its end, in which the rate falls to 0
    clip_norm: Positive[float] = 1.0  # gradients are scaled down to this norm
    ema_halflife: Positive[float] = 0.02  # of the averaged weights, as a share of the run
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator_rate: Positive[float] = 1.0  # learning rate, times that of the autoencoder
    discriminator_width: Positive[int] = 64  # channels of its first layer
    discriminator_layers: int = 3  # it judges patches of 16, 34 or 70 pixels with 1, 2 or 3
    bf16: bool = True  # compute in bfloat16 where the hardware does; weights stay float32
    held_out: Part = 0.02  # share of the images kept for the PSNR
    statistics_images: Positive[int] = 4096  # that the latents are normalized on at the end
    look_every: Positive[int] = 500  # steps between previews
    save_every: Positive[int] = 500  # steps between saved states
    skip_unusable: bool = False  # leave out images that cannot be read
    workers: NotNegative[int] = 4  # processes that decode images, if memory cannot hold them
    seed: int = 0  # of everything that is random
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there
    dry_run: bool = False  # print the plan and stop


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__, PRESETS)
    device = pick_device(config.device)
    training = build(config, device)
    folder = read_folder(config.data, allow_missing_captions=True)
    if not config.skip_unusable:
        folder.require_all_usable()
    pairs, held_out = split(folder, config.held_out)
    check_batch_size(config.batch_size, len(pairs))
    transform = ImageTransform(config.size, config.channels)
    print_plan(config, training, len(pairs), len(held_out))
    if config.dry_run:
        return
    run = Run(config.out, config)
    if run.finished(config.steps):
        return
    seed = derived_seed(config.seed, "order")
    batches = ImageBatches(
        pairs, transform, config.batch_size, seed, config.workers, progress=progress_bar
    )
    judged = read_pixels([pair.path for pair in (held_out or pairs)[:JUDGED]], transform)
    stage = Stage(config, run, training, batches, judged)
    train(run, stage.plan(), stage.parts, stage.step, stage.look, "train_vae")
    stage.save()
    print(f"the autoencoder is in {run.model}; train on it with: train_ldm.py --vae {run.path}")


def build(config: Config, device: torch.device) -> TrainingStep:
    """Networks and losses, new or from `init_from`. Whatever is missing is reported here."""
    torch.manual_seed(derived_seed(config.seed, "weights"))
    if config.init_from is None:
        channels = {"in_channels": config.channels, "out_channels": config.channels}
        architecture = replace(ARCHITECTURES[config.preset], sample_size=config.size, **channels)
        autoencoder = Autoencoder(architecture)
    else:
        autoencoder = without_scaling(Autoencoder.load(config.init_from))
    check(config, autoencoder)
    return prepare(
        autoencoder,
        config.loss,
        DiscriminatorConfig(
            in_channels=config.channels,
            width=config.discriminator_width,
            layers=config.discriminator_layers,
        ),
        size=config.size,
        steps=config.steps,
        device=device,
        precision=Precision(device, config.bf16),
        clip_norm=config.clip_norm,
        discriminator_rate=config.discriminator_rate,
    )


def check(config: Config, autoencoder: Autoencoder) -> None:
    factor, architecture = autoencoder.factor, autoencoder.config
    if config.size % factor:
        raise ValueError(
            f"--size {config.size} is not a multiple of {factor}, by which this autoencoder "
            f"shrinks images. Use --size {max(1, config.size // factor) * factor}."
        )
    if {architecture.in_channels, architecture.out_channels} != {config.channels}:
        raise ValueError(
            f"{config.init_from} has {architecture.in_channels} channels; "
            f"use --channels {architecture.in_channels}."
        )


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


class Stage:
    """What stage 1 does per step, at every look, and at the end."""

    def __init__(
        self,
        config: Config,
        run: Run,
        training: TrainingStep,
        batches: ImageBatches,
        judged: Tensor,
    ):
        self.config, self.run, self.training = config, run, training
        self.batches, self.stream, self.judged = batches, None, judged
        self.device = training.autoencoder.decoder.conv_out.weight.device
        self.ema = EMA(training.autoencoder, config.ema_halflife * config.steps)
        self.parts = {**training.parts, "ema": self.ema}
        self.contest = Averages()
        if self.device.type == "cuda":
            training.autoencoder.compile_for_training()

    def plan(self) -> Plan:
        return Plan(
            steps=self.config.steps,
            images_per_step=self.config.batch_size,
            save_every=self.config.save_every,
            look_every=self.config.look_every,
        )

    def step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        self.stream = self.stream or self.batches.stream(step)
        images = to_model(next(self.stream)[0].to(self.device, non_blocking=True))
        rate = learning_rate(
            step,
            base=config.learning_rate,
            steps=config.steps,
            warmup=config.warmup,
            cooldown=config.cooldown,
        )
        metrics = self.training(images, step, rate, generator(config.seed, "posterior", step))
        self.ema.update(self.training.autoencoder, step)
        names = {"discriminator", "logits_real", "logits_fake"} & metrics.keys()
        self.contest.add({name: metrics[name] for name in names})
        return metrics

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """PSNR of the averaged weights on images that were held out, and a picture of some."""
        values, shown = [], []
        for pixels in self.judged.split(self.config.batch_size):
            posterior = self.ema.module.encode(to_model(pixels.to(self.device)))
            again = to_uint8(self.ema.module.decode(posterior.mode())).cpu()
            values.append(psnr(pixels, again))
            difference = (again.float() - pixels.float()) / 2 + 127.5  # gray where they agree
            shown.append(torch.stack([pixels, again, difference.to(torch.uint8)], dim=1))
        rows = torch.cat(shown)[:SHOWN].flatten(0, 1)
        grid(rows, columns=3 * min(4, len(self.judged))).save(self.run.preview(step))
        if contest := self.contest.pop():
            tqdm.write(f"discriminator: {balance(*contest.values())}")
        return {"psnr": torch.cat(values).mean().item()}

    def save(self) -> None:
        """Measures the latents of the averaged weights, folds that in, and writes the model."""
        count = min(self.config.statistics_images, self.batches.order.count)
        steps = range(max(1, count // self.config.batch_size))
        images = (to_model(self.batches[step][0].to(self.device)) for step in steps)
        statistics = measure(self.ema.module, images)
        provenance = {
            "config": self.run.config,
            "weights": "averaged over the last steps (EMA)",
            "latent_statistics_folded_in": asdict(statistics),
        }
        fold(self.ema.module, statistics).save(self.run.model, provenance)


# Each preset is an architecture of the same name (autoencoder/autoencoder.py) and a recipe for it.
OFFLINE = LossConfig(reconstruction="l2", perceptual="none", adversarial_weight=0.0)
PRESETS = {
    "tiny-32": {"size": 32, "steps": 300, "learning_rate": 3e-3, "loss": OFFLINE},
    "demo": {
        "size": 48,
        "steps": 1400,
        "batch_size": 8,  # at equal time 2 dB better than 16, on CPUs without bf16
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "look_every": 350,
        "save_every": 350,
        "loss": OFFLINE,
    },
    "small-64": {
        "steps": 5000,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "cooldown": 1.0,
        "look_every": 1000,
        "loss": OFFLINE,
    },
    "base-256": {"size": 256, "steps": 200_000, "batch_size": 32, "learning_rate": 1e-4},
    "sd15": {"size": 256, "steps": 400_000, "batch_size": 32, "learning_rate": 5e-5},
}


if __name__ == "__main__":
    run_main(main)
