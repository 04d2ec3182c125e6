"""Bounds of what one call of sample.py may ask for: a mistyped number must not take all memory.

They lie far above what is of use. Within them, the memory is estimated before anything is drawn:
generation/room.py. Nothing here imports torch.
"""

from foundation.errors import UserError, shown

MAX_SEED = 2**63 - 1
MAX_COUNT = 100_000  # images per prompt: a mistyped range must not fill the disk
MAX_IMAGES = 10_000_000  # of a call
MAX_PROMPT = 10_000  # characters; text encoders read some hundred
MAX_SIDE = 2**16  # pixels
MAX_BATCH = 4096  # images at once
MAX_KEYFRAMES = 10_000
MAX_FRAMES = 100_000  # of a video: more than an hour
MAX_FPS = 1000
MAX_GUIDANCE = 1000
MAX_GRID = 1024  # images in a grid
MAX_VIDEO_BYTES = 2 * 10**9  # of the frames of a GIF, which are encoded together


def check_prompt(text: str, name: str = "the prompt") -> None:
    """Raise UserError for a text that is too long, or that no file can hold."""
    if len(text) > MAX_PROMPT:
        raise UserError(
            f"{name} has {len(text):,} characters, and {MAX_PROMPT:,} are the most; a text encoder "
            f"reads some hundred. It begins with {shown(text, 60)}. Is this the right file?"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} {shown(text)} is not text: character {error.start + 1} is "
            f"{text[error.start]!a}, half of a character or a byte that is not UTF-8."
        ) from None
