"""Train an autoencoder on a tensor of images. 20 seconds on a CPU:

    python examples/train_autoencoder.py

The folder that it writes opens in `Autoencoder.load`, in `diffusers.AutoencoderKL.from_pretrained`
and in `train_ldm.py --vae`. For images in files, and for a better loss, use `train_vae.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencoder import Autoencoder, AutoencoderConfig
from autoencoder.training.latent_statistics import fold_statistics, measure_statistics

FOLDER = "runs/examples/autoencoder"
CONFIG = AutoencoderConfig(  # 3x16x16 pixels to latents of 4x8x8
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_add_attention=False,
)


def squares(count: int, size: int = 16) -> Tensor:
    """Draw images in [-1, 1], (count, 3, size, size): one random square each, on white."""
    images = torch.ones(count, 3, size, size)
    for image in images:
        side, left, top = torch.randint(size // 4, size // 2, (3,)).tolist()
        image[:, top : top + side, left : left + side] = torch.rand(3, 1, 1) * 2 - 1
    return images


def main(steps: int = 200, folder: str = FOLDER) -> float:
    """Train, save, and return the PSNR of new images in dB."""
    torch.manual_seed(0)
    images = squares(1024)
    autoencoder = Autoencoder(CONFIG)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3)
    for step in range(steps):
        batch = images[torch.randint(len(images), (32,))]
        posterior = autoencoder.encode(batch)
        reconstructions = autoencoder.decode(posterior.sample())
        loss = F.mse_loss(reconstructions, batch) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    # From here on the latents have zero mean and unit variance, which stage 2 needs.
    autoencoder = fold_statistics(autoencoder, measure_statistics(autoencoder, images.split(128)))
    autoencoder.save(folder)
    new = squares(64)
    with torch.no_grad():
        error = F.mse_loss(autoencoder.decode(autoencoder.encode(new).mode()).clamp(-1, 1), new)
    psnr = 10 * torch.log10(4 / error).item()
    print(f"{folder}: {psnr:.1f} dB on new images")
    return psnr


if __name__ == "__main__":
    main()
