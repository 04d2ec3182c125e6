"""The report on an autoencoder: numbers, latents, robustness, and the worst reconstructions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from evaluation.estimates import paired_verdict
from evaluation.latents import LatentChannel, name_dead_channels
from stages.evaluation.autoencoder import (
    BASELINES,
    BETTER,
    AutoencoderMeasurement,
    channel_rows,
    describe_autoencoder,
)
from stages.evaluation.reconstruction import compare
from stages.evaluation.report import Report, library_versions, write_report
from training.logging.image_grid import image_grid
from training.tools.curves import line_chart
from training.tools.page import number_table, picture

LARGEST_PANEL = 256  # pixels of a picture on the page; larger ones are shrunk
GRID = 8  # reconstructions of the first images, above the worst


def report_autoencoder(
    measured: AutoencoderMeasurement, name: str, provenance: Mapping[str, Any], out: Path
) -> Report:
    """Make metrics of the numbers on disk, and write JSON and page. Call it on rank 0 alone."""
    metrics, baselines = measured.metrics()
    channels, curve = measured.channels(), measured.robustness()
    worst, per_image = measured.worst(), measured.per_image()
    names = [str(measured.images.pairs.paths[k]) for k in worst]
    report = Report(
        kind="autoencoder",
        name=name,
        protocol=measured.protocol,
        model=describe_autoencoder(measured.autoencoder, dict(provenance)),
        versions=library_versions(),
        metrics=metrics,
        baselines=baselines,
        missing=measured.missing,
        remarks=remarks(measured, channels),
        tables={
            "channels": channel_rows(channels),
            "robustness": [{"noise": x, "psnr": y} for x, y in curve],
            "worst": [
                {"file": file, **{key: values[k] for key, values in per_image.items()}}
                for file, k in zip(names, worst, strict=True)
            ],
        },
        per_image=per_image,
    )
    sections = [
        channels_section(report.tables["channels"]),
        robustness_section(curve, {k: v["psnr"].value for k, v in baselines.items()}),
        *pictures_sections(measured, worst, report.per_image),
    ]
    write_report(report, out, sections)
    return report


def remarks(measured: AutoencoderMeasurement, channels: Sequence[LatentChannel]) -> list[str]:
    """Return in words what the numbers say."""
    found = [baseline_verdict(measured, name) for name in ("bicubic", "jpeg")]
    bits = measured.latent_bits
    side = measured.transform.size
    config, small = measured.autoencoder.config, side // measured.autoencoder.factor
    found.append(
        f"The latents of an image are {config.latent_channels}x{small}x{small} numbers of 16 bits, "
        f"{bits // 8:,} bytes; the pixels are {config.in_channels * side * side:,} bytes. JPEG "
        "gets as many bits as the latents, its headers not counted."
    )
    rows = measured.blocks.names()
    if "jpeg_fits" in rows and not bool((fits := measured.blocks.rows("jpeg_fits")).all()):
        found.append(
            f"JPEG needs more bits than the latents even at its lowest quality for "
            f"{int((~fits.bool()).sum())} of {len(fits)} images; there it has more than its share."
        )
    found.append(name_dead_channels(channels))
    bits_of_kl = sum(channel.kl for channel in channels) * small**2 / math.log(2)
    found.append(f"The KL of the latents is {bits_of_kl:,.0f} bits an image.")
    smaller = int((measured.images.pairs.column("width") < side).sum())
    if smaller:
        found.append(
            f"{smaller} of {len(measured.images.pairs)} images are smaller than {side} pixels and "
            "were enlarged. Enlarged images are smooth and easy to reconstruct: use a smaller size."
        )
    return [text for text in found if text]


def baseline_verdict(measured: AutoencoderMeasurement, name: str) -> str:
    """Return whether the reconstructions are nearer to the images than those of a baseline."""
    names = measured.blocks.names()
    words: list[str] = []
    for key, better in BETTER.items():
        if f"{name}/{key}" in names:
            pair = [measured.blocks.rows(k) for k in (f"{name}/{key}", key)]
            words.append(f"{key.upper()}: {paired_verdict(pair[0], pair[1], better)}")
    title = "bicubic resampling" if name == "bicubic" else BASELINES[name]
    return f"Compared with {title}: {'; '.join(words)}." if words else ""


def channels_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the latent channels."""
    head = ["channel", "KL in nats", "mean", "deviation", "kurtosis", "signal / noise"]
    cells = [
        [
            f"{row['channel']}{' (no information)' if row['dead'] else ''}",
            *(f"{row[key]:.4g}" for key in ("kl", "mean", "std", "kurtosis", "signal")),
        ]
        for row in rows
    ]
    return (
        "<h2>Latents</h2><p class=faint>KL to N(0, 1) per position. Means near 0, deviations near "
        "1 and a kurtosis near 3 are easy for a diffusion model. Signal / noise is the variance of "
        f"the posterior's mean by that of its noise.</p>{number_table(head, cells)}"
    )


def robustness_section(curve: Sequence[tuple[float, float]], baselines: Mapping[str, float]) -> str:
    """Return the curve of reconstructions from latents with noise."""
    references = {name: value for name, value in baselines.items() if name != "mean image"}
    chart = line_chart(
        "PSNR of reconstructions from noisy latents",
        {"PSNR": curve},
        x_label="standard deviation of the noise on the latents",
        references=references,
        dots=True,
    )
    return (
        "<h2>Robustness</h2><p class=faint>A diffusion model never hits latents exactly. The "
        "slower the curve falls, the more errors the decoder forgives.</p>"
        f"<div class=charts>{chart}</div>"
    )


def pictures_sections(
    measured: AutoencoderMeasurement, worst: Sequence[int], per_image: Mapping[str, list[float]]
) -> list[str]:
    """Return the first and the worst reconstructions next to their originals."""
    first = range(min(GRID, len(measured.images.pairs)))
    sections = []
    for title, numbers in (("Reconstructions", first), ("The worst reconstructions", worst)):
        figures: list[str] = []
        shown = measured.pictures_of(list(numbers))
        for number, (path, image, again) in zip(numbers, shown, strict=True):
            scores = ", ".join(f"{k.upper()} {v[number]:.4g}" for k, v in per_image.items())
            panels = three_panels(image, again)
            figures.append(picture(panels, path, f"{Path(path).name}: {scores}"))
        sections.append(
            f"<h2>{title}</h2><p class=faint>Image, reconstruction, halved difference on gray.</p>"
            f"<div class=pictures>{''.join(figures)}</div>"
        )
    return sections


def three_panels(
    image: UInt8[Tensor, "c h w"], reconstructed: UInt8[Tensor, "c h w"]
) -> Image.Image:
    """Return image, reconstruction and difference as one picture."""
    panels = compare(image[None], reconstructed[None])[0]
    side = max(panels.shape[-2:])
    if side > LARGEST_PANEL:
        scale = LARGEST_PANEL / side
        size = [max(1, round(scale * x)) for x in panels.shape[-2:]]
        small = torch.nn.functional.interpolate(panels.float(), size, mode="area")
        panels = small.round().to(torch.uint8)
    return image_grid(panels, columns=3)
