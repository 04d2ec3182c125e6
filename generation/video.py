"""Videos that change from one image to the next, written as GIF or MP4 with their record."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import UserError
from generation.metadata import import_pyav, metadata_texts
from ldm.pipeline.batching import Request
from ldm.pipeline.batching import interpolate as interpolate_requests

MAX_GIF_FPS = 50


def insert_frames(keyframes: Sequence[Request], count: int) -> list[Request]:
    """Insert frames between keyframes.

    Args:
        count: frames from each keyframe to the next; the first of them is the keyframe itself.

    Returns:
        (len(keyframes) - 1) * count + 1 frames.
    """
    frames = [
        interpolate_requests(a, b, k / count) for a, b in pairwise(keyframes) for k in range(count)
    ]
    return [*frames, keyframes[-1]]


def check_video_format(video: str, fps: float) -> None:
    """Raise UserError, before anything is generated, if such a video cannot be written."""
    if video == "mp4":
        import_pyav("written")
    elif fps > MAX_GIF_FPS:
        raise UserError(
            f"a GIF shows at most {MAX_GIF_FPS} frames per second, not {fps:g}; use --video mp4."
        )


def encode_gif(frames: Sequence[Image.Image], fps: float, record: Mapping[str, Any]) -> bytes:
    """Encode an endless GIF of up to 256 colors per frame."""
    buffer = BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        comment=json.dumps(record),  # the standard wants ASCII
    )
    return buffer.getvalue()


def encode_mp4(frames: Sequence[Image.Image], fps: float, record: Mapping[str, Any]) -> bytes:
    """Encode an H.264 video with 4:2:0 chroma, which every browser can play.

    Raises:
        UserError: PyAV is not installed, or a side is odd.
    """
    av = import_pyav("written")
    width, height = frames[0].size
    if width % 2 or height % 2:
        raise UserError(f"H.264 needs even sides, not {width}x{height}; use --video gif.")
    buffer = BytesIO()
    options = {"movflags": "use_metadata_tags"}  # allows any key, and long values
    with av.open(buffer, "w", format="mp4", options=options) as container:
        container.metadata.update(metadata_texts(record))
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


ENCODERS = {"gif": encode_gif, "mp4": encode_mp4}
