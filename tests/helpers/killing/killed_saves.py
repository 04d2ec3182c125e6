"""Kill the saving of models with SIGKILL before every change to a file, and check what is left.

    python -m tests.helpers.killing.killed_saves FOLDER [KILLS]

Every kind of save is killed with the system's call that exchanges two names, and without it. After
each kill the target must be the old content or the new one, byte by
byte; then the same save must succeed and leave nothing else behind.

KILLS: kill only around the change that gives the target its name, and before so many others; and
only with the call that exchanges names, except for the kind "model".
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

import export
from autoencoder import Autoencoder, AutoencoderConfig
from conditioning import TextEncoder
from conditioning.text_model import TextTowerConfig, empty_tower
from conditioning.tokenizer import SpecialToken, Tokenizer, clip_tokenizer
from foundation import files
from interop import safetensors_io
from interop.lora import LowRankUpdate, write_lora
from ldm import TextToImage
from ldm.schedule import ScheduleConfig
from ldm.unet import UNet, UNetConfig
from tests import keep_writes_in_memory
from tests.helpers.killing.kills import forked, kill_at, recorded_changes

Save = Callable[[Path], object]
WAYS = ("exchange", "two renames")
Content = dict[str, bytes] | bytes | None  # of a folder, of a file, of nothing


def tiny_autoencoder() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(block_out_channels=(8,), norm_num_groups=4)).eval()


def tiny_unet() -> UNet:
    config = UNetConfig(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=1,
        norm_num_groups=4,
    )
    return UNet(config).eval()


def tiny_text_encoder() -> TextEncoder:
    """Make a text encoder of bytes: CLIP's first 512 tokens, and no merges."""
    clip = clip_tokenizer(8)
    vocabulary = {token: i for token, i in clip.vocabulary.items() if i < 512}
    special = {name: replace(token, id=512 + i) for i, (name, token) in enumerate(specials(clip))}
    vocabulary |= {name: token.id for name, token in special.items()}
    tokenizer = Tokenizer(
        vocabulary=vocabulary, merges={}, special=special, context_length=clip.context_length
    )
    config = TextTowerConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        intermediate_size=8,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=8,
    )
    shapes = empty_tower(config).state_dict()
    weights = {name: torch.randn(value.shape) for name, value in shapes.items()}
    return TextEncoder(config, weights, tokenizer)


def specials(tokenizer: Tokenizer) -> list[tuple[str, SpecialToken]]:
    return sorted(tokenizer.special.items(), key=lambda item: item[1].id)


def tiny_model() -> TextToImage:
    parts = (tiny_unet(), tiny_autoencoder(), tiny_text_encoder())
    return TextToImage(*parts, ScheduleConfig(), "noise")


def save_lora(low_rank: LowRankUpdate, folder: Path) -> None:
    write_lora(folder, {"unet": {"conv_in": low_rank}}, {"seed": 0}, "A card.\n")


def export_to(source: Path, format: str, part: str, target: Path) -> None:
    export.main([str(source), str(target), "--format", format, "--part", part])


def make_saves(folder: Path) -> dict[str, tuple[Save | None, Save]]:
    """Return kind -> how its old content is saved (None: there is none) and its new content.

    Exports replace nothing, because export.py refuses an output that exists.
    """
    torch.manual_seed(0)
    models = [tiny_model(), tiny_model()]
    models[1].save(folder / "source")
    loras = [LowRankUpdate(torch.randn(2, 4), torch.randn(4, 2)) for _ in range(2)]
    tensors = [{"a": torch.randn(64)} for _ in range(2)]
    return {
        "autoencoder": tuple(model.autoencoder.save for model in models),
        "unet": tuple(model.unet.save for model in models),
        "text_encoder": tuple(model.text_encoder.save for model in models),
        "model": tuple(model.save for model in models),
        "lora": tuple(partial(save_lora, lora) for lora in loras),
        "file.safetensors": tuple(
            partial(safetensors_io.write_tensors, tensors=state, metadata={"format": "pt"})
            for state in tensors
        ),
        "export": (None, partial(export_to, folder / "source", "diffusers", "all")),
        "export.safetensors": (None, partial(export_to, folder / "source", "single-file", "vae")),
    }


