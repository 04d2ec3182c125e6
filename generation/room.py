"""Whether a model is of use at a size, and whether the memory suffices for it."""

from foundation.errors import UserError
from ldm import TextToImage
from training.memory import available_host_memory, format_bytes

MAX_ENLARGEMENT = 256  # times as many pixels as in training


def check_size(
    pipeline: TextToImage, shape: tuple[int, int, int], window: int | None, batch: int
) -> None:
    """Raise UserError for a size at which the model is of no use, or that memory is too small for.

    Args:
        shape: of the latents.
        batch: images drawn at once.
    """
    height, width = (side * pipeline.latent_factor for side in shape[1:])
    if pipeline.unet.config.sample_size is not None:
        trained = pipeline.size**2
        if height * width > MAX_ENLARGEMENT * trained:
            raise UserError(
                f"pictures of {width}x{height} have {height * width / trained:.0f} times as many "
                f"pixels as those that the model was trained on ({pipeline.size}x{pipeline.size}), "
                f"and at most {MAX_ENLARGEMENT} times are drawn. Draw a smaller one, and enlarge "
                "it (--upscale)."
            )
    needed, available = drawing_memory(pipeline, shape, window, batch), available_host_memory()
    if pipeline.device.type == "cpu" and available is not None and needed > available:
        raise UserError(
            f"{batch} pictures of {width}x{height} at once need about {format_bytes(needed)} of "
            f"memory, and {format_bytes(available)} are free. Use a smaller --batch-size, smaller "
            "pictures, or --window."
        )


def drawing_memory(
    pipeline: TextToImage, shape: tuple[int, int, int], window: int | None, batch: int
) -> int:
    """Estimate the bytes that drawing takes, without the weights: rather too few than too many.

    Counted are what the first level of the U-Net keeps for its last one, and the picture when it is
    decoded.
    """
    config, (_, height, width) = pipeline.unet.config, shape
    side = max(height, width) if window is None else window // pipeline.latent_factor
    layers = config.layers_per_block
    kept = config.block_out_channels[0] * ((layers if isinstance(layers, int) else layers[0]) + 3)
    numbers = 2 * batch * min(side, height) * min(side, width) * kept
    picture = 12 * height * width * pipeline.latent_factor**2 * pipeline.image_channels
    return max(numbers * pipeline.unet.conv_in.weight.element_size(), picture)
