"""Weights of a network, divided between optimizers."""

from collections.abc import Iterable

from torch import nn


def all_but(chosen: Iterable[nn.Parameter], network: nn.Module) -> list[nn.Parameter]:
    """List the weights of a network that are not among the chosen ones."""
    taken = {id(weight) for weight in chosen}
    return [weight for weight in network.parameters() if id(weight) not in taken]
