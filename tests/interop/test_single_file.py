"""Single files with CompVis' names give the same networks as diffusers and transformers."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from autoencoder import Autoencoder
from conditioning import TextEncoder
from conditioning.tokenizer import clip_tokenizer, save_tokenizer
from foundation.errors import UserError
from ldm import TextToImage
from ldm.pipeline.io import infer_prediction
from ldm.pipeline.scheduler_config import from_single_file
from ldm.schedule import ScheduleConfig, make_schedule
from ldm.unet import UNet, UNetConfig
from tests.helpers import compvis_files as compvis
from tests.helpers.compvis_files import AUTOENCODER, UNET, with_prefix, written

PROMPTS = ["", "a red apple", "wow! two cats", "word " * 100]
ZERO_TERMINAL_SNR = ScheduleConfig(zero_terminal_snr=True)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    """Assert that no difference exceeds 1e-5 standard deviations."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.std()


# Networks


@torch.no_grad()
@pytest.mark.parametrize("family", compvis.FAMILIES)
def test_a_unet_equals_that_of_diffusers(family, tmp_path):
    theirs = compvis.make_unet(family)
    unet = UNet.load(written(tmp_path, compvis.compvis_unet(theirs))).eval()
    latents = torch.randn(2, 4, 8, 12)
    context = torch.randn(2, 5, theirs.config.cross_attention_dim)
    for t in (0.0, 500.5, 999.0):
        timesteps = torch.tensor([t, t])
        expected = theirs(latents, timesteps, context).sample
        assert_near(unet(latents, timesteps, context), expected)
    weights = theirs.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in unet.state_dict().items())


