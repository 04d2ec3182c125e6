"""Render model cards: the README.md of a folder of weights, as Hugging Face displays it.

A card states only what the other files of its folder state, and no date: the same model saved twice
has the same card. The code in a card runs in the folder that contains it.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from torch import Tensor

CARD = "README.md"
LICENSE = """## License

No license is given here: choosing one is up to the author of the weights. The license of the \
training data may restrict the choice."""

# Flags of a training that a card repeats; latentsmith.json has them all.
TRAINING_FLAGS = (
    "data",
    "vae",
    "text_encoder",
    "preset",
    "size",
    "steps",
    "batch_size",
    "learning_rate",
    "seed",
)
CAPTION_FLAGS = (  # repeated if they are used
    *("caption_languages", "caption_prefix", "caption_suffix", "shuffle_tags", "keep_tags"),
    *("tag_dropout", "tag_separator", "tag_variants"),
)


def render_card(
    title: str, sections: Sequence[str], *, library: str, tags: Sequence[str], task: str = ""
) -> str:
    """Return the text of a card: front matter, title, sections, and a note on the license.

    Args:
        sections: Markdown, each with its heading.
        library, tags, task: as Hugging Face names libraries, tags and pipelines.
    """
    from huggingface_hub import ModelCardData  # takes longer to import than all of interop

    front_matter = ModelCardData(
        library_name=library, pipeline_tag=task or None, tags=["latentsmith", *tags]
    )
    head = f"---\n{front_matter.to_yaml()}\n---"
    return "\n\n".join([head, f"# {title}", *sections, LICENSE]) + "\n"


def bullet_list(facts: Mapping[str, Any]) -> str:
    """Return a Markdown list with one line per fact."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def training_section(provenance: Mapping[str, Any]) -> str:
    """Return the section on how the weights were trained, as far as `provenance` records it."""
    flags = as_mapping(provenance.get("config"))
    facts = {name.replace("_", " "): f"`{flags[name]}`" for name in TRAINING_FLAGS if name in flags}
    used = (name for name in CAPTION_FLAGS if flags.get(name))
    facts |= {name.replace("_", " "): f"`{flags[name]}`" for name in used}
    if "weights" in provenance:
        facts["weights"] = provenance["weights"]
    text = bullet_list(facts) or "How these weights were trained is not recorded here."
    return f"## Training\n\n{text}"


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return the value, or an empty mapping if it is something else.

    Provenance is JSON that users may write themselves, so an entry can have any type.
    """
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def program_name() -> str:
    """Return the name and version of the program that writes the card."""
    try:
        return f"Latentsmith {version('latentsmith')}"
    except PackageNotFoundError:  # it runs from a checkout that is not installed
        return "Latentsmith"


def parameter_count(tensors: Mapping[str, Tensor]) -> str:
    """Return a number such as "12.3 million parameters"."""
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{count / 1e6:.3g} million parameters"
