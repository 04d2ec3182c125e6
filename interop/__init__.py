"""Foreign weights and configs: every quirk of another codebase lives here and only here.

The lowest of our packages: plain dicts of tensors and of config fields, in and out. It imports
nothing of ours; the libraries import it, so that their `load` opens what others have saved.
"""