@torch.no_grad()
def test_a_bare_unet_and_one_in_half_precision(tmp_path):
    theirs = compvis.make_unet()
    bare = {k.removeprefix(UNET): v.half() for k, v in compvis.compvis_unet(theirs).items()}
    unet, weights = UNet.load(written(tmp_path, bare)), theirs.state_dict()
    assert all(torch.equal(weights[k].half().float(), v) for k, v in unet.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("prefix", [AUTOENCODER, ""])
def test_an_autoencoder_equals_that_of_diffusers(prefix, convolutions, tmp_path):
    settings = {"use_quant_conv": convolutions, "use_post_quant_conv": convolutions}
    theirs = compvis.make_autoencoder(**settings)
    tensors = with_prefix(prefix, compvis.compvis_autoencoder(theirs))
    tensors["loss.logvar"] = torch.zeros(())  # of a training checkpoint
    tensors["scale_factor"] = torch.tensor(0.18215)
    autoencoder = Autoencoder.load(written(tmp_path, tensors))
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    latents = theirs.encode(images).latent_dist.mode() * 0.18215
    assert_near(autoencoder.encode(images).mode(), latents)
    assert_near(autoencoder.decode(latents), theirs.decode(latents / 0.18215).sample)


@pytest.mark.parametrize(
    ("channels", "others", "scale", "shift"),
    [
        (4, {}, 0.18215, None),  # assumed to be Stable Diffusion's
        (4, {"model.diffusion_model.out.0.bias": 1}, 0.18215, None),
        (4, {"model_ema.decay": 1, "betas": 1000}, 0.18215, None),
        (4, {"conditioner.embedders.0.transformer.x": 1}, 0.13025, None),  # XL
        (16, {"model.diffusion_model.joint_blocks.0.x": 1}, 1.5305, 0.0609),  # 3
        (4, {"model.diffusion_model.label_emb.weight": 1000}, 0.08333, None),  # the x4 upscaler
    ],
)
def test_the_latent_scale_follows_from_other_tensors(channels, others, scale, shift, tmp_path):
    convolutions = {"use_quant_conv": channels == 4, "use_post_quant_conv": channels == 4}
    theirs = compvis.make_autoencoder(latent_channels=channels, **convolutions)
    tensors = with_prefix(AUTOENCODER, compvis.compvis_autoencoder(theirs))
    tensors |= {name: torch.zeros(size) for name, size in others.items()}
    config = Autoencoder.load(written(tmp_path, tensors)).config
    assert (config.scaling_factor, config.shift_factor) == (scale, shift)


@torch.no_grad()
@pytest.mark.parametrize("stored", [23, 24])
def test_the_last_layer_of_the_text_encoder_of_sd2_is_unused(stored, tmp_path):
    theirs = compvis.make_text_encoder(layers=23, act="gelu")
    encoder = TextEncoder.load(written(tmp_path, compvis.open_clip_text(theirs, stored)))
    ids = encoder.tokenize(PROMPTS)
    assert_near(encoder(PROMPTS), theirs(input_ids=ids).last_hidden_state)
    assert ids[0].tolist() == [49406, 49407, *[0] * 75]


@torch.no_grad()
def test_the_text_encoder_of_sd1(tmp_path):
    theirs = compvis.make_text_encoder()
    tensors = compvis.hugging_face_text(theirs)
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    encoder = TextEncoder.load(written(tmp_path, tensors | {positions: torch.arange(77)[None]}))
    save_tokenizer(clip_tokenizer(77), tmp_path / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(encoder.tokenize(PROMPTS), ids)
    assert_near(encoder(PROMPTS), theirs(input_ids=ids).last_hidden_state)
    theirs.save_pretrained(tmp_path / "text_encoder")
    assert TextEncoder.load(tmp_path).sha256 == encoder.sha256


# Whole models


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small Stable Diffusion 1.x: the folder that diffusers writes, and the tensors of a file."""
    root = tmp_path_factory.mktemp("whole")
    unet, vae = compvis.make_unet(), compvis.make_autoencoder(scaling_factor=0.18215)
    text = compvis.make_text_encoder(width=768, layers=1)
    save_tokenizer(clip_tokenizer(77), root / "tokenizer")
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root / "folder")
    tensors = compvis.compvis_unet(unet) | compvis.hugging_face_text(text)
    tensors |= with_prefix(AUTOENCODER, compvis.compvis_autoencoder(vae))
    alpha_bar = make_schedule(ScheduleConfig()).alpha_bar
    tensors |= {"alphas_cumprod": alpha_bar.float(), "global_step": torch.tensor(470000)}
    return root / "folder", tensors


def test_a_whole_file_equals_the_folder_of_diffusers(whole, tmp_path, monkeypatch):
    folder, tensors = whole
    # What an untrained U-Net predicts cannot be measured.
    monkeypatch.setattr("ldm.pipeline.io.infer_prediction", lambda unet, context: "noise")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "model.ckpt")
    expected = TextToImage.load(folder)
    for file in (written(tmp_path, tensors), tmp_path / "model.ckpt"):
        found = TextToImage.load(file)
        assert found.schedule_config == expected.schedule_config
        assert found.denoiser.prediction == expected.denoiser.prediction == "noise"
        assert found.text_encoder.tokenizer == expected.text_encoder.tokenizer
        for part in ("unet", "autoencoder", "text_encoder"):
            ours, theirs = (getattr(x, part).state_dict() for x in (found, expected))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())
            addresses = {x.data_ptr() % 64 for x in getattr(found, part).parameters()}
            assert addresses == {0}
        options = {"steps": 2, "height": 16, "width": 16}
        one, other = (x(["a cat"], **options)[0].tobytes() for x in (found, expected))
        assert one == other


@pytest.mark.parametrize(
    ("marks", "header", "prediction", "ends_in_noise"),
    [
        ((), {}, None, False),  # it is measured, whatever the width of the context
        (("v_pred",), {}, "velocity", False),
        (("v_pred", "ztsnr"), {}, "velocity", True),
        (("ztsnr",), {"modelspec.prediction_type": "epsilon"}, "noise", True),
        ((), {"modelspec.prediction_type": "v"}, "velocity", False),
    ],
)
def test_marks_say_what_the_unet_predicts(
    whole, tmp_path, marks, header, prediction, ends_in_noise
):
    _, tensors = whole
    file = tmp_path / "model.safetensors"
    save_file({**tensors, **{name: torch.tensor([]) for name in marks}}, file, header)
    schedule, found = from_single_file(file)
    assert (found, schedule.zero_terminal_snr) == (prediction, ends_in_noise)
    assert UNet.load(file).config.cross_attention_dim == 768


def test_marks_that_contradict_each_other_are_refused(whole, tmp_path):
    _, tensors = whole
    file = tmp_path / "model.safetensors"
    header = {"modelspec.prediction_type": "epsilon"}
    save_file({**tensors, "v_pred": torch.tensor([])}, file, header)
    with pytest.raises(UserError, match=r"model\.safetensors.*epsilon.*v_pred"):
        from_single_file(file)


def test_a_file_without_its_autoencoder_is_not_said_to_have_names_of_diffusers(whole, tmp_path):
    _, tensors = whole
    rest = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    with pytest.raises(UserError, match="autoencoder") as caught:
        TextToImage.load(written(tmp_path, {**rest, "v_pred": torch.tensor([])}))
    assert "diffusers" not in str(caught.value)


def test_averaged_weights(whole, tmp_path):
    _, tensors = whole
    unet = {name: value for name, value in tensors.items() if name.startswith(UNET)}
    averaged = {}
    for name, value in unet.items():
        averaged["model_ema." + name.removeprefix("model.").replace(".", "")] = value + 1
    assert "model_ema.diffusion_modelinput_blocks00weight" in averaged
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    file = written(tmp_path, unet | averaged | counters)
    plain, ema = UNet.load(file), UNet.load(file, ema=True)
    for name, value in plain.state_dict().items():
        assert torch.equal(ema.state_dict()[name], value + 1)
    averaged.pop("model_ema.diffusion_modelinput_blocks00weight")
    with pytest.raises(ValueError, match=r"\b1 .*model_ema\.diffusion_modelinput_blocks00weight"):
        UNet.load(written(tmp_path, unet | averaged), ema=True)
    with pytest.raises(ValueError, match=r"model_ema\.\*.*\bema\b"):
        UNet.load(written(tmp_path, unet), ema=True)


def test_averaged_weights_of_a_folder_are_refused(whole):
    with pytest.raises(ValueError, match=str(whole[0])):
        TextToImage.load(whole[0], ema=True)


def test_a_checkpoint_with_code_in_it_is_refused(whole, tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("this must not run",)

    torch.save({"state_dict": whole[1], "callbacks": Code()}, tmp_path / "model.ckpt")
    for kind in (UNet, Autoencoder, TextEncoder, TextToImage):
        with pytest.raises(ValueError, match=r"model\.ckpt"):
            kind.load(tmp_path / "model.ckpt")


# Noise


@pytest.fixture(scope="module")
def unet_of_sd2():
    return compvis.compvis_unet(compvis.make_unet("SD 2.x"))


@pytest.mark.parametrize("kind", ["alphas_cumprod", "betas"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("config", [ScheduleConfig(), ZERO_TERMINAL_SNR])
def test_a_stored_table_of_noise(unet_of_sd2, config, dtype, kind, tmp_path):
    table = make_schedule(config).alpha_bar
    if kind == "betas":
        table = 1 - table / torch.cat([torch.ones(1), table[:-1]])
    file = written(tmp_path, unet_of_sd2 | {kind: table.to(dtype)})
    assert from_single_file(file) == (config, None)


def test_another_table_is_refused(unet_of_sd2, tmp_path):
    linear = ScheduleConfig(noise_schedule="linear", beta_start=0.0001, beta_end=0.02)
    table = {"alphas_cumprod": make_schedule(linear).alpha_bar.float()}
    with pytest.raises(ValueError, match="Stable Diffusion"):
        from_single_file(written(tmp_path, unet_of_sd2 | table))


@pytest.mark.parametrize(("recorded", "prediction"), [("epsilon", "noise"), ("v", "velocity")])
def test_a_prediction_type_in_the_header(unet_of_sd2, recorded, prediction, tmp_path):
    file = written(tmp_path, unet_of_sd2, **{"modelspec.prediction_type": recorded})
    assert from_single_file(file) == (ScheduleConfig(), prediction)
    file = written(tmp_path, unet_of_sd2, **{"modelspec.prediction_type": "score"})
    with pytest.raises(ValueError, match=r"'score'.* epsilon or v\b"):
        from_single_file(file)


class IdealUNet(UNet):
    """The ideal inpainting network for Gaussian latents of unit variance around `mean`.

    It predicts E[noise | z_t] = sigma (z_t - alpha mean), or the velocity that follows from it.
    """

    def __init__(self, prediction: str, mean: float):
        torch.nn.Module.__init__(self)  # without the layers of a U-Net
        self.config = UNetConfig(in_channels=9)
        self.prediction, self.mean = prediction, mean
        self.conv_in = torch.nn.Conv2d(9, 1, 1)  # its device is the network's

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        assert z_t.shape == (1, 9, 32, 32) and t.tolist() == [999]
        alpha, sigma = make_schedule(ScheduleConfig())(t)
        noise = sigma * (z_t[:, :4] - alpha * self.mean)
        z_0 = (z_t[:, :4] - sigma * noise) / alpha
        return noise if self.prediction == "noise" else alpha * noise - sigma * z_0


@pytest.mark.parametrize("mean", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_the_prediction_is_measured(prediction, mean):
    assert infer_prediction(IdealUNet(prediction, mean), torch.zeros(1, 77, 1024)) == prediction


def test_the_size_of_an_sd2_file_follows_from_its_prediction(whole, tmp_path):
    """Random weights do not predict the noise, so it must be the model of 768 pixels."""
    unet = compvis.make_unet("SD 2.x", cross_attention_dim=1024)
    tensors = {k: v for k, v in whole[1].items() if k.startswith(AUTOENCODER)}
    tensors |= compvis.compvis_unet(unet)
    text = compvis.open_clip_text(compvis.make_text_encoder(layers=23, act="gelu"))
    for name, value in text.items():  # width 1024; the file stores one value
        shape = [1024 if n == 64 else 3072 if n == 192 else n for n in value.shape]
        tensors[name] = torch.tensor(0.01).expand(shape)
    torch.save(tensors, tmp_path / "model.ckpt")
    assert (tmp_path / "model.ckpt").stat().st_size < 1e8  # all values would take 700 MB
    pipeline = TextToImage.load(tmp_path / "model.ckpt")
    assert pipeline.denoiser.prediction == "velocity"
    assert pipeline.unet.config.sample_size == 96


# Models with more inputs than text


def test_an_inpainting_model_opens_and_names_the_inputs_it_needs(whole, tmp_path):
    theirs = compvis.make_unet(in_channels=9)
    rest = {name: value for name, value in whole[1].items() if not name.startswith(UNET)}
    pipeline = TextToImage.load(written(tmp_path, rest | compvis.compvis_unet(theirs)))
    with pytest.raises(ValueError, match=r"\b5 channels .*mask"):
        pipeline(["a cat"])


@torch.no_grad()
def test_the_x4_upscaler(tmp_path):
    theirs = compvis.make_unet(
        "SD 2.x",
        in_channels=7,
        num_class_embeds=1000,
        attention_head_dim=8,
        only_cross_attention=(True, True, False),
    )
    tensors = compvis.compvis_unet(theirs) | {"low_scale_model.betas": torch.zeros(1000)}
    unet = UNet.load(written(tmp_path, tensors)).eval()
    given = torch.randn(1, 7, 8, 8), torch.tensor([7]), torch.randn(1, 5, 1024)
    expected = theirs(*given, class_labels=torch.tensor([20])).sample
    assert_near(unet(*given, class_labels=torch.tensor([20])), expected)
    schedule, prediction = from_single_file(tmp_path / "model.safetensors")
    assert (schedule.beta_end, prediction) == (0.02, "velocity")
