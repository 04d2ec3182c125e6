"""Text to token ids: CLIP's byte-pair encoding (Radford et al. 2021, arXiv:2103.00020).

One convention for every checkpoint: the text is cleaned as Hugging Face's `CLIPTokenizer` cleans
it, that is Unicode NFC, runs of white space to one space, lower case, and nothing else. The
tokenizer files saved with a model therefore give the ids that training saw, in diffusers too.
open_clip's own tokenizer also repairs wrongly decoded text, straightens curly quotes and unescapes
HTML entities; for text without those the ids are the same.

A tokenizer on disk is a CLIPTokenizer folder: vocab.json, merges.txt, tokenizer_config.json,
special_tokens_map.json. Folders with one tokenizer.json in their place can be read as well.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import regex

from conditioning.token_ids import TextTokenizer, check_context_length, longest_text
from foundation.errors import UserError, one_line, shown
from foundation.files import atomic_folder, read_json, read_text, to_json
from foundation.json_reading import check_type, from_json

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
OPEN_CLIP_NAMES = {"<start_of_text>": START_OF_TEXT, "<end_of_text>": END_OF_TEXT}
OPEN_CLIP_PAD = "!"  # id 0, with which open_clip pads
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
END_OF_WORD = "</w>"

LARGEST_ID = 10**7

Pair = tuple[str, str]  # two adjacent symbols of a word


# Encoding -----------------------------------------------------------------------------------------


def byte_symbols() -> list[str]:
    """Return one printable character for each byte, so that any text is a sequence of them.

    Printable Latin-1 characters stand for themselves; the others get characters from U+0100 on
    (Radford et al. 2019, the encoding of GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_SYMBOLS = byte_symbols()


@dataclass(frozen=True, kw_only=True)
class SpecialToken:
    """A token that is searched in the text as a whole, before the text is split into words."""

    id: int
    normalized: bool = False  # searched in the cleaned text, so in any case of letters


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """An entry of added_tokens_decoder in tokenizer_config.json, or of tokenizer.json."""

    content: str
    normalized: bool = False


@dataclass(frozen=True, kw_only=True)
class MergeTable:
    """The entry "model" of tokenizer.json."""

    vocab: dict[str, int]
    merges: list[str | list[str]]


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """What is read of tokenizer.json."""

    model: MergeTable
    added_tokens: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(frozen=True, kw_only=True)
class Tokenizer(TextTokenizer):
    """Byte-pair encoding with CLIP's start and end tokens, truncated and padded to one length.

    Checkpoints of OpenAI's family in Hugging Face's layout pad with the end token, those of
    open_clip with id 0, which is "!". With the latter, a "!" in the text becomes id 0 as well, as
    it does in the tokenizer of Stable Diffusion 2.

    Raises:
        UserError: the context length has no room for text.
    """

    vocabulary: Mapping[str, int]
    merges: Mapping[Pair, int]  # pair of symbols -> rank; lower ranks merge first
    special: Mapping[str, SpecialToken]
    context_length: int  # tokens, start and end token included
    start: str = START_OF_TEXT
    end: str = END_OF_TEXT
    pad: str = END_OF_TEXT
    unknown: str = END_OF_TEXT
    _ids_of_words: dict[str, tuple[int, ...]] = field(
        default_factory=dict[str, tuple[int, ...]], repr=False, compare=False
    )

    def __post_init__(self):
        check_context_length(self.context_length)

    def id_of(self, token: str) -> int:
        return self.special[token].id if token in self.special else self.vocabulary[token]

    @property
    def largest_id(self) -> int:
        return max(*self.vocabulary.values(), *(token.id for token in self.special.values()))

    def encode(self, text: str) -> list[int]:
        literal = [name for name, token in self.special.items() if not token.normalized]
        normalized = [name for name, token in self.special.items() if token.normalized]
        ids: list[int] = []
        for piece in split_at_tokens(text, literal):
            if piece in literal:
                ids.append(self.special[piece].id)
                continue
            for part in split_at_tokens(clean(piece), normalized):
                if part in normalized:
                    ids.append(self.special[part].id)
                    continue
                for word in WORD.findall(part):
                    ids += self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word not in self._ids_of_words:
            unknown = self.id_of(self.unknown)
            symbols = merge([BYTE_SYMBOLS[byte] for byte in word.encode()], self.merges)
            self._ids_of_words[word] = tuple(self.vocabulary.get(s, unknown) for s in symbols)
        return self._ids_of_words[word]


def clean(text: str) -> str:
    """Convert to NFC and lower case, with one space for each run of white space.

    Lower case is applied letter by letter, as Hugging Face's tokenizers do it: a capital sigma at
    the end of a word becomes a plain one, where `str.lower` would write the final form.
    """
    text = " ".join(regex.split(r"\s+", unicodedata.normalize("NFC", text)))
    return "".join(letter.lower() for letter in text)


def split_at_tokens(text: str, tokens: Iterable[str]) -> list[str]:
    """Split a text at each of the tokens; the tokens are pieces of the result, too."""
    longest_first = sorted(tokens, key=len, reverse=True)
    if not longest_first:
        return [text]
    pattern = "(" + "|".join(map(regex.escape, longest_first)) + ")"
    return [piece or "" for piece in regex.split(pattern, text)]


def merge(symbols: list[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Merge the symbols of one word (byte-pair encoding, Sennrich et al. 2016, arXiv:1508.07909).

    The adjacent pair of lowest rank becomes one symbol, everywhere in the word, until no pair with
    a rank is left.
    """
    symbols = [*symbols[:-1], symbols[-1] + END_OF_WORD]
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        k = 0
        while k < len(symbols):
            if tuple(symbols[k : k + 2]) == best:
                merged.append(symbols[k] + symbols[k + 1])
                k += 2
            else:
                merged.append(symbols[k])
                k += 1
        symbols = merged
    return symbols


# Files --------------------------------------------------------------------------------------------


def clip_tokenizer(context_length: int, pad: str = END_OF_TEXT) -> Tokenizer:
    """Make the tokenizer of CLIP, with its vocabulary of 49,408 tokens.

    The special tokens have the names that Hugging Face gives them.
    """
    return tokenizer_from_settings({"pad_token": pad}, context_length)


def tokenizer_from_settings(
    settings: Mapping[str, Any], context_length: int, source: Path | str = "the header"
) -> Tokenizer:
    """Make a tokenizer with CLIP's vocabulary.

    Args:
        settings: content of a tokenizer_config.json, see `settings_of`.
        source: where they are from, for messages.
    """
    import open_clip  # pyright: ignore[reportMissingTypeStubs] # slow: with torchvision

    clip = open_clip.SimpleTokenizer()
    vocabulary = {OPEN_CLIP_NAMES.get(token, token): i for token, i in clip.encoder.items()}
    merges = {(first, second): rank for (first, second), rank in clip.bpe_ranks.items()}
    return assemble(source, vocabulary, merges, {}, settings, settings, context_length)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what `transformers.CLIPTokenizer.from_pretrained` opens, with equal ids.

    The files appear all or none; other files in the folder stay.
    """
    settings = settings_of(tokenizer)
    roles = {name: value for name, value in settings.items() if name.endswith("_token")}
    ranked = sorted(tokenizer.merges, key=tokenizer.merges.__getitem__)
    texts = {
        "vocab.json": to_json(dict(tokenizer.vocabulary)),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in ranked)]) + "\n",
        "special_tokens_map.json": to_json(roles),
        "tokenizer_config.json": to_json(settings),
    }
    with atomic_folder(folder, keep_others=True) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")


