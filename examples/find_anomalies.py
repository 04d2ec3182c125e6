"""python examples/find_anomalies.py --model runs/fashion-class

Can a trained model tell pictures that do not belong to its data?

Scores that are high for unusual pictures: the reconstruction error of the autoencoder, the error of
the U-Net's estimate after noise was added to the latents (the idea of arXiv:2211.07740), and
distances of latents; beside baselines that know pixels alone. Each is measured by its AUROC: the
chance that a picture that does not belong has a higher score than one that does; 0.5 is guessing.
The pictures that do not belong: scanned digits, test images upside down, test images with a
scratch, and data folders of your own. Needs scikit-learn: pip install -e '.[recipes]'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from ldm import TextToImage
from ldm.denoiser import concatenate
from training.cli import parse, run_main
from training.flags import Positive
from training.logging.progress import progress_bar

TIMES = (100, 250, 500, 750)  # timesteps, at which noise is added; 1000 is noise alone


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = Path("data/fashion/train")  # data folder of the model's training images
    test: Path = Path("data/fashion/test")  # data folder of more images that do belong
    model: Path = Path("runs/fashion-class")  # model; classes are not told, texts neither
    anomalies: tuple[Path, ...] = ()  # data folders of other pictures that do not belong
    train_images: Positive[int] = 5000  # training images that scores compare with
    test_images: Positive[int] = 1000  # at most so many of each kind are scored
    repeats: Positive[int] = 4  # draws of noise at each timestep, the same for all images


def main(argv: Sequence[str] | None = None) -> None:
    for kind, rocs in measure(parse(Config, argv, __doc__)).items():
        print(f"\n{kind}")
        for score, (auroc, half) in rocs.items():
            print(f"  {score:32} {auroc:.3f} (+- {half:.3f})")


def measure(config: Config) -> dict[str, dict[str, tuple[float, float]]]:
    """Return AUROC and half of its interval of 95 %, by kind of anomaly and score."""
    pipeline = TextToImage.load(config.model)
    train = read_images(config.data, pipeline, config.train_images)
    normal = read_images(config.test, pipeline, config.test_images)
    anomalies = {
        "digits": scanned_digits(*normal.shape[1:])[: config.test_images],
        "upside down": normal.flip(-2),
        "scratched": scratch(normal),
    }
    for folder in config.anomalies:
        anomalies[str(folder)] = read_images(folder, pipeline, config.test_images)
    scores = Scores(pipeline, train, config.repeats)
    expected = scores(normal)
    results = {}
    for kind, pictures in progress_bar(anomalies.items(), "scoring", len(anomalies)):
        found = scores(pictures)
        results[kind] = {name: auroc(expected[name], found[name]) for name in expected}
    return results


def read_images(data: Path, pipeline: TextToImage, count: int) -> Tensor:
    """Read images in [-1, 1], at most `count`, which are chosen at random."""
    pairs = read_folder(data, allow_missing_captions=True, progress=progress_bar).pairs
    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:count]
    transform = ImageTransform(pipeline.size, pipeline.image_channels)
    return read_pixels([pairs[k].path for k in chosen.tolist()], transform) / 127.5 - 1


def scanned_digits(channels: int, height: int, width: int) -> Tensor:
    """Return the digits of scikit-learn, enlarged, in white on black with a border."""
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    inside = F.interpolate(digits, (height - 8, width - 8), mode="bicubic").clamp(-1, 1)
    return F.pad(inside, (4, 4, 4, 4), value=-1.0).expand(-1, channels, -1, -1)


def scratch(images: Tensor) -> Tensor:
    """Invert the pixels of a short diagonal in the middle of each image."""
    third = images.shape[-1] // 3
    line = torch.arange(third, 2 * third)
    scratched = images.clone()
    scratched[..., line, line] *= -1
    return scratched


class Scores:
    """Scores by name, each high for an image that is unlike the training images."""

    def __init__(self, pipeline: TextToImage, train: Tensor, repeats: int):
        self.pipeline, self.train, self.repeats = pipeline, train, repeats
        self.latents = self.encode(train)
        count = self.latents[0].numel()
        pixels = train.flatten(1)
        self.pca = {
            n: PCA(min(n, *pixels.shape), random_state=0).fit(pixels.numpy())
            for n in (count // 8, count)
        }
        self.levels = self.denoising_errors(self.latents[:1000])

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        latents, pixels = self.encode(images), images.flatten(1)
        scores = {
            "distance to the mean image": (images - self.train.mean(dim=0)).flatten(1).norm(dim=1),
            "nearest training image, pixels": nearest(pixels, self.train.flatten(1)),
        }
        for n, pca in self.pca.items():
            rebuilt = torch.from_numpy(pca.inverse_transform(pca.transform(pixels.numpy())))
            scores[f"error of PCA to {n}"] = (rebuilt - pixels).norm(dim=1)
        with torch.no_grad():
            decoded = [self.pipeline.autoencoder.decode(some) for some in latents.split(100)]
        scores["error of the autoencoder"] = (torch.cat(decoded) - images).flatten(1).norm(dim=1)
        scores["norm of the latents"] = latents.flatten(1).norm(dim=1)
        scores["nearest training image, latents"] = nearest(latents, self.latents)
        errors = self.denoising_errors(latents)
        for time, error in zip(TIMES, errors, strict=True):
            scores[f"error of denoising, t = {time}"] = error
        mean, std = self.levels.mean(dim=1, keepdim=True), self.levels.std(dim=1, keepdim=True)
        scores["error of denoising, all"] = ((errors - mean) / std).mean(dim=0)
        return scores

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return torch.cat(
            [self.pipeline.autoencoder.encode(some).mode() for some in images.split(100)]
        )

    @torch.no_grad()
    def denoising_errors(self, latents: Tensor) -> Tensor:
        """Return the mean squared error of the estimate, (timesteps, images)."""
        denoiser, ((nothing, _),) = self.pipeline.denoiser, self.pipeline.condition_on("")
        random = torch.Generator().manual_seed(0)
        errors = torch.zeros(len(TIMES), len(latents))
        for k, time in enumerate(TIMES):
            for _ in range(self.repeats):
                noise = torch.randn(1, *latents.shape[1:], generator=random)
                for rows in torch.arange(len(latents)).split(100):
                    z_0, t = latents[rows], torch.full((len(rows),), float(time))
                    alpha, sigma = denoiser.schedule(t)
                    z_t = alpha * z_0 + sigma * noise
                    estimate = denoiser(z_t, t, concatenate([nothing] * len(rows)))
                    errors[k, rows] += (estimate - z_0).square().mean(dim=(1, 2, 3)) / self.repeats
        return errors


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Return the distance of each point to the nearest of the others."""
    return torch.cdist(points.flatten(1), others.flatten(1)).amin(dim=1)


def auroc(normal: Tensor, anomalous: Tensor) -> tuple[float, float]:
    """Return the AUROC and half of its interval of 95 % (Hanley and McNeil 1982)."""
    m, n = len(anomalous), len(normal)
    truth = torch.cat([torch.zeros(n), torch.ones(m)])
    a = float(roc_auc_score(truth, torch.cat([normal, anomalous])))
    q = (m - 1) * (a / (2 - a) - a * a) + (n - 1) * (2 * a * a / (1 + a) - a * a)
    return a, 1.96 * ((a * (1 - a) + q) / (m * n)) ** 0.5


if __name__ == "__main__":
    run_main(main, Config)
