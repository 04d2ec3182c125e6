"""python sample.py "red heart" "woman astronaut" --model runs/ldm -n 4 --seed 0 --out samples

Draws pictures from a trained model: OUT/00000.png, 00001.png, ... and never over an older one.
Picture k of a call uses seed + k, so it can be drawn again alone. Every PNG says how it was made.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

import autoencoder.files
from imagetext.images import to_uint8
from imagetext.pixel_format import PixelFormat, recorded_format
from imagetext.write_images import file_ending, to_file
from ldm import TextToImage
from ldm.files import read_model_provenance
from ldm.guidance import Guidance
from ldm.sampling import Sampling
from stages.lora import apply_lora
from training.bounds import Finite, Positive, Seed, Share
from training.cli import parse, pick_device, run_main
from training.grid import grid, pixels_of
from training.run import make_folder

Prompts = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT ...]")]


@dataclass(frozen=True, kw_only=True)
class Config:
    prompt: Prompts = ()  # what to draw, one picture or more of each
    prompts: Path | None = None  # a text file with one prompt a line, drawn after those given
    model: Path  # a run folder of train_ldm.py, a pipeline folder, or a single file
    lora: Path | None = None  # a run of train_ldm.py --lora, a folder or file, added to the model
    lora_scale: Finite = 1.0  # how many times it is added
    ema: bool = False  # of a single file with two U-Nets, take the one averaged in training
    out: Path = Path("samples")  # folder for the PNG files
    count: Annotated[Positive[int], tyro.conf.arg(aliases=["-n"])] = 1  # pictures of each prompt
    negative_prompt: str = ""  # what guidance leads away from
    steps: int = 25  # network evaluations per picture
    guidance_scale: Finite = 4.0  # 0 ignores the prompt, 1 follows it plainly, above 1 harder
    guidance_rescale: Share = 0.0  # above 0 against the overexposure of high scales; 0.7 is usual
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # guided there only; 0 clean, 1 noise
    sampler: str = "dpmpp_2m"  # of those in ldm/samplers; an unknown name lists them
    eta: float | None = None  # share of fresh noise, for ddim, euler_a, dpmpp_2m_sde, dpmpp_3m_sde
    spacing: str = "trailing"  # of the steps: trailing, leading, linspace, karras, exponential
    times: tuple[float, ...] | None = None  # the steps' times instead, from 999 (noise) down
    seed: Seed = 0  # of the first picture; picture k uses seed + k
    height: int | None = None  # pixels; the size trained on when left out
    width: int | None = None  # pixels
    batch_size: Positive[int] = 16  # pictures drawn at once on an accelerator; changes no picture
    grid: bool = True  # also write all pictures side by side, grid-0000.png
    device: str = "auto"  # cpu, cuda, mps; auto takes what is there


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    prompts = [text for text in read_prompts(config) for _ in range(config.count)]
    sampling = how(config)
    device = pick_device(config.device)
    pipeline = TextToImage.load(config.model, device, config.ema)
    if config.lora is not None:
        apply_lora(pipeline, config.lora, config.lora_scale)
    pipeline.latent_shape(config.height, config.width)
    warn_of_cut_prompts(pipeline, [*prompts, config.negative_prompt])
    warn_of_guidance(config)
    told = read_model_provenance(config.model), autoencoder.files.read_provenance(config.model)
    pixels = recorded_format(*told)
    deep = not pixels.eight_bit or pipeline.autoencoder.config.out_channels not in (1, 3, 4)
    make_folder(config.out)
    total = len(prompts) * sampling.calls()
    with tqdm(total=total, desc="sampling", unit=" image steps", dynamic_ncols=True) as bar:
        pictures = pipeline(
            prompts,
            negative_prompt=config.negative_prompt,
            sampling=sampling,
            seed=config.seed,
            height=config.height,
            width=config.width,
            batch_size=config.batch_size,
            progress=bar.update,
            numbers=deep,
        )
    write = partial(write_numbers, pixels=pixels) if deep else write_picture
    files = [
        write(config.out, picture, made_by=settings(config, text, config.seed + k))
        for k, (picture, text) in enumerate(zip(pictures, prompts, strict=True))
    ]
    print(f"wrote {files[0]}" + (f" ... {files[-1].name}" if len(files) > 1 else ""))
    if config.grid and len(pictures) > 1:
        columns = config.count if 1 < config.count < len(pictures) else int(len(pictures) ** 0.5)
        shown = to_uint8(torch.stack(pictures)) if deep else pixels_of(pictures)
        sheet = grid(shown, columns)
        print(f"wrote {write_numbered(config.out, 'grid-{:04d}.png', png(sheet, {}))}")


def how(config: Config) -> Sampling:
    """The flags that say how to sample; wrong ones are refused here."""
    return Sampling(
        sampler=config.sampler,
        steps=config.steps,
        spacing=config.spacing,
        times=config.times,
        eta=config.eta,
        guidance=Guidance(
            scale=config.guidance_scale,
            rescale=config.guidance_rescale,
            interval=config.guidance_interval,
        ),
    )


def read_prompts(config: Config) -> list[str]:
    """The prompts of the command line, then those of the file."""
    prompts = list(config.prompt)
    if config.prompts is not None:
        try:
            lines = config.prompts.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ValueError(
                f"--prompts {config.prompts} cannot be read ({reason}). It must be a text file in "
                "UTF-8 with one prompt a line."
            ) from error
        written = [line.strip() for line in lines if line.strip()]
        if not written:
            raise ValueError(f"{config.prompts} has no prompts in it; write one a line.")
        prompts += written
    if not prompts:
        raise ValueError(
            'no prompt given. For example: python sample.py "red heart" --model runs/ldm'
        )
    return prompts


def warn_of_cut_prompts(pipeline: TextToImage, prompts: Sequence[str]) -> None:
    encoder = pipeline.text_encoder
    for text in dict.fromkeys(prompts):
        needed = encoder.count_tokens(text)
        if needed > encoder.tokens:
            print(
                f"warning: {needed} tokens, but this model reads {encoder.tokens}; "
                f"the end is cut: {text!r}"
            )


def warn_of_guidance(config: Config) -> None:
    """Guidance leads away from the empty prompt, which a model learns by caption dropout alone."""
    trained = read_model_provenance(config.model).get("config", {})
    if trained.get("caption_dropout") == 0 and config.guidance_scale != 1:
        print(
            f"warning: {config.model} was trained with --caption-dropout 0, so it does not know "
            "the empty prompt that guidance leads away from. Use --guidance-scale 1."
        )


def settings(config: Config, prompt: str, seed: int) -> dict:
    """All that is needed to draw the picture again; of the rarer flags those that were given."""
    rarer = ("ema", "guidance_rescale", "guidance_interval", "eta", "spacing", "times")
    given = {name: getattr(config, name) for name in rarer}
    if config.lora is not None:
        given |= {"lora": str(config.lora), "lora_scale": config.lora_scale}
    usual = {field.name: field.default for field in fields(config)}
    return {
        "prompt": prompt,
        "negative_prompt": config.negative_prompt,
        "seed": seed,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "sampler": config.sampler,
        "height": config.height,
        "width": config.width,
        "model": str(config.model),
        **{name: value for name, value in given.items() if value != usual[name]},
    }


def write_picture(folder: Path, picture: Image.Image, made_by: dict) -> Path:
    return write_numbered(folder, "{:05d}.png", png(picture, made_by))


def write_numbers(folder: Path, image: Tensor, made_by: dict, pixels: PixelFormat) -> Path:
    """In the numbers of the files that the model was trained on."""
    ending = file_ending(pixels, len(image))
    path = next_path(folder, "{:05d}" + ending)
    return to_file(image, path, pixels, texts(made_by))


def texts(made_by: dict) -> dict[str, str]:
    """`parameters` is what viewers show; `latentsmith` the same for programs."""
    rest = {k: v for k, v in made_by.items() if k != "prompt" and v not in (None, "")}
    readable = ", ".join(f"{k}: {v}" for k, v in rest.items())
    return {
        "parameters": f"{made_by['prompt']}\n{readable}",
        "latentsmith": json.dumps(made_by, ensure_ascii=False),
    }


def png(picture: Image.Image, made_by: dict) -> bytes:
    info = PngInfo()
    for name, text in texts(made_by).items() if made_by else ():
        info.add_itxt(name, text)
    buffer = BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def next_path(folder: Path, pattern: str) -> Path:
    """With the number after the highest one there, so a deleted file frees no name in use."""
    like = re.compile(re.sub(r"\{:0\d+d\}", r"(\\d+)", pattern.replace(".", r"\.")))
    numbers = [int(m[1]) for file in folder.iterdir() if (m := like.fullmatch(file.name))]
    return folder / pattern.format(max(numbers, default=-1) + 1)


def write_numbered(folder: Path, pattern: str, content: bytes) -> Path:
    path = next_path(folder, pattern)
    with path.open("xb") as file:  # x: fails rather than overwrites
        try:
            file.write(content)
            file.flush()
        except OSError:  # a full disk: no half picture stays behind
            path.unlink()
            raise
    return path


if __name__ == "__main__":
    run_main(main)
