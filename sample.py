"""python sample.py "red heart" "woman astronaut" -n 4 --seed 0 --out samples

Generates images from a trained model: OUT/00000.png, 00001.png, ... No file is overwritten.
Image k of a call uses seed + k, so it can be generated again alone. Every file records how it was
made, and --reproduce FILE generates the same image from that record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from PIL import Image

from foundation.errors import UserError
from generation.metadata import SUFFIXES, encode_image, hash_input_file, make_video_record
from generation.options import GenerationOptions
from generation.output import ImageWriter, Previews, model_pixel_format, plan_names, write_new
from generation.prompts import ImageSpec, PromptEntry, expand, read_prompts
from generation.reproduce import check_hashes, compare_pixels, entries_of_record
from generation.session import GenerationSession
from generation.video import ENCODERS, check_video_format, insert_frames
from interop.lora import find_lora
from ldm import TextToImage
from stages.lora import apply_lora
from training.cli import parse, pick_device, run_main
from training.flags import Bound, Finite, Groups, NonNegative, Positive, flag_name
from training.logging.image_grid import image_grid, pil_to_tensor
from training.logging.progress import progress_counter
from training.run import make_folder

Prompts = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT ...]")]
DEMO = Path("checkpoints/demo")
NEEDED = {"video": "interpolate", "fps": "interpolate", "lora_scale": "lora"}
RECORDED = ("interpolate", "video", "fps", "batch_size", "compile")  # flags that a record may hold


@dataclass(frozen=True, kw_only=True)
class Config:
    RENAMED: ClassVar[Mapping[str, str]] = {"from_png": "reproduce"}
    GROUPS: ClassVar[Groups] = {
        "prompts": ("prompt", "prompts", "reproduce"),
        "model": ("model", "lora", "lora_scale", "ema"),
        "images": ("options",),
        "output": (
            *("out", "name", "format", "quality", "grid", "save_latents", "preview_every"),
            *("interpolate", "video", "fps"),
        ),
        "machine": ("device", "dtype", "batch_size", "compile"),
    }

    prompt: Prompts = ()  # texts to generate images from
    # file with one prompt per line; in a .jsonl file, lines may set the options of an image
    prompts: Path | None = None
    reproduce: Path | None = None  # image or video to generate again, as recorded in its file
    # run folder of train_ldm.py, pipeline folder or single file; left out: checkpoints/demo
    model: Path | None = None
    lora: Path | None = None  # LoRA to add: a run folder of train_ldm.py --lora, a folder or a file
    lora_scale: Finite = 1.0  # factor of the LoRA
    ema: bool = False  # use the averaged U-Net of a single file that holds two
    options: GenerationOptions = field(default_factory=GenerationOptions)

    out: Path = Path("samples")  # output folder
    # file names, from {number}, {seed}, {prompt}, {sampler} and {steps}
    name: str = "{number:05d}"
    # file format; models trained on other than 8-bit images write .png or .npy
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Bound(lambda x: 1 <= x <= 100, "from 1 to 100")] = 95  # JPEG, WebP only
    grid: bool = True  # also write all images side by side, as grid-0000
    save_latents: bool = False  # also write the latents of each image, as safetensors
    # network calls between previews, which are written to OUT/previews; 0 writes none
    preview_every: NonNegative[int] = 0
    # write a video instead, with this many frames from each image to the next
    interpolate: NonNegative[int] = 0
    video: Literal["gif", "mp4"] = "gif"  # format of the video; mp4 needs PyAV
    fps: Positive[float] = 12.0  # frames per second of the video

    device: str = "auto"  # cpu, cuda or mps; auto: a GPU if there is one
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"  # precision of the U-Net
    # images generated at once; left out: 16, on a CPU few; on a CPU it affects the last bits
    batch_size: Positive[int] | None = None
    compile: bool = False  # compile the U-Net: takes a minute for each new size, then is faster


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    config.options.check()
    check(config)
    if config.reproduce is not None:
        reproduce(config, config.reproduce)
        return
    images = expand(read_entries(config))
    session = open_session(config)
    session.print_notes(images)
    generate(config, session, images)


def check(config: Config) -> None:
    """Raise UserError for flags that would have no effect."""
    for name, needed in NEEDED.items():
        given, needed_given = (getattr(config, x) != getattr(Config, x) for x in (name, needed))
        if given and not needed_given:
            raise UserError(f"{flag_name(name)} needs {flag_name(needed)}, which is not given.")
    if config.quality != Config.quality and (config.format == "png" or config.interpolate):
        raise UserError("--quality is for --format jpeg and webp.")
    if config.interpolate and (config.save_latents or config.preview_every):
        raise UserError("--save-latents and --preview-every do not work with --interpolate.")


def read_entries(config: Config) -> list[PromptEntry]:
    """Return the prompts of the command line and of the prompt file."""
    entries = [PromptEntry(prompt, config.options) for prompt in config.prompt]
    if config.prompts is not None:
        entries += read_prompts(config.prompts, config.options)
    if not entries and config.options.guidance_scale == 0:
        entries = [PromptEntry("", config.options)]
    if not entries:
        raise UserError(
            'no prompt given. For example: python sample.py "red heart". For images without a '
            "prompt: --guidance-scale 0."
        )
    return entries


def open_session(config: Config) -> GenerationSession:
    """Open the model, with the LoRA if one is given."""
    model, lora = config.model, config.lora
    if model is None:
        model = DEMO
        print(f"no --model given, so the demo is used: {DEMO}")
    lora_record = {"lora": str(lora), "lora_scale": config.lora_scale}
    return GenerationSession(
        model,
        pick_device(config.device),
        ema=config.ema,
        dtype=config.dtype,
        compiled=config.compile,
        batch_size=config.batch_size,
        modify=None if lora is None else partial(add_lora, lora, config.lora_scale),
        extra_record=None if lora is None else lora_record,
    )


def add_lora(source: Path, scale: float, pipeline: TextToImage) -> dict[str, str]:
    """Add a LoRA to the U-Net's weights; return its sha256."""
    apply_lora(pipeline, source, scale)
    return {"lora": hash_input_file(find_lora(source))}


