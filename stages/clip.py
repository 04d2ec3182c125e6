"""Stage 0: a CLIP of your own, whose text tower then conditions stage 2."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from conditioning.clip import PRESETS as ARCHITECTURES
from conditioning.clip import Clip
from conditioning.contrastive import (
    ContrastiveLoss,
    bound_logit_scale,
    degraded,
    parameter_groups,
)
from evaluation.retrieval import recall_at
from imagetext.batches import ImageBatches, read_pixels
from imagetext.images import ImageTransform
from imagetext.pairs import Pair
from training.bounds import Bound, NotNegative, Positive, Share
from training.learning_rate import set_learning_rate
from training.precision import Precision
from training.recipe import Recipe
from training.seeding import derived_seed, generator

KS = (1, 5, 10)
Several = Annotated[int, Bound(lambda x: x > 1, "2 or more, to have something to tell apart")]
LARGEST_RETRIEVAL = 4096  # pairs; every one is compared with every other


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    steps: Positive[int] = 4_000  # optimizer steps
    batch_size: Several = 256  # pairs per step, each of which is told apart from all the others
    warmup: NotNegative[int] = 50  # steps until the learning rate is reached
    cooldown: Share = 1.0  # share of the run, at its end, in which the rate falls to 0
    weight_decay: NotNegative[float] = 0.1  # of AdamW, for matrices only
    tokens: Positive[int] | None = None  # context length of the text tower, else the preset's
    degrade: bool = False  # half of the images softer and shifted; for a judge of samples
    look_every: Positive[int] = 1000  # steps between retrieval tests, besides that at the end


# Each preset is an architecture of the same name (conditioning/clip.py) and a recipe for it.
# Figures: recall@1 and @5 over the training pairs. More in docs/measurements.md.
PRESETS = {
    "tiny-32": {"steps": 200, "batch_size": 32, "save_every": 100},
    "demo": {"steps": 300, "learning_rate": 2e-3},  # OpenMoji: 0.89, 0.99
    "small-64": {"steps": 600, "learning_rate": 1.5e-3},
    # Among 256 training captions it finds that of the real image 98 times of 100, at 64, 48 and
    # 32 pixels; without `degrade` 99, 85 and 44 times. 390 CPU seconds.
    "judge-64": {"steps": 500, "learning_rate": 1.5e-3, "degrade": True},
}


def build_clip(config: Config) -> Clip:
    architecture = deepcopy(ARCHITECTURES[config.preset])
    if config.tokens is not None:
        architecture["text_cfg"]["context_length"] = config.tokens
    torch.manual_seed(derived_seed(config.seed, "weights"))
    return Clip(architecture)


class Stage:
    """All that one optimizer step touches."""

    def __init__(self, config: Config, clip: Clip, batches: ImageBatches):
        self.config, self.clip, self.batches = config, clip, batches
        self.device = clip.network.logit_scale.device
        self.precision = Precision(self.device, config.bf16)
        self.loss = ContrastiveLoss(clip)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(clip, config.weight_decay), betas=(0.9, 0.98), eps=1e-6, fused=True
        )
        self.parts = {"clip": clip, "optimizer": self.optimizer}
        self.stream: Iterator | None = None

    def step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        self.stream = self.stream or self.batches.stream(step)
        images, captions = next(self.stream)
        images = images.to(self.device, non_blocking=True)
        if config.degrade:
            images = degraded(images, generator(config.seed, "degrade", step))
        self.clip.train()
        with self.precision:
            loss = self.loss(images, self.clip.tokenizer(captions))
        self.optimizer.zero_grad()
        loss.backward()
        set_learning_rate(self.optimizer, config.rate(step))
        self.optimizer.step()
        bound_logit_scale(self.clip)
        return {"loss": loss, "logit_scale": self.clip.logit_scale}


def recalls(config: Config, clip: Clip, pairs: Sequence[Pair], name: str) -> dict[str, float]:
    """Retrieval among these pairs, or among a random choice of them if they are many."""
    if not pairs:
        return {}
    chosen = torch.randperm(len(pairs), generator=generator(config.seed, "retrieval"))
    pairs = [pairs[k] for k in chosen[:LARGEST_RETRIEVAL].tolist()]
    captions = [pair.captions[0] for pair in pairs]
    pixels = read_pixels([pair.path for pair in pairs], ImageTransform(clip.size))
    size = config.batch_size
    clip.eval()
    images = torch.cat([clip.encode_images(part) for part in pixels.split(size)])
    texts = torch.cat(
        [clip.encode_texts(captions[k : k + size]) for k in range(0, len(captions), size)]
    )
    found = recall_at(images @ texts.T, captions, KS)
    return {f"{name}_recall@{k}": value for k, value in found.items()}
