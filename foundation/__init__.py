"""Errors, atomic files, hashes and derived seeds, collectives, and names of tensor shapes.

Every other package may import it. It must not import any other package of this project, and it
contains no machine learning.
"""

__version__ = "0.1.0"  # setup.cfg reads it from here
