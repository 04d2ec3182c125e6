"""The meaning of the numbers in image files: their type, and the range that becomes [-1, 1].

8-bit pixels of the range 0 to 255 stay uint8 until a network takes them. All other numbers become
float32 in [-1, 1] when they are read, so later code does not need to know where they come from.
float32 has 8 million values in [-1, 1]: 16-bit numbers survive the conversion and its reverse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped

from dataset.options import Layout
from dataset.source import Source, UnusableImage
from foundation.errors import UserError

FULL_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}  # used if no range is stated
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")
PIXELS_KEY = "pixels"  # the entry of latentsmith.json that holds `PixelFormat.describe()`


@dataclass(frozen=True)
class PixelFormat:
    """The format of all image files of a data folder, and of images that a model writes.

    Args:
        dtype: type of the numbers in the files, as numpy names it.
        low, high: the numbers that become -1 and 1. Numbers outside are clipped.
        layout: order of the axes of arrays with three axes: rows, columns, channels (hwc) or
            channels first (chw); auto: the axis that has as many entries as there are channels.
    """

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    layout: Layout = "auto"

    def __post_init__(self):
        if self.dtype not in INTEGERS + FLOATS:
            raise UserError(
                f"numbers of type {self.dtype} cannot be pixels; supported are "
                f"{', '.join(INTEGERS + FLOATS)}."
            )
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise UserError(
                f"value_range {self.low:g} {self.high:g}: give two finite numbers, the lower one "
                "first; they become -1 and 1."
            )
        if self.dtype in INTEGERS:
            limits = np.iinfo(self.dtype)
            if self.low < limits.min or self.high > limits.max:
                raise UserError(
                    f"value_range {self.low:g} {self.high:g} exceeds what {self.dtype}, the type "
                    f"of the numbers in the files, can hold: {limits.min} to {limits.max}."
                )

    @property
    def eight_bit(self) -> bool:
        """Whether these are ordinary 8-bit pixels, 0 to 255."""
        return self.dtype == "uint8" and (self.low, self.high) == FULL_RANGES["uint8"]

    @property
    def memory_dtype(self) -> torch.dtype:
        """The type of pixels after reading: uint8, or float32 in [-1, 1]."""
        return torch.uint8 if self.eight_bit else torch.float32

    def normalize(
        self, values: Shaped[np.ndarray, "*shape"], path: Source
    ) -> Float32[np.ndarray, "*shape"]:
        """Map the numbers of a file to [-1, 1]; numbers outside the range are clipped.

        Raises:
            UnusableImage: a number is not finite.
        """
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise UnusableImage(path, "holds NaN or infinity; put a number there, or crop them off")
        values = (values - self.low) * (2 / (self.high - self.low)) - 1
        return values.clip(-1, 1).astype(np.float32)

    def restore(self, images: Float[torch.Tensor, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Map [-1, 1] to numbers as in the files; integers are rounded, the range is enforced."""
        fractions = (images.detach().cpu().double().clamp(-1, 1) + 1) / 2
        values = (self.low + fractions * (self.high - self.low)).numpy()
        return (values.round() if self.dtype in INTEGERS else values).astype(self.dtype)

    def describe(self) -> dict[str, Any]:
        """Return the format as latentsmith.json holds it."""
        return {
            "dtype": self.dtype,
            "value_range": [self.low, self.high],
            "layout": self.layout,
        }

    def __str__(self) -> str:
        if self.dtype in FULL_RANGES and (self.low, self.high) == FULL_RANGES[self.dtype]:
            return f"{8 * np.dtype(self.dtype).itemsize}-bit"
        return f"{self.dtype}, {self.low:g} to {self.high:g}"


EIGHT_BIT = PixelFormat()


def recorded_format(*provenances: Mapping[str, Any]) -> PixelFormat:
    """Return the format that an autoencoder was trained on; 8 bits if none is recorded.

    provenances: contents of latentsmith.json, of the autoencoder's folder or of its pipeline's; the
        first one that records a format is used.
    """
    for provenance in provenances:
        for record in (provenance, provenance.get("autoencoder")):
            if isinstance(record, Mapping) and (described := record.get(PIXELS_KEY)):
                low, high = described["value_range"]
                return PixelFormat(described["dtype"], low, high, described["layout"])
    return EIGHT_BIT


def choose_format(
    dtype: str, value_range: Sequence[float] | None, layout: Layout, example: Source
) -> PixelFormat:
    """Return the format of files with numbers of this type.

    Args:
        value_range: the numbers that become -1 and 1; None: the full range of uint8 or uint16.
        example: one of the files, for the message.

    Raises:
        UserError: the type has no full range that makes sense, and none is stated.
    """
    if value_range is None and dtype not in FULL_RANGES:
        raise UserError(
            f"{example} holds numbers of type {dtype}, which have no range of their own. State "
            "which of them become -1 and 1: value_range LOW HIGH. check.py shows which numbers "
            "the files hold."
        )
    low, high = value_range or FULL_RANGES[dtype]
    return PixelFormat(dtype, float(low), float(high), layout)
