"""Measures a whole model: `evaluate.py model`. Samples are drawn once and kept."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from conditioning.clip import Clip
from dataset.captions.choice import choose_captions
from dataset.captions.variants import CaptionChoice
from dataset.folder import read_folder
from dataset.images.pixel_format import recorded_format
from dataset.images.transform import (
    ImageTransform,
    PixelTensor,
    normalize_pixels,
    to_pixels_like,
    to_uint8,
)
from dataset.loader import read_pixels
from dataset.table import PairList, split
from evaluation.copying import Neighbors, copying_score, copying_verdict, nearest
from evaluation.distances import all_distances, inception_score
from evaluation.estimates import Estimate, mean_estimate, wilson
from evaluation.feature_spaces.choice import ChosenSpaces
from evaluation.feature_spaces.space import FeatureSpace
from evaluation.reconstruction import psnr
from evaluation.retrieval import recall_at
from foundation.errors import UserError
from foundation.hashing import generator, tensors_sha256
from interop.model_card import as_mapping
from ldm import TextToImage
from ldm.pipeline.io import read_model_provenance
from ldm.pipeline.sampling import Sampling
from stages.data import recorded_choice
from stages.evaluation.blocks import Blocks, Rows, identity_hash
from stages.evaluation.data import (
    SEEN_CHANNELS,
    ChosenImages,
    FeatureBatches,
    MeasuredImages,
    Reference,
    pixel_reader,
    to_rgb,
)
from stages.evaluation.report import Report, write_report
from stages.evaluation.versions import library_versions
from training.logging.image_grid import image_grid, pil_to_tensor
from training.tools.page import picture

KS = (1, 5, 10)  # of recall@k
SAMPLE_BLOCK = 16  # pictures that are drawn before they are kept
SHOWN = 36  # samples on the page
NEAREST_SHOWN = 12  # samples beside their nearest training image
MOST_TRAINING = 50_000  # training images among which the nearest are looked for
CEILING = "autoencoder (ceiling)"  # real images, encoded and decoded: no sample can be better
REAL = "real images"


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Args:
        count: captions chosen at random; one picture is drawn for each.
        batch_size: images that a network of features sees at once.
    """

    sampling: Sampling
    count: int
    batch_size: int


