"""The noise schedule and the prediction type of a model, from and to diffusers' files.

A pipeline folder has one `scheduler/scheduler_config.json`, and if the model upscales a second one
in `low_res_scheduler/`, for the noise that is added to the small image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from foundation.errors import UserError, shown
from foundation.files import read_json
from foundation.json_reading import check_type, from_json
from interop.single_file.noise import read_noise_settings
from ldm.config import TRAIN_TIMESTEPS, Prediction, ScheduleConfig
from ldm.schedule import NoiseSchedule, make_schedule

SCHEDULER = Path("scheduler") / "scheduler_config.json"
INDEX = "model_index.json"
LOW_RES_SCHEDULER = Path("low_res_scheduler") / "scheduler_config.json"

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "v_prediction": "velocity",
    "sample": "sample",
    "flow_prediction": "flow",
}
PREDICTION_TYPES = {ours: theirs for theirs, ours in PREDICTIONS.items()}
BETA_SCHEDULES: dict[str, Literal["linear", "scaled_linear", "cosine"]] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
# Schedulers whose entries have the same meanings and the same defaults.
SCHEDULER_CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """The entries of a scheduler_config.json that say what the model was trained on."""

    beta_end: float = 0.02
    beta_schedule: str = "linear"
    beta_start: float = 0.0001
    flow_shift: float | None = 1.0  # null without a flow
    num_train_timesteps: int = TRAIN_TIMESTEPS
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    trained_betas: tuple[float, ...] | None = None
    use_flow_sigmas: bool | None = False


# The schedule of the latents ----------------------------------------------------------------------


def to_diffusers(config: ScheduleConfig, prediction: Prediction) -> dict[str, Any]:
    """Return the scheduler_config.json with which diffusers samples as we do.

    The class is DDIMScheduler, or for a flow DPMSolverMultistepScheduler (DPM-Solver++ 2M), because
    StableDiffusionPipeline takes no FlowMatchEulerDiscreteScheduler.
    """
    common = {
        "num_train_timesteps": TRAIN_TIMESTEPS,
        "prediction_type": PREDICTION_TYPES[prediction],
        "steps_offset": 1,  # without effect on trailing timesteps, but the pipeline requires it
        "timestep_spacing": "trailing",
    }
    if config.noise_schedule == "flow":
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            **common,
            "algorithm_type": "dpmsolver++",
            "final_sigmas_type": "zero",
            "flow_shift": config.shift,
            "solver_order": 2,
            "solver_type": "midpoint",
            "use_flow_sigmas": True,
        }
    beta_schedules: dict[str, str] = {ours: theirs for theirs, ours in BETA_SCHEDULES.items()}
    return {
        "_class_name": "DDIMScheduler",
        **common,
        "beta_end": config.beta_end,
        "beta_schedule": beta_schedules[config.noise_schedule],
        "beta_start": config.beta_start,
        "clip_sample": False,  # latents have no bounds
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "set_alpha_to_one": True,  # the last step ends in the clean image
    }


def from_diffusers(
    entries: Mapping[str, Any], source: object = "the scheduler"
) -> tuple[ScheduleConfig, Prediction]:
    """Return the schedule and prediction that a scheduler_config.json of diffusers describes.

    Only what the model was trained on is read. The class, which says how diffusers would sample, is
    not used further.

    source: the file, for messages.

    Raises:
        UserError: a setting has another type, or it or the class is not supported.
    """
    class_name = entries.get("_class_name")
    if class_name not in SCHEDULER_CLASSES:
        raise UserError(
            f"{source}: the scheduler class {shown(class_name)} is not supported; supported are "
            f"{', '.join(SCHEDULER_CLASSES)}."
        )
    settings = from_json(SchedulerSettings, entries, source)
    _check_supported(settings, source)
    prediction = PREDICTIONS[settings.prediction_type]
    values: dict[str, Any] = {"noise_schedule": "flow", "shift": settings.flow_shift}
    if not settings.use_flow_sigmas:
        values = {
            "noise_schedule": BETA_SCHEDULES[settings.beta_schedule],
            "beta_start": settings.beta_start,
            "beta_end": settings.beta_end,
            "zero_terminal_snr": settings.rescale_betas_zero_snr,
        }
    return from_json(ScheduleConfig, values, source), prediction


def _check_supported(settings: SchedulerSettings, source: object) -> None:
    supported: dict[str, tuple[Any, ...]] = {
        "beta_schedule": tuple(BETA_SCHEDULES),
        "num_train_timesteps": (TRAIN_TIMESTEPS,),
        "prediction_type": tuple(PREDICTIONS),
        "trained_betas": (None,),
    }
    for name, values in supported.items():
        if getattr(settings, name) not in values:
            raise UserError(
                f"{source}: the scheduler has {name}={shown(getattr(settings, name))}; supported: "
                f"{', '.join(map(str, values))}."
            )


def read_scheduler(file: Path) -> tuple[ScheduleConfig, Prediction]:
    """Return the schedule and prediction in a scheduler_config.json; see `from_diffusers`."""
    return from_diffusers(read_json(file), file)


def from_single_file(file: Path) -> tuple[ScheduleConfig, Prediction | None]:
    """Return the schedule and prediction of the model in a single file.

    The prediction is None if the file does not say it.

    Raises:
        UserError: the file holds a table of noise that is not Stable Diffusion's.
    """
    stored = read_noise_settings(file)
    if stored.scheduler is not None:
        return from_diffusers(stored.scheduler, f"{file} (scheduler)")
    prediction = PREDICTIONS[stored.prediction] if stored.prediction else None
    plain = ScheduleConfig(beta_start=stored.betas[0], beta_end=stored.betas[1])
    if stored.zero_terminal_snr:  # tools that mark it leave the table as it was
        return replace(plain, zero_terminal_snr=True), prediction
    if stored.alpha_bar is None:
        return plain, prediction
    for config in (plain, replace(plain, zero_terminal_snr=True)):
        schedule = make_schedule(config)
        assert isinstance(schedule, NoiseSchedule)
        table = schedule.alpha_bar
        # The stored table may have been rounded to half precision.
        if stored.alpha_bar.shape == table.shape and torch.allclose(
            stored.alpha_bar, table, rtol=1e-2, atol=1e-3
        ):
            return config, prediction
    raise UserError(
        f"{file}: the noise schedule stored in it is not that of Stable Diffusion (scaled_linear, "
        f"beta from {plain.beta_start} to {plain.beta_end}, with or without zero terminal SNR), so "
        "the noise that its U-Net was trained on is unknown. Load the model from a diffusers "
        "folder, which says it in scheduler_config.json."
    )


# The noise on the small image of an upscaling model -----------------------------------------------

X4_UPSCALER = ScheduleConfig(beta_start=0.0001, beta_end=0.02)


@dataclass(frozen=True, kw_only=True)
class LowResSchedule:
    """How noise was added in training to the small image that an upscaling model gets.

    The defaults are those of Stable Diffusion's x4 upscaler, also for folders that do not say it.
    """

    config: ScheduleConfig = X4_UPSCALER
    max_noise_level: int = 350  # the noisiest timestep that was used

    def __post_init__(self):
        if not 0 <= self.max_noise_level < TRAIN_TIMESTEPS:
            raise UserError(
                f"max_noise_level is {self.max_noise_level}; it is a timestep, from 0 to "
                f"{TRAIN_TIMESTEPS - 1}."
            )
        if self.config.noise_schedule == "flow":
            raise UserError(
                f"{LOW_RES_SCHEDULER} describes a flow; the noise on small images needs a "
                "variance-preserving schedule."
            )

    @property
    def schedule(self) -> NoiseSchedule:
        schedule = make_schedule(self.config)
        assert isinstance(schedule, NoiseSchedule)
        return schedule


def read_low_res(folder: Path, index: Mapping[str, Any]) -> LowResSchedule:
    """Read the schedule from a pipeline folder, whose model_index.json has the given entries."""
    low_res = LowResSchedule()
    if (folder / LOW_RES_SCHEDULER).is_file():
        config, _ = read_scheduler(folder / LOW_RES_SCHEDULER)
        low_res = replace(low_res, config=config)
    level = index.get("max_noise_level")
    if level is None:
        return low_res
    level = check_type(level, int, folder / INDEX, "max_noise_level")
    return replace(low_res, max_noise_level=level)


def low_res_to_diffusers(low_res: LowResSchedule) -> dict[str, Any]:
    """Return its scheduler_config.json, of the class that StableDiffusionUpscalePipeline needs."""
    entries = to_diffusers(low_res.config, "noise")
    names = (
        "beta_end",
        "beta_schedule",
        "beta_start",
        "rescale_betas_zero_snr",
        "num_train_timesteps",
        "prediction_type",
    )
    return {
        "_class_name": "DDPMScheduler",
        **{name: entries[name] for name in names},
        "clip_sample": False,
    }
