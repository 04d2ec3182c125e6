"""python examples/probe_latents.py --vae runs/fashion-vae

How well can the class of an image be read from its latents?

A linear probe (logistic regression) and a small network (MLP) learn the classes from few or many
images: from the latents of an autoencoder, from the pixels, from as many principal components of
them (PCA), and from the latents of an autoencoder that was never trained. Autoencoder and PCA are
made of all training images without classes. Needs scikit-learn: pip install -e '.[recipes]'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from autoencoder import Autoencoder
from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from foundation.errors import UserError
from training.cli import parse, run_main
from training.flags import Positive
from training.logging.progress import progress_bar

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the probes' regularization, from which a fifth chooses


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = Path("data/fashion/train")  # data folder; each different caption is a class
    test: Path = Path("data/fashion/test")  # data folder of the same classes
    vae: Path = Path("runs/fashion-vae")  # autoencoder
    labels: tuple[Positive[int], ...] = (1000, 10_000)  # images with a class to learn from
    seeds: Positive[int] = 3  # measurements of each kind, each with other images


def main(argv: Sequence[str] | None = None) -> None:
    for (count, features, probe), accuracies in measure(parse(Config, argv, __doc__)).items():
        values = 100 * np.array(accuracies)
        spread = f"{values.mean():.1f} % ({values.min():.1f} to {values.max():.1f})"
        print(f"{count:6} labels, {features:26} {probe:7} {spread}")


def measure(config: Config) -> dict[tuple[int, str, str], list[float]]:
    """Return accuracies on the test images, one per seed, by labels, features and probe."""
    autoencoder = Autoencoder.load(config.vae)
    images, captions = read_images(config.data, autoencoder)
    test_images, test_captions = read_images(config.test, autoencoder)
    numbers = np.unique(captions + test_captions, return_inverse=True)[1]
    classes, test_classes = np.split(numbers, [len(images)])
    if max(config.labels) > len(images):
        raise UserError(f"labels are {config.labels}, but {config.data} has {len(images)} images.")
    features = make_features(autoencoder, images, test_images)
    trials = [(seed, count) for seed in range(config.seeds) for count in config.labels]
    results: dict[tuple[int, str, str], list[float]] = {}
    for seed, count in progress_bar(trials, "training probes", len(trials)):
        rows = np.random.default_rng(seed).permutation(len(images))[:count]
        for name, (train, test) in features.items():
            for probe, classifier in make_probes(seed).items():
                classifier.fit(train[rows], classes[rows])
                accuracy = float((classifier.predict(test) == test_classes).mean())
                results.setdefault((count, name, probe), []).append(accuracy)
    return results


def read_images(data: Path, autoencoder: Autoencoder) -> tuple[Tensor, list[str]]:
    """Read images (n, c, h, w) in [-1, 1], and the caption of each."""
    pairs = read_folder(data, progress=progress_bar).pairs
    size, channels = autoencoder.config.sample_size, autoencoder.config.in_channels
    pixels = read_pixels(pairs.paths, ImageTransform(size, channels), progress_bar)
    return pixels / 127.5 - 1, [pair.captions[0] for pair in pairs]


def make_features(
    autoencoder: Autoencoder, images: Tensor, test_images: Tensor
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the features of both sets of images, all with the total variance of the latents."""
    torch.manual_seed(0)
    untrained = Autoencoder(autoencoder.config).eval()
    latents = [encode(autoencoder, some) for some in (images, test_images)]
    pixels = [some.flatten(1).numpy() for some in (images, test_images)]
    dimensions = min(latents[0].shape)
    pca = PCA(dimensions, random_state=0).fit(pixels[0])
    raw = {
        "pixels": pixels,
        f"pixels, PCA to {dimensions}": [pca.transform(some) for some in pixels],
        "latents": latents,
        "latents, untrained": [encode(untrained, some) for some in (images, test_images)],
    }
    scaled = {}
    for name, (train, test) in raw.items():  # one scale: a pixel that hardly varies stays small
        mean, scale = train.mean(axis=0), np.sqrt(train.var(axis=0).sum() / dimensions)
        scaled[name] = (train - mean) / scale, (test - mean) / scale
    return scaled


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor) -> np.ndarray:
    """Return the most likely latents as rows."""
    batches = progress_bar(images.split(100), "encoding", -(-len(images) // 100))
    return torch.cat([autoencoder.encode(some).mode().flatten(1) for some in batches]).numpy()


def make_probes(seed: int) -> dict[str, ClassifierMixin]:
    """Make the two classifiers; a fifth of the images decides on their settings."""
    held_back = StratifiedShuffleSplit(1, test_size=0.2, random_state=seed)
    linear = LogisticRegression(max_iter=2000, tol=1e-3)
    return {
        "linear": GridSearchCV(linear, {"C": STRENGTHS}, cv=held_back),
        "MLP": MLPClassifier(
            (256,),
            max_iter=1000,
            early_stopping=True,
            validation_fraction=0.2,
            n_iter_no_change=20,
            random_state=seed,
        ),
    }


if __name__ == "__main__":
    run_main(main, Config)
