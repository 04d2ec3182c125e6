"""The recipe that captions images, with tiny random models."""

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from dataset.folder import read_folder  # noqa: E402
from foundation.errors import UserError  # noqa: E402
from recipes import caption  # noqa: E402
from tests.helpers.images import picture, truncated  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{k}" for k in range(27))]


SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES["num_attention_heads"] = 2
PIXELS = {"height": 16, "width": 16}
CHAT = (
    "{% for message in messages %}word1 {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}word2"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Save a random BLIP with 32 words."""
    folder = tmp_path_factory.mktemp("blip")
    text = {**SIZES, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 2}
    text |= {"eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config=text,
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    torch.manual_seed(1)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size=PIXELS)
    transformers.BlipProcessor(images, make_tokenizer(folder)).save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path, *more: str):
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *more]))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    return tokenizer


def save_encoder_decoder(folder: Path) -> None:
    """Save a random ViT with a GPT-2, which have no common processor."""
    encoder = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8)
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    decoder = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False, **special
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 2
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 3
    model.save_pretrained(folder)
    make_tokenizer(folder).save_pretrained(folder)
    transformers.ViTImageProcessor(size=PIXELS).save_pretrained(folder)


def save_chat_model(folder: Path) -> None:
    """Save a random LLaVA, whose questions have the picture in the middle."""
    tokenizer = make_tokenizer(folder, "<image>")
    sizes = {**SIZES, "num_key_value_heads": 2, "vocab_size": len(WORDS) + 1}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8),
        text_config=transformers.LlamaConfig(**sizes, bos_token_id=2, eos_token_id=3),
        image_token_index=len(WORDS),
        vision_feature_layer=-1,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size=PIXELS, crop_size=PIXELS)
    transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def run(folder: Path, model: Path, *flags: str) -> None:
    caption.main([str(folder), "--model", str(model), "--max-tokens", "5", *flags])


def test_every_image_gets_a_caption_and_none_is_changed(tmp_path, model):
    for k in range(5):
        picture(tmp_path / "sub" / f"{k}.png", seed=k)
    picture(tmp_path / "sub" / "4.jpg", seed=9)
    (tmp_path / "sub" / "2.txt").write_text("by hand")
    run(tmp_path, model, "--batch-size", "2")
    names = {path.name for path in tmp_path.glob("sub/*.txt")}
    assert names == {"0.txt", "1.txt", "2.txt", "3.txt", "4.png.txt", "4.jpg.txt"}
    assert (tmp_path / "sub" / "2.txt").read_text() == "by hand"
    folder = read_folder(tmp_path)
    assert not folder.without_caption
    assert len(folder.pairs) == 6
    assert set((tmp_path / "sub" / "0.txt").read_text().split()) <= set(WORDS)


def test_a_killed_recipe_goes_on(tmp_path, model, monkeypatch):
    for k in range(4):
        picture(tmp_path / f"{k}.png", seed=k)
    write, written = caption.write_text, []

    def killed(path: Path, text: str) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    monkeypatch.setattr(caption, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model, "--batch-size", "1")
    monkeypatch.setattr(caption, "write_text", write)
    before = {path: path.stat().st_mtime_ns for path in written}
    run(tmp_path, model)
    assert len(list(tmp_path.glob("*.txt"))) == 4
    assert before == {path: path.stat().st_mtime_ns for path in written}


def test_broken_images_are_named_and_the_others_captioned(tmp_path, model, capsys):
    picture(tmp_path / "a.png")
    truncated(tmp_path / "b.jpg")
    with pytest.raises(SystemExit):
        run(tmp_path, model)
    assert "b.jpg" in capsys.readouterr().out
    assert (tmp_path / "a.txt").is_file()
    assert not (tmp_path / "b.txt").exists()


def test_what_cannot_work_is_refused_first(tmp_path, model):
    picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        run(tmp_path, tmp_path / "empty")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x"}))
    with pytest.raises(UserError, match=r"metadata\.jsonl"):
        run(tmp_path, model)
    (tmp_path / "metadata.jsonl").rename(tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"read as a table.*metadata\.parquet"):
        run(tmp_path, model)


@pytest.mark.parametrize("save", [save_encoder_decoder, save_chat_model])
def test_models_of_other_kinds_write_captions_too(tmp_path, save):
    """Random weights write any words, but none of the question."""
    torch.manual_seed(1)
    save(tmp_path)
    for k in range(3):
        picture(tmp_path / "data" / f"{k}.png", size=(20 + k, 16), seed=k)
    run(tmp_path / "data", tmp_path, "--batch-size", "2")
    texts = [file.read_text() for file in sorted(tmp_path.glob("data/*.txt"))]
    assert len(texts) == 3 and all(1 <= len(text.split()) <= 5 for text in texts)


def test_a_chat_model_is_asked_what_the_prompt_says(tmp_path):
    save_chat_model(tmp_path)
    processor, _ = caption.load_processor(transformers, str(tmp_path))
    images = [caption.Image.new("RGB", (16, 16))] * 2
    for prompt, words in ((None, caption.QUESTION), ("word7 word8", "word7 word8")):
        ids = caption.prepare(processor, images, prompt)["input_ids"]
        tokens = processor.tokenizer.convert_ids_to_tokens(ids[1])
        assert tokens.count("<image>") == 4  # patches
        expected = processor.tokenizer.tokenize(words)
        place = tokens.index("<image>") + 4
        assert tokens[place : place + len(expected)] == expected
