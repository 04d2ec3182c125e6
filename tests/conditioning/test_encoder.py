"""Token states equal those of transformers and of open_clip, whoever wrote the weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from conditioning import TextEncoder
from conditioning.text_model import TextTowerConfig
from conditioning.tokenizer import clip_tokenizer, save_tokenizer
from foundation.errors import MissingFileError, UserError
from tests.helpers.text_encoders import random_clip_text_model, small_encoder

PROMPTS = ["", "a red apple", "wow! 3 cats", "赤いリンゴ ❤️", "word " * 100]


@torch.no_grad()
def states_of_transformers(model: CLIPTextModel, ids: Tensor, layer: int = -1) -> Tensor:
    output = model(input_ids=ids, output_hidden_states=True)
    return output.last_hidden_state if layer == -1 else output.hidden_states[layer]


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.fixture(params=["quick_gelu", "gelu"])
def folder(request, tmp_path):
    """Write a CLIPTextModel folder as transformers does, and the tokenizer in ../tokenizer."""
    random_clip_text_model(hidden_act=request.param).save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(clip_tokenizer(20), tmp_path / "tokenizer")
    return tmp_path


def test_a_folder_of_transformers_gives_equal_states(folder):
    encoder = TextEncoder.load(folder)
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        PROMPTS, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(encoder.tokenize(PROMPTS), ids)
    assert relative_difference(encoder(PROMPTS), states_of_transformers(theirs, ids)) < 1e-5


def test_activations_differ_so_that_the_test_above_can_fail(tmp_path):
    model = random_clip_text_model(hidden_act="gelu")
    model.save_pretrained(tmp_path)
    encoder = TextEncoder.load(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "hidden_act": "quick_gelu"}))
    assert relative_difference(TextEncoder.load(tmp_path)(PROMPTS), encoder(PROMPTS)) > 1e-3


def test_our_folder_opens_in_transformers_with_equal_states(folder, tmp_path):
    encoder = TextEncoder.load(folder)
    encoder.save(tmp_path / "saved")
    theirs, report = CLIPTextModel.from_pretrained(
        tmp_path / "saved" / "text_encoder", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = encoder.tokenize(PROMPTS)
    assert relative_difference(encoder(PROMPTS), states_of_transformers(theirs.eval(), ids)) < 1e-5
    pooled = theirs(input_ids=ids).pooler_output  # found through eos_token_id
    ends = (ids == 49407).int().argmax(dim=1)
    assert torch.allclose(pooled, encoder(PROMPTS)[torch.arange(len(ids)), ends], atol=1e-5)
    keys = load_file(tmp_path / "saved" / "text_encoder" / "model.safetensors").keys()
    assert all(key.startswith("text_model.") for key in keys)


def test_saving_and_loading_changes_nothing(folder, tmp_path):
    encoder = TextEncoder.load(folder)
    encoder.save(tmp_path / "again")
    again = TextEncoder.load(tmp_path / "again")
    assert again.sha256 == encoder.sha256
    assert torch.equal(again(PROMPTS), encoder(PROMPTS))
    assert torch.equal(again.golden_embedding(), encoder.golden_embedding())
    assert (again.width, again.tokens) == (48, 20)


@pytest.mark.parametrize("final_norm", [True, False])
def test_penultimate_layer_with_and_without_the_norm(folder, tmp_path, final_norm):
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    encoder = TextEncoder.load(folder, layer="penultimate", final_norm=final_norm)
    ids = encoder.tokenize(PROMPTS)
    expected = states_of_transformers(theirs, ids, layer=-2)
    if final_norm:
        expected = theirs.final_layer_norm(expected).detach()
    assert relative_difference(encoder(PROMPTS), expected) < 1e-5

    encoder.save(tmp_path / "saved")
    assert torch.equal(TextEncoder.load(tmp_path / "saved")(PROMPTS), encoder(PROMPTS))
    saved = CLIPTextModel.from_pretrained(tmp_path / "saved" / "text_encoder").eval()
    layer = -1 if final_norm else -2  # Stable Diffusion 2 stores one layer less, XL all
    assert relative_difference(states_of_transformers(saved, ids, layer), expected) < 1e-5
    assert saved.config.num_hidden_layers == (2 if final_norm else 3)


def test_frozen_in_evaluation_mode_without_gradient():
    encoder = small_encoder()
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = encoder(PROMPTS)
    assert context.dtype == torch.float32 and not context.requires_grad
    assert torch.equal(context, encoder(PROMPTS))


def test_the_tower_is_causal():
    """A token's state does not depend on later tokens: equal beginnings give equal states."""
    first, second = small_encoder()(["a red apple", "a red house with a garden"])
    assert torch.allclose(first[:3], second[:3], atol=1e-5)
    assert not torch.allclose(first[3], second[3], atol=1e-2)


