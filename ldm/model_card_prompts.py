"""What the card of a whole model says about the length of its prompts."""

from collections.abc import Mapping
from typing import Any

from ldm.text_chunks import TEXT_CHUNKS

LONG = """## Long prompts

In training every caption filled {chunks} contexts of the text encoder, one after the other: each \
of {tokens} tokens, with a start and an end of its own, the last ones with padding alone where the \
caption was short. `TextToImage` hands prompts to the U-Net so, and nothing has to be set. \
diffusers' pipeline hands it the first context alone, on which it was not trained, unless it is \
given all of them:

```python
from conditioning import TextEncoder  # Latentsmith's
from conditioning.prompt_weighting import encode_chunks

encoder = TextEncoder.load(".")
prompt, empty = encode_chunks(encoder, ["a red apple", ""], chunks={chunks}).split(1)
picture = pipeline(
    prompt_embeds=prompt,
    negative_prompt_embeds=empty,
    num_inference_steps=25,
    guidance_scale={guidance},
).images[0]
```"""


def contexts(provenance: Mapping[str, Any]) -> str:
    """What a U-Net reads, if it is several contexts."""
    chunks = provenance.get(TEXT_CHUNKS, 1)
    return f", of {chunks} contexts one after the other" if chunks != 1 else ""


def length(tokens: int, chunks: int) -> str:
    """tokens: that the text encoder reads. chunks: contexts that a prompt fills."""
    if chunks == 1:
        return f"up to {tokens} tokens, start and end included; what is longer is cut"
    words = f"up to {chunks * (tokens - 2)} tokens, in {chunks} contexts of {tokens}"
    return f"{words}, start and end included; what is longer is cut"


def long_prompts(tokens: int, chunks: int, guidance: float) -> list[str]:
    """The section on them, if they fill several contexts."""
    if chunks == 1:
        return []
    return [LONG.format(tokens=tokens, chunks=chunks, guidance=guidance)]
