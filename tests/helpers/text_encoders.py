"""Text encoders with random weights, for tests."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, XLMRobertaConfig, XLMRobertaModel

from conditioning import TextEncoder
from conditioning.text_model import TextTowerConfig, empty_tower
from conditioning.tokenizer import clip_tokenizer


def random_clip_text_model(**fields) -> CLIPTextModel:
    """Make a small text model of transformers; fields change its config."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "initializer_factor": 5.0,  # far from linear, so that activations and norms matter
        "eos_token_id": 49407,
    }
    model = CLIPTextModel(CLIPTextConfig(**{**settings, **fields})).eval()
    with torch.no_grad():  # norms that do nothing would hide a missing one
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def small_encoder(**fields) -> TextEncoder:
    """Make a small text encoder of ours without any file; fields change its config."""
    config = TextTowerConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **fields
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in empty_tower(config).state_dict().items()
    }
    return TextEncoder(config, weights, clip_tokenizer(config.max_position_embeddings))


# Multilingual -------------------------------------------------------------------------------------

SENTENCES = [
    "a red apple on a wooden table",
    "una manzana roja",
    "红苹果在木桌上",
    "赤いリンゴ",
    "تفاحة حمراء على طاولة",
    "красное яблоко на столе",
    "빨간 사과",
    "Größe, ein roter Apfel",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # with the ids that they have in XLM-RoBERTa
VOCABULARY = 200


def write_unigram_tokenizer(folder: Path, *, normalized: bool = False) -> Path:
    """Train a small unigram tokenizer, and write it as that of XLM-RoBERTa is.

    normalized: with a step that changes the text, as the file of XLM-RoBERTa has one.
    """
    tokenizer = Tokenizer(models.Unigram())
    if normalized:
        changes = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s{2,}"), " ")]
        tokenizer.normalizer = normalizers.Sequence(changes)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY - 1, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 5, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_xlm_roberta(**fields) -> XLMRobertaModel:
    """Make a small model of transformers; fields change its config."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 26,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "initializer_range": 0.5,  # far from linear, so that activations and norms matter
    }
    config = XLMRobertaConfig(**{**settings, **fields})
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():  # norms that do nothing would hide a missing one
        for name, weight in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def write_xlm_roberta(folder: Path, **fields) -> Path:
    """Write text_encoder/ as transformers does, and tokenizer/ beside it."""
    random_xlm_roberta(**fields).save_pretrained(folder / "text_encoder")
    write_unigram_tokenizer(folder / "tokenizer")
    return folder
