"""The flags of sample.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from generation.limits import MAX_FPS, MAX_FRAMES
from generation.options import BatchSize, GenerationOptions, Scale
from training.flags import Bound, Groups, Needs, NonNegative, Positive, needs

Prompts = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT ...]")]
FRAMES = f"from 0 to {MAX_FRAMES}"
RATES = f"above 0, and {MAX_FPS} at most"


@dataclass(frozen=True, kw_only=True)
class Config:
    RENAMED: ClassVar[Mapping[str, str]] = {"from_png": "reproduce"}
    ESSENTIAL: ClassVar[Sequence[str]] = (
        *("prompt", "model", "count", "seed", "steps", "guidance_scale", "height", "width", "out"),
    )
    GROUPS: ClassVar[Groups] = {
        "prompts": ("prompt", "prompts", "reproduce"),
        "model": ("model", "lora", "lora_scale", "ema"),
        "images": ("options",),
        "output": (
            *("out", "open", "name", "format", "quality"),
            *("grid", "grid_cell", "grid_x", "grid_y"),
            *("save_latents", "preview_every"),
            *("interpolate", "video", "fps"),
        ),
        "machine": ("device", "dtype", "batch_size", "compile"),
    }

    NEEDS: ClassVar[Needs] = (
        needs("lora_scale", lora=True),
        needs("quality", format=("jpeg", "webp")),
        needs("video", "fps", interpolate=True),
        needs("format", "quality", "grid", "save_latents", "preview_every", interpolate=False),
        needs("grid_x", "grid_y", interpolate=False),
        needs("grid_cell", "grid_x", "grid_y", grid=True),
        needs("grid_cell", grid_x=False, grid_y=False, interpolate=False),
        needs(
            *("interpolate", "video", "fps", "grid_x", "grid_y", "lora_scale"),
            *("ema", "dtype", "batch_size", "compile"),
            reproduce=False,
        ),
    )

    prompt: Prompts = ()  # what to draw; left out in a terminal: prompts are asked for
    # file with one prompt per line; in a .jsonl file, lines may set the options of an image
    prompts: Path | None = None
    reproduce: Path | None = None  # image or video to generate again, as recorded in its file
    # run folder of train_ldm.py, pipeline folder or single file; left out: checkpoints/demo
    model: Path | None = None
    lora: Path | None = None  # LoRA to add: a run folder of train_ldm.py --lora, a folder or a file
    lora_scale: Scale = 1.0  # factor of the LoRA
    ema: bool = False  # use the averaged U-Net of a single file that holds two
    options: GenerationOptions = field(default_factory=GenerationOptions)

    out: Path = Path("samples")  # output folder
    # file names, from {number}, {seed}, {prompt}, {sampler} and {steps}
    name: str = "{number:05d}"
    # image format; models trained on 16-bit images or arrays write .png or .npy
    format: Literal["png", "jpeg", "webp"] = "png"
    # of JPEG and WebP
    quality: Annotated[int, Bound(lambda x: 1 <= x <= 100, "from 1 to 100")] = 95
    grid: bool = True  # also write all images side by side, as grid-0000
    # smallest side of an image in the grid, in pixels; smaller ones are enlarged by a whole factor
    grid_cell: Positive[int] = 1
    # a grid with labels instead, one image for each pair of values: OPTION=VALUE,VALUE,...
    grid_x: str = ""  # from left to right, as in guidance_scale=1,4,8
    grid_y: str = ""  # from top to bottom, as in steps=5,10,25
    open: bool = False  # show the result when it is ready
    save_latents: bool = False  # also write the latents of each image, as safetensors
    # network calls between previews, which are written to OUT/previews; 0 writes none
    preview_every: NonNegative[int] = 0
    # write a video instead, with this many frames from each image to the next
    interpolate: Annotated[int, Bound(lambda x: 0 <= x <= MAX_FRAMES, FRAMES)] = 0
    video: Literal["gif", "mp4"] = "gif"  # format of the video; mp4 needs PyAV
    fps: Annotated[float, Bound(lambda x: 0 < x <= MAX_FPS, RATES)] = (
        12.0  # frames per second of the video
    )

    device: str = "auto"  # cpu, cuda or mps; auto: a GPU if there is one
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the U-Net
    # images generated at once; left out: 16, on a CPU few; on a CPU it affects the last bits
    batch_size: BatchSize | None = None
    compile: bool = False  # compile the U-Net: takes a minute for each new size, then is faster
