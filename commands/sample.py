"""What sample.py does: prompts to pictures, or to a video, in files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from commands.flags.sample import Config
from dataset.images.write import remove_leftovers
from foundation.errors import UserError, one_line, shown
from foundation.system import open_result
from generation.limits import MAX_GRID, check_prompt
from generation.meaning import check_options
from generation.metadata import SUFFIXES, encode_image, lora_record
from generation.names import FileNames
from generation.options import parse_seeds
from generation.output import ImageWriter, Previews, model_pixel_format, shows_eight_bit
from generation.prompt_loop import draw_typed_prompts, is_interactive
from generation.prompts import ImageSpec, PromptEntry, PromptFile, check_syntax, expand
from generation.reproduce import check_hashes, compare_pixels, entries_of_record, find_model
from generation.session import GenerationSession, Survey
from generation.video import Animation
from generation.xy_grid import GRID_NAME, OptionGrid, enlarge, enlargement, parse_grid
from ldm.pipeline.image_processor import MAX_PIXELS
from stages.lora import apply_lora
from training.cli import field_names
from training.device import pick_device
from training.flags import check_needs
from training.logging.image_grid import image_grid, pil_to_tensor
from training.logging.progress import counted, progress_counter
from training.run import make_folder

DEMO = Path("checkpoints/demo")
RECORDED = (
    *("interpolate", "video", "fps", "batch_size", "compile", "ema", "dtype"),
    *("grid_x", "grid_y"),
)


def run(config: Config, session: GenerationSession | None = None) -> None:
    """Generate what the flags ask for.

    session: the model if it is open already, for flags that ask for pictures of given prompts.
    """
    check_options(config.options)
    if config.reproduce is not None:
        reproduce(config, config.reproduce)
        return
    if asks_for_prompts(config):
        draw_as_typed(config)
        return
    grid = parse_grid(config.grid_x, config.grid_y)
    images = Images(read_entries(config, grid), grid)
    images.check()
    generate(config, session or open_session(config), images)


def asks_for_prompts(config: Config) -> bool:
    """Return whether prompts are typed: none are given, the model may read them, and it can be."""
    given = config.prompt or config.prompts is not None or config.options.guidance_scale == 0
    given = given or config.grid_x or config.grid_y
    return not given and not config.interpolate and is_interactive()


def draw_as_typed(config: Config) -> None:
    """Draw each prompt as it is typed; the seeds go on from one to the next."""
    session = open_session(config)
    several = len(parse_seeds(config.options.seed, config.options.count)) > 1

    def draw(prompt: str, done: int) -> int:
        options = config.options
        if not several:
            options = replace(options, seed=str(int(options.seed) + done))
        check_prompt(prompt)
        images = Images([PromptEntry(prompt, options)])
        images.check()
        generate(replace(config, options=options), session, images)
        return options.count

    draw_typed_prompts(draw, field_names(Config))


@dataclass(frozen=True)
class Images:
    """All images of a call. They are listed anew each time, so that memory holds one of them."""

    entries: Sequence[PromptEntry | PromptFile]
    grid: OptionGrid | None = None

    def __iter__(self) -> Iterator[ImageSpec]:
        if self.grid is not None:
            return expand(self.grid.entries(self.base))
        lists = ([each] if isinstance(each, PromptEntry) else each for each in self.entries)
        return expand(chain.from_iterable(lists))

    @property
    def base(self) -> PromptEntry:
        """The prompt and the options that the axes of a grid leave as they are.

        Raises:
            UserError: there is no prompt or several, or a file of them.
        """
        one, *others = self.entries
        if others or not isinstance(one, PromptEntry):
            raise UserError("a grid has one prompt, or those of an axis: --grid-y prompt=A,B.")
        return one

    def check(self) -> None:
        """Raise UserError for prompts, options and seeds that are wrong for any model."""
        for image in counted(self, "checking prompts"):
            check_syntax(image)

    def name_fields(self) -> Iterator[dict[str, Any]]:
        return (image.name_fields() for image in self)


def read_entries(config: Config, grid: OptionGrid | None) -> list[PromptEntry | PromptFile]:
    """Return the prompts of the command line, and the prompt file.

    grid: may have prompts of its own; then an empty one stands for them.
    """
    for prompt in config.prompt:
        check_prompt(prompt)
    entries: list[PromptEntry | PromptFile]
    entries = [PromptEntry(prompt, config.options) for prompt in config.prompt]
    if config.prompts is not None:
        entries.append(PromptFile(config.prompts, config.options))
    has_prompts = grid is not None and grid.has_prompts
    if not entries and (has_prompts or config.options.guidance_scale == 0):
        entries = [PromptEntry("", config.options)]
    if not entries:
        raise UserError(
            'no prompt given. For example: python sample.py "red heart". Without a prompt: the '
            'empty one, "", for a model that reads none; --guidance-scale 0 for others.'
        )
    return entries


def open_session(config: Config) -> GenerationSession:
    """Open the model, with the LoRA if one is given."""
    model, lora = config.model, config.lora
    if model is None:
        model = DEMO
        if not model.exists():
            raise UserError(
                f"--model is missing. Left out, it is the demo's, and {DEMO} is not in this "
                "folder: start the command where the checkout is, or give the path of a model."
            )
        print(f"no --model given, so the demo is used: {DEMO}")
    return GenerationSession(
        model,
        pick_device(config.device),
        ema=config.ema,
        dtype=config.dtype,
        compiled=config.compile,
        batch_size=config.batch_size,
        modify=None if lora is None else partial(apply_lora, source=lora, scale=config.lora_scale),
        extra_record=None if lora is None else lora_record(lora, config.lora_scale),
    )


def reproduce(config: Config, file: Path) -> None:
    """Generate the image or video of a file again, and compare the pixels."""
    if config.prompt or config.prompts is not None:
        raise UserError("--reproduce takes the prompt from the file; give no prompts.")
    entries, call = entries_of_record(file, config.options)
    settings = {name: getattr(call, name) for name in RECORDED}
    if call.lora is not None and config.lora is None:
        raise UserError(
            f"{one_line(file)} was generated with the LoRA {shown(call.lora)} (sha256 "
            f"{shown(call.hashes.get('lora'))}). Say where it is by --lora PATH."
        )
    if call.lora is None and config.lora is not None:
        raise UserError(f"{one_line(file)} was generated without a LoRA; leave out --lora.")
    if config.lora is not None:
        settings["lora_scale"] = call.lora_scale
    if config.model is None:
        settings["model"] = find_model(call, file)
    config = replace(config, options=entries[0].options, **settings)
    check_needs(replace(config, reproduce=None), tyro.MISSING)
    images = Images(entries, parse_grid(config.grid_x, config.grid_y))
    images.check()
    session = open_session(config)
    check_hashes(call, session.weight_hashes(entries[0].options), file)
    compare_pixels(generate(config, session, images), file)


def generate(config: Config, session: GenerationSession, images: Images) -> Path:
    """Write the images and their grid, or the video.

    Returns:
        The path of the file that --reproduce compares: the grid if it has labels, else the first.
    """
    survey = session.survey(counted(images, "checking options"))
    session.print_warning(survey)
    if survey.has_input_files:
        check_reads_pictures(session)
    if config.interpolate:
        shown = first = generate_video(config, session, images)
    else:
        generated, first = generate_images(config, session, images, survey)
        if images.grid is not None:
            first = write_labeled(config, session, images, generated)
        grid = write_grid(config, generated) if len(generated) > 1 and not images.grid else None
        shown = grid or first
    if config.open:
        open_result(shown)
    return first


def check_reads_pictures(session: GenerationSession) -> None:
    """Raise UserError for input pictures where the model was trained on other values."""
    pixels = model_pixel_format(session.model)
    if not shows_eight_bit(pixels, session.pipeline.autoencoder.config.out_channels):
        raise UserError(
            "input images are read with 8 bits, and this model was trained on "
            f"{pixels.dtype}. Generate from prompts alone."
        )


def generate_images(
    config: Config, session: GenerationSession, images: Images, survey: Survey
) -> tuple[list[Image.Image], Path]:
    """Generate images and write each group when it is ready.

    Returns:
        The images of the grid, if one is to be written; and the path of the first one.
    """
    writer = open_writer(config, session)
    names = FileNames(config.out, config.name, writer.suffixes)
    names.check(images.name_fields())
    open_folder(config.out)
    in_grid = config.grid and survey.images <= MAX_GRID
    if config.grid and not in_grid:
        print(f"no grid is written: there are {survey.images} images, and it holds {MAX_GRID}.")
    generated: list[Image.Image] = []
    written: list[Path] = []  # the first, and the last if there are several
    try:
        with progress_counter("sampling", survey.network_calls, "image steps") as count:
            for group in session.plan(images):
                session.print_notes(group.images)
                paths = names.planned([image.name_fields() for image in group.images])
                preview = Previews(session.pipeline, config.out, paths, config.preview_every)
                requests = session.requests(group.images)
                latents = session.generate(requests, group.options, group.task, count, preview)
                for image, z in zip(group.images, latents, strict=True):
                    contents, picture = writer.encode(z, group.task, session.record(image))
                    written[1:] = [names.write(image.name_fields(), contents)]
                    if in_grid:
                        generated.append(picture)
    finally:  # also after an error: what is whole stays
        if written:
            more = f" ... {one_line(written[-1].name)}" if len(written) > 1 else ""
            print(f"wrote {one_line(written[0])}{more}{writer.suffix}")
    return generated, written[0].with_name(written[0].name + writer.suffix)


def open_folder(out: Path) -> None:
    """Make the output folder, and remove from it what a call has left that was killed."""
    make_folder(out)
    for folder in (out, out / "previews"):
        remove_leftovers(folder)


def open_writer(config: Config, session: GenerationSession) -> ImageWriter:
    return ImageWriter(
        session.pipeline,
        model_pixel_format(session.model),
        file_format=config.format,
        quality=config.quality,
        save_latents=config.save_latents,
    )


def write_grid(config: Config, images: Sequence[Image.Image]) -> Path | None:
    """Write images side by side, a row per prompt; return the path, or None without a grid.

    There is none of images that differ in size or mode, or that are too large for it. Small images
    are enlarged to the size that the flags ask for.
    """
    if len({(image.size, image.mode) for image in images}) > 1:
        return None
    factor = enlargement(images, config.grid_cell)
    width, height = (factor * side for side in images[0].size)
    if len(images) * width * height > MAX_PIXELS:
        print(f"no grid is written: {len(images)} images of {width}x{height} are too large for it.")
        return None
    count = config.options.count
    columns = count if 1 < count < len(images) else int(len(images) ** 0.5)
    return write_as_grid(config, image_grid(pil_to_tensor(enlarge(images, factor)), columns), {})


def write_labeled(
    config: Config, session: GenerationSession, images: Images, generated: Sequence[Image.Image]
) -> Path:
    """Write the images of a grid over options with its labels and a record; return its path."""
    assert images.grid is not None
    picture, record = images.grid.finish(session, images.base, generated)
    return write_as_grid(config, picture, record)


def write_as_grid(config: Config, picture: Image.Image, record: Mapping[str, Any]) -> Path:
    suffix = SUFFIXES[config.format]
    contents = {suffix: encode_image(picture, record, config.format, config.quality)}
    path = FileNames(config.out, GRID_NAME, [suffix]).write({}, contents)
    print(f"wrote {one_line(path)}{suffix}")
    return path.with_name(path.name + suffix)


def generate_video(config: Config, session: GenerationSession, images: Images) -> Path:
    """Write a video that changes from each image to the next; return its path."""
    animation = Animation(session, images, config.interpolate, config.video, config.fps)
    suffix = SUFFIXES[config.video]
    names, fields = FileNames(config.out, config.name, [suffix]), animation.keyframes[0]
    names.check([fields.name_fields()])
    open_folder(config.out)
    session.print_notes(animation.keyframes)
    with progress_counter("sampling", animation.network_calls, "image steps") as count:
        content = animation.encode(count)
    path = names.write(fields.name_fields(), {suffix: content})
    print(f"wrote {one_line(path)}{suffix}: {animation.frames} frames")
    return path.with_name(path.name + suffix)
