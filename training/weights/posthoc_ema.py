"""Power-function averages of the weights, from which averages of any length follow afterwards.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv:2312.02696), section 3 and appendix C. The average at time t weighs the weights at time tau
with

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),    0 <= tau <= t,

so its length grows with the run, and the untrained beginning weighs nothing. A length is named by
sigma_rel, the standard deviation of p as a fraction of the run: 0.10 is a peak at the end, about as
wide as a tenth of the run. Two averages of different length, stored now and then, span profiles of
many other lengths: each of those is a weighted sum of what was stored, found by least squares.

Time is counted in steps. A power function has no unit, so images give the same numbers.
"""

# pyright: reportPrivateImportUsage=false
# torch._foreach_*, which the optimizers of PyTorch use as well

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foundation import collectives
from foundation.errors import UserError
from foundation.files import atomic_file, write_json
from training.run import make_folder

Array: TypeAlias = np.ndarray
SIGMA_RELS = (0.05, 0.10)  # that are tracked; as in the paper
LARGEST_SIGMA_REL = 0.28  # near 0.29 gamma is 0, which is the plain mean of all weights
FOLDER = "averages"  # of a run: where the averages are stored
FACTS = "averages.json"  # in it: how they were made
EVALUATOR = "stages.averages"  # module that scores averages and writes models of them


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent for a length.

    It is the largest root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    if not 0 < sigma_rel <= LARGEST_SIGMA_REL:
        raise UserError(
            f"sigma_rel is {sigma_rel}; it must be above 0 and at most {LARGEST_SIGMA_REL}. It is "
            "the width of the average as a fraction of the run: 0.05 short, 0.10 usual, 0.20 long."
        )
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@dataclass(frozen=True)
class Profile:
    """The weighting p of the average with exponent `gamma`, after `step` steps."""

    gamma: float
    step: int


def inner_products(left: Sequence[Profile], right: Sequence[Profile]) -> Float64[Array, "m n"]:
    """Integrate p_a p_b over the run for each pair of profiles, in closed form:

    (a + 1) (b + 1) min(s, t)^(a + b + 1) / ((a + b + 1) s^(a + 1) t^(b + 1)).

    Time is a fraction of the last step here, so only the shapes of the profiles count.
    """
    end = max(profile.step for profile in (*left, *right))
    a, b = (np.array([profile.gamma for profile in side]) for side in (left, right))
    s, t = (np.array([profile.step / end for profile in side]) for side in (left, right))
    a, s = a[:, None], s[:, None]
    powers = (a + b + 1) * np.log(np.minimum(s, t)) - (a + 1) * np.log(s) - (b + 1) * np.log(t)
    return (a + 1) * (b + 1) / (a + b + 1) * np.exp(powers)


@dataclass(frozen=True)
class Fit:
    """A profile as a weighted sum of stored ones."""

    coefficients: Float64[Array, " n"]  # they sum to 1, so weights that never move come out exact
    error: float  # norm of the difference to the profile, relative to the norm of the profile


def fit(stored: Sequence[Profile], wanted: Profile) -> Fit:
    """Approximate a profile by stored ones, by least squares."""
    target = float(inner_products([wanted], [wanted])[0, 0])
    products = inner_products(stored, stored)
    with_target = inner_products(stored, [wanted])[:, 0]
    scale = products.diagonal() ** -0.5  # profiles of unit norm: early ones are narrow and tall
    system = products * scale * scale[:, None]
    solution = np.linalg.lstsq(system, with_target * scale)[0] * scale
    solution /= solution.sum()
    squared_error = target - 2 * solution @ with_target + solution @ products @ solution
    return Fit(solution, float((max(squared_error, 0.0) / target) ** 0.5))


