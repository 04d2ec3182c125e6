"""Latents and text embeddings of a whole data set, computed once and memory-mapped from the disk.

It must not import the networks: they come in as functions from pixels and texts to tensors.
"""
