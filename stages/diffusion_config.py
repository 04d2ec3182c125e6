"""The flags of stage 2, and its presets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from foundation.errors import UserError
from ldm.loss import ObjectiveConfig
from ldm.schedule import ScheduleConfig
from stages.data import Aspect
from stages.lora import TARGETS
from training.config import EMATrainingConfig, extended
from training.flags import Finite, Fraction, Groups, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Config(EMATrainingConfig):
    GROUPS: ClassVar[Groups] = extended(
        EMATrainingConfig.GROUPS,
        {
            "data": ("size", "max_aspect", "allow_missing_captions", "verify_cache"),
            "model": (
                *("vae", "text_encoder", "text_chunks", "init_from"),
                *("lora", "lora_alpha", "lora_targets"),
            ),
            "training": ("weight_decay", "clip_norm", "caption_dropout"),
            "objective": ("objective",),
            "noise schedule": ("schedule",),
            "output": ("preview_prompts", "preview_guidance"),
            "machine": ("gradient_checkpointing", "shard"),
        },
    )

    vae: Path  # autoencoder: a run of train_vae.py, any AutoencoderKL folder, or a single file
    # run of train_clip.py, CLIPTextModel folder, single file, or NAME:PRETRAINED of open_clip
    text_encoder: str
    init_from: Path | None = None  # begin with the weights of this U-Net, a folder or file
    lora: Positive[int] | None = None  # train a LoRA of this rank on --init-from
    lora_alpha: Positive[float] | None = None  # the LoRA counts alpha / rank times; left out: once
    lora_targets: tuple[str, ...] = TARGETS  # ends of the names of the modules that get a LoRA
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 1: squares; 2: also shapes up to 2:1 and 1:2, of the same area
    batch_size: Positive[int] = 32  # images per step
    weight_decay: NonNegative[float] = 0.01  # of AdamW
    clip_norm: Positive[float] = 1.0  # the gradient is scaled down to this norm
    # contexts of the text encoder per caption, for long ones; left out: 1, or that of --init-from
    text_chunks: Positive[int] | None = None
    caption_dropout: Fraction = 0.1  # chance to train on the empty caption; guidance needs it
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gradient_checkpointing: bool = False  # a third slower, much less memory
    shard: bool = False  # spread weights and optimizer over the GPUs (FSDP), if one is too small
    preview_prompts: tuple[str, ...] = ()  # drawn at each evaluation; left out: held-out captions
    preview_guidance: Finite = 4.0  # guidance scale of the previews
    allow_missing_captions: bool = False  # images without a caption get the empty one
    verify_cache: bool = False  # check that the latent cache and all images are unchanged

    def check(self) -> None:
        super().check()
        if self.averages_every and (self.shard or self.lora):
            other = "--shard" if self.shard else "--lora"
            raise UserError(f"--averages-every stores whole U-Nets, which {other} does not have.")
        if self.shard and self.lora:
            raise UserError("--lora trains too little to be spread; leave out --shard.")


FLOW = {
    "objective": ObjectiveConfig(prediction="flow", times="logit_normal"),
    "schedule": ScheduleConfig(noise_schedule="flow"),
}
# Each preset is an architecture of the same name (ldm/unet.py) and a recipe for it.
PRESETS = {
    "tiny-32": {
        "size": 32,
        "steps": 900,
        "ema_halflife": 576,
        "evaluate_every": 450,
        "save_every": 450,
        **FLOW,
    },
    "demo": {
        "size": 48,
        "steps": 2200,
        "learning_rate": 1.2e-3,
        "cooldown": 0.7,
        "ema_halflife": 1408,
        "evaluate_every": 550,
        "save_every": 550,
        **FLOW,
    },
    "small-64": {
        "steps": 10_000,
        "cooldown": 0.7,
        "ema_halflife": 6400,
        "evaluate_every": 1000,
        **FLOW,
    },
    "sd15": {
        "size": 512,
        "steps": 500_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "warmup": 10_000,
        "cooldown": 0.1,
        "ema_halflife": 2_560_000,
        "objective": ObjectiveConfig(prediction="noise"),
        "schedule": ScheduleConfig(),
        "gradient_checkpointing": True,
    },
}
