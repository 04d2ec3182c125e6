"""The images of stage 2 with what the U-Net is conditioned on, and the prompts of its previews."""

from collections.abc import Sequence

from conditioning import TextEncoder
from dataset.captions.choice import without_captions
from dataset.table import PairList
from stages.condition import (
    Condition,
    NoCondition,
    TextCondition,
    check_prompts,
    class_condition,
)
from stages.data import read_pairs
from stages.diffusion import PREVIEWS
from stages.flags.diffusion import DiffusionTrainingConfig


def read_conditioned_pairs(config: DiffusionTrainingConfig) -> tuple[PairList, PairList]:
    """Read the data folder; return the pairs to train on and the held-out ones.

    Without condition, the captions are left out.
    """
    if config.condition != "none":
        return read_pairs(config, config.allow_missing_captions)
    pairs, held_out = read_pairs(config, allow_missing_captions=True)
    print("note: captions are not read (--condition none).")
    both = without_captions(pairs + held_out)
    return both[: len(pairs)], both[len(pairs) :]


def make_condition(
    config: DiffusionTrainingConfig,
    text_encoder: TextEncoder | None,
    pairs: PairList,
    held_out: PairList,
) -> Condition:
    """Return what the U-Net is conditioned on; text_encoder: None if it reads no text."""
    if config.condition == "class":
        return class_condition(pairs, held_out)
    if text_encoder is None:
        return NoCondition()
    assert config.text_chunks is not None, "the script has set them"
    return TextCondition(text_encoder, config.text_chunks)


def preview_prompts(
    config: DiffusionTrainingConfig, condition: Condition, examples: PairList
) -> Sequence[str]:
    """Return the prompts of the previews: those of the flag, or of examples, or classes.

    Raises:
        UserError: the model could not draw those of the flag.
    """
    check_prompts(condition, config.preview_prompts)
    if config.preview_prompts:
        return config.preview_prompts
    if condition.reads == "text" or (condition.reads == "class" and config.task != "draw"):
        return [pair.captions[0] for pair in examples[:PREVIEWS]]
    names = condition.classes or ("",)
    return [names[k * len(names) // PREVIEWS] for k in range(PREVIEWS)]
