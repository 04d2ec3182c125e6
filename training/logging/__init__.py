"""What a training shows: metrics on disk and on loggers, progress in the terminal, image grids.

It knows run folders, but must not import the training loop, the tools, or any stage.
"""
