"""Trains a network that tells which caption an image has, to measure samples with.

    python benchmarks/caption_classifier.py --data data/fashion/train --test data/fashion/test \\
        --out runs/classifier.pt

Trains a small network to tell images apart by their captions, where there are few different ones.
It had no part in the model that it measures: evaluate.py model --classifier runs/classifier.pt
gives the share of samples that show what their captions say, and its features are a feature space.

Writes TorchScript, and next to it runs/classifier.json with the captions in the order of the
logits and the accuracy on real test images. On Fashion-MNIST it takes nine minutes of one core.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # prefer this checkout to an installed version

from foundation.errors import UserError, listed, shown
from training.cli import answer_early, parse, run_main
from training.flags import Positive, Seed


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path  # data folder to train on; each different caption is a class
    test: Path  # data folder with the same captions, to measure the accuracy on
    out: Path  # TorchScript file to write, such as runs/classifier.pt
    size: Positive[int] = 32  # side of the images in pixels, a multiple of 8
    epochs: Positive[int] = 8  # passes over the training images
    batch_size: Positive[int] = 128  # images per step
    learning_rate: Positive[float] = 3e-3  # of AdamW, at its highest
    seed: Seed = 0  # of the weights, the order and the shifts


if __name__ == "__main__":
    answer_early(Config, __doc__)  # the imports below take seconds


import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dataset.folder import read_folder
from dataset.images.transform import ImageTransform
from dataset.loader import read_pixels
from evaluation.estimates import share_estimate
from foundation.files import atomic_file, write_json
from training.logging.progress import progress_bar

MOST_CLASSES = 1000  # more different captions are no classes
WIDTHS = (32, 64, 128)  # channels
HALVED = 8  # how many times smaller the last feature maps are than the images
FEATURES = 256
WEIGHT_DECAY = 0.05

Pictures = UInt8[Tensor, "b 3 h w"]
Labels = Int[Tensor, " b"]


class CaptionClassifier(nn.Module):
    """A convolutional network on 8-bit images; returns logits, or the features before them."""

    def __init__(self, classes: int, size: int):
        super().__init__()
        first, second, third = WIDTHS
        self.convolutions = nn.Sequential(
            *convolution(3, first, size=5, stride=2),  # full resolution would cost most
            *convolution(first, second),
            nn.MaxPool2d(2),
            *convolution(second, third),
            nn.MaxPool2d(2),
        )
        inputs = third * (size // HALVED) ** 2
        self.hidden = nn.Sequential(nn.Dropout(0.3), nn.Linear(inputs, FEATURES), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(FEATURES, classes))

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pixels = images.float() / 127.5 - 1
        features = self.hidden(self.convolutions(pixels).flatten(1))
        if not self.training:  # what is seen must not depend on the direction
            mirrored = self.convolutions(pixels.flip(-1)).flatten(1)
            features = (features + self.hidden(mirrored)) / 2
        return features if return_features else self.head(features)


def convolution(before: int, width: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Make a convolution with what follows it."""
    return [
        nn.Conv2d(before, width, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, __doc__)
    if config.size % HALVED:
        raise UserError(f"--size {config.size} is not a multiple of {HALVED}, as this needs.")
    captions, images, labels = read_classes(config.data, config.size)
    test = read_classes(config.test, config.size, captions)
    torch.manual_seed(config.seed)
    network = CaptionClassifier(len(captions), config.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        script = torch.jit.script(CaptionClassifier(len(captions), config.size).eval())
    fit(network, images, labels, config)
    accuracy = share_estimate(predict(network, test[1]) == test[2])
    config.out.parent.mkdir(parents=True, exist_ok=True)
    script.load_state_dict(network.state_dict())
    with atomic_file(config.out) as partial:
        script.save(str(partial))
    facts = {
        "captions": captions,  # in the order of the logits
        "size": config.size,
        "trained_on": {"data": str(config.data), "images": len(images), "epochs": config.epochs},
        "tested_on": {"data": str(config.test), "images": len(test[1]), **accuracy.to_json()},
    }
    write_json(config.out.with_suffix(".json"), facts)
    print(f"accuracy on {len(test[1]):,} real images of {config.test}: {accuracy}")
    print(f"{config.out} is for evaluate.py model --classifier")


def read_classes(
    data: Path, size: int, captions: list[str] | None = None
) -> tuple[list[str], Pictures, Labels]:
    """Read images, and the number of the class of each.

    captions: the classes; None: all different captions, sorted.

    Raises:
        UserError: there are too few or too many classes, or a caption is none of them.
    """
    pairs = read_folder(data, progress=progress_bar).pairs
    texts = [pair.captions[0] for pair in pairs]
    found = sorted(set(texts))
    classes = captions or found
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(
            f"{data} has {len(classes):,} different captions; a classifier needs 2 to "
            f"{MOST_CLASSES}, each of many images."
        )
    if unknown := [text for text in found if text not in set(classes)]:
        raise UserError(
            f"{data} has captions that the training images do not have: "
            f"{listed([shown(text) for text in unknown])}. Both folders need the same classes."
        )
    numbers = {text: k for k, text in enumerate(classes)}
    pixels = read_pixels(pairs.paths, ImageTransform(size), progress_bar)
    return classes, pixels, torch.tensor([numbers[text] for text in texts])


def fit(network: CaptionClassifier, images: Pictures, labels: Labels, config: Config) -> None:
    """Train with mirrored images, too; the learning rate rises and falls once."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    random = torch.Generator().manual_seed(config.seed)
    batches = [
        rows
        for _ in range(config.epochs)
        for rows in torch.randperm(len(images), generator=random).split(config.batch_size)
    ]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, len(batches))
    network.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for rows in progress_bar(batches, "training the classifier", len(batches)):
        pictures = mirror_half(images[rows], random)
        loss = F.cross_entropy(network(pictures), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def mirror_half(images: Pictures, random: torch.Generator) -> Pictures:
    """Mirror each image with probability 1/2."""
    mirrored = torch.rand(len(images), generator=random) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@torch.no_grad()
def predict(network: CaptionClassifier, images: Pictures) -> Labels:
    """Return the number of the class of each image."""
    logits: list[Float[Tensor, "b classes"]] = [network(some) for some in images.split(500)]
    return torch.cat(logits).argmax(dim=1)


if __name__ == "__main__":
    run_main(main, Config)
