"""python -m tests.parity.run [WORD ...]

Differences between our outputs and those of diffusers and transformers, as the table of
docs/parity.md: all rows, or those whose name contains one of the words. Computed in fp32 on the
CPU, with the same weights and inputs.

The weights are random. The other library builds a model from the settings of a public checkpoint
and saves it, and ours opens the folder. Only one of the two is in memory at a time.
"""

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sample
from autoencoder import Autoencoder
from conditioning import TextEncoder
from conditioning.tokenizer import (
    END_OF_TEXT,
    START_OF_TEXT,
    clip_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from ldm.schedule import ScheduleConfig
from ldm.unet import UNet
from tests.helpers.peer_settings import (
    AUTOENCODERS,
    ODD_AUTOENCODERS,
    ODD_UNETS,
    TEXT_ENCODERS,
    UNETS,
)
from tests.helpers.prompts import PROMPTS
from tests.helpers.random_models import make_pipeline
from tests.parity.samplers import RUNS

DEMO = Path(__file__).parents[2] / "checkpoints" / "demo"


class Measured(NamedTuple):
    """Differences in one row of the table."""

    figures: dict[str, float]  # compared output -> largest difference
    parameters: int = 0  # number of parameters of the network


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Compute the largest difference, in standard deviations of the peer's sample."""
    assert ours.shape == theirs.shape
    gap = (ours - theirs).abs().flatten(1).amax(dim=1)
    return (gap / theirs.flatten(1).std(dim=1)).max().item()


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def saved(peer: nn.Module, altered: dict[str, Any]):
    """Save a peer to a temporary folder, and replace settings in its config.json.

    altered: other settings than the peer's, to see that a difference is noticed.
    """
    with TemporaryDirectory() as name:
        peer.save_pretrained(name)
        config = Path(name) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | altered))
        del peer  # so that the caller can free its memory
        yield name


@torch.no_grad()
def randomized(peer: nn.Module) -> nn.Module:
    """Add noise to norms and biases, whose ones and zeros would hide a swapped pair."""
    for parameter in peer.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert parameter.any()
    return peer.eval()


def scale_and_shift(config: Any, dtype: torch.dtype) -> tuple[Tensor | float, Tensor | float]:
    """Return scale and shift as diffusers' pipelines use them: latents = (z - shift) * scale.

    A config with latents_mean is used as by the pipeline of SDXL, one without as by those of SD 3
    and FLUX.
    """
    if config.latents_mean is None:
        return config.scaling_factor, config.shift_factor or 0.0
    mean, std = (
        torch.tensor(x, dtype=dtype).view(1, -1, 1, 1)
        for x in (config.latents_mean, config.latents_std)
    )
    return config.scaling_factor / std, mean


