"""Tasks from pictures: what to hand to a pipeline as `task=`, beside the prompts.

    pipeline(["a blue heart"], task=inpaint(pipeline, picture, mask))

Pictures are PIL's, of as many channels as the model draws. What each task does is in its own file.
"""

from PIL import Image

from foundation.errors import UserError
from ldm.denoiser import Denoiser
from ldm.guidance import Guidance, guide
from ldm.pipeline.compatibility import extra_channels
from ldm.pipeline.image_processor import (
    check_image_size,
    check_pixel_count,
    image_to_tensor,
    mask_to_tensor,
)
from ldm.tasks import inpaint as inpainting
from ldm.tasks import upscale as upscaling
from ldm.tasks.base import Task
from ldm.tasks.img2img import ImageToImage
from ldm.tasks.inversion import FromInversion, invert
from ldm.timesteps import Times

DEFAULT_NOISE_LEVEL = 20  # on the small image of an upscaling model


def image_to_image(pipeline, picture: Image.Image, strength: float = 0.6) -> Task:
    """strength: 0 gives the picture back as the autoencoder does, 1 ignores it."""
    check_image_size(picture, pipeline.factor, pipeline.factor)
    return ImageToImage(pipeline.encode(picture), (picture.height, picture.width), strength)


def restyle(
    pipeline,
    picture: Image.Image,
    strength: float = 1.0,
    *,
    shows: str = "",
    variation: float = 0.0,
    window: int | None = None,
) -> Task:
    """Style transfer, editing and variations, from the noise that belongs to the picture.

    Args:
        strength: how far back to noise the picture is followed; less keeps more of it.
        shows: a prompt that says what the picture shows, for editing.
        variation: how far each image's noise is its own; above 0 for several of one picture.
        window: as the pipeline is given.
    """
    check_image_size(picture, pipeline.factor, pipeline.factor)
    latents = pipeline.encode(picture)
    denoiser: Denoiser = pipeline.windowed(window)
    conds = pipeline.conditions(shows)
    schedule = denoiser.schedule

    def inverted(times: Times):
        denoise = guide(denoiser, conds, conds[0][0], Guidance(scale=1.0))
        return invert(denoise, latents, schedule, times)

    return FromInversion(latents, (picture.height, picture.width), strength, inverted, variation)


def inpaint(
    pipeline,
    picture: Image.Image,
    mask: Image.Image,
    strength: float = 1.0,
    *,
    resample: int = 1,
) -> Task:
    """mask: white is drawn, black kept to the bit, gray mixed. resample: RePaint's, plain models.

    Models made for inpainting are told by their channels.
    """
    check_image_size(picture, pipeline.factor, pipeline.factor)
    share = mask_to_tensor(mask, (picture.height, picture.width))
    latents = pipeline.encode(picture)
    if not extra_channels(pipeline.unet.config):
        return inpainting.Inpainting(latents, picture, share, strength, resample)
    if resample != 1:
        raise UserError("this model is told the mask, so that there is nothing to resample.")
    pixels = image_to_tensor(picture, pipeline.autoencoder.config.in_channels)
    kept = pipeline.encode(pixels * (share < 0.5))
    return inpainting.NativeInpainting(latents, picture, share, kept, strength)


def outpaint(
    pipeline,
    picture: Image.Image,
    grow: tuple[int, int, int, int],
    strength: float = 1.0,
    *,
    resample: int = 1,
) -> Task:
    """grow: pixels by which the picture becomes larger at the left, top, right and bottom."""
    left, top, right, bottom = grow
    check_pixel_count(picture.width + left + right, picture.height + top + bottom)
    larger, mask = inpainting.canvas(picture, *grow)
    return inpaint(pipeline, larger, Image.fromarray(mask), strength, resample=resample)


def upscale(
    pipeline,
    picture: Image.Image,
    scale: int | None = None,
    strength: float | None = None,
    *,
    level: int | None = None,
) -> Task:
    """Super-resolution: native by a model that was made for it, otherwise in two passes.

    Give the pipeline a `window`, so that it sees pieces of a size it knows and memory is bounded.

    Args:
        scale: by which the sides grow; a native model fixes it.
        strength: in two passes, how much is drawn anew; 0.3 if left out.
        level: of a native model, the noise on the small picture, from 0 to what it was trained
            with (x4 upscaler: 350); 20 if left out.
    """
    if extra_channels(pipeline.unet.config) != upscaling.NativeUpscaling.beside:
        if level is not None:
            raise UserError("a noise level is for models made for upscaling; give a strength.")
        scale = 4 if scale is None else scale
        if scale < 2:
            raise UserError(f"the scale is {scale}; a picture is enlarged 2 times or more.")
        check_pixel_count(scale * picture.width, scale * picture.height)
        large = upscaling.enlarged(picture, scale)
        check_image_size(large, pipeline.factor, pipeline.factor)
        share = 0.3 if strength is None else strength
        return upscaling.TwoPass(pipeline.encode(large), picture, scale, share)
    own = pipeline.autoencoder.factor
    if strength is not None:
        raise UserError("this model begins with noise alone; give a noise level, no strength.")
    if scale not in (None, own):
        raise UserError(f"this model enlarges {own} times, not {scale} times.")
    check_image_size(picture, pipeline.factor // own, 1)
    small = image_to_tensor(picture, 3).to(pipeline.device)
    size = (picture.height * own, picture.width * own)
    level = DEFAULT_NOISE_LEVEL if level is None else level
    levels = pipeline.unet.config.num_class_embeds
    if levels is not None and level >= levels:
        raise UserError(f"the noise level is {level}; this U-Net knows levels below {levels}.")
    return upscaling.NativeUpscaling(small, size, level, pipeline.low_res)
