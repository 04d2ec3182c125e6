"""A small CLIP to train on your own data: open_clip's two towers, in open_clip's files.

The text tower becomes the `TextEncoder` of a latent diffusion model. Both towers together measure
how well pictures match their prompts.
"""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from conditioning.encoder import TextEncoder
from conditioning.open_clip_weights import TEXT_KEYS, text_tower_config
from conditioning.tokenizer import clip_tokenizer
from foundation.errors import MissingFileError, UserError, listed
from foundation.files import read_json, to_json
from foundation.json_reading import check_limits, check_type, from_json
from foundation.run_kind import run_hint
from interop.open_clip_models import CONFIG_FILE, clip_places, find_clip_folder
from interop.safetensors_io import read_tensors, write_weights_folder
from interop.state_dict_check import check_state_dict

WEIGHTS_FILE = "open_clip_model.safetensors"  # the name that open_clip looks for
LENGTH_GROUPS = 4  # texts of similar length within a batch; each group has its own length
LENGTH_MULTIPLE = 8  # of texts that lie on a GPU; so a batch has one of few lengths

Embeddings = Float[Tensor, "b d"]


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """The entry vision_cfg of open_clip, as far as `PRESETS` use it."""

    image_size: int
    layers: tuple[int, int, int, int]
    width: int
    head_width: int

    def __post_init__(self):
        limits = {"image_size": (32, 4096), "layers": (1, 64), "width": (1, 4096)}
        check_limits(self, {**limits, "head_width": (1, 4096)})
        if self.width * 32 % self.head_width:
            raise UserError(f"head_width {self.head_width} does not divide {self.width * 32}.")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The entry text_cfg of open_clip."""

    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int

    def __post_init__(self):
        limits = {"context_length": (3, 8192), "vocab_size": (1, 10**6), "width": (1, 4096)}
        check_limits(self, {**limits, "heads": (1, 4096), "layers": (1, 64)})
        if self.width % self.heads:
            raise UserError(f"heads: a width of {self.width} does not split into {self.heads}.")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The types of a config of open_clip that `Clip` takes."""

    embed_dim: int
    vision_cfg: ImageTowerConfig
    text_cfg: TextConfig
    quick_gelu: bool = False

    def __post_init__(self):
        check_limits(self, {"embed_dim": (1, 65536)})


def read_config(file: Path) -> dict[str, Any]:
    """Read the config of open_clip's that a training here wrote.

    Raises:
        UserError: an entry has another type, or is unknown.
    """
    config = check_type(read_json(file).get("model_cfg"), dict, file, "model_cfg")
    checked = asdict(from_json(ClipConfig, config, file))
    for part, known in (("", checked), *((p, checked[p]) for p in ("vision_cfg", "text_cfg"))):
        given: dict[str, Any] = config[part] if part else config
        if unknown := sorted(given.keys() - known.keys()):
            raise UserError(f"{file}: unknown entries in model_cfg: {listed(unknown)}.")
    return config


