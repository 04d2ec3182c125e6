"""Prompts to pictures: the only package that knows autoencoder, text encoder and U-Net together."""