class ModelMeasurement:
    """Draws samples, and computes numbers of them and of the real images of their captions."""

    def __init__(
        self,
        pipeline: TextToImage,
        judge: Clip,
        model: Path,
        config: MeasuredImages,
        drawing: Drawing,
        chosen: ChosenSpaces,
        out: Path,
    ):
        """Read the data folder and choose captions.

        Args:
            judge: a CLIP that had no part in the training of the model.
            model: where the model lies, for its provenance and its name.
            out: folder of the report.
        """
        self.pipeline, self.judge, self.model, self.drawing = pipeline, judge, model, drawing
        self.out = out
        self.seed, self.missing = config.seed, dict(chosen.missing)
        self.provenance = read_model_provenance(model)
        choice = recorded_choice(as_mapping(self.provenance.get("config")))
        prompts, self.held_out = chosen_pairs(config, choice)
        order = torch.randperm(len(prompts), generator=generator(config.seed, "captions"))
        rows = prompts.rows[order[: drawing.count].numpy()]
        self.images = ChosenImages(PairList(prompts.table, rows), describe_choice(config), 0)
        self.captions = [pair.captions[0] for pair in self.images.pairs]
        channels = pipeline.image_channels
        self.transform = ImageTransform(
            pipeline.size, channels, format=recorded_format(self.provenance)
        )
        self.spaces: list[FeatureSpace] = chosen.spaces if channels in SEEN_CHANNELS else []
        self.batches = FeatureBatches(drawing.batch_size)
        self.reference = Reference(self.images, self.transform, out / "blocks", drawing.batch_size)
        self.hashes = model_hashes(pipeline)
        protocol = self.protocol()
        drawn = {key: protocol[key] for key in ("captions", "sampling", "seed", "pixels")}
        self.samples = self.blocks(out, "samples", {**drawn, **self.hashes}, SAMPLE_BLOCK)
        everything = {**protocol, **self.hashes}
        self.numbers = self.blocks(out, "numbers", everything)
        self.training = training_images(config, prompts, order)
        kept = self.held_out or self.images.pairs
        self.kept = ChosenImages(kept, "", 0)
        self.reconstructions = Blocks(
            out / "blocks" / identity_hash({**everything, "of": "reconstructions", "version": 2}),
            len(kept),
        )

    def blocks(
        self, out: Path, name: str, identity: dict[str, Any], size: int | None = None
    ) -> Blocks:
        """Return blocks of the samples, or of numbers of them."""
        folder = out / "blocks" / identity_hash({**identity, "of": name})
        return Blocks(folder, len(self.images.pairs), size)

    def protocol(self) -> dict[str, Any]:
        """Return as JSON what numbers depend on besides the model."""
        digest = hashlib.sha256("\n".join(self.captions).encode("utf-8", "surrogatepass"))
        return {
            "images": self.images.identity(),
            "chosen_from": self.images.source,
            "captions": digest.hexdigest(),
            "pixels": self.transform.describe(),
            "quantized": "8 bits, rounded",
            "sampling": describe_sampling(self.drawing.sampling),
            "seed": self.seed,
            "judge": {"sha256": tensors_sha256(self.judge.network.state_dict())},
            "spaces": [space.describe() for space in self.spaces],
        }

    def fill(self) -> None:
        """Draw what is not drawn yet, and compute what is not computed yet."""
        self.samples.fill(lambda numbers: torch.tensor(list(numbers)), self.draw, "drawing samples")
        self.reference_blocks = {
            space.name: self.reference.features(space, self.batches) for space in self.spaces
        }
        read = pixel_reader(self.images, self.transform)
        self.numbers.fill(read, self.compute, "measuring samples")
        read_kept = pixel_reader(self.kept, self.transform)
        self.reconstructions.fill(read_kept, self.compute_kept, "reconstructing held-out images")
        if self.looks_for_copies:
            training = Reference(
                self.training, self.transform, self.out / "blocks", self.drawing.batch_size
            )
            self.training_blocks = {
                space.name: training.features(space, self.batches) for space in self.spaces
            }

    @property
    def looks_for_copies(self) -> bool:
        """Whether samples can be compared with training images, beside held-out images."""
        return bool(self.spaces and len(self.training.pairs) and self.held_out)

    def compute_kept(self, _: range, pixels: PixelTensor) -> Rows:
        """Return the numbers of held-out images, encoded and decoded."""
        decoded = self.reconstruct(pixels)
        rows: Rows = {"psnr": psnr(pixels, decoded)}
        for space in self.spaces:
            rows |= self.batches(space, to_rgb(decoded), "kept")
        return rows

    def draw(self, numbers: range, _: Tensor) -> Rows:
        """Draw the samples of these numbers; each depends on its own seed alone."""
        pictures = self.pipeline(
            [self.captions[k] for k in numbers],
            sampling=self.drawing.sampling,
            seed=[self.seed + k for k in numbers],
        )
        return {"pictures": pil_to_tensor(pictures)}

    @torch.no_grad()
    def reconstruct(self, pixels: PixelTensor) -> PixelTensor:
        """Encode and decode images, some at a time."""
        vae, device = self.pipeline.autoencoder, self.pipeline.device
        parts = [
            vae.decode(vae.encode(normalize_pixels(some).to(device)).mode()).cpu()
            for some in pixels.split(self.drawing.batch_size)
        ]
        return to_pixels_like(torch.cat(parts), pixels)

    def compute(self, numbers: range, pixels: PixelTensor) -> Rows:
        """Return the numbers of some samples, and of the real images of their captions."""
        pictures = torch.cat([self.sample(number) for number in numbers])
        size = ImageTransform(self.judge.size)
        real = read_pixels([self.images.pairs.paths[k] for k in numbers], size)
        rows: Rows = {
            "judge/samples": self.judge.encode_images(to_rgb(pictures)).cpu(),
            "judge/real": self.judge.encode_images(real).cpu(),
            "judge/texts": self.judge.encode_texts([self.captions[k] for k in numbers]).cpu(),
        }
        if self.spaces:
            ceiling = self.reconstruct(pixels)
            for space in self.spaces:
                rows |= self.batches(space, to_rgb(pictures), "samples")
                rows |= self.batches(space, to_rgb(ceiling), "ceiling")
        return rows

    def sample(self, number: int) -> Tensor:
        """Return the picture of a caption, (1, c, h, w)."""
        block, row = divmod(number, SAMPLE_BLOCK)
        return self.samples.block_rows("pictures", block)[row : row + 1]

    # What rank 0 makes of the numbers -------------------------------------------------------------

    def metrics(self) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
        """Return the metrics of the samples, and those of real images and of reconstructions."""
        texts = self.numbers.rows("judge/texts")
        own = self.alignment(self.numbers.rows("judge/samples"), texts)
        others: dict[str, dict[str, Estimate]] = {
            REAL: self.alignment(self.numbers.rows("judge/real"), texts),
            CEILING: {},
        }
        for space in self.spaces:
            reference = self.reference_blocks[space.name].rows(f"reference/{space.name}")
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
                    target["inception_score"] = inception_score(logits)
            if self.looks_for_copies:
                own[f"{space.name}/copying_score"] = self.copying(space)
        if not self.looks_for_copies:
            self.missing["copying score"] = why_no_copies(self.spaces, self.training.pairs)
        own["reconstruction_psnr"] = mean_estimate(self.reconstructions.rows("psnr"), "higher")
        return own, others

    def neighbors(self, space: FeatureSpace) -> Neighbors:
        """Return the training image that is nearest to each sample."""
        training = self.training_blocks[space.name].rows(f"reference/{space.name}")
        return nearest(self.numbers.rows(f"samples/{space.name}"), training)

    def copying(self, space: FeatureSpace) -> Estimate:
        """Return the copying score of the samples.

        Held-out images are encoded and decoded for it, so that they are as soft as samples are.
        """
        training = self.training_blocks[space.name].rows(f"reference/{space.name}")
        kept = nearest(self.reconstructions.rows(f"kept/{space.name}"), training)
        score = copying_score(self.neighbors(space).distances, kept.distances)
        return Estimate(score, note=copying_verdict(score))

    def nearest_grid(self, space: FeatureSpace) -> Image.Image:
        """Return the samples that lie nearest to training images, each beside that image."""
        neighbors = self.neighbors(space)
        order = neighbors.distances.argsort()[:NEAREST_SHOWN].tolist()
        paths = self.training.pairs.paths
        pixels = read_pixels([paths[int(neighbors.indices[k])] for k in order], self.transform)
        shown = normalize_pixels(pixels)
        pairs = [
            torch.cat([self.sample(k), to_uint8(one[None])])
            for k, one in zip(order, shown, strict=True)
        ]
        return image_grid(torch.cat(pairs), columns=8)

    def alignment(self, images: Tensor, texts: Tensor) -> dict[str, Estimate]:
        """Return CLIP score and recall of embeddings of images."""
        scores = 100 * (images * texts).sum(dim=1)
        recalls = recall_at(images @ texts.T, self.captions, KS)
        return {
            "clip_score": mean_estimate(scores, "higher"),
            **{f"recall@{k}": wilson(value, len(images)) for k, value in recalls.items()},
        }


