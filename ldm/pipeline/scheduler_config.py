"""scheduler_config.json of diffusers, from and to our schedule and prediction."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foundation.errors import UserError
from interop.single_file.noise import read_noise
from ldm.denoiser import Prediction
from ldm.schedule import TIMES, ScheduleConfig, make_schedule

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "v_prediction": "velocity",
    "sample": "sample",
    "flow_prediction": "flow",
}
NAMES = {ours: theirs for theirs, ours in PREDICTIONS.items()}  # Prediction -> prediction_type
BETA_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
# Schedulers that read the fields below, each with the same meaning and the same defaults.
CLASSES = (
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


def to_diffusers(config: ScheduleConfig, prediction: Prediction) -> dict[str, Any]:
    """The scheduler that samples as we do: DDIM, or for the flow DPM-Solver++ (2M).

    The latter because StableDiffusionPipeline takes no FlowMatchEulerDiscreteScheduler.
    """
    common = {
        "num_train_timesteps": TIMES,
        "prediction_type": NAMES[prediction],
        "steps_offset": 1,  # without effect on trailing times, but the pipeline insists on it
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
    beta_schedules = {ours: theirs for theirs, ours in BETA_SCHEDULES.items()}
    return {
        "_class_name": "DDIMScheduler",
        **common,
        "beta_end": config.beta_end,
        "beta_schedule": beta_schedules[config.noise_schedule],
        "beta_start": config.beta_start,
        "clip_sample": False,  # latents have no bounds
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "set_alpha_to_one": True,  # the last step goes to the clean end
    }


def from_diffusers(entries: dict[str, Any]) -> tuple[ScheduleConfig, Prediction]:
    """What a model was trained on. How diffusers would step through it is left to our samplers."""
    name = entries.get("_class_name")
    if name not in CLASSES:
        raise UserError(
            f"the scheduler {name} is not one whose schedule is known here; those are "
            f"{', '.join(CLASSES)}."
        )
    read = {
        "beta_schedule": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "trained_betas": None,
    } | entries
    allowed = {
        "beta_schedule": tuple(BETA_SCHEDULES),
        "num_train_timesteps": (TIMES,),
        "prediction_type": tuple(PREDICTIONS),
        "trained_betas": (None,),
    }
    for field, values in allowed.items():
        if read[field] not in values:
            raise UserError(
                f"the scheduler has {field}={read[field]!r}; known here: "
                f"{', '.join(map(str, values))}."
            )
    prediction = PREDICTIONS[read["prediction_type"]]
    if read.get("use_flow_sigmas"):
        return ScheduleConfig(
            noise_schedule="flow", shift=float(read.get("flow_shift", 1.0))
        ), prediction
    return (
        ScheduleConfig(
            noise_schedule=BETA_SCHEDULES[read["beta_schedule"]],
            beta_start=read.get("beta_start", 0.0001),
            beta_end=read.get("beta_end", 0.02),
            zero_terminal_snr=bool(read.get("rescale_betas_zero_snr", False)),
        ),
        prediction,
    )


def from_single_file(file: Path) -> tuple[ScheduleConfig, Prediction | None]:
    """What the model in the file was trained on. None: it says nowhere what the U-Net predicts.

    Raises:
        ValueError: the table of noise in it is none of Stable Diffusion's.
    """
    told = read_noise(file)
    if told.scheduler is not None:
        return from_diffusers(told.scheduler)
    prediction = PREDICTIONS[told.prediction] if told.prediction else None
    plain = ScheduleConfig(beta_start=told.betas[0], beta_end=told.betas[1])
    for config in (plain, replace(plain, zero_terminal_snr=True)):
        if told.alpha_bar is None:
            return config, prediction
        table = make_schedule(config).alpha_bar
        # The stored one may have been rounded to half precision.
        if told.alpha_bar.shape == table.shape and torch.allclose(
            told.alpha_bar, table, rtol=1e-2, atol=1e-3
        ):
            return config, prediction
    raise UserError(
        f"{file}: the noise schedule stored in it is not that of Stable Diffusion (scaled_linear, "
        f"beta from {plain.beta_start} to {plain.beta_end}, with or without zero terminal SNR), so "
        "that it is not known which times its U-Net was trained on. Give the model as a diffusers "
        "folder, whose scheduler_config.json says it."
    )
