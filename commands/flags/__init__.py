"""The flags of the scripts that train nothing. Those of the trainings are in stages/flags/.

Nothing here may import torch, nor the modules of commands/, so that `--help` and wrong flags are
answered at once.
"""
