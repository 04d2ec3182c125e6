"""Damaged, incomplete and unsuitable weights files, given to every command that reads one."""

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
    """An object whose pickle calls a function."""

    def __reduce__(self):
        return print, ("this must not run",)


def whole_model() -> dict[str, Tensor]:
    """Make U-Net, autoencoder and text encoder of a small Stable Diffusion 1.x."""
    tensors = compvis.compvis_unet(compvis.make_unet())
    tensors |= with_prefix(AUTOENCODER, compvis.compvis_autoencoder(compvis.make_autoencoder()))
    return tensors | compvis.hugging_face_text(compvis.make_text_encoder(width=768, layers=1))


def remove_some(tensors: dict[str, Tensor]) -> None:
    for part in ("input_blocks.1.0.emb_layers.1", "out.2"):
        del tensors[f"{UNET}{part}.bias"]
    del tensors[f"{AUTOENCODER}encoder.norm_out.bias"]
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]


def add_some(tensors: dict[str, Tensor]) -> None:
    for prefix in (UNET + "out.", AUTOENCODER, "cond_stage_model.transformer.text_model."):
        tensors[f"{prefix}another.weight"] = torch.ones(2, 3)


def reshape_some(tensors: dict[str, Tensor]) -> None:
    tensors[CONV] = tensors[CONV][:, :-1]
    for name in tensors:
        if name.endswith(("middle_block.0.out_layers.3.weight", "layers.0.mlp.fc2.weight")):
            tensors[name] = tensors[name][:, :-1]


def make_xl(tensors: dict[str, Tensor]) -> None:
    wide = {name: (32, 2048) for name in tensors if name.endswith("attn2.to_k.weight")}
    tensors |= {name: torch.zeros(shape) for name, shape in (XL | wide).items()}


def without(*prefixes: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    return change


CHANGED = {
    "incomplete": remove_some,
    "more": add_some,
    "reshaped": reshape_some,
    "xl": make_xl,
    "unet": without(AUTOENCODER, "cond_stage_model."),
    "vae": without(UNET, "cond_stage_model."),
}
KEYS = {  # what the message says about files that can be read
    "incomplete": rf"\d missing: {STORED}\.bias {SHAPE}",
    "more": rf"1 unexpected: {STORED}another\.weight \(2, 3\)",
    "reshaped": rf"1 different: {STORED} is {SHAPE}, expected {SHAPE}",
}
DAMAGED = {
    "truncated": r"\d+ bytes .*\d+",
    "header": r"header .*1000000000 bytes.* \d+",
    "code": r"code.* \S*print\b",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Return kind of fault -> file."""
    root, made = tmp_path_factory.mktemp("files"), {}
    complete = whole_model()
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


READERS = {  # name -> script and flag
    "sample --model": (sample, "--model"),
    "evaluate --model": (evaluate, "--model"),
    "train_ldm --vae": (train_ldm, "--vae"),
    "train_ldm --text-encoder": (train_ldm, "--text-encoder"),
    "train_vae --init-from": (train_vae, "--init-from"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [*DAMAGED, *KEYS])
def test_every_script_refuses_damaged_and_incomplete_files(refused, files, kind, reader):
    file = files[kind]
    text = DAMAGED.get(kind) or rf"{KEYS[kind]}.*a single-file checkpoint"
    refused(READERS[reader][0], rf"{file}.*{text}", READERS[reader][1], file)


@pytest.mark.parametrize(
    ("reader", "kind", "pattern"),
    [
        ("train_ldm --vae", "unet", "autoencoder .*the U-Net of Stable Diffusion 1"),
        ("train_vae --init-from", "unet", "autoencoder .*the U-Net of Stable"),
        ("train_ldm --text-encoder", "unet", "text encoder .*the U-Net of Stable"),
        ("sample --model", "vae", "U-Net .*an autoencoder with CompVis' names"),
        ("sample --model", "unet", "text encoder .*the U-Net of Stable"),
        ("sample --model", "xl", "conditioner.*single-file checkpoint of Stable Diffusion XL"),
    ],
)
def test_every_script_identifies_a_file_of_another_part(refused, files, reader, kind, pattern):
    refused(READERS[reader][0], rf"{files[kind]}.* {pattern}", READERS[reader][1], files[kind])


@pytest.mark.parametrize("part", ["all", "vae", "unet", "text-encoder"])
@pytest.mark.parametrize("kind", [*DAMAGED, *KEYS])
def test_export_refuses_bad_files_and_writes_nothing(files, kind, part, tmp_path, capsys):
    flags = [str(files[kind]), str(tmp_path / "out"), "--format", "diffusers", "--part", part]
    message = mistakes.refusal(capsys, export, flags)
    assert str(files[kind]) in message
    assert re.search(DAMAGED.get(kind) or KEYS[kind], message, flags=re.DOTALL), message
    assert not list(tmp_path.iterdir())
