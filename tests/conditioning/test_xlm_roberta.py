"""The tower of multilingual CLIPs has the states of transformers, whoever wrote the weights."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import XLMRobertaForMaskedLM, XLMRobertaModel

from conditioning import TextEncoder
from conditioning.prompt_weighting import encode_chunks
from conditioning.xlm_roberta import XlmRobertaConfig
from foundation.errors import MissingFileError, UserError
from tests.helpers.random_models import make_pipeline
from tests.helpers.text_encoders import (
    SENTENCES,
    random_xlm_roberta,
    write_unigram_tokenizer,
    write_xlm_roberta,
)

PROMPTS = ["", *SENTENCES, "word " * 50]
VISION_CFG = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


@torch.no_grad()
def states_of_transformers(model: XLMRobertaModel, ids: torch.Tensor, layer: int = -1):
    mask = (ids != model.config.pad_token_id).long()
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return output.hidden_states[layer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_xlm_roberta(tmp_path_factory.mktemp("multilingual"))


def test_a_folder_of_transformers_gives_equal_states(folder):
    encoder = TextEncoder.load(folder)
    theirs = XLMRobertaModel.from_pretrained(folder / "text_encoder", add_pooling_layer=False)
    context, ids = encoder(PROMPTS), encoder.tokenize(PROMPTS)
    expected = states_of_transformers(theirs.eval(), ids)
    assert context.shape == (len(PROMPTS), 24, 48)
    assert (context - expected).abs().max() < 1e-5 * expected.std()
    earlier = TextEncoder.load(folder, layer="penultimate")(PROMPTS)
    expected = states_of_transformers(theirs, ids, layer=-2)
    assert (earlier - expected).abs().max() < 1e-5 * expected.std()


def test_padding_is_not_read(folder):
    """Other tokens in its place would change the states; the number of padding tokens does not."""
    encoder = TextEncoder.load(folder)
    ids = encoder.tokenize(["红苹果"])
    length = int((ids != 1).sum())
    short = encoder.encode(ids[:, : length + 1])
    torch.testing.assert_close(encoder.encode(ids)[:, : length + 1], short)
    ids[:, length] = 5
    assert not torch.allclose(encoder.encode(ids)[:, :length], short[:, :length], atol=1e-2)


def test_a_masked_language_model_is_read_without_its_output(tmp_path):
    config = random_xlm_roberta().config
    model = XLMRobertaForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    write_unigram_tokenizer(tmp_path)
    encoder = TextEncoder.load(tmp_path)
    expected = states_of_transformers(model.roberta, encoder.tokenize(PROMPTS))
    torch.testing.assert_close(encoder(PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_our_folder_opens_in_transformers(folder, tmp_path):
    encoder = TextEncoder.load(folder)
    encoder.save(tmp_path)
    theirs, report = XLMRobertaModel.from_pretrained(
        tmp_path / "text_encoder", add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected = states_of_transformers(theirs.eval(), encoder.tokenize(PROMPTS))
    torch.testing.assert_close(encoder(PROMPTS), expected, rtol=1e-4, atol=1e-5)
    again = TextEncoder.load(tmp_path)
    assert again.sha256 == encoder.sha256 and again.tokens == 24
    assert torch.equal(again(PROMPTS), encoder(PROMPTS))
    assert torch.equal(again.golden_embedding(), encoder.golden_embedding())


def test_the_last_token_of_the_golden_sentence_has_seen_all_of_it(folder):
    """It is what binds a model to tokenizer and weights."""
    encoder = TextEncoder.load(folder)
    last = encoder.golden_embedding()[-1]
    for other in ("a green apple on a wooden table", "a red apple on a wooden chair"):
        assert not torch.allclose(encoder([other])[0, -1], last, atol=1e-3)


def test_several_contexts_follow_each_other(folder):
    encoder = TextEncoder.load(folder)
    assert encode_chunks(encoder, ["word " * 50, "红"], 2).shape == (2, 48, 48)


@pytest.fixture
def checkpoint(tmp_path):
    """Register a tiny multilingual CLIP with open_clip; return its name, the model, the folder."""
    random_xlm_roberta(max_position_embeddings=80).config.save_pretrained(tmp_path / "hub")
    write_unigram_tokenizer(tmp_path)
    model = str(tmp_path / "hub")
    text_cfg = {"hf_model_name": model, "hf_tokenizer_name": model, "hf_pooler_type": "mean_pooler"}
    text_cfg["hf_model_pretrained"] = False
    config = {"embed_dim": 16, "vision_cfg": VISION_CFG, "text_cfg": text_cfg}
    name = f"tiny-xlm-roberta-{tmp_path.name}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    clip = open_clip.create_model(name, pretrained_hf=False).eval()
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "open_clip_pytorch_model.bin")
    return name, clip, tmp_path


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_states_are_those_of_open_clip(checkpoint, file):
    """Their mean over the text, projected, is open_clip's embedding of the text."""
    name, clip, folder = checkpoint
    encoder = TextEncoder.load(f"{name}:{folder / file}")
    assert encoder.tokens == 77
    ids = encoder.tokenize(PROMPTS)
    is_text = (ids != 1)[..., None]
    pooled = (encoder(PROMPTS) * is_text).sum(dim=1) / is_text.sum(dim=1)
    with torch.no_grad():
        expected = clip.encode_text(ids)
        torch.testing.assert_close(clip.text.proj(pooled), expected, rtol=1e-4, atol=1e-5)


def test_a_missing_tokenizer_is_named_with_the_place_for_it(checkpoint, monkeypatch):
    name, _, folder = checkpoint
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingFileError, match=r"tokenizer\.json .*put it into"):
        TextEncoder.load(f"{name}:{folder / 'open_clip_model.safetensors'}")


def test_a_whole_model_is_bound_to_its_tower(folder, tmp_path):
    """It is saved with the classes of transformers, and loads with equal hashes alone."""
    from ldm import TextToImage

    pipeline = make_pipeline(text_encoder=TextEncoder.load(folder))
    pipeline.save(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "XLMRobertaModel"]
    loaded = TextToImage.load(tmp_path / "model")
    drawn = [one(["红苹果"], steps=2, seed=0)[0] for one in (pipeline, loaded)]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.LayerNorm.bias"] += 0.1
    save_file(weights, file)
    with pytest.raises(UserError, match="sha256"):
        TextToImage.load(tmp_path / "model")


def test_diffusers_draws_with_the_saved_model(folder, tmp_path):
    """Its pipeline opens the classes that model_index.json names, and gives them the mask."""
    pipeline = make_pipeline(text_encoder=TextEncoder.load(folder))
    pipeline.save(tmp_path)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(theirs.text_encoder, XLMRobertaModel)
    prompts = ["红苹果", "تفاحة حمراء"]
    contexts = theirs.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=True)
    encoder = pipeline.text_encoder
    torch.testing.assert_close(contexts[0], encoder(prompts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(contexts[1], encoder(["", ""]), rtol=1e-4, atol=1e-5)


def test_settings_that_the_tower_does_not_have_are_refused(folder):
    with pytest.raises(UserError, match="XLM-RoBERTa has a norm"):
        TextEncoder.load(folder, final_norm=False)
    for wrong in ({"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            XlmRobertaConfig.from_dict(wrong, "config.json")
    with pytest.raises(UserError, match="heads"):
        XlmRobertaConfig(hidden_size=50, num_attention_heads=4)
    with pytest.raises(UserError, match="no room"):
        replace(XlmRobertaConfig(), max_position_embeddings=5, pad_token_id=3)
