"""Text towers of open_clip's NAME:PRETRAINED, such as ViT-L-14-quickgelu:openai.

Weights are searched on disk before they are downloaded. Only the text tower is read; where the file
format allows it, the weights of the image tower are never in memory.
"""

import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import huggingface_hub
from huggingface_hub import constants
from torch import Tensor

from conditioning.text_model import TextTowerConfig, empty_tower
from conditioning.token_ids import TextTokenizer
from conditioning.tokenizer import OPEN_CLIP_PAD, clip_tokenizer
from conditioning.towers import TowerConfig
from conditioning.unigram_tokenizer import FILE, holds_unigram, load_unigram
from conditioning.xlm_roberta import (
    ARCHITECTURES,
    XlmRobertaConfig,
    empty_xlm_roberta,
    is_of_tower,
    xlm_roberta_weights,
)
from foundation.errors import MissingFileError, UserError
from foundation.files import read_json
from foundation.json_reading import check_type
from interop.open_clip_models import built_in_config
from interop.safetensors_io import read_tensors
from interop.state_dict_check import check_state_dict

TEXT_KEYS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")
NOT_OF_THE_TOWER = (  # image tower, projections, temperature, numbers in OpenAI's first files
    "visual.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "input_resolution",
    "context_length",
    "vocab_size",
)
SUPPORTED_TEXT_CFG = {  # settings of CLIP's text tower; pooling and projection are not used
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
CONTEXT_LENGTH = 77  # tokens that open_clip gives to towers of Hugging Face, if nothing is said
HUB_FILE_NAMES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
NETWORK_TIMEOUT = 5  # seconds


def read_pretrained(source: str) -> tuple[TowerConfig, dict[str, Tensor], TextTokenizer]:
    """Read config, weights (under the tower's names) and tokenizer of NAME:PRETRAINED.

    Raises:
        UserError: there is no such architecture, or its text tower is of another kind.
        MissingFileError: the weights are not on disk and cannot be downloaded.
    """
    name, _, pretrained = source.partition(":")
    text_cfg: dict[str, Any] = built_in_config(name)["text_cfg"]
    if (multilingual := xlm_roberta_config(text_cfg)) is not None:
        return read_multilingual(name, pretrained, text_cfg, multilingual)
    config = read_architecture(name)
    check_activation(name, pretrained, config)
    file = find_weights(name, pretrained)
    weights = read_text_weights(file)
    check_state_dict(weights, empty_tower(config).state_dict(), file, f"the text tower of {name}")
    tokenizer = clip_tokenizer(config.max_position_embeddings, pad=OPEN_CLIP_PAD)
    return config, weights, tokenizer


def read_architecture(name: str) -> TextTowerConfig:
    """Return the text tower that open_clip's built-in config of this name describes."""
    return text_tower_config(name, built_in_config(name))


def text_tower_config(name: str, model_cfg: Mapping[str, Any]) -> TextTowerConfig:
    """Return the config of the text tower in a config of open_clip.

    name: of the architecture, for messages.
    """
    text_cfg: dict[str, Any] = model_cfg["text_cfg"]
    norm_kwargs: dict[str, Any] = text_cfg.get("norm_kwargs") or {}
    unsupported = [
        key for key, value in text_cfg.items() if value and key not in SUPPORTED_TEXT_CFG
    ]
    unsupported += [key for key in norm_kwargs if key != "eps"]
    if unsupported or "multimodal_cfg" in model_cfg:
        raise UserError(
            f"{name} has a text tower unlike CLIP's ({', '.join(unsupported) or 'CoCa'}), for "
            "which a Stable Diffusion pipeline folder has no place. Choose a CLIP, for example "
            "ViT-L-14-quickgelu:openai or ViT-H-14:laion2b_s32b_b79k, or for many languages "
            "xlm-roberta-base-ViT-B-32:laion5b_s13b_b90k."
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
    """Refuse weights trained with one GELU under the name of an architecture with the other.

    There would be no error, only worse embeddings (mlfoundations/open_clip#771).

    Raises:
        UserError: the weights were trained with the other GELU.
    """
    quick = trained_with_quick_gelu(name, pretrained)
    uses_quick = config.hidden_act == "quick_gelu"
    if quick is None or quick == uses_quick:
        return
    plain = name.removesuffix("-quickgelu")
    suitable = f"{plain}-quickgelu" if quick else plain
    raise UserError(
        f"{name}:{pretrained} would be wrong: these weights were trained with "
        f"{'QuickGELU' if quick else 'GELU'}, the architecture {name} uses "
        f"{'QuickGELU' if uses_quick else 'GELU'}. Use {suitable}:{pretrained}."
    )


def trained_with_quick_gelu(name: str, pretrained: str) -> bool | None:
    """Return whether weights were trained with QuickGELU; None if nothing says so.

    open_clip's table says it for its tags, an open_clip_config.json for the file in its folder, and
    file names or names of cache folders with "openai" in them for OpenAI's weights.
    """
    if tag := pretrained_tag(name, pretrained):
        return bool(tag.get("quick_gelu", False))
    file = Path(pretrained)
    described = file.parent / "open_clip_config.json"
    content = read_json(described, default={})
    if content.get("model_cfg") is not None:
        model_cfg = check_type(content["model_cfg"], dict, described, "model_cfg")
        value = model_cfg.get("quick_gelu", False)
        return bool(check_type(value, bool, described, "model_cfg.quick_gelu"))
    names = [part for part in file.parts if part == file.name or part.startswith("models--")]
    return True if any("openai" in part.lower() for part in names) else None


def pretrained_tag(name: str, pretrained: str) -> dict[str, Any]:
    """Return what open_clip has in its table about a tag; empty if it does not have the tag."""
    import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

    return cast(dict[str, Any], open_clip.get_pretrained_cfg(name, pretrained))


def find_weights(name: str, pretrained: str) -> Path:
    """Return the weights file: `pretrained` itself, or the file of that tag.

    The file of a tag is searched in the cache first, and downloaded if it is not there.

    Raises:
        MissingFileError: there is no such tag, or its file is not there and cannot be downloaded.
    """
    if Path(pretrained).is_file():
        return Path(pretrained)
    import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

    tag = pretrained_tag(name, pretrained)
    if not tag:
        tags = cast(list[str], open_clip.list_pretrained_tags_by_model(name))
        raise MissingFileError(
            f"{pretrained!r} is neither a file nor the name of weights that open_clip has for "
            f"{name}. It has: {', '.join(tags) or 'none'}."
        )
    repository, _, file_name = str(tag["hf_hub"]).rpartition("/")
    names = [file_name] if file_name else HUB_FILE_NAMES
    for candidate in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        check_reachable(constants.ENDPOINT)
        file = cast(
            str,
            open_clip.download_pretrained(tag),  # pyright: ignore[reportUnknownMemberType]
        )
        return Path(file)
    except (OSError, RuntimeError) as error:
        raise MissingFileError(
            f"the weights {name}:{pretrained} are not on this machine and could not be downloaded "
            f"({error}). Looked for {' or '.join(names)} of {repository} in "
            f"{constants.HF_HUB_CACHE}. Ways out: download that file from "
            f"{constants.ENDPOINT}/{repository} elsewhere and pass its path as "
            f"{name}:{Path('/path/to') / names[0]}; point HF_HOME to a cache that has it; pass a "
            "CLIPTextModel folder; or train a text encoder on your own captions with "
            "train_clip.py, which needs no download."
        ) from None


def check_reachable(address: str) -> None:
    """Fail after seconds without a network, where a download would try for minutes.

    Raises:
        ConnectionError: there is no answer.
    """
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # an error is an answer, too
    except OSError as error:
        raise ConnectionError(f"no answer from {address}: {error}") from None


def read_text_weights(file: Path) -> dict[str, Tensor]:
    """Read all weights but those of known other parts of a CLIP; the caller checks the rest.

    Names may have the prefix "text." (open_clip's custom text towers) or "module." (a model that
    was trained in parallel).
    """

    def bare_name(key: str) -> str:
        return key.removeprefix("module.").removeprefix("text.")

    weights = read_tensors(file, lambda key: not bare_name(key).startswith(NOT_OF_THE_TOWER))
    return {bare_name(key): value for key, value in weights.items()}


# Multilingual CLIPs, whose text tower is XLM-RoBERTa --------------------------------------------


def xlm_roberta_config(text_cfg: Mapping[str, Any]) -> XlmRobertaConfig | None:
    """Return the text tower of a config of open_clip, if it is XLM-RoBERTa; else None.

    open_clip's configs name a model of Hugging Face, or a folder with its config.json.
    """
    model = str(text_cfg.get("hf_model_name") or "")
    if model.removeprefix("FacebookAI/") in ARCHITECTURES:
        return ARCHITECTURES[model.removeprefix("FacebookAI/")]
    file = Path(model) / "config.json"
    content = read_json(file, default={}) if model else {}
    if content.get("model_type") != XlmRobertaConfig.MODEL_TYPE:
        return None
    return XlmRobertaConfig.from_dict(content, file)


def read_multilingual(
    name: str, pretrained: str, text_cfg: Mapping[str, Any], config: XlmRobertaConfig
) -> tuple[XlmRobertaConfig, dict[str, Tensor], TextTokenizer]:
    """Read weights and tokenizer of a CLIP of open_clip whose text tower is XLM-RoBERTa."""
    file = find_weights(name, pretrained)
    weights = xlm_roberta_weights(read_tensors(file, is_of_tower))
    expected = empty_xlm_roberta(config).state_dict()
    check_state_dict(weights, expected, file, f"the text tower of {name}")
    length = text_cfg.get("context_length") or CONTEXT_LENGTH
    source = str(text_cfg.get("hf_tokenizer_name") or text_cfg.get("hf_model_name"))
    return config, weights, load_unigram(find_tokenizer(source, file), config, length)


def find_tokenizer(source: str, weights: Path) -> Path:
    """Return the folder of a tokenizer: that of the weights, or the one that open_clip names.

    It is searched on disk first, and downloaded if it is not there.

    source: a folder, or a repository of the hub.

    Raises:
        MissingFileError: it is not on disk and cannot be downloaded.
    """
    for folder in (weights.parent, Path(source)):
        if holds_unigram(folder):
            return folder
    repositories = (Path(source).name, f"FacebookAI/{Path(source).name}")
    for repository in repositories:
        cached = huggingface_hub.try_to_load_from_cache(repository, FILE)
        if isinstance(cached, str):
            return Path(cached).parent
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        check_reachable(constants.ENDPOINT)
        file = huggingface_hub.hf_hub_download(  # pyright: ignore[reportUnknownMemberType]
            repositories[-1], FILE
        )
        return Path(file).parent
    except (OSError, RuntimeError) as error:
        raise MissingFileError(
            f"the tokenizer {FILE} of {source} is not on this machine and could not be downloaded "
            f"({error}). Looked for it in {weights.parent} and for {' and '.join(repositories)} in "
            f"{constants.HF_HUB_CACHE}. Download {constants.ENDPOINT}/{repositories[-1]}/resolve/"
            f"main/{FILE} elsewhere and put it into {weights.parent}."
        ) from None
