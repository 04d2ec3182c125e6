"""Inception, DINOv2 and CLIP as torch-fidelity computes them, from weights on this machine.

torch-fidelity would download what is missing. Here a missing file is an error that says what to
fetch and where to put it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.distances import fidelity
from evaluation.feature_spaces.space import Features, FeatureSpace, MissingWeights, Pictures
from foundation.errors import UserError
from foundation.hashing import file_sha256

INCEPTION = "inception"
SHORT_NAMES = {  # what users write -> torch-fidelity's name
    INCEPTION: "inception-v3-compat",
    "dinov2": "dinov2-vit-l-14",
    "clip": "clip-vit-l-14",
}
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
DINOV2_FILES = {  # name -> (file, its megabytes)
    "dinov2-vit-s-14": ("dinov2_vits14_pretrain.pth", 84),
    "dinov2-vit-b-14": ("dinov2_vitb14_pretrain.pth", 330),
    "dinov2-vit-l-14": ("dinov2_vitl14_pretrain.pth", 1161),
    "dinov2-vit-g-14": ("dinov2_vitg14_pretrain.pth", 4338),
}
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"
DINOV2_CODE = "facebookresearch_dinov2_main"
CLIP_MEGABYTES = {
    "clip-rn50": 244,
    "clip-rn101": 278,
    "clip-rn50x4": 402,
    "clip-rn50x16": 630,
    "clip-rn50x64": 1260,
    "clip-vit-b-32": 338,
    "clip-vit-b-16": 335,
    "clip-vit-l-14": 890,
    "clip-vit-l-14-336px": 891,
}
NAMES = (*SHORT_NAMES, SHORT_NAMES[INCEPTION], *DINOV2_FILES, *CLIP_MEGABYTES)


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights that has to be there.

    sha256: of the file, or its first digits; "": not published.
    """

    path: Path
    url: str
    megabytes: int
    sha256: str

    def require(self, space: str) -> Path:
        """Return the path if the file is there and has the right content.

        Raises:
            MissingWeights: it is not there.
            UserError: it is another file, or damaged.
        """
        digits = (
            f"its sha256 begins with {self.sha256[:16]}" if self.sha256 else "no sha256 is known"
        )
        if not self.path.is_file():
            raise MissingWeights(
                f"the weights of {space} are not there: {self.path}. Fetch {self.url} (about "
                f"{self.megabytes:,} MB; {digits}) and put it there. Nothing is downloaded unasked."
            )
        if not file_sha256(self.path).startswith(self.sha256):
            raise UserError(
                f"{self.path} is damaged or another file: {digits} where the weights of {space} "
                f"are right. Fetch {self.url} again."
            )
        return self.path


def weights_file(name: str) -> WeightsFile:
    """Return the file that torch-fidelity's feature extractor of this name needs."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if name in DINOV2_FILES:
        file, megabytes = DINOV2_FILES[name]
        url = f"{DINOV2_URL}/{file.removesuffix('_pretrain.pth')}/{file}"
        return WeightsFile(folder / file, url, megabytes, "")
    if name in CLIP_MEGABYTES:
        module = fidelity("feature_extractor_clip")
        sha256, url = module.MODEL_METADATA[name]["hash"], module.MODEL_URLS[name]
        return WeightsFile(folder / f"{name}-{sha256}.pt", url, CLIP_MEGABYTES[name], sha256)
    digits = INCEPTION_FILE.removesuffix(".pth").rpartition("-")[2]
    return WeightsFile(folder / INCEPTION_FILE, INCEPTION_URL, 91, digits)


def fidelity_space(name: str, device: torch.device) -> FeatureSpace:
    """Load a feature extractor of torch-fidelity.

    name: torch-fidelity's, or one of `SHORT_NAMES`.

    Raises:
        MissingWeights: its files are not on this machine.
    """
    full = SHORT_NAMES.get(name, name)
    file = weights_file(full).require(full)
    if full in DINOV2_FILES:
        require_dinov2_code(full)
    layers = ["2048", "logits_unbiased"] if full == SHORT_NAMES[INCEPTION] else None
    network = make_extractor(full, layers, file).to(device)

    def run(images: Pictures) -> Features:
        vectors, *logits = network(images)
        return Features(vectors, logits[0] if logits else None)

    return FeatureSpace(
        name=INCEPTION if layers else full,
        sha256=file_sha256(file),
        resize=f"to {input_size(network)} pixels, bilinear as in TensorFlow 1, no antialiasing",
        version=f"torch-fidelity {fidelity('version').__version__}",
        run=run,
        is_clip=full in CLIP_MEGABYTES,
        device=device,
    )


def make_extractor(name: str, layers: list[str] | None, file: Path) -> Any:
    """Make torch-fidelity's network with the weights of a file."""
    if layers:
        read_only_tensors(file)
        kind = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        return kind(name, layers, feature_extractor_weights_path=str(file))
    if name in CLIP_MEGABYTES:
        kind = fidelity("feature_extractor_clip").FeatureExtractorCLIP
        return kind(name, ["clip"], feature_extractor_weights_path=str(file), verbose=False).eval()
    return fidelity("feature_extractor_dinov2").FeatureExtractorDinoV2(name, ["dinov2"])


def read_only_tensors(file: Path) -> None:
    """Refuse a pickle that could run code: torch-fidelity itself would open it.

    Raises:
        UserError: the file holds anything but tensors.
    """
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{file} does not hold tensors alone, so it is not opened.") from error


def require_dinov2_code(name: str) -> None:
    """Refuse DINOv2 where its code would be downloaded, too.

    Raises:
        MissingWeights: torch.hub's folder does not have it.
    """
    folder = Path(torch.hub.get_dir()) / DINOV2_CODE
    if not (folder / "hubconf.py").is_file():
        raise MissingWeights(
            f"the code of {name} is not there: {folder}. Fetch it with "
            "git clone https://github.com/facebookresearch/dinov2 and put the folder there under "
            "that name. Nothing is downloaded unasked."
        )


def input_size(network: Any) -> int:
    """Return the side of the images that a network of torch-fidelity works on."""
    size: int = getattr(network, "INPUT_IMAGE_SIZE", None) or network.resolution
    return size
