"""The flags of the programs that work on data, and the presets of the trainings.

Nothing here imports torch, so that scripts answer `--help` and wrong flags at once. The modules
must not import what uses the flags: the other files of stages/.
"""
