"""python benchmarks/choosing.py --model checkpoints/demo --data data/openmoji --judge runs/judge

Which sampler draws best with a trained model, by calls of the network? A CLIP that had no part in
the training judges: recall, how often it finds the prompt of a picture among --candidates captions;
similarity, the mean cosine of picture and prompt; distance, between the pictures and the images
trained on, all in its space. Prints Markdown lines as they come. With `checkpoints/demo`, about
half an hour on one core.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import torch
from jaxtyping import Float
from torch import Tensor

from conditioning.clip import Clip
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from dataset.table import split
from foundation.hashing import generator
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from ldm.samplers import CALLS_PER_STEP
from training.cli import parse, run_main
from training.flags import Finite, Positive, Seed
from training.logging.image_grid import pil_to_tensor

# One that is not listed computes what one listed does: euler as ddim, euler_a as ddpm.
SAMPLERS = (
    ("dpmpp_2m", None),
    ("ddim", None),
    ("unipc", 2),
    ("unipc", 3),
    ("plms", None),
    ("heun", None),
    ("dpmpp_2s", None),
    ("dpmpp_2m_sde", None),
    ("dpmpp_3m_sde", None),
    ("ddpm", None),
    ("lcm", None),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path  # run folder of train_ldm.py or a pipeline folder
    data: Path  # the data folder it was trained on
    judge: Path  # run folder of a CLIP with another seed and architecture than the one inside
    calls: tuple[int, ...] = (5, 10, 20)  # of the network, at most, per picture
    samplers: tuple[str, ...] = ()  # only these; all when left out
    samples: Positive[int] = 64  # captions drawn at random, one picture of each
    candidates: Positive[int] = 256  # captions that the judge chooses from, these included
    guidance_scale: Finite = 4.0  # as in sample.py
    spacing: str = "trailing"  # as in sample.py
    bf16: bool = False  # the U-Net
    seed: Seed = 0  # of the captions and the pictures


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    pipeline, judge = TextToImage.load(config.model), Clip.load(config.judge)
    pipeline.to("cpu", torch.bfloat16 if config.bf16 else torch.float32)
    train, _ = split(read_folder(config.data).pairs, 0.02)
    order = torch.randperm(len(train), generator=generator(config.seed, "captions"))
    pairs = [train[k] for k in order[: max(config.candidates, config.samples)].tolist()]
    captions = [pair.captions[0] for pair in pairs]
    texts = judge.encode_texts(captions)
    transform = ImageTransform(judge.size, 3)
    count = config.samples
    real = judge.encode_images(read_pixels([pair.path for pair in pairs[:count]], transform))
    print("| sampler | calls | recall@1 | recall@5 | similarity | distance |\n" + "|---" * 6 + "|")
    print(line("(real images)", 0, real, texts, captions, real), flush=True)
    for calls in config.calls:
        for sampler, order_ in SAMPLERS:
            if config.samplers and sampler not in config.samplers:
                continue
            steps = (calls - 1) // CALLS_PER_STEP.get(sampler, 1) + 1 - (sampler == "plms")
            sampling = Sampling(
                sampler=sampler,
                steps=steps,
                spacing=config.spacing,
                order=order_,
                guidance=Guidance(scale=config.guidance_scale),
            )
            pictures = pipeline(captions[:count], sampling=sampling, seed=config.seed)
            images = judge.encode_images(pil_to_tensor(pictures).expand(-1, 3, -1, -1))
            name = f"`{sampler}`" + f" of order {order_}" * (order_ is not None)
            print(line(name, sampling.network_calls(), images, texts, captions, real), flush=True)


def line(
    name: str,
    calls: int,
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "m d"],
    captions: list[str],
    real: Float[Tensor, "n d"],
) -> str:
    similarity = images @ texts.T
    own = similarity.diagonal()
    same = torch.tensor([[x == y for y in captions] for x in captions[: len(images)]])
    before = ((similarity >= own[:, None]) & ~same).sum(dim=1)  # texts that the judge prefers
    recalls = [(before < k).double().mean().item() for k in (1, 5)]
    figures = " | ".join(f"{x:.3f}" for x in (*recalls, own.mean().item()))
    return f"| {name} | {calls} | {figures} | {distance(images, real):.2f} |"


def distance(images: Float[Tensor, "n d"], real: Float[Tensor, "n d"]) -> float:
    """Squared maximum mean discrepancy, times 1000, of a Gaussian kernel of width 0.5 on unit
    vectors: Jayasumana et al. 2024 (arXiv:2401.09603), there on longer vectors. The i-th of both
    belong to the same caption and are not compared, so that real images have 0."""

    def mean(x: Tensor, y: Tensor) -> Tensor:
        kernel = (-torch.cdist(x, y).square() / (2 * 0.5**2)).exp()
        return kernel.fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))

    return 1000 * (mean(images, images) + mean(real, real) - 2 * mean(images, real)).item()


if __name__ == "__main__":
    run_main(main)
