"""Stage 2 on small and on damaged pictures: inputs, training, resuming, and the models."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import evaluate
import sample
import train_ldm
from autoencoder import PRESETS, Autoencoder
from dataset.images.transform import normalize_pixels
from foundation.errors import UserError
from foundation.hashing import generator, generators
from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from ldm.samplers.noise import SeededNoise
from stages.diffusion import DiffusionTrainer
from stages.tasks.degradation import Degradation
from stages.tasks.upscale import UpscalingTask, shrink
from tests.helpers.bad_calls import command, refusal
from tests.helpers.random_models import make_pipeline, pixels, smooth_image, with_unet
from tests.helpers.sample_runs import difference_to_diffusers
from tests.helpers.short_runs import killed_in_step, numbers

pytestmark = [  # diffusers has not followed NumPy, and knows a single scale of the latents
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of the vae:FutureWarning"),
]

FLAGS = {"upscale": ("--upscale-factor", 2), "restore": ("--damage-blur", 1)}


def training(world: Path, out: Path, task: str, *flags: object) -> list[str]:
    """Arguments of a training of three steps on a task."""
    own = ("--task", task, "--steps", 3, "--held-out", 0.2)
    own += ("--log-every", 1, "--preview-prompts", "red")
    return command(train_ldm, world, out, *own, *flags)


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    """A folder with a finished run of each task."""
    folder = tmp_path_factory.mktemp("runs")
    for task, flags in FLAGS.items():
        train_ldm.main(training(world, folder / task, task, *flags))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["upscale", "restore"])
def test_a_training_is_resumed_exactly(world, runs, tmp_path, task):
    straight, killed = runs / task, tmp_path / "run"
    given = training(world, killed, task, *FLAGS[task], "--save-every", 2)
    with killed_in_step(DiffusionTrainer, 2):
        train_ldm.main(given)
    train_ldm.main(given)
    weights = [load_file(each / "model/unet/diffusion_pytorch_model.safetensors")
               for each in (straight, killed)]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert numbers(straight) == numbers(killed)
    assert any("val/wrong_text" in line for line in numbers(killed))
    assert (killed / "previews" / "step-0000003.png").is_file()


# Upscaling.


def test_the_network_gets_the_pixels_of_the_small_picture_with_noise_of_its_level():
    """With the level 0 they are the small picture itself, square by square."""
    vae = Autoencoder(PRESETS["tiny-32"]).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for scale, level in ((2, 0), (4, 0), (4, 350)):
        task = UpscalingTask(vae, scale, level)
        task.pixels = lambda indices: images.index_select(0, indices)
        random = generators(0, "test", range(2))
        channels, levels = task.inputs(*task.read(torch.arange(2), random))
        small = normalize_pixels(shrink(images, scale))
        again = torch.nn.functional.pixel_shuffle(channels, 4 // scale)
        assert channels.shape == (2, task.channels, 8, 8) and again.shape == small.shape
        assert (levels <= level).all() and (level == 0 or levels.unique().numel() == 2)
        alpha, sigma = (x.view(-1, 1, 1, 1) for x in task.low_res.schedule.exact(levels))
        noise = (again - alpha * small) / sigma
        if level:
            assert noise.std().item() == pytest.approx(1, rel=0.1)
        else:
            torch.testing.assert_close(again, small, rtol=0, atol=0.05)


def test_pictures_are_shrunk_as_other_programs_do():
    picture = smooth_image()
    ours = shrink(torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None], 2)
    theirs = pixels(picture.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


@pytest.mark.slow
def test_an_upscaler_of_four_draws_as_diffusers_does(world, tmp_path):
    """It begins with a text-to-image model."""
    process = ("--prediction", "velocity", "--noise-schedule", "scaled_linear")
    flags = ("--init-from", world / "ldm", *process, "--max-noise-level", 100)
    train_ldm.main(training(world, tmp_path / "run", "upscale", *flags))
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path / "run" / "model", low_cpu_mem_usage=False
    )
    assert type(theirs) is diffusers.StableDiffusionUpscalePipeline
    assert theirs.config.max_noise_level == 100
    theirs.vae.register_to_config(scaling_factor=1.0)  # this class sets that of one model
    theirs.set_progress_bar_config(disable=True)
    ours, small = TextToImage.load(tmp_path / "run"), smooth_image(8, 8)
    shape, cpu = (3, 8, 8), torch.device("cpu")
    of_small = torch.Generator().manual_seed(SeededNoise(shape, [3], cpu).stream(0).seeds[0])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    drawn = theirs(
        "red",
        small,
        generator=of_small,
        latents=latents,
        num_inference_steps=2,
        guidance_scale=1.0,
        noise_level=20,
    ).images[0]
    task = tasks.upscale(ours, small, noise_level=20)
    sampling = Sampling(sampler="ddim", steps=2, guidance=Guidance(scale=1.0))
    (mine,) = ours("red", sampling=sampling, seed=3, task=task)
    assert np.abs(pixels(mine) - pixels(drawn)).max() <= 1
    assert difference_to_diffusers(tmp_path / "run", tmp_path, "red") <= 1


@pytest.mark.slow
def test_a_model_enlarges_pictures_of_any_size_by_its_factor(runs, tmp_path):
    smooth_image(24, 16).save(tmp_path / "small.png")
    flags = ["--model", runs / "upscale", "--init-image", tmp_path / "small.png", "--upscale", 2]
    flags += ["--steps", 1, "--window", 32, "--device", "cpu", "--out", tmp_path / "out"]
    sample.main(list(map(str, ["red", *flags])))
    with Image.open(tmp_path / "out" / "00000.png") as drawn:
        assert drawn.size == (48, 32)
    with pytest.raises(UserError, match=r"2 times, not 4"):
        tasks.upscale(TextToImage.load(runs / "upscale"), smooth_image(), 4)


# Restoring.


@pytest.mark.parametrize(
    "damage", [{"blur": 3.0}, {"noise": 0.3}, {"jpeg": 5}, {"contrast": 0.3}, {}]
)
def test_damage_is_of_its_kind_and_follows_from_the_generator(damage):
    none = {"blur": 0.0, "noise": 0.0, "jpeg": 100, "contrast": 1.0}
    recipe = Degradation(**(none | damage)) if damage else Degradation()
    image = torch.tensor(np.asarray(smooth_image())).permute(2, 0, 1)
    noisy = image.float() + 30 * torch.randn(image.shape, generator=generator(0, "detail"))
    image = noisy.clamp(0, 255).to(torch.uint8)
    damaged = [recipe.damage(image, generator(0, "damage", k)) for k in range(12)]
    assert all(torch.equal(a, recipe.damage(image, generator(0, "damage", k)))
               for k, a in enumerate(damaged))  # fmt: skip
    stds = torch.stack([each.float().std() for each in damaged]) / image.float().std()
    changed = sum(not torch.equal(image, each) for each in damaged)
    assert 4 <= changed <= 12 and (damage == {} or changed < 12)
    if "blur" in damage or "contrast" in damage:
        assert stds.min() < 0.8 and stds.max() <= 1.001
    if "noise" in damage:
        assert stds.max() > 1.1
    gray = recipe.damage(image[:1], generator(0, "damage", 1))
    assert gray.shape == (1, 32, 32)


@pytest.mark.slow
def test_a_restoring_model_draws_as_instruct_pix2pix_does(runs, tmp_path):
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        runs / "restore" / "model", low_cpu_mem_usage=False
    )
    assert type(theirs) is diffusers.StableDiffusionInstructPix2PixPipeline
    theirs.set_progress_bar_config(disable=True)
    damaged = smooth_image()
    damaged.save(tmp_path / "damaged.png")
    drawn = theirs(
        "red",
        image=damaged,
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
        num_inference_steps=3,
        guidance_scale=3.0,
        image_guidance_scale=1.0,
    ).images[0]
    flags = ["--model", runs / "restore", "--restore", tmp_path / "damaged.png", "--steps", 3]
    flags += ["--guidance-scale", 3, "--seed", 3, "--device", "cpu", "--out", tmp_path / "out"]
    sample.main(list(map(str, ["red", *flags])))
    assert np.abs(pixels(Image.open(tmp_path / "out" / "00000.png")) - pixels(drawn)).max() <= 1
    assert difference_to_diffusers(runs / "restore", tmp_path, "red") <= 1


def test_what_does_not_go_with_these_tasks_is_refused(world, tmp_path, capsys):
    def refused(task: str, *flags: object) -> str:
        return refusal(capsys, train_ldm, training(world, tmp_path / "run", task, *flags))

    printed = refused("upscale", "--upscale-factor", 3)
    assert "3 times" in printed and "--upscale-factor" in printed and "2, 4" in printed
    classes = training(world, tmp_path / "run", "upscale", "--condition", "class")
    place = classes.index("--text-encoder")
    del classes[place : place + 2]
    printed = refusal(capsys, train_ldm, classes)
    assert "--condition class" in printed and "upscale" in printed
    assert "--damage-jpeg" in refused("upscale", "--damage-jpeg", 10)
    nothing = ("--damage-blur", 0, "--damage-noise", 0, "--damage-jpeg", 100)
    assert "nothing to learn" in refused("restore", *nothing, "--damage-contrast", 1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_of_another_task_or_factor_is_refused(world, runs, tmp_path, capsys):
    first = ("--init-from", runs / "upscale")  # of the factor 2, so with 12 channels
    printed = refusal(capsys, train_ldm, training(world, tmp_path / "run", "upscale", *first))
    assert "16" in printed and "--task upscale" in printed
    with pytest.raises(UserError, match="not trained to restore"):
        tasks.restore(TextToImage.load(runs / "upscale"), smooth_image())
    drawing = ["", "--model", str(runs / "restore"), "--out", str(tmp_path / "out")]
    assert "restores" in refusal(capsys, sample, drawing)


def test_ordinary_models_are_not_compared_in_restoring(world, tmp_path):
    with_unet(make_pipeline(), in_channels=8).save(tmp_path / "restore")
    given = ["task", tmp_path / "restore", "--data", world / "data", "--held-out", 0]
    given += ["--plain", world / "ldm", "--device", "cpu", "--out", tmp_path / "out"]
    with pytest.raises(UserError, match="no way to restore pictures: leave out --plain"):
        evaluate.main([str(word) for word in given])
    assert not (tmp_path / "out").exists()
