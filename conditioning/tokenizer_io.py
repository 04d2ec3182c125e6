"""CLIPTokenizer folders: vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json."""

import json
from pathlib import Path

import open_clip

from conditioning.tokenizer import END_OF_TEXT, START_OF_TEXT, SpecialToken, Tokenizer
from foundation.errors import UserError
from foundation.files import read_json

OPEN_CLIP_NAMES = {"<start_of_text>": START_OF_TEXT, "<end_of_text>": END_OF_TEXT}
OPEN_CLIP_PAD = "!"  # id 0, with which open_clip fills up


def clip_tokenizer(context_length: int, pad: str = END_OF_TEXT) -> Tokenizer:
    """CLIP's own vocabulary of 49,408 tokens, special tokens named as Hugging Face names them."""
    return tokenizer_from({"pad_token": pad}, context_length)


def tokenizer_from(settings: dict, context_length: int) -> Tokenizer:
    """With CLIP's own vocabulary. settings: as in a tokenizer_config.json, see `settings_of`."""
    source = open_clip.SimpleTokenizer()
    vocabulary = {OPEN_CLIP_NAMES.get(token, token): i for token, i in source.encoder.items()}
    merges = source.bpe_ranks
    return assemble("the header", vocabulary, merges, {}, settings, settings, context_length)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes what `transformers.CLIPTokenizer.from_pretrained` opens, with equal ids."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(tokenizer)
    roles = {name: value for name, value in settings.items() if name.endswith("_token")}
    ranked = sorted(tokenizer.merges, key=tokenizer.merges.__getitem__)
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in ranked)]) + "\n"
    (folder / "vocab.json").write_text(dump(dict(tokenizer.vocabulary)), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(dump(roles), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(dump(settings), encoding="utf-8")


def settings_of(tokenizer: Tokenizer) -> dict:
    """What tokenizer_config.json says: all but the vocabulary and the merges."""
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
    """Opens a CLIPTokenizer folder, of vocab.json and merges.txt or of one tokenizer.json.

    context_length: positions of the text tower; the tokenizer's own `model_max_length` counts
        where it is smaller.
    """
    settings = read_json(folder / "tokenizer_config.json", default={})
    roles = {**settings, **read_json(folder / "special_tokens_map.json", default={})}
    return assemble(folder, *read_vocabulary(folder), settings, roles, context_length)


def assemble(
    source: Path | str,
    vocabulary: dict[str, int],
    merges: dict[tuple[str, str], int],
    special: dict[str, SpecialToken],
    settings: dict,
    roles: dict,
    context_length: int,
) -> Tokenizer:
    """source: where all this is from, for messages. settings: tokenizer_config.json. roles: which
    token is which."""
    special = special | read_added_tokens(settings.get("added_tokens_decoder", {}))
    names = {}
    for role, default in (("bos", START_OF_TEXT), ("eos", END_OF_TEXT), ("unk", END_OF_TEXT)):
        names[role] = content_of(roles.get(f"{role}_token") or default)
    names["pad"] = content_of(roles.get("pad_token") or names["eos"])
    for name in names.values():
        if name not in special:
            if name not in vocabulary:
                raise UserError(
                    f"{source} names the special token {name!r}, which its vocabulary of "
                    f"{len(vocabulary)} tokens does not hold. The files do not belong together; "
                    "copy the whole tokenizer folder again."
                )
            special[name] = SpecialToken(
                id=vocabulary[name], normalized=found_in_any_case(name, settings, roles)
            )
    return Tokenizer(
        vocabulary=vocabulary,
        merges=merges,
        special=special,
        context_length=min(context_length, int(settings.get("model_max_length", context_length))),
        start=names["bos"],
        end=names["eos"],
        pad=names["pad"],
        unknown=names["unk"],
    )


def holds_tokenizer(folder: Path) -> bool:
    files = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return {"vocab.json", "merges.txt"} <= files or "tokenizer.json" in files


def read_vocabulary(
    folder: Path,
) -> tuple[dict[str, int], dict[tuple[str, str], int], dict[str, SpecialToken]]:
    """Vocabulary, ranked merges, and the special tokens that only tokenizer.json lists."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        vocabulary = read_json(folder / "vocab.json")
        extra = read_json(folder / "added_tokens.json", default={})
        special = {name: SpecialToken(id=i) for name, i in extra.items()}
    else:
        content = read_json(folder / "tokenizer.json")
        pairs = [
            tuple(pair.split()) if isinstance(pair, str) else tuple(pair)
            for pair in content["model"]["merges"]
        ]
        vocabulary = content["model"]["vocab"]
        special = read_added_tokens({token["id"]: token for token in content["added_tokens"]})
    return vocabulary, {pair: rank for rank, pair in enumerate(pairs)}, special


def read_added_tokens(tokens: dict) -> dict[str, SpecialToken]:
    return {
        token["content"]: SpecialToken(id=int(i), normalized=token["normalized"])
        for i, token in tokens.items()
    }


def found_in_any_case(name: str, *roles: dict) -> bool:
    """Whether all mentions of the token carry `"normalized": true`; a plain string means false."""
    mentions = [
        value
        for settings in roles
        for role, value in settings.items()
        if role.endswith("_token") and content_of(value) == name
    ]
    return bool(mentions) and all(
        isinstance(mention, dict) and mention.get("normalized", False) for mention in mentions
    )


def content_of(token: str | dict) -> str:
    """Special tokens stand in the files as plain strings or as a dict with flags."""
    return token["content"] if isinstance(token, dict) else token


def dump(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
