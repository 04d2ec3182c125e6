"""python examples/augment_training.py --model runs/fashion-class

Does it help a classifier to train on samples of a class-conditional model, too?

Small networks learn classes from some of the real images: from these alone, or with samples of
`train_ldm.py --condition class` as half of each batch. Both are done with and without the usual
random shifts and mirroring. A model brings what it learned from its own training images: where
labels are scarce, it must have been trained on the same few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from foundation.errors import UserError, listed
from foundation.files import atomic_file
from foundation.hashing import tensors_sha256
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from training.cli import parse, run_main
from training.flags import NonNegative, Positive
from training.logging.progress import progress_bar

DRAWN_AT_ONCE = 100
KINDS = {  # name -> share of samples in each batch, whether images are shifted and mirrored
    "real images": (0.0, False),
    "real images and samples": (0.5, False),
    "samples": (1.0, False),
    "real images, moved": (0.0, True),
    "real images and samples, moved": (0.5, True),
    "samples, moved": (1.0, True),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = Path("data/fashion/train")  # data folder; each different caption is a class
    test: Path = Path("data/fashion/test")  # data folder of the same classes
    model: Path = Path("runs/fashion-class")  # class-conditional model
    samples: Path = Path("samples/augment")  # folder that keeps what the model draws
    count: Positive[int] = 6000  # samples to draw, equally many of each class
    sampler_steps: Positive[int] = 10  # of the sampler
    guidance_scale: NonNegative[float] = 1.0  # above 1, samples are more typical, less diverse
    shares: tuple[float, ...] = (0.01, 0.05, 1.0)  # of the real images
    seeds: Positive[int] = 3  # trainings of each kind, each with other images
    steps: Positive[int] = 1000  # of each classifier
    batch_size: Positive[int] = 64  # images per step


def main(argv: Sequence[str] | None = None) -> None:
    for (share, kind), accuracies in compare(parse(Config, argv, __doc__)).items():
        values = 100 * torch.tensor(accuracies)
        spread = f"({values.min():.2f} to {values.max():.2f})"
        print(f"{share:7.2%} of the data, {kind:31} {values.mean():.2f} % {spread}")


def compare(config: Config) -> dict[tuple[float, str], list[float]]:
    """Return the accuracies on the test images, one per seed, by share and kind of training."""
    if not all(0 < share <= 1 for share in config.shares):
        raise UserError(f"shares are {config.shares}; each must be above 0, and at most 1.")
    pipeline = TextToImage.load(config.model)
    images, labels = read_classes(config.data, pipeline)
    test_images, test_labels = read_classes(config.test, pipeline)
    drawn, drawn_labels = draw_samples(pipeline, config)
    pool = torch.cat([images, drawn]), torch.cat([labels, drawn_labels])
    samples = len(images) + torch.arange(len(drawn))
    results: dict[tuple[float, str], list[float]] = {}
    trainings = [(share, kind) for share in config.shares for kind in KINDS] * config.seeds
    for share, kind in progress_bar(trainings, "training classifiers", len(trainings)):
        accuracies = results.setdefault((share, kind), [])
        torch.manual_seed(len(accuracies))  # the same images and weights for each kind
        real = torch.randperm(len(images))[: max(1, round(share * len(images)))]
        network = train_classifier(*pool, real, samples, *KINDS[kind], config)
        with torch.no_grad():
            found = torch.cat([network(some).argmax(dim=1) for some in test_images.split(500)])
        accuracies.append((found == test_labels).double().mean().item())
    return results


def read_classes(data: Path, pipeline: TextToImage) -> tuple[Tensor, Tensor]:
    """Read images in [-1, 1], and the numbers of their classes."""
    pairs = read_folder(data, progress=progress_bar).pairs
    texts = [pair.captions[0] for pair in pairs]
    numbers = {name: k for k, name in enumerate(pipeline.classes)}
    if unknown := sorted(set(texts) - set(numbers)):
        raise UserError(f"{data} has captions that are no class of the model: {listed(unknown)}.")
    transform = ImageTransform(pipeline.size, pipeline.image_channels)
    pixels = read_pixels(pairs.paths, transform, progress_bar)
    return pixels / 127.5 - 1, torch.tensor([numbers[text] for text in texts])


def draw_samples(pipeline: TextToImage, config: Config) -> tuple[Tensor, Tensor]:
    """Draw images and their classes in batches, or read those that an earlier call has drawn."""
    sampling = Sampling(steps=config.sampler_steps, guidance=Guidance(scale=config.guidance_scale))
    made_by = {"model": tensors_sha256(pipeline.unet.state_dict()), "sampling": str(sampling)}
    labels = torch.arange(config.count) % len(pipeline.classes)
    batches, images = list(labels.split(DRAWN_AT_ONCE)), []
    for k, batch in enumerate(progress_bar(batches, "drawing samples", len(batches))):
        file = config.samples / f"{k:05d}-{len(batch)}.safetensors"
        if not file.exists() or safe_open(file, "pt").metadata() != made_by:
            prompts = [pipeline.classes[label] for label in batch.tolist()]
            requests = pipeline.make_requests(prompts, seed=k * DRAWN_AT_ONCE)
            latents = pipeline.draw(requests, sampling, batch_size=len(prompts))
            with torch.no_grad(), atomic_file(file) as partial:
                pixels = pipeline.autoencoder.decode(torch.cat(latents)).clamp(-1, 1)
                save_file({"images": pixels}, partial, made_by)
        images.append(safe_open(file, "pt").get_tensor("images"))
    return torch.cat(images), labels


def train_classifier(
    images: Tensor,
    labels: Tensor,
    real: Tensor,
    samples: Tensor,
    sample_share: float,
    moved: bool,
    config: Config,
) -> nn.Module:
    """Train a small convolutional network.

    real, samples: rows of images and labels to learn from.
    """
    network = nn.Sequential(
        *(nn.Conv2d(images.shape[1], 32, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(4)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, int(labels.max()) + 1)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, config.steps)
    drawn = round(sample_share * config.batch_size)
    for _ in range(config.steps):
        own = real[torch.randint(len(real), (config.batch_size - drawn,))]
        rows = torch.cat([own, samples[torch.randint(len(samples), (drawn,))]])
        batch = images[rows]
        if moved:  # the black border takes the shift
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            batch = torch.where(mirrored, batch.flip(-1), batch)
            batch = batch.roll(torch.randint(-2, 3, (2,)).tolist(), (-2, -1))
        loss = F.cross_entropy(network(batch), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


if __name__ == "__main__":
    run_main(main, Config)
