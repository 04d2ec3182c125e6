"""The flags and presets of train_ldm.py."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from dataset.options import ReadOptions
from foundation.errors import UserError
from ldm.config import ObjectiveConfig, ScheduleConfig
from stages.flags.data import Aspect, CaptionTrainingConfig
from stages.flags.tasks import TASK_FLAGS, TaskFlags
from training.config import EMATrainingConfig, extended
from training.flags import Finite, Fraction, Groups, Needs, NonNegative, Positive, Text, needs

OptimizerName = Literal["adamw", "muon"]
ConditionName = Literal["text", "class", "none"]
CAPTION_FLAGS = CaptionTrainingConfig.GROUPS["captions"]
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # the projections of every attention


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig(EMATrainingConfig, CaptionTrainingConfig, TaskFlags):
    """Flags of train_ldm.py."""

    GROUPS: ClassVar[Groups] = extended(
        EMATrainingConfig.GROUPS,
        {
            "data": (
                *ReadOptions.READ_FLAGS,
                "size",
                "max_aspect",
                "allow_missing_captions",
                "verify_cache",
            ),
            "model": (
                *("vae", "condition", "text_encoder", "text_chunks", "init_from"),
                *("lora", "lora_alpha", "lora_targets"),
            ),
            "training": (
                *("optimizer", "matrix_rate", "weight_decay", "clip_norm"),
                "caption_dropout",
            ),
            "captions": CAPTION_FLAGS,
            "task": ("task", *(name for names in TASK_FLAGS.values() for name in names)),
            "objective": ("objective",),
            "noise schedule": ("schedule",),
            "output": ("best_by", "preview_prompts", "preview_guidance"),
            "machine": ("gradient_checkpointing", "shard"),
        },
    )

    NEEDS: ClassVar[Needs] = (
        needs("text_encoder", "text_chunks", *CAPTION_FLAGS, condition=("text",)),
        needs("allow_missing_captions", condition=("text",)),
        needs("caption_dropout", "preview_guidance", condition=("text", "class")),
        needs("lora_alpha", "lora_targets", lora=True),
        needs("matrix_rate", optimizer=("muon",)),
        *(needs(*names, task=(task,)) for task, names in TASK_FLAGS.items()),
        needs("gamma", weighting=("min_snr", "soft_min_snr")),
        needs("logit_mean", "logit_std", times=("logit_normal",)),
        needs("beta_start", "beta_end", noise_schedule=("scaled_linear", "linear")),
    )

    vae: Path  # autoencoder: a run of train_vae.py, any AutoencoderKL folder, or a single file
    # text: captions, through --text-encoder; class: captions are names of classes; none: images
    condition: ConditionName = "text"
    # run of train_clip.py, folder of a CLIPTextModel or XLMRobertaModel, single file, or
    # NAME:PRETRAINED of open_clip
    text_encoder: str | None = None
    init_from: Path | None = None  # begin with the weights of this U-Net, a folder or file
    lora: Positive[int] | None = None  # train a LoRA of this rank on --init-from
    lora_alpha: Positive[float] | None = None  # LoRA scale = alpha / rank; left out: scale 1
    lora_targets: tuple[str, ...] = LORA_TARGETS  # ends of the names of the modules that get a LoRA
    size: Positive[int] = 64  # side of the training images in pixels
    max_aspect: Aspect = 1.0  # 1: squares; 2: also shapes up to 2:1 and 1:2, of the same area
    batch_size: Positive[int] = 32  # images per step, over all GPUs
    # muon: it moves the matrices inside the blocks, AdamW the rest, and LoRAs; each image teaches
    # more, and a step costs more
    optimizer: OptimizerName = "adamw"
    matrix_rate: Positive[float] = 10.0  # learning rate of Muon, in multiples of the other
    weight_decay: NonNegative[float] = 0.01  # of AdamW, and of Muon
    clip_norm: Positive[float] = 1.0  # the gradient is scaled down to this norm
    # contexts of the text encoder per caption, for long ones; left out: 1, or that of --init-from
    text_chunks: Positive[int] | None = None
    caption_dropout: Fraction = 0.1  # chance to train without text or class; guidance needs it
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gradient_checkpointing: bool = False  # a third slower, much less memory
    shard: bool = False  # spread weights and optimizer over the GPUs (FSDP), if one is too small
    # keep the weights with the lowest validation loss of held-out pairs in best/; none: do not
    best_by: Literal["val", "none"] = "val"
    preview_prompts: tuple[Text, ...] = ()  # drawn at each evaluation; left out: held-out captions
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
        if self.optimizer == "muon" and self.shard:
            raise UserError(
                "--shard spreads each matrix over the GPUs, and Muon moves whole ones. Train with "
                "--optimizer adamw."
            )
        if self.shard and self.compile:
            raise UserError("--shard does not go with --compile; leave one of them out.")

    def check_condition(self) -> None:
        """Refuse a condition for which something is missing, or that the task has no place for."""
        self.check_task(self.condition)
        if self.condition == "text" and self.text_encoder is None:
            raise UserError(
                "--text-encoder is missing: the model reads captions through it. Give a run of "
                "train_clip.py, a folder or file with a CLIP, or NAME:PRETRAINED of open_clip. "
                "To train on classes or on images alone: --condition class, or none."
            )


FLOW_OBJECTIVE = ObjectiveConfig(prediction="flow", times="logit_normal")
FLOW = {
    "objective": FLOW_OBJECTIVE,
    "schedule": ScheduleConfig(noise_schedule="flow"),
}
BASE = {
    "batch_size": 256,
    "learning_rate": 2e-4,
    "warmup": 2000,
    "cooldown": 0.2,
    "evaluate_every": 5000,
    "save_every": 2000,
    **FLOW,
}
# Each preset is an architecture of the same name (ldm/unet) and defaults for it.
PRESETS = {
    "tiny-32": {
        "size": 32,
        "steps": 900,
        "ema_halflife": 576,
        "evaluate_every": 450,
        "save_every": 450,
        **FLOW,
    },
    "fashion-32": {
        "size": 32,
        "steps": 5000,
        "cooldown": 0.7,
        "ema_halflife": 3200,
        "evaluate_every": 1000,
        **FLOW,
    },
    "demo": {
        "size": 48,
        "steps": 825,
        "batch_size": 64,
        "optimizer": "muon",
        "matrix_rate": 8.0,
        "learning_rate": 1.2e-3,
        "warmup": 20,
        "cooldown": 0.7,
        "ema_halflife": 1056,
        "evaluate_every": 275,
        "save_every": 275,
        **FLOW,
        "objective": replace(FLOW_OBJECTIVE, logit_mean=0.8),
    },
    "small-64": {
        "steps": 10_000,
        "cooldown": 0.7,
        "ema_halflife": 6400,
        "evaluate_every": 1000,
        **FLOW,
    },
    "small-128": {
        "size": 128,
        "steps": 40_000,
        "cooldown": 0.5,
        "ema_halflife": 25_600,
        "evaluate_every": 2000,
        **FLOW,
    },
    "base-128": {"size": 128, "steps": 200_000, "ema_halflife": 1_024_000, **BASE},
    "base-256": {"size": 256, "steps": 300_000, "ema_halflife": 1_536_000, "accumulate": 4, **BASE},
    "base-512": {
        "size": 512,
        "steps": 300_000,
        "ema_halflife": 1_536_000,
        "accumulate": 16,
        **BASE,
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
