"""Captions and prompts that fill several contexts of the text encoder, one after the other.

They are encoded in the same way in the training's cache, in pictures, and in diffusers.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import check
import export
import sample
import train_ldm
from conditioning import TextEncoder
from conditioning.prompt_syntax import plain_prompt
from conditioning.prompt_weighting import encode_chunks, encode_weighted
from dataset.folder import read_folder
from foundation.errors import UserError
from foundation.files import read_json
from generation.autoguidance import open_weak_model
from generation.prompts import prompt_notes
from ldm import TextToImage
from ldm.unet import UNet
from stages.data import print_long_captions
from stages.diffusion import DiffusionTrainer
from stages.finetune import choose_text_chunks
from stages.flags.diffusion import LORA_TARGETS
from stages.lora import add_adapter, apply_lora, save_lora
from tests.helpers.bad_calls import command, refusal
from tests.helpers.images import picture, write_metadata
from tests.helpers.prompts import AWKWARD
from tests.helpers.random_models import make_pipeline
from tests.helpers.snippets import python_blocks, run

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WORDS = 22  # that fit into one context of tiny-32
SHORT = "a short one"
LONG = "w " * WORDS + "red cat"  # the last two are in the second context


@pytest.fixture(scope="module")
def model() -> TextToImage:
    pipeline = make_pipeline()
    pipeline.chunks = 2
    return pipeline


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, {"config": {"caption_dropout": 0.1}})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Make eight images, some with captions that end in the second context or later."""
    folder = tmp_path_factory.mktemp("data")
    texts = [SHORT, LONG, f"{LONG} {LONG} {LONG}", ""] * 2
    rows = [{"file_name": f"{k}.png", "text": text} for k, text in enumerate(texts)]
    for k in range(len(rows)):
        picture(folder / f"{k}.png", seed=k)
    write_metadata(folder, rows)
    return folder


@pytest.fixture(scope="module")
def training(world, data) -> Callable[..., list[str]]:
    """Return a function: `training(out, *flags)` is the command line of a short training."""
    flags = ("--data", data, "--allow-missing-captions", "--held-out", 0, "--warmup", 1,
             "--steps", 4, "--save-every", 2, "--evaluate-every", 4, "--precision", "fp32",
             "--preview-prompts", LONG, "--text-chunks", 2)  # fmt: skip
    return lambda out, *more: command(train_ldm, world, out, *flags, *more)


@pytest.fixture(scope="module")
def trained(training, tmp_path_factory) -> tuple[Path, DiffusionTrainer]:
    """The run folder, and what was in memory at its end."""
    out, trainers = tmp_path_factory.mktemp("trained") / "run", []

    class Watched(DiffusionTrainer):
        def __init__(self, *parts):
            super().__init__(*parts)
            trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commands.train_ldm.DiffusionTrainer", Watched)
        train_ldm.main(training(out))
    return out, trainers[0]


def context_of(encoder: TextEncoder, text: str, chunks: int = 2) -> torch.Tensor:
    (part,) = plain_prompt(text)
    return encode_weighted(encoder, part.spans, chunks)


def draw(pipeline: TextToImage, prompt: str) -> np.ndarray:
    return np.asarray(pipeline([prompt], steps=3, guidance_scale=3.0, seed=3)[0]).astype(int)


def test_captions_are_encoded_like_prompts(model):
    encoder, texts = model.text_encoder, [*AWKWARD, LONG, ""]
    torch.testing.assert_close(encode_chunks(encoder, texts, 1), encoder(texts))
    expected = torch.cat([context_of(encoder, text, 3) for text in texts])
    torch.testing.assert_close(encode_chunks(encoder, texts, 3), expected)


def test_a_training_uses_all_contexts_and_its_model_records_their_number(trained):
    """In cached captions, in the empty one of caption dropout, in validation and in previews."""
    run, trainer = trained
    encoder, cache = trainer.averaged_pipeline.text_encoder, trainer.cache
    order = [json.loads(line)["text"] for line in open_metadata(run)]
    assert order == [SHORT, LONG, f"{LONG} {LONG} {LONG}", ""] * 2
    for k, text in enumerate(order):
        generators = [torch.Generator().manual_seed(0)]
        for dropout, expected in ((0.0, text), (1.0, "")):
            _, captions = cache.batch(torch.tensor([k]), generators, dropout)
            context = cache.contexts(captions)
            expected_context = context_of(encoder, expected)
            torch.testing.assert_close(context, expected_context, atol=2e-3, rtol=1e-3)
    assert trainer.validation.conditioning.text.shape[1] == 2 * encoder.tokens
    assert trainer.averaged_pipeline.chunks == trainer.live_pipeline.chunks == 2
    assert read_json(run / "config.json")["text_chunks"] == 2
    for place in ("", "unet"):
        facts = read_json(run / "model" / place / "latentsmith.json")
        assert (facts["provenance"] if place else facts)["text_chunks"] == 2
    ((context, _),) = TextToImage.load(run).condition_on(LONG)
    torch.testing.assert_close(context.text, context_of(encoder, LONG))


