"""One picture of 512 pixels in 20 guided steps, from noise to PIL: ours, and that of diffusers."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from autoencoder import Autoencoder
from autoencoder.model import AutoencoderConfig
from benchmarks.gpu_parts.autoencoder_speed import TINY as TINY_AUTOENCODER
from benchmarks.gpu_parts.denoiser_speed import TINY, WORKLOADS, WidthOnly, their_unet
from benchmarks.gpu_parts.job import Job
from benchmarks.gpu_parts.stopwatch import fill_zeros, measure_step, run_once
from generation.compile import compile_unet
from ldm import TextToImage
from ldm.config import ScheduleConfig
from ldm.denoiser import Conditioning
from ldm.guidance import Guidance
from ldm.pipeline.batching import Request
from ldm.pipeline.sampling import Sampling

STEPS, SCALE = 20, 7.5


def measure(job: Job, mode: str, name: str) -> None:
    """Measure whole pictures; mode as in denoiser_speed."""
    if mode == "compiling":
        compiled_call = partial(our_call, job, compiled=True)
        return run_once(job, f"{name} compiling", compiled_call, batch_size=1)
    run = partial(measure_step, job, batch_sizes=(1,))
    if mode == "eager":
        with job.guarded(f"{name} diffusers"):
            run(f"{name} diffusers", partial(their_call, job))
        with job.guarded(f"{name} diffusers tuned"):
            run(f"{name} diffusers tuned", partial(their_call, job, tuned=True))
        with job.guarded(f"{name} ours"):
            run(f"{name} ours", partial(our_call, job))
        for dtype in (torch.float32, torch.bfloat16):
            title = f"{name} ours, decoder alone, {str(dtype).removeprefix('torch.')}"
            with job.guarded(title):
                run(title, partial(our_decoder, job, dtype=dtype))
    elif mode == "compiled":
        with job.guarded(f"{name} ours compiled"):
            run(f"{name} ours compiled", partial(our_call, job, compiled=True))
    else:
        title = f"{name} diffusers compiled"
        with job.guarded(title):
            run(title, partial(their_call, job, tuned=True, compiled=True))


def make_networks(job: Job) -> tuple[Any, AutoencoderConfig, int]:
    """Return the configs of U-Net and autoencoder, and the side of the picture."""
    if job.rehearse:
        return replace(TINY, sample_size=8), TINY_AUTOENCODER, 64
    return WORKLOADS["unet-512"].unet, AutoencoderConfig(), 512


def make_context(job: Job, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random contexts of the prompt and of the empty prompt."""
    tokens = 8 if job.rehearse else 77
    with torch.device(job.device):
        return torch.randn(1, tokens, width), torch.randn(1, tokens, width)


def our_autoencoder(job: Job, config: AutoencoderConfig) -> Autoencoder:
    with torch.device(job.device):
        autoencoder = Autoencoder(config).eval()
    fill_zeros(autoencoder)
    return autoencoder


def our_decoder(job: Job, batch_size: int, dtype: torch.dtype) -> Callable[[], object]:
    _, config, side = make_networks(job)
    autoencoder = our_autoencoder(job, config).to(dtype)
    latents = torch.randn(batch_size, 4, side // 8, side // 8, device=job.device, dtype=dtype)

    @torch.no_grad()
    def call() -> object:
        return autoencoder.decode(latents)

    return call


def our_call(job: Job, batch_size: int, compiled: bool = False) -> Callable[[], object]:
    """Return a call of our pipeline with a U-Net in bf16, as sample.py --dtype bf16 makes it."""
    torch.manual_seed(0)
    unet_config, autoencoder_config, side = make_networks(job)
    from ldm.unet import UNet

    with torch.device(job.device):
        unet = UNet(unet_config).eval()
    fill_zeros(unet)
    text_encoder = WidthOnly(unet_config.cross_attention_dim)
    autoencoder = our_autoencoder(job, autoencoder_config)
    pipeline = TextToImage(unet, autoencoder, text_encoder, ScheduleConfig(), "noise")
    pipeline.to(job.device, torch.bfloat16)
    if compiled:
        pipeline.cached_forward = compile_unet(pipeline.unet)
    cond, uncond = map(Conditioning, make_context(job, unet_config.cross_attention_dim))
    requests = [Request([(cond, 1.0)], uncond, seed) for seed in range(batch_size)]
    sampling = Sampling(steps=STEPS, guidance=Guidance(scale=SCALE))

    def call() -> object:
        latents = pipeline.draw(requests, sampling, height=side, width=side)
        return [pipeline.to_picture(each) for each in latents]

    return call


def their_call(
    job: Job, batch_size: int, tuned: bool = False, compiled: bool = False
) -> Callable[[], object]:
    """Return a call of diffusers' pipeline, all of it in bf16. tuned: channels-last."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.utils.logging import set_verbosity_error

    set_verbosity_error()
    torch.manual_seed(0)
    unet_config, autoencoder_config, side = make_networks(job)
    levels = len(autoencoder_config.block_out_channels)
    fields = {"down_block_types": ("DownEncoderBlock2D",) * levels}
    fields |= {"up_block_types": ("UpDecoderBlock2D",) * levels}
    with torch.device(job.device):
        unet = their_unet(unet_config).eval()
        vae = AutoencoderKL(**fields, **asdict(autoencoder_config)).eval()
    fill_zeros(unet)
    fill_zeros(vae)
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        unet=unet,
        scheduler=scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.to(job.device, torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    if tuned:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if compiled:
        mode = "reduce-overhead" if job.on_gpu else "default"
        pipeline.unet.forward = torch.compile(pipeline.unet.forward, mode=mode, dynamic=False)
    cond, uncond = (x.bfloat16() for x in make_context(job, unet_config.cross_attention_dim))

    def call() -> object:
        return pipeline(
            prompt_embeds=cond.expand(batch_size, -1, -1),
            negative_prompt_embeds=uncond.expand(batch_size, -1, -1),
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            height=side,
            width=side,
        ).images

    return call
