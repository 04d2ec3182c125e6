"""Finds the captions of images in tables, in files next to them, or in names, and chooses some.
It opens no image, and of `dataset` it imports only `source`, and `table` to choose from it.
"""
