"""python docs/make_figures.py --only guidance walk

Draws the figures of docs/how-it-works.md and README.md into docs/figures, by the weights in
checkpoints/demo. All of them take two minutes on a CPU. Nothing is chosen by its looks: seeds count
from 0, and the prompts are those below and in docs/showcase-prompts.txt.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image, ImageDraw, ImageFont

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # runs from the checkout, uninstalled

from foundation.errors import unknown_name
from foundation.shapes import Latents, Timesteps
from generation.video import insert_frames
from ldm import TextToImage
from ldm.config import ScheduleConfig
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from ldm.samplers import NoiseLevels, dpmpp_2m
from ldm.schedule import make_schedule
from training.cli import parse, run_main
from training.flags import Groups
from training.logging.image_grid import image_grid, pil_to_tensor
from training.tools.curves import line_chart

DOCS = Path(__file__).resolve().parent
MODEL = DOCS.parent / "checkpoints" / "demo"
PROMPTS = ("woman astronaut", "angry face", "three o'clock", "person biking")
SCALES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # of guidance
STEPS = 25
SHOWN_STEPS = (0, 2, 4, 6, 8, 12, 16, 20, 24)
NOISED = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)  # timesteps
SHIFTS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # in standard deviations of a channel
SHOWCASE_COLUMNS = 12
FRAMES = 8  # of a walk
ENLARGED = 2  # times; a whole number keeps the pixels as the model drew them
LABEL_HEIGHT, LABEL_SIZE = 18, 12  # pixels
SCHEDULES = {  # name of the line -> schedule
    "scaled_linear (SD 1.x)": ScheduleConfig(),
    "linear (DDPM)": ScheduleConfig(noise_schedule="linear", beta_start=1e-4, beta_end=0.02),
    "cosine": ScheduleConfig(noise_schedule="cosine"),
    "scaled_linear, zero terminal SNR": ScheduleConfig(zero_terminal_snr=True),
    "flow": ScheduleConfig(noise_schedule="flow"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    GROUPS: ClassVar[Groups] = {"figures": ("only", "out")}

    only: tuple[str, ...] = ()  # names of figures; left out: all of them
    out: Path = DOCS / "figures"  # folder to write


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    for name in config.only:
        if name not in FIGURES:
            raise unknown_name(name, list(FIGURES), "figure")
    config.out.mkdir(parents=True, exist_ok=True)
    pipeline = TextToImage.load(MODEL)
    for name in config.only or FIGURES:
        FIGURES[name](pipeline, config.out)
        print(f"drew {name}")


# Charts -------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_schedules(pipeline: TextToImage, out: Path) -> None:
    """Draw alpha_t of each schedule, and log10 of alpha_t^2 / sigma_t^2."""
    times = torch.arange(0, 1000, 5, dtype=torch.float64)
    scales = {name: make_schedule(config).exact(times) for name, config in SCHEDULES.items()}
    alphas = {name: points(times, alpha) for name, (alpha, _) in scales.items()}
    ratios = {
        name: points(times[1:], 2 * (alpha / sigma)[1:].log10().clamp(min=-5))
        for name, (alpha, sigma) in scales.items()
    }
    for file, title, lines in (
        ("schedules-alpha.svg", "alpha: how much of the clean latents is left", alphas),
        ("schedules-snr.svg", "log10 of the signal to noise ratio", ratios),
    ):
        chart = line_chart(title, lines, x_label="t: from clean to noise")
        (out / file).write_text(chart + "\n", encoding="utf-8")


def points(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


# Pictures -----------------------------------------------------------------------------------------


def draw_showcase(pipeline: TextToImage, out: Path) -> None:
    """Draw the prompts of a file, with the default options of sample.py."""
    prompts = (DOCS / "showcase-prompts.txt").read_text(encoding="utf-8").splitlines()
    sheet = image_grid(pil_to_tensor(pipeline(prompts)), SHOWCASE_COLUMNS)
    save(enlarged(sheet), out / "showcase.png")


def draw_guidance(pipeline: TextToImage, out: Path) -> None:
    """Draw prompts at several scales of guidance, each from the same noise."""
    seeds = [0] * len(PROMPTS)
    columns = [pipeline(PROMPTS, guidance_scale=scale, seed=seeds) for scale in SCALES]
    rows = list(zip(*columns, strict=True))
    save_table(rows, [f"{scale:g}" for scale in SCALES], out / "guidance.png")


@torch.no_grad()
def draw_denoising(pipeline: TextToImage, out: Path) -> None:
    """Draw what a sampler sees on its way: noisy latents, and estimates of the clean ones."""
    rows = []
    for prompt in PROMPTS[:2]:
        seen = denoise_in_steps(pipeline, prompt)
        for k in (0, 1):
            rows.append([pipeline.to_picture(seen[step][k]) for step in SHOWN_STEPS])
    save_table(rows, [f"step {step + 1}" for step in SHOWN_STEPS], out / "denoising.png")


def denoise_in_steps(pipeline: TextToImage, prompt: str) -> list[tuple[Latents, Latents]]:
    """Return z_t and the guided estimate of z_0 at each step."""
    denoiser = pipeline.make_denoiser()
    (cond, _), (uncond, _) = (pipeline.condition_on(text)[0] for text in (prompt, ""))
    estimate = denoiser.bind([uncond, cond])
    seen: list[tuple[Latents, Latents]] = []

    def denoise(z_t: Latents, t: Timesteps) -> Latents:
        z_uncond, z_cond = estimate(z_t, t).chunk(2)
        seen.append((z_t, z_uncond + 4 * (z_cond - z_uncond)))
        return seen[-1][1]

    noise = torch.randn(1, *latent_shape(pipeline), generator=torch.Generator().manual_seed(0))
    dpmpp_2m(denoise, noise, NoiseLevels(denoiser.schedule, STEPS))
    return seen


@torch.no_grad()
def draw_noising(pipeline: TextToImage, out: Path) -> None:
    """Draw z_t = alpha_t z_0 + sigma_t noise, decoded, for growing t."""
    schedule = pipeline.make_denoiser().schedule
    rows = []
    for picture in pipeline(PROMPTS)[:2]:
        z_0 = pipeline.encode(picture)
        noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
        row = []
        for t in NOISED:
            alpha, sigma = schedule(torch.tensor([t]))
            row.append(pipeline.to_picture(alpha * z_0 + sigma * noise))
        rows.append(row)
    save_table(rows, [f"t = {t}" for t in NOISED], out / "noising.png")


@torch.no_grad()
def draw_walk(pipeline: TextToImage, out: Path) -> None:
    """Draw two walks: from noise to other noise with one prompt, from prompt to prompt."""
    noises = pipeline.make_requests([PROMPTS[0]] * 2, seed=[0, 3])
    prompts = pipeline.make_requests([PROMPTS[0], "man farmer"], seed=[0, 0])
    sampling = Sampling(steps=STEPS, guidance=Guidance(scale=4.0))
    rows = []
    for ends in (noises, prompts):
        latents = pipeline.draw(list(insert_frames(ends, FRAMES - 1)), sampling)
        rows.append([pipeline.to_picture(z) for z in latents])
    labels = [f"{k / (FRAMES - 1):.2f}" for k in range(FRAMES)]
    save_table(rows, labels, out / "walk.png")


@torch.no_grad()
def draw_latents(pipeline: TextToImage, out: Path) -> None:
    """Draw pictures, the channels of their latents, and what is decoded from them."""
    rows = []
    for picture in pipeline(PROMPTS):
        z = pipeline.encode(picture)
        levels = (127.5 + 42 * z[0]).clamp(0, 255).to(torch.uint8)  # 3 standard deviations
        channels = [
            Image.fromarray(channel.numpy()).resize(picture.size, Image.Resampling.NEAREST)
            for channel in levels
        ]
        rows.append([picture, *(channel.convert("RGB") for channel in channels)])
        rows[-1].append(pipeline.to_picture(z))
    channels = [f"channel {k}" for k in range(len(rows[0]) - 2)]
    save_table(rows, ["picture", *channels, "decoded"], out / "latents.png")


@torch.no_grad()
def draw_channels(pipeline: TextToImage, out: Path) -> None:
    """Draw what changes if one channel of the latents is shifted at all positions."""
    z = pipeline.encode(pipeline(PROMPTS)[0])
    rows = []
    for channel in range(z.shape[1]):
        shifts = torch.zeros_like(z)
        shifts[:, channel] = 1
        rows.append([pipeline.to_picture(z + shift * shifts) for shift in SHIFTS])
    save_table(rows, [f"{shift:+g}" for shift in SHIFTS], out / "channels.png")


@torch.no_grad()
def draw_less(pipeline: TextToImage, out: Path) -> None:
    """Draw what is left if latents have fewer channels, or fewer positions."""
    rows = []
    for picture in pipeline(PROMPTS):
        z = pipeline.encode(picture)
        keep = [z.clone() for _ in range(z.shape[1])]
        for k, kept in enumerate(keep):
            kept[:, k + 1 :] = 0
        coarse = [
            torch.nn.functional.interpolate(
                torch.nn.functional.avg_pool2d(z, side), scale_factor=side, mode="nearest"
            )
            for side in (2, 4)
        ]
        rows.append([pipeline.to_picture(some) for some in (*reversed(keep), *coarse)])
    channels = [f"{k} of {z.shape[1]} ch." for k in range(z.shape[1], 0, -1)]
    save_table(rows, [*channels, "1/2 sides", "1/4 sides"], out / "less.png")


def latent_shape(pipeline: TextToImage) -> tuple[int, int, int]:
    return pipeline.latent_shape(pipeline.size, pipeline.size)


def save_table(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], file: Path) -> None:
    """Write pictures in rows, enlarged, with a label above each column."""
    pictures = [picture for row in rows for picture in row]
    sheet = enlarged(image_grid(pil_to_tensor(pictures), len(labels)))
    table = Image.new("RGB", (sheet.width, sheet.height + LABEL_HEIGHT), "white")
    table.paste(sheet, (0, LABEL_HEIGHT))
    draw, font = ImageDraw.Draw(table), ImageFont.load_default(LABEL_SIZE)
    for k, label in enumerate(labels):
        middle = sheet.width * (2 * k + 1) / (2 * len(labels))
        draw.text((middle, LABEL_HEIGHT / 2), label, fill="black", font=font, anchor="mm")
    save(table, file)


def enlarged(picture: Image.Image) -> Image.Image:
    size = (picture.width * ENLARGED, picture.height * ENLARGED)
    return picture.resize(size, Image.Resampling.NEAREST)


def save(picture: Image.Image, file: Path) -> None:
    picture.save(file, optimize=True)


FIGURES: dict[str, Callable[[TextToImage, Path], None]] = {
    "schedules": draw_schedules,
    "noising": draw_noising,
    "denoising": draw_denoising,
    "guidance": draw_guidance,
    "walk": draw_walk,
    "latents": draw_latents,
    "channels": draw_channels,
    "less": draw_less,
    "showcase": draw_showcase,
}

if __name__ == "__main__":
    run_main(main, Config)
