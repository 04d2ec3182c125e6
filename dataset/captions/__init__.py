"""Finds the captions of the images in a folder: from tables, from files beside them, or from names.
It opens no image, and it imports nothing of `dataset` but `source`.
"""
