"""python benchmarks/network_speed.py --preset demo

Speed of our networks and of those of diffusers: same architecture, weights and batch, in one run.
Calls alternate, and the best time of each counts, because it is the least disturbed one. Prints
milliseconds and the ratio of diffusers' time to ours: above 1, ours are faster. With --compile
ours are compiled as by the flag of the same name of the trainings; diffusers' are not.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from training.cli import answer_early, parse, run_main
from training.config import PrecisionName
from training.flags import Positive


@dataclass(frozen=True, kw_only=True)
class Config:
    preset: str = "demo"  # preset of the architectures
    size: Positive[int] = 48  # side of the images, pixels
    batch_size: Positive[int] = 32  # images per training step
    sampled: Positive[int] = 4  # images per sampling step; guidance doubles them
    repeats: Positive[int] = 7  # measurements of each call, of which the best counts
    compile: bool = False  # measure training steps of our networks as compiled code
    device: str = "auto"  # cpu, cuda or mps; auto: a GPU if there is one


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from autoencoder import Autoencoder
from autoencoder.model import PRESETS as AUTOENCODERS
from benchmarks.timing import time_in_turn
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from training.acceleration.compiled import compile_in_place, eager_mode
from training.device import pick_device
from training.precision import Precision, has_bf16

TOKENS = 24  # of the context


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    device = pick_device(config.device)
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODERS[config.preset])
    unet = UNet(UNETS[config.preset])
    their_autoencoder, their_unet = open_in_diffusers(autoencoder, unet)
    threads = torch.get_num_threads()
    print(f"{config.preset} at {config.size} pixels on {device}, {threads} threads")
    print(f"{'':38}{'diffusers':>12}{'ours':>12}{'ratio':>8}")
    for network in (autoencoder, unet, their_autoencoder, their_unet):
        network.to(device)
    compare_autoencoders(config, autoencoder, their_autoencoder)
    compare_unets(config, unet, their_unet, config.size // autoencoder.factor)


def open_in_diffusers(autoencoder: Autoencoder, unet: UNet) -> tuple[Any, Any]:
    """Save our networks and open the folders with diffusers, whose types are not precise."""
    with tempfile.TemporaryDirectory() as folder:
        autoencoder.save(f"{folder}/vae")
        unet.save(f"{folder}/unet")
        return (
            AutoencoderKL.from_pretrained(f"{folder}/vae", low_cpu_mem_usage=False),
            UNet2DConditionModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False),
        )


def compare_autoencoders(config: Config, ours: Autoencoder, theirs: Any) -> None:
    device = next(ours.parameters()).device
    size = (config.batch_size, ours.config.in_channels, config.size, config.size)
    images = torch.rand(size, device=device)

    def our_reconstruction() -> Tensor:
        return ours.decode(ours.encode(images, check=False).mode())

    def their_reconstruction() -> Tensor:
        return theirs.decode(theirs.encode(images).latent_dist.mode()).sample

    calls = {"diffusers": their_reconstruction, "ours": our_reconstruction}
    if config.compile:
        ours.compile_for_training()
    compare_training("autoencoder", config, device, calls)
    compare_inference("autoencoder", config, (ours, theirs), calls)


def compare_unets(config: Config, ours: UNet, theirs: Any, side: int) -> None:
    width = ours.config.cross_attention_dim
    assert width is not None, "presets of U-Nets read text"

    def make_calls(batch_size: int) -> dict[str, Callable[[], Tensor]]:
        shape = (batch_size, ours.config.in_channels, side, side)
        z_t = torch.randn(shape, device=ours.device)
        context = torch.randn(batch_size, TOKENS, width, device=ours.device)
        t = torch.randint(1000, (batch_size,), device=ours.device)
        return {
            "diffusers": lambda: theirs(z_t, t, context).sample,
            "ours": lambda: ours(z_t, t, context),
        }

    if config.compile:
        compile_in_place(ours)
    compare_training("U-Net", config, ours.device, make_calls(config.batch_size))
    compare_inference("U-Net", config, (ours, theirs), make_calls(2 * config.sampled))


def compare_training(
    name: str, config: Config, device: torch.device, calls: dict[str, Callable[[], Tensor]]
) -> None:
    """Compare forward and backward passes, in fp32 and, where the hardware has it, in bf16.

    In bf16, diffusers' networks run under autocast alone, as its training scripts do it.
    """
    names: list[PrecisionName] = ["fp32", "bf16"] if has_bf16(device) else ["fp32"]
    for name_of_precision in names:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=name_of_precision == "bf16")
        contexts = {"diffusers": autocast, "ours": Precision(device, name_of_precision)}

        def step(library: str, contexts: Mapping[str, Any] = contexts) -> None:
            with contexts[library]:
                loss = calls[library]().float().square().mean()
            loss.backward()

        steps: dict[str, Callable[[], None]] = {
            library: partial(step, library) for library in calls
        }
        compiled = ", compiled" if config.compile else ""
        print_comparison(f"{name}, training, {name_of_precision}{compiled}", steps, config.repeats)


def compare_inference(
    name: str,
    config: Config,
    networks: Sequence[nn.Module],
    calls: dict[str, Callable[[], Tensor]],
) -> None:
    """Compare forward passes in fp32, without gradients."""
    for network in networks:
        network.eval()
    with torch.no_grad(), eager_mode():
        print_comparison(f"{name}, inference, fp32", calls, config.repeats)


def print_comparison(
    title: str, calls: dict[str, Callable[[], Tensor]] | dict[str, Callable[[], None]], repeats: int
) -> None:
    seconds = time_in_turn(calls, repeats)["time"]
    theirs, ours = min(seconds["diffusers"]), min(seconds["ours"])
    milliseconds = f"{theirs * 1e3:9.1f} ms{ours * 1e3:9.1f} ms"
    print(f"{title:38}{milliseconds}{theirs / ours:8.2f}", flush=True)


if __name__ == "__main__":
    run_main(main, Config)
