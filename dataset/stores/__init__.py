"""Files in object stores and on web servers, read by ranges behind a block cache on the local disk.

It must not import anything else of `dataset`.
"""
