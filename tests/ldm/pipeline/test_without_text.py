"""Models that read no text, unconditional or of classes, with and without a text encoder."""

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
from foundation.errors import UserError
from generation.prompts import prompt_notes
from ldm import TextToImage
from ldm.guidance import Guidance
from ldm.pipeline.batching import interpolate
from ldm.pipeline.sampling import Sampling
from ldm.pipeline.scheduler_config import LowResSchedule
from ldm.unet import UNetConfig
from tests.helpers.bad_calls import refusal
from tests.helpers.random_models import PROMPT, make_pipeline, pixels, with_unet

UNCONDITIONAL = {
    "down_block_types": ("DownBlock2D",) * 2,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("UpBlock2D",) * 2,
}
CLASSES = {**UNCONDITIONAL, "num_class_embeds": 3}


def make_model(
    unet: dict[str, object], text_encoder: bool = False, classes: tuple[str, ...] = ()
) -> TextToImage:
    """Make a model whose U-Net has these entries in its config."""
    model = with_unet(make_pipeline(), **unet)
    model.classes = classes
    if not text_encoder:
        model.text_encoder = None
    return model


@pytest.mark.parametrize("text_encoder", [True, False])
def test_an_unconditional_model_draws_without_a_prompt_and_refuses_one(text_encoder):
    free = make_model(UNCONDITIONAL, text_encoder)
    calls = []
    first, second = free(["", ""], steps=2, progress=calls.append)
    assert calls == [2, 2] and not np.array_equal(pixels(first), pixels(second))
    with pytest.raises(UserError, match="'a cat'"):
        free(PROMPT)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_classes_are_given_by_name(tmp_path, text_encoder):
    make_model(CLASSES, text_encoder, ("cat", "dog")).save(tmp_path / "model")
    assert (tmp_path / "model" / "text_encoder").exists() == text_encoder
    model = TextToImage.load(tmp_path)
    cat, dog, guided = (
        model.draw(
            model.make_requests([name], seed=[0]), Sampling(steps=2, guidance=Guidance(scale=w))
        )
        for name, w in (("cat", 1.0), ("dog", 1.0), ("dog", 3.0))
    )
    assert not torch.equal(cat[0], dog[0]) and not torch.equal(dog[0], guided[0])
    with pytest.raises(UserError, match=r"'cats'.*'cat'"):
        model(["cats"])
    model.classes = ("cat", "dog", "cow")  # so the empty prompt has no class
    model(["cow"], steps=1, guidance_scale=1.0)
    with pytest.raises(UserError, match="guidance scale 1"):
        model(["cow"], steps=1)


def test_and_blends_classes():
    """The estimate is the sum of those of the classes, times their shares (Liu et al. 2022)."""
    model = make_model(CLASSES, classes=("cat", "dog"))  # of three, so there is "no class"

    def draw(prompt: str, scale: float = 1.0, steps: int = 2) -> torch.Tensor:
        requests = model.make_requests([prompt], seed=[0], prompt_weights=True)
        sampling = Sampling(sampler="euler", steps=steps, guidance=Guidance(scale=scale))
        return model.draw(requests, sampling)[0]

    both = draw("cat AND dog", steps=1)  # one step of Euler is linear in the estimate
    mean = (draw("cat", steps=1) + draw("dog", steps=1)) / 2
    torch.testing.assert_close(both, mean, rtol=0, atol=1e-4)
    assert not torch.allclose(both, draw("cat :0.9 AND dog :0.1", steps=1), atol=1e-4)
    torch.testing.assert_close(draw("dog AND dog", 3.0), draw("dog", 3.0), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"'\(cat:1.3\)' weights words .* 'one :0.7 AND another"):
        draw("(cat:1.3)")
    with pytest.raises(UserError, match=r"no class 'do'.*'dog'"):
        draw("cat AND do")
    cat, dog = (model.make_requests([name], seed=[0])[0] for name in ("cat", "dog"))
    between = interpolate(cat, dog, 0.25)  # not the class in the middle of their numbers
    composed = model.make_requests(["cat :0.75 AND dog :0.25"], seed=[0], prompt_weights=True)[0]
    assert [share for _, share in between.conds] == [share for _, share in composed.conds]
    assert [c.labels.item() for c, _ in between.conds] == [0, 1]
    for share, name in ((0.0, 0), (1.0, 1)):
        ((conditioning, weight),) = interpolate(cat, dog, share).conds
        assert (conditioning.labels.item(), weight) == (name, 1)
    (note,) = prompt_notes(model, "cat AND dog", prompt_weights=True)
    assert "'cat' [share 0.5] AND 'dog' [share 0.5]" in note
    assert not prompt_notes(model, "cat", prompt_weights=True)
    model.classes = ("cat (old)", "dog", "cow")  # all three have a name, so there is no "no class"
    assert torch.isfinite(draw("cat (old)")).all()
    with pytest.raises(UserError, match="AND move away from"):
        draw(r"cat \(old\) AND dog")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_diffusers_draws_the_same_from_the_folder(tmp_path):
    """It needs `text_encoder=None`, and a context that the U-Net does not use."""
    free = make_model(UNCONDITIONAL)
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
    unused = {"prompt_embeds": torch.zeros(1, 1, 1), "guidance_scale": 1.0}
    size = {"height": 32, "width": 32, "num_inference_steps": 5}
    (drawn,) = theirs(latents=latents, **unused, **size).images
    (ours,) = TextToImage.load(tmp_path)([""], steps=5, seed=3)
    assert np.abs(pixels(ours) - pixels(drawn)).max() <= 1


