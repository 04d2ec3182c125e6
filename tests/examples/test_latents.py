"""The programs of examples/ that use latents for other ends, at miniature size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from examples import augment_training, find_anomalies, probe_latents
from foundation.errors import UserError
from ldm import TextToImage
from tests.helpers.random_models import make_pipeline, pixels, with_unet

CLASSES = ("top", "bottom")
CLASS_UNET = {
    "sample_size": 4,  # pictures of 16 pixels
    "down_block_types": ("DownBlock2D",) * 2,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("UpBlock2D",) * 2,
    "num_class_embeds": len(CLASSES) + 1,
}
TIME = 250  # of a rectified flow: a quarter is noise


class Zero(nn.Module):
    """A network that predicts zero."""

    def forward(self, z_t: Tensor, *others: Tensor) -> Tensor:
        return torch.zeros_like(z_t)


def write_noise(
    folder: Path, count: int, levels: dict[str, tuple[int, int]], seed: int = 0
) -> Path:
    """Write noisy gray images; the gray levels of both halves belong to the caption."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as metadata:
        for k in range(count):
            caption = list(levels)[k % len(levels)]
            values = np.repeat(levels[caption], 16)[:, None] + random.integers(-50, 50, (32, 32))
            Image.fromarray(values.astype(np.uint8)).save(folder / f"{k:03d}.png")
            metadata.write(json.dumps({"file_name": f"{k:03d}.png", "text": caption}) + "\n")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two data folders, and a model of their classes with random weights."""
    root = tmp_path_factory.mktemp("latents")
    levels = dict(zip(CLASSES, ((170, 80), (80, 170)), strict=True))
    write_noise(root / "train", 60, levels)
    write_noise(root / "test", 30, levels, seed=1)
    model = with_unet(make_pipeline(), **CLASS_UNET)
    model.classes, model.text_encoder = CLASSES, None
    model.save(root / "model")
    return root


def test_probes_read_the_class_from_every_kind_of_features(world):
    config = probe_latents.Config(
        data=world / "train",
        test=world / "test",
        vae=world / "model" / "vae",
        labels=(20,),
        seeds=2,
    )
    results = probe_latents.measure(config)
    assert all(len(accuracies) == config.seeds for accuracies in results.values())
    linear = {key[:2]: min(values) for key, values in results.items() if key[2] == "linear"}
    features = {name for _, name in linear}
    assert features == {"pixels", "pixels, PCA to 60", "latents", "latents, untrained"}
    assert min(linear.values()) > 0.9
    with pytest.raises(UserError, match="60 images"):
        probe_latents.measure(probe_latents.Config(**{**vars(config), "labels": (61,)}))


def test_features_are_not_stretched_column_by_column(world):
    """A pixel that hardly varies must not weigh as much as others; all have the same variance."""
    autoencoder = TextToImage.load(world / "model").autoencoder
    images = torch.rand(40, 3, 32, 32) * 2 - 1
    images[..., :16] *= 0.1
    features = probe_latents.make_features(autoencoder, images, images[:4])
    train, test = features["pixels"]
    deviations = train.std(axis=0).reshape(3, 32, 32)
    assert deviations[..., :16].mean() == pytest.approx(0.1 * deviations[..., 16:].mean(), rel=0.05)
    assert np.array_equal(test, train[:4])
    totals = [train.var(axis=0).sum() for train, _ in features.values()]
    assert totals == pytest.approx([40] * 4, rel=1e-3)


@pytest.fixture
def augmenting(world, tmp_path, monkeypatch) -> augment_training.Config:
    monkeypatch.setattr(augment_training, "DRAWN_AT_ONCE", 4)
    return augment_training.Config(
        data=world / "train",
        test=world / "test",
        model=world / "model",
        samples=tmp_path / "samples",
        count=10,
        sampler_steps=2,
        shares=(0.5,),
        seeds=1,
        steps=60,
        batch_size=16,
    )


def test_classifiers_learn_from_real_images_and_from_samples(augmenting, monkeypatch):
    kinds = ("real images", "real images and samples, moved", "samples")
    chosen = {kind: augment_training.KINDS[kind] for kind in kinds}

    def read_swapped(pipeline, config):
        """Stand in for a model that draws the other class."""
        images, labels = augment_training.read_classes(config.data, pipeline)
        return images, 1 - labels

    monkeypatch.setattr(augment_training, "KINDS", chosen)
    monkeypatch.setattr(augment_training, "draw_samples", read_swapped)
    results = augment_training.compare(augmenting)
    assert set(results) == {(0.5, kind) for kind in kinds}
    assert all(len(accuracies) == 1 for accuracies in results.values())
    assert min(results[0.5, "real images"]) > 0.9
    assert max(results[0.5, "samples"]) < 0.1


def test_a_classifier_sees_the_given_rows_alone(augmenting):
    """Rows that are not given have wrong labels; whoever learned from them would be wrong, too."""
    images = torch.full((40, 1, 32, 32), -0.5)
    images[::2] = 0.5
    labels = torch.arange(40) % 2
    labels[20:] = 1 - labels[20:]
    right, wrong = torch.arange(20), torch.arange(20, 40)
    for share, rows in ((0.0, (right, wrong)), (1.0, (wrong, right))):
        torch.manual_seed(0)
        network = augment_training.train_classifier(images, labels, *rows, share, True, augmenting)
        assert torch.equal(network(images[:20]).argmax(dim=1), labels[:20])


def test_samples_are_those_of_the_pipeline_and_are_kept(augmenting, monkeypatch):
    pipeline = TextToImage.load(augmenting.model)
    images, labels = augment_training.draw_samples(pipeline, augmenting)
    assert labels.tolist() == [k % 2 for k in range(10)]
    pictures = pipeline([CLASSES[k % 2] for k in range(10)], steps=2, guidance_scale=1.0)
    ours = ((images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert max(np.abs(pixels(b) - a).max() for a, b in zip(ours, pictures, strict=True)) <= 1

    def draw_again(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(pipeline, "draw", draw_again)
    assert torch.equal(augment_training.draw_samples(pipeline, augmenting)[0], images)
    other = augment_training.Config(**{**vars(augmenting), "guidance_scale": 2.0})
    with pytest.raises(MemoryError):
        augment_training.draw_samples(pipeline, other)


def test_unknown_classes_and_empty_shares_are_refused(augmenting, tmp_path):
    other = write_noise(tmp_path / "other", 4, {"top": (170, 80), "neither": (80, 80)})
    pipeline = TextToImage.load(augmenting.model)
    with pytest.raises(UserError, match="neither"):
        augment_training.read_classes(other, pipeline)
    with pytest.raises(UserError, match="above 0"):
        augment_training.compare(augment_training.Config(shares=(0.0,)))


def test_anomalies_have_higher_scores(world, tmp_path):
    config = find_anomalies.Config(
        data=write_noise(tmp_path / "train", 40, {"": (80, 80)}),
        test=write_noise(tmp_path / "test", 20, {"": (80, 80)}, seed=1),
        model=world / "model",
        anomalies=(write_noise(tmp_path / "light", 20, {"": (170, 170)}),),
        test_images=20,
        repeats=1,
    )
    results = find_anomalies.measure(config)
    assert set(results) == {"digits", "upside down", "scratched", str(config.anomalies[0])}
    light = results[str(config.anomalies[0])]
    for score in ("distance to the mean image", "nearest training image, pixels"):
        assert light[score] == (1.0, 0.0)
        assert results["digits"][score][0] == 1
        # Noise upside down is noise of the same kind.
        assert results["upside down"][score][0] == pytest.approx(0.5, abs=0.3)
    assert results["scratched"]["nearest training image, pixels"][0] > 0.6


def test_denoising_error_of_a_network_that_predicts_zero(world, monkeypatch):
    """Then the estimate is z_t itself, whose error follows from the noise alone."""
    monkeypatch.setattr(find_anomalies, "TIMES", (TIME,))
    pipeline = TextToImage.load(world / "model")
    pipeline.denoiser.network = Zero()
    scores = find_anomalies.Scores(pipeline, torch.rand(10, 3, 32, 32) * 2 - 1, repeats=2)
    latents = torch.randn(5, 4, 8, 8)
    random = torch.Generator().manual_seed(0)
    noises = [torch.randn(1, 4, 8, 8, generator=random) for _ in range(2)]
    expected = sum((TIME / 1000 * (noise - latents)).square().mean((1, 2, 3)) for noise in noises)
    torch.testing.assert_close(scores.denoising_errors(latents), expected[None] / 2)


def test_scores_of_training_images(world):
    """A training image is its own nearest, and all its components are rebuilt."""
    pipeline = TextToImage.load(world / "model")
    train = torch.rand(10, 3, 32, 32) * 2 - 1
    scores = find_anomalies.Scores(pipeline, train, repeats=1)(train)
    for name in ("nearest training image, pixels", "nearest training image, latents"):
        assert scores[name].max() < 0.05 * scores["distance to the mean image"].min()
    assert scores["error of PCA to 256"].max() < 1e-3
    assert scores["error of denoising, all"].mean().item() == pytest.approx(0, abs=1e-3)


def test_auroc_is_the_share_of_pairs_in_order():
    value, _ = find_anomalies.auroc(torch.tensor([0.0, 1, 2, 3]), torch.tensor([2.5, 4]))
    assert value == 7 / 8


def test_the_interval_of_the_auroc_is_as_wide_as_repetitions_differ():
    random = torch.Generator().manual_seed(0)
    found = [
        find_anomalies.auroc(
            torch.randn(60, generator=random), 1 + torch.randn(40, generator=random)
        )
        for _ in range(200)
    ]
    values, halves = torch.tensor(found).unbind(dim=1)
    assert halves.mean().item() == pytest.approx(1.96 * values.std().item(), rel=0.15)