class PowerAverages:
    """Averages of a module that are tracked during training, and stored every few steps.

    They are float32, as the module's EMA is: 4 bytes per parameter and average. A stored file has
    2 bytes per parameter and average, or 4 if not `half`.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        *,
        every: int,
        steps: int,
        half: bool = True,
        sigma_rels: Sequence[float] = SIGMA_RELS,
    ):
        """Start the averages with the weights of a module.

        Args:
            folder: for the stored files.
            every: steps between stored files.
            steps: of the whole run; the averages after the last one are always stored.
            half: store float16 instead of float32.
            sigma_rels: lengths to track.
        """
        self.folder, self.every, self.steps, self.half = Path(folder), every, steps, half
        self.gammas = {sigma_rel: gamma_of(sigma_rel) for sigma_rel in sigma_rels}
        weights = {name: weight.detach().float() for name, weight in module.named_parameters()}
        self.averages = {
            sigma_rel: {name: weight.clone() for name, weight in weights.items()}
            for sigma_rel in sigma_rels
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Add the weights of `module` after an optimizer step, and store if it is time.

        beta = (1 - 1 / t)^(gamma + 1) with t = step + 1. So after n steps the weights of step k
        count k^(gamma + 1) - (k - 1)^(gamma + 1), over n^(gamma + 1).

        step: the optimizer step that was just done; 0 is the first.
        """
        done = step + 1
        weights = [weight.detach().float() for weight in module.parameters()]
        for sigma_rel, average in self.averages.items():
            beta = (1 - 1 / done) ** (self.gammas[sigma_rel] + 1)
            torch._foreach_lerp_(list(average.values()), weights, 1 - beta)
        if not collectives.rank() and (done % self.every == 0 or done == self.steps):
            self.store(done)

    def store(self, step: int) -> Path:
        """Write the averages as one file, atomically, and return it.

        Raises:
            UserError: a value is too large for float16.
        """
        dtype = torch.float16 if self.half else torch.float32
        tensors = {
            f"{sigma_rel:g}/{name}": weight.to("cpu", dtype).contiguous()
            for sigma_rel, average in self.averages.items()
            for name, weight in average.items()
        }
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"the average {name} is beyond {dtype} after step {step}; the run cannot store "
                    "it. Store full precision: --no-averages-half."
                )
        self.folder.mkdir(exist_ok=True)  # but not its parents, which may have vanished
        file = stored_file(self.folder, step)
        with atomic_file(file) as partial:
            save_file(tensors, partial, metadata={"step": str(step)})
        return file

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {f"{sigma_rel:g}": average for sigma_rel, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for sigma_rel, average in self.averages.items():
            stored = state[f"{sigma_rel:g}"]
            assert stored.keys() == average.keys()
            for name, weight in average.items():
                weight.copy_(stored[name])


def track_averages(
    run: Path, module: nn.Module, *, every: int, steps: int, half: bool
) -> PowerAverages | None:
    """Return power-function averages that a training updates at every step.

    Args:
        run: the run folder.
        every: steps between stored files; with 0, nothing is tracked, and the result is None.
        steps: of the whole run.
        half: store float16 instead of float32.
    """
    if not every:
        return None
    if not collectives.rank():
        make_folder(run / FOLDER)
        write_json(run / FOLDER / FACTS, {"judge": EVALUATOR, "sigma_rels": SIGMA_RELS})
    return PowerAverages(module, run / FOLDER, every=every, steps=steps, half=half)


def stored_file(folder: Path, step: int) -> Path:
    """Return the file that holds the averages of a step."""
    return folder / f"step-{step:07d}.safetensors"


def stored_steps(folder: Path) -> list[int]:
    """List the steps whose averages are stored, in order."""
    return sorted(
        int(file.stem.removeprefix("step-")) for file in folder.glob("step-*.safetensors")
    )


def reconstruct(
    folder: Path, sigma_rel: float, step: int, sigma_rels: Sequence[float] = SIGMA_RELS
) -> tuple[dict[str, Tensor], float]:
    """Compute the average of a length at a step from the stored ones.

    It reads every stored file up to `step` once, one tensor at a time.

    Args:
        sigma_rels: the lengths that are stored.

    Returns:
        The weights in float32 by name, and the error of their profile (see `Fit`).
    """
    steps = [stored for stored in stored_steps(folder) if stored <= step]
    keys = [(length, stored) for stored in steps for length in sigma_rels]
    profiles = [Profile(gamma_of(length), stored) for length, stored in keys]
    fitted = fit(profiles, Profile(gamma_of(sigma_rel), step))
    coefficients = dict(zip(keys, fitted.coefficients.tolist(), strict=True))
    sums: dict[str, Tensor] = {}
    for stored in steps:
        with safe_open(stored_file(folder, stored), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a file is not a dict)
                length, _, name = key.partition("/")
                weight = file.get_tensor(key).double() * coefficients[float(length), stored]
                sums[name] = sums[name] + weight if name in sums else weight
    return {name: weight.float() for name, weight in sums.items()}, fitted.error


def bytes_per_file(parameters: Iterable[Tensor], half: bool = True) -> int:
    """Return the size on disk of one stored file, which holds both averages."""
    count = sum(parameter.numel() for parameter in parameters)
    return count * len(SIGMA_RELS) * (2 if half else 4)
