"""python sample.py "red heart" "woman astronaut" -n 4 --seed 0 --out samples

Draws pictures from a trained model: OUT/00000.png, 00001.png, ... and never over an older one.
Picture k of a call uses seed + k, so it can be drawn again alone. Every file says how it was made,
and --from-png FILE draws the very same picture from that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from PIL import Image
from safetensors.torch import save as to_safetensors

from autoencoder.io import read_provenance
from dataset.images.pixel_format import PixelFormat, recorded_format
from dataset.images.write import choose_extension, write_image
from foundation.errors import UserError
from generation.metadata import SUFFIXES, check_mode, encoded, texts
from generation.options import Options, flag
from generation.output import plan_names, write_new
from generation.previews import Previews
from generation.prompts import Line, Picture, pictures_of, read_lines
from generation.record import check_hashes, check_same, lines_from, sha256_of
from generation.session import Studio
from generation.video import WRITERS, check_film, film_record, frames_between
from interop.lora import find_lora
from ldm import TextToImage
from ldm.pipeline.image_processor import PIL_MODES
from ldm.pipeline.io import read_model_provenance
from stages.lora import apply_lora
from training.cli import parse, pick_device, run_main
from training.flags import Bound, Finite, Groups, NonNegative, Positive
from training.logging.image_grid import image_grid, pil_to_tensor
from training.logging.progress import progress_counter
from training.run import make_folder

Prompts = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT ...]")]
DEMO = Path("checkpoints/demo")
NEEDS = {"video": "interpolate", "fps": "interpolate", "lora_scale": "lora"}


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {
        "prompts": ("prompt", "prompts", "from_png"),
        "model": ("model", "lora", "lora_scale", "ema"),
        "pictures": ("options",),
        "output": (
            *("out", "name", "format", "quality", "grid", "save_latents", "preview_every"),
            *("interpolate", "video", "fps"),
        ),
        "machine": ("device", "dtype", "batch_size", "compile"),
    }

    prompt: Prompts = ()  # what to draw, one picture or more of each
    prompts: Path | None = None  # a file of prompts, one a line; .jsonl: with any option of a line
    from_png: Path | None = None  # draw this picture again, as its file says it was made
    model: Path | None = None  # run of train_ldm.py, pipeline folder, or single file; else the demo
    lora: Path | None = None  # a run of train_ldm.py --lora, a folder or file, added to the model
    lora_scale: Finite = 1.0  # how many times it is added
    ema: bool = False  # of a single file with two U-Nets, take the one averaged in training
    options: Options = field(default_factory=Options)

    out: Path = Path("samples")  # folder for the files
    name: str = "{number:05d}"  # of a file; also {seed}, {prompt}, {sampler}, {steps}
    format: Literal["png", "jpeg", "webp"] = "png"  # of 8 bits; else .png or .npy, as it fits
    quality: Annotated[int, Bound(lambda x: 1 <= x <= 100, "from 1 to 100")] = 95  # but of PNG
    grid: bool = True  # also write all pictures side by side, as grid-0000
    save_latents: bool = False  # also write each picture's latents, as safetensors
    preview_every: NonNegative[int] = 0  # show it on the way, in OUT/previews, each so many calls
    interpolate: NonNegative[int] = 0  # draw so many frames from each picture to the next instead
    video: Literal["gif", "mp4"] = "gif"  # of these frames; mp4 needs PyAV
    fps: Positive[float] = 12.0  # frames per second

    # pictures drawn at once; as many as memory holds if left out; on a CPU changes their last bits
    batch_size: Positive[int] | None = None
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the U-Net
    compile: bool = False  # the U-Net: a minute at first for each size, faster from then on


def main(argv: Sequence[str] | None = None) -> None:
    config, record = parse(Config, argv, __doc__), {}
    config.options.check()
    check(config)
    if config.from_png is None:
        lines = [Line(prompt, config.options) for prompt in config.prompt]
        if config.prompts is not None:
            lines += read_lines(config.prompts, config.options)
        if not lines and config.options.guidance_scale == 0:
            lines = [Line("", config.options)]
        if not lines:
            raise UserError(
                'no prompt given. For example: python sample.py "red heart". For pictures of '
                "anything: --guidance-scale 0."
            )
    else:
        config, lines, record = as_recorded(config)
    pictures = pictures_of(lines)
    studio = open_studio(config)
    if config.from_png is not None:
        hashes = studio.hashes_of(pictures[0].options)
        check_hashes(record, hashes, config.from_png)
    studio.warn(pictures)
    if config.interpolate:
        film = animate(config, studio, pictures)
        return check_same(film, config.from_png) if config.from_png is not None else None
    drawn, first = draw(config, studio, pictures)
    if config.from_png is not None:
        check_same(first, config.from_png)
    if config.grid and len({(image.size, image.mode) for image in drawn}) == 1 < len(drawn):
        count = config.options.count
        columns = count if 1 < count < len(drawn) else int(len(drawn) ** 0.5)
        content = encoded(
            image_grid(pil_to_tensor(drawn), columns), {}, config.format, config.quality
        )
        print(f"wrote {write_one(config, 'grid-{number:04d}', SUFFIXES[config.format], content)}")


def check(config: Config) -> None:
    """Refuses flags that would change nothing."""
    for name, needed in NEEDS.items():
        given, there = (getattr(config, x) != getattr(Config, x) for x in (name, needed))
        if given and not there:
            raise UserError(f"{flag(name)} is for {flag(needed)}, which is not given.")
    if config.interpolate and config.from_png is not None:
        raise UserError("--from-png takes --interpolate from the file; leave it out.")
    if config.quality != Config.quality and (config.format == "png" or config.interpolate):
        raise UserError("--quality is for --format jpeg and webp.")


def draw(
    config: Config, studio: Studio, pictures: Sequence[Picture]
) -> tuple[list[Image.Image], Path]:
    """And writes them as they come. Also gives the first one's file."""
    jobs = studio.jobs(pictures)
    deep = deep_format(config, studio)
    if deep is not None and any(picture.options.files() for picture in pictures):
        raise UserError(
            "pictures to begin with are read in 8 bits, and this model was trained on "
            f"{deep[0].dtype}. Draw from prompts alone."
        )
    suffixes = [SUFFIXES[config.format] if deep is None else deep[1]]
    suffixes += [".safetensors"] * config.save_latents
    paths = plan_names(config.out, config.name, suffixes, [named(p) for p in pictures])
    make_folder(config.out)
    drawn: list[Image.Image] = []
    total = sum(
        len(alike) * alike[0].options.sampling().network_calls(task) for alike, task in jobs
    )
    with progress_counter("sampling", total, "image steps") as count:
        for alike, task in jobs:
            here = paths[len(drawn) : len(drawn) + len(alike)]
            previews = Previews(studio.pipeline, config.out, here, every=config.preview_every)
            latents = studio.draw(studio.requests(alike), alike[0], task, count, previews)
            for picture, path, z in zip(alike, here, latents, strict=True):
                drawn.append(studio.pipeline.to_picture(z, task))
                record = recorded(config, studio, picture)
                if deep is None:
                    content = encoded(drawn[-1], record, config.format, config.quality)
                    write_new(path, suffixes[0], content)
                else:  # as the training files are; the picture in 8 bits is for the grid
                    file = path.with_name(path.name + suffixes[0])
                    write_image(studio.pipeline.decode(z)[0], file, deep[0], texts(record))
                if config.save_latents:
                    write_new(path, suffixes[1], to_safetensors({"latents": z.cpu()}))
    more = f" ... {paths[-1].name}" if len(paths) > 1 else ""
    print(f"wrote {paths[0]}{more}{suffixes[0]}")
    return drawn, paths[0].with_name(paths[0].name + suffixes[0])


