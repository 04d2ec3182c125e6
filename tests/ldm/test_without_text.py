"""Models that read no text: of one kind of picture, or of classes; with a text encoder or none."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import export
import sample
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.unet import UNetConfig
from tests.helpers.bad_calls import refusal
from tests.helpers.random_models import PROMPT, make_pipeline, pixels, with_unet

FREE = {
    "down_block_types": ("DownBlock2D",) * 2,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("UpBlock2D",) * 2,
}
CLASSES = {**FREE, "num_class_embeds": 3}


def model_of(kind: dict, text_encoder: bool = False, classes: tuple[str, ...] = ()) -> TextToImage:
    model = with_unet(make_pipeline(), **kind)
    model.classes = classes
    if not text_encoder:
        model.text_encoder = None
    return model


@pytest.mark.parametrize("text_encoder", [True, False])
def test_a_model_of_one_kind_of_picture(text_encoder):
    free = model_of(FREE, text_encoder)
    calls = []
    first, second = free(["", ""], steps=2, progress=calls.append)
    assert calls == [2, 2] and not np.array_equal(pixels(first), pixels(second))
    with pytest.raises(ValueError, match="reads no prompt, but got 'a cat'"):
        free(PROMPT)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_classes_by_name(tmp_path, text_encoder):
    model_of(CLASSES, text_encoder, ("cat", "dog")).save(tmp_path / "model")
    assert (tmp_path / "model" / "text_encoder").exists() == text_encoder
    model = TextToImage.load(tmp_path)
    cat, dog, guided = (
        model.draw(
            model.make_requests([name], seed=[0]), Sampling(steps=2, guidance=Guidance(scale=w))
        )
        for name, w in (("cat", 1.0), ("dog", 1.0), ("dog", 3.0))
    )
    assert not torch.equal(cat[0], dog[0]) and not torch.equal(dog[0], guided[0])
    with pytest.raises(ValueError, match=r"no class 'cats'. Did you mean 'cat'"):
        model(["cats"])
    model.classes = ("cat", "dog", "cow")  # no class is left for "no class"
    model(["cow"], steps=1, guidance_scale=1.0)
    with pytest.raises(ValueError, match=r'not taught "no class".*guidance scale 1'):
        model(["cow"], steps=1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_diffusers_draws_the_same_from_the_folder(tmp_path):
    """It asks to be told that there is no text encoder, and for a context that nothing looks at."""
    free = model_of(FREE)
    free.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "README.md",
        "latentsmith.json",
        "model_index.json",
        "scheduler",
        "unet",
        "vae",
    }
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", text_encoder=None, tokenizer=None, low_cpu_mem_usage=False
    )
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    nothing = {"prompt_embeds": torch.zeros(1, 1, 1), "guidance_scale": 1.0}
    size = {"height": 32, "width": 32, "num_inference_steps": 5}
    (drawn,) = theirs(latents=latents, **nothing, **size).images
    (ours,) = TextToImage.load(tmp_path)([""], steps=5, seed=3)
    assert np.abs(pixels(ours) - pixels(drawn)).max() <= 1


def test_a_config_may_leave_the_width_of_the_text_open(tmp_path):
    model_of(FREE).save(tmp_path / "model")
    file = tmp_path / "model" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_attention_dim": None}))
    model = TextToImage.load(tmp_path)
    assert np.array_equal(pixels(model([""], steps=1)[0]), pixels(model_of(FREE)([""], steps=1)[0]))
    model.unet.save(tmp_path / "again")
    diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "again", low_cpu_mem_usage=False)
    with pytest.raises(ValueError, match=r"cross_attention_dim is None.*look at one"):
        UNetConfig(cross_attention_dim=None)


def test_a_model_that_reads_a_text_needs_its_text_encoder(world, tmp_path, capsys):
    shutil.copytree(world / "ldm", tmp_path / "ldm")
    shutil.rmtree(tmp_path / "ldm" / "model" / "text_encoder")
    flags = ["red", "--model", str(tmp_path / "ldm"), "--out", str(tmp_path / "out")]
    assert "holds no text encoder" in refusal(capsys, sample, flags)
    model = make_pipeline()
    with pytest.raises(ValueError, match="text encoder"):
        TextToImage(model.unet, model.autoencoder, None, model.schedule_config, "flow")


def test_a_weaker_model_is_all_that_guides_a_model_without_text():
    strong, weak = model_of(FREE), model_of(FREE)
    weak.unet.conv_out.weight.data *= 0.5

    def drawn(**options) -> torch.Tensor:
        how = Sampling(steps=2, guidance=Guidance(**options))
        beside = {"weak": weak} if options.get("scale", 4.0) == 3.0 else {}
        return strong.draw(strong.make_requests([""]), how, **beside)[0]

    assert torch.equal(drawn(scale=1.0), drawn())
    with pytest.raises(ValueError, match="nothing to lead away from but a weaker model"):
        drawn(scale=7.0)
    assert not torch.equal(drawn(scale=1.0), drawn(scale=3.0))
    assert not torch.equal(drawn(scale=3.0), drawn(scale=3.0, rescale=0.5))
    with pytest.raises(ValueError, match="nothing to lead away from but a weaker model"):
        drawn(scale=7.0, rescale=0.5)


# On the command line.


def drawn(model: Path, out: Path, *words: object) -> Path:
    fixed = ("--model", model, "--steps", 2, "--out", out, "--device", "cpu")
    sample.main([str(word) for word in (*words, *fixed)])
    return out / "00000.png"


def test_pictures_of_anything_and_of_classes(tmp_path, capsys):
    model_of(FREE).save(tmp_path / "free" / "model")
    model_of(CLASSES, classes=("cat", "dog")).save(tmp_path / "classes" / "model")
    file = drawn(tmp_path / "free", tmp_path / "anything", "--guidance-scale", 0)
    record = json.loads(Image.open(file).text["latentsmith"])
    assert set(record["hashes"]) == {"unet", "autoencoder"}
    sample.main(["--from-png", str(file), "--out", str(tmp_path / "again"), "--device", "cpu"])
    assert "the same pixels" in capsys.readouterr().out
    cat, dog = (drawn(tmp_path / "classes", tmp_path / name, name) for name in ("cat", "dog"))
    assert cat.read_bytes() != dog.read_bytes()
    for model, words, message in (
        ("free", ["red"], "reads no prompt, but got 'red'"),
        ("free", ["", "--negative-prompt", "red"], "reads no prompt, but got 'red'"),
        ("classes", ["cow"], "no class 'cow'"),
    ):
        flags = [*words, "--model", str(tmp_path / model), "--out", str(tmp_path / "none")]
        assert message in refusal(capsys, sample, flags)


def test_a_model_without_text_is_exported_and_read_again(tmp_path):
    model_of(FREE).save(tmp_path / "model")
    given = str(tmp_path / "model")
    export.main([given, str(tmp_path / "folder"), "--format", "diffusers"])
    export.main([given, str(tmp_path / "file.safetensors"), "--format", "single-file"])
    first, *others = (
        TextToImage.load(tmp_path / name)([""], steps=1, height=32, width=32)[0]
        for name in ("model", "folder", "file.safetensors")
    )
    assert all(np.array_equal(pixels(first), pixels(other)) for other in others)


def test_what_a_single_file_cannot_say_is_not_exported_to_one(tmp_path, capsys):
    model_of(CLASSES, classes=("cat", "dog")).save(tmp_path / "classes" / "model")
    upscaler = with_unet(make_pipeline(), in_channels=7, num_class_embeds=1000)
    upscaler.low_res = LowResSchedule(max_noise_level=100)
    upscaler.save(tmp_path / "upscaler" / "model")
    for name, what in (("classes", "names of classes"), ("upscaler", "a schedule of its own")):
        flags = [str(tmp_path / name), str(tmp_path / "x.safetensors"), "--format", "single-file"]
        assert what in refusal(capsys, export, flags)
