"""All stages together: from a data folder to a model that draws, as commands and as a plan."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from autoencoder import Autoencoder
from dataset.checking.planned_run import judge_batch
from dataset.folder import Folder
from dataset.report import find_problems, report_numbers
from dataset.table import PairList, split
from foundation.errors import UserError, unknown_name
from foundation.files import read_json
from stages.autoencoder import build_networks, describe_missing_backbone
from stages.build_unet import build_unet
from stages.clip import build_clip
from stages.condition import (
    ClassCondition,
    Condition,
    NoCondition,
    TextCondition,
    class_condition,
)
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.flags.clip import ClipTrainingConfig
from stages.flags.diffusion import ConditionName, DiffusionTrainingConfig
from stages.flags.tasks import TaskName
from stages.latents import cache_bytes
from stages.memory import autoencoder_work, clip_work, diffusion_work
from stages.plan import RunPlan, speed_of_run
from stages.preparation.data_check import TRAININGS, for_people
from stages.tasks.choice import make_task
from training.cli import parse
from training.config import TrainingConfig
from training.device import pick_device
from training.tools.memory_estimate import StepWork
from training.tools.run_folders import find_runs, script_of

FOLDERS = {"train_clip.py": "clip", "train_vae.py": "vae", "train_ldm.py": "ldm"}
TITLES = {"train_clip.py": "text encoder", "train_vae.py": "autoencoder", "train_ldm.py": "U-Net"}
ALL_PRESETS = tuple(
    name
    for name in TRAININGS["train_ldm.py"][1]
    if all(name in presets for _, presets in TRAININGS.values())
)


@dataclass(frozen=True)
class StageWork:
    """What a training computes. work: returns that of a step with other settings."""

    script: str
    config: TrainingConfig
    work: Callable[[Any], StepWork]
    condition: Condition
    vae: Autoencoder | None = None


@dataclass(frozen=True, kw_only=True)
class AllStages:
    """A training of all stages.

    Args:
        data: data folder.
        out: folder in which each stage gets a run folder.
        condition: what the model reads; a text encoder is trained for "text" alone.
        task: what the model draws from.
        steps, batch_size: script -> number; the others have those of the preset.
        skip_unusable: leave out images that cannot be read.
    """

    data: Path
    out: Path
    preset: str = "small-64"
    condition: ConditionName = "text"
    task: TaskName = "draw"
    steps: Mapping[str, int] = field(default_factory=dict[str, int])
    batch_size: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int = 0
    device: str = "auto"
    skip_unusable: bool = False

    def __post_init__(self):
        if self.preset not in ALL_PRESETS:
            raise unknown_name(self.preset, ALL_PRESETS, "preset")

    @property
    def scripts(self) -> list[str]:
        """The scripts that run, in their order."""
        return [s for s in TRAININGS if self.condition == "text" or s != "train_clip.py"]

    def run_folder(self, script: str) -> Path:
        return self.out / FOLDERS[script]

    def commands(self) -> list[tuple[str, ...]]:
        """Return the commands, each a script and its arguments."""
        return [(script, *self.arguments(script)) for script in self.scripts]

    def arguments(self, script: str) -> list[str]:
        """Return the arguments of a script. What is a default is left out."""
        words = ["--data", self.data.as_posix(), "--preset", self.preset]
        if script == "train_ldm.py":
            words += ["--vae", self.run_folder("train_vae.py").as_posix()]
            if self.condition == "text":
                words += ["--text-encoder", self.run_folder("train_clip.py").as_posix()]
            else:
                words += ["--condition", self.condition]
            words += ["--task", self.task] if self.task != "draw" else []
        for flag, values in (("--steps", self.steps), ("--batch-size", self.batch_size)):
            words += [flag, str(values[script])] if script in values else []
        words += ["--seed", str(self.seed)] if self.seed else []
        words += ["--device", self.device] if self.device != "auto" else []
        words += ["--skip-unusable"] if self.skip_unusable else []
        return [*words, "--out", self.run_folder(script).as_posix()]

    def config(self, script: str) -> TrainingConfig:
        """Return the settings that a script has with its arguments.

        Raises:
            UserError: they are out of bounds, or do not go together.
        """
        kind, presets = TRAININGS[script]
        config: TrainingConfig = parse(kind, self.arguments(script), None, presets)
        config.check()
        if isinstance(config, DiffusionTrainingConfig):
            config.check_condition()
        return config

    def problems(self, folder: Folder) -> list[str]:
        """List what would stop the trainings on a folder that was read."""
        usable = replace(folder, unusable=[]) if self.skip_unusable else folder
        found = find_problems(usable, allow_missing_captions=self.condition == "none")
        found += report_numbers(usable, None)[1]
        for script in self.scripts:
            config = self.config(script)
            pairs, held_out = divided(folder.pairs, config)
            found += judge_batch(script, config.batch_size, len(pairs), len(held_out))
            if script == "train_ldm.py" and self.condition == "class" and not found:
                try:
                    class_condition(pairs, held_out)
                except UserError as error:
                    found.append(str(error))
        return [for_people(problem) for problem in found]

    def works(self, classes: Condition | None = None) -> Iterator[StageWork]:
        """Yield what each training computes in a step. The networks have no data.

        classes: of a data folder; None: any two, which changes next to nothing.
        """
        condition: Condition = NoCondition()
        if self.condition == "text":
            config = cast(ClipTrainingConfig, self.config("train_clip.py"))
            clip = build_clip(config)
            condition = TextCondition(clip.text_encoder())
            yield StageWork("train_clip.py", config, partial(clip_work, clip=clip), condition)
        elif self.condition == "class":
            condition = classes or ClassCondition(("a", "b"), torch.tensor([2, 0, 1]))
        config = cast(AutoencoderTrainingConfig, self.config("train_vae.py"))
        with torch.device("meta"):
            # As for a dry run: LPIPS has random weights, and nothing is downloaded.
            networks = build_networks(replace(config, dry_run=True), torch.device("meta"))
        work, vae = partial(autoencoder_work, networks=networks), networks.autoencoder
        yield StageWork("train_vae.py", config, work, condition, vae)
        config = cast(DiffusionTrainingConfig, self.config("train_ldm.py"))
        task = make_task(config, vae)
        with torch.device("meta"):
            unet = build_unet(config, vae, condition, task)
        work = partial(diffusion_work, unet=unet, vae=vae, condition=condition, task=task)
        yield StageWork("train_ldm.py", config, work, condition, vae)

    def plans(self, folder: Folder, runs: Path | None = None) -> Iterator[RunPlan[Any]]:
        """Yield the plan of each training, with networks that have no data.

        runs: folder of runs; the speed of one with the same script and preset is taken for that of
            the training.
        """
        classes = None
        if self.condition == "class":
            classes = class_condition(*divided(folder.pairs, self.config("train_ldm.py")))
        for stage in self.works(classes):
            pairs, held_out = divided(folder.pairs, stage.config)
            facts: dict[str, Any] = {}
            if stage.script == "train_ldm.py":
                assert stage.vae is not None
                config = cast(DiffusionTrainingConfig, stage.config)
                cached = cache_bytes(config, folder.pairs, stage.vae, stage.condition)
                facts["cache"] = cached
            yield RunPlan(
                training=stage.script,
                config=stage.config,
                device=pick_device(self.device),
                work=stage.work,
                pairs=pairs,
                held_out=len(held_out),
                keeps_best=len(held_out) > 0 and stage.script != "train_clip.py",
                similar=None if runs is None else similar_run(runs, stage.script, stage.config),
                **facts,
            )

    def describe(self, folder: Folder, runs: Path | None = None) -> str:
        """Return what the trainings will need: memory, time and disk.

        Raises:
            UserError: the settings do not go together.
        """
        sections: list[str] = []
        for plan in self.plans(folder, runs):
            images = plan.config.steps * plan.config.batch_size
            title = (
                f"{TITLES[plan.training]} ({plan.training}): {plan.config.steps:,} steps of "
                f"{plan.config.batch_size} images, {images / len(plan.pairs):,.4g} epochs"
            )
            lines = [title, for_people(plan.describe()), *plan.remarks()]
            sections.append("\n".join(lines))
        config = cast(AutoencoderTrainingConfig, self.config("train_vae.py"))
        return "\n\n".join(filter(None, [*sections, describe_missing_backbone(config)]))


def divided(pairs: PairList, config: TrainingConfig) -> tuple[PairList, PairList]:
    """Return the pairs to train on, and those that are held out."""
    return split(pairs, config.held_out) if len(pairs) > 1 else (pairs, pairs[:0])


def similar_run(runs: Path, script: str, config: TrainingConfig) -> Path | None:
    """Return the newest run of a script with the same preset and batch size, if it has a speed."""
    wanted = {"preset": config.preset, "batch_size": config.batch_size}
    wanted["size"] = getattr(config, "size", None)
    found: list[Path] = []
    for run in find_runs(runs):
        if script_of(run) == script:
            settings = read_json(run / "config.json")
            if all(settings.get(name) == value for name, value in wanted.items()):
                found.append(run)
    found.sort(key=lambda run: (run / "config.json").stat().st_mtime, reverse=True)
    return next((run for run in found if speed_of_run(run) is not None), None)
