"""The U-Net compiled for a CPU ahead of time: in a process of its own, and kept on disk.

So this process does without the memory that compiling takes, and the minute is spent once for each
model, size and batch.
"""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import ldm
from foundation.errors import UserError
from foundation.hashing import tensors_sha256
from foundation.shapes import Latents
from interop.safetensors_io import read_tensors
from ldm.unet import UNet
from ldm.unet.io import WEIGHTS
from ldm.unet.layers import Kernel
from training.logging.progress import print_line
from training.memory import release_freed_memory

ROOT = Path(__file__).parents[1]
FEW = 16 * 16  # pixels of latents; with more of them plain products are no faster

# Of arguments: their nested lists, with shape and strides for tensors.
Outline = tuple | None


class Ahead:
    """`UNet.run` by code that was made for the weights and for the layouts that are asked for.

    The code brings the weights along, so the U-Net's own are left in a file beside it, of which
    memory holds only what is still read.
    """

    def __init__(self, unet: UNet):
        self.unet = unet
        self.dtype = str(unet.conv_in.weight.dtype).removeprefix("torch.")
        weights = tensors_sha256(unet.state_dict())
        self.folder = cache_folder() / f"{weights[:32]}-{self.dtype}"
        if not (self.folder / WEIGHTS).is_file():
            unet.save(self.folder)
        unet.load_state_dict(read_tensors(self.folder / WEIGHTS), assign=True)
        release_freed_memory()
        self.known: dict[Outline, Callable[..., Tensor]] = {}

    def __call__(
        self,
        latents: Latents,
        times: list,
        texts: list,
        kernels: Sequence[list[Kernel]] = (),  # not needed: constants of the code
    ) -> Tensor:
        arguments = latents, times, texts
        outline = outline_of(arguments)
        if outline not in self.known:
            self.known[outline] = self.made(outline)
        return self.known[outline](*tensors_of(arguments))

    def made(self, outline: Outline) -> Callable[..., Tensor]:
        # The code shares its loops among so many threads.
        job = {"outline": outline, "dtype": self.dtype, "threads": torch.get_num_threads()}
        facts = [job, asdict(self.unet.config), sources(), torch.__version__]
        facts += [platform.node(), torch.backends.cpu.get_cpu_capability()]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.pt2"
        if not file.is_file():
            make(job, file)
        # It warns of CUDA's compiler where there is no GPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        return torch._inductor.aoti_load_package(str(file))


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "latentsmith" / "compiled"


def sources() -> str:
    """sha256 of what the code is made from."""
    files = [Path(__file__), *sorted(Path(ldm.__file__).parent.rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def make(job: dict[str, Any], file: Path) -> None:
    """From the U-Net in the file's folder. Raises ValueError with the compiler's last words."""
    (count, _, height, width), _ = job["outline"][0]
    print_line(
        f"compiling the U-Net for {count} latents of {height}x{width}, once; about a minute ..."
    )
    unfinished = file.with_name(f"{file.stem}-{os.getpid()}.pt2")
    command = [sys.executable, "-m", "generation.compile_ahead", str(unfinished.absolute())]
    try:
        child = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, cwd=ROOT
        )
        if child.returncode:
            raise UserError(
                f"the U-Net cannot be compiled here: {child.stderr[-2000:].strip()}\n"
                "Draw without --compile; the pictures are the same, but slower."
            )
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    print_line(f"done. It is kept in {file.parent}, which may be deleted at any time.")


class OfTensors(nn.Module):
    """`UNet.run` as a function of tensors alone."""

    def __init__(self, unet: UNet, outline: Outline):
        super().__init__()
        self.unet, self.outline = unet, outline

    def forward(self, *tensors: Tensor) -> Tensor:
        latents, times, texts = nested(self.outline, iter(tensors))
        # Made of the weights they are constants, too. As arguments they would not be.
        kernels = [stage.kernels() for stage in self.unet.up_blocks]
        return self.unet.run(latents, times, texts, kernels)


def compile_to(file: Path, job: dict[str, Any]) -> None:
    """The U-Net in the file's folder."""
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    module = OfTensors(UNet.load(file.parent).to(dtype).eval(), job["outline"])
    inputs = tuple(
        torch.empty_strided(*layout, dtype=dtype).zero_() for layout in layouts_of(job["outline"])
    )
    with torch.no_grad(), attention_to(inputs[0]):
        program = torch.export.export(module, inputs)
        # Freezing lays the weights out as the processor's convolutions want them.
        options = {"freezing": True}
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(file), inductor_configs=options
        )


def attention_to(latents: Latents) -> AbstractContextManager:
    """For few tokens the compiler makes faster code of plain products than PyTorch's kernel is."""
    return sdpa_kernel(SDPBackend.MATH) if latents[0, 0].numel() <= FEW else nullcontext()


def outline_of(arguments: Any) -> Outline:
    if arguments is None or isinstance(arguments, Tensor):
        return None if arguments is None else (tuple(arguments.shape), arguments.stride())
    return tuple(outline_of(argument) for argument in arguments)


def tensors_of(arguments: Any) -> Iterator[Tensor]:
    """In their order."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif arguments is not None:
        for argument in arguments:
            yield from tensors_of(argument)


def is_layout(outline: Outline) -> bool:
    return bool(outline) and bool(outline[0]) and isinstance(outline[0][0], int)


def layouts_of(outline: Outline) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    if is_layout(outline):
        yield outline
    else:
        for part in outline or ():
            yield from layouts_of(part)


def nested(outline: Outline, tensors: Iterator[Tensor]) -> Any:
    """The arguments of that outline, with the tensors in their places."""
    if outline is None or is_layout(outline):
        return None if outline is None else next(tensors)
    return [nested(part, tensors) for part in outline]


if __name__ == "__main__":
    compile_to(Path(sys.argv[1]), json.load(sys.stdin))
