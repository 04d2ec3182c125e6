"""A compiled U-Net for sampling: a minute at first for each size and batch, faster from then on.

On a GPU, torch.compile records CUDA graphs. On a CPU, the code is made ahead of time, in a process
of its own, and kept on disk: so this process does without the memory that compiling takes, and the
minute is spent once for each model, size and batch.
"""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import ldm
from foundation.errors import UserError
from foundation.files import rename
from foundation.hashing import tensors_sha256
from foundation.shapes import Latents
from interop.safetensors_io import read_tensors
from ldm.unet import UNet
from ldm.unet.cached import BlockKV, BlockShifts, CachedForward, forward_cached, upsample_kernels
from ldm.unet.io import WEIGHTS
from ldm.unet.layers import UpsampleKernel
from training.acceleration.compiled import check_compiler, code_folder
from training.logging.progress import print_line
from training.memory import release_freed_memory

ROOT = Path(__file__).parents[1]
FEW_PIXELS = 16 * 16  # of latents; with more of them plain products are no faster than a kernel

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides of a tensor


def compile_unet(unet: UNet) -> CachedForward:
    """Return compiled code for a U-Net that is on its device, and whose weights do not change.

    Give it to a pipeline as `cached_forward`.

    Raises:
        UserError: there is no compiler for the device.
    """
    check_compiler(unet.device)
    return AheadCompiledForward(unet) if unet.device.type == "cpu" else GraphCompiledForward()


class GraphCompiledForward:
    """`forward_cached`, compiled for a GPU and recorded as CUDA graphs."""

    def __init__(self):
        self.compiled = torch.compile(forward_cached, dynamic=False, mode="reduce-overhead")

    def __call__(
        self,
        unet: UNet,
        latents: Tensor,
        shifts: list[BlockShifts],
        keys_values: list[BlockKV],
        kernels: list[list[UpsampleKernel]],
    ) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        # A CUDA graph writes every result to one place; multistep samplers read earlier ones.
        return self.compiled(unet, latents, shifts, keys_values, kernels).clone()


class AheadCompiledForward:
    """`forward_cached` by code that was made ahead of time, with the weights as constants.

    The code brings the weights along, so the U-Net's own are left in a file next to it, of which
    memory holds only what is still read.
    """

    def __init__(self, unet: UNet):
        self.dtype = str(unet.dtype).removeprefix("torch.")
        self.config = asdict(unet.config)
        weights = tensors_sha256(unet.state_dict())
        self.folder = code_folder() / "compiled" / f"{weights[:32]}-{self.dtype}"
        if not (self.folder / WEIGHTS).is_file():
            unet.save(self.folder)
        unet.load_state_dict(read_tensors(self.folder / WEIGHTS), assign=True)
        release_freed_memory()
        self.loaded: dict[tuple[Layout, ...], Callable[..., Tensor]] = {}  # by layout of arguments

    def __call__(
        self,
        unet: UNet,
        latents: Tensor,
        shifts: list[BlockShifts],
        keys_values: list[BlockKV],
        kernels: Sequence[list[UpsampleKernel]] = (),  # constants of the code
    ) -> Tensor:
        arguments = latents, shifts, keys_values
        leaves, structure = pytree.tree_flatten(arguments)
        layouts = tuple((tuple(leaf.shape), leaf.stride()) for leaf in leaves)
        if layouts not in self.loaded:
            self.loaded[layouts] = self.load(layouts, pytree.treespec_dumps(structure))
        return self.loaded[layouts](*arguments)

    def load(self, layouts: tuple[Layout, ...], structure: str) -> Callable[..., Tensor]:
        """Load the code for arguments of these layouts; make it first if it is not there."""
        job: dict[str, Any] = {"layouts": layouts, "structure": structure, "dtype": self.dtype}
        job["threads"] = torch.get_num_threads()  # the code divides its loops among so many
        facts = [job, self.config, sources_sha256(), torch.__version__]
        facts += [platform.node(), torch.backends.cpu.get_cpu_capability()]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.pt2"
        if not file.is_file():
            compile_in_subprocess(job, file)
        # It warns of CUDA's compiler where there is no GPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        return torch._inductor.aoti_load_package(str(file))


def sources_sha256() -> str:
    """Compute the sha256 of the source files that the code is made from."""
    files = [Path(__file__), *sorted(Path(ldm.__file__).parent.rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def compile_in_subprocess(job: dict[str, Any], file: Path) -> None:
    """Make the code for the U-Net in the file's folder.

    Raises:
        UserError: the compiler failed; with its last words.
    """
    (count, _, height, width), _ = job["layouts"][0]
    print_line(
        f"compiling the U-Net for {count} latents of {height}x{width}, once; about a minute ..."
    )
    unfinished = file.with_name(f"{file.stem}-{os.getpid()}.pt2")
    command = [sys.executable, "-m", "generation.compile", str(unfinished.absolute())]
    try:
        child = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=ROOT,
        )
        if child.returncode:
            raise UserError(
                f"the U-Net cannot be compiled here: {child.stderr[-2000:].strip()}\n"
                "Draw without --compile; the pictures are the same, but slower."
            )
        rename(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    print_line(f"done. It is kept in {file.parent}, which may be deleted at any time.")


class ForwardModule(nn.Module):
    """`forward_cached` as a module, for torch.export; the upsampling kernels are constants."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(
        self, latents: Tensor, shifts: list[BlockShifts], keys_values: list[BlockKV]
    ) -> Tensor:
        # Computed here from weights, which are constants; as arguments they would not be.
        kernels = upsample_kernels(self.unet)
        return forward_cached(self.unet, latents, shifts, keys_values, kernels)


def compile_to(file: Path, job: dict[str, Any]) -> None:
    """Compile the U-Net in the file's folder; runs in the process made for it."""
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    module = ForwardModule(UNet.load(file.parent).to(dtype).eval())
    leaves = [torch.empty_strided(*layout, dtype=dtype).zero_() for layout in job["layouts"]]
    arguments = pytree.tree_unflatten(leaves, pytree.treespec_loads(job["structure"]))
    with torch.no_grad(), attention_for(leaves[0]):
        program = torch.export.export(module, arguments)
        # Freezing lays the weights out as the processor's convolutions want them.
        options = {"freezing": True}
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(file), inductor_configs=options
        )


def attention_for(latents: Latents) -> AbstractContextManager[object]:
    """Choose plain products for few tokens, of which the compiler makes faster code."""
    is_small = latents[0, 0].numel() <= FEW_PIXELS
    return sdpa_kernel(SDPBackend.MATH) if is_small else nullcontext()


if __name__ == "__main__":
    compile_to(Path(sys.argv[1]), json.load(sys.stdin))
