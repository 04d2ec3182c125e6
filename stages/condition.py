"""What the U-Net of stage 2 is conditioned on: the text of captions, a class, or nothing.

The latent cache numbers the distinct captions; number 0 is the empty caption, which stands for
"no text" and "no class". A text condition has their contexts in the cache. A class condition needs
no more than the numbers, and a training without condition not even these.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from conditioning import TextEncoder
from conditioning.prompt_weighting import encode_chunks
from dataset.captions.choice import caption_draws
from dataset.latent_cache.build import EncodeTexts
from dataset.latent_cache.cache import LatentCache
from dataset.source import as_lines
from dataset.table import PairList
from foundation.errors import UserError, listed
from ldm.denoiser import NOTHING, Conditioning
from ldm.unet import UNetConfig
from stages.flags.diffusion import ConditionName

SHOWN_CLASSES = 10


class Condition(ABC):
    """What the U-Net is conditioned on.

    Attributes:
        reads: its name.
        text_encoder: None unless it is a text.
        chunks: contexts of the text encoder that a caption fills.
        encode: turns captions into contexts, for the cache; None unless it is a text.
        classes: names, in the order of their labels; none unless it is a class.
        tensors_read: how many tensors `read` returns.
    """

    reads: ConditionName
    text_encoder: TextEncoder | None = None
    chunks: int = 1
    encode: EncodeTexts | None = None
    classes: tuple[str, ...] = ()
    tensors_read: int = 0

    @abstractmethod
    def architecture(self, unet: UNetConfig) -> UNetConfig:
        """Return the architecture of a new U-Net: that of a preset, changed for this condition."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what identifies the condition, so that a run resumes with the same."""

    def read(self, cache: LatentCache, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what a step reads in addition to the latents.

        rows: numbers of the captions in the cache.
        """
        return ()

    def conditioning(self, *given: Tensor) -> Conditioning:
        """Return what the network reads. given: as from `read`, perhaps moved or cut."""
        return NOTHING

    def example(self, count: int) -> tuple[Tensor, ...]:
        """Return empty tensors of the shapes that `read` returns."""
        return ()


class TextCondition(Condition):
    """Captions, through a text encoder. chunks: contexts that a caption fills."""

    reads: ConditionName = "text"
    tensors_read = 1

    def __init__(self, text_encoder: TextEncoder, chunks: int = 1):
        self.text_encoder, self.chunks = text_encoder, chunks
        self.encode = partial(encode_chunks, text_encoder, chunks=chunks)

    def architecture(self, unet: UNetConfig) -> UNetConfig:
        assert self.text_encoder is not None
        return replace(unet, cross_attention_dim=self.text_encoder.width)

    def describe(self) -> dict[str, Any]:
        assert self.text_encoder is not None
        return {"text_encoder_sha256": self.text_encoder.sha256}

    def read(self, cache: LatentCache, rows: Tensor) -> tuple[Tensor, ...]:
        return (cache.contexts(rows),)

    def conditioning(self, *given: Tensor) -> Conditioning:
        (context,) = given
        return Conditioning(text=context)

    def example(self, count: int) -> tuple[Tensor, ...]:
        assert self.text_encoder is not None
        tokens = self.chunks * self.text_encoder.tokens
        return (torch.empty(count, tokens, self.text_encoder.width),)


class ClassCondition(Condition):
    """One class for each image.

    The label after those of the classes stands for "no class" (Ho & Salimans 2022,
    arXiv:2207.12598), which guidance moves away from.

    Args:
        classes: names, in the order of their labels.
        labels: of the captions in the cache, by their number.
    """

    reads: ConditionName = "class"
    tensors_read = 1

    def __init__(self, classes: tuple[str, ...], labels: Int[Tensor, " captions"]):
        self.classes, self.labels = classes, labels

    def architecture(self, unet: UNetConfig) -> UNetConfig:
        return replace(unet.without_text(), num_class_embeds=len(self.classes) + 1)

    def describe(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def read(self, cache: LatentCache, rows: Tensor) -> tuple[Tensor, ...]:
        return (self.labels.index_select(0, rows),)

    def conditioning(self, *given: Tensor) -> Conditioning:
        (labels,) = given
        return Conditioning(labels=labels)

    def example(self, count: int) -> tuple[Tensor, ...]:
        return (torch.empty(count, dtype=torch.long),)


class NoCondition(Condition):
    """Images alone."""

    reads: ConditionName = "none"

    def architecture(self, unet: UNetConfig) -> UNetConfig:
        return unet.without_text()

    def describe(self) -> dict[str, Any]:
        return {}


def class_condition(pairs: PairList, held_out: PairList) -> ClassCondition:
    """Return the classes of images whose captions are the names of classes, in alphabetical order.

    Raises:
        UserError: images without a class or with several; a single class; captions that are no
            classes; a class without an image to train on.
    """
    ways = (
        "Classes are the names of the folders that the images lie in, or a field of the metadata "
        "or of a table (--caption-column)."
    )
    both = pairs + held_out
    draws = caption_draws(both)
    several = both.where(np.diff(draws.starts) != 1)
    if several:
        raise UserError(
            f"--condition class: {len(several)} images have several captions, and can have only "
            f"one class:\n{as_lines(several.paths)}\n{ways}"
        )
    names = list(draws.texts)
    trained = set(names[: len(pairs)])
    if missing := [both[k].path for k, name in enumerate(names) if not name]:
        raise UserError(
            f"--condition class: {len(missing)} images have no class:\n{as_lines(missing)}\n{ways}"
        )
    if len(trained) == 1:
        raise UserError(
            f"--condition class: all images are of one class, {names[0]!r}, so there is nothing to "
            f"choose. Train without: --condition none. {ways}"
        )
    if 2 * len(trained) > len(pairs):
        raise UserError(
            f"--condition class: {len(pairs)} images have {len(trained)} different captions, such "
            f"as {listed(sorted(trained), 3)}. These are no classes. Learn from the texts with "
            f"--condition text, or name the classes. {ways}"
        )
    if unseen := sorted(set(names) - trained):
        raise UserError(
            f"--condition class: all images of {listed(unseen, SHOWN_CLASSES)} are held out, so "
            "they cannot be learned. Add images of these, or hold out less: --held-out."
        )
    classes = tuple(sorted(trained))
    label = {name: k for k, name in enumerate(classes)} | {"": len(classes)}
    numbered = ["", *dict.fromkeys(names)]  # as the cache numbers them
    return ClassCondition(classes, torch.tensor([label[name] for name in numbered]))


def check_prompts(condition: Condition, prompts: Sequence[str]) -> None:
    """Refuse prompts of previews that the model could not draw."""
    if condition.reads == "none" and prompts:
        raise UserError(
            "--preview-prompts: with --condition none the model reads no prompt; leave it out."
        )
    unknown = [prompt for prompt in prompts if prompt not in condition.classes]
    if condition.reads == "class" and unknown:
        raise UserError(
            f"--preview-prompts: {unknown[0]!r} is no class of these images. There are: "
            f"{listed(condition.classes, SHOWN_CLASSES)}."
        )
