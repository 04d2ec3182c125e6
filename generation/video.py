"""Videos that change from one image to the next, written as GIF or MP4 with their record."""

import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import UserError
from generation.limits import MAX_FRAMES, MAX_VIDEO_BYTES
from generation.metadata import import_pyav, metadata_texts
from ldm.pipeline.batching import Request
from ldm.pipeline.batching import interpolate as interpolate_requests
from training.memory import format_bytes

MAX_GIF_FPS = 50


def insert_frames(keyframes: Iterable[Request], count: int) -> Iterator[Request]:
    """Yield keyframes with frames between them: (keyframes - 1) * count + 1 in all.

    count: frames from each keyframe to the next; the first of them is the keyframe itself.
    """
    last = None
    for a, b in pairwise(keyframes):
        yield from (interpolate_requests(a, b, k / count) for k in range(count))
        last = b
    if last is not None:
        yield last


def check_frames(count: int, width: int, height: int, video: str) -> None:
    """Raise UserError for more frames than a video may have."""
    if count > MAX_FRAMES:
        raise UserError(
            f"the video would have {count:,} frames, and {MAX_FRAMES:,} are the most. Use a "
            "smaller --interpolate, or fewer prompts."
        )
    if video == "gif" and (size := count * width * height) > MAX_VIDEO_BYTES:
        raise UserError(
            f"a GIF of {count:,} frames of {width}x{height} takes {format_bytes(size)} of memory, "
            f"and at most {format_bytes(MAX_VIDEO_BYTES)} are used. Use --video mp4, or fewer "
            "frames."
        )


def check_video_format(video: str, fps: float, width: int, height: int) -> None:
    """Raise UserError, before anything is generated, if such a video cannot be written."""
    if video == "mp4":
        import_pyav("written")
        check_even(width, height)
    elif fps > MAX_GIF_FPS:
        raise UserError(
            f"a GIF shows at most {MAX_GIF_FPS} frames per second, not {fps:g}; use --video mp4."
        )


def check_even(width: int, height: int) -> None:
    if width % 2 or height % 2:
        raise UserError(f"H.264 needs even sides, not {width}x{height}; use --video gif.")


def encode_gif(frames: Iterable[Image.Image], fps: float, record: Mapping[str, Any]) -> bytes:
    """Encode an endless GIF of up to 256 colors per frame."""
    buffer, frames = BytesIO(), iter(frames)
    next(frames).save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames,
        duration=round(1000 / fps),
        loop=0,
        comment=json.dumps(record),  # the standard wants ASCII
    )
    return buffer.getvalue()


def encode_mp4(frames: Iterable[Image.Image], fps: float, record: Mapping[str, Any]) -> bytes:
    """Encode an H.264 video with 4:2:0 chroma, which every browser can play.

    Raises:
        UserError: PyAV is not installed, or a side is odd.
    """
    av = import_pyav("written")
    buffer = BytesIO()
    options = {"movflags": "use_metadata_tags"}  # allows any key, and long values
    with av.open(buffer, "w", format="mp4", options=options) as container:
        container.metadata.update(metadata_texts(record))
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.pix_fmt = "yuv420p"
        for k, image in enumerate(frames):
            if k == 0:
                check_even(*image.size)
                stream.width, stream.height = image.size
            frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


ENCODERS = {"gif": encode_gif, "mp4": encode_mp4}
