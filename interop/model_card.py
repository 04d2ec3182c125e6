"""Model cards: the README.md beside weights, front matter and Markdown as Hugging Face reads them.

A card says no more than the other files of its folder do, and no date: the same model saved twice
has the same card. Its snippets run where it lies.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

CARD = "README.md"
LICENCE = """## Licence

None is given here: it is for the author of the weights to choose. The licence of the data that \
they were trained on may bind them."""

# Flags of a training that say what was learned from what; the rest is in latentsmith.json.
TOLD = (
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


def model_card(
    title: str, sections: Sequence[str], *, library: str, tags: Sequence[str], task: str = ""
) -> str:
    """library, tags, task: those of Hugging Face. sections: Markdown; the licence comes last."""
    front = ["---", f"library_name: {library}"]
    front += [f"pipeline_tag: {task}"] if task else []
    front += ["tags:", *(f"- {tag}" for tag in ("latentsmith", *tags)), "---"]
    return "\n\n".join(["\n".join(front), f"# {title}", *sections, LICENCE]) + "\n"


def bullets(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def training(provenance: Mapping[str, Any]) -> str:
    """The section on where the weights come from, as far as `save` was told."""
    flags = mapping(provenance.get("config"))
    facts = {name.replace("_", " "): f"`{flags[name]}`" for name in TOLD if name in flags}
    if "weights" in provenance:
        facts["weights"] = provenance["weights"]
    told = bullets(facts) or "How these weights were trained is not recorded here."
    return f"## Training\n\n{told}"


def mapping(value: Any) -> Mapping[str, Any]:
    """Provenance is free JSON: what is expected to be a mapping may be absent or something else."""
    return value if isinstance(value, Mapping) else {}


def writer() -> str:
    """Who wrote the folder."""
    try:
        return f"Latentsmith {version('latentsmith')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "Latentsmith"


def millions(tensors: Mapping[str, Tensor]) -> str:
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return f"{parameters / 1e6:.3g} million parameters"
