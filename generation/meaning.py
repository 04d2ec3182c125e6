"""What the options of an image mean to a pipeline: its sampling settings, and its task."""

from pathlib import Path

import tyro
from PIL import Image

from dataset.images.transform import load_image, to_channels
from generation.limits import check_prompt
from generation.options import GenerationOptions, parse_seeds
from ldm import TextToImage, tasks
from ldm.guidance import Guidance
from ldm.pipeline.image_processor import check_pixel_count
from ldm.pipeline.sampling import Sampling
from ldm.tasks.base import TEXT_TO_IMAGE, Task
from training.flags import check_bounds, check_needs


def check_options(options: GenerationOptions) -> None:
    """Raise UserError for values out of range and for options that would have no effect."""
    check_bounds(options, GenerationOptions)
    check_needs(options, tyro.MISSING)
    check_prompt(options.negative_prompt, "the negative prompt")
    check_prompt(options.source_prompt, "the source prompt")
    make_sampling(options)  # checks the sampler and its options
    parse_seeds(options.seed, options.count)
    options.check_guidance()
    options.check_input_images()


def make_sampling(options: GenerationOptions) -> Sampling:
    """Return the pipeline's sampling settings for these options."""
    return Sampling(
        sampler=options.sampler,
        steps=options.steps,
        spacing=options.spacing,
        times=options.times,
        shift=options.shift,
        eta=options.eta,
        order=options.order,
        clip_range=options.clip_range,
        guidance=Guidance(
            scale=options.guidance_scale,
            rescale=options.guidance_rescale,
            interval=options.guidance_interval,
            parallel=options.guidance_parallel,
            max_norm=options.guidance_max_norm,
            momentum=options.guidance_momentum,
        ),
    )


def make_task(options: GenerationOptions, pipeline: TextToImage) -> Task:
    """Read the input images and return the task for them.

    Raises:
        UserError: an image cannot be read, or does not suit the model or the other options.
    """
    strength = {} if options.strength is None else {"strength": options.strength}
    if options.style_image is not None:
        image = load_input(options, options.style_image, pipeline)
        return tasks.edit(
            pipeline,
            image,
            **strength,
            source_prompt=options.source_prompt,
            variation=options.variation,
            window=options.window,
        )
    if options.restore is not None:
        return tasks.restore(pipeline, load_input(options, options.restore, pipeline))
    if options.init_image is None:
        return TEXT_TO_IMAGE
    image = load_input(options, options.init_image, pipeline)
    if options.upscale is not None:
        level = {} if options.noise_level is None else {"noise_level": options.noise_level}
        return tasks.upscale(pipeline, image, options.upscale, **strength, **level)
    if options.outpaint is not None:
        return tasks.outpaint(
            pipeline, image, options.outpaint, **strength, resample=options.resample
        )
    if options.mask is not None:
        mask = to_channels(load_image(options.mask), 1, background=(0, 0, 0))
        return tasks.inpaint(pipeline, image, mask, **strength, resample=options.resample)
    return tasks.img2img(pipeline, image, **strength)


def load_input(options: GenerationOptions, file: Path, pipeline: TextToImage) -> Image.Image:
    """Read an image with the model's number of channels, resized to the size asked for."""
    channels = pipeline.autoencoder.config.in_channels
    image = to_channels(load_image(file), channels, background=(255, 255, 255))
    width = image.width if options.width is None else options.width
    height = image.height if options.height is None else options.height
    check_pixel_count(width, height)
    if (width, height) == image.size or options.is_set("upscale") or options.is_set("outpaint"):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)
