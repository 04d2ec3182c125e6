"""Averaged weights of stage 1 of any length: judged by PSNR, written as an autoencoder.

The whole autoencoder is averaged, not the decoder alone. An average of the decoder is trained on no
latents of its own: those of an encoder averaged alike come closest, and the statistics of the
latents are measured anew. So the latents are others than those of the run's model, and the length
is chosen before stage 2 is trained on them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import Autoencoder
from dataset.loader import ImageBatches, read_pixels
from foundation.files import read_json
from foundation.hashing import derived_seed
from stages.autoencoder import JUDGED, Config, transform_of, write_model
from stages.data import read_pairs, read_shapes
from stages.held_out import HeldOut
from training.config_json import from_json
from training.logging.progress import progress_bar
from training.run import Run


class AveragesEvaluator:
    metric, higher_is_better = "PSNR in dB", True

    def __init__(self, run: Path, device: torch.device):
        """run: of train_vae.py, finished; its data must still be there."""
        self.run = Run(run, read_json(run / "config.json"))
        self.config = config = from_json(Config, self.run.config)
        self.autoencoder = Autoencoder.load(run, device).requires_grad_(False)
        self.pairs, held_out = read_pairs(config, allow_missing_captions=True)
        multiple = self.autoencoder.factor
        self.buckets = read_shapes(
            self.pairs, config.max_aspect, config.size, multiple, config.batch_size
        )
        self.transform = transform_of(config, self.pairs[0].path)
        pixels = read_pixels((held_out or self.pairs)[:JUDGED].paths, self.transform)
        self.held_out = HeldOut(pixels, config.batch_size, device, perceptual=None)

    def score_of_run(self) -> float:
        return self.held_out.judge(self.autoencoder).numbers["psnr"]

    def score(self, weights: dict[str, Tensor]) -> float:
        return self.held_out.judge(self.with_weights(weights)).numbers["psnr"]

    def with_weights(self, weights: dict[str, Tensor]) -> Autoencoder:
        """As it was trained: 1x1 convolutions where there were some, no statistics in them."""
        config = replace(
            self.autoencoder.config,
            use_quant_conv="quant_conv.weight" in weights,
            use_post_quant_conv="post_quant_conv.weight" in weights,
        )
        autoencoder = Autoencoder(config).to(self.autoencoder.encoder.conv_in.weight.device)
        autoencoder.load_state_dict(weights)
        return autoencoder.eval().requires_grad_(False)

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        config = self.config
        batches = ImageBatches(
            self.pairs,
            self.transform,
            config.batch_size,
            derived_seed(config.seed, "order"),
            config.workers,
            buckets=self.buckets,
            progress=progress_bar,
        )
        facts = {"weights": "averaged by a power function of the step", "average": provenance}
        write_model(self.run, config, self.with_weights(weights), batches, facts, folder)


def open_evaluator(run: Path, device: torch.device) -> AveragesEvaluator:
    return AveragesEvaluator(run, device)
