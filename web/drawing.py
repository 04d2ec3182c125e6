"""Drawing in the background: what is ready, previews of the rest, and a way to stop."""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from foundation.errors import UserError
from foundation.shapes import Latents
from generation.meaning import check_options
from generation.metadata import SUFFIXES
from generation.names import FileNames
from generation.output import ImageWriter, model_pixel_format
from generation.prompts import ImageSpec, PromptEntry, check_syntax, expand
from generation.session import GenerationSession
from generation.video import Animation
from training.run import make_folder
from web.call_queue import Stopped

PREVIEW_INTERVAL = 0.7  # seconds between previews, which take time to decode
MOST_IMAGES, MOST_FRAMES = 64, 480  # of a call of the page
FILE_NAME = "{number:05d}"


@dataclass(frozen=True)
class Progress:
    """How far a call is."""

    files: list[Path]  # that are written
    previews: list[Image.Image]  # of the images that are being drawn
    done: int  # network calls
    total: int
    seconds_left: float | None  # None until it can be told


class BackgroundCall(ABC):
    """A call of the model that goes on in a thread.

    Iterate over it for its progress. The page can show previews meanwhile, and stop it between two
    network calls.
    """

    total: int  # network calls

    def __init__(self, stop: threading.Event | None = None):
        """stop: ends the call once it is set, also before it begins; left out, one of its own."""
        self.stop = threading.Event() if stop is None else stop
        self.closed = threading.Event()
        self.updates: queue.Queue[Progress | BaseException | None] = queue.Queue()
        self.files: list[Path] = []
        self.previews: list[Image.Image] = []
        self.done = 0

    def __iter__(self) -> Iterator[Progress]:
        """Draw, and yield the progress from time to time, last when all is written.

        Raises:
            UserError, FloatingPointError: see `GenerationSession.generate`.
        """
        self.started = self.last_preview = time.monotonic()
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            while (update := self.updates.get()) is not None:
                if isinstance(update, BaseException):
                    raise update
                yield update
        finally:
            self.closed.set()  # for a page that was closed
            thread.join()

    def _run(self) -> None:
        try:
            self._check()  # it may be stopped before it has begun
            self._draw()
        except Stopped:
            self.updates.put(self._progress())
        except BaseException as error:  # raised again in the other thread
            self.updates.put(error)
        self.updates.put(None)

    @abstractmethod
    def _draw(self) -> None:
        """Draw and write everything."""

    def _count(self, calls: int) -> None:
        self.done += calls
        self._check()

    def _check(self) -> None:
        if self.stop.is_set() or self.closed.is_set():
            raise Stopped

    def _is_preview_due(self) -> bool:
        now = time.monotonic()
        if now - self.last_preview < PREVIEW_INTERVAL:
            return False
        self.last_preview = now
        return True

    def _progress(self) -> Progress:
        passed = time.monotonic() - self.started
        left = passed / self.done * (self.total - self.done) if self.done else None
        return Progress(list(self.files), list(self.previews), self.done, self.total, left)


class DrawCall(BackgroundCall):
    """A call that draws images and writes them to a folder."""

    def __init__(
        self,
        session: GenerationSession,
        images: Sequence[ImageSpec],
        folder: Path,
        stop: threading.Event | None = None,
    ):
        """Check everything before the first image is drawn.

        Raises:
            UserError: an option does not suit the model, or too many images are asked for.
        """
        super().__init__(stop)
        self.session, self.images, self.folder = session, images, folder
        if len(self.images) > MOST_IMAGES:
            raise UserError(
                f"{len(self.images)} pictures are asked for, and the page draws {MOST_IMAGES} at "
                "most at a time. Use sample.py for more."
            )
        for image in self.images:
            check_syntax(image)
        self.total = self.session.survey(self.images).network_calls
        self.writer = ImageWriter(self.session.pipeline, model_pixel_format(self.session.model))
        self.pictures: list[Image.Image] = []  # that are written, with 8 bits per channel

    def _draw(self) -> None:
        make_folder(self.folder)
        names = FileNames(self.folder, FILE_NAME, self.writer.suffixes)
        for group in self.session.plan(self.images, by_batch=True):
            requests = self.session.requests(group.images)
            self.previews = []
            latents = self.session.generate(
                requests, group.options, group.task, self._count, self._preview
            )
            for image, z in zip(group.images, latents, strict=True):
                contents, picture = self.writer.encode(z, group.task, self.session.record(image))
                path = names.write(image.name_fields(), contents)
                self.files.append(path.with_name(path.name + self.writer.suffix))
                self.pictures.append(picture)
            self.previews = []
            self.updates.put(self._progress())

    def _preview(self, places: list[int], z_0: Latents) -> None:
        if not self._is_preview_due():
            return
        count = max(places) + 1
        pipeline = self.session.pipeline
        for place, z in zip(places, z_0.split(1), strict=True):
            picture = pipeline.to_picture(z)
            self.previews += [picture] * (count - len(self.previews))
            self.previews[place] = picture
        self.last_preview = time.monotonic()
        self.updates.put(self._progress())


class VideoCall(BackgroundCall):
    """A call that draws a video from one picture to another and writes it to a folder."""

    def __init__(self, animation: Animation, folder: Path, stop: threading.Event | None = None):
        """Raise UserError if there are too many frames."""
        super().__init__(stop)
        self.animation, self.folder = animation, folder
        if animation.frames > MOST_FRAMES:
            raise UserError(
                f"the video would have {animation.frames} frames, and the page draws {MOST_FRAMES} "
                "at most. Use sample.py for more."
            )
        self.total = animation.network_calls

    def _draw(self) -> None:
        make_folder(self.folder)
        suffix = SUFFIXES[self.animation.video]
        names = FileNames(self.folder, FILE_NAME, [suffix])
        content = self.animation.encode(self._count, self._preview)
        path = names.write(self.animation.keyframes[0].name_fields(), {suffix: content})
        self.files.append(path.with_name(path.name + suffix))
        self.previews = []
        self.updates.put(self._progress())

    def _preview(self, frame: Image.Image) -> None:
        self.previews = [frame]
        if self._is_preview_due():
            self.updates.put(self._progress())


def images_of(entry: PromptEntry) -> list[ImageSpec]:
    """List the images of a prompt; raise UserError for options that are wrong for any model."""
    check_options(entry.options)
    return list(expand([entry]))
