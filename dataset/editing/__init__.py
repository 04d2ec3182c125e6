"""Changes of data folders: corrected captions, copies, and folders of files that somebody brings.

Everything else in dataset/ only reads. Nothing there imports this package.
"""
