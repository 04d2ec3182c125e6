# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a folder to a picture
#
# This notebook trains all three stages on a folder of captioned pictures, and draws with the
# result. With the 300 small shapes that it makes, it takes some minutes on two CPU cores.
#
# It is kept as text. `pip install -e '.[train,notebook]'`, then `jupytext --to ipynb
# examples/first_hour.py` makes the notebook; editors such as VS Code open this file as it is.

# %%
import os
import sys
from pathlib import Path

HERE = Path.cwd()
ROOT = next(folder for folder in (HERE, *HERE.parents) if (folder / "train_vae.py").exists())
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

# Your own folder: name it here, and take the preset of its size, such as "demo" or "small-64".
FOLDER = "data/shapes"
PRESET = "tiny-32"
RUNS = "runs/first-hour"
CLIP_STEPS, VAE_STEPS, LDM_STEPS = 200, 600, 900  # those of the preset tiny-32

# %% [markdown]
# ## 1. The pictures
#
# Each picture needs a caption; here the name of the file is the caption. `docs/data.md` has the
# other ways. If the folder does not exist, shapes are drawn into it.

# %%
import random

from PIL import Image, ImageDraw

folder = Path(FOLDER)
if not folder.exists():
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for k in range(300):
        color = ("red", "green", "blue")[k % 3]
        shape = ("circle", "square")[k // 3 % 2]
        picture = Image.new("RGB", (64, 64), "white")
        left, top, side = chance.randint(4, 20), chance.randint(4, 20), chance.randint(24, 38)
        box = (left, top, left + side, top + side)
        pen = ImageDraw.Draw(picture)
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=color)
        (folder / f"{k:03d}").mkdir()
        picture.save(folder / f"{k:03d}" / f"a {color} {shape}.png")

# %% [markdown]
# `check.py` says what a training would read, and draws some pairs.

# %%
import check

try:
    check.main([FOLDER, "--preset", PRESET, "--sheet", "runs/first-hour-pairs.png"])
except SystemExit as end:  # status 1: something would go wrong, and the report says what
    print("status", end.code)
Image.open("runs/first-hour-pairs.png")

# %% [markdown]
# ## 2. Stage 0: a text encoder
#
# A small CLIP learns which captions belong to which pictures. If a cell is stopped, run it again:
# the training continues.

# %%
import train_clip
import train_ldm
import train_vae
from training.logging.metrics import read_metrics
from training.tools.curves import line_chart


def curve(run: str, *names: str):
    """Show metrics of a run over its steps."""
    from IPython.display import SVG

    rows = read_metrics(Path(RUNS, run, "metrics.jsonl"))
    lines = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    return SVG(line_chart(", ".join(names), lines, x_label="step", dots=True))


def last_preview(run: str) -> Image.Image:
    """Show what a run has drawn at its last evaluation, enlarged."""
    picture = Image.open(max(Path(RUNS, run, "previews").glob("*.png")))
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


COMMON = ["--data", FOLDER, "--preset", PRESET]
train_clip.main([*COMMON, "--out", f"{RUNS}/clip", "--steps", str(CLIP_STEPS)])
curve("clip", "loss")

# %% [markdown]
# ## 3. Stage 1: an autoencoder
#
# It learns to make latents of pictures, and pictures of latents. The preview has held-out pictures:
# the original, its reconstruction, and the difference.

# %%
train_vae.main([*COMMON, "--out", f"{RUNS}/vae", "--steps", str(VAE_STEPS)])
curve("vae", "psnr")

# %%
last_preview("vae")

# %% [markdown]
# ## 4. Stage 2: the diffusion model
#
# The U-Net learns to remove noise from latents, given the caption. Its validation loss is relative
# to a network that outputs nothing: 1 is nothing learned. The upper half of the preview is drawn
# with averaged weights.

# %%
PARTS = ["--vae", f"{RUNS}/vae", "--text-encoder", f"{RUNS}/clip"]
train_ldm.main([*COMMON, *PARTS, "--out", f"{RUNS}/ldm", "--steps", str(LDM_STEPS)])
curve("ldm", "val_loss_relative")

# %%
last_preview("ldm")

# %% [markdown]
# ## 5. Pictures
#
# Four pictures of each prompt, then one prompt with growing guidance.

# %%
from ldm import TextToImage
from training.logging.image_grid import image_grid, pil_to_tensor

pipeline = TextToImage.load(f"{RUNS}/ldm")
prompts = ["a red circle", "a green square", "a blue circle"]
pictures = pipeline([prompt for prompt in prompts for _ in range(4)], progress=False)
grid = image_grid(pil_to_tensor(pictures), columns=4)
grid.resize((3 * grid.width, 3 * grid.height), Image.Resampling.NEAREST)

# %%
row = [
    pipeline(prompts[:1], guidance_scale=scale, progress=False)[0] for scale in (0, 1, 2, 4, 6, 8)
]
grid = image_grid(pil_to_tensor(row), columns=6)
grid.resize((3 * grid.width, 3 * grid.height), Image.Resampling.NEAREST)

# %% [markdown]
# `docs/sampling.md` has samplers and guidance, `docs/evaluation.md` says how to measure how good
# the model is, and `python app.py --model runs/first-hour/ldm` opens a page to draw with it.
