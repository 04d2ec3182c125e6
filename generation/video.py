"""Frames to a GIF, or to an MP4 through PyAV, which say how they were made as pictures do."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import UserError
from generation.metadata import pyav, texts
from generation.prompts import Picture
from ldm.pipeline.batching import Request, interpolate


def frames_between(stations: Sequence[Request], count: int) -> list[Request]:
    """Stations, and from each to the next so many frames, of which the station is the first."""
    shares = [k / count for k in range(count)]
    frames = [interpolate(a, b, share) for a, b in pairwise(stations) for share in shares]
    return [*frames, stations[-1]]


def film_record(
    record: Mapping[str, Any],
    stations: Sequence[Picture],
    *,
    interpolate: int,
    video: str,
    fps: float,
) -> dict[str, Any]:
    """All that is needed to make it again. record: of the first station, as of a picture."""
    told = [
        {"prompt": p.prompt, "seed": p.seed, "negative_prompt": p.options.negative_prompt}
        for p in stations
    ]
    return {**record, "stations": told, "interpolate": interpolate, "video": video, "fps": fps}


def check_film(video: str, fps: float) -> None:
    """Refuses what cannot be written, before anything is drawn for it."""
    if video == "mp4":
        pyav("written")
    elif fps > 50:
        raise UserError(f"a GIF shows at most 50 frames per second, not {fps:g}; use --video mp4.")


def gif(frames: Sequence[Image.Image], fps: float, record: Mapping[str, Any]) -> bytes:
    """Runs for ever; of 256 colors a frame. The record, as JSON, is the comment."""
    buffer = BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        comment=json.dumps(record),  # ASCII alone, as a GIF's comment must be
    )
    return buffer.getvalue()


def mp4(frames: Sequence[Image.Image], fps: float, record: Mapping[str, Any]) -> bytes:
    """H.264, such as every browser shows."""
    av = pyav("written")
    width, height = frames[0].size
    if width % 2 or height % 2:
        raise UserError(f"H.264 wants even sides, not {width}x{height}; use --video gif.")
    buffer = BytesIO()
    options = {"movflags": "use_metadata_tags"}  # so that names are free and texts may be long
    with av.open(buffer, "w", format="mp4", options=options) as container:
        container.metadata.update(texts(record))
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.asarray(frame.convert("RGB")), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


WRITERS = {"gif": gif, "mp4": mp4}