@torch.no_grad()
def autoencoder(
    settings: dict[str, Any], size: tuple[int, int], dtype: torch.dtype = torch.float32, **altered
) -> Measured:
    """Compare mean and deviation of the encoder's Gaussian, and images decoded from latents."""
    torch.manual_seed(0)
    levels = len(settings["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    peer = randomized(AutoencoderKL(**blocks, **settings))
    scale, shift = scale_and_shift(peer.config, dtype)
    images = torch.rand(1, peer.config.in_channels, *size, dtype=dtype) * 2 - 1
    with saved(peer, altered) as folder:
        z = peer.to(dtype).encode(images).latent_dist
        latents = torch.randn_like(z.mean)
        pictures = peer.decode(latents / scale + shift).sample
        del peer
        ours = Autoencoder.load(folder).to(dtype)
        posterior = ours.encode(images)
        figures = {
            "mean": difference(posterior.mean, (z.mean - shift) * scale),
            "deviation": difference(posterior.std, z.std * scale),
            "decoded": difference(ours.decode(latents), pictures),
        }
        return Measured(figures, count_parameters(ours))


@torch.no_grad()
def unet(
    settings: dict[str, Any], size: tuple[int, int], dtype: torch.dtype = torch.float32, **altered
) -> Measured:
    """Compare the prediction at whole and at fractional times."""
    torch.manual_seed(0)
    timesteps = torch.tensor([0, 1, 37.5, 500, 999])
    count = len(timesteps)
    peer = randomized(UNet2DConditionModel(**settings))
    config = peer.config
    latents = torch.randn(count, config.in_channels, *size, dtype=dtype)
    context = torch.randn(count, 77, config.cross_attention_dim, dtype=dtype)
    blocks = (*config.down_block_types, config.mid_block_type, *config.up_block_types)
    if not any("CrossAttn" in block for block in blocks):
        context = None
    labels = None
    if config.class_embed_type == "timestep" or config.num_class_embeds:
        labels = torch.randint(config.num_class_embeds or 1000, (count,))
    inputs = latents, timesteps, context, labels
    with saved(peer, altered) as folder:
        expected = peer.to(dtype)(*inputs, return_dict=False)[0]
        del peer
        ours = UNet.load(folder).to(dtype)
        return Measured({"prediction": difference(ours(*inputs), expected)}, count_parameters(ours))


@torch.no_grad()
def text_encoder(settings: dict[str, Any]) -> Measured:
    """Compare the states of all tokens, including padding."""
    torch.manual_seed(0)
    peer = randomized(CLIPTextModel(CLIPTextConfig(**settings, eos_token_id=49407)))
    with saved(peer, {}) as folder:
        encoder = TextEncoder.load(folder)
        prompts = PROMPTS[:24:3]
        expected = peer(input_ids=encoder.tokenize(prompts)).last_hidden_state
        figures = {"token states": difference(encoder(prompts), expected)}
        return Measured(figures, count_parameters(encoder))


@torch.no_grad()
def tokens(pad: str) -> Measured:
    """Compare token ids of difficult prompts.

    The tokenizer files are as in the repositories of Stable Diffusion: special tokens have flags,
    and in version 2 only special_tokens_map.json names the pad token.
    """
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = {"content": START_OF_TEXT, **flags}, {"content": END_OF_TEXT, **flags}
    roles = {"bos_token": start, "eos_token": end, "unk_token": end}
    typed = {role: {"__type": "AddedToken", **token} for role, token in roles.items()}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(clip_tokenizer(77), folder)
        written = {"tokenizer_config.json": {**settings, **typed, "pad_token": END_OF_TEXT}}
        written["special_tokens_map.json"] = {**roles, "pad_token": pad}
        for file, content in written.items():
            (folder / file).write_text(json.dumps(content))
        ours = load_tokenizer(folder, 77)(PROMPTS)
        theirs = CLIPTokenizer.from_pretrained(folder)(
            PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
    return Measured({f"prompts of {len(PROMPTS)}": (ours != theirs).any(dim=1).sum().item()})


@torch.no_grad()
def pipeline(schedule: ScheduleConfig, prediction: str, sampler: str) -> Measured:
    """Compare an image in gray levels of 255 with StableDiffusionPipeline on our folder."""
    ours = make_pipeline(schedule, prediction)
    with TemporaryDirectory() as folder:
        ours.save(f"{folder}/model")
        theirs = StableDiffusionPipeline.from_pretrained(f"{folder}/model", low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, *ours.latent_shape(32, 32), generator=torch.Generator().manual_seed(3))
    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "height": 32, "width": 32}
    drawn = theirs("a red heart", latents=latents, output_type="np", **options).images[0]
    mine = ours(["a red heart"], steps=10, guidance_scale=4.0, sampler=sampler, seed=3)[0]
    return Measured({"gray levels": float(np.abs(np.asarray(mine) - 255 * drawn).max())})


@torch.no_grad()
def trained() -> Measured:
    """Compare images of sample.py and checkpoints/demo with StableDiffusionPipeline."""
    flags = {"model": DEMO, "steps": 10, "guidance-scale": 4, "seed": 3, "device": "cpu"}
    prompts = ["woman astronaut", "red heart"]
    with TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        words = (str(x) for name, value in flags.items() for x in (f"--{name}", value))
        sample.main([*prompts, *words, "--out", out])
        mine = [
            np.asarray(Image.open(file), float) for file in sorted(Path(out).glob("[0-9]*.png"))
        ]
    theirs = StableDiffusionPipeline.from_pretrained(DEMO, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    side, figures = theirs.unet.config.sample_size, []
    for k, (prompt, picture) in enumerate(zip(prompts, mine, strict=True)):
        noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3 + k))
        options = {"latents": noise, "num_inference_steps": 10, "guidance_scale": 4.0}
        drawn = theirs(prompt, output_type="np", **options).images[0]
        figures.append(float(np.abs(picture - 255 * drawn).max()))
    return Measured({"gray levels": max(figures)}, count_parameters(theirs.unet))


def samplers(row: str) -> Measured:
    figures = [run() for run in RUNS[row].values()]
    return Measured({f"latents, worst of {len(figures)} runs": max(figures)})


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    measure: Callable[[], Measured]
    bound: float = 1e-5  # largest difference allowed
    slow: bool = False  # takes minutes or gigabytes


CASES = {
    **{
        f"autoencoder: {name}": Case(
            partial(autoencoder, settings, (64, 96)), slow=name != "FLUX.1"
        )
        for name, settings in AUTOENCODERS.items()
    },
    **{
        f"autoencoder: {name}": Case(partial(autoencoder, settings, (16, 24)))
        for name, settings in ODD_AUTOENCODERS.items()
    },
    **{
        f"U-Net: {name}": Case(partial(unet, settings, (16, 24)), slow=True)
        for name, settings in UNETS.items()
    },
    **{
        f"U-Net: {name}": Case(partial(unet, settings, (8, 16)))
        for name, settings in ODD_UNETS.items()
    },
    **{
        f"text encoder: {name}": Case(partial(text_encoder, settings), slow=True)
        for name, settings in TEXT_ENCODERS.items()
    },
    "tokens: Stable Diffusion 1.x": Case(partial(tokens, END_OF_TEXT), bound=0),
    "tokens: Stable Diffusion 2.x": Case(partial(tokens, "!"), bound=0),
    **{
        f"pipeline: {name}": Case(partial(pipeline, schedule, prediction, sampler), bound=1)
        for name, schedule, prediction, sampler in (
            ("flow", ScheduleConfig(noise_schedule="flow"), "flow", "dpmpp_2m"),
            ("velocity", ScheduleConfig(), "velocity", "ddim"),
            ("velocity, zero SNR", ScheduleConfig(zero_terminal_snr=True), "velocity", "ddim"),
            ("noise", ScheduleConfig(), "noise", "ddim"),
        )
    },
    "pipeline: checkpoints/demo, by sample.py": Case(trained, bound=1),
}
SAMPLERS = {f"samplers: {row}": Case(partial(samplers, row), bound=1e-4) for row in RUNS}


def main(words: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    print("| | millions | compared | difference | at most |")
    print("|---|---|---|---|---|")
    for name, case in (CASES | SAMPLERS).items():
        if words and not any(word in name for word in words):
            continue
        measured = case.measure()
        size = f"{measured.parameters / 1e6:.1f}" if measured.parameters else ""
        for what, figure in measured.figures.items():
            print(f"| {name} | {size} | {what} | {figure:.2g} | {case.bound:g} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
