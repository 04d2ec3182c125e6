"""Every way in which tools have named the two matrices of a LoRA gives the same update."""

import json

import pytest
import torch
from safetensors.torch import save_file

from foundation.errors import UserError
from interop.lora import read_lora

UNET, TEXT = "down_blocks.0.attn1", "text_model.encoder.layers.0.self_attn"
DOWN, UP = torch.arange(6.0).reshape(2, 3), torch.ones(4, 2)
NAMES = {
    "peft in diffusers": (
        "unet.{u}.to_q.lora_{A}.weight",
        "text_encoder.{t}.q_proj.lora_{A}.weight",
    ),
    "diffusers": (
        "unet.{u}.to_q.lora.{down}.weight",
        "text_encoder.{t}.q_proj.lora_linear_layer.{down}.weight",
    ),
    "diffusers of 2023": (
        "unet.{u}.processor.to_q_lora.{down}.weight",
        "text_encoder.{t}.to_q_lora.{down}.weight",
    ),
    "peft": (
        "base_model.model.{u}.to_q.lora_{A}.weight",
        "base_model.model.{t}.q_proj.lora_{A}.weight",
    ),
}


def tensors_named(name: str) -> dict[str, torch.Tensor]:
    return {
        key.format(u=UNET, t=TEXT, A=letter, down=word): tensor
        for key in NAMES[name]
        for letter, word, tensor in (("A", "down", DOWN), ("B", "up", UP.clone()))
    }


@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_tools(tmp_path, name):
    file = tmp_path / ("adapter_model.safetensors" if name == "peft" else "lora.safetensors")
    tensors = tensors_named(name)
    save_file({key: value.clone() for key, value in tensors.items()}, file)
    alpha = 1.0
    if name == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 2}))
        alpha = 4.0  # 8 / rank
    updates = read_lora(tmp_path if name == "peft" else file)
    assert {part: set(each) for part, each in updates.items()} == {
        "unet": {f"{UNET}.to_q"},
        "text_encoder": {f"{TEXT}.q_proj"},
    }
    for modules in updates.values():
        for update in modules.values():
            assert torch.equal(update.delta(), alpha * UP @ DOWN)


def test_the_output_projection_of_2023(tmp_path):
    key = f"unet.{UNET}.processor.to_out_lora"
    save_file({f"{key}.down.weight": DOWN, f"{key}.up.weight": UP}, tmp_path / "x.safetensors")
    assert set(read_lora(tmp_path / "x.safetensors")["unet"]) == {f"{UNET}.to_out.0"}


@pytest.mark.parametrize(
    "config",
    [None, {}, {"lora_alpha": "8"}, {"lora_alpha": True}, {"lora_alpha": 8, "use_dora": True}],
)
def test_files_of_peft_need_their_alpha(tmp_path, config):
    tensors = {key: value.clone() for key, value in tensors_named("peft").items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="adapter_"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"alpha": torch.ones(2)}, "alpha"),
        ({"alpha": torch.tensor(float("nan"))}, "alpha"),
        ({"lora_up.weight": torch.tensor(1.0)}, "to_q"),
        ({"lora_up.weight": torch.zeros(4, 3)}, "to_q"),
        ({"lora_up.weight": torch.zeros(4, 0), "lora_down.weight": torch.zeros(0, 3)}, "to_q"),
        ({"\x1b[31m": torch.zeros(1)}, r"x1b\[31m"),
    ],
)
def test_matrices_that_are_none(tmp_path, change, place):
    tensors = {"lora_down.weight": DOWN, "lora_up.weight": UP, **change}
    named = {f"lora_unet_x_to_q.{key}": tensor for key, tensor in tensors.items()}
    save_file(named, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=rf"x\.safetensors.*{place}") as caught:
        read_lora(tmp_path / "x.safetensors")
    assert "\x1b" not in str(caught.value)
