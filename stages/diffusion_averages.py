"""Averaged weights of stage 2 of any length: judged by the validation loss, written as a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.files import read_json
from ldm import TextToImage
from ldm.pipeline.io import read_model_provenance
from stages.data import read_pairs, read_shapes
from stages.diffusion import held_out_loss, side_multiple
from stages.diffusion_config import Config
from stages.latents import cached, hashes
from training.config_json import from_json
from training.precision import Precision
from training.run import Run


class AveragesEvaluator:
    metric, higher_is_better = "validation loss", False

    def __init__(self, run: Path, device: torch.device):
        """run: of train_ldm.py, finished; its data must still be there."""
        self.run = Run(run, read_json(run / "config.json"))
        self.pipeline = TextToImage.load(run, device)
        config = from_json(Config, self.run.config)
        self.config = config = replace(config, text_chunks=self.pipeline.chunks)
        vae, encoder = self.pipeline.autoencoder, self.pipeline.text_encoder
        pairs, held_out = read_pairs(config, config.allow_missing_captions)
        parts = hashes(config, vae, encoder)
        multiple = side_multiple(self.pipeline.unet, vae)
        buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
        cache = cached(config, self.run, parts, pairs + held_out, buckets, vae, encoder)
        steps = len(self.pipeline.denoiser.schedule)
        self.validation = held_out_loss(config, cache, len(pairs), steps, device)
        self.precision = Precision(device, config.precision)

    def score_of_run(self) -> float:
        with self.precision:
            return self.validation.loss(self.pipeline.denoiser, self.config.objective)["val"]

    def score(self, weights: dict[str, Tensor]) -> float:
        self.pipeline.unet.load_state_dict(weights)
        return self.score_of_run()

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        self.pipeline.unet.load_state_dict(weights)
        facts = {"weights": "averaged by a power function of the step", "average": provenance}
        self.pipeline.save(folder, {**read_model_provenance(self.run.path), **facts})


def open_evaluator(run: Path, device: torch.device) -> AveragesEvaluator:
    return AveragesEvaluator(run, device)
