"""The README.md in the folder of a text encoder."""

from collections.abc import Mapping
from typing import Any

from interop.model_card import (
    as_mapping,
    bullet_list,
    program_name,
    render_card,
    training_section,
)

USE = """## Use

```python
from conditioning import TextEncoder  # Latentsmith's

encoder = TextEncoder.load(".")  # this folder; the tokenizer lies beside it
context = encoder(["a red apple"])  # (1, {tokens}, {width}), one vector per token
null = encoder([""])  # what guidance leads away from
```

```python
from transformers import CLIPTextModel, CLIPTokenizer

tokenizer = CLIPTokenizer.from_pretrained("../tokenizer")
model = CLIPTextModel.from_pretrained(".")
padded = dict(padding="max_length", truncation=True, max_length={tokens}, return_tensors="pt")
ids = tokenizer(["a red apple"], **padded).input_ids
context = model(ids, output_hidden_states=True).{states}
```"""


def model_card_text(
    config: Mapping[str, Any], facts: Mapping[str, Any], *, tokens: int, pad: str
) -> str:
    """Return the text of the model card.

    Args:
        config: as in config.json.
        facts: as in latentsmith.json.
        tokens: context length.
        pad: the padding token.
    """
    with_or_without = "with" if facts["final_norm"] else "without"
    if facts["final_norm"]:
        states = "last_hidden_state"
    else:
        states = f"hidden_states[{-1 if facts['layer'] == 'last' else -2}]"
    properties = {
        "context": f"{tokens} tokens of width {config['hidden_size']}, start and end included; "
        f"longer texts are cut, shorter ones filled up with `{pad}`",
        "read after": f"the {facts['layer']} of the {config['num_hidden_layers']} layers stored "
        f"here, {with_or_without} the final norm",
        "activation": f"`{config['hidden_act']}`",
        "sha256 of the tensors": f"`{facts['sha256']}`",
    }
    return render_card(
        "Text encoder: a prompt to one vector per token",
        [
            "The text tower of a CLIP in the layout of transformers' `CLIPTextModel`, written by "
            f"{program_name()}. A U-Net attends to all of its vectors, padding included.\n\n"
            f"{bullet_list(properties)}",
            USE.format(tokens=tokens, width=config["hidden_size"], states=states),
            training_section(as_mapping(facts.get("provenance"))),
        ],
        library="transformers",
        tags=["clip", "text-encoder"],
    )
