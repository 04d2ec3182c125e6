"""Videos that change from one image to the next, written as GIF or MP4 with their record."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from io import BytesIO
from itertools import islice, pairwise
from typing import Any

import numpy as np
from PIL import Image

from foundation.errors import UserError
from generation.limits import MAX_FRAMES, MAX_KEYFRAMES, MAX_VIDEO_BYTES
from generation.meaning import make_sampling
from generation.metadata import import_pyav, make_video_record, metadata_texts
from generation.prompts import ImageSpec
from generation.session import GenerationSession, same_call
from ldm.pipeline.batching import Request
from ldm.pipeline.batching import interpolate as interpolate_requests
from training.memory import format_bytes

MAX_GIF_FPS = 50


class Animation:
    """A video that changes from each image to the next, to be drawn by an open model."""

    def __init__(
        self,
        session: GenerationSession,
        images: Iterable[ImageSpec],
        interpolate: int,
        video: str,
        fps: float,
    ):
        """Check everything before the first frame is drawn.

        Args:
            images: the keyframes.
            interpolate: frames from each keyframe to the next.
            video: a key of ENCODERS.
            fps: frames per second.

        Raises:
            UserError: there are not two images or more with the same options, too many of them or
                of frames, or the format cannot hold such a video.
        """
        self.session, self.interpolate, self.video, self.fps = session, interpolate, video, fps
        self.keyframes = list(islice(images, MAX_KEYFRAMES + 1))
        if len(self.keyframes) > MAX_KEYFRAMES:
            raise UserError(f"--interpolate takes {MAX_KEYFRAMES} images at most.")
        if len(self.keyframes) < 2 or len({same_call(image) for image in self.keyframes}) > 1:
            raise UserError(
                "--interpolate needs two or more images with the same options, and there are "
                f"{len(self.keyframes)} here. Give several prompts or seeds."
            )
        self.options = self.keyframes[0].options
        self.task = session.check(same_call(self.keyframes[0]))
        self.frames = (len(self.keyframes) - 1) * interpolate + 1
        width, height = session.picture_size(self.options, self.task)
        check_video_format(video, fps, width, height)
        check_frames(self.frames, width, height, video)

    @property
    def network_calls(self) -> int:
        return self.frames * make_sampling(self.options).network_calls(self.task)

    def encode(
        self,
        progress: Callable[[int], object],
        drawn: Callable[[Image.Image], object] = lambda picture: None,
    ) -> bytes:
        """Draw the frames, and return the file with its record.

        Args:
            progress: see `TextToImage.draw`.
            drawn: called with each frame that is ready.
        """
        requests = insert_frames(self.session.all_requests(self.keyframes), self.interpolate)
        first = self.session.record(self.keyframes[0])
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ("interpolate", "video", "fps")
        }
        record = make_video_record(first, self.keyframes, **settings)

        def pictures() -> Iterator[Image.Image]:
            for each in self.session.pictures(requests, self.options, self.task, progress):
                drawn(each)
                yield each

        return ENCODERS[self.video](pictures(), self.fps, record)


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