def settings_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer_config.json: all but the vocabulary and the merges."""
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    by_id = sorted(tokenizer.special.items(), key=lambda item: item[1].id)
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.context_length,
        "do_lower_case": True,
        "bos_token": tokenizer.start,
        "eos_token": tokenizer.end,
        "pad_token": tokenizer.pad,
        "unk_token": tokenizer.unknown,
        "added_tokens_decoder": {
            str(token.id): {"content": name, "normalized": token.normalized, **flags}
            for name, token in by_id
        },
    }


def load_tokenizer(folder: Path, context_length: int) -> Tokenizer:
    """Read a CLIPTokenizer folder, with vocab.json and merges.txt or with one tokenizer.json.

    context_length: positions of the text tower. The tokenizer's own `model_max_length` counts
        where it is smaller.
    """
    settings = read_json(folder / "tokenizer_config.json", default={})
    roles = {**settings, **read_json(folder / "special_tokens_map.json", default={})}
    vocabulary, merges, special = read_vocabulary(folder)
    return assemble(folder, vocabulary, merges, special, settings, roles, context_length)


def assemble(
    source: Path | str,
    vocabulary: Mapping[str, int],
    merges: Mapping[Pair, int],
    special: Mapping[str, SpecialToken],
    settings: Mapping[str, Any],
    roles: Mapping[str, Any],
    context_length: int,
) -> Tokenizer:
    """Make a tokenizer from the content of its files.

    Args:
        source: where all this is from, for messages.
        special: special tokens listed elsewhere than in the settings.
        settings: content of tokenizer_config.json.
        roles: which token starts, ends and pads a text, and which stands for unknown symbols.
    """
    added = check_type(
        settings.get("added_tokens_decoder", {}),
        dict[str, dict[str, Any]],
        source,
        "added_tokens_decoder",
    )
    special = {**special, **read_added_tokens(added, source)}
    names: dict[str, str] = {}
    for role, default in (("bos", START_OF_TEXT), ("eos", END_OF_TEXT), ("unk", END_OF_TEXT)):
        names[role] = text_of(roles.get(f"{role}_token")) or default
    names["pad"] = text_of(roles.get("pad_token")) or names["eos"]
    for name in names.values():
        if name in special:
            continue
        if name not in vocabulary:
            raise UserError(
                f"{source} names the special token {shown(name)}, which its vocabulary of "
                f"{len(vocabulary)} tokens does not hold. The files do not belong together; "
                "copy the whole tokenizer folder again."
            )
        normalized = is_normalized(name, settings, roles)
        special[name] = SpecialToken(id=vocabulary[name], normalized=normalized)
    return Tokenizer(
        vocabulary=vocabulary,
        merges=merges,
        special=special,
        context_length=longest_text(settings, context_length, source),
        start=names["bos"],
        end=names["eos"],
        pad=names["pad"],
        unknown=names["unk"],
    )


def holds_tokenizer(folder: Path) -> bool:
    """Return whether a folder has the files of a tokenizer."""
    if not folder.is_dir():
        return False
    files = {file.name for file in folder.iterdir()}
    return {"vocab.json", "merges.txt"} <= files or "tokenizer.json" in files


def read_vocabulary(
    folder: Path,
) -> tuple[dict[str, int], dict[Pair, int], dict[str, SpecialToken]]:
    """Read vocabulary, ranked merges, and the special tokens that tokenizer_config.json lacks."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = read_text(folder / "merges.txt").split("\n")
        pairs = [line for line in lines if line and not line.startswith("#version")]
        vocabulary = read_ids(folder / "vocab.json")
        extra = read_ids(folder / "added_tokens.json", default={})
        special = {name: SpecialToken(id=i) for name, i in extra.items()}
    else:
        file = folder / "tokenizer.json"
        content = from_json(TokenizerFile, read_json(file), file)
        pairs, vocabulary = content.model.merges, content.model.vocab
        check_ids(vocabulary, file)
        added = {
            str(check_type(token.get("id"), int, file, "id")): token
            for token in content.added_tokens
        }
        special = read_added_tokens(added, file)
    if not vocabulary:
        raise UserError(f"the vocabulary of the tokenizer in {folder} is empty. Copy it again.")
    return vocabulary, rank_merges(pairs, folder), special


