"""Writes a caption for every image of a folder that has none, by an image-to-text model.

    python recipes/caption.py data/mine --model Salesforce/blip-image-captioning-base
    python recipes/caption.py data/mine --model HuggingFaceTB/SmolVLM-256M-Instruct
    python recipes/caption.py data/mine --model NAME --prompt "Name the flower in one word."

The caption of photo.jpg goes to photo.txt next to it. A caption that is there is never changed. If
the recipe is stopped or killed, the same command continues with the images that have none yet.

A model that chats is asked for one sentence, or what --prompt says. Other models continue the text
of --prompt, if there is one.

Needs: pip install transformers
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, uninstalled

from foundation.errors import UserError, one_line, printable
from training.cli import answer_early, parse, run_main
from training.flags import Groups, Positive


@dataclass(frozen=True, kw_only=True)
class Options:
    GROUPS: ClassVar[Groups] = {
        "options": ("folder", "model", "prompt", "batch_size", "max_tokens", "beams", "device"),
    }

    folder: tyro.conf.Positional[Path]  # folder of images, with folders in it
    model: str  # folder of a model for transformers, or its name on the Hugging Face Hub
    prompt: str | None = None  # what the model is asked, or the beginning of its captions
    batch_size: Positive[int] = 16  # images at once
    max_tokens: Positive[int] = 64  # of a caption
    beams: Positive[int] = 1  # captions that the search keeps at a time; 1: the likeliest word
    device: str = "auto"  # cpu, cuda, mps; auto: the first GPU there is, else the CPU


if __name__ == "__main__":
    answer_early(Options, __doc__)  # the imports below take seconds


import torch
from PIL import Image

from dataset.captions.rules import CAPTION_FILES
from dataset.captions.sidecars import match_sidecars
from dataset.folder import list_files, require_folder
from dataset.images.transform import load_image, to_channels
from dataset.parallel import map_in_threads
from dataset.source import UnusableFile, UnusableImage, as_lines
from dataset.tabular.discover import tables_of_folder
from foundation.files import write_text
from training.device import pick_device
from training.logging.progress import progress_bar

WHITE = (255, 255, 255)  # seen through transparent pixels, as in the trainings
QUESTION = "Describe this picture in one short sentence."  # to a model that chats
Caption = Callable[[list[Image.Image]], list[str]]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, __doc__)
    targets, unusable = find_targets(require_folder(options.folder))
    if not targets:
        print(f"every image in {one_line(options.folder)} has a caption.")
    else:
        print(f"{len(targets)} images in {one_line(options.folder)} have no caption.")
        caption = load_model(options)
        unusable += write_captions(targets, caption, options.batch_size)
    if unusable:
        print(printable(f"{len(unusable)} images got no caption:\n{as_lines(unusable, 20)}"))
        sys.exit(1)


def find_targets(root: Path) -> tuple[dict[Path, Path], list[UnusableFile]]:
    """Return image -> caption file to write, for every image without one.

    Raises:
        UserError: the folder has a table of captions, which would hide what is written.
    """
    files, unusable = list_files(root)
    for name in CAPTION_FILES:
        if tables := files.find(name):
            raise UserError(
                f"{one_line(tables[0][1])} holds the captions of this folder, and files next to "
                "the images would not be read. Move the table away first, or add rows to it."
            )
    if table := tables_of_folder(root, None):
        raise UserError(
            f"{one_line(root)} is read as a table ({one_line(table.files[0])}), so files next to "
            "the images would not be read. Move the table away first."
        )
    captioned = match_sidecars(files).files
    stems = Counter((root / on_disk).with_suffix("") for on_disk in files.images.values())
    targets: dict[Path, Path] = {}
    for name, on_disk in sorted(files.images.items()):
        image = root / on_disk
        if name not in captioned:
            alone = stems[image.with_suffix("")] == 1
            targets[image] = image.with_suffix(".txt") if alone else Path(f"{image}.txt")
    return targets, unusable


def write_captions(
    targets: dict[Path, Path], caption: Caption, batch_size: int
) -> list[UnusableFile]:
    """Caption the images batch by batch; return those that got none, with the reasons."""
    unusable: list[UnusableFile] = []
    paths = list(targets)
    batches = [paths[k : k + batch_size] for k in range(0, len(paths), batch_size)]
    for batch in progress_bar(batches, "captioning", len(batches)):
        images: dict[Path, Image.Image] = {}
        for path, image in zip(batch, map_in_threads(read_image, batch), strict=True):
            if isinstance(image, UnusableFile):
                unusable.append(image)
            else:
                images[path] = image
        if not images:
            continue
        for path, text in zip(images, caption(list(images.values())), strict=True):
            if not text:
                unusable.append(UnusableFile(path, "the model says nothing about it"))
            elif not targets[path].exists():  # someone may have written one meanwhile
                write_text(targets[path], text + "\n")
    return unusable


def read_image(path: Path) -> Image.Image | UnusableFile:
    """Decode an image to RGB."""
    try:
        return to_channels(load_image(path), 3, WHITE)
    except UnusableImage as error:
        return UnusableFile(path, error.reason)


def load_model(options: Options) -> Caption:
    """Load model and processor; return the function from images to captions.

    Raises:
        UserError: transformers cannot open it.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(
            "captioning needs the Python package transformers. Run: pip install transformers"
        ) from error
    device = pick_device(options.device)
    try:
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            options.model, use_safetensors=True
        )
        process, tokenizer = load_processor(transformers, options.model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"transformers cannot open {one_line(options.model)} as an image-to-text model: "
            f"{one_line(error, 500)}"
        ) from error
    model = model.to(device).eval()

    @torch.no_grad()
    def caption(images: list[Image.Image]) -> list[str]:
        inputs = prepare(process, images, options.prompt).to(device)
        ids = model.generate(
            **inputs, max_new_tokens=options.max_tokens, num_beams=options.beams, do_sample=False
        )
        given = inputs.get("input_ids")
        if given is not None and torch.equal(ids[:, : given.shape[1]], given):
            ids = ids[:, given.shape[1] :]  # the prompt
        return [" ".join(text.split()) for text in tokenizer.batch_decode(ids, True)]

    return caption


def prepare(process: Any, images: list[Image.Image], prompt: str | None) -> Any:
    """Return the inputs of a model for some images: a question for each, or a beginning, or none.

    A chat template says how a model's questions look, and where the picture stands in them.
    """
    if getattr(process, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt or QUESTION}]
        question = process.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return process(
            text=[question] * len(images),
            images=[[image] for image in images],
            padding=True,  # pictures of several shapes may have numbers of tokens of their own
            return_tensors="pt",
        )
    text = {} if prompt is None else {"text": [prompt] * len(images)}
    return process(images=images, return_tensors="pt", **text)


def load_processor(transformers: Any, name: str) -> tuple[Any, Any]:
    """Return what turns images and prompts into inputs, and what turns tokens into text."""
    try:
        processor = transformers.AutoProcessor.from_pretrained(name)
        if hasattr(processor, "image_processor"):
            tokenizer = processor.tokenizer
            tokenizer.padding_side = "left"  # the text goes on at the end
            return processor, tokenizer
    except (OSError, ValueError, KeyError):
        pass  # an encoder and a decoder that have no common processor
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return transformers.AutoImageProcessor.from_pretrained(name), tokenizer


if __name__ == "__main__":
    run_main(main, Options)
