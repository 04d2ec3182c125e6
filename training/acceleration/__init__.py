"""How a step is made to run fast: compiled code, CUDA graphs, batches that are read ahead.

Like all of training/ it must not import what is trained: dataset/, autoencoder/, ldm/ or stages/.
"""
