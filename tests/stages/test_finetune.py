"""Trainings that begin with weights of another model."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import export
import train_ldm
import train_vae
from autoencoder import PRESETS, Autoencoder
from autoencoder.io import read_provenance
from foundation.errors import UserError
from ldm import TextToImage
from ldm.schedule import ScheduleConfig
from ldm.unet import UNet, UNetConfig
from stages.autoencoder import AutoencoderTrainer
from tests.helpers.bad_calls import refusal
from tests.helpers.images import captioned
from tests.helpers.random_models import make_pipeline

FAST = ("--preset", "tiny-32", "--steps", 2, "--batch-size", 4, "--device", "cpu", "--warmup", 1,
        "--held-out", 0)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return captioned(tmp_path_factory.mktemp("data"), 8)


# Stage 1


def vae(folder: Path, **changes) -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder(replace(PRESETS["tiny-32"], **changes)).eval()
    autoencoder.save(folder)
    return autoencoder


def train_autoencoder(data: Path, source: Path, out: Path, *flags: object) -> Autoencoder:
    given = ("--data", data, "--out", out, "--init-from", source, *FAST, *flags)
    train_vae.main([str(word) for word in given])
    return Autoencoder.load(out).eval()


@pytest.mark.parametrize(
    "scale",
    [
        {},
        {"scaling_factor": 0.18215, "shift_factor": 0.1},
        {"use_quant_conv": False, "use_post_quant_conv": False},
    ],
)
def test_a_frozen_encoder_encodes_to_the_last_bit_as_before(data, tmp_path, scale, capsys):
    before = vae(tmp_path / "source", **scale)
    flags = ("--freeze", "encoder", "--adversarial-weight", 0.5, "--discriminator-start", 0,
             "--adversarial-start", 0, "--discriminator-layers", 2)  # fmt: skip
    after = train_autoencoder(data, tmp_path / "source", tmp_path / "run", *flags)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        a, b = before.encode(images), after.encode(images)
        assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
        assert not torch.equal(before.decode(a.mean), after.decode(a.mean))
    assert before.config == after.config
    assert "bit for bit" in capsys.readouterr().out
    facts = read_provenance(tmp_path / "run")
    assert "frozen" in facts["encoder"] and facts["same_latents_as_sha256"] == [before.sha256]
    assert "latent_statistics_folded_in" not in facts


def test_a_pipeline_takes_another_decoder_of_the_same_latents(data, model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    first = train_autoencoder(data, model, tmp_path / "first", "--freeze", "encoder")
    flags = ("--freeze", "encoder", "--seed", 1)
    train_autoencoder(data, tmp_path / "first", tmp_path / "second", *flags)
    train_autoencoder(data, model, tmp_path / "other")
    for run in ("first", "second", "other"):
        shutil.rmtree(tmp_path / "model" / "vae")
        shutil.copytree(tmp_path / run / "model", tmp_path / "model" / "vae")
        if run == "other":
            with pytest.raises(UserError, match="sha256"):
                TextToImage.load(tmp_path / "model")
        else:
            loaded = TextToImage.load(tmp_path / "model").autoencoder
            assert (loaded.sha256 == first.sha256) == (run == "first")


def test_without_freezing_all_weights_learn_and_the_scale_is_folded_in(data, tmp_path):
    before = vae(tmp_path / "source", scaling_factor=0.18215)
    after = train_autoencoder(data, tmp_path / "source", tmp_path / "run")
    assert after.config.scaling_factor == 1
    ours, theirs = after.encoder.conv_in.weight, before.encoder.conv_in.weight
    assert not torch.equal(ours, theirs)


def test_a_frozen_encoder_that_changed_stops_before_anything_is_written(
    data, tmp_path, monkeypatch, capsys
):
    vae(tmp_path / "source")
    step = AutoencoderTrainer.step

    def replaced(stage, number):
        other = Autoencoder(PRESETS["tiny-32"])
        other.save(tmp_path / "source")
        return step(stage, number)

    monkeypatch.setattr(AutoencoderTrainer, "step", replaced)
    with pytest.raises(UserError, match=str(tmp_path / "source")):
        train_autoencoder(data, tmp_path / "source", tmp_path / "run", "--freeze", "encoder")
    assert not (tmp_path / "run" / "model").exists()


def test_freezing_needs_something_to_freeze(data, tmp_path, capsys):
    given = ["--data", str(data), "--out", str(tmp_path / "run"), "--freeze", "encoder"]
    given += [str(word) for word in FAST]
    assert "--init-from MODEL" in refusal(capsys, train_vae, given)


# Stage 2

ONE = ("--preview-prompts", "a cat")
NOISE = ("--prediction", "noise", "--noise-schedule", "scaled_linear", "--times", "uniform")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    make_pipeline(ScheduleConfig(), "noise").save(folder)
    return folder


def flags(data: Path, model: Path, out: Path, *more: object) -> list[str]:
    given = (
        "--data",
        data,
        "--out",
        out,
        "--vae",
        model,
        "--text-encoder",
        model,
        *FAST,
        *ONE,
        *more,
    )
    return [str(word) for word in given]


@pytest.mark.parametrize("part", ["", "unet"])
def test_a_unet_begins_with_the_weights_of_another(data, model, tmp_path, part):
    """With no learning to speak of it ends with them, too: its config and all its weights."""
    more = ("--init-from", model / part, "--learning-rate", 1e-12, *NOISE)
    train_ldm.main(flags(data, model, tmp_path / "run", *more))
    before, after = UNet.load(model), UNet.load(tmp_path / "run")
    assert after.config == replace(before.config, sample_size=8)
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, rtol=0, atol=1e-9)
    assert TextToImage.load(tmp_path / "run").denoiser.prediction == "noise"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["init_sha256"]) == 64


def test_a_unet_begins_with_a_single_file(data, model, tmp_path):
    export.main([str(model), str(tmp_path / "unet.safetensors"), "--format", "single-file"])
    more = ("--init-from", tmp_path / "unet.safetensors", "--learning-rate", 1e-12, *NOISE)
    train_ldm.main(flags(data, model, tmp_path / "run", *more))
    assert torch.equal(
        UNet.load(model).conv_in.weight, UNet.load(tmp_path / "unet.safetensors").conv_in.weight
    )


def test_flags_other_than_those_of_the_source_are_refused_with_those_to_give(
    data, model, tmp_path, capsys
):
    given = flags(data, model, tmp_path / "run", "--init-from", model)
    message = refusal(capsys, train_ldm, given)
    needed = "--prediction noise --noise-schedule scaled_linear --beta-start 0.00085"
    assert needed in message and "--prediction flow --noise-schedule flow" in message
    assert not (tmp_path / "run").exists()
    (flags_to_give,) = re.findall(r"--prediction noise .*", message)
    train_ldm.main(
        [*given, *flags_to_give.split(), "--times", "uniform", "--dry-run"]
    )  # the flags can be copied


def test_of_a_unet_without_a_scheduler_file_the_flags_are_believed(data, model, tmp_path, capsys):
    UNet.load(model).save(tmp_path / "bare")
    train_ldm.main(
        flags(data, model, tmp_path / "run", "--init-from", tmp_path / "bare", "--dry-run")
    )
    assert "does not say what its U-Net predicts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 16, "out_channels": 16}, "predicts 16 channels.*latents have 4"),
        ({"cross_attention_dim": 48}, "text vectors of width 48.*gives 64"),
        ({"in_channels": 9}, "takes 9 channels and gives 4"),
        ({"num_class_embeds": 10}, "draws from more than noise and a text"),
    ],
)
def test_what_does_not_fit_is_refused(data, model, tmp_path, capsys, change, message):
    config: UNetConfig = UNet.load(model).config
    UNet(replace(config, **change)).save(tmp_path / "unet")
    given = flags(data, model, tmp_path / "run", "--init-from", tmp_path / "unet", *NOISE)
    assert re.search(message, refusal(capsys, train_ldm, given), flags=re.DOTALL)
    assert not (tmp_path / "run").exists()


def test_other_encoders_than_those_of_the_training_are_printed(data, model, tmp_path, capsys):
    vae(tmp_path / "vae" / "model")
    more = ("--init-from", model, "--vae", tmp_path / "vae", "--dry-run", *NOISE)
    train_ldm.main(flags(data, model, tmp_path / "run", *more))
    assert "was trained with the autoencoder of sha256" in capsys.readouterr().out


def test_a_run_resumes_only_with_the_weights_it_began_with(data, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "source")
    given = flags(data, model, tmp_path / "run", "--init-from", tmp_path / "source", *NOISE)
    train_ldm.main(given)
    unet = UNet.load(model)
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    unet.save(tmp_path / "source" / "unet")
    assert "init_sha256" in refusal(capsys, train_ldm, given)


def test_lora_needs_a_model(data, model, tmp_path, capsys):
    given = flags(data, model, tmp_path / "run", "--lora", 2)
    assert "--init-from MODEL" in refusal(capsys, train_ldm, given)
