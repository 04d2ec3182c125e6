"""Train a small diffusion model on the latents of an autoencoder, and draw with it:

    python examples/train_autoencoder.py    # 20 seconds on a CPU; writes the autoencoder
    python examples/train_denoiser.py       # 30 seconds

The loop adds noise to latents, and compares what the network predicts with what it should. For
captions, averaged weights, resuming and several GPUs, use `train_ldm.py`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from train_autoencoder import FOLDER, squares

from autoencoder import Autoencoder
from ldm.denoiser import Denoiser
from ldm.samplers import NoiseLevels, euler
from ldm.schedule import RectifiedFlow
from ldm.unet import UNet, UNetConfig

CONFIG = UNetConfig(  # reads no text: no block has cross-attention
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    mid_block_type="UNetMidBlock2D",
    up_block_types=("UpBlock2D", "UpBlock2D"),
    cross_attention_dim=None,
    norm_num_groups=8,
)


def main(steps: int = 400, autoencoder: str = FOLDER, out: str = "samples/examples") -> float:
    """Train, draw sixteen images, and return the mean loss of the last fifty steps."""
    torch.manual_seed(0)
    images_to_latents = Autoencoder.load(autoencoder).requires_grad_(False)
    latents = images_to_latents.encode(squares(1024)).sample()  # (1024, 4, 8, 8), unit variance
    denoiser = Denoiser(UNet(CONFIG), RectifiedFlow(), prediction="flow")
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        z_0 = latents[torch.randint(len(latents), (32,))]
        noise, t = torch.randn_like(z_0), 1000 * torch.rand(len(z_0))
        alpha, sigma = denoiser.schedule(t)
        output = denoiser.predict(alpha * z_0 + sigma * noise, t)
        loss = F.mse_loss(output, denoiser.target(z_0, noise, t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {step + 1}: loss {mean:.2f}; a network that predicts 0 has 2")

    noise = torch.randn(16, *latents.shape[1:])
    drawn = euler(denoiser.eval(), noise, NoiseLevels(denoiser.schedule, 25))
    pixels = images_to_latents.decode(drawn).clamp(-1, 1)
    sheet = pixels.unflatten(0, (4, 4)).permute(0, 3, 1, 4, 2).reshape(64, 64, 3)
    Path(out).mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(((sheet + 1) * 127.5).round().byte().numpy())
    picture.resize((256, 256), Image.Resampling.NEAREST).save(Path(out) / "squares.png")
    return sum(losses[-50:]) / 50


if __name__ == "__main__":
    main()
