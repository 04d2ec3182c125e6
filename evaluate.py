"""python evaluate.py --model runs/ldm --data data/openmoji --judge runs/judge

How good is a model? Reconstruction of the held-out images (PSNR), and how often a CLIP that had no
part in the training finds the right prompt for a sample among all prompts asked (recall).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from autoencoder import Autoencoder
from conditioning.clip import Clip
from dataset.folder import read_folder
from dataset.images.pixel_format import EIGHT_BIT, PixelFormat, recorded_format
from dataset.images.transform import ImageTransform, normalize_pixels, to_pixels_like
from dataset.loader import read_pixels
from dataset.table import Pair, split
from evaluation.reconstruction import psnr
from evaluation.retrieval import recall_at
from foundation.files import write_json
from foundation.hashing import generator
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.io import read_model_provenance
from ldm.pipeline.sampling import Sampling
from training.cli import parse, pick_device, run_main
from training.flags import Finite, FractionBelowOne, Groups, Positive, Seed
from training.logging.image_grid import image_grid, pil_to_tensor
from training.logging.progress import progress_counter
from training.run import make_folder

KS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {
        "data": ("data", "held_out"),
        "model": ("model", "judge"),
        "sampling": ("samples", "steps", "guidance_scale", "sampler", "seed"),
        "output": ("out",),
        "machine": ("device",),
    }

    model: Path  # run folder of train_ldm.py, a pipeline folder, or a single file
    data: Path  # the data folder it was trained on
    judge: Path  # run folder of a CLIP with another seed and architecture than the one inside
    samples: Positive[int] = 256  # captions drawn at random, one picture of each
    steps: int = 25  # network evaluations per picture
    guidance_scale: Finite = 4.0  # as in sample.py
    sampler: str = "dpmpp_2m"  # as in sample.py
    held_out: FractionBelowOne = 0.02  # share that the trainings kept apart
    out: Path | None = None  # also write the samples side by side, and the figures, here
    seed: Seed = 0  # of the captions and the pictures
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    sampling = Sampling(
        sampler=config.sampler,
        steps=config.steps,
        guidance=Guidance(scale=config.guidance_scale),
    )
    device = pick_device(config.device)
    pipeline = TextToImage.load(config.model, device)
    judge = Clip.load(config.judge, device)
    train, held_out = split(read_folder(config.data).pairs, config.held_out)
    if config.out is not None:
        make_folder(config.out)
    if not held_out:
        print("nothing is held out, so reconstructions are those of images trained on.")
    pixels = recorded_format(read_model_provenance(config.model))
    figures = reconstruction(pipeline, held_out or train[: config.samples], pixels)
    figures |= alignment(config, sampling, pipeline, judge, train)
    print(json.dumps(figures, indent=2))
    if config.out is not None:
        write_json(config.out / "evaluation.json", figures)


@torch.no_grad()
def reconstruction(
    pipeline: TextToImage, held_out: Sequence[Pair], file_format: PixelFormat
) -> dict[str, float]:
    """PSNR of encode -> most likely latent -> decode, mean over images; 8-bit ones are rounded."""
    vae: Autoencoder = pipeline.autoencoder
    pixels = load(held_out, pipeline.size, vae.config.in_channels, file_format)
    values = [
        psnr(
            block,
            to_pixels_like(
                vae.decode(vae.encode(normalize_pixels(block).to(pipeline.device)).mode()), block
            ).cpu(),
        )
        for block in pixels.split(64)
    ]
    return {"reconstruction_psnr": torch.cat(values).mean().item()}


def alignment(
    config: Config, sampling: Sampling, pipeline: TextToImage, judge: Clip, train: Sequence[Pair]
) -> dict[str, float]:
    """Recall among the drawn captions, of the samples and, as the ceiling, of the real images."""
    order = torch.randperm(len(train), generator=generator(config.seed, "captions"))
    pairs = [train[k] for k in order[: config.samples].tolist()]
    captions = [pair.captions[0] for pair in pairs]
    with progress_counter(
        "sampling", len(pairs) * sampling.network_calls(), "image steps"
    ) as count:
        pictures = pipeline(
            captions,
            sampling=sampling,
            seed=config.seed,
            progress=count,
        )
    samples = pil_to_tensor(pictures)
    if config.out is not None:
        image_grid(samples, columns=int(len(samples) ** 0.5)).save(config.out / "samples.png")
    real = load(pairs, judge.size, channels=3)
    return {
        "samples": len(pairs),
        **recalls("recall", judge, samples, captions),
        **recalls("recall_of_real_images", judge, real, captions),
    }


def recalls(name: str, judge: Clip, images: Tensor, captions: list[str]) -> dict[str, float]:
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    similarity = judge.encode_images(images) @ judge.encode_texts(captions).T
    return {f"{name}@{k}": value for k, value in recall_at(similarity, captions, KS).items()}


def load(
    pairs: Sequence[Pair], size: int, channels: int, file_format: PixelFormat = EIGHT_BIT
) -> Tensor:
    transform = ImageTransform(size, channels, format=file_format)
    return read_pixels([pair.path for pair in pairs], transform)


if __name__ == "__main__":
    run_main(main)
