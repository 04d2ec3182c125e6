"""Instruments around a training: memory estimate, batch size, overfit check, report, post-hoc EMA.

They use the rest of training/; nothing there, nor in logging/, imports them.
"""
