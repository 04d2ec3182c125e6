"""Which weights a run gives: averages of all its steps, and the best of its evaluations.

It must not import what is trained, nor the tools that look at runs.
"""