def open_metadata(run: Path) -> list[str]:
    data = Path(read_json(run / "config.json")["data"])
    return (data / "metadata.jsonl").read_text().splitlines()


def test_a_resumed_run_ends_with_the_same_weights(trained, training, tmp_path):
    run, _ = trained
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "step-0000004")
    shutil.rmtree(tmp_path / "run" / "model")
    train_ldm.main(training(tmp_path / "run"))
    ours, theirs = UNet.load(tmp_path / "run").state_dict(), UNet.load(run).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_number_of_contexts_is_refused_without_override(
    trained, training, tmp_path, capsys
):
    run, _ = trained
    again = training(tmp_path / "run", "--text-chunks", 1)
    shutil.copytree(run, tmp_path / "run")
    assert "chunks: 2 -> 1" in refusal(capsys, train_ldm, again)
    again += ["--override", "text-chunks=1", "steps=5"]
    message = refusal(capsys, train_ldm, again)
    assert "chunks: cached with 2, now 1" in message and "Delete" in message
    shutil.rmtree(tmp_path / "run" / "cache")
    train_ldm.main(again)
    assert TextToImage.load(tmp_path / "run").chunks == 1


def test_a_word_beyond_the_first_context_has_an_effect_or_gives_a_note(model):
    other = LONG.replace("red", "blue")
    assert not np.array_equal(draw(model, LONG), draw(model, other))
    assert prompt_notes(model, LONG, prompt_weights=False) == []
    one = make_pipeline()
    assert np.array_equal(draw(one, LONG), draw(one, other))
    (note,) = prompt_notes(one, LONG, prompt_weights=False)
    assert "24 tokens" in note and "26" in note and note.endswith("'red cat'")
    (note,) = prompt_notes(model, f"{LONG} {LONG}", prompt_weights=False)
    assert "48 tokens" in note and "52" in note and note.endswith("'w w red cat'")


def test_captions_that_are_cut_are_reported_with_the_number_of_contexts_that_holds_them(
    world, data, training, tmp_path, capsys
):
    train_ldm.main(training(tmp_path / "run", "--dry-run"))
    text = capsys.readouterr().out
    assert "2 of 8 captions are longer than 2 contexts of 24 tokens" in text
    assert (
        "2.png the model does not see 'w w red cat w w" in text
        and "fit with --text-chunks 4" in text
    )
    train_ldm.main(training(tmp_path / "run", "--dry-run", "--text-chunks", 1))
    more = capsys.readouterr().out
    assert "4 of 8 captions are longer than 1 context of 24" in more and "'red cat'" in more
    assert activations(text) > activations(more)
    pairs = read_folder(data, allow_missing_captions=True).pairs
    print_long_captions(pairs, TextEncoder.load(world / "clip"), 4)
    assert capsys.readouterr().out == ""


def activations(text: str) -> float:
    number, unit = re.match(r"([\d.]+) (\w+)", text.split("activations ")[1]).groups()
    return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def test_check_counts_captions_that_are_cut(data, capsys):
    data = str(data)
    check.main([data, "--context-length", "24", "--batch-size", "4", "--allow-missing-captions"])
    assert "4 of 6 are longer than 24 tokens" in capsys.readouterr().out
    check.main([data, "--context-length", "24", "--text-chunks", "2", "--batch-size", "4",
                "--allow-missing-captions"])  # fmt: skip
    assert "2 of 6 are longer than 46 tokens" in capsys.readouterr().out


