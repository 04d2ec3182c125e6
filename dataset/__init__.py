"""Image-text pairs, from files on the disk to batches: folders, shards, images, the latent cache.

It must not import any other package of this project than foundation and interop.
"""
