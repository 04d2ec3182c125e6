"""How an upscaling model was shown small pictures: `low_res_scheduler/` of its pipeline folder.

Noise was put on them along a schedule of its own, which is not that of the latents.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.files import read_json
from ldm.pipeline.scheduler_config import from_diffusers, to_diffusers
from ldm.schedule import NoiseSchedule, ScheduleConfig, make_schedule

FILE = Path("low_res_scheduler") / "scheduler_config.json"
LEVEL = 20  # of the noise, unless another one is asked for
X4_UPSCALER = ScheduleConfig(beta_start=0.0001, beta_end=0.02)


@dataclass(frozen=True, kw_only=True)
class LowRes:
    """As it is for the x4 upscaler of Stable Diffusion 2, also where nothing says so."""

    config: ScheduleConfig = X4_UPSCALER
    max_level: int = 350  # the noisiest time that was shown

    def __post_init__(self):
        if self.config.noise_schedule == "flow":
            raise UserError(f"{FILE} describes a flow; small pictures are noised along a table.")

    @property
    def schedule(self) -> NoiseSchedule:
        return make_schedule(self.config)


def read_low_res(folder: Path) -> LowRes:
    """folder: of a pipeline."""
    told: dict[str, Any] = {}
    if (folder / FILE).is_file():
        told["config"], _ = from_diffusers(read_json(folder / FILE))
    level = read_json(folder / "model_index.json").get("max_noise_level")
    return LowRes(**told) if level is None else LowRes(**told, max_level=level)


def scheduler_of(low_res: LowRes) -> dict[str, Any]:
    """scheduler_config.json of diffusers; StableDiffusionUpscalePipeline wants this class."""
    entries = to_diffusers(low_res.config, "noise")
    names = ("beta_end", "beta_schedule", "beta_start", "rescale_betas_zero_snr")
    kept = {name: entries[name] for name in (*names, "num_train_timesteps", "prediction_type")}
    return {"_class_name": "DDPMScheduler", **kept, "clip_sample": False}
