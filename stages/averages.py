"""Scores and writes averaged weights of any length, for training.tools.posthoc.

A length is chosen by PSNR for an autoencoder and by the validation loss for a U-Net, on what the
run held out.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder import Autoencoder
from dataset.loader import ImageBatches, read_pixels
from foundation.files import read_json
from foundation.seeds import derived_seed
from ldm import TextToImage
from ldm.pipeline.io import read_model_provenance
from stages.autoencoder import EVAL_IMAGES, make_transform, write_model
from stages.build_unet import side_multiple
from stages.conditioned_data import make_condition, read_conditioned_pairs
from stages.data import read_pairs, read_shapes
from stages.diffusion import make_validation
from stages.evaluation.reconstruction import ReconstructionEvaluator
from stages.flags.autoencoder import AutoencoderTrainingConfig
from stages.flags.diffusion import DiffusionTrainingConfig
from stages.latents import encoder_hashes, open_latent_cache, open_pixels
from stages.tasks.choice import choose_task
from training.config_json import from_json
from training.logging.progress import progress_bar
from training.precision import Precision
from training.run import Run
from training.tools.average_length import AveragesEvaluator

HOW = "averaged by a power function of the step"


def open_evaluator(run: Path, device: torch.device) -> AveragesEvaluator:
    """Return the evaluator for a finished run of train_vae.py or train_ldm.py."""
    config = read_json(run / "config.json")
    kind = DiffusionAverages if "text_encoder" in config else AutoencoderAverages
    return kind(run, device)


class AutoencoderAverages:
    """Scores whole averaged autoencoders of a run by PSNR.

    Not the decoder alone is averaged: an average of decoders was trained on no latents of its own,
    and those of an encoder averaged alike come closest. So the latents differ from those of the
    run's model, and the length must be chosen before stage 2 is trained on them.
    """

    metric, higher_is_better = "PSNR in dB", True

    def __init__(self, run: Path, device: torch.device):
        """run: folder of a finished training, whose data must still be there."""
        self.run = Run(run, read_json(run / "config.json"))
        file = run / "config.json"
        self.config = config = from_json(AutoencoderTrainingConfig, self.run.config, file)
        self.autoencoder = Autoencoder.load(run, device).requires_grad_(False)
        self.pairs, held_out = read_pairs(config, allow_missing_captions=True)
        multiple = self.autoencoder.factor
        self.buckets = read_shapes(
            self.pairs, config.max_aspect, config.size, multiple, config.batch_size
        )
        self.transform = make_transform(config, self.pairs[0].path)
        pixels = read_pixels((held_out or self.pairs)[:EVAL_IMAGES].paths, self.transform)
        self.evaluator = ReconstructionEvaluator(pixels, config.batch_size, device, perceptual=None)

    def score_of_run(self) -> float:
        """Return the PSNR of the run's own model."""
        return self.psnr(self.autoencoder)

    def score(self, weights: Mapping[str, Tensor]) -> float:
        """Return the PSNR of averaged weights."""
        return self.psnr(self.with_weights(weights))

    def psnr(self, autoencoder: Autoencoder) -> float:
        return self.evaluator.evaluate(autoencoder).metrics["psnr"]

    def with_weights(self, weights: Mapping[str, Tensor]) -> Autoencoder:
        """Return the autoencoder as it was trained, before statistics were folded into it."""
        config = replace(
            self.autoencoder.config,
            use_quant_conv="quant_conv.weight" in weights,
            use_post_quant_conv="post_quant_conv.weight" in weights,
        )
        autoencoder = Autoencoder(config).to(self.autoencoder.encoder.conv_in.weight.device)
        autoencoder.load_state_dict(weights)
        return autoencoder.eval().requires_grad_(False)

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        """Write averaged weights as an autoencoder, with the statistics of its own latents."""
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
        facts = {"weights": HOW, "average": provenance}
        write_model(self.run, config, self.with_weights(weights), batches, facts, folder)


class DiffusionAverages:
    """Scores averaged U-Nets of a run by the validation loss."""

    metric, higher_is_better = "validation loss", False

    def __init__(self, run: Path, device: torch.device):
        """run: folder of a finished training, whose data must still be there."""
        self.run = Run(run, read_json(run / "config.json"))
        self.pipeline = TextToImage.load(run, device)
        config = from_json(DiffusionTrainingConfig, self.run.config, run / "config.json")
        if config.condition == "text":
            config = replace(config, text_chunks=self.pipeline.chunks)
        self.config = config
        vae, text_encoder = self.pipeline.autoencoder, self.pipeline.text_encoder
        pairs, held_out = read_conditioned_pairs(config)
        condition = make_condition(config, text_encoder, pairs, held_out)
        multiple = side_multiple(self.pipeline.unet, vae)
        buckets = read_shapes(pairs, config.max_aspect, config.size, multiple, config.batch_size)
        identity = encoder_hashes(vae, condition)
        if "init_sha256" in self.run.config:
            identity["init_sha256"] = self.run.config["init_sha256"]
        cache = open_latent_cache(
            config, self.run, pairs + held_out, len(pairs), buckets, vae, condition, identity
        )
        steps = len(self.pipeline.denoiser.schedule)
        task = choose_task(config, vae, config.vae)
        open_pixels(task, config, vae, pairs + held_out, buckets)
        self.validation = make_validation(config, condition, cache, len(pairs), steps, device, task)
        self.precision = Precision(device, config.precision)

    def score_of_run(self) -> float:
        """Return the validation loss of the run's own model, if `score` was not called yet."""
        with self.precision:
            return self.validation.loss(self.pipeline.denoiser, self.config.objective)["val"]

    def score(self, weights: Mapping[str, Tensor]) -> float:
        """Return the validation loss of averaged weights, which the pipeline has from here on."""
        self.pipeline.unet.load_state_dict(weights)
        return self.score_of_run()

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        """Write the pipeline with averaged weights."""
        self.pipeline.unet.load_state_dict(weights)
        facts = {"weights": HOW, "average": provenance}
        self.pipeline.save(folder, {**read_model_provenance(self.run.path), **facts})