def test_a_unet_config_may_have_null_as_width_of_the_text(tmp_path):
    make_model(UNCONDITIONAL).save(tmp_path / "model")
    file = tmp_path / "model" / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_attention_dim": None}))
    model = TextToImage.load(tmp_path)
    assert np.array_equal(
        pixels(model([""], steps=1)[0]), pixels(make_model(UNCONDITIONAL)([""], steps=1)[0])
    )
    model.unet.save(tmp_path / "again")
    diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "again", low_cpu_mem_usage=False)
    with pytest.raises(UserError, match=r"cross_attention_dim.*CrossAttn"):
        UNetConfig(cross_attention_dim=None)


def test_a_model_that_reads_a_text_needs_its_text_encoder(world, tmp_path, capsys):
    shutil.copytree(world / "ldm", tmp_path / "ldm")
    shutil.rmtree(tmp_path / "ldm" / "model" / "text_encoder")
    flags = ["red", "--model", str(tmp_path / "ldm"), "--out", str(tmp_path / "out")]
    assert "holds no text encoder" in refusal(capsys, sample, flags)
    model = make_pipeline()
    with pytest.raises(UserError, match="text encoder"):
        TextToImage(model.unet, model.autoencoder, None, model.schedule_config, "flow")


def test_an_unconditional_model_can_be_guided_by_a_weak_model_only():
    strong, weak = make_model(UNCONDITIONAL), make_model(UNCONDITIONAL)
    weak.unet.conv_out.weight.data *= 0.5

    def drawn(**options) -> torch.Tensor:
        how = Sampling(steps=2, guidance=Guidance(**options))
        beside = {"weak": weak} if options.get("scale", 4.0) == 3.0 else {}
        return strong.draw(strong.make_requests([""]), how, **beside)[0]

    assert torch.equal(drawn(scale=1.0), drawn())
    with pytest.raises(UserError, match="weaker model"):
        drawn(scale=7.0)
    assert not torch.equal(drawn(scale=1.0), drawn(scale=3.0))
    assert not torch.equal(drawn(scale=3.0), drawn(scale=3.0, rescale=0.5))
    with pytest.raises(UserError, match="weaker model"):
        drawn(scale=7.0, rescale=0.5)


# On the command line


def drawn(model: Path, out: Path, *words: object) -> Path:
    fixed = ("--model", model, "--steps", 2, "--out", out, "--device", "cpu")
    sample.main([str(word) for word in (*words, *fixed)])
    return out / "00000.png"


def test_sample_draws_with_models_without_text(tmp_path, capsys):
    make_model(UNCONDITIONAL).save(tmp_path / "free" / "model")
    make_model(CLASSES, classes=("cat", "dog")).save(tmp_path / "classes" / "model")
    file = drawn(tmp_path / "free", tmp_path / "anything", "--guidance-scale", 0)
    record = json.loads(Image.open(file).text["latentsmith"])
    assert set(record["hashes"]) == {"unet", "autoencoder"}
    again = ["--reproduce", str(file), "--model", str(tmp_path / "free")]
    sample.main([*again, "--out", str(tmp_path / "again"), "--device", "cpu"])
    assert "the same pixels" in capsys.readouterr().out
    cat, dog = (drawn(tmp_path / "classes", tmp_path / name, name) for name in ("cat", "dog"))
    assert cat.read_bytes() != dog.read_bytes()
    for model, words, message in (
        ("free", ["red"], "'red'"),
        ("free", ["", "--negative-prompt", "red"], "'red'"),
        ("classes", ["cow"], "'cow'"),
    ):
        flags = [*words, "--model", str(tmp_path / model), "--out", str(tmp_path / "none")]
        assert message in refusal(capsys, sample, flags)


def test_a_model_without_text_is_exported_and_read_again(tmp_path):
    make_model(UNCONDITIONAL).save(tmp_path / "model")
    given = str(tmp_path / "model")
    export.main([given, str(tmp_path / "folder"), "--format", "diffusers"])
    export.main([given, str(tmp_path / "file.safetensors"), "--format", "single-file"])
    first, *others = (
        TextToImage.load(tmp_path / name)([""], steps=1, height=32, width=32)[0]
        for name in ("model", "folder", "file.safetensors")
    )
    assert all(np.array_equal(pixels(first), pixels(other)) for other in others)


def test_facts_that_a_single_file_cannot_hold_are_not_lost_in_an_export(tmp_path, capsys):
    make_model(CLASSES, classes=("cat", "dog")).save(tmp_path / "classes" / "model")
    upscaler = with_unet(make_pipeline(), in_channels=7, num_class_embeds=1000)
    upscaler.low_res = LowResSchedule(max_noise_level=100)
    upscaler.save(tmp_path / "upscaler" / "model")
    for name, what in (("classes", "names of classes"), ("upscaler", "noise schedule")):
        flags = [str(tmp_path / name), str(tmp_path / "x.safetensors"), "--format", "single-file"]
        assert what in refusal(capsys, export, flags)
