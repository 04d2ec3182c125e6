"""Whole models of the smallest preset with random weights, and images to give to them."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image

from autoencoder import Autoencoder
from autoencoder.model import PRESETS as AUTOENCODERS
from conditioning import TextEncoder
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from ldm import TextToImage
from ldm.denoiser import Prediction
from ldm.schedule import ScheduleConfig
from ldm.unet import PRESETS as UNETS
from tests.helpers.sampling import random_unet

FLOW = ScheduleConfig(noise_schedule="flow")
PROMPT = ["a cat"]
SIDE = 32  # pixels, as the preset tiny-32 says


def make_pipeline(
    schedule: ScheduleConfig = FLOW,
    prediction: Prediction = "flow",
    text_encoder: TextEncoder | None = None,
) -> TextToImage:
    """Make a whole model; every call gives the same weights, and a CLIP's text tower."""
    torch.manual_seed(0)
    text_encoder = text_encoder or Clip(CLIPS["tiny-32"]).text_encoder()
    unet = random_unet(replace(UNETS["tiny-32"], cross_attention_dim=text_encoder.width))
    autoencoder = Autoencoder(AUTOENCODERS["tiny-32"]).eval()
    return TextToImage(unet, autoencoder, text_encoder, schedule, prediction)


def with_unet(pipeline: TextToImage, **changes: object) -> TextToImage:
    """Return the same model with another U-Net, whose config has these changes."""
    torch.manual_seed(0)
    return TextToImage(
        random_unet(replace(pipeline.unet.config, **changes)),
        pipeline.autoencoder,
        pipeline.text_encoder,
        pipeline.schedule_config,
        pipeline.denoiser.prediction,
    )


def smooth_image(width: int = SIDE, height: int = SIDE, seed: int = 0) -> Image.Image:
    """Return an image of smooth random colors."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> Int[np.ndarray, "..."]:
    """Return an image as integers that can be subtracted."""
    return np.asarray(image).astype(int)
