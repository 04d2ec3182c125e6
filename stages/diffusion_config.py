"""The flags of stage 2, and its presets."""

from dataclasses import dataclass, field
from pathlib import Path

from foundation.errors import UserError
from ldm.loss import ObjectiveConfig
from ldm.schedule import ScheduleConfig
from stages.data import Aspect
from stages.lora import TARGETS
from training.bounds import Finite, NotNegative, Positive, Share
from training.config import AveragingRecipe


@dataclass(frozen=True, kw_only=True)
class Config(AveragingRecipe):
    vae: Path  # run folder of train_vae.py, the folder of any AutoencoderKL, or a single file
    text_encoder: str  # run or CLIPTextModel folder, a whole model's single file, NAME:PRETRAINED
    init_from: Path | None = None  # begin with this U-Net: run, pipeline, U-Net folder, single file
    lora: Positive[int] | None = None  # learn changes of this rank to its attention instead
    lora_alpha: Positive[float] | None = None  # they count alpha / rank times; once when left out
    lora_targets: tuple[str, ...] = TARGETS  # the modules changed, by the end of their names
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 2: also shapes up to 2:1 and 1:2, of the same area; 1: squares
    batch_size: Positive[int] = 32  # images per step
    weight_decay: NotNegative[float] = 0.01  # of AdamW
    clip_norm: Positive[float] = 1.0  # the gradient is scaled down to this norm
    text_chunks: Positive[int] | None = (
        None  # contexts per caption, for long ones; 1, or as in --init-from
    )
    caption_dropout: Share = 0.1  # chance to train on the empty caption, which guidance needs
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gradient_checkpointing: bool = False  # a third slower, much less memory
    shard: bool = False  # spread weights and optimizer over the GPUs; for what does not fit on one
    preview_prompts: tuple[str, ...] = ()  # drawn while training; the first held-out captions else
    preview_guidance: Finite = 4.0  # guidance scale of the previews
    allow_missing_captions: bool = False  # train images without a caption on the empty one
    verify_cache: bool = False  # read the cache and all images again, whether they are as they were

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
        "look_every": 450,
        "save_every": 450,
        **FLOW,
    },
    "demo": {
        "size": 48,
        "steps": 2200,
        "learning_rate": 1.2e-3,
        "cooldown": 0.7,
        "ema_halflife": 1408,
        "look_every": 550,
        "save_every": 550,
        **FLOW,
    },
    "small-64": {
        "steps": 10_000,
        "cooldown": 0.7,
        "ema_halflife": 6400,
        "look_every": 1000,
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
