"""The README.md in the folder of a text encoder."""

from collections.abc import Mapping
from typing import Any

from conditioning.towers import TowerConfig
from conditioning.xlm_roberta import XlmRobertaConfig
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

encoder = TextEncoder.load(".")  # this folder; the tokenizer lies next to it
context = encoder(["a red apple"])  # (1, {tokens}, {width}), one vector per token
null = encoder([""])  # what guidance leads away from
```

```python
from transformers import {model}, {tokenizer}

tokenizer = {tokenizer}.from_pretrained("../tokenizer")
model = {model}.from_pretrained(".")
padded = dict(padding="max_length", truncation=True, max_length={tokens}, return_tensors="pt")
{call}
```"""
CLIP_CALL = """ids = tokenizer(["a red apple"], **padded).input_ids
context = model(ids, output_hidden_states=True).{states}"""
XLM_ROBERTA_CALL = """context = model(**tokenizer(["a red apple"], **padded)).last_hidden_state"""


def model_card_text(config: TowerConfig, facts: Mapping[str, Any], *, tokens: int, pad: str) -> str:
    """Return the text of the model card.

    Args:
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
        "context": f"{tokens} tokens of width {config.hidden_size}, start and end included; "
        f"longer texts are cut, shorter ones filled up with `{pad}`",
        "read after": f"the {facts['layer']} of the {config.num_hidden_layers} layers stored "
        f"here, {with_or_without} the final norm",
        "activation": f"`{config.hidden_act}`",
        "sha256 of the tensors": f"`{facts['sha256']}`",
    }
    is_clip = not isinstance(config, XlmRobertaConfig)
    use = USE.format(
        tokens=tokens,
        width=config.hidden_size,
        model=config.MODEL_CLASS,
        tokenizer=config.TOKENIZER_CLASS,
        call=CLIP_CALL.format(states=states) if is_clip else XLM_ROBERTA_CALL,
    )
    kind = "text tower of a CLIP" if is_clip else "text tower of a multilingual CLIP"
    return render_card(
        "Text encoder: a prompt to one vector per token",
        [
            f"The {kind} in the layout of transformers' `{config.MODEL_CLASS}`, written by "
            f"{program_name()}. A U-Net attends to all of its vectors, padding included.\n\n"
            f"{bullet_list(properties)}",
            use,
            training_section(as_mapping(facts.get("provenance"))),
        ],
        library="transformers",
        tags=["clip", "text-encoder"],
    )
