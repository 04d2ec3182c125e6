"""Tasks that begin with a picture: pass one to a pipeline as `task=`, together with the prompts.

    pipeline(["a blue heart"], task=inpaint(pipeline, picture, mask))

Pictures are PIL images with as many channels as the model draws. Tasks know the sampling process
and the U-Net, and must not import the pipeline itself, autoencoder or conditioning.
"""

from ldm.tasks.base import TEXT_TO_IMAGE, Task
from ldm.tasks.img2img import img2img
from ldm.tasks.inpaint import inpaint, outpaint
from ldm.tasks.inversion import edit
from ldm.tasks.restore import restore
from ldm.tasks.upscale import upscale

__all__ = ["TEXT_TO_IMAGE", "Task", "edit", "img2img", "inpaint", "outpaint", "restore", "upscale"]