def deep_format(config: Config, studio: Studio) -> tuple[PixelFormat, str] | None:
    """Numbers and ending of the files of a model that was not trained on 8-bit pictures."""
    model = config.model or DEMO
    pixels = recorded_format(read_model_provenance(model), read_provenance(model))
    channels = studio.pipeline.autoencoder.config.out_channels
    if pixels.eight_bit and channels in PIL_MODES:
        check_mode(config.format, PIL_MODES[channels])
        return None
    return pixels, choose_extension(pixels, channels)


def recorded(config: Config, studio: Studio, picture: Picture) -> dict[str, Any]:
    record = studio.record(picture)
    if studio.batch_size is not None and studio.pipeline.device.type == "cpu":
        record |= {"batch_size": studio.batch_size}
    if config.lora is not None:
        record |= {"lora": str(config.lora), "lora_scale": config.lora_scale}
    return record


def animate(config: Config, studio: Studio, pictures: Sequence[Picture]) -> Path:
    """The way from each picture to the next, as one animation."""
    jobs = studio.jobs(pictures)
    if len(pictures) < 2 or len({replace(p.options, negative_prompt="") for p in pictures}) > 1:
        raise UserError(
            f"--interpolate goes from picture to picture of the same options, and here "
            f"{len(pictures)} are asked for. Give several prompts or seeds."
        )
    if config.save_latents or config.preview_every:
        raise UserError("--save-latents and --preview-every are not for --interpolate.")
    check_film(config.video, config.fps)
    frames, task = frames_between(studio.requests(pictures), config.interpolate), jobs[0][1]
    make_folder(config.out)
    total = len(frames) * pictures[0].options.sampling().network_calls(task)
    with progress_counter("sampling", total, "image steps") as count:
        latents = studio.draw(frames, pictures[0], task, count)
    images = [studio.pipeline.to_picture(z, task) for z in latents]
    how = {name: getattr(config, name) for name in ("interpolate", "video", "fps")}
    record = film_record(recorded(config, studio, pictures[0]), pictures, **how)
    content = WRITERS[config.video](images, config.fps, record)
    path = write_one(config, config.name, SUFFIXES[config.video], content, **named(pictures[0]))
    print(f"wrote {path}: {len(frames)} frames")
    return path


