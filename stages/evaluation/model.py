"""Measures a whole model: `evaluate.py model`. Samples are drawn once and kept."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from conditioning.clip import Clip
from dataset.images.pixel_format import recorded_format
from dataset.images.transform import (
    ImageTransform,
    PixelTensor,
    normalize_pixels,
    to_pixels_like,
    to_uint8,
)
from dataset.loader import read_pixels
from dataset.table import PairList
from evaluation.attributes import Attribute, fit
from evaluation.copying import Neighbors, copying_score, copying_verdict, nearest
from evaluation.distances import all_distances, check_self_test, inception_score
from evaluation.estimates import Estimate, mean_estimate
from evaluation.feature_spaces.choice import ChosenSpaces
from evaluation.feature_spaces.fidelity import INCEPTION
from evaluation.feature_spaces.space import FeatureSpace
from evaluation.reconstruction import psnr
from foundation.errors import UserError, listed, shown
from foundation.hashing import generator, tensors_sha256
from interop.model_card import as_mapping
from ldm import TextToImage
from ldm.pipeline.conditioning import reads_prompt
from ldm.pipeline.io import read_model_provenance
from ldm.pipeline.sampling import Sampling
from stages.evaluation.blocks import Blocks, Rows, identity_hash
from stages.evaluation.classifier import (
    NO_CLASS,
    Classifier,
    class_accuracy,
    stored_logits,
)
from stages.evaluation.data import (
    SEEN_CHANNELS,
    ChosenImages,
    FeatureBatches,
    Reference,
    chosen_pairs,
    describe_choice,
    kept_images,
    pixel_reader,
    shuffled,
    to_rgb,
    training_images,
    unseen_captions,
)
from stages.evaluation.drawing import Drawing, MeasuredSamples, Samples, alignment
from stages.evaluation.validation_loss import (
    has_validation_loss,
    loss_table,
    losses_by_timestep,
    timesteps,
)
from stages.flags.data import recorded_choice
from stages.flags.evaluation import MeasuredCaptions
from training.logging.image_grid import image_grid

NEAREST_SHOWN = 12  # samples next to their nearest training image
UNSEEN = "held-out captions"
UNSEEN_REAL = "real images of held-out captions"
CEILING = "autoencoder (ceiling)"  # real images, encoded and decoded: no sample can be better
REAL = "real images"
ZERO = "network that outputs zero"


class ModelMeasurement:
    """Draws samples, and computes numbers of them and of the real images of their captions."""

    def __init__(
        self,
        pipeline: TextToImage,
        judge: Clip | None,
        model: Path,
        config: MeasuredCaptions,
        drawing: Drawing,
        chosen: ChosenSpaces,
        out: Path,
        classifier: Classifier | None = None,
        attribute: Attribute | None = None,
    ):
        """Read the data folder and choose captions.

        Args:
            judge: a CLIP that had no part in the training of the model; None: how samples follow
                their captions is not measured.
            model: where the model lies, for its provenance and its name.
            out: folder of the report.
            classifier: its space is one of `chosen`.
            attribute: what the judge is asked about each picture, besides its caption.

        Raises:
            UserError: no caption has the attribute.
        """
        self.pipeline, self.judge, self.model, self.drawing = pipeline, judge, model, drawing
        self.out = out
        self.seed, self.missing = config.seed, dict(chosen.missing)
        self.provenance = read_model_provenance(model)
        self.config, self.choice = (
            config,
            recorded_choice(as_mapping(self.provenance.get("config"))),
        )
        prompts, self.held_out = chosen_pairs(config, self.choice, reads_prompt(pipeline.unet))
        order = torch.randperm(len(prompts), generator=generator(config.seed, "captions"))
        source = describe_choice(config)
        self.images = ChosenImages(shuffled(prompts, order, drawing.count), source, 0)
        channels = pipeline.image_channels
        self.transform = ImageTransform(
            pipeline.size, channels, format=recorded_format(self.provenance)
        )
        self.spaces: list[FeatureSpace] = chosen.spaces if channels in SEEN_CHANNELS else []
        self.classifier = classifier if self.spaces else None
        self.batches = FeatureBatches(drawing.batch_size)
        self.reference = Reference(self.images, self.transform, out / "blocks", drawing.batch_size)
        self.hashes = model_hashes(pipeline)
        self.samples = self.samples_of(self.images, drawing.sampling)
        unseen = unseen_captions(config, prompts, self.held_out, drawing.count)
        self.unseen = self.samples_of(unseen, drawing.sampling)
        if self.classifier is not None:
            self.labels = self.classifier.labels(self.samples.captions)
        self.attribute = attribute
        if attribute is not None:
            check_attribute(attribute, self.samples.captions)
        self.training = training_images(config, prompts, order)
        self.kept = ChosenImages(kept_images(config, self.held_out) or self.images.pairs, "", 0)
        self.numbers = self.blocks("numbers", len(self.samples))
        self.unseen_numbers = self.blocks("numbers of held-out captions", len(self.unseen))
        self.reconstructions = self.numbers  # of the images of the captions, if none are held out
        if self.held_out:
            self.reconstructions = self.blocks("reconstructions", len(self.kept.pairs))

    def samples_of(self, images: ChosenImages, sampling: Sampling) -> Samples:
        """Return samples for the captions of these images, which are not drawn yet."""
        drawn = {"sampling": describe_sampling(sampling), "pixels": self.transform.describe()}
        return Samples(images, self.seed, self.out / "blocks", {**drawn, **self.hashes})

    def blocks(self, name: str, count: int, sampling: Sampling | None = None) -> Blocks:
        """Return the blocks of numbers of `count` images.

        sampling: of the samples; None: that of the measurement.
        """
        identity = {**self.protocol, **self.hashes, "of": name, "version": 6}
        identity["sampling"] = describe_sampling(sampling or self.drawing.sampling)
        return Blocks(self.out / "blocks" / identity_hash(identity), count)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Return as JSON what numbers depend on besides the model."""
        return {
            "images": self.images.identity(),
            "chosen_from": self.images.source,
            "captions": self.samples.sha256,
            "held_out_captions": {"count": len(self.unseen), "sha256": self.unseen.sha256},
            "pixels": self.transform.describe(),
            "quantized": "8 bits, rounded",
            "sampling": describe_sampling(self.drawing.sampling),
            "seed": self.seed,
            "judge": describe_judge(self.judge),
            "spaces": [space.describe() for space in self.spaces],
        }

    def fill(self) -> None:
        """Draw what is not drawn yet, and compute what is not computed yet."""
        sampling = self.drawing.sampling
        self.samples.draw(self.pipeline, sampling, "drawing samples")
        self.unseen.draw(self.pipeline, sampling, "drawing samples of held-out captions")
        self.reference_blocks = {
            space.name: self.reference.features(space, self.batches) for space in self.spaces
        }
        read = pixel_reader(self.images, self.transform)
        self.numbers.fill(read, self.compute, "measuring samples")
        title = "measuring samples of held-out captions"
        self.embed_all(MeasuredSamples(self.unseen, self.unseen_numbers), title)
        if self.held_out:
            read_kept = pixel_reader(self.kept, self.transform)
            self.reconstructions.fill(
                read_kept, self.compute_kept, "reconstructing held-out images"
            )
        if self.looks_for_copies:
            training = Reference(
                self.training, self.transform, self.out / "blocks", self.drawing.batch_size
            )
            self.training_blocks = {
                space.name: training.features(space, self.batches) for space in self.spaces
            }

    def embed_all(self, measured: MeasuredSamples, title: str) -> None:
        """Compute the embeddings of samples that are drawn, and of the images of their captions."""
        measured.numbers.fill(
            pixel_reader(measured.samples.images, self.transform),
            lambda numbers, pixels: {
                **measured.samples.embed(numbers, self.judge),
                **self.embed(pixels, "real"),
            },
            title,
        )

    @property
    def looks_for_copies(self) -> bool:
        """Whether samples can be compared with training images, in addition to held-out images."""
        return bool(self.spaces and len(self.training.pairs) and self.held_out)

    @torch.no_grad()
    def compute_kept(self, numbers: range, pixels: PixelTensor) -> Rows:
        """Return the losses of held-out images, and the numbers of what was decoded of them."""
        latents = self.encode(pixels)
        decoded = self.decode(latents, pixels)
        rows = self.losses(numbers, pixels, latents, decoded)
        for space in self.spaces:
            rows |= self.batches(space, to_rgb(decoded), "kept")
        return rows

    def losses(self, numbers: range, pixels: PixelTensor, latents: Tensor, decoded: Tensor) -> Rows:
        """Return how well the images of `kept` are reconstructed, and the losses of the U-Net."""
        rows: Rows = {"psnr": psnr(pixels, decoded)}
        if has_validation_loss(self.pipeline):
            captions = [self.kept.pairs[k].captions[0] for k in numbers]
            rows |= losses_by_timestep(self.pipeline, latents, captions, numbers, self.seed)
        return rows

    @torch.no_grad()
    def encode(self, pixels: PixelTensor) -> Float[Tensor, "_ _ _ _"]:
        """Return the most likely latents of images, computed some at a time."""
        vae, device = self.pipeline.autoencoder, self.pipeline.device
        parts = pixels.split(self.drawing.batch_size)
        return torch.cat([vae.encode(normalize_pixels(some).to(device)).mode() for some in parts])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "_ _ _ _"], like: PixelTensor) -> PixelTensor:
        """Return images of latents, in the numbers of the pixels `like`."""
        vae = self.pipeline.autoencoder
        decoded = [vae.decode(some).cpu() for some in latents.split(self.drawing.batch_size)]
        return to_pixels_like(torch.cat(decoded), like)

    def embed(self, pixels: PixelTensor, name: str) -> Rows:
        """Return the judge's embeddings of images of the samples' size, if there is a judge."""
        if self.judge is None:
            return {}
        return {f"judge/{name}": self.judge.encode_images(to_rgb(pixels)).cpu()}

    def compute(self, numbers: range, pixels: PixelTensor) -> Rows:
        """Return the numbers of some samples, and of the real images of their captions."""
        rows = self.samples.embed(numbers, self.judge)
        latents = self.encode(pixels)
        ceiling = self.decode(latents, pixels)
        rows |= self.embed(pixels, "real") | self.embed(ceiling, "ceiling")
        if not self.held_out:
            rows |= self.losses(numbers, pixels, latents, ceiling)
        if self.spaces:
            pictures = self.samples.pictures(numbers)
            for space in self.spaces:
                rows |= self.batches(space, to_rgb(pictures), "samples")
                rows |= self.batches(space, to_rgb(ceiling), "ceiling")
        return rows

    # What rank 0 makes of the numbers -------------------------------------------------------------

    def metrics(self) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
        """Return the metrics of the samples, and those of real images and of reconstructions."""
        own = self.alignment("samples")
        others = {REAL: self.alignment("real"), CEILING: self.alignment("ceiling")}
        if self.judge is None:
            self.missing["CLIP score and recall"] = why_no_judge(self.pipeline)
        elif len(self.unseen):
            others[UNSEEN] = self.unseen_alignment("samples")
            others[UNSEEN_REAL] = self.unseen_alignment("real")
        for space in self.spaces:
            kept, key = self.reference_blocks[space.name], f"reference/{space.name}"
            reference = kept.rows(key)
            if f"{key}/logits" in kept.names():
                score = inception_score(kept.rows(f"{key}/logits"))
                others[REAL][inception_score_key(space)] = score
            check_self_test(space.name, reference)
            for name, target in (("samples", own), ("ceiling", others[CEILING])):
                features = self.numbers.rows(f"{name}/{space.name}")
                found, missing = all_distances(
                    features, reference, paired=name == "ceiling", is_clip=space.is_clip
                )
                target |= {f"{space.name}/{key}": value for key, value in found.items()}
                if name == "samples":
                    self.missing |= {f"{key} in {space.name}": why for key, why in missing.items()}
                if f"{name}/{space.name}/logits" in self.numbers.names():
                    logits = self.numbers.rows(f"{name}/{space.name}/logits")
                    target[inception_score_key(space)] = inception_score(logits)
            if self.looks_for_copies:
                own[f"{space.name}/copying_score"] = self.copying(space)
        if self.classifier is not None:
            for name, accuracy in self.class_accuracy[0].items():
                others.get(name, own)["class_accuracy"] = accuracy
        for name, accuracy in self.attribute_accuracy[0].items():
            others.get(name, own)["attribute_accuracy"] = accuracy
        if not self.looks_for_copies:
            self.missing["copying score"] = why_no_copies(self.spaces, self.training.pairs)
        own["reconstruction_psnr"] = mean_estimate(self.reconstructions.rows("psnr"), "higher")
        if has_validation_loss(self.pipeline):
            losses = self.reconstructions.rows("loss")
            own["validation_loss"] = mean_estimate(losses.mean(dim=1), "lower")
            zero = self.reconstructions.rows("loss of zero").mean().item()
            others[ZERO] = {"validation_loss": Estimate(zero)}
        return own, others

    @cached_property
    def class_accuracy(self) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
        """Return the share of images that show their class: samples, ceiling, real images."""
        assert self.classifier is not None
        name = self.classifier.space.name
        logits = {
            "samples": stored_logits(self.numbers, f"samples/{name}"),
            CEILING: stored_logits(self.numbers, f"ceiling/{name}"),
            REAL: stored_logits(self.reference_blocks[name], f"reference/{name}"),
        }
        return class_accuracy(logits, self.labels, self.classifier.captions)

    @cached_property
    def attribute_accuracy(self) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
        """Return the share of images that show the right word, and a table of the samples."""
        if self.attribute is None or self.judge is None:
            return {}, []
        trained = MeasuredSamples(self.samples, self.numbers), ("samples", CEILING, REAL)
        unseen = MeasuredSamples(self.unseen, self.unseen_numbers), (UNSEEN, UNSEEN_REAL)
        keys = {"samples": "samples", UNSEEN: "samples", CEILING: "ceiling"}
        estimates: dict[str, Estimate] = {}
        table: list[dict[str, Any]] = []
        for measured, sets in (trained, unseen):
            captions = measured.samples.captions
            labels = self.attribute.labels(captions, NO_CLASS)
            if bool((labels == NO_CLASS).all()):
                continue
            variants = self.attribute.encode_variants(captions, self.judge.encode_texts)
            scores = {
                name: fit(measured.numbers.rows(f"judge/{keys.get(name, 'real')}"), variants)
                for name in sets
            }
            found, rows = class_accuracy(scores, labels, self.attribute.words)
            estimates |= found
            table = table or rows
        return estimates, table

    def loss_table(self) -> list[dict[str, float]]:
        """Return the loss on held-out images by timestep; nothing if it cannot be computed."""
        if not has_validation_loss(self.pipeline):
            return []
        both = (self.reconstructions.rows(name) for name in ("loss", "loss of zero"))
        return loss_table(timesteps(self.pipeline), *both)

    def alignment(
        self, name: str, count: int | None = None, numbers: Blocks | None = None
    ) -> dict[str, Estimate]:
        """Return CLIP score and recall of samples, real images or ceiling; nothing without judge.

        Args:
            count: measure the first so many, among their captions.
            numbers: those of other samples of the same captions; None: of the measurement.
        """
        if self.judge is None:
            return {}
        numbers = self.numbers if numbers is None else numbers
        images, texts = (numbers.rows(f"judge/{key}")[:count] for key in (name, "texts"))
        return alignment(images, texts, self.samples.captions[:count])

    def unseen_alignment(self, name: str) -> dict[str, Estimate]:
        """Return CLIP score and recall of the samples of held-out captions, or of real images.

        Each has as many candidates as the other samples: captions of the training fill them up.
        """
        unseen = MeasuredSamples(self.unseen, self.unseen_numbers)
        return unseen.alignment(name, MeasuredSamples(self.samples, self.numbers))

    @cached_property
    def neighbors(self) -> dict[str, tuple[Neighbors, Neighbors]]:
        """For each space, the training images nearest to samples and to held-out images.

        Held-out images are encoded and decoded, so that they are as soft as samples are.
        """
        found: dict[str, tuple[Neighbors, Neighbors]] = {}
        for name, blocks in self.training_blocks.items():
            training = blocks.rows(f"reference/{name}")
            samples = nearest(self.numbers.rows(f"samples/{name}"), training)
            found[name] = samples, nearest(self.reconstructions.rows(f"kept/{name}"), training)
        return found

    def copying(self, space: FeatureSpace) -> Estimate:
        """Return the copying score of the samples."""
        samples, held_out = self.neighbors[space.name]
        score = copying_score(samples.distances, held_out.distances)
        return Estimate(score, note=copying_verdict(score))

    def nearest_grid(self, space: FeatureSpace) -> Image.Image:
        """Return the samples that lie nearest to training images, each next to that image."""
        neighbors, _ = self.neighbors[space.name]
        order = neighbors.distances.argsort()[:NEAREST_SHOWN].tolist()
        paths = self.training.pairs.paths
        pixels = read_pixels([paths[int(neighbors.indices[k])] for k in order], self.transform)
        shown = normalize_pixels(pixels)
        pairs = [
            torch.cat([self.samples.picture(k), to_uint8(one[None])])
            for k, one in zip(order, shown, strict=True)
        ]
        return image_grid(torch.cat(pairs), columns=8)


