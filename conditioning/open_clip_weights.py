"""open_clip's NAME:PRETRAINED, such as ViT-L-14-quickgelu:openai, found on disk before the network.

Only the text tower is read; the image tower's weights are never in memory where the file allows.
"""

import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import open_clip
from huggingface_hub import constants
from torch import Tensor

from conditioning.text_model import TextTowerConfig, empty_tower
from conditioning.tokenizer import Tokenizer
from conditioning.tokenizer_io import OPEN_CLIP_PAD, clip_tokenizer
from foundation.errors import MissingFileError, UserError, did_you_mean
from foundation.files import read_json
from interop.safetensors_io import read_tensors
from interop.state_dict_check import check_state_dict

TEXT_KEYS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
BESIDE_THE_TOWER = (  # the image tower, what joins the two, and numbers of OpenAI's first files
    "visual.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "input_resolution",
    "context_length",
    "vocab_size",
)
PLAIN_TEXT_CFG = {  # what CLIP's text tower can be told; the pooling and projection are not used
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "norm_kwargs",
    "pool_type",
    "eos_id",
    "proj_type",
    "proj_bias",
    "output_tokens",
}
NETWORK_TIMEOUT_SECONDS = 5


def read_pretrained(source: str) -> tuple[TextTowerConfig, dict[str, Tensor], Tokenizer]:
    """Config, weights in open_clip's names and tokenizer of NAME:PRETRAINED."""
    name, _, pretrained = source.partition(":")
    config = read_architecture(name)
    check_activation(name, pretrained, config)
    file = find_weights(name, pretrained)
    weights = read_text_weights(file)
    check_state_dict(weights, empty_tower(config).state_dict(), file, f"the text tower of {name}")
    tokenizer = clip_tokenizer(config.max_position_embeddings, pad=OPEN_CLIP_PAD)
    return config, weights, tokenizer


def read_architecture(name: str) -> TextTowerConfig:
    """The text tower that open_clip's built-in config of this name describes."""
    if name not in open_clip.list_models():
        hint = did_you_mean(name, open_clip.list_models(), count=3)
        raise UserError(f"open_clip has no architecture {name!r}.{hint}")
    model_cfg = open_clip.get_model_config(name)
    return text_tower_config(name, model_cfg)


def text_tower_config(name: str, model_cfg: dict) -> TextTowerConfig:
    text_cfg = model_cfg["text_cfg"]
    norm_kwargs = text_cfg.get("norm_kwargs") or {}
    foreign = [key for key, value in text_cfg.items() if value and key not in PLAIN_TEXT_CFG]
    foreign += [key for key in norm_kwargs if key != "eps"]
    if foreign or "multimodal_cfg" in model_cfg:
        raise UserError(
            f"{name} has another text tower than CLIP's ({', '.join(foreign) or 'CoCa'}): it has "
            "no counterpart in a Stable Diffusion pipeline folder. Choose a CLIP, for example "
            "ViT-L-14-quickgelu:openai or ViT-H-14:laion2b_s32b_b79k."
        )
    width = text_cfg.get("width", 512)
    return TextTowerConfig(
        vocab_size=text_cfg.get("vocab_size", 49408),
        hidden_size=width,
        intermediate_size=int(width * text_cfg.get("mlp_ratio", 4.0)),
        projection_dim=model_cfg["embed_dim"],
        num_hidden_layers=text_cfg.get("layers", 12),
        num_attention_heads=text_cfg.get("heads", 8),
        max_position_embeddings=text_cfg.get("context_length", 77),
        hidden_act="quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
        layer_norm_eps=norm_kwargs.get("eps", 1e-5),
        pad_token_id=0,
    )


def check_activation(name: str, pretrained: str, config: TextTowerConfig) -> None:
    """Refuses weights trained with one GELU under the name of the other: no error would follow,
    only worse embeddings (mlfoundations/open_clip#771)."""
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    file = Path(pretrained)
    beside = read_json(file.parent / "open_clip_config.json", default={}).get("model_cfg")
    if tag:
        trained_with = tag.get("quick_gelu", False)
    elif beside is not None:
        trained_with = beside.get("quick_gelu", False)
    elif any("openai" in p.lower() for p in file.parts if p == file.name or p[:8] == "models--"):
        trained_with = True
    else:
        return  # nothing tells
    uses = config.hidden_act == "quick_gelu"
    if uses != trained_with:
        plain = name.removesuffix("-quickgelu")
        right = f"{plain}-quickgelu" if trained_with else plain
        raise UserError(
            f"{name}:{pretrained} would be wrong: these weights were trained with "
            f"{'QuickGELU' if trained_with else 'GELU'}, the architecture {name} uses "
            f"{'QuickGELU' if uses else 'GELU'}. Use {right}:{pretrained}."
        )


def find_weights(name: str, pretrained: str) -> Path:
    """The weights file: the path given, or the tag's from the cache, or else downloaded."""
    if Path(pretrained).is_file():
        return Path(pretrained)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise MissingFileError(
            f"{pretrained!r} is neither a file nor pretrained weights that open_clip knows for "
            f"{name}. It knows: {', '.join(tags) or 'none'}."
        )
    repository, _, file_name = tag["hf_hub"].rpartition("/")
    names = (
        [file_name] if file_name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    )
    for candidate in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        check_reachable(constants.ENDPOINT)
        return Path(open_clip.download_pretrained(tag))
    except (OSError, RuntimeError) as error:
        example = Path("/path/to") / names[0]
        raise MissingFileError(
            f"the weights {name}:{pretrained} are not on this machine and could not be downloaded "
            f"({error}). Looked for {' or '.join(names)} of {repository} in "
            f"{constants.HF_HUB_CACHE}. Ways out: download that file from "
            f"{constants.ENDPOINT}/{repository} elsewhere and pass its path as {name}:{example}; "
            "point HF_HOME to a cache that has it; pass a CLIPTextModel folder; or train a text "
            "encoder on your own captions, which needs no download: python train_clip.py --data "
            "DIR --out runs/clip."
        ) from None


def check_reachable(address: str) -> None:
    """Raises OSError soon, where a download without a network would try for minutes."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise ConnectionError(f"no answer from {address}: {error}") from None


def read_text_weights(file: Path) -> dict[str, Tensor]:
    """All but what is known to lie beside the text tower, whose names may be those of a custom one
    or of a model that was trained in parallel."""

    def plain(key: str) -> str:
        return key.removeprefix("module.").removeprefix("text.")

    weights = read_tensors(file, lambda key: not plain(key).startswith(BESIDE_THE_TOWER))
    return {plain(key): value for key, value in weights.items()}
