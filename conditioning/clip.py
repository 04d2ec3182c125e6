"""A CLIP of one's own: open_clip's two towers, small, and loaded and saved as open_clip does it.

The text tower becomes the `TextEncoder` of a latent diffusion model; both towers together judge
how well pictures match their prompts.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from conditioning.encoder import TextEncoder
from conditioning.open_clip_weights import TEXT_KEYS, text_tower_config
from conditioning.tokenizer_io import clip_tokenizer, dump
from foundation.errors import MissingFileError
from foundation.files import read_json
from interop.safetensors_io import read_tensors, write_weights_folder
from interop.state_dict_check import check_state_dict

CONFIG_FILE = "open_clip_config.json"  # the names that open_clip's "local-dir:" schema looks for
WEIGHTS_FILE = "open_clip_model.safetensors"
TEXT_GROUPS = 4  # of similar length within a batch; each is computed at its own length

Embeddings = Float[Tensor, "b d"]


class Clip(nn.Module):
    """Images and texts to unit vectors whose product tells how well they match.

    Radford et al. 2021, arXiv:2103.00020. Texts are padded with the end token.

    config: an open_clip config: embed_dim, vision_cfg, text_cfg, quick_gelu; see `PRESETS`.
    """

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.network = open_clip.CLIP(**deepcopy(config))
        self.tokenizer = clip_tokenizer(config["text_cfg"]["context_length"])

    @property
    def size(self) -> int:
        """Side of the images it sees, in pixels."""
        return self.config["vision_cfg"]["image_size"]

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """Inverse temperature of the contrastive loss; learned."""
        return self.network.logit_scale.exp()

    def image_features(self, images: UInt8[Tensor, "b 3 h w"]) -> Embeddings:
        """Of unit length. Pictures of another size are resized, antialiased."""
        pixels = images.float()
        if images.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 255)
        # Convolutions keep this layout, in which they are a third faster on a CPU.
        pixels = (pixels / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.network.encode_image(pixels).float(), dim=-1)

    def text_features(self, ids: Int[Tensor, "b tokens"]) -> Embeddings:
        """Of unit length. ids: as `tokenizer` gives them, best on the CPU.

        The tower is causal and pools at the end token, so the padding after it changes nothing and
        is left out. Captions are far shorter than the context: this saves most of the work.
        """
        lengths = ids.argmax(dim=1) + 1  # the end token has the largest id of all
        order = lengths.argsort(stable=True)
        groups = [
            self.pooled(ids[rows, : int(lengths[rows[-1]])]) for rows in order.chunk(TEXT_GROUPS)
        ]
        return F.normalize(torch.cat(groups)[order.argsort()].float(), dim=-1)

    def pooled(self, ids: Int[Tensor, "b n"]) -> Embeddings:
        """open_clip's `encode_text` for a text shorter than the context."""
        network, length = self.network, ids.shape[1]
        ids = ids.to(network.token_embedding.weight.device)
        states = network.token_embedding(ids) + network.positional_embedding[:length]
        states = network.transformer(states, attn_mask=network.attn_mask[:length, :length])
        ends = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        return network.ln_final(ends) @ network.text_projection

    @torch.no_grad()
    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Embeddings:
        """Unit vectors, without gradient; on the device of the weights."""
        return self.image_features(images.to(self.network.logit_scale.device))

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Embeddings:
        """Unit vectors, without gradient; on the device of the weights."""
        return self.text_features(self.tokenizer(texts))

    def text_encoder(self) -> TextEncoder:
        """A frozen copy of the text tower: its token states, for a U-Net to attend to."""
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

    def save(self, folder: str | Path) -> None:
        """Writes both towers as `open_clip.create_model("local-dir:FOLDER")` opens them."""
        preprocess = {"size": self.size, "mean": [0.5] * 3, "std": [0.5] * 3}
        content = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        texts = {CONFIG_FILE: dump(content)}
        weights = self.network.state_dict()
        write_weights_folder(Path(folder), WEIGHTS_FILE, weights, {"format": "pt"}, texts)


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> Clip:
    """Both towers of a CLIP that train_clip.py trained, in evaluation mode.

    folder: a run folder, its model/ folder, or the clip/ folder in it.
    """
    folder = Path(folder)
    places = [folder / "model" / "clip", folder / "clip", folder]
    found = [place for place in places if (place / CONFIG_FILE).is_file()]
    if not found:
        raise MissingFileError(
            f"{folder} holds no CLIP of both towers: no {CONFIG_FILE} in "
            f"{', '.join(str(place) for place in places)}. Train one: python train_clip.py --data "
            "DIR --out runs/clip."
        )
    config = read_json(found[0] / CONFIG_FILE)["model_cfg"]
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and then replaced
        clip = Clip(config)
    weights = read_tensors(found[0] / WEIGHTS_FILE)
    what = f"the CLIP that {CONFIG_FILE} beside it describes"
    check_state_dict(weights, clip.network.state_dict(), found[0] / WEIGHTS_FILE, what)
    clip.network.load_state_dict(weights)
    return clip.to(device).eval().requires_grad_(False)


def resnet(size: int, width: int, layers: tuple[int, int, int, int] = (1, 1, 1, 1)) -> dict:
    """open_clip's residual network; on a CPU it learns more per second than a transformer."""
    return {"image_size": size, "layers": list(layers), "width": width, "head_width": 64}


def text_tower(tokens: int, width: int, layers: int) -> dict:
    return {
        "context_length": tokens,
        "vocab_size": 49408,
        "width": width,
        "heads": width // 32,
        "layers": layers,
    }


# Plain open_clip configs, named by the image size and budget they are for.
PRESETS = {
    "tiny-32": {  # tests: seconds
        "embed_dim": 64,
        "vision_cfg": resnet(32, 16),
        "text_cfg": text_tower(24, 64, 2),
    },
    "demo": {  # 32 pixels: at equal time a better text tower than from 48
        "embed_dim": 128,
        "vision_cfg": resnet(32, 24),
        "text_cfg": text_tower(24, 128, 3),
    },
    "small-64": {
        "embed_dim": 192,
        "vision_cfg": resnet(48, 32, (1, 2, 2, 1)),
        "text_cfg": text_tower(32, 128, 3),  # 14 MB in fp16, most of it the vocabulary
    },
    "judge-64": {  # to measure with: unlike the others in depth and width of both towers
        "embed_dim": 192,
        "vision_cfg": resnet(64, 32, (1, 2, 2, 1)),
        "text_cfg": text_tower(24, 192, 2),
    },
}
