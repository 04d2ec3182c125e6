"""python benchmarks/rehearse_presets.py --out rehearsal

Every preset's three trainings by their scripts, for a few steps on a CPU, with networks an eighth
as wide: each is killed, resumed and ended, and the last one's model draws a picture. Size, depth,
factor, losses, schedule and all other settings are those of the preset. It prints a table, and
fails if a stage does not train, save, resume, or draw.

LPIPS is that of SqueezeNet, with random weights, and batches are of two or four images.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from foundation.errors import UserError
from stages.flags.autoencoder import PRESETS
from training.cli import answer_early, parse, run_main


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path  # folder of the runs; it must not exist
    presets: tuple[str, ...] = tuple(PRESETS)  # those to rehearse


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch
from PIL import Image

import sample
import train_clip
import train_ldm
import train_vae
from autoencoder.model import PRESETS as AUTOENCODERS
from autoencoder.model import Autoencoder
from benchmarks.gpu_parts.small_data import make_squares
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet
from stages.autoencoder import AutoencoderTrainer
from stages.clip import ClipTrainer
from stages.diffusion import DiffusionTrainer

NARROWER, GROUPS = 8, 4  # widths are divided by the one; of the other there are so many
STEPS, SAVED = 3, 2  # of each training, and those after which it is killed
STAGES = {"clip": train_clip, "vae": train_vae, "ldm": train_ldm}
TRAINERS = {"clip": ClipTrainer, "vae": AutoencoderTrainer, "ldm": DiffusionTrainer}
CLIP_OF = {"sd15": "base-512"}  # presets without a stage 0 of their own
ROW = "| {:9} | {:11} | {:>6} | {:>8} | {:>7} | {}"


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    unknown = sorted({*config.presets} - {*PRESETS})
    if unknown:
        raise UserError(f"there is no preset {unknown[0]!r}; there are {', '.join(PRESETS)}.")
    if config.out.exists():
        raise UserError(f"{config.out} exists; a rehearsal begins anew. Give another --out.")
    data = make_squares(config.out / "data", 24, size=64)
    print(ROW.format("preset", "stage", "pixels", "million", "seconds", "result |"))
    print("|---|---|---|---|---|---|", flush=True)
    failed = [
        f"{preset}, {stage}"
        for preset in config.presets
        for stage in rehearse(preset, data, config.out / preset)
    ]
    if failed:
        raise UserError(f"these did not pass: {'; '.join(failed)}. {config.out} has their logs.")


def rehearse(preset: str, data: Path, out: Path) -> list[str]:
    """Do the three stages and draw a picture; print a row for each, and return those that failed.

    One that fails ends the preset, since the next ones need what it makes.
    """
    out.mkdir()
    calls: dict[str, Callable[[], str]] = {
        stage: lambda stage=stage: train(stage, preset, data, out) for stage in STAGES
    }
    calls["picture"] = lambda: draw(preset, out)
    for stage, call in calls.items():
        started = time.perf_counter()
        log = out / f"{stage}.log"
        try:
            with (
                log.open("w", encoding="utf-8") as file,
                redirect_stdout(file),
                redirect_stderr(file),
                narrow_networks(),
            ):
                result = call()
        except (Exception, SystemExit) as error:
            with log.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            result = f"FAILED: {' '.join(str(error).split())[:200]}"
        seconds = f"{time.perf_counter() - started:.0f}"
        weights = f"{count_weights(stage, preset) / 1e6:.1f}" if stage in STAGES else ""
        print(
            ROW.format(preset, stage, pixels(stage, preset), weights, seconds, f"{result} |"),
            flush=True,
        )
        if result.startswith("FAILED"):
            return [stage]
    return []


def train(stage: str, preset: str, data: Path, out: Path) -> str:
    """Train, die after some steps, and run the same command again; return what was found."""
    script, run = STAGES[stage], out / stage
    command = [str(word) for word in flags(stage, preset, data, out)]
    dies = patch.object(TRAINERS[stage], "step", dying(TRAINERS[stage].step))
    with dies, suppress(MemoryError):
        script.main(command)
    saved = sorted(path.name for path in (run / "state").iterdir())
    if len(saved) != 1 or not saved[0].endswith(f"{SAVED}") or (run / "model").exists():
        raise ValueError(f"after it was killed, {run} has the states {saved}")
    done: list[int] = []
    with patch.object(TRAINERS[stage], "step", counting(TRAINERS[stage].step, done)):
        script.main(command)
    if done != list(range(SAVED, STEPS)) or not (run / "model").is_dir():
        raise ValueError(f"the second call did the steps {done}, and {run} has no model")
    return f"{SAVED} steps, killed, resumed to {STEPS}, model written"


def flags(stage: str, preset: str, data: Path, out: Path) -> list[object]:
    """Return the command of a training: its preset, with few and small batches."""
    name = CLIP_OF.get(preset, preset) if stage == "clip" else preset
    words: list[object] = ["--preset", name, "--data", data, "--out", out / stage]
    words += ["--device", "cpu", "--steps", STEPS, "--save-every", SAVED]
    words += ["--evaluate-every", STEPS, "--log-every", 1, "--held-out", 0.2, "--warmup", 1]
    words += ["--batch-size", 4 if stage == "clip" else 2]
    settings: dict[str, Any] = module_presets(STAGES[stage])[name]
    if settings.get("accumulate", 1) > 1:
        words += ["--accumulate", 2]
    if stage == "vae" and "loss" not in settings:  # that with discriminator and LPIPS
        words += ["--discriminator-width", 16, "--perceptual", "squeeze"]
    if stage == "ldm":
        words += ["--vae", out / "vae", "--text-encoder", out / "clip"]
        words += ["--preview-prompts", "a red square"]
    return words


def module_presets(script: ModuleType) -> dict[str, Any]:
    return vars(script)["PRESETS"]


def dying(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that fails after those that are saved."""

    def die(trainer: Any, number: int) -> Any:
        if number == SAVED:
            raise MemoryError
        return step(trainer, number)

    return die


