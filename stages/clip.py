"""Stage 0: train a CLIP, whose text encoder conditions stage 2, or which scores samples."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from conditioning.clip import PRESETS as ARCHITECTURES
from conditioning.clip import Clip
from conditioning.clip_loss import (
    ContrastiveLoss,
    clamp_logit_scale,
    parameter_groups,
    shift_images,
)
from dataset.images.transform import ImageTransform
from dataset.loader import ImageBatches, read_pixels
from dataset.table import Pair
from evaluation.retrieval import recall_at
from foundation import collectives
from foundation.hashing import generator
from foundation.seeds import derived_seed
from stages.flags.clip import ClipTrainingConfig
from training import distributed
from training.acceleration.captured import CapturedStep, Rate, is_recordable
from training.acceleration.compiled import compile_and_time, compile_in_place, eager_mode
from training.acceleration.prefetch import PrefetchedBatches
from training.checkpoint import Stateful
from training.optimizer import OptimizerStep, restore_buffers
from training.precision import Precision
from training.watchdog import report_progress

KS = (1, 5, 10)  # of recall@k
LARGEST_RETRIEVAL = 4096  # pairs of a retrieval test, in which each is compared with all others


def build_clip(config: ClipTrainingConfig) -> Clip:
    """Return a CLIP of the preset with new weights."""
    architecture: dict[str, Any] = deepcopy(ARCHITECTURES[config.preset])
    if config.size is not None:
        architecture["vision_cfg"]["image_size"] = config.size
    if config.context_length is not None:
        architecture["text_cfg"]["context_length"] = config.context_length
    torch.manual_seed(derived_seed(config.seed, "weights"))
    return Clip(architecture)


class ClipTrainer:
    """Network, optimizer and data of stage 0: one step, and its state."""

    def __init__(self, config: ClipTrainingConfig, clip: Clip, batches: ImageBatches):
        self.config, self.clip, self.batches = config, clip, batches
        self.device = clip.network.logit_scale.device
        self.precision = Precision(self.device, config.precision)
        is_captured = is_recordable(self.device, self.precision)
        self.loss = distributed.data_parallel(ContrastiveLoss(clip))
        optimizer = torch.optim.AdamW(
            parameter_groups(clip, config.weight_decay), betas=(0.9, 0.98), eps=1e-6, fused=True
        )
        self.optimizer_step = OptimizerStep(
            {"optimizer": optimizer}, scaler=self.precision.scaler(), is_captured=is_captured
        )
        self.state: dict[str, Stateful] = {"clip": clip, "update": self.optimizer_step}
        self.stream: Iterator[tuple[Tensor, list[str]]] | None = None
        self.prefetched = PrefetchedBatches(self.read, self.device)
        self.update = self.train_on
        if is_captured:
            clear = self.optimizer_step.clear_gradients
            self.update = CapturedStep(self.train_on, clear, always=config.compile)
        if config.compile:
            compile_and_time(self.compile_towers, self.make_gradients(), self.device)

    def compile_towers(self) -> None:
        images, texts = self.clip.towers
        compile_in_place(images)
        compile_in_place(texts, lengths_vary=True)

    def make_gradients(self) -> Callable[[], None]:
        """Return a function that computes the gradients of a step and throws them away."""
        batch = self.with_ids(*next(self.batches.stream(0)))
        images, ids = (tensor.to(self.device) for tensor in batch)
        buffers = [buffer.clone() for buffer in self.clip.buffers()]

        def gradients() -> None:
            self.backward(images, ids)
            self.clip.zero_grad()
            restore_buffers(self.clip.buffers(), buffers, torch.zeros(()))

        return gradients

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Read the images of a step and the ids of their captions. Steps follow each other."""
        self.stream = self.stream or self.batches.stream(step)
        return self.with_ids(*next(self.stream))

    def with_ids(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        return images, self.clip.cut_padding(self.clip.tokenizer(captions))

    def backward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Add the gradient of the batch's loss to the weights; return that loss."""
        self.clip.train()
        with self.precision:
            loss = self.loss(images, ids)
        (loss * self.optimizer_step.scale).backward()
        return loss.detach()

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one optimizer step; return its metrics."""
        report_progress("reading images")
        images, ids = self.prefetched(step)
        if largest := self.config.shift:
            random = generator(self.config.seed, "shift", step)
            shape = self.config.batch_size, 2
            offsets = torch.randint(-largest, largest + 1, shape, generator=random)
            own = collectives.rank_share(0, self.config.batch_size)
            images = shift_images(images, offsets[torch.tensor(own)], largest)
        report_progress("computing gradients")
        return self.update(self.config.rate(step), images, ids)

    def train_on(self, learning_rate: Rate, images: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Compute gradients and move the weights; return metrics.

        The host reads no value here, and so does not wait for a GPU.
        """
        buffers = [buffer.clone() for buffer in self.clip.buffers()]
        loss = self.backward(images, ids)
        report_progress("updating weights")
        metrics = collectives.mean_metrics({"loss": loss})
        metrics |= self.optimizer_step(metrics, {"optimizer": learning_rate})
        restore_buffers(self.clip.buffers(), buffers, metrics["step_applied"])
        clamp_logit_scale(self.clip)
        return metrics | {"logit_scale": self.clip.logit_scale.detach()}


def measure_recall(
    config: ClipTrainingConfig, clip: Clip, pairs: Sequence[Pair], name: str
) -> dict[str, float]:
    """Return recall@k of finding texts by images among these pairs.

    The ranks share the encoding. Of more than LARGEST_RETRIEVAL pairs a random choice is taken.

    name: prefix of the metrics, "train" or "held_out".
    """
    if not pairs:
        return {}
    chosen = torch.randperm(len(pairs), generator=generator(config.seed, "retrieval"))
    pairs = [pairs[k] for k in chosen[:LARGEST_RETRIEVAL].tolist()]
    captions = [pair.captions[0] for pair in pairs]
    own = collectives.rank_rows(len(pairs)).tolist()
    pixels = read_pixels([pairs[k].path for k in own], ImageTransform(clip.size))
    size = -(-config.batch_size // collectives.world_size())
    clip.eval()
    with eager_mode():
        images = torch.cat([clip.encode_images(batch) for batch in pixels.split(size)])
        texts = torch.cat(
            [
                clip.encode_texts([captions[k] for k in own[first : first + size]])
                for first in range(0, len(own), size)
            ]
        )
    images, texts = (collectives.gather_rows(rows, len(pairs)) for rows in (images, texts))
    recall = recall_at(images @ texts.T, captions, KS)
    return {f"{name}_recall@{k}": value for k, value in recall.items()}
