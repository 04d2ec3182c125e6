"""How a U-Net is told what to draw: by a text, by the name of a class, or not at all.

Everywhere else a context stands for all three, so that guidance, batches and interpolation know
only one thing. Of a class it is its number, of nothing a zero, both of shape (1, 1, 1).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.errors import UserError, did_you_mean
from foundation.shapes import Context, Estimates, Network, Timesteps
from ldm.guidance import Guidance
from ldm.pipeline.batching import Request
from ldm.unet import Prepared, UNet

NO_CLASS = -1  # where a model was taught none; an embedding refuses it


def reads_text(unet: UNet) -> bool:
    return unet.config.conditional


def knows_classes(unet: UNet) -> bool:
    """Of classes alone; beside a text, a label is the noise level of an upscaler."""
    return not reads_text(unet) and isinstance(unet.class_embedding, torch.nn.Embedding)


def adapted(unet: UNet) -> Network:
    """The U-Net as a function of latents, times and such a context, in the precision it has."""

    def call(
        latents: Float[Tensor, "b c_in h w"],
        t: Timesteps,
        context: Context | Prepared,
        level: Tensor | None = None,
    ) -> Estimates:
        dtype = unet.conv_in.weight.dtype
        latents = latents.to(dtype)
        if reads_text(unet):
            prepared = isinstance(context, Prepared)
            return unet(latents, t, context if prepared else context.to(dtype), level)
        labels = context[:, 0, 0].long() if knows_classes(unet) else level
        return unet(latents, t, None, labels)

    return call


def preparer(unet: UNet) -> Callable[[Context], Prepared] | None:
    """For a denoiser around such a function: what is the same in all steps, computed once."""
    if not reads_text(unet):
        return None
    return lambda context: unet.prepare(context.to(unet.conv_in.weight.dtype))


def context_without_text(unet: UNet, classes: Sequence[str], prompt: str) -> Context:
    """What stands for a prompt in a U-Net that reads none: a class, or nothing.

    classes: names, in the order of their numbers; without any, a prompt is a number. A U-Net with
    more classes than there are names was taught the first of these as "no class" (Ho & Salimans
    2022, arXiv:2207.12598): the empty prompt, from which guidance leads away.
    """
    if not knows_classes(unet):
        if prompt:
            raise UserError(f"this model reads no prompt, but got {prompt!r}; leave it out.")
        return torch.zeros(1, 1, 1)
    count = unet.config.num_class_embeds
    if not prompt:
        return torch.full((1, 1, 1), float(len(classes) if 0 < len(classes) < count else NO_CLASS))
    if prompt in classes:
        return torch.full((1, 1, 1), float(classes.index(prompt)))
    if not classes and prompt.isdecimal() and int(prompt) < count:
        return torch.full((1, 1, 1), float(prompt))
    if not classes:
        raise UserError(
            f"the prompt is {prompt!r}, but this model draws classes, whose names it does not say: "
            f"give a number from 0 to {count - 1}."
        )
    hint = did_you_mean(prompt, classes)
    known = ", ".join(classes[:20]) + ", ..." * (len(classes) > 20)
    raise UserError(f"this model knows no class {prompt!r}.{hint} There are: {known}.")


def possible_guidance(
    unet: UNet, requests: Sequence[Request], guidance: Guidance, weak: bool = False
) -> Guidance:
    """As asked for; plain where there is nothing to be guided by.

    weak: whether a weaker model is led away from.

    Raises:
        ValueError: no class is asked for, or needed to lead away from, and the U-Net knows none; or
            guidance is refined where there is none.
    """
    if reads_text(unet) or (weak and not knows_classes(unet)):
        return guidance
    if not knows_classes(unet):
        plain = Guidance(scale=1.0)
        if guidance not in (plain, Guidance(scale=0.0), Guidance()):
            raise UserError(
                "this model reads no prompt, so that guidance has nothing to lead away from but a "
                "weaker model: give one, or leave out all options of guidance."
            )
        return plain
    for request in requests:
        asked = [context for context, _ in request.conds] if guidance.scale else []
        asked += [request.uncond] if guidance.scale != 1 and not weak else []
        if any(context.item() == NO_CLASS for context in asked):
            raise UserError(
                'this model was not taught "no class", which the empty prompt stands for, and '
                "guidance leads away from: give a class, and guidance scale 1."
            )
    return guidance
