"""Text to token ids with the vocabulary of a multilingual model: pieces of words, by probability.

The unigram model of SentencePiece (Kudo 2018, arXiv:1804.10959), as XLM-RoBERTa uses it. The file
tokenizer.json says all of it, normalization included, and the package `tokenizers` computes it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conditioning.token_ids import TextTokenizer, check_context_length, longest_text
from conditioning.xlm_roberta import XlmRobertaConfig
from foundation.errors import MissingFileError, UserError
from foundation.files import atomic_folder, read_json, read_text, to_json
from foundation.json_reading import check_type, load_object

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
OTHER_ROLES = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


@dataclass(frozen=True, kw_only=True)
class UnigramTokenizer(TextTokenizer):
    """The tokenizer of a tokenizer.json, truncated and padded to one length.

    content: text of that file.

    Raises:
        UserError: the package tokenizers is missing, the text is no tokenizer, or it lacks one of
            the tokens.
    """

    content: str = field(repr=False)
    context_length: int
    start: str = ROLES["bos_token"]
    end: str = ROLES["eos_token"]
    pad: str = ROLES["pad_token"]
    engine: Any = field(init=False, repr=False, compare=False)  # a Tokenizer of tokenizers

    def __post_init__(self):
        check_context_length(self.context_length)
        object.__setattr__(self, "engine", make_engine(self.content))
        for token in (self.start, self.end, self.pad):
            if self.engine.token_to_id(token) is None:
                raise UserError(
                    f"the tokenizer has no token {token!r}, which starts, ends or pads a text. "
                    f"{FILE} and {SETTINGS} do not belong together; copy the whole folder again."
                )

    def id_of(self, token: str) -> int:
        return self.engine.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        return self.engine.encode(text, add_special_tokens=False).ids

    @property
    def largest_id(self) -> int:
        return max(self.engine.get_vocab(with_added_tokens=True).values())


def make_engine(content: str) -> Any:
    """Make the tokenizer of a tokenizer.json; it neither truncates nor pads.

    Raises:
        UserError: the package is missing, or the text is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise UserError(
            f"{FILE} of a multilingual text encoder is read by the package tokenizers, which is "
            "not installed: pip install tokenizers"
        ) from error
    model: dict[str, Any] = check_type(load_object(content, FILE).get("model"), dict, FILE, "model")
    if model.get("type") != "Unigram":
        raise UserError(
            f"{FILE} holds no unigram model, which the tokenizer of XLM-RoBERTa is. Copy the file "
            "of the model that the weights belong to."
        )
    if not isinstance(model.get("unk_id"), int):
        raise UserError(
            f"{FILE} names no token for unknown characters (unk_id), so a text could have no ids. "
            "Copy it again."
        )
    try:
        engine = Tokenizer.from_str(content)
    except Exception as error:  # the package raises nothing more special
        raise UserError(f"{FILE} is damaged ({error}). Copy it again.") from error
    engine.no_truncation()
    engine.no_padding()
    return engine


def holds_unigram(folder: Path) -> bool:
    """Return whether a folder has the file of such a tokenizer."""
    return (folder / FILE).is_file()


def load_unigram(
    folder: Path, config: XlmRobertaConfig, length: int | None = None
) -> UnigramTokenizer:
    """Read the tokenizer in a folder, for the text encoder that it belongs to.

    length: of the context where the files do not say it; None: as long as the encoder can read.

    Raises:
        MissingFileError: there is no tokenizer.json.
        UserError: it is damaged, or gives ids that the text encoder does not have.
    """
    if not holds_unigram(folder):
        raise MissingFileError(
            f"there is no {FILE} in {folder}. Copy it from the model that the weights belong to. "
            "Where that has only sentencepiece.bpe.model, transformers makes one: "
            f'XLMRobertaTokenizer.from_pretrained("{folder}").save_pretrained("{folder}").'
        )
    settings = read_json(folder / SETTINGS, default={})
    most = config.longest_text if length is None else min(length, config.longest_text)
    roles = {
        role: value if isinstance(value := settings.get(name), str) else default
        for role, (name, default) in zip(("start", "end", "pad"), ROLES.items(), strict=True)
    }
    tokenizer = UnigramTokenizer(
        content=read_text(folder / FILE),
        context_length=longest_text(settings, most, folder),
        **roles,
    )
    check_fits(tokenizer, config, folder)
    return tokenizer


def check_fits(tokenizer: UnigramTokenizer, config: XlmRobertaConfig, folder: Path) -> None:
    """Refuse a tokenizer whose ids are not those of the text encoder."""
    if tokenizer.largest_id >= config.vocab_size:
        raise UserError(
            f"the text encoder has {config.vocab_size} tokens, but the tokenizer in {folder} gives "
            f"ids up to {tokenizer.largest_id}. Put the tokenizer with which the encoder was "
            "trained there."
        )
    pad = tokenizer.id_of(tokenizer.pad)
    if pad != config.pad_token_id:
        raise UserError(
            f"the tokenizer in {folder} pads with the id {pad}, and the text encoder takes the id "
            f"{config.pad_token_id} for padding. They do not belong together."
        )


def save_unigram(tokenizer: UnigramTokenizer, folder: Path) -> None:
    """Write what `transformers.XLMRobertaTokenizer.from_pretrained` opens, with equal ids.

    The files appear all or none; other files in the folder stay.
    """
    roles = {**OTHER_ROLES, "bos_token": tokenizer.start, "eos_token": tokenizer.end}
    roles |= {"cls_token": tokenizer.start, "sep_token": tokenizer.end, "pad_token": tokenizer.pad}
    settings = {
        "tokenizer_class": XlmRobertaConfig.TOKENIZER_CLASS,
        "model_max_length": tokenizer.context_length,
        **roles,
    }
    texts = {
        FILE: tokenizer.content,
        "special_tokens_map.json": to_json(roles),
        SETTINGS: to_json(settings),
    }
    with atomic_folder(folder, keep_others=True) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
