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


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Save a random BLIP with 32 words."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    text = {**sizes, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "bos_token_id": 2}
    text |= {"eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config=text,
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    torch.manual_seed(1)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


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
