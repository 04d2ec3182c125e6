"""python benchmarks/networks.py --preset demo

Our networks beside those of diffusers: same architecture, same weights, same batch, in one run.
Prints how many times faster ours are; above 1 is faster. Calls alternate, so that whatever else the
machine does hits both alike, and the best of the repeats counts, which is the least disturbed.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, whatever is installed

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from autoencoder import Autoencoder
from autoencoder.model import PRESETS as AUTOENCODERS
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from training.cli import parse, pick_device, run_main
from training.precision import Precision, has_bf16

TOKENS = 24  # of the text that the U-Net looks at


@dataclass(frozen=True, kw_only=True)
class Config:
    preset: str = "demo"  # whose architectures
    size: int = 48  # side of the images in pixels
    batch_size: int = 32  # images per training step
    sampled: int = 4  # images per sampling step, times two for guidance
    repeats: int = 7  # of each call; the best counts
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    device = pick_device(config.device)
    torch.manual_seed(0)
    ours = Autoencoder(AUTOENCODERS[config.preset]), UNet(UNETS[config.preset])
    theirs = twins(*ours)
    side = config.size // ours[0].factor
    print(f"{config.preset} at {config.size} pixels on {device}, {torch.get_num_threads()} threads")
    print(f"{'':34}{'diffusers':>12}{'ours':>12}{'ratio':>8}")
    compare_autoencoders(config, ours[0].to(device), theirs[0].to(device))
    compare_unets(config, ours[1].to(device), theirs[1].to(device), side)


def twins(autoencoder: Autoencoder, unet: UNet) -> tuple[nn.Module, nn.Module]:
    """What diffusers makes of our folders."""
    with tempfile.TemporaryDirectory() as folder:
        autoencoder.save(f"{folder}/vae")
        unet.save(f"{folder}/unet")
        return (
            AutoencoderKL.from_pretrained(f"{folder}/vae", low_cpu_mem_usage=False),
            UNet2DConditionModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False),
        )


def compare_autoencoders(config: Config, ours: Autoencoder, theirs: nn.Module) -> None:
    device = next(ours.parameters()).device
    channels = ours.config.in_channels
    images = torch.rand(config.batch_size, channels, config.size, config.size, device=device)

    def reconstruct(model: nn.Module) -> Tensor:
        if model is ours:
            return model.decode(model.encode(images, check=False).mode())
        return model.decode(model.encode(images).latent_dist.mode()).sample

    compare_both("autoencoder", config, ours, theirs, reconstruct, reconstruct)


def compare_unets(config: Config, ours: UNet, theirs: nn.Module, side: int) -> None:
    device = next(ours.parameters()).device

    def predictor(batch: int) -> Callable[[nn.Module], Tensor]:
        z_t = torch.randn(batch, ours.config.in_channels, side, side, device=device)
        context = torch.randn(batch, TOKENS, ours.config.cross_attention_dim, device=device)
        t = torch.randint(1000, (batch,), device=device)

        def predict(model: nn.Module) -> Tensor:
            output = model(z_t, t, context)
            return output if model is ours else output.sample

        return predict

    training, sampling = predictor(config.batch_size), predictor(2 * config.sampled)
    compare_both("U-Net", config, ours, theirs, training, sampling)


def compare_both(
    name: str,
    config: Config,
    ours: nn.Module,
    theirs: nn.Module,
    training: Callable[[nn.Module], Tensor],
    inference: Callable[[nn.Module], Tensor],
) -> None:
    """Training in fp32 and in bf16 where the hardware has it, then inference in fp32."""
    device = next(ours.parameters()).device
    for arithmetic in ("fp32", "bf16"):
        if arithmetic == "bf16" and not has_bf16(device):
            continue
        precision = Precision(device, arithmetic)

        def step(model: nn.Module, precision: Precision = precision) -> None:
            with precision:
                loss = training(model).float().square().mean()
            loss.backward()

        title = f"{name}, training, {arithmetic}"
        compare(title, config.repeats, lambda: step(theirs), lambda: step(ours))
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        title = f"{name}, inference, fp32"
        compare(title, config.repeats, lambda: inference(theirs), lambda: inference(ours))


def compare(title: str, repeats: int, theirs: Callable, ours: Callable) -> None:
    times = {theirs: [], ours: []}
    for call in [theirs, ours] * (repeats + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times[call].append(time.perf_counter() - start)
    best = {call: min(values[1:]) for call, values in times.items()}  # the first one warms up
    ratio = best[theirs] / best[ours]
    print(
        f"{title:34}{best[theirs] * 1e3:9.1f} ms{best[ours] * 1e3:9.1f} ms{ratio:8.2f}", flush=True
    )


if __name__ == "__main__":
    run_main(main)