def check_attribute(attribute: Attribute, captions: Sequence[str]) -> None:
    """Refuse an attribute that no caption has."""
    if bool((attribute.labels(captions, NO_CLASS) == NO_CLASS).all()):
        words = [shown(word) for word in attribute.words]
        raise UserError(
            f"attribute_words {listed(words)}: none of the captions names exactly one of these "
            f"words, once. A caption is {shown(captions[0])}."
        )


def inception_score_key(space: FeatureSpace) -> str:
    """Return the name of the score; that of other networks is no plain Inception Score."""
    return "inception_score" if space.name == INCEPTION else f"{space.name}/inception_score"


def why_no_copies(spaces: Sequence[FeatureSpace], training: PairList) -> str:
    """Return why samples were not compared with training images, and what to do."""
    if not spaces:
        return "It needs a feature space: features, such as a run of train_clip.py."
    if not len(training):
        return "A split was named, so the images of the training are not known: leave it out."
    return "No image is held out to compare with: train with held_out above 0."


def why_no_judge(pipeline: TextToImage) -> str:
    """Return why it was not measured how samples follow their captions, and what to do."""
    if not reads_prompt(pipeline.unet):
        return "This model reads no captions."
    return f"No judge was given: train_clip.py --preset judge --size {pipeline.size}, then --judge."


