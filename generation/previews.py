"""Pictures on the way: what the network takes each one for, every so many calls."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from foundation.shapes import Latents
from ldm import TextToImage


class Previews:
    """Call it as a pipeline's `preview`: writes previews/NAME-CALL.png, over an older one."""

    def __init__(self, pipeline: TextToImage, folder: Path, names: Sequence[Path], every: int):
        """names: of the pictures that will be. every: so many calls; 0 writes none."""
        self.pipeline, self.folder, self.every = pipeline, folder / "previews", every
        self.names, self.calls = [name.name for name in names], Counter()
        if every:
            self.folder.mkdir(exist_ok=True)

    def __call__(self, places: list[int], z_0: Latents) -> None:
        self.calls[places[0]] += 1
        call = self.calls[places[0]]
        if self.every and call % self.every == 0:
            for place, z in zip(places, z_0.split(1), strict=True):
                file = self.folder / f"{self.names[place]}-{call:03d}.png"
                self.pipeline.to_picture(z).save(file)