def content(path: Path) -> Content:
    if path.is_file():
        return path.read_bytes()
    if not path.exists():
        return None
    paths = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in paths}


def copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copy(source, target)
    elif source.exists():
        shutil.copytree(source, target)


def save_in_two_steps(tensors: dict[str, torch.Tensor], file: Path, metadata: dict) -> None:
    """Write a safetensors file so that a kill can leave half of it.

    The library writes it outside Python, where no audit event announces a change.
    """
    save_file(tensors, file, metadata)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    file.write_bytes(whole)


def chosen(changes: list[tuple[str, str]], folder: Path, kills: int | None) -> list[int]:
    """Return before which changes to kill, counted from 1."""
    everywhere = list(range(1, len(changes) + 1))
    if kills is None:
        return everywhere
    renames = [
        number
        for number, (event, path) in enumerate(changes, 1)
        if event in ("latentsmith.exchange", "os.rename") and Path(path).parent == folder
    ]
    around = {near for number in renames[-2:] for near in (number, number + 1)}
    spread = everywhere[:: max(1, len(everywhere) // kills)]
    return sorted((around | set(spread)) & set(everywhere))


def kill_everywhere(
    old: Save | None, new: Save, folder: Path, name: str, kills: int | None
) -> dict[str, object]:
    """Kill one kind of save; return the number of kills, what they left, and what was wrong."""
    folder.mkdir(parents=True)
    before, after, counted = (folder / state / name for state in ("old", "new", "counted"))
    for path, save in ((before, old), (after, new)):
        path.parent.mkdir()
        if save is not None:
            assert forked(lambda save=save, path=path: save(path))
    allowed = {"old": content(before), "new": content(after)}
    counted.parent.mkdir()
    copy(before, counted)
    changes = recorded_changes(lambda: new(counted), counted.parent)
    wrong: list[str] = []
    seen: list[str | None] = []
    for number in chosen(changes, counted.parent, kills):
        target = folder / str(number) / name
        target.parent.mkdir()
        copy(before, target)

        def work(target: Path = target, number: int = number) -> None:
            kill_at(number, target.parent)
            new(target)

        assert not forked(work), "the changes differ from those that were counted"
        files.restore(target)
        found = content(target)
        seen.append(next((state for state, value in allowed.items() if value == found), None))
        if seen[-1] is None:
            wrong.append(f"{target}: neither the old content nor the new one")
        # export.py refuses to write what is there already.
        if (old or seen[-1] != "new") and not forked(lambda target=target: new(target)):
            wrong.append(f"{target}: could not be saved again")
        if content(target) != allowed["new"]:
            wrong.append(f"{target}: not the new content after another save")
        if left := sorted({path.name for path in target.parent.iterdir()} - {name}):
            wrong.append(f"{target}: left over: {left}")
        shutil.rmtree(target.parent)
    return {"changes": len(changes), "old": seen.count("old"), "new": seen.count("new")} | {
        "wrong": wrong
    }


def ways(kind: str, kills: int | None) -> Sequence[str]:
    """Return how the names are changed when this kind is saved."""
    return WAYS if kills is None or kind == "model" else WAYS[:1]


def main(folder: Path, kills: int | None = None) -> dict[str, dict[str, object]]:
    keep_writes_in_memory()
    torch.set_num_threads(1)  # threads that the parent starts would not exist in its children
    safetensors_io.save_file = save_in_two_steps
    exchange = files.exchange_names
    results = {}
    for name, (old, new) in make_saves(folder).items():
        for way in ways(name, kills):
            files.exchange_names = exchange if way == "exchange" else lambda a, b: False
            results[f"{name}, {way}"] = kill_everywhere(old, new, folder / way / name, name, kills)
    return results


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
