"""From prompts and options to image files: what `sample.py` is made of.

It may import the libraries, `dataset` and `training`, but neither `stages`, `evaluation` nor a
script.
"""
