"""Pictures that a model draws for captions of a data folder: drawn once, and kept."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conditioning.clip import Clip
from evaluation.estimates import Estimate, mean_estimate, share_estimate
from evaluation.retrieval import wrong_candidates_ahead
from ldm import TextToImage
from ldm.pipeline.sampling import Sampling
from stages.evaluation.blocks import Blocks, Rows, identity_hash
from stages.evaluation.data import ChosenImages, to_rgb
from training.logging.image_grid import pil_to_tensor

BLOCK = 16  # pictures that are drawn before they are kept
KS = (1, 5, 10)  # of recall@k


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Args:
        count: captions chosen at random; one picture is drawn for each.
        batch_size: images that a network of features sees at once.
    """

    sampling: Sampling
    count: int
    batch_size: int


class Samples:
    """One picture for the first caption of each image; picture k is drawn from seed + k.

    Args:
        images: real images with captions.
        folder: of blocks.
        identity: as JSON, all that the pictures depend on besides captions and seed.
    """

    def __init__(self, images: ChosenImages, seed: int, folder: Path, identity: dict[str, Any]):
        self.images, self.seed = images, seed
        self.captions = [pair.captions[0] for pair in images.pairs]
        digest = hashlib.sha256("\n".join(self.captions).encode("utf-8", "surrogatepass"))
        self.sha256 = digest.hexdigest()  # of the captions, in order
        whole = {**identity, "captions": self.sha256, "seed": seed, "of": "samples"}
        self.blocks = Blocks(folder / identity_hash(whole), len(self), BLOCK)

    def __len__(self) -> int:
        return len(self.captions)

    def draw(self, pipeline: TextToImage, sampling: Sampling, title: str) -> None:
        """Draw what is not drawn yet."""

        def draw_block(numbers: range, _: Tensor) -> Rows:
            pictures = pipeline(
                [self.captions[k] for k in numbers],
                sampling=sampling,
                seed=[self.seed + k for k in numbers],
                progress=False,
            )
            return {"pictures": pil_to_tensor(pictures)}

        self.blocks.fill(lambda numbers: torch.tensor(list(numbers)), draw_block, title)

    def picture(self, number: int) -> Tensor:
        """Return the picture of a caption, (1, c, h, w)."""
        return self.pictures(range(number, number + 1))

    def pictures(self, numbers: range) -> Tensor:
        """Return some pictures, (n, c, h, w); numbers: one or more."""
        first, last = numbers.start // BLOCK, numbers[-1] // BLOCK
        rows = torch.cat(
            [self.blocks.block_rows("pictures", block) for block in range(first, last + 1)]
        )
        return rows[numbers.start - first * BLOCK : numbers.stop - first * BLOCK]

    def embed(self, numbers: range, judge: Clip | None) -> Rows:
        """Return the judge's embeddings of some samples and of their captions, if there is one."""
        if judge is None:
            return {}
        texts = [self.captions[k] for k in numbers]
        return {
            "judge/samples": judge.encode_images(to_rgb(self.pictures(numbers))).cpu(),
            "judge/texts": judge.encode_texts(texts).cpu(),
        }


@dataclass(frozen=True)
class MeasuredSamples:
    """Samples, and the judge's embeddings of them, of their captions and of their real images."""

    samples: Samples
    numbers: Blocks

    def alignment(self, name: str, others: "MeasuredSamples") -> dict[str, Estimate]:
        """Return CLIP score and recall, with as many candidates as the others have.

        Captions of the others fill them up.

        name: of the embeddings: "samples" or "real".
        """
        count = len(self.samples)
        candidates = max(count, len(others.samples))
        images, texts = (
            torch.cat([self.numbers.rows(key), others.numbers.rows(key)])[:candidates]
            for key in (f"judge/{name}", "judge/texts")
        )
        captions = [*self.samples.captions, *others.samples.captions][:candidates]
        return alignment(images, texts, captions, count)


def alignment(
    images: Tensor, texts: Tensor, captions: list[str], count: int | None = None
) -> dict[str, Estimate]:
    """Return CLIP score and recall of images by the embeddings of a judge.

    Args:
        images, texts: unit vectors of the images and of their captions.
        count: measure the first so many images; the captions of all are candidates.
    """
    ahead = wrong_candidates_ahead(images @ texts.T, captions)[:count]
    scores = 100 * (images * texts).sum(dim=1)[:count]
    return {
        "clip_score": mean_estimate(scores, "higher"),
        **{f"recall@{k}": share_estimate(ahead < k) for k in KS},
    }