def read_ids(file: Path, default: dict[str, Any] | None = None) -> dict[str, int]:
    """Read a file of tokens and their ids."""
    ids: dict[str, int] = check_type(read_json(file, default), dict[str, int], file, "its content")
    check_ids(ids, file)
    return ids


def check_ids(ids: Mapping[str, int], file: Path) -> None:
    """Refuse ids that are no rows of a table."""
    for token, number in ids.items():
        if not 0 <= number <= LARGEST_ID:
            raise UserError(
                f"{file}: the token {shown(token)} has the id {shown(number)}; ids are from 0 to "
                f"{LARGEST_ID:,}."
            )


def rank_merges(merges: Sequence[str | list[str]], source: Path) -> dict[Pair, int]:
    """Return the rank of each merge; a file writes it as "first second" or as a list of the two.

    source: where they are written, for messages.
    """
    split = [tuple(merge.split() if isinstance(merge, str) else merge) for merge in merges]
    wrong = next((rank for rank, merge in enumerate(split) if len(merge) != 2), None)
    if wrong is not None:
        raise UserError(
            f"the tokenizer in {source} lists the merge {shown(merges[wrong])}, which is not a "
            "pair of symbols. Copy the folder again."
        )
    return {cast(Pair, pair): rank for rank, pair in enumerate(split)}


def read_added_tokens(
    tokens: Mapping[str, Mapping[str, Any]], source: Path | str
) -> dict[str, SpecialToken]:
    """Return the special tokens that a file lists by id, by their text.

    source: where they are from, for messages.
    """
    special: dict[str, SpecialToken] = {}
    for number, entry in tokens.items():
        token = from_json(AddedToken, entry, f"{source} (added token {one_line(number, 40)})")
        if not number.isascii() or not number.isdecimal() or int(number[:20]) > LARGEST_ID:
            raise UserError(f"{source}: {shown(number)} is no id of a token.")
        special[token.content] = SpecialToken(id=int(number), normalized=token.normalized)
    return special


def is_normalized(name: str, *files: Mapping[str, Any]) -> bool:
    """Return whether a special token is searched in the cleaned text.

    That is so if all places that name it carry `"normalized": true`; a plain string means false.
    """
    flags: list[bool] = []
    for content in files:
        for role, value in content.items():
            if role.endswith("_token") and text_of(value) == name:
                flags.append(
                    isinstance(value, dict)
                    and cast(dict[str, Any], value).get("normalized", False) is True
                )
    return bool(flags) and all(flags)


def text_of(entry: object) -> str | None:
    """Return the text of a special token; None if the entry of a file is not one.

    Files write such a token as a string or as a dict with flags.
    """
    if isinstance(entry, str):
        return entry
    content = cast(dict[str, Any], entry).get("content") if isinstance(entry, dict) else None
    return content if isinstance(content, str) else None
