"""Read and write the weights, configs and model cards of other codebases.

Every quirk of another codebase is handled here and nowhere else, on plain dicts of tensors and of
config fields. The libraries import this package, so that their `load` opens what others have saved;
it must not import any other package of this project but foundation.
"""
