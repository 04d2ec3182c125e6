"""Training of an autoencoder: losses, LPIPS, discriminator, gradients, latent statistics.

Nothing here is loaded by `import autoencoder`. Of our packages, it must not import any but
autoencoder, foundation and interop.
"""