@pytest.fixture(scope="module")
def single_file(saved, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("file") / "model.safetensors"
    export.main([str(saved), str(file), "--format", "single-file"])
    return file


def test_the_number_survives_saving_and_export(model, saved, single_file, tmp_path):
    assert TextToImage.load(single_file).chunks == 2
    export.main([str(single_file), str(tmp_path / "again"), "--format", "diffusers"])
    loaded = TextToImage.load(tmp_path / "again")
    assert loaded.chunks == 2 and np.array_equal(draw(loaded, LONG), draw(model, LONG))
    loaded.save(tmp_path / "third")
    assert TextToImage.load(tmp_path / "third").chunks == 2


@pytest.mark.parametrize("chunks", [0, "2"])
def test_a_damaged_number_is_refused(saved, tmp_path, chunks):
    shutil.copytree(saved, tmp_path / "model")
    file = tmp_path / "model" / "latentsmith.json"
    file.write_text(json.dumps(read_json(file) | {"text_chunks": chunks}))
    with pytest.raises(UserError, match=f"{chunks!r} .*text_chunks"):
        TextToImage.load(tmp_path / "model")


def test_a_finetuning_uses_the_number_of_the_model_it_begins_with(
    saved, single_file, training, tmp_path, capsys
):
    unet = tmp_path / "unet"
    export.main([str(single_file), str(unet), "--format", "diffusers", "--part", "unet"])
    for source in (saved, saved / "unet", single_file, unet):
        assert choose_text_chunks(None, source) == 2
    capsys.readouterr()
    assert choose_text_chunks(3, saved) == 3
    assert "was trained with --text-chunks 2, and here it gets 3" in capsys.readouterr().out
    given = training(tmp_path / "run", "--vae", saved, "--text-encoder", saved,
                     "--init-from", saved, "--lora", 2, "--dry-run")  # fmt: skip
    place = given.index("--text-chunks")
    train_ldm.main(given[:place] + given[place + 2 :])
    assert "captions fill 2 contexts, one after the other" in capsys.readouterr().out


def test_a_lora_sets_the_number_of_contexts(saved, tmp_path, capsys):
    unet, pipeline = UNet.load(saved), TextToImage.load(saved)
    add_adapter(unet, rank=2, alpha=2.0, targets=LORA_TARGETS)
    save_lora(unet, tmp_path / "not-recorded", {"config": {}})
    apply_lora(pipeline, tmp_path / "not-recorded")
    assert pipeline.chunks == 2 and capsys.readouterr().out == ""
    save_lora(unet, tmp_path / "three", {"config": {"text_chunks": 3}})
    apply_lora(pipeline, tmp_path / "three")
    assert pipeline.chunks == 3 and "--text-chunks 3" in capsys.readouterr().out


def test_a_weak_model_must_read_as_many_contexts(model, tmp_path):
    one = make_pipeline()
    one.save(tmp_path / "one")
    with pytest.raises(ValueError, match="with --text-chunks 1, and the stronger model with 2"):
        open_weak_model(tmp_path / "one", model)
    model.save(tmp_path / "two")
    weaker, _ = open_weak_model(tmp_path / "two", model)
    assert weaker.chunks == 2


def test_a_picture_is_reproduced_from_its_file(saved, tmp_path, capsys):
    flags = ["--model", str(saved), "--out", str(tmp_path), "--device", "cpu"]
    sample.main([LONG, "--steps", "2", *flags])
    assert "warning" not in capsys.readouterr().out
    sample.main(["--reproduce", str(tmp_path / "00000.png"), *flags])
    assert "the same pixels" in capsys.readouterr().out


def test_diffusers_draws_the_same_with_the_code_of_the_model_card(model, saved, monkeypatch):
    text = (saved / "README.md").read_text()
    assert "up to 44 tokens, in 2 contexts of 24" in text
    assert "of 2 contexts one after the other" in (saved / "unet" / "README.md").read_text()
    monkeypatch.chdir(saved)
    names: dict = {}
    for block in python_blocks(text.replace("a red apple", LONG)):
        run(block, names)
    theirs = names["pipeline"]
    theirs.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(3)
    latents = torch.randn(1, *model.latent_shape(32, 32), generator=random)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    given = {"prompt_embeds": names["prompt"], "negative_prompt_embeds": names["empty"]}
    drawn = theirs(latents=latents, **given, **options).images[0]
    assert np.abs(draw(model, LONG) - 255 * drawn).max() <= 1
    first_context = theirs(LONG, latents=latents, **options).images[0]
    assert np.abs(draw(model, LONG) - 255 * first_context).max() > 1


def test_the_card_of_a_model_with_one_context_says_nothing_about_it(tmp_path):
    make_pipeline().save(tmp_path / "model")
    assert "Long prompts" not in (tmp_path / "model" / "README.md").read_text()
    assert TextToImage.load(tmp_path / "model").chunks == 1
