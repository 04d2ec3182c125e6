"""What the numbers in image files mean: their type, and the range that becomes [-1, 1].

8-bit pixels of the range 0 ... 255 stay uint8 until a network takes them. All others become float32
in [-1, 1] when they are read, so nothing after that needs to know where they come from. float32
tells 8 million values of the range apart: a 16-bit number survives the way there and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped

from dataset.images.unusable import UnusableImage
from dataset.members import Source
from foundation.errors import UserError

Layout = Literal["auto", "hwc", "chw"]
NATURAL_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # those that nobody need state
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")
RECORD = "pixels"  # the entry of latentsmith.json


@dataclass(frozen=True)
class PixelFormat:
    """Of all files of a data folder, and of what is written in their place.

    Args:
        dtype: of the numbers in the files, as numpy calls it.
        low, high: what becomes -1 and 1. Numbers outside are clipped.
        layout: of arrays with three axes: rows, columns, channels (hwc) or channels first (chw);
            auto: that axis is the channels that has as many entries as there are channels.
    """

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    layout: Layout = "auto"

    def __post_init__(self):
        if self.dtype not in INTEGERS + FLOATS:
            raise UserError(
                f"numbers of type {self.dtype} are no pixels here; those are "
                f"{', '.join(INTEGERS + FLOATS)}."
            )
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise UserError(
                f"--value-range {self.low:g} {self.high:g}: give two finite numbers, the lower one "
                "first; they become -1 and 1."
            )
        if self.dtype in INTEGERS:
            limits = np.iinfo(self.dtype)
            if self.low < limits.min or self.high > limits.max:
                raise UserError(
                    f"--value-range {self.low:g} {self.high:g} reaches beyond what {self.dtype} "
                    f"can hold, {limits.min} to {limits.max}, as the files have it."
                )

    @property
    def eight_bit(self) -> bool:
        return self.dtype == "uint8" and (self.low, self.high) == NATURAL_RANGES["uint8"]

    @property
    def in_memory(self) -> torch.dtype:
        """Of the pixels that are read: uint8, or float32 in [-1, 1]."""
        return torch.uint8 if self.eight_bit else torch.float32

    def normalize(
        self, values: Shaped[np.ndarray, "*shape"], path: Source
    ) -> Float32[np.ndarray, "*shape"]:
        """Numbers of a file -> [-1, 1]."""
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise UnusableImage(path, "holds NaN or infinity; put a number there, or crop them off")
        values = (values - self.low) * (2 / (self.high - self.low)) - 1
        return values.clip(-1, 1).astype(np.float32)

    def restore(self, images: Float[torch.Tensor, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """[-1, 1] -> numbers as the files have them, whole ones rounded; clamped to the range."""
        shares = (images.detach().cpu().double().clamp(-1, 1) + 1) / 2
        values = (self.low + shares * (self.high - self.low)).numpy()
        return (values.round() if self.dtype in INTEGERS else values).astype(self.dtype)

    def describe(self) -> dict[str, Any]:
        """As latentsmith.json holds it."""
        return {
            "dtype": self.dtype,
            "value_range": [self.low, self.high],
            "layout": self.layout,
        }

    def __str__(self) -> str:
        return f"{self.dtype}, {self.low:g} to {self.high:g}"


EIGHT_BIT = PixelFormat()


def recorded_format(*provenances: Mapping[str, Any]) -> PixelFormat:
    """Of an autoencoder, from what its folder or its pipeline's says; 8 bits if nothing is said."""
    for provenance in provenances:
        for facts in (provenance, provenance.get("autoencoder") or {}):
            if told := facts.get(RECORD):
                low, high = told["value_range"]
                return PixelFormat(told["dtype"], low, high, told["layout"])
    return EIGHT_BIT


def choose_format(
    dtype: str, value_range: Sequence[float] | None, layout: Layout, example: Source
) -> PixelFormat:
    """Of files with numbers of this type. The range may be left out where the type says it.

    example: one of the files, for the message.
    """
    if value_range is None and dtype not in NATURAL_RANGES:
        raise UserError(
            f"{example} holds numbers of type {dtype}, which have no range of their own. Say which "
            "of them are to become -1 and 1: --value-range LOW HIGH. What the files hold is shown "
            "by check.py."
        )
    low, high = value_range or NATURAL_RANGES[dtype]
    return PixelFormat(dtype, float(low), float(high), layout)