def as_recorded(config: Config) -> tuple[Config, list[Line], dict[str, Any]]:
    """The picture of --from-png instead of prompts, and the model that it was drawn with."""
    if config.prompt or config.prompts is not None:
        raise UserError("--from-png draws the picture of the file again; give no prompts.")
    lines, record = lines_from(config.from_png, config.options)
    model = config.model or (Path(record["model"]) if "model" in record else None)
    used = {"ema": record.get("ema", False), "dtype": record.get("dtype", "fp32")}
    kept = ("interpolate", "video", "fps", "batch_size", "compile")
    used |= {name: record[name] for name in kept if name in record}
    if "lora" in record and config.lora is None:
        used |= {"lora": Path(record["lora"]), "lora_scale": record["lora_scale"]}
    return replace(config, model=model, options=lines[0].options, **used), lines, record


def open_studio(config: Config) -> Studio:
    model = config.model
    if model is None:
        model = DEMO
        print(f"no --model is given, so the demo's: {DEMO}")
    return Studio(
        model,
        pick_device(config.device),
        ema=config.ema,
        dtype=config.dtype,
        compiled=config.compile,
        batch_size=config.batch_size,
        adapt=partial(adapt, config) if config.lora is not None else None,
    )


def adapt(config: Config, pipeline: TextToImage) -> dict[str, str]:
    apply_lora(pipeline, config.lora, config.lora_scale)
    return {"lora": sha256_of(find_lora(config.lora))}


def named(picture: Picture) -> dict[str, Any]:
    """What may stand in a name."""
    options = picture.options
    return {
        "seed": picture.seed,
        "prompt": picture.prompt,
        "sampler": options.sampler,
        "steps": options.steps,
    }


def write_one(config: Config, pattern: str, suffix: str, content: bytes, **fields: Any) -> Path:
    (path,) = plan_names(config.out, pattern, [suffix], [fields])
    return write_new(path, suffix, content)


if __name__ == "__main__":
    run_main(main)