def counting(step: Callable[..., Any], done: list[int]) -> Callable[..., Any]:
    """Return a step that notes its number, and whose loss must be finite."""

    def count(trainer: Any, number: int) -> Any:
        metrics = step(trainer, number)
        if metrics["step_applied"] != 1:
            raise ValueError(f"step {number} was skipped: {metrics}")
        done.append(number)
        return metrics

    return count


def draw(preset: str, out: Path) -> str:
    """Draw a picture in two steps; return its size."""
    command = ["a red square", "--model", out / "ldm", "--out", out / "pictures", "--steps", 2]
    sample.main([str(word) for word in (*command, "--device", "cpu")])
    (file,) = (out / "pictures").glob("*.png")
    with Image.open(file) as picture:
        if picture.size != (pixels("ldm", preset),) * 2:
            raise ValueError(f"the picture has {picture.size} pixels")
    return "drawn in 2 steps"


def pixels(stage: str, preset: str) -> int:
    """Return the side of the images that a stage sees, or of the picture."""
    if stage == "clip":
        return CLIPS[CLIP_OF.get(preset, preset)]["vision_cfg"]["image_size"]
    return module_presets(STAGES.get(stage, train_ldm))[preset].get("size", 64)


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Make the networks of all presets narrow, and LPIPS one of random weights."""
    clips = {name: narrow_clip(config) for name, config in CLIPS.items()}
    autoencoders, unets = (
        {
            name: replace(
                config,
                block_out_channels=narrower(config.block_out_channels),
                norm_num_groups=GROUPS,
            )
            for name, config in presets.items()
        }
        for presets in (AUTOENCODERS, UNETS)
    )
    from autoencoder.training import lpips

    with (
        patch.dict(CLIPS, clips),
        patch.dict(AUTOENCODERS, autoencoders),
        patch.dict(UNETS, unets),
        patch.object(lpips, "backbone_weights", lambda net: None),
        patch.object(lpips, "load_backbone", lambda network, weights: None),
    ):
        yield


def narrower(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(GROUPS, width // NARROWER) for width in widths)


def narrow_clip(config: dict[str, Any]) -> dict[str, Any]:
    """Return a CLIP of the same depth and sizes whose towers are narrow."""
    narrow = deepcopy(config)
    narrow["embed_dim"] = 64
    narrow["vision_cfg"]["width"] = 8
    narrow["text_cfg"] |= {"width": 32, "heads": 1}
    return narrow


def count_weights(stage: str, preset: str) -> int:
    """Count the weights of the narrow network."""
    with torch.device("meta"), narrow_networks():
        network: torch.nn.Module
        if stage == "clip":
            network = Clip(CLIPS[CLIP_OF.get(preset, preset)])
        elif stage == "vae":
            network = Autoencoder(AUTOENCODERS[preset])
        else:
            network = UNet(replace(UNETS[preset], cross_attention_dim=32))
    return sum(weight.numel() for weight in network.parameters())


if __name__ == "__main__":
    run_main(main, Config)
