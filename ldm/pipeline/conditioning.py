"""From prompts to what a U-Net is conditioned on: a text, the name of a class, or nothing."""

from collections.abc import Sequence

import torch

from conditioning.prompt_syntax import SubPrompt, is_plain, parse_prompt, plain_prompt
from foundation.errors import UserError, did_you_mean, listed
from ldm.denoiser import Conditioning
from ldm.guidance import Guidance
from ldm.pipeline.batching import Request
from ldm.unet import UNet

NO_CLASS = -1  # label of the empty prompt for a model that has no such class; refused when used


def is_text_conditional(unet: UNet) -> bool:
    """Return whether the U-Net attends to a text."""
    return unet.config.conditional


def is_class_conditional(unet: UNet) -> bool:
    """Return whether the U-Net takes a class instead of a text.

    With a text, class labels are the noise levels of an upscaler.
    """
    return not is_text_conditional(unet) and isinstance(unet.class_embedding, torch.nn.Embedding)


def reads_prompt(unet: UNet) -> bool:
    """Return whether a prompt, a text or the name of a class, changes what is drawn."""
    return is_text_conditional(unet) or is_class_conditional(unet)


def compose_without_text(
    unet: UNet, classes: Sequence[str], prompt: str, prompt_weights: bool = False
) -> list[tuple[Conditioning, float]]:
    """Return what a prompt means to a U-Net that is not conditional on text, with shares.

    prompt_weights: whether AND joins several classes.
    """
    is_composed = prompt_weights and is_class_conditional(unet)
    parts = parse_classes(classes, prompt) if is_composed else plain_prompt(prompt)
    return [(condition_without_text(unet, classes, part.text), part.share) for part in parts]


def condition_without_text(unet: UNet, classes: Sequence[str], prompt: str) -> Conditioning:
    """Return what a prompt means to a U-Net that is not conditional on text: a class, or nothing.

    classes: names, in the order of their labels; without names, a prompt is a number. A U-Net with
        more classes than names was trained with the first of these as "no class" (Ho & Salimans
        2022, arXiv:2207.12598): the empty prompt, which guidance moves away from.

    Raises:
        UserError: the prompt is not the name of a class.
    """
    if not is_class_conditional(unet):
        if prompt:
            raise UserError(f"this model takes no prompt, but got {prompt!r}; leave it out.")
        return Conditioning()
    label = class_label(prompt, classes, unet.config.num_class_embeds or 0)
    return Conditioning(labels=torch.tensor([label]))


def parse_classes(classes: Sequence[str], prompt: str) -> tuple[SubPrompt, ...]:
    """Split a prompt such as "boot AND bag" into names of classes and their shares.

    The name of a class may contain the syntax of prompts; alone it is read as it is.

    Raises:
        UserError: a word has a weight, which a class cannot have.
    """
    if prompt in classes or is_plain(prompt):
        return plain_prompt(prompt)
    parts = parse_prompt(prompt)
    if any(weight != 1 for part in parts for _, weight in part.spans):
        raise UserError(
            f"{prompt!r} weights words by brackets, but this model draws classes, which have no "
            "words. Classes are blended by shares: 'one :0.7 AND another :0.3'. Brackets in the "
            r"name of a class are written \( and \)."
        )
    return tuple(SubPrompt(((part.text.strip(), 1.0),), part.share) for part in parts)


def class_label(prompt: str, classes: Sequence[str], count: int) -> int:
    """Return the label of a class from its name, or from its number if classes have no names.

    count: number of classes of the U-Net.
    """
    if not prompt:
        return len(classes) if 0 < len(classes) < count else NO_CLASS
    if prompt in classes:
        return classes.index(prompt)
    if not classes and prompt.isdecimal() and len(prompt) < 20 and int(prompt) < count:
        return int(prompt)
    if not classes:
        raise UserError(
            f"the prompt is {prompt!r}, but this model draws classes, and does not say their "
            f"names: give a number from 0 to {count - 1}."
        )
    hint = did_you_mean(prompt, classes)
    raise UserError(f"this model has no class {prompt!r}.{hint} There are: {listed(classes, 20)}.")


def effective_guidance(
    unet: UNet, requests: Sequence[Request], guidance: Guidance, has_weak_model: bool = False
) -> Guidance:
    """Return the guidance as it can be applied: plain where there is nothing to guide by.

    has_weak_model: whether a weaker model takes the place of the empty prompt.

    Raises:
        UserError: no class is given, or needed to move away from, and the U-Net has no "no class";
            or guidance has settings where it cannot apply.
    """
    if is_text_conditional(unet):
        return guidance
    if is_class_conditional(unet):
        check_classes_given(requests, guidance, has_weak_model)
        return guidance
    if has_weak_model:
        return guidance
    plain = Guidance(scale=1.0)
    if guidance not in (plain, Guidance(scale=0.0), Guidance()):
        raise UserError(
            "this model takes no prompt, so that guidance has nothing to move away from but a "
            "weaker model: give one, or leave out all settings of guidance."
        )
    return plain


def check_classes_given(
    requests: Sequence[Request], guidance: Guidance, has_weak_model: bool
) -> None:
    """Refuse the empty prompt where the model was not trained with "no class"."""
    used: list[Conditioning] = []
    for request in requests:
        if guidance.scale != 0:
            used += [conditioning for conditioning, _ in request.conds]
        is_composed = len(request.conds) > 1  # from the difference of each to the empty prompt
        if (guidance.scale != 1 or is_composed) and not has_weak_model:
            used.append(request.uncond)
    if any(c.labels is not None and bool((c.labels == NO_CLASS).any()) for c in used):
        raise UserError(
            'this model was not trained with "no class", which the empty prompt stands for, and '
            "which guidance and AND move away from: give one class, and guidance scale 1."
        )
