"""Network + schedule + what the network predicts -> an estimate of the clean latents.

The only place that knows what the network was trained to predict.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from foundation.errors import UserError
from foundation.shapes import Context, Estimates, Latents, Network, Number, Scale, Timesteps
from ldm.config import Prediction
from ldm.schedule import NoiseSchedule, RectifiedFlow, Schedule


@dataclass(frozen=True)
class Conditioning:
    """What images are conditioned on; all None: on nothing.

    Attributes:
        text: contexts of captions.
        labels: of classes.
        channels: what the network gets as further input channels after those of the latents, such
            as a mask and a masked picture.
        noise_level: that of a small picture in the channels. A network with classes has none.
    """

    text: Context | None = None
    labels: Real[Tensor, " b"] | None = None
    channels: Float[Tensor, "b c_extra h w"] | None = None
    noise_level: Real[Tensor, " b"] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply a function to what there is: for example, choose some rows."""
        return Conditioning(
            *(None if tensor is None else function(tensor) for tensor in self.tensors())
        )

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the values of all fields, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def to(self, device: torch.device) -> "Conditioning":
        return self.map(lambda tensor: tensor.to(device))


NOTHING = Conditioning()


def concatenate(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Put the rows of several conditionings of one kind one after the other."""
    columns = zip(*(conditioning.tensors() for conditioning in conditionings), strict=True)
    present = [[rows for rows in column if rows is not None] for column in columns]
    return Conditioning(*(torch.cat(rows) if rows else None for rows in present))


# A network bound to conditionings. Called with the latents and timesteps of b images (and noise
# levels, for an upscaler), it returns b rows under the first conditioning, then b under the next.
BoundNetwork = Callable[..., Estimates]
BindNetwork = Callable[[Sequence[Conditioning]], BoundNetwork]


class Denoiser(nn.Module):
    """Estimates E[z_0 | z_t, conditioning], whatever the network was trained to predict."""

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        prediction: Prediction,
        bind_network: BindNetwork | None = None,
    ):
        """
        Args:
            network: called with (z_t, t, context), and with class labels if there are any.
            bind_network: binds the network to conditionings for many calls, for example as a
                CachedUNet; by default the network is called as it is.

        Raises:
            UserError: the prediction does not go with the schedule.
        """
        super().__init__()
        check_prediction(schedule, prediction)
        self.network = network
        self.schedule: Schedule = schedule
        self.prediction: Prediction = prediction
        self.bind_network = bind_network or self.repeat_network

    def forward(self, z_t: Latents, t: Timesteps, conditioning: Conditioning = NOTHING) -> Latents:
        """Estimate z_0 at one timestep per image."""
        t = t.to(z_t.device)
        output = self.predict(z_t, t, conditioning)
        return convert(output, self.prediction, "sample", z_t, *self.schedule(t))

    def predict(self, z_t: Latents, t: Timesteps, conditioning: Conditioning = NOTHING) -> Latents:
        """Return the network's own output, in fp32 also under autocast."""
        if conditioning.channels is not None:
            z_t = torch.cat([z_t, conditioning.channels], dim=1)
        both = (conditioning.labels, conditioning.noise_level)
        labels = [each for each in both if each is not None]
        return self.network(z_t, self.network_time(t), conditioning.text, *labels).float()

    def network_time(self, t: Timesteps) -> Timesteps:
        """Return the timesteps that the network sees.

        Rectified flow: timesteps are floored, as diffusers' schedulers do. Near the clean end of a
        variance-preserving schedule that would change the result, so there they stay.
        """
        return t.floor() if isinstance(self.schedule, RectifiedFlow) else t

    def bind(self, conditionings: Sequence[Conditioning]) -> "BoundDenoiser":
        """Bind conditionings for a sampler, which calls the result many times.

        conditionings: each with one row per image.
        """
        return BoundDenoiser(self, self.bind_network(conditionings))

    def repeat_network(self, conditionings: Sequence[Conditioning]) -> BoundNetwork:
        """Bind the network as it is: latents and timesteps are repeated for each conditioning."""
        return RepeatedNetwork(self.network, conditionings)

    def target(self, z_0: Latents, noise: Latents, t: Timesteps) -> Latents:
        """Compute what the network should predict for z_t = alpha_t z_0 + sigma_t noise."""
        return combine(z_0, noise, self.prediction, *self.schedule(t))

    def to_sample(self, output: Latents, z_t: Latents, t: Timesteps) -> Latents:
        """Turn the network's output into z_0; the timesteps are all equal."""
        return convert(output, self.prediction, "sample", z_t, *self.scales(t))

    def to_output(self, z_0: Latents, z_t: Latents, t: Timesteps) -> Latents:
        """Turn z_0 into the network's output that it follows from; the timesteps are all equal."""
        return convert(z_0, "sample", self.prediction, z_t, *self.scales(t))

    def scales(self, t: Timesteps) -> tuple[Number, Number]:
        """Return alpha_t and sigma_t on the CPU, which any device takes without waiting."""
        alpha, sigma = self.schedule.exact(t[:1].cpu())
        return alpha.reshape(()), sigma.reshape(())


class BoundDenoiser:
    """A denoiser bound to conditionings: (z_t, t) -> z_0 under each of them."""

    def __init__(self, denoiser: Denoiser, network: BoundNetwork):
        self.denoiser, self.network = denoiser, network

    def __call__(self, z_t: Latents, t: Timesteps) -> Estimates:
        """
        Args:
            t: one timestep per image, all equal; on the CPU, so that no GPU is waited for.

        Returns:
            z_0 of all images under the first conditioning, then under the second, ...
        """
        output = self.network(z_t, self.denoiser.network_time(t)).float()
        z_t = torch.cat([z_t] * (len(output) // len(z_t)))
        return self.denoiser.to_sample(output, z_t, t[:1].expand(len(z_t)))


class RepeatedNetwork:
    """A network called with a copy of the latents for each conditioning."""

    def __init__(self, network: Network, conditionings: Sequence[Conditioning]):
        self.network, self.count = network, len(conditionings)
        self.conditioning = concatenate(conditionings)

    def __call__(
        self, z_t: Latents, t: Timesteps, class_labels: Real[Tensor, " b"] | None = None
    ) -> Estimates:
        labels = self.conditioning.labels if class_labels is None else class_labels
        more = () if labels is None else (labels,)
        z_t, t = torch.cat([z_t] * self.count), t.to(z_t.device).repeat(self.count)
        return self.network(z_t, t, self.conditioning.text, *more)


def convert(
    output: Latents,
    given: Prediction,
    wanted: Prediction,
    z_t: Latents,
    alpha: Scale | Number,
    sigma: Scale | Number,
) -> Latents:
    """Turn one prediction into another, at the same z_t.

    Each of them fixes z_0 and noise, since alpha z_0 + sigma noise = z_t. The result is infinite
    only where it must be: from noise at alpha = 0, and from sample to others at sigma = 0.
    """
    if given == wanted:
        return output
    if given == "noise":
        z_0, noise = (z_t - sigma * output) / alpha, output
    elif given == "sample":
        z_0, noise = output, (z_t - alpha * output) / sigma
    elif given == "velocity":
        norm = alpha.square() + sigma.square()  # 1 if variance preserving
        z_0, noise = (alpha * z_t - sigma * output) / norm, (sigma * z_t + alpha * output) / norm
    else:
        norm = alpha + sigma  # 1 on the straight path
        z_0, noise = (z_t - sigma * output) / norm, (z_t + alpha * output) / norm
    return combine(z_0, noise, wanted, alpha, sigma)


def combine(
    z_0: Latents,
    noise: Latents,
    wanted: Prediction,
    alpha: Scale | Number,
    sigma: Scale | Number,
) -> Latents:
    """Compute a prediction from clean latents and noise."""
    if wanted == "noise":
        return noise
    if wanted == "sample":
        return z_0
    return alpha * noise - sigma * z_0 if wanted == "velocity" else noise - z_0


def check_prediction(schedule: Schedule, prediction: Prediction) -> None:
    """Refuse pairs that cannot be sampled from, or that no scheduler config can express."""
    if isinstance(schedule, RectifiedFlow):
        if prediction == "velocity":
            raise UserError(
                "prediction velocity belongs to variance-preserving schedules; on the straight "
                "path of rectified flow use prediction flow, which is its speed, or "
                "noise_schedule scaled_linear."
            )
        return
    if prediction == "flow":
        raise UserError(
            "prediction flow is the speed along a straight path, so it needs noise_schedule flow; "
            "its counterpart on a variance-preserving schedule is prediction velocity."
        )
    if prediction == "noise" and has_zero_terminal_snr(schedule):
        raise UserError(
            "prediction noise cannot be used with zero terminal SNR: at t = 999 the latents are "
            "noise alone, so that predicting it says nothing about the image (z_0 would be divided "
            "by alpha = 0). Use prediction velocity or sample, or a schedule without it."
        )


def has_zero_terminal_snr(schedule: NoiseSchedule) -> bool:
    """Return whether nothing is left of the image at the last timestep (alpha = 0)."""
    return not bool(schedule.alpha_bar.all())
