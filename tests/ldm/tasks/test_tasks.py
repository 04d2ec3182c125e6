"""Each task does what it says, on a whole model with random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoder.tiling import decode_tiled
from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.batching import Request, draw_in_batches, interpolate
from ldm.pipeline.sampling import Sampling
from ldm.tasks.base import TEXT_TO_IMAGE
from tests.helpers.random_models import PROMPT, SIDE, make_pipeline, pixels, with_unet
from tests.helpers.random_models import smooth_image as picture

GUIDED = Sampling(steps=4, guidance=Guidance(scale=3.0))


@pytest.fixture(scope="module")
def pipeline() -> TextToImage:
    return make_pipeline()


def half_mask(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """The right half is drawn."""
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


def test_strength_in_between_begins_with_the_noised_picture(pipeline):
    seen = []
    task = tasks.img2img(pipeline, picture(), 0.5)
    bind = task.bind
    task.bind = lambda denoise: lambda z, t: seen.append((z, t)) or bind(denoise)(z, t)
    pipeline(["a cat", "a dog"], task=task, sampling=GUIDED)
    assert len(seen) == 2 == GUIDED.network_calls(task)  # half of the four steps
    z_t, t = seen[0]
    alpha, sigma = pipeline.denoiser.schedule.exact(t[:1])
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = alpha[0] * pipeline.encode(picture())[0] + sigma[0] * noise
    torch.testing.assert_close(z_t[1], expected)


def test_a_strength_that_is_no_share_is_refused(pipeline):
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"strength is .* from 0 to 1"):
            tasks.img2img(pipeline, picture(), strength)


# Inpainting.


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting_keeps_what_is_outside_and_changes_what_is_inside(pipeline, strength):
    given = picture()
    task = tasks.inpaint(pipeline, given, half_mask(), strength)
    first, second = pipeline(PROMPT * 2, task=task, sampling=GUIDED)
    inside = np.asarray(half_mask()) > 0
    for drawn in (first, second):
        assert np.array_equal(pixels(drawn)[~inside], pixels(given)[~inside])
        assert np.abs(pixels(drawn) - pixels(given))[inside].mean() > 5
    assert not np.array_equal(pixels(first), pixels(second))


def test_resampling_takes_the_steps_of_ddpm_again(pipeline):
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
    with pytest.raises(ValueError, match=r"resampling goes with the sampler ddpm.*dpmpp_2m"):
        pipeline(PROMPT, task=resampled, sampling=GUIDED)


def test_a_model_made_for_inpainting_is_told_mask_and_picture(pipeline):
    native = with_unet(pipeline, in_channels=9)
    with pytest.raises(ValueError, match=r"wants 5 channels .*inpaints.*--mask"):
        native(PROMPT, steps=2)
    seen = []
    native.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    given, other = picture(), picture()
    other.paste(picture(seed=1), mask=half_mask())  # differs under the mask alone
    drawn = [
        native(PROMPT, task=tasks.inpaint(native, one, half_mask()), sampling=GUIDED)[0]
        for one in (given, other)
    ]
    beside = seen[0][0, 4:]
    assert torch.equal(beside[0], torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1))
    hole = torch.tensor(np.asarray(given)).permute(2, 0, 1)[None] / 127.5 - 1
    hole[..., SIDE // 2 :] = 0
    assert torch.equal(beside[1:], native.encode(hole)[0])
    kept = Image.composite(drawn[1], given, half_mask())  # outside, each is as it was given
    assert np.array_equal(pixels(drawn[0]), pixels(kept))
    assert np.abs(pixels(drawn[0]) - pixels(given))[:, SIDE // 2 :].mean() > 5
    for thin in (half_mask().point(lambda x: x // 3), Image.new("L", (SIDE, SIDE))):
        thin.putpixel((5, 5), 255)  # between the pixels that are seen
        with pytest.raises(ValueError, match=r"black and white, and one pixel in 4.*wider"):
            tasks.inpaint(native, given, thin)


def test_outpainting_grows_the_canvas(pipeline):
    given = picture()
    task = tasks.outpaint(pipeline, given, (8, 0, 24, 16))
    (drawn,) = pipeline(PROMPT, task=task, sampling=GUIDED)
    assert drawn.size == (SIDE + 32, SIDE + 16)
    assert np.array_equal(pixels(drawn)[:SIDE, 8 : 8 + SIDE], pixels(given))
    edges = Image.fromarray(np.pad(np.asarray(given), ((0, 16), (8, 24), (0, 0)), mode="edge"))
    new = np.abs(pixels(drawn) - pixels(edges))
    assert new[:, 40:].mean() > 5 and new[SIDE:].mean() > 5
    for grow in ((0, 0, 0, 0), (-8, 0, 8, 0)):
        with pytest.raises(ValueError, match="cannot grow"):
            tasks.outpaint(pipeline, given, grow)


# From the inversion of a picture.


def test_an_inverted_picture_comes_back_and_another_prompt_changes_it(pipeline):
    sampling = Sampling(sampler="ddim", steps=10, guidance=Guidance(scale=1.0))
    task = tasks.edit(pipeline, picture(), 0.5, source_prompt="a cat")
    (z,) = pipeline.draw(pipeline.make_requests(["a cat"]), sampling, task=task)
    latents = pipeline.encode(picture())
    assert (z - latents).norm() < 0.05 * latents.norm()
    (other,) = pipeline.draw(pipeline.make_requests(["a dog"]), sampling, task=task)
    assert (other - latents).norm() > 2 * (z - latents).norm()


def test_variations_of_a_picture(pipeline):
    def drawn(variation: float) -> list[torch.Tensor]:
        task = tasks.edit(pipeline, picture(), 0.75, variation=variation)
        return pipeline.draw(pipeline.make_requests(PROMPT * 2), GUIDED, task=task)

    assert torch.equal(*drawn(0.0))
    apart = [(a - b).norm() for a, b in (drawn(0.2), drawn(0.8))]
    assert 0 < apart[0] < apart[1]
    with pytest.raises(ValueError, match="variation is 2"):
        drawn(2.0)


# Super-resolution.


def test_two_passes_keep_the_small_picture(pipeline):
    small = picture()
    task = tasks.upscale(pipeline, small, 2, 0.5)
    (large,) = pipeline(PROMPT, task=task, sampling=GUIDED, window=SIDE)
    assert large.size == (64, 64)
    assert psnr(large.resize(small.size, Image.Resampling.BOX), small) > 35
    plain = small.resize(large.size, Image.Resampling.LANCZOS)
    assert np.abs(pixels(large) - pixels(plain)).mean() > 2


def test_super_resolution_sees_a_window_at_a_time(pipeline):
    seen = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    task = tasks.upscale(pipeline, picture(), 3, 0.25)
    pipeline(PROMPT, task=task, sampling=Sampling(steps=4), window=SIDE)
    hook.remove()
    assert {shape[-2:] for shape in seen} == {(8, 8)} and len(seen) == 5 * 5


def test_an_upscaling_model_sees_the_small_picture_with_noise(pipeline):
    native = with_unet(pipeline, in_channels=7, num_class_embeds=1000)
    with pytest.raises(ValueError, match=r"wants 3 channels .* and a noise level .*upscales"):
        native(PROMPT)
    seen = []
    native.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    small = picture(16, 16)
    drawn = {}
    for level in (20, 300):
        task = tasks.upscale(native, small, noise_level=level)
        (drawn[level],) = native.draw(native.make_requests(PROMPT, seed=[5]), GUIDED, task=task)
    assert drawn[20].shape == (1, 4, 16, 16) and not torch.equal(drawn[20], drawn[300])
    latents, _, _, levels = seen[0]
    assert set(levels.tolist()) == {20}
    alpha, sigma = native.low_res.schedule.exact(torch.tensor([20]))
    pixels_in = torch.tensor(np.asarray(small)).permute(2, 0, 1) / 127.5 - 1
    noise = (latents[0, 4:] - alpha[0] * pixels_in) / sigma[0]
    assert noise.std() == pytest.approx(1, rel=0.1) and abs(noise.mean()) < 0.1
    both = native.draw(native.make_requests(PROMPT * 2, seed=[4, 5]), GUIDED, task=task)
    assert torch.equal(both[1], drawn[300])
    four, five = native.make_requests(PROMPT * 2, seed=[4, 5])
    (there,) = native.draw([interpolate(four, five, 1.0)], GUIDED, task=task)
    assert torch.equal(there, drawn[300])  # noise on the small picture goes along
    (seen_by_windows,) = native.draw(native.make_requests(PROMPT), GUIDED, task=task, window=SIDE)
    assert seen_by_windows.shape == (1, 4, 16, 16) and seen[-1][0].shape[-2:] == (8, 8)
    with pytest.raises(ValueError, match="give a noise level, no strength"):
        tasks.upscale(native, small, strength=0.5)
    with pytest.raises(ValueError, match="noise level is for models made for upscaling"):
        tasks.upscale(pipeline, small, 2, noise_level=20)
    with pytest.raises(ValueError, match="level is 351"):
        tasks.upscale(native, small, noise_level=351)


# Wide pictures.


def test_wide_pictures_through_windows_depend_on_nothing_else(pipeline):
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


# Between pictures.


def test_interpolation_ends_in_the_pictures(pipeline):
    a, b = pipeline.make_requests(["a cat", "a dog"], seed=[3, 9])
    frames = [interpolate(a, b, share) for share in (0.0, 0.5, 1.0)]
    drawn = pipeline.draw(frames, GUIDED)
    ends = pipeline.draw([a, b], GUIDED)
    assert torch.equal(drawn[0], ends[0]) and torch.equal(drawn[2], ends[1])
    assert all((drawn[1] - end).norm() > 0.1 * end.norm() for end in ends)
    long = Request([*a.conds, *a.conds], a.uncond, 0)
    with pytest.raises(ValueError, match="as many parts"):
        interpolate(a, long, 0.5)


# Memory.


def test_a_picture_too_large_to_decode_is_decoded_in_tiles(pipeline, monkeypatch, capsys):
    z = torch.randn(1, 4, 8, 72, generator=torch.Generator().manual_seed(0))
    whole = pipeline.decode(z)
    decode = type(pipeline.autoencoder).decode

    def limited(self, latents):
        if latents.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(self, latents)

    monkeypatch.setattr(type(pipeline.autoencoder), "decode", limited)
    tiled = pipeline.decode(z)
    assert "tile by tile" in capsys.readouterr().err
    assert torch.equal(tiled, decode_tiled(pipeline.autoencoder, z))
    assert tiled.shape == whole.shape

    def broken(self, latents):
        raise RuntimeError("something else")

    monkeypatch.setattr(type(pipeline.autoencoder), "decode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        pipeline.decode(z)


def test_batches_become_smaller_until_they_fit(capsys):
    sizes = []

    def draw(chosen, watch):
        sizes.append(len(chosen))
        if len(chosen) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.stack([torch.full((1, 1, 1), float(request.seed)) for request in chosen])

    requests = [Request([(torch.zeros(1, 1, 1), 1.0)], torch.zeros(1, 1, 1), k) for k in range(7)]
    drawn = draw_in_batches(draw, requests, 8, fill=False)
    assert [int(z) for z in drawn] == list(range(7))
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert "does not suffice for 7 pictures at once; now 3" in capsys.readouterr().err

    def never(chosen, watch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(ValueError, match=r"one picture of this size.*windows"):
        draw_in_batches(never, requests, 8, fill=False)

    def never_on_a_cpu(chosen, watch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    with pytest.raises(ValueError, match=r"does not suffice for 8 pictures.*batch size of 1"):
        draw_in_batches(never_on_a_cpu, requests, 8, fill=True)
    with pytest.raises(ValueError, match="does not suffice for one picture of this size"):
        draw_in_batches(never_on_a_cpu, requests, 1, fill=True)

    def broken(chosen, watch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        draw_in_batches(broken, requests, 8, fill=True)


def test_the_kind_of_task_must_fit_the_model(pipeline):
    assert TEXT_TO_IMAGE.extra_channels == 0
    with pytest.raises(ValueError, match=r"37x32 pixels.*multiples of 8.*40x32"):
        tasks.img2img(pipeline, picture(37, 32))
    with pytest.raises(ValueError, match="2x2 pixels; both sides must be at least 8"):
        tasks.img2img(pipeline, picture(2, 2))
    with pytest.raises(ValueError, match="this task is 32x32; leave out height and width"):
        pipeline(PROMPT, task=tasks.img2img(pipeline, picture()), height=64)
    with pytest.raises(ValueError, match="mode L; this model takes 3 channels"):
        tasks.img2img(pipeline, picture().convert("L"))
    with pytest.raises(ValueError, match="the mask is 16x32, the picture 32x32"):
        tasks.inpaint(pipeline, picture(), half_mask(16, 32))
    with pytest.raises(ValueError, match="the mask is all black"):
        tasks.inpaint(pipeline, picture(), Image.new("L", (SIDE, SIDE)))