def describe_judge(judge: Clip | None) -> dict[str, Any] | None:
    """Return as JSON which judge it is."""
    if judge is None:
        return None
    return {"sha256": tensors_sha256(judge.network.state_dict()), "size": judge.size}


def describe_sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the settings of sampling as JSON."""
    return {name: str(value) for name, value in asdict(sampling).items()}


def model_hashes(pipeline: TextToImage) -> dict[str, Any]:
    """Return the hashes of the parts of a model, and what its U-Net predicts."""
    encoder = pipeline.text_encoder
    return {
        "predicts": pipeline.denoiser.prediction,
        "unet": tensors_sha256(pipeline.unet.state_dict()),
        "autoencoder": pipeline.autoencoder.sha256,
        "text_encoder": None if encoder is None else encoder.sha256,
    }


def refuse_own_clip(pipeline: TextToImage, judge: Clip, source: Path) -> None:
    """Refuse a judge whose text tower conditioned the model: it would flatter it.

    source: of the judge, for the message.

    Raises:
        UserError: the weights are the same.
    """
    encoder = pipeline.text_encoder
    if encoder is not None and judge.text_encoder().sha256 == encoder.sha256:
        raise UserError(
            f"judge {source} is the CLIP that the model was trained with (its text encoder has "
            f"sha256 {encoder.sha256[:16]}...), and would find what the model learned from it. "
            "Train another one: train_clip.py --preset judge --size SIZE."
        )