@pytest.mark.parametrize("tokens", [8, 77])
def test_any_context_length_and_no_dependence_on_the_batch(tokens):
    encoder = small_encoder(max_position_embeddings=tokens)
    together = encoder(PROMPTS)
    assert together.shape == (len(PROMPTS), tokens, 32)
    one_by_one = torch.cat([encoder([prompt]) for prompt in PROMPTS])
    assert torch.allclose(together, one_by_one, atol=1e-5)
    assert encoder([]).shape == (0, tokens, 32)


def test_loading_draws_no_random_numbers(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    TextEncoder.load(folder)
    assert torch.equal(torch.rand(3), expected)


def test_one_string_in_place_of_a_list_is_refused():
    with pytest.raises((UserError, TypeError)):  # the latter from the check of types in tests
        small_encoder()("a red apple")


def test_half_precision_shards_old_and_whole_clip_keys_are_read(folder):
    """Variants that circulate: fp16, an index of shards, position_ids, a projection."""
    expected = TextEncoder.load(folder)(PROMPTS)
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key}": value for key, value in load_file(file).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    weights["text_projection.weight"] = torch.zeros(4, 48)
    file.unlink()
    first, second = dict(list(weights.items())[:7]), dict(list(weights.items())[7:])
    save_file(first, folder / "text_encoder" / "model-00001-of-00002.safetensors")
    save_file(second, folder / "text_encoder" / "model-00002-of-00002.safetensors")
    index = {key: "model-00001-of-00002.safetensors" for key in first}
    index |= {key: "model-00002-of-00002.safetensors" for key in second}
    index_file = folder / "text_encoder" / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert torch.equal(TextEncoder.load(folder)(PROMPTS), expected)

    for shard in (folder / "text_encoder").glob("model*"):
        shard.unlink()
    half = {key: v.half() if v.is_floating_point() else v for key, v in weights.items()}
    save_file(half, folder / "text_encoder" / "model.fp16.safetensors")
    context = TextEncoder.load(folder)(PROMPTS)
    assert context.dtype == torch.float32
    assert 0 < relative_difference(context, expected) < 2e-2


def test_a_folder_without_tokenizer_gets_that_of_clip(folder):
    expected = TextEncoder.load(folder).tokenize(PROMPTS)
    assert torch.equal(TextEncoder.load(folder / "text_encoder").tokenize(PROMPTS), expected)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    assert torch.equal(TextEncoder.load(folder / "text_encoder").tokenize(PROMPTS), expected)


def test_wrong_files_are_named(folder, tmp_path):
    with pytest.raises(MissingFileError, match="nothing"):
        TextEncoder.load(tmp_path / "nothing")
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(MissingFileError, match="UNet2DConditionModel"):
        TextEncoder.load(unet)

    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    broken = {**weights, "final_layer_norm.weight": torch.ones(7), "extra": torch.ones(1)}
    del broken["encoder.layers.0.mlp.fc1.weight"]
    save_file(broken, file)
    with pytest.raises(UserError, match=r"\b3\b.*mlp.fc1.weight \(100, 48\)"):
        TextEncoder.load(folder)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=file.name):
        TextEncoder.load(folder)
    file.unlink()
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MissingFileError, match="pickle"):
        TextEncoder.load(folder)


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(folder):
    random_clip_text_model(vocab_size=1000).save_pretrained(folder / "text_encoder")
    with pytest.raises(UserError, match=r"1000.*49407"):
        TextEncoder.load(folder)


@pytest.mark.parametrize("fields", [{"hidden_act": "relu"}, {"num_attention_heads": 5}])
def test_towers_unlike_those_of_clip_are_refused(fields):
    with pytest.raises(UserError):
        TextTowerConfig(**fields)


@pytest.mark.parametrize("facts", [{"layer": "first"}, {"layer": 3}])
def test_an_unknown_layer_in_the_files_is_refused(folder, facts):
    (folder / "text_encoder" / "latentsmith.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=str(facts["layer"])):
        TextEncoder.load(folder)