def reproduce(config: Config, file: Path) -> None:
    """Generate the image or video of a file again, and compare the pixels."""
    if config.prompt or config.prompts is not None:
        raise UserError("--reproduce takes the prompt from the file; give no prompts.")
    if config.interpolate:
        raise UserError("--reproduce takes --interpolate from the file; leave it out.")
    entries, record = entries_of_record(file, config.options)
    settings: dict[str, Any] = {name: record[name] for name in RECORDED if name in record}
    settings |= {"ema": record.get("ema", False), "dtype": record.get("dtype", "fp32")}
    if config.model is None and "model" in record:
        settings["model"] = Path(record["model"])
    if config.lora is None and "lora" in record:
        settings |= {"lora": Path(record["lora"]), "lora_scale": record["lora_scale"]}
    config = replace(config, options=entries[0].options, **settings)
    check(config)
    images = expand(entries)
    session = open_session(config)
    check_hashes(record, session.weight_hashes(images[0].options), file)
    session.print_notes(images)
    compare_pixels(generate(config, session, images), file)


def generate(config: Config, session: GenerationSession, images: Sequence[ImageSpec]) -> Path:
    """Write the images and their grid, or the video; return the path of the first file."""
    if config.interpolate:
        return generate_video(config, session, images)
    generated, first = generate_images(config, session, images)
    if config.grid and len(generated) > 1:
        write_grid(config, generated)
    return first


def generate_images(
    config: Config, session: GenerationSession, images: Sequence[ImageSpec]
) -> tuple[list[Image.Image], Path]:
    """Generate images and write each group when it is ready; return the first one's path, too."""
    groups = session.plan(images)
    writer = open_writer(config, session)
    if not writer.eight_bit and any(image.options.input_files() for image in images):
        raise UserError(
            "input images are read with 8 bits, and this model was trained on "
            f"{writer.pixels.dtype}. Generate from prompts alone."
        )
    fields = [image.name_fields() for image in images]
    paths = plan_names(config.out, config.name, writer.suffixes, fields)
    make_folder(config.out)
    generated: list[Image.Image] = []
    total = sum(group.network_calls for group in groups)
    with progress_counter("sampling", total, "image steps") as count:
        for group in groups:
            first = len(generated)
            group_paths = paths[first : first + len(group.images)]
            preview = Previews(session.pipeline, config.out, group_paths, config.preview_every)
            requests = session.requests(group.images)
            latents = session.generate(requests, group.options, group.task, count, preview)
            for image, path, z in zip(group.images, group_paths, latents, strict=True):
                generated.append(writer.write(path, z, group.task, session.record(image)))
    more = f" ... {paths[-1].name}" if len(paths) > 1 else ""
    print(f"wrote {paths[0]}{more}{writer.suffix}")
    return generated, paths[0].with_name(paths[0].name + writer.suffix)


def open_writer(config: Config, session: GenerationSession) -> ImageWriter:
    return ImageWriter(
        session.pipeline,
        model_pixel_format(session.model),
        file_format=config.format,
        quality=config.quality,
        save_latents=config.save_latents,
    )


def write_grid(config: Config, images: Sequence[Image.Image]) -> None:
    """Write images side by side, a row per prompt, if they have the same size and mode."""
    if len({(image.size, image.mode) for image in images}) > 1:
        return
    count = config.options.count
    columns = count if 1 < count < len(images) else int(len(images) ** 0.5)
    content = encode_image(
        image_grid(pil_to_tensor(images), columns), {}, config.format, config.quality
    )
    (path,) = plan_names(config.out, "grid-{number:04d}", [SUFFIXES[config.format]], [{}])
    print(f"wrote {write_new(path, SUFFIXES[config.format], content)}")


def generate_video(config: Config, session: GenerationSession, images: Sequence[ImageSpec]) -> Path:
    """Write a video that changes from each image to the next; return its path."""
    groups = session.plan(images)
    if len(images) < 2 or len({replace(im.options, negative_prompt="") for im in images}) > 1:
        raise UserError(
            "--interpolate needs two or more images with the same options, and there are "
            f"{len(images)} here. Give several prompts or seeds."
        )
    check_video_format(config.video, config.fps)
    options, task = images[0].options, groups[0].task
    frames = insert_frames(session.requests(images), config.interpolate)
    make_folder(config.out)
    total = len(frames) * options.sampling().network_calls(task)
    with progress_counter("sampling", total, "image steps") as count:
        latents = session.generate(frames, options, task, count)
    pictures = [session.pipeline.to_picture(z, task) for z in latents]
    settings: dict[str, Any] = {x: getattr(config, x) for x in ("interpolate", "video", "fps")}
    record = make_video_record(session.record(images[0]), images, **settings)
    content, suffix = ENCODERS[config.video](pictures, config.fps, record), SUFFIXES[config.video]
    (path,) = plan_names(config.out, config.name, [suffix], [images[0].name_fields()])
    path = write_new(path, suffix, content)
    print(f"wrote {path}: {len(frames)} frames")
    return path


if __name__ == "__main__":
    run_main(main, Config)
