"""What each of the three trainings does: flags, presets, optimizer step, evaluation, files.

clip (stage 0), autoencoder (stage 1) and diffusion (stage 2) hold one training each, the other
files what these share or what comes before and after. The train_*.py scripts put them together.
This package must not import generation/, recipes/ or a script.
"""
