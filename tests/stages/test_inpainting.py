"""Stage 2 on masked pictures: masks, training, resuming, and the models."""

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
from dataset.folder import read_folder
from foundation.files import read_json
from foundation.hashing import generator
from ldm import TextToImage, tasks
from ldm.denoiser import Conditioning, Denoiser
from ldm.guidance import Guidance
from ldm.pipeline.sampling import Sampling
from stages.diffusion import DiffusionTrainer
from stages.evaluation.data import ChosenImages
from stages.evaluation.task_quality import TaskMeasurement, masked_psnr, seam, visible_seam
from stages.finetune import with_inputs
from stages.flags.tasks import TaskFlags
from stages.tasks.choice import choose_task
from stages.tasks.masks import draw_mask
from tests.helpers.bad_calls import command, refusal
from tests.helpers.images import picture
from tests.helpers.random_models import make_pipeline, pixels, smooth_image
from tests.helpers.sample_runs import difference_to_diffusers
from tests.helpers.short_runs import killed_in_step, numbers


def training(world: Path, out: Path, *flags: object) -> list[str]:
    own = ("--task", "inpaint", "--steps", 3, "--held-out", 0.2)
    own += ("--log-every", 1, "--preview-prompts", "red")
    return command(train_ldm, world, out, *own, *flags)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A finished run, which had been killed in its last step."""
    out = tmp_path_factory.mktemp("runs") / "inpaint"
    given = training(world, out, "--save-every", 2)
    with killed_in_step(DiffusionTrainer, 2):
        train_ldm.main(given)
    train_ldm.main(given)
    return out


def test_masks_follow_the_published_mix_and_cover_a_cell():
    masks = [draw_mask(48, 32, generator(0, "mask", k), cell=8) for k in range(400)]
    shares = np.array([mask.float().mean().item() for mask in masks])
    assert 0.18 < (shares == 1).mean() < 0.32 and set(torch.cat(masks).unique().tolist()) == {0, 1}
    assert all(mask[:, ::8, ::8].any() for mask in masks)
    assert 0.2 < np.median(shares[shares < 1]) < 0.6
    again = draw_mask(48, 32, generator(0, "mask", 7), cell=8)
    assert torch.equal(again, masks[7]) and not torch.equal(again, masks[8])
    assert not any((draw_mask(32, 32, generator(1, k), whole=0) == 1).all() for k in range(50))


@pytest.mark.slow
def test_a_training_is_resumed_exactly_and_the_network_gets_masked_pictures(world, run, tmp_path):
    seen = []

    class Watched(DiffusionTrainer):
        def train_on(self, *arguments):
            pictures, inputs = self.task.pixels(self.order.indices(len(seen))), arguments[5]
            for image, own in zip(pictures, inputs, strict=True):
                check_inputs(self.averaged_pipeline.autoencoder, image, own)
            seen.append(inputs)
            return super().train_on(*arguments)

    def check_inputs(vae, image, inputs):
        assert inputs.shape == (5, 8, 8) and set(inputs[0].unique().tolist()) <= {0.0, 1.0}
        if inputs[0].all():  # nothing is kept: the latents are those of gray
            gray = vae.encode(torch.zeros(1, 3, 32, 32)).mode()[0]
            torch.testing.assert_close(inputs[1:], gray, rtol=0, atol=1e-4)
        else:
            assert inputs[0].any()
            whole = vae.encode(image[None] / 127.5 - 1).mode()[0]
            assert not torch.allclose(inputs[1:], whole, atol=1e-4)

    straight = tmp_path / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commands.train_ldm.DiffusionTrainer", Watched)
        train_ldm.main(training(world, straight))
    masks = torch.cat([inputs[:, 0] for inputs in seen])
    assert masks.mean(dim=(1, 2)).unique().numel() > 3
    assert not torch.equal(masks[:4], masks[4:8])
    weights = [load_file(each / "model/unet/diffusion_pytorch_model.safetensors")
               for each in (straight, run)]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["conv_in.weight"].shape[1] == 9
    assert numbers(straight) == numbers(run)
    last = [line for line in numbers(run) if "val" in line][-1]
    assert last["val_loss_relative"] == pytest.approx(1, abs=0.3)
    assert (run / "previews" / "step-0000003.png").is_file()


@pytest.mark.parametrize("kind", ["inpaint", "upscale", "restore"])
def test_a_text_to_image_model_begins_with_the_same_output(world, kind):
    """The weights of the new inputs are zero."""
    pipeline = make_pipeline()
    z, t, context = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.randn(2, 16, 64)
    task = choose_task(TaskFlags(task=kind), pipeline.autoencoder, world / "vae")
    wide, schedule = with_inputs(pipeline.unet, task), pipeline.denoiser.schedule
    inputs = [torch.randn(2, task.channels, 8, 8), torch.tensor([3, 90])]
    conditioning = task.join(Conditioning(context), *inputs[: len(task.example(z))])
    with torch.no_grad():
        new = Denoiser(wide, schedule, "flow").predict(z, t, conditioning)
        assert torch.equal(new, pipeline.unet(z, t, context))


def test_a_lora_cannot_learn_new_inputs(world, tmp_path, capsys):
    process = ("--prediction", "velocity", "--noise-schedule", "scaled_linear")
    first = ("--init-from", world / "ldm", *process, "--lora", 2)
    printed = refusal(capsys, train_ldm, training(world, tmp_path / "run", *first))
    assert "--lora" in printed and "inpaint" in printed


@pytest.mark.slow
def test_a_model_fills_masks_and_keeps_the_rest(run, tmp_path):
    given = picture(tmp_path / "given.png", seed=3, size=(32, 32))
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    mask_file = tmp_path / "mask.png"
    Image.fromarray(mask).save(mask_file)
    flags = ["--model", run, "--init-image", given, "--mask", mask_file, "--steps", 2]
    sample.main(list(map(str, ["red", *flags, "--out", tmp_path / "out", "--device", "cpu"])))
    before, after = (pixels(Image.open(f)) for f in (given, tmp_path / "out" / "00000.png"))
    assert np.array_equal(before[:, :16], after[:, :16])
    assert np.abs(before - after)[:, 16:].mean() > 5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.slow
def test_the_folder_of_a_run_opens_in_diffusers_and_draws_the_same(run, tmp_path):
    theirs = diffusers.DiffusionPipeline.from_pretrained(run / "model", low_cpu_mem_usage=False)
    assert type(theirs) is diffusers.StableDiffusionInpaintPipeline
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.load(run)
    given = smooth_image()
    mask = np.zeros((32, 32), np.uint8)
    mask[8:, 4:24] = 255
    task = tasks.inpaint(ours, given, Image.fromarray(mask))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    drawn = theirs(
        "red",
        image=task.latents,
        mask_image=Image.fromarray(mask),
        masked_image_latents=task.inputs[:, 1:],
        latents=latents,
        num_inference_steps=3,
        guidance_scale=2.0,
        height=32,
        width=32,
        output_type="latent",
    ).images
    requests = ours.make_requests("red", seed=3)
    sampling = Sampling(steps=3, guidance=Guidance(scale=2.0))
    (z,) = ours.draw(requests, sampling, task=task)
    torch.testing.assert_close(z, drawn, rtol=0, atol=1e-3 * z.std().item())
    assert difference_to_diffusers(run, tmp_path, "red") <= 1


@pytest.mark.slow
def test_what_does_not_go_with_the_task_is_refused(world, run, tmp_path, capsys):
    def refused(*flags: object) -> str:
        given = command(train_ldm, world, tmp_path / "run", *flags)
        return refusal(capsys, train_ldm, given)

    assert "--whole-masks" in (printed := refused("--whole-masks", 0.5)) and "inpaint" in printed
    printed = refused("--init-from", run)
    assert "inpaints" in printed and "9" in printed and "--task draw" in printed
    assert not (tmp_path / "run").exists()
    drawing = ["red", "--model", run, "--out", tmp_path / "out"]
    assert "mask" in refusal(capsys, sample, list(map(str, drawing)))


@pytest.mark.slow
def test_models_are_measured_beside_ordinary_ones(world, run, tmp_path, capsys):
    given = ("task", run, "--plain", world / "ldm", "--data", world / "data", "--held-out", 0.2)
    given += ("--images", 2, "--steps", 1, "--device", "cpu", "--out", tmp_path / "report")
    evaluate.main(list(map(str, given)))
    report = read_json(tmp_path / "report" / "task.json")
    metrics, differences = report["metrics"], report["differences"]
    ways = ["this model", "ordinary model", "what it begins with", "autoencoder (ceiling)"]
    assert list(metrics) == ways
    seams = [(each["seam"], each["seam, colors not matched"]) for each in metrics.values()]
    assert seams[0][0] != seams[0][1] and seams[2][0] == seams[2][1]
    outside = "PSNR outside, as decoded"
    assert metrics["what it begins with"][outside]["value"] > 80
    assert metrics["this model"][outside]["value"] < 40
    assert list(differences) == ["ordinary model"]
    ours, other = (metrics[way]["seam"]["value"] for way in ways[:2])
    assert differences["ordinary model"]["seam"]["value"] == pytest.approx(ours - other)
    assert "this model minus ordinary model" in capsys.readouterr().out
    assert (tmp_path / "report" / "task.png").is_file()
    wrong = ["task", str(world / "ldm"), *map(str, given[4:])]
    assert "evaluate.py model" in refusal(capsys, evaluate, wrong)


def test_an_ordinary_model_is_not_shown_what_it_has_to_draw(world, run):
    """Its latents at the rim of the mask would contain it."""
    models = TextToImage.load(run), TextToImage.load(world / "ldm")
    pairs = read_folder(world / "data", True, lambda items, *_: items).pairs
    images = ChosenImages(pairs, "all", 0)
    drawn = []
    for hidden in (0, 255):
        measurement = TaskMeasurement(*models, None, images, Sampling(steps=1), 0, {})
        mask = measurement.mask(0)[0] > 0
        measurement.originals[0] = torch.where(mask, hidden, measurement.originals[0])
        drawn.append(measurement.draw_plain(0)[1])
    assert torch.equal(*drawn)


def test_a_seam_is_visible_where_steps_are_larger_than_those_of_the_original():
    image, mask = torch.zeros(1, 3, 8, 6, dtype=torch.uint8), torch.zeros(1, 1, 8, 6)
    mask = mask.to(torch.uint8)
    mask[..., 3:] = 1
    image[:, :, 4:, 3:] = 40  # the original has a step of 40 at half of the border
    turned = image.flip(dims=(2,))  # another picture with equally large steps, elsewhere
    assert visible_seam(image, turned, mask).item() == 0 and seam(image, turned, mask).item() == 40
    stronger = (image.float() * 2).to(torch.uint8)
    assert visible_seam(image, stronger, mask).item() == 20
    assert visible_seam(image, torch.zeros_like(image), mask).item() == -20
    upright = mask.transpose(2, 3)[..., :6, :6].contiguous()
    square = stronger[..., :6, :6].contiguous()
    first = visible_seam(square, square // 2, mask[..., :6, :]).item()
    turned_square = [each.transpose(2, 3).contiguous() for each in (square, square // 2)]
    assert visible_seam(*turned_square, upright).item() == first


def test_the_seam_counts_steps_across_the_border_of_the_mask_alone():
    """One column of six steps by 8 gray levels; the errors inside and outside do not count."""
    image, mask = torch.zeros(1, 1, 6, 6, dtype=torch.uint8), torch.zeros(1, 1, 6, 6)
    mask = mask.to(torch.uint8)
    mask[..., 3:] = 1
    drawn = image.clone()
    drawn[..., 3:] = 8
    assert seam(image, drawn, mask).item() == 8
    assert seam(image, image + 8, mask).item() == 0
    inside, outside = (masked_psnr(image, drawn, m).item() for m in (mask, 1 - mask))
    assert inside == pytest.approx(20 * np.log10(255 / 8)) and outside > 80