def report_model(measured: ModelMeasurement, out: Path) -> Report:
    """Make metrics of the numbers on disk, and write JSON and page. Call it on rank 0 alone."""
    metrics, baselines = measured.metrics()
    remarks = []
    if not measured.held_out:
        remarks.append("Nothing is held out, so the reconstructed images are training images.")
    report = Report(
        kind="model",
        name=str(measured.model),
        protocol=measured.protocol(),
        model=measured.hashes,
        versions=library_versions(),
        metrics=metrics,
        baselines=baselines,
        missing=measured.missing,
        remarks=remarks,
    )
    count = min(SHOWN, len(measured.captions))
    grid = image_grid(torch.cat([measured.sample(k) for k in range(count)]), columns=6)
    caption = "; ".join(measured.captions[:count])
    sections = ["<h2>Samples</h2>" + picture(grid, "samples", caption)]
    if measured.looks_for_copies:
        space = measured.spaces[0]
        shown = picture(
            measured.nearest_grid(space),
            f"samples, each beside the training image that is nearest in {space.name}",
        )
        sections.append("<h2>Nearest training images</h2>" + shown)
    write_report(report, out, sections)
    return report


def chosen_pairs(config: MeasuredImages, choice: CaptionChoice) -> tuple[PairList, PairList]:
    """Return the pairs for prompts, and those to reconstruct: a split that is named is both.

    choice: which captions of a pair the model was trained on.
    """
    pairs = choose_captions(read_folder(config.data, options=config).pairs, choice)
    if config.split is not None:
        print(f"evaluated is the whole split {config.split!r}: {len(pairs)} images.")
        return pairs, pairs
    return split(pairs, config.held_out)


def training_images(config: MeasuredImages, pairs: PairList, order: Tensor) -> ChosenImages:
    """Return the images of the training, at most `MOST_TRAINING`; none if they are not known.

    order: random.
    """
    count = 0 if config.split is not None else min(len(pairs), MOST_TRAINING)
    rows = pairs.rows[order[:count].numpy()]
    return ChosenImages(PairList(pairs.table, rows), describe_choice(config), 0)


def why_no_copies(spaces: Sequence[FeatureSpace], training: PairList) -> str:
    """Return why samples were not compared with training images, and what to do."""
    if not spaces:
        return "It needs a feature space: features, such as a run of train_clip.py."
    if not len(training):
        return "A split was named, so the images of the training are not known: leave it out."
    return "No image is held out to compare with: train with held_out above 0."


def describe_choice(config: MeasuredImages) -> str:
    """Return what captions are chosen from."""
    if config.split is not None:
        return f"the split {config.split}"
    return f"the images of the training (held out: {config.held_out:g})"


def describe_sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the settings of sampling as JSON."""
    return {name: str(value) for name, value in asdict(sampling).items()}


def model_hashes(pipeline: TextToImage) -> dict[str, Any]:
    """Return the hashes of the parts of a model."""
    encoder = pipeline.text_encoder
    return {
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
            "Train another one: train_clip.py --preset judge-64 --seed 1."
        )
