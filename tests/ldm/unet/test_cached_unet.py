"""The cache of a U-Net changes no result, and nothing in a sampler waits for a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation.errors import UserError
from ldm.denoiser import BindNetwork, Conditioning, Denoiser, concatenate
from ldm.guidance import Guidance, GuidedDenoiser
from ldm.samplers import SAMPLERS
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import CachedUNet, UNet, UNetConfig
from tests.helpers.peer_settings import ODD_UNETS, SMALL_UNET
from tests.helpers.sampling import make_unet, randn, sample, text_conds

ROOT = Path(__file__).parents[3]
FLOW, TABLE = ScheduleConfig(noise_schedule="flow"), ScheduleConfig()
EVERYTHING = Guidance(
    scale=3.0, rescale=0.5, interval=(0.1, 0.9), parallel=0.5, max_norm=9.0, momentum=-0.5
)
KINDS = {
    "small": SMALL_UNET,
    "three levels that all attend": ODD_UNETS["three levels with attention"],
    "no self-attention": ODD_UNETS[
        "self-attention in the middle only, class embedded like a timestep"
    ],
    "upscaler": ODD_UNETS["x4 upscaler, narrow"],
}


def cache_network(unet: UNet) -> BindNetwork:
    return lambda conditionings: CachedUNet(unet, concatenate(conditionings).text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contexts", [1, 2, 3])
def test_the_cached_unet_computes_what_the_unet_does(kind, contexts):
    """For two images under several contexts; with class labels, where the U-Net has them."""
    unet = make_unet(KINDS[kind])
    latents = randn(2, unet.config.in_channels, 8, 8)
    context = randn(2 * contexts, 5, unet.config.cross_attention_dim)
    labels = None if unet.class_embedding is None else torch.tensor([20, 300])
    cached = CachedUNet(unet, context)
    for t in (999, 37.5, 999):
        times = torch.tensor([t, t])
        again = [x.repeat(contexts, *[1] * (x.ndim - 1)) for x in (latents, times)]
        many = None if labels is None else labels.repeat(contexts)
        expected = unet(*again, context, many)
        result = cached(latents, times, labels)
        assert result.shape == expected.shape
        scale = expected.std().item()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * scale)
    assert len(cached.shifts_at) == (2 if labels is None else 0)


def test_each_context_and_each_timestep_is_computed_once():
    unet = make_unet(SMALL_UNET)
    counts = {}
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "time_embedding", "time_emb_proj")):
            module.register_forward_hook(
                lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1})
            )
    denoiser = Denoiser(unet, make_schedule(FLOW), "flow", cache_network(unet))
    context, empty = (randn(2, 5, unet.config.cross_attention_dim, seed=s) for s in (1, 2))
    denoise = GuidedDenoiser(
        denoiser, text_conds((context, 1.0)), Conditioning(empty), Guidance(scale=3.0)
    )
    sample(
        SAMPLERS["heun"], denoise, randn(2, 4, 8, 8), denoiser.schedule, 4
    )  # calls most times twice
    assert {count for name, count in counts.items() if "to_k" in name} == {1}
    assert {count for name, count in counts.items() if "time" in name} == {4}


@pytest.mark.parametrize("config", [FLOW, TABLE], ids=["flow", "table"])
def test_sampling_with_and_without_the_cache_is_the_same(config):
    unet = make_unet(SMALL_UNET)
    prediction = "flow" if config is FLOW else "velocity"
    conds = text_conds((randn(2, 5, 24, seed=1), 0.7), (randn(2, 5, 24, seed=2), 0.3))
    uncond = Conditioning(randn(2, 5, 24, seed=3))
    drawn = []
    for bind_network in (None, cache_network(unet)):
        denoiser = Denoiser(unet, make_schedule(config), prediction, bind_network)
        denoise = GuidedDenoiser(denoiser, conds, uncond, EVERYTHING)
        noise = randn(2, 4, 8, 8, seed=4)
        drawn.append(sample("dpmpp_2m", denoise, noise, denoiser.schedule, 4))
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-4)


def test_a_cached_unet_refuses_what_it_was_not_made_for():
    unet = make_unet(SMALL_UNET)
    cached = CachedUNet(unet, randn(2, 5, 24))
    cached(randn(2, 4, 8, 8), torch.tensor([1, 1]))
    with pytest.raises(UserError):  # two timesteps in a call
        cached(randn(2, 4, 8, 8), torch.tensor([1, 2]))
    with pytest.raises(UserError, match="2 rows for 3 images"):
        cached(randn(3, 4, 8, 8), torch.tensor([1, 1, 1]))
    with pytest.raises(UserError, match="width 20"):
        CachedUNet(unet, randn(2, 5, 20))


def on_meta(sampler: str, denoiser: Denoiser, weak: Denoiser | None) -> None:
    """Sample on the meta device, whose tensors have no values: reading one fails."""
    with torch.device("meta"):
        noise, (context, empty) = torch.empty(2, 4, 8, 8), torch.empty(2, 2, 5, 24)
    conds = text_conds((context, 0.7), (context, 0.3))
    denoise = GuidedDenoiser(denoiser, conds, Conditioning(empty), EVERYTHING, weak)
    fresh = lambda *_: torch.empty_like(noise)  # noqa: E731
    latents = sample(sampler, denoise, noise, denoiser.schedule, 3, fresh)
    assert latents.device.type == "meta" and latents.shape == noise.shape


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", [FLOW, TABLE], ids=["flow", "table"])
def test_no_sampler_and_no_guidance_waits_for_the_device(sampler, config):
    network = lambda z_t, t, context: z_t * context.mean()  # noqa: E731
    on_meta(sampler, Denoiser(network, make_schedule(config), "sample"), None)


def test_no_network_waits_for_the_device():
    with torch.device("meta"):
        unet = UNet(UNetConfig(**SMALL_UNET)).eval().requires_grad_(False)
    denoiser = Denoiser(unet, make_schedule(FLOW), "flow", cache_network(unet))
    on_meta("dpmpp_2m", denoiser, weak=denoiser)


COMPILED = """
import torch
from ldm.unet import CachedUNet
from ldm.unet.cached import forward_cached
from tests.helpers.peer_settings import SMALL_UNET
from tests.helpers.sampling import make_unet, randn
unet, graphs = make_unet(SMALL_UNET), []

def backend(graph, _):
    graphs.append(graph)
    return graph.forward

def draw(forward=None):
    for seed in (1, 2):
        cached = CachedUNet(unet, randn(4, 5, 24, seed=seed), forward)
        yield from (cached(randn(2, 4, 8, 8), torch.tensor([t, t])) for t in (999, 500))

with torch.no_grad():
    expected = list(draw())
    compiled = torch.compile(forward_cached, fullgraph=True, backend=backend)
    for result, value in zip(draw(compiled), expected, strict=True):
        torch.testing.assert_close(result, value)
assert len(graphs) == 1, len(graphs)
"""


@pytest.mark.slow
def test_forward_cached_compiles_to_one_graph():
    """One graph serves all steps and prompts.

    In a process of its own, since the compiler cannot trace through the shape checks of this one.
    """
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=ROOT)
