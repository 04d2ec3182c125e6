"""What each task does to a whole model with random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.errors import UserError
from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.batching import Request, interpolate
from ldm.pipeline.sampling import Sampling
from ldm.tasks.base import TEXT_TO_IMAGE
from tests.helpers.random_models import PROMPT, SIDE, make_pipeline, pixels, with_unet
from tests.helpers.random_models import smooth_image as picture

GUIDED = Sampling(steps=4, guidance=Guidance(scale=3.0))


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def half_mask(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Return a mask whose right half is white."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return Image.fromarray(mask)


def psnr(a: Image.Image, b: Image.Image) -> float:
    return 10 * np.log10(255**2 / np.mean((pixels(a) - pixels(b)) ** 2))


# Image to image.


def test_strength_0_is_the_reconstruction_and_strength_1_text_to_image(pipeline):
    given = picture()
    (nothing,) = pipeline(PROMPT, task=tasks.img2img(pipeline, given, 0.0), sampling=GUIDED)
    assert np.array_equal(pixels(nothing), pixels(pipeline.to_picture(pipeline.encode(given))))
    (all_new,) = pipeline(PROMPT, task=tasks.img2img(pipeline, given, 1.0), sampling=GUIDED)
    assert np.array_equal(pixels(all_new), pixels(pipeline(PROMPT, sampling=GUIDED)[0]))


def test_a_strength_between_starts_from_the_noisy_picture(pipeline):
    task = tasks.img2img(pipeline, picture(), 0.5)
    inputs = []
    hook = pipeline.unet.conv_in.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    pipeline(["a cat", "a dog"], task=task, sampling=GUIDED)
    hook.remove()
    assert len(inputs) == 2 == GUIDED.network_calls(task)  # half of the four steps
    schedule = pipeline.denoiser.schedule
    alpha, sigma = schedule.exact(GUIDED.timesteps(schedule)[2:3])
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = alpha[0] * pipeline.encode(picture())[0] + sigma[0] * noise
    torch.testing.assert_close(inputs[0][1], expected.float())


def test_a_strength_outside_0_to_1_is_refused(pipeline):
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="strength"):
            tasks.img2img(pipeline, picture(), strength)


# Inpainting.


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting_keeps_the_outside_of_the_mask_and_changes_the_inside(pipeline, strength):
    given = picture()
    task = tasks.inpaint(pipeline, given, half_mask(), strength)
    first, second = pipeline(PROMPT * 2, task=task, sampling=GUIDED)
    inside = np.asarray(half_mask()) > 0
    for drawn in (first, second):
        assert np.array_equal(pixels(drawn)[~inside], pixels(given)[~inside])
        assert np.abs(pixels(drawn) - pixels(given))[inside].mean() > 5
    assert not np.array_equal(pixels(first), pixels(second))


def test_resampling_repeats_the_steps_of_ddpm(pipeline):
    ancestral = replace(GUIDED, sampler="ddpm")
    plain, resampled = (
        tasks.inpaint(pipeline, picture(), half_mask(), resample=rounds) for rounds in (1, 3)
    )
    assert ancestral.network_calls(resampled) == 3 * 3 + 1
    calls = []
    (one,) = pipeline(PROMPT, task=plain, sampling=ancestral)
    (three,) = pipeline(PROMPT, task=resampled, sampling=ancestral, progress=calls.append)
    assert len(calls) == 10 and not np.array_equal(pixels(one), pixels(three))
    together = pipeline(PROMPT * 3, task=resampled, sampling=ancestral)
    assert np.array_equal(pixels(together[0]), pixels(three))
    assert np.array_equal(pixels(three)[:, : SIDE // 2], pixels(picture())[:, : SIDE // 2])
    with pytest.raises(UserError, match=r"ddpm.*dpmpp_2m"):
        pipeline(PROMPT, task=resampled, sampling=GUIDED)


def test_a_model_for_inpainting_gets_mask_and_picture_as_inputs(pipeline):
    native = with_unet(pipeline, in_channels=9)
    with pytest.raises(UserError, match=r"5 channels.*inpaint"):
        native(PROMPT, steps=2)
    inputs = []
    native.unet.conv_in.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    given, other = picture(), picture()
    other.paste(picture(seed=1), mask=half_mask())  # differs under the mask only
    drawn = [
        native(PROMPT, task=tasks.inpaint(native, one, half_mask()), sampling=GUIDED)[0]
        for one in (given, other)
    ]
    extra = inputs[0][0, 4:]
    assert torch.equal(extra[0], torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1))
    hole = torch.tensor(np.asarray(given)).permute(2, 0, 1)[None] / 127.5 - 1
    hole[..., SIDE // 2 :] = 0
    assert torch.equal(extra[1:], native.encode(hole)[0])
    kept = Image.composite(drawn[1], given, half_mask())  # the outside is the given picture's
    assert np.array_equal(pixels(drawn[0]), pixels(kept))
    assert np.abs(pixels(drawn[0]) - pixels(given))[:, SIDE // 2 :].mean() > 5
    for thin in (half_mask().point(lambda x: x // 3), Image.new("L", (SIDE, SIDE))):
        thin.putpixel((5, 5), 255)  # between the pixels that the model sees
        with pytest.raises(UserError, match="one pixel in 4"):
            tasks.inpaint(native, given, thin)


def test_outpainting_extends_the_canvas(pipeline):
    given = picture()
    task = tasks.outpaint(pipeline, given, (8, 0, 24, 16))
    (drawn,) = pipeline(PROMPT, task=task, sampling=GUIDED)
    assert drawn.size == (SIDE + 32, SIDE + 16)
    assert np.array_equal(pixels(drawn)[:SIDE, 8 : 8 + SIDE], pixels(given))
    edges = Image.fromarray(np.pad(np.asarray(given), ((0, 16), (8, 24), (0, 0)), mode="edge"))
    new = np.abs(pixels(drawn) - pixels(edges))
    assert new[:, 40:].mean() > 5 and new[SIDE:].mean() > 5
    for grow in ((0, 0, 0, 0), (-8, 0, 8, 0)):
        with pytest.raises(UserError, match="pixels"):
            tasks.outpaint(pipeline, given, grow)


# Editing by inversion.


def test_the_source_prompt_returns_the_picture_and_another_prompt_changes_it(pipeline):
    sampling = Sampling(sampler="ddim", steps=10, guidance=Guidance(scale=1.0))
    task = tasks.edit(pipeline, picture(), 0.5, source_prompt="a cat")
    (z,) = pipeline.draw(pipeline.make_requests(["a cat"]), sampling, task=task)
    latents = pipeline.encode(picture())
    assert (z - latents).norm() < 0.05 * latents.norm()
    (other,) = pipeline.draw(pipeline.make_requests(["a dog"]), sampling, task=task)
    assert (other - latents).norm() > 2 * (z - latents).norm()


def test_more_variation_moves_two_drawings_of_a_picture_further_apart(pipeline):
    def drawn(variation: float) -> list[torch.Tensor]:
        task = tasks.edit(pipeline, picture(), 0.75, variation=variation)
        return pipeline.draw(pipeline.make_requests(PROMPT * 2), GUIDED, task=task)

    assert torch.equal(*drawn(0.0))
    distances = [(a - b).norm() for a, b in (drawn(0.2), drawn(0.8))]
    assert 0 < distances[0] < distances[1]
    with pytest.raises(UserError, match="variation is 2"):
        drawn(2.0)


# Super-resolution.


def test_upscaling_in_two_passes_keeps_the_small_picture(pipeline):
    small = picture()
    task = tasks.upscale(pipeline, small, 2, 0.5)
    (large,) = pipeline(PROMPT, task=task, sampling=GUIDED, window=SIDE)
    assert large.size == (64, 64)
    assert psnr(large.resize(small.size, Image.Resampling.BOX), small) > 35
    plain = small.resize(large.size, Image.Resampling.LANCZOS)
    assert np.abs(pixels(large) - pixels(plain)).mean() > 2


def test_upscaling_calls_the_network_window_by_window(pipeline):
    shapes = []
    hook = pipeline.unet.conv_in.register_forward_pre_hook(
        lambda _, given: shapes.append(given[0].shape)
    )
    task = tasks.upscale(pipeline, picture(), 3, 0.25)
    pipeline(PROMPT, task=task, sampling=Sampling(steps=4), window=SIDE)
    hook.remove()
    assert {shape[-2:] for shape in shapes} == {(8, 8)} and len(shapes) == 5 * 5


@pytest.fixture
def upscaler(pipeline) -> TextToImage:
    return with_unet(pipeline, in_channels=7, num_class_embeds=1000)


def test_a_model_for_upscaling_gets_the_small_picture_with_noise(upscaler):
    inputs, levels = [], []
    upscaler.unet.conv_in.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    upscaler.unet.class_embedding.register_forward_pre_hook(
        lambda _, given: levels.append(given[0])
    )
    small = picture(16, 16)
    task = tasks.upscale(upscaler, small, noise_level=20)
    (latents,) = upscaler.draw(upscaler.make_requests(PROMPT, seed=[5]), GUIDED, task=task)
    assert latents.shape == (1, 4, 16, 16) and set(levels[0].tolist()) == {20}
    alpha, sigma = upscaler.low_res.schedule.exact(torch.tensor([20]))
    small_pixels = torch.tensor(np.asarray(small)).permute(2, 0, 1) / 127.5 - 1
    noise = (inputs[0][0, 4:] - alpha[0] * small_pixels) / sigma[0]
    assert noise.std() == pytest.approx(1, rel=0.1) and abs(noise.mean()) < 0.1


def test_the_noise_on_the_small_picture_belongs_to_the_image(upscaler):
    drawn = {}
    for level in (20, 300):
        task = tasks.upscale(upscaler, picture(16, 16), noise_level=level)
        (drawn[level],) = upscaler.draw(upscaler.make_requests(PROMPT, seed=[5]), GUIDED, task=task)
    assert not torch.equal(drawn[20], drawn[300])
    four, five = upscaler.make_requests(PROMPT * 2, seed=[4, 5])
    both = upscaler.draw([four, five], GUIDED, task=task)
    assert torch.equal(both[1], drawn[300])
    (interpolated,) = upscaler.draw([interpolate(four, five, 1.0)], GUIDED, task=task)
    assert torch.equal(interpolated, drawn[300])


def test_a_model_for_upscaling_sees_windows(upscaler):
    shapes = []
    upscaler.unet.conv_in.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    task = tasks.upscale(upscaler, picture(16, 16))
    requests = upscaler.make_requests(PROMPT)
    (latents,) = upscaler.draw(requests, GUIDED, task=task, window=SIDE)
    assert latents.shape == (1, 4, 16, 16) and {shape[-2:] for shape in shapes} == {(8, 8)}


def test_upscaling_refuses_parameters_of_the_other_way(pipeline, upscaler):
    with pytest.raises(UserError, match=r"3 channels.*noise level"):
        upscaler(PROMPT)
    with pytest.raises(UserError, match="noise_level"):
        tasks.upscale(upscaler, picture(16, 16), strength=0.5)
    with pytest.raises(UserError, match="noise_level"):
        tasks.upscale(pipeline, picture(16, 16), 2, noise_level=20)
    with pytest.raises(UserError, match="351"):
        tasks.upscale(upscaler, picture(16, 16), noise_level=351)


# Wide pictures.


def test_an_image_drawn_through_windows_does_not_depend_on_the_others(pipeline):
    two = replace(GUIDED, steps=2)
    how = {"sampling": two, "height": SIDE, "width": 3 * SIDE, "window": SIDE}
    together = pipeline(["a cat", "a dog", "a cat"], seed=7, **how)
    (alone,) = pipeline(["a dog"], seed=8, **how)
    assert alone.size == (3 * SIDE, SIDE)
    assert np.array_equal(pixels(together[1]), pixels(alone))
    (whole,) = pipeline(["a dog"], seed=8, **(how | {"window": None}))
    assert not np.array_equal(pixels(whole), pixels(alone))
    (fits,) = pipeline(["a dog"], seed=8, sampling=two, window=SIDE)
    assert np.array_equal(pixels(fits), pixels(pipeline(["a dog"], seed=8, sampling=two)[0]))


# Interpolation.


def test_interpolation_ends_in_both_pictures(pipeline):
    a, b = pipeline.make_requests(["a cat", "a dog"], seed=[3, 9])
    frames = [interpolate(a, b, share) for share in (0.0, 0.5, 1.0)]
    drawn = pipeline.draw(frames, GUIDED)
    ends = pipeline.draw([a, b], GUIDED)
    assert torch.equal(drawn[0], ends[0]) and torch.equal(drawn[2], ends[1])
    assert all((drawn[1] - end).norm() > 0.1 * end.norm() for end in ends)
    long = Request([*a.conds, *a.conds], a.uncond, 0)
    with pytest.raises(UserError):
        interpolate(a, long, 0.5)


def test_pictures_and_masks_that_do_not_fit_the_model_are_refused(pipeline):
    assert TEXT_TO_IMAGE.extra_channels == 0
    with pytest.raises(UserError, match=r"37x32.*8.*40x32"):
        tasks.img2img(pipeline, picture(37, 32))
    with pytest.raises(UserError, match=r"2x2.*8"):
        tasks.img2img(pipeline, picture(2, 2))
    with pytest.raises(UserError, match="32x32"):
        pipeline(PROMPT, task=tasks.img2img(pipeline, picture()), height=64)
    with pytest.raises(UserError, match=r"mode L.*3 channels"):
        tasks.img2img(pipeline, picture().convert("L"))
    with pytest.raises(UserError, match=r"16x32.*32x32"):
        tasks.inpaint(pipeline, picture(), half_mask(16, 32))
    with pytest.raises(UserError, match="mask"):
        tasks.inpaint(pipeline, picture(), Image.new("L", (SIDE, SIDE)))
