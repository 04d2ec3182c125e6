"""Trains a model of diffusers' own classes, to compare with the preset fashion-32.

    python benchmarks/fashion_mnist_diffusers.py --data data/fashion/train --clip runs/clip \\
        --out runs/fashion-diffusers --autoencoder-minutes 16 --unet-minutes 50
    python evaluate.py model runs/fashion-diffusers/model --data data/fashion --split test ...

The architectures, the images and the text encoder are those of the preset. Everything else is as
diffusers' training scripts do it by default: AutoencoderKL with squared error and KL 1e-6, latents
scaled by one number, UNet2DConditionModel with DDPMScheduler on noise, images encoded anew in
each step, AdamW with a constant learning rate of 1e-4, batches of 16, the last weights. The limits
are in minutes of CPU time. It saves once a minute, and the same command continues.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from training.cli import answer_early, parse, run_main
from training.flags import Positive, Seed


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path  # data folder of gray images, as recipes/fashion_mnist.py makes it
    clip: Path  # run folder of train_clip.py, whose text encoder conditions the U-Net
    out: Path  # folder for the states and the model; the same command continues
    autoencoder_minutes: Positive[float] = 16  # of CPU time
    unet_minutes: Positive[float] = 50  # of CPU time
    batch_size: Positive[int] = 16  # images per step
    learning_rate: Positive[float] = 1e-4  # of AdamW
    seed: Seed = 0  # of the weights, the order and the noise


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from autoencoder import PRESETS as AUTOENCODERS
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform, normalize_pixels
from dataset.loader import read_pixels
from dataset.table import split
from foundation.files import atomic_file
from ldm.unet import PRESETS as UNETS
from training.logging.progress import progress_bar

PRESET = "fashion-32"
HELD_OUT = 0.02  # as in the trainings of the preset
KL_WEIGHT = 1e-6
SAVE_SECONDS = 60  # of CPU time
STATISTICS_IMAGES = 4096  # on which the scale of the latents is measured


class Training:
    """Steps of one network until its CPU time is used up, with a state on disk."""

    def __init__(self, network: nn.Module, state: Path, config: Config):
        self.network, self.state, self.config = network, state, config
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
        self.step, self.seconds = 0, 0.0
        if state.is_file():
            stored: dict[str, Any] = torch.load(state, weights_only=True)
            self.step, self.seconds = stored["step"], stored["seconds"]
            network.load_state_dict(stored["network"])
            self.optimizer.load_state_dict(stored["optimizer"])

    def run(self, minutes: float, count: int, loss_of: Callable[[Tensor], Tensor]) -> None:
        """Train for so many minutes in all; loss_of: of the images with these numbers.

        count: images there are.
        """
        size = self.config.batch_size
        started, saved = time.process_time() - self.seconds, self.seconds
        self.network.train()
        while self.seconds < minutes * 60:
            torch.manual_seed(self.config.seed + self.step)
            loss = loss_of(torch.randint(count, (size,)))
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self.seconds = time.process_time() - started
            if self.seconds - saved >= SAVE_SECONDS:
                saved = self.seconds
                self.save()
                print(
                    f"{self.state.stem}: step {self.step}, {self.seconds / 60:.1f} of {minutes:g} "
                    f"minutes, loss {loss.item():.4f}",
                    flush=True,
                )
        self.network.eval()
        self.save()

    def save(self) -> None:
        """Write the state, whole or not at all."""
        stored = {
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_file(self.state) as partial:
            torch.save(stored, partial)


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    config.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    autoencoder = AutoencoderKL(**diffusers_fields(asdict(AUTOENCODERS[PRESET])))
    unet = UNet2DConditionModel(**diffusers_fields(asdict(UNETS[PRESET])))
    pairs, _ = split(read_folder(config.data, progress=progress_bar).pairs, HELD_OUT)
    transform = ImageTransform(AUTOENCODERS[PRESET].sample_size, 1)
    pixels = read_pixels(pairs.paths, transform, progress_bar)
    captions = [pair.captions[0] for pair in pairs]

    train_autoencoder(autoencoder, pixels, config)
    text_encoder = CLIPTextModel.from_pretrained(config.clip / "model" / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(config.clip / "model" / "tokenizer")
    scheduler = DDPMScheduler(clip_sample=False, steps_offset=1)  # as the pipeline of latents wants
    classes = sorted(set(captions))
    contexts = encode_captions(text_encoder, tokenizer, classes)
    labels = torch.tensor([classes.index(caption) for caption in captions])

    def noise_loss(rows: Tensor) -> Tensor:
        with torch.no_grad():
            latents = autoencoder.encode(normalize_pixels(pixels[rows])).latent_dist.sample()
            latents = latents * autoencoder.config["scaling_factor"]
        noise = torch.randn_like(latents)
        t = torch.randint(len(scheduler.betas), (len(rows),))
        noisy = scheduler.add_noise(latents, noise, t)
        return F.mse_loss(unet(noisy, t, contexts[labels[rows]]).sample, noise)

    Training(unet, config.out / "unet.pt", config).run(config.unet_minutes, len(pixels), noise_loss)
    pipeline = StableDiffusionPipeline(
        autoencoder,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(config.out / "model")
    print(f"the model is in {config.out / 'model'}")


def diffusers_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of one of our configs for the class of diffusers."""
    if "down_block_types" not in fields:  # an autoencoder has as many plain blocks as widths
        levels = len(fields["block_out_channels"])
        fields["down_block_types"] = ("DownEncoderBlock2D",) * levels
        fields["up_block_types"] = ("UpDecoderBlock2D",) * levels
    return fields


def train_autoencoder(
    autoencoder: AutoencoderKL, pixels: UInt8[Tensor, "n 1 h w"], config: Config
) -> None:
    """Train stage 1, and write the scale of its latents into its config."""

    def loss_of(rows: Tensor) -> Tensor:
        images = normalize_pixels(pixels[rows])
        posterior = autoencoder.encode(images).latent_dist
        decoded = autoencoder.decode(posterior.sample()).sample
        return F.mse_loss(decoded, images) + KL_WEIGHT * posterior.kl().mean()

    training = Training(autoencoder, config.out / "autoencoder.pt", config)
    training.run(config.autoencoder_minutes, len(pixels), loss_of)
    autoencoder.requires_grad_(False)
    parts = normalize_pixels(pixels[:STATISTICS_IMAGES]).split(64)
    latents = torch.cat([autoencoder.encode(part).latent_dist.mean for part in parts])
    autoencoder.register_to_config(scaling_factor=1 / latents.std().item())


@torch.no_grad()
def encode_captions(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]
) -> Float[Tensor, "captions tokens width"]:
    """Return what the U-Net attends to, for each caption."""
    length: int = encoder.config.max_position_embeddings
    ids = tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt")
    return encoder(ids.input_ids).last_hidden_state


if __name__ == "__main__":
    run_main(main, Config)
