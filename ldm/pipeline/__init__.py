"""`TextToImage`: autoencoder, text encoder and U-Net joined, and their files; prompts to pictures.

Only this package may import ldm, autoencoder and conditioning together; it must not import dataset,
training, stages or generation.
"""
