"""python evaluate.py --model runs/ldm --data data/openmoji --judge runs/judge

Measure how good a model is. PSNR: how well its autoencoder reconstructs the held-out images, or
all images of the split that --split names.
Recall: how often a CLIP that had no part in the training finds the right prompt for a generated
picture, among all prompts used. The recall for real images is the ceiling of that number.
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
from dataset.captions.choice import choose_captions
from dataset.captions.variants import CaptionChoice
from dataset.folder import read_folder
from dataset.images.pixel_format import EIGHT_BIT, PixelFormat, recorded_format
from dataset.images.transform import ImageTransform, normalize_pixels, to_pixels_like
from dataset.loader import read_pixels
from dataset.options import ReadOptions
from dataset.table import Pair, PairList, split
from evaluation.reconstruction import psnr
from evaluation.retrieval import recall_at
from foundation.files import write_json
from foundation.hashing import generator
from interop.model_card import as_mapping
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.io import read_model_provenance
from ldm.pipeline.sampling import Sampling
from stages.data import recorded_choice
from training.cli import parse, pick_device, run_main
from training.flags import Finite, FractionBelowOne, Groups, Positive, Seed
from training.logging.image_grid import pil_to_tensor, save_grid
from training.logging.progress import progress_counter
from training.run import make_folder

KS = (1, 5, 10)  # of recall@k
BATCH = 64  # images that the autoencoder sees at once


@dataclass(frozen=True, kw_only=True)
class Config(ReadOptions):
    """Flags of evaluate.py."""

    GROUPS: ClassVar[Groups] = {
        "data": ("data", *ReadOptions.READ_FLAGS, "held_out"),
        "model": ("model", "judge"),
        "sampling": ("samples", "steps", "guidance_scale", "sampler", "seed"),
        "output": ("out",),
        "machine": ("device",),
    }

    model: Path  # run of train_ldm.py, pipeline folder, or single file
    data: Path  # the data folder that it was trained on
    judge: Path  # run of train_clip.py with another seed and architecture than the model's CLIP
    samples: Positive[int] = 256  # captions chosen at random; one picture is generated for each
    steps: int = 25  # sampler steps per picture
    guidance_scale: Finite = 4.0  # as in sample.py
    sampler: str = "dpmpp_2m"  # as in sample.py
    held_out: FractionBelowOne = 0.02  # fraction that the trainings held out; not used with --split
    out: Path | None = None  # folder for the figures and a grid of the pictures
    seed: Seed = 0  # of the choice of captions and of the pictures
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


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
    provenance = read_model_provenance(config.model)
    choice = recorded_choice(as_mapping(provenance.get("config")))
    train, held_out = chosen_pairs(config, choice)
    if config.out is not None:
        make_folder(config.out)
    if not held_out:
        print("nothing is held out, so the reconstructed images are training images.")
    pixels = recorded_format(provenance)
    figures = reconstruction(pipeline, held_out or train[: config.samples], pixels)
    figures |= alignment(config, sampling, pipeline, judge, train)
    print(json.dumps(figures, indent=2))
    if config.out is not None:
        write_json(config.out / "evaluation.json", figures)


def chosen_pairs(config: Config, choice: CaptionChoice) -> tuple[PairList, PairList]:
    """Return the pairs for prompts, and those to reconstruct: a split that is named is both.

    choice: which captions of a pair the model was trained on.
    """
    pairs = choose_captions(read_folder(config.data, options=config).pairs, choice)
    if config.split is not None:
        print(f"evaluated is the whole split {config.split!r}: {len(pairs)} images.")
        return pairs, pairs
    return split(pairs, config.held_out)


@torch.no_grad()
def reconstruction(
    pipeline: TextToImage, images: Sequence[Pair], file_format: PixelFormat
) -> dict[str, float]:
    """Return the mean PSNR of images encoded to their most likely latents and decoded again."""
    vae: Autoencoder = pipeline.autoencoder
    values = []
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        pixels = load(some, pipeline.size, vae.config.in_channels, file_format)
        posterior = vae.encode(normalize_pixels(pixels).to(pipeline.device))
        reconstructed = to_pixels_like(vae.decode(posterior.mode()), pixels)
        values.append(psnr(pixels, reconstructed.cpu()))
    return {"reconstruction_psnr": torch.cat(values).mean().item()}


def alignment(
    config: Config, sampling: Sampling, pipeline: TextToImage, judge: Clip, train: Sequence[Pair]
) -> dict[str, float]:
    """Return the recall of captions for generated pictures and for the real images."""
    order = torch.randperm(len(train), generator=generator(config.seed, "captions"))
    pairs = [train[k] for k in order[: config.samples].tolist()]
    captions = [pair.captions[0] for pair in pairs]
    total = len(pairs) * sampling.network_calls()
    with progress_counter("sampling", total, "image steps") as count:
        pictures = pipeline(captions, sampling=sampling, seed=config.seed, progress=count)
    samples = pil_to_tensor(pictures)
    if config.out is not None:
        save_grid(samples, int(len(samples) ** 0.5), config.out / "samples.png")
    real = load(pairs, judge.size, channels=3)
    return {
        "samples": len(pairs),
        **recall("recall", judge, samples, captions),
        **recall("recall_of_real_images", judge, real, captions),
    }


def recall(name: str, judge: Clip, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Return recall@k of finding captions by images, under `name`."""
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    similarity = judge.encode_images(images) @ judge.encode_texts(captions).T
    return {f"{name}@{k}": value for k, value in recall_at(similarity, captions, KS).items()}


def load(
    pairs: Sequence[Pair], size: int, channels: int, file_format: PixelFormat = EIGHT_BIT
) -> Tensor:
    transform = ImageTransform(size, channels, format=file_format)
    return read_pixels([pair.path for pair in pairs], transform)


if __name__ == "__main__":
    run_main(main, Config)
