"""Prompts -> pictures: the only place that knows autoencoder, text encoder and U-Net together.

On disk it is a Stable Diffusion pipeline folder, which diffusers opens as it stands:

    model_index.json  unet/  vae/  text_encoder/  tokenizer/  scheduler/
    latentsmith.json  what belongs together (hashes, a golden text embedding) and how it was made
    README.md         the model card, as each part has one
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from autoencoder import Autoencoder
from conditioning import TextEncoder
from interop import single_file
from interop.card import CARD
from ldm import scheduler_files
from ldm.bindings import bindings, check_bindings
from ldm.card import pipeline_card
from ldm.denoiser import Denoiser, Prediction
from ldm.files import MODEL_INDEX, find_pipeline, read_json, write_json
from ldm.guidance import Guidance
from ldm.parts import check_parts, check_plain
from ldm.prediction_probe import measure_prediction
from ldm.sampling import Sampling, cpu_group, draw_latents
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import UNet


class TextToImage:
    """A whole model. Call it with prompts; image k is drawn from seed + k and from nothing else.

    On a CPU in fp32 an image is the same to the last bit whatever it was batched with; on a GPU
    only up to rounding, since kernels there depend on the batch.
    """

    def __init__(
        self,
        unet: UNet,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        schedule: ScheduleConfig,
        prediction: Prediction,
    ):
        self.unet = unet
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.schedule_config = schedule
        self.denoiser = Denoiser(unet, make_schedule(schedule), prediction, unet.prepare)
        check_parts(
            unet.config, autoencoder.config.latent_channels, context_width=text_encoder.width
        )

    def to(self, device: str | torch.device) -> "TextToImage":
        for module in (self.denoiser, self.autoencoder, self.text_encoder):
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def size(self) -> int:
        """Side of the pictures it was trained on, in pixels."""
        side = self.unet.config.sample_size
        if side is None:
            raise ValueError("the model does not say its pictures' size; give height and width.")
        return (side if isinstance(side, int) else side[0]) * self.autoencoder.factor

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int = 25,
        guidance_scale: float = 4.0,
        sampler: str = "dpmpp_2m",
        sampling: Sampling | None = None,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
        progress: Callable[[int], None] | None = None,
    ) -> list[Image.Image]:
        """One picture per prompt.

        Args:
            prompts: repeat a prompt for several pictures of it; each has its own seed.
            negative_prompt: takes the place of the empty prompt that guidance leads away from.
            steps: of the sampler; most call the network once per step.
            guidance_scale: 0 ignores the prompt, 1 is plain conditional, above 1 is guided.
            sampling: all that can be said about it, in place of these three.
            seed: of the first image; image k uses seed + k.
            height, width: in pixels, by default the size trained on.
            batch_size: pictures drawn at once; a matter of memory, not of the result.
            progress: called with the number of pictures after each evaluation of the network.

        Raises:
            ValueError: unknown sampler, a size that the networks cannot halve often enough, or a
                U-Net that draws from more than a text.
            FloatingPointError: the result is not finite.
        """
        check_plain(self.unet)
        if sampling is None:  # checked here: a typing mistake should not cost the encoding below
            guidance = Guidance(scale=guidance_scale)
            sampling = Sampling(sampler=sampler, steps=steps, guidance=guidance)
        prompts = list(prompts)
        shape = self.latent_shape(height, width)
        contexts = {text: self.text_encoder([text]) for text in dict.fromkeys(prompts)}
        uncond = self.text_encoder([negative_prompt])
        cpu = self.device.type == "cpu"
        group = cpu_group(shape) if cpu else batch_size
        pictures: list[Image.Image] = []
        for first in range(0, len(prompts), group):
            chosen = prompts[first : first + group]
            latents = draw_latents(
                self.denoiser,
                torch.cat([contexts[text] for text in chosen]),
                uncond,
                shape,
                sampling,
                seeds=range(seed + first, seed + first + len(chosen)),
                group=group if cpu else len(chosen),
                progress=progress,
            )
            pictures += [self.picture(latent[None]) for latent in latents]
        return pictures

    def picture(self, latents: Float[Tensor, "1 c h w"]) -> Image.Image:
        """Decodes one image; alone, so that it does not depend on others and memory stays small."""
        image = self.autoencoder.decode(latents)[0].float().clamp(-1, 1)
        pixels = ((image + 1) * 127.5).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """For pictures of this size in pixels; a side that is None is as trained."""
        height, width = (self.size if side is None else side for side in (height, width))
        factor = self.autoencoder.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height < factor or width < factor or height % factor or width % factor:
            raise ValueError(
                f"pictures of {width}x{height} cannot be drawn: autoencoder and U-Net together "
                f"shrink both sides {factor} times, so both must be multiples of {factor}. Near: "
                f"{max(factor, width // factor * factor)}x{max(factor, height // factor * factor)}."
            )
        channels = self.autoencoder.config.latent_channels
        return channels, height // self.autoencoder.factor, width // self.autoencoder.factor

    def save(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Writes the pipeline folder; atomic as a whole.

        provenance: facts worth keeping (JSON); under "autoencoder" and "text_encoder" those of
            the parts, as their own folders hold them.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        partial.chmod(0o755)  # mkdtemp makes it private
        try:
            self.write(partial, provenance or {})
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def write(self, folder: Path, provenance: dict[str, Any]) -> None:
        self.autoencoder.save(folder / "vae", provenance.get("autoencoder"))
        self.text_encoder.save(folder, provenance.get("text_encoder"))
        facts = bindings(self.autoencoder.sha256, self.text_encoder)
        self.unet.save(folder / "unet", {**facts, **provenance})
        scheduler = scheduler_files.to_diffusers(self.schedule_config, self.denoiser.prediction)
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        index = MODEL_INDEX | {"scheduler": ["diffusers", scheduler["_class_name"]]}
        write_json(folder / "model_index.json", index)
        write_json(folder / "latentsmith.json", {"bindings": facts, "provenance": provenance})
        readme = pipeline_card(
            sample_size=self.unet.config.sample_size,
            factor=self.autoencoder.factor,
            tokens=self.text_encoder.tokens,
            schedule=self.schedule_config,
            prediction=self.denoiser.prediction,
            bindings=facts,
            provenance=provenance,
        )
        (folder / CARD).write_text(readme, encoding="utf-8")

    @classmethod
    def load(
        cls, source: str | Path, device: str | torch.device = "cpu", ema: bool = False
    ) -> "TextToImage":
        """From a run folder of train_ldm.py, a pipeline folder, ours or Stable Diffusion's, or a
        single file in CompVis' or Stability's layout.

        ema: from a single file that holds two U-Nets, the one averaged in training.

        Raises:
            FileNotFoundError: nothing of the kind is there.
            ValueError: a part is not the one that the U-Net was trained with.
        """
        if Path(source).is_file():
            pipeline = cls.from_file(Path(source), ema)
        else:
            pipeline = cls.from_folder(find_pipeline(Path(source)), ema)
        for module in (pipeline.unet, pipeline.autoencoder):
            module.eval().requires_grad_(False)
        return pipeline.to(device)

    @classmethod
    def from_folder(cls, folder: Path, ema: bool) -> "TextToImage":
        schedule, prediction = scheduler_files.from_diffusers(
            read_json(folder / "scheduler" / "scheduler_config.json")
        )
        pipeline = cls(
            UNet.load(folder / "unet", ema),
            Autoencoder.load(folder / "vae"),
            TextEncoder.load(folder),
            schedule,
            prediction,
        )
        if (folder / "latentsmith.json").exists():
            facts = read_json(folder / "latentsmith.json")
            found = bindings(pipeline.autoencoder.sha256, pipeline.text_encoder)
            check_bindings(facts.get("bindings", {}), found, folder)
        return pipeline

    @classmethod
    def from_file(cls, file: Path, ema: bool) -> "TextToImage":
        schedule, prediction = scheduler_files.from_single_file(file)
        unet, text_encoder = UNet.load(file, ema).eval(), TextEncoder.load(file)
        if prediction is None:
            prediction = measure_prediction(unet, text_encoder([""]))
        if unet.config.sample_size is None:
            side = single_file.SAMPLE_SIZES.get(scheduler_files.NAMES[prediction])
            unet.config = replace(unet.config, sample_size=side)
        return cls(unet, Autoencoder.load(file), text_encoder, schedule, prediction)
