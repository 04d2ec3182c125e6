"""Image files of every kind: reading them into pixels, and writing images with the same numbers.

It must not import anything else of `dataset` but `dataset.source` and `dataset.stores`.
"""