class Clip(nn.Module):
    """Turns images and texts into unit vectors whose product tells how well they match.

    Radford et al. 2021, arXiv:2103.00020. Texts are padded with the end token.

    config: an open_clip config: embed_dim, vision_cfg, text_cfg, quick_gelu; see `PRESETS`.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

        self.network = open_clip.CLIP(**deepcopy(config))
        self.tokenizer = clip_tokenizer(config["text_cfg"]["context_length"])

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Clip":
        """Load both towers of a CLIP that train_clip.py trained, in evaluation mode.

        folder: a run folder, its model/ folder, or the clip/ folder in it.

        Raises:
            MissingFileError: there is no CLIP with both towers.
            UserError: the weights do not fit the config.
        """
        folder = find_clip(Path(folder))
        # The first weights are drawn at random, and then replaced.
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            clip = cls(read_config(folder / CONFIG_FILE))
        weights = read_tensors(folder / WEIGHTS_FILE)
        what = f"the CLIP that {CONFIG_FILE} in the same folder describes"
        check_state_dict(weights, clip.network.state_dict(), folder / WEIGHTS_FILE, what)
        clip.network.load_state_dict(weights)
        return clip.to(device).eval().requires_grad_(False)

    def save(self, folder: str | Path) -> None:
        """Write both towers as `open_clip.create_model("local-dir:FOLDER")` opens them."""
        preprocess = {"size": self.size, "mean": [0.5] * 3, "std": [0.5] * 3}
        content = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        texts = {CONFIG_FILE: to_json(content)}
        weights = self.network.state_dict()
        write_weights_folder(Path(folder), WEIGHTS_FILE, weights, {"format": "pt"}, texts)

    @property
    def size(self) -> int:
        """Side of the images that the image tower reads, in pixels."""
        return self.config["vision_cfg"]["image_size"]

    @property
    def towers(self) -> list[nn.Module]:
        """The networks of images and of texts, without what precedes and follows them."""
        network = cast(nn.Module, self.network)  # open_clip does not declare its attributes
        return [cast(nn.Module, network.visual), cast(nn.Module, network.transformer)]

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """Inverse temperature of the contrastive loss, which is learned."""
        return self.log_logit_scale.exp()

    @property
    def log_logit_scale(self) -> nn.Parameter:
        """Logarithm of `logit_scale`: the parameter that is learned."""
        return self.network.logit_scale

    def image_features(self, images: UInt8[Tensor, "b 3 h w"]) -> Embeddings:
        """Return unit vectors. Images of another size are resized, with antialiasing."""
        pixels = images.float()
        if images.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 255)
        # Convolutions keep the channels-last layout, in which they are a third faster on a CPU.
        pixels = (pixels / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        features = self.network.encode_image(pixels)  # pyright: ignore[reportUnknownMemberType]
        return F.normalize(cast(Tensor, features).float(), dim=-1)

    def text_features(self, ids: Int[Tensor, "b tokens"]) -> Embeddings:
        """Return unit vectors.

        The tower is causal and pools at the end token, so the padding after it changes nothing and
        is left out. Captions are far shorter than the context: this saves most of the work. Where
        the ids lie on another device than the CPU, the host would have to wait for the lengths, and
        nothing is left out; `cut_padding` does it before.

        ids: as `tokenizer` returns them.
        """
        if ids.device.type != "cpu":
            return self.padded_text_features(ids)
        lengths = ids.argmax(dim=1) + 1  # the end token has the largest id of all
        order = lengths.argsort(stable=True)
        pooled = [
            self.pool_text(ids[rows, : int(lengths[rows[-1]])])
            for rows in order.chunk(LENGTH_GROUPS)
        ]
        return F.normalize(torch.cat(pooled)[order.argsort()].float(), dim=-1)

    def padded_text_features(self, ids: Int[Tensor, "b n"]) -> Embeddings:
        """Return what `text_features` returns, with all of the padding computed."""
        return F.normalize(self.pool_text(ids).float(), dim=-1)

    def cut_padding(self, ids: Int[Tensor, "b tokens"]) -> Int[Tensor, "b n"]:
        """Cut texts on the CPU to the longest of them, rounded up to a multiple of 8 tokens."""
        longest = int(ids.argmax(dim=1).max()) + 1
        return ids[:, : -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE].contiguous()

    def pool_text(self, ids: Int[Tensor, "b n"]) -> Embeddings:
        """Compute open_clip's `encode_text` of texts that may be shorter than the context."""
        length = ids.shape[1]
        network = cast(nn.Module, self.network)  # open_clip does not declare its attributes
        embed = cast(nn.Embedding, network.token_embedding)
        positions = cast(nn.Parameter, network.positional_embedding)
        transformer = cast(nn.Module, network.transformer)
        mask = cast(Tensor, network.attn_mask)
        norm = cast(nn.LayerNorm, network.ln_final)
        projection = cast(nn.Parameter, network.text_projection)

        ids = ids.to(embed.weight.device)
        states: Tensor = embed(ids) + positions[:length]
        states = transformer(states, attn_mask=mask[:length, :length])
        ends = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        return norm(ends) @ projection

    @torch.no_grad()
    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Embeddings:
        """Return unit vectors without gradient, on the device of the weights."""
        return self.image_features(images.to(self.log_logit_scale.device))

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Embeddings:
        """Return unit vectors without gradient, on the device of the weights."""
        return self.text_features(self.tokenizer(texts))

    def text_encoder(self) -> TextEncoder:
        """Return a frozen copy of the text tower, whose token states are a U-Net's context."""
        config = replace(
            text_tower_config("this CLIP", self.config),
            pad_token_id=self.tokenizer.id_of(self.tokenizer.pad),
        )
        weights = {
            name: value.detach().clone()
            for name, value in self.network.state_dict().items()
            if name.startswith(TEXT_KEYS)
        }
        return TextEncoder(config, weights, self.tokenizer)


def find_clip(folder: Path) -> Path:
    """Return the folder of a CLIP with both towers: inside a run or a model, or `folder` itself.

    Raises:
        MissingFileError: there is none in any of these places.
    """
    if found := find_clip_folder(folder):
        return found
    raise MissingFileError(
        f"{folder} holds no CLIP with both towers: no {CONFIG_FILE} in "
        f"{', '.join(str(place) for place in clip_places(folder))}."
        f"{run_hint(folder, 'train_clip.py')} Train one with train_clip.py."
    )


def resnet(
    size: int, width: int, layers: tuple[int, int, int, int] = (1, 1, 1, 1)
) -> dict[str, Any]:
    """Make the config of open_clip's residual network as an image tower.

    On a CPU it learns more per second than a vision transformer.
    """
    return {"image_size": size, "layers": list(layers), "width": width, "head_width": 64}


def text_tower(tokens: int, width: int, layers: int) -> dict[str, Any]:
    """Make the config of a text tower; tokens: context length."""
    return {
        "context_length": tokens,
        "vocab_size": 49408,
        "width": width,
        "heads": width // 32,
        "layers": layers,
    }


TINY: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": resnet(32, 16),
    "text_cfg": text_tower(24, 64, 2),
}
SMALL: dict[str, Any] = {
    "embed_dim": 192,
    "vision_cfg": resnet(48, 32, (1, 2, 2, 1)),
    "text_cfg": text_tower(32, 128, 3),  # 14 MB in fp16, most of it the vocabulary
}
BASE: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": resnet(96, 64, (3, 4, 6, 3)),
    "text_cfg": text_tower(77, 512, 8),
}
# Plain open_clip configs, named by the image size and budget that they are for.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny-32": TINY,  # for tests: seconds of training
    "fashion-32": TINY,
    "demo": {  # 32 pixels give a better text tower than 48 in equal time
        "embed_dim": 128,
        "vision_cfg": resnet(32, 24),
        "text_cfg": text_tower(24, 128, 3),
    },
    "small-64": SMALL,
    "small-128": SMALL,
    "base-128": BASE,
    "base-256": BASE,
    "base-512": BASE,
    "judge": {  # to measure samples with; both towers differ from the others in depth, width
        "embed_dim": 192,
        "vision_cfg": resnet(64, 32, (1, 2, 2, 1)),
        "text_cfg": text_tower(24, 192, 2),
    },
}
