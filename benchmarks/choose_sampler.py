"""python benchmarks/choose_sampler.py --model runs/ldm --data data/openmoji --judge runs/judge

Quality of the images of a trained model by sampler and by number of network calls. All figures come
from a CLIP that was not used in the training: recall, the share of images for which it finds the
prompt among --candidates captions; similarity, the mean cosine of image and prompt; distance,
between generated and training images. Prints lines of a Markdown table as they are ready; with
a model of `small-64` it takes about half an hour on one core.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from training.cli import answer_early, parse, run_main
from training.flags import Finite, Positive, Seed


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path  # run folder of train_ldm.py or pipeline folder
    data: Path  # data folder of its training
    # run folder of a CLIP, of another seed and architecture than the model's text encoder
    judge: Path
    calls: tuple[int, ...] = (5, 10, 20)  # largest numbers of network calls per image
    samplers: tuple[str, ...] = ()  # names of the samplers; left out: all
    samples: Positive[int] = 64  # random captions, with one image each
    candidates: Positive[int] = 256  # captions that the judge chooses from
    guidance_scale: Finite = 4.0  # as in sample.py
    spacing: str = "trailing"  # as in sample.py
    bf16: bool = False  # use bf16 for the U-Net
    seed: Seed = 0  # seed of the captions and of the images


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.sampler_accuracy import steps_for_calls
from conditioning.clip import Clip
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from dataset.table import split
from foundation.hashing import generator
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from training.logging.image_grid import pil_to_tensor

# With their orders. euler computes the same as ddim, and euler_a the same as ddpm.
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


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    pipeline, judge = TextToImage.load(config.model), Clip.load(config.judge)
    pipeline.to("cpu", torch.bfloat16 if config.bf16 else torch.float32)
    train, _ = split(read_folder(config.data), 0.02)
    order = torch.randperm(len(train), generator=generator(config.seed, "captions"))
    pairs = [train[k] for k in order[: max(config.candidates, config.samples)].tolist()]
    captions = [pair.captions[0] for pair in pairs]
    texts = judge.encode_texts(captions)
    transform = ImageTransform(pipeline.size, 3)  # as small as the samples are
    files = [pair.path for pair in pairs[: config.samples]]
    real = judge.encode_images(read_pixels(files, transform))
    print("| sampler | calls | recall@1 | recall@5 | similarity | distance |\n" + "|---" * 6 + "|")
    print(table_line("(real images)", 0, real, texts, captions, real), flush=True)
    for calls in config.calls:
        for sampler, solver_order in SAMPLERS:
            if config.samplers and sampler not in config.samplers:
                continue
            sampling = Sampling(
                sampler=sampler,
                steps=steps_for_calls(sampler, calls),
                spacing=config.spacing,
                order=solver_order,
                guidance=Guidance(scale=config.guidance_scale),
            )
            pictures = pipeline(captions[: config.samples], sampling=sampling, seed=config.seed)
            images = judge.encode_images(pil_to_tensor(pictures).expand(-1, 3, -1, -1))
            name = (
                f"`{sampler}`" if solver_order is None else f"`{sampler}` of order {solver_order}"
            )
            network_calls = sampling.network_calls()
            print(table_line(name, network_calls, images, texts, captions, real), flush=True)


def table_line(
    name: str,
    calls: int,
    images: Float[Tensor, "images width"],
    texts: Float[Tensor, "texts width"],
    captions: list[str],
    real: Float[Tensor, "images width"],
) -> str:
    """Compute the figures of one sampler, and format them as a line of the table.

    Args:
        images: embeddings of the generated images; image k has caption k.
        texts: embeddings of the captions.
        real: embeddings of the training images with the same captions.
    """
    similarity = images @ texts.T
    own = similarity.diagonal()
    same_text = torch.tensor([[x == y for y in captions] for x in captions[: len(images)]])
    better_texts = ((similarity >= own[:, None]) & ~same_text).sum(dim=1)
    recalls = [(better_texts < k).double().mean().item() for k in (1, 5)]
    figures = " | ".join(f"{x:.3f}" for x in (*recalls, own.mean().item()))
    return f"| {name} | {calls} | {figures} | {distance(images, real):.2f} |"


def distance(images: Float[Tensor, "images width"], real: Float[Tensor, "images width"]) -> float:
    """Compute 1000 times the squared maximum mean discrepancy of two sets of unit vectors.

    The kernel is a Gaussian of width 0.5. Jayasumana et al. 2024 (arXiv:2401.09603) use it on
    longer vectors. The i-th vectors of both sets belong to the same caption and are not compared,
    so that the distance of real images to themselves is 0.
    """

    def mean(x: Tensor, y: Tensor) -> Tensor:
        kernel = (-torch.cdist(x, y).square() / (2 * 0.5**2)).exp()
        return kernel.fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))

    return 1000 * (mean(images, images) + mean(real, real) - 2 * mean(images, real)).item()


if __name__ == "__main__":
    run_main(main, Config)
