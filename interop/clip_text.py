"""The text tower among the weights of a CLIP, as versions of transformers have stored it."""

from collections.abc import Mapping

from torch import Tensor

PREFIX = "text_model."
WITHOUT_PREFIX = ("embeddings.", "encoder.layers.", "final_layer_norm.")  # since transformers 5
BESIDE_THE_TOWER = (  # parts of a whole CLIP, and indices that older versions of transformers wrote
    "text_model.embeddings.position_ids",
    "text_projection.",
    "visual_projection.",
    "vision_model.",
    "logit_scale",
)


def text_tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of `CLIPTextModel` before transformers 5, which all begin with "text_model."."""
    return {
        PREFIX + key if key.startswith(WITHOUT_PREFIX) else key: value
        for key, value in weights.items()
        if not key.startswith(BESIDE_THE_TOWER)
    }
