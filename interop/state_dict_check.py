"""What a file or folder of weights is, in words for error messages."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]

# The first of these that occurs in any name tells what the file is.
NO_MODELS = {
    "exp_avg": "the state of an optimizer",
    "lora": "a LoRA, which holds changes to a model and no model",
    ".hada_w": "a LyCORIS, which holds changes to a model and no model",
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "ip_adapter.": "an IP-Adapter",
    "emb_params": "an embedding of textual inversion",
    "joint_blocks.": "a transformer of Stable Diffusion 3",
    "single_transformer_blocks.": "a transformer of FLUX's kind",
    "double_blocks.": "a transformer of FLUX's kind",
    "transformer_blocks.0.attn.add_k_proj.": "a transformer of Stable Diffusion 3",
    "adaln_single.": "a diffusion transformer",
    "adaLN_modulation.": "a diffusion transformer",
}
PARTS = {
    "quantize.": "a VQ autoencoder, which has a codebook; only KL autoencoders are supported",
    "visual.": "a CLIP of open_clip with both its towers",
    "transformer.resblocks.": "a text encoder of open_clip",
    "vision_model.": "a CLIP of Hugging Face with both its towers",
    "token_embedding.": "a text encoder (CLIPTextModel)",
    "SelfAttention.": "a text encoder (T5)",
    "decoder.layers.": "an AutoencoderTiny, which has no posterior",
}
TIME_EMBEDDINGS = ("time_embed.", "time_embedding.")  # CompVis, diffusers
VECTOR_EMBEDDINGS = ("label_emb.0.", "add_embedding.", "class_embedding.linear_1.")
CLASS_EMBEDDINGS = ("label_emb.weight", "class_embedding.weight")
CONTEXTS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}  # by width of the text
VECTOR_CONTEXTS = {
    1024: "Stable Diffusion 2.1 unCLIP",
    1280: "the refiner of Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}


def seems_to_be(shapes: Shapes) -> str:
    """What weights of these names and shapes are, such as "the U-Net of Stable Diffusion 1.x"."""
    if not shapes:
        return "empty: there is no tensor in it"
    for sign, content in NO_MODELS.items():
        if occurs([sign], shapes):
            return content
    if occurs(TIME_EMBEDDINGS, shapes):
        return unet_kind(shapes)
    for sign, content in PARTS.items():
        if occurs([sign], shapes):
            return content
    if occurs(["encoder.down_blocks.0.resnets."], shapes):
        return autoencoder_kind("an AutoencoderKL", shapes)
    if occurs(["encoder.down.", "decoder.up."], shapes):
        return autoencoder_kind("an autoencoder under CompVis' names", shapes)
    return "no model that is known here"


def occurs(signs: Iterable[str], shapes: Shapes) -> bool:
    return any(sign in name for sign in signs for name in shapes)


def unet_kind(shapes: Shapes) -> str:
    width = inputs(shapes, "attn2.to_k.weight")
    channels = inputs(shapes, "input_blocks.0.0.weight", "conv_in.weight")
    if width is None:
        family = "a U-Net that reads no text"
    elif occurs(CLASS_EMBEDDINGS, shapes):
        family = "the x4 upscaler of Stable Diffusion 2"
    else:
        known = VECTOR_CONTEXTS if occurs(VECTOR_EMBEDDINGS, shapes) else CONTEXTS
        family = known.get(width, f"a text-to-image model with text vectors of width {width}")
    if channels not in (None, 4):
        family += f" with {channels} input channels" + " (inpainting)" * (channels == 9)
    if width is None:
        return family
    if occurs(["model.diffusion_model."], shapes) and occurs(["first_stage_model."], shapes):
        return f"a single-file checkpoint of {family}"
    compvis = occurs(["input_blocks."], shapes)
    return f"the U-Net of {family}" + " under CompVis' names" * compvis


def autoencoder_kind(name: str, shapes: Shapes) -> str:
    if any(len(shape) == 5 for shape in shapes.values()):
        return "an autoencoder of videos"
    channels = inputs(shapes, "decoder.conv_in.weight")
    return name + (f" with latents of {channels} channels" if channels else "")


def inputs(shapes: Shapes, *endings: str) -> int | None:
    """How many inputs the first layer has whose weight's name ends so; early endings first."""
    for ending in endings:
        for name, shape in shapes.items():
            if name.endswith(ending) and len(shape) > 1:
                return shape[1]
    return None


def named_class(folder: Path) -> str:
    """A sentence with the class that the folder's own JSON names, if it has any."""
    for place in (".", "model", "text_encoder", "model/text_encoder"):
        for name in ("model_index.json", "config.json"):
            try:
                content = json.loads((folder / place / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if not isinstance(content, dict):
                continue
            named = [content.get("_class_name"), *(content.get("architectures") or [])]
            if kind := next(filter(None, named), None) or content.get("model_type"):
                return f" Its {Path(place) / name} names the class {kind}."
    return ""


def visible_damage(file: Path) -> str:
    """What is wrong with a file that cannot be read, where its first bytes tell; else ""."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        head = stream.read(64)
    if size == 0:
        return "It is empty."
    if head.startswith(b"version https://git-lfs"):
        return "It is a Git LFS pointer and not the file itself: run git lfs pull."
    if head.lstrip().startswith(b"<"):
        return "It is a web page that was saved in place of the file."
    if head.startswith(b"PK"):
        return "It begins as an archive of torch.save, such as a .ckpt."
    if head[8:9] == b"{":
        return f"It begins as a safetensors file{shortage(file)}."
    return ""


def shortage(file: Path) -> str:
    """By how much a safetensors file is too short, if it is."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size:
            return f", whose header should have {length} bytes; the whole file has {size}"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return ""
    return f", which should have {needed} bytes and has {size}" if needed > size else ""
