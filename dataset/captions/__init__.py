"""Finds the captions of images in tables, in files beside them, or in names, and chooses from them.
It opens no image, and of `dataset` it imports only `source`, and `table` to choose from it.
"""
