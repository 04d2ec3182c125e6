"""Weights files that are not what they should be, given to every command that takes one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import evaluate
import export
import sample
import train_ldm
import train_vae
from tests.helpers import bad_calls as mistakes
from tests.helpers import compvis_files as compvis
from tests.helpers.compvis_files import AUTOENCODER, UNET, with_prefix, written

SHAPE = r"\([\d, ]+\)"
STORED = r"(model\.diffusion_|first_stage_|cond_stage_)model\.\S*"  # the names in the file
CONV = f"{AUTOENCODER}decoder.mid.block_1.conv1.weight"
XL = {
    f"{UNET}label_emb.0.0.weight": (1280, 2816),
    "conditioner.embedders.0.transformer.x": (1,),
}


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


def whole() -> dict[str, Tensor]:
    """U-Net, autoencoder and text encoder of a small Stable Diffusion 1.x."""
    tensors = compvis.compvis_unet(compvis.make_unet())
    tensors |= with_prefix(AUTOENCODER, compvis.compvis_autoencoder(compvis.make_autoencoder()))
    return tensors | compvis.hugging_face_text(compvis.make_text_encoder(width=768, layers=1))


def lost(tensors: dict[str, Tensor]) -> None:
    for part in ("input_blocks.1.0.emb_layers.1", "out.2"):
        del tensors[f"{UNET}{part}.bias"]
    del tensors[f"{AUTOENCODER}encoder.norm_out.bias"]
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]


def added(tensors: dict[str, Tensor]) -> None:
    for prefix in (UNET + "out.", AUTOENCODER, "cond_stage_model.transformer.text_model."):
        tensors[f"{prefix}another.weight"] = torch.ones(2, 3)


def reshaped(tensors: dict[str, Tensor]) -> None:
    tensors[CONV] = tensors[CONV][:, :-1]
    for name in tensors:
        if name.endswith(("middle_block.0.out_layers.3.weight", "layers.0.mlp.fc2.weight")):
            tensors[name] = tensors[name][:, :-1]


def xl(tensors: dict[str, Tensor]) -> None:
    wide = {name: (32, 2048) for name in tensors if name.endswith("attn2.to_k.weight")}
    tensors |= {name: torch.zeros(shape) for name, shape in (XL | wide).items()}


def without(*prefixes: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    return change


CHANGED = {
    "lost": lost,
    "added": added,
    "reshaped": reshaped,
    "xl": xl,
    "unet": without(AUTOENCODER, "cond_stage_model."),
    "vae": without(UNET, "cond_stage_model."),
}
KEYS = {  # what else is told of files that can be read
    "lost": rf"\d missing: {STORED}\.bias {SHAPE}",
    "added": rf"1 unexpected: {STORED}another\.weight \(2, 3\)",
    "reshaped": rf"1 different: {STORED} is {SHAPE}, expected {SHAPE}",
}
DAMAGED = {
    "truncated": r"damaged .*should have \d+ bytes and has \d+",
    "header": r"damaged .*header should have 1000000000 bytes; the whole file has \d+",
    "code": r"holds code besides tensors: it calls for \S*print\. Nothing of it was run",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """By what is wrong with them."""
    root, made = tmp_path_factory.mktemp("files"), {}
    complete = whole()
    for name, change in CHANGED.items():
        tensors = dict(complete)
        change(tensors)
        (root / name).mkdir()
        made[name] = written(root / name, tensors)
    content = written(root, complete).read_bytes()
    for name, damaged in (
        ("truncated", content[:-1000]),
        ("header", (10**9).to_bytes(8, "little") + content[8:]),
    ):
        made[name] = root / f"{name}.safetensors"
        made[name].write_bytes(damaged)
    made["code"] = root / "code.ckpt"
    torch.save({"state_dict": complete, "callbacks": Code()}, made["code"])
    return made


TAKEN = {  # script, flag, and which part is read first
    "sample --model": (sample, "--model"),
    "evaluate --model": (evaluate, "--model"),
    "train_ldm --vae": (train_ldm, "--vae"),
    "train_ldm --text-encoder": (train_ldm, "--text-encoder"),
    "train_vae --init-from": (train_vae, "--init-from"),
}


@pytest.mark.parametrize("taken", TAKEN)
@pytest.mark.parametrize("kind", [*DAMAGED, *KEYS])
def test_every_script_refuses_damaged_and_incomplete_files(refused, files, kind, taken):
    file = files[kind]
    told = DAMAGED.get(kind) or rf"does not hold .*{KEYS[kind]}.*seems to be a single-file check"
    refused(TAKEN[taken][0], rf"{file}.* {told}", TAKEN[taken][1], file)


@pytest.mark.parametrize(
    ("taken", "kind", "pattern"),
    [
        ("train_ldm --vae", "unet", "no autoencoder .*seems to be the U-Net of Stable Diffusion 1"),
        ("train_vae --init-from", "unet", "no autoencoder .*seems to be the U-Net of Stable"),
        ("train_ldm --text-encoder", "unet", "no text encoder .*seems to be the U-Net of Stable"),
        ("sample --model", "vae", "no U-Net .*seems to be an autoencoder under CompVis' names"),
        ("sample --model", "unet", "no text encoder .*seems to be the U-Net of Stable"),
        ("sample --model", "xl", "conditioner.*single-file checkpoint of Stable Diffusion XL"),
    ],
)
def test_every_script_names_a_file_of_another_part(refused, files, taken, kind, pattern):
    refused(TAKEN[taken][0], rf"{files[kind]}.* {pattern}", TAKEN[taken][1], files[kind])


@pytest.mark.parametrize("part", ["all", "vae", "unet", "text-encoder"])
@pytest.mark.parametrize("kind", [*DAMAGED, *KEYS])
def test_export_refuses_them_and_writes_nothing(files, kind, part, tmp_path, capsys):
    flags = [str(files[kind]), str(tmp_path / "out"), "--format", "diffusers", "--part", part]
    message = mistakes.refusal(capsys, export, flags)
    assert str(files[kind]) in message
    assert re.search(DAMAGED.get(kind) or KEYS[kind], message, flags=re.DOTALL), message
    assert not list(tmp_path.iterdir())
