"""Model folders of the three libraries: every form in which others write them, and mix-ups."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from autoencoder import PRESETS as AUTOENCODERS
from autoencoder import Autoencoder
from conditioning import TextEncoder
from conditioning.clip import PRESETS as CLIPS
from conditioning.clip import Clip
from conditioning.text_model import to_hugging_face
from foundation.errors import MissingFileError, UserError
from interop.key_mapping import clip_text_weights
from ldm.unet import PRESETS as UNETS
from ldm.unet import UNet

PARTS = {"vae": Autoencoder, "unet": UNet, "text_encoder": TextEncoder}
PEERS = {
    "vae": diffusers.AutoencoderKL,
    "unet": diffusers.UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
}
FORMS = {
    "plain": {},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "30KB"},
    "shards of a variant": {"variant": "fp16", "max_shard_size": "30KB"},
}
STEMS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model"}
STEMS["text_encoder"] = "model"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """One folder of each part, as we write them."""
    root = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    Autoencoder(AUTOENCODERS["tiny-32"]).save(root / "vae")
    UNet(UNETS["tiny-32"]).save(root / "unet")
    Clip(CLIPS["tiny-32"]).text_encoder().save(root)
    return root


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, TextEncoder):
        return to_hugging_face(model.tower.state_dict())
    weights = model.state_dict()
    return clip_text_weights(weights) if isinstance(model, CLIPTextModel) else weights


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", PARTS)
def test_every_form_of_the_peers_is_read_as_float32(pipeline, tmp_path, part, form):
    theirs = PEERS[part].from_pretrained(pipeline / part, torch_dtype=torch.float32)
    if "variant" in FORMS[form]:
        theirs.half()
    theirs.save_pretrained(tmp_path / part, **FORMS[form])
    names = [path.name for path in (tmp_path / part).iterdir()]
    assert any(".fp16" in name for name in names) == ("variant" in form)
    assert (len(names) > 3) == ("shards" in form), names
    expected, found = weights_of(theirs), weights_of(PARTS[part].load(tmp_path / part))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], value.float())


@pytest.mark.parametrize("part", PARTS)
def test_the_same_model_is_the_same_bytes(pipeline, tmp_path, part):
    def contents(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    for copy in ("once", "twice"):
        target = tmp_path / copy / ("" if part == "text_encoder" else part)
        PARTS[part].load(pipeline / part).save(target)
    once = contents(tmp_path / "once" / part)
    assert once == contents(tmp_path / "twice" / part) == contents(pipeline / part)
    assert f"{STEMS[part]}.safetensors" in once


@pytest.mark.parametrize("form", ["plain", "shards"])
@pytest.mark.parametrize("part", PARTS)
def test_loaded_weights_are_aligned_as_torch_allocates_them(pipeline, tmp_path, part, form):
    """Whatever their place in the file, because sums at another alignment round differently."""
    PEERS[part].from_pretrained(pipeline / part).save_pretrained(tmp_path / part, **FORMS[form])
    model = PARTS[part].load(tmp_path / part)
    assert {weight.data_ptr() % 64 for weight in model.parameters()} == {0}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("moved", ["model/{}", "model"])
def test_a_folder_whose_replacement_was_interrupted_is_restored(pipeline, tmp_path, part, moved):
    """As on systems that cannot exchange two names, after a kill between the two renames."""
    run = tmp_path / "run"
    shutil.copytree(pipeline / part, run / "model" / part)
    folder = run / moved.format(part)
    os.replace(folder, folder.with_name(f".{folder.name}.old"))
    PARTS[part].load(run)
    assert (run / "model" / part).is_dir() and not list(tmp_path.rglob(".*"))


CONTENT = {
    "vae": "an AutoencoderKL with latents of 4 channels",
    "unet": "the U-Net of a text-to-image model with text embeddings of width 64",
    "text_encoder": "a text encoder",
}
PAIRS = [(wanted, given) for wanted in PARTS for given in PARTS if wanted != given]


@pytest.mark.parametrize(("wanted", "given"), PAIRS)
def test_folders_of_another_part_are_refused(pipeline, wanted, given):
    with pytest.raises(UserError, match=PEERS[given].__name__) as error:
        PARTS[wanted].load(pipeline / given)
    assert str(pipeline / given) in str(error.value)


@pytest.mark.parametrize(("wanted", "given"), PAIRS)
def test_weights_of_another_part_are_refused(pipeline, tmp_path, wanted, given):
    folder = shutil.copytree(pipeline / wanted, tmp_path / wanted)
    file = folder / f"{STEMS[wanted]}.safetensors"
    shutil.copy(pipeline / given / f"{STEMS[given]}.safetensors", file)
    pattern = rf"{file} .*\d+ missing: .*\d+ unexpected: .*{CONTENT[given]}"
    with pytest.raises(UserError, match=pattern):
        PARTS[wanted].load(folder)


def without_last(weights: dict[str, Tensor]) -> None:
    del weights[sorted(weights)[-1]]


def with_another(weights: dict[str, Tensor]) -> None:
    weights["another.weight"] = torch.ones(2)


def of_another_shape(weights: dict[str, Tensor]) -> None:
    key = sorted(weights)[-1]
    weights[key] = weights[key][..., :-1].clone()


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (without_last, r"1 difference, 1 missing: \S+ \([\d, ]+\)"),
        (with_another, r"1 difference, 1 unexpected: another.weight \(2,\)"),
        (of_another_shape, r"1 difference, 1 different: \S+ is \([\d, ]+\), expected \([\d, ]+\)"),
    ],
)
@pytest.mark.parametrize("part", PARTS)
def test_incomplete_weights_are_refused(
    pipeline, tmp_path, part, change: Callable[[dict], None], pattern
):
    folder = shutil.copytree(pipeline / part, tmp_path / part)
    file = folder / f"{STEMS[part]}.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(UserError, match=rf"{file} .*{pattern}.*{CONTENT[part]}"):
        PARTS[part].load(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_shard_that_is_missing_is_named(pipeline, tmp_path, part):
    theirs = PEERS[part].from_pretrained(pipeline / part)
    theirs.save_pretrained(tmp_path / part, max_shard_size="30KB")
    index = tmp_path / part / f"{STEMS[part]}.safetensors.index.json"
    lost = json.loads(index.read_text())["weight_map"].popitem()[1]
    (tmp_path / part / lost).unlink()
    with pytest.raises(MissingFileError, match=rf"{lost} .*{index.name}"):
        PARTS[part].load(tmp_path / part)
    index.write_text("{")
    with pytest.raises(UserError, match=index.name):
        PARTS[part].load(tmp_path / part)


def test_a_unet_of_stable_diffusion_xl_is_refused(tmp_path, pipeline):
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )
    theirs.save_pretrained(tmp_path)
    pattern = r"config\.json.*addition_embed_type='text_time'.*Stable Diffusion XL"
    with pytest.raises(UserError, match=pattern):
        UNet.load(tmp_path)
    shutil.copy(pipeline / "unet" / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"unexpected: .* Stable Diffusion XL"):
        UNet.load(tmp_path)


def test_defaults_of_fields_that_old_configs_leave_out(tmp_path):
    """diffusers assumes 1280 for cross_attention_dim; UNetConfig has the 768 of SD 1.x."""
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    short = {key: content[key] for key in ("block_out_channels", "norm_num_groups")}
    short |= {key: content[key] for key in ("down_block_types", "up_block_types")}
    short |= {"layers_per_block": 1}
    (tmp_path / "config.json").write_text(json.dumps(short))
    config = UNet.load(tmp_path).config
    assert (config.cross_attention_dim, config.sample_size) == (1280, None)
