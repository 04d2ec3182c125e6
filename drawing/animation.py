"""Frames to a GIF, or to an MP4 through PyAV."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image


def gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    """Runs for ever; of 256 colors a frame."""
    buffer = BytesIO()
    frames[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return buffer.getvalue()


def mp4(frames: Sequence[Image.Image], fps: float) -> bytes:
    """H.264, such as every browser shows."""
    try:
        import av
    except ImportError as error:
        raise ValueError(
            "an MP4 is written by PyAV, which is not installed: pip install 'latentsmith[video]', "
            "or use --format gif."
        ) from error
    width, height = frames[0].size
    if width % 2 or height % 2:
        raise ValueError(f"H.264 wants even sides, not {width}x{height}; use --format gif.")
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.asarray(frame.convert("RGB")), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


WRITERS = {"gif": gif, "mp4": mp4}
