"""How Muon moves weights, and which a run gives: averages of all steps, the best evaluated ones.

It must not import what is trained, nor the tools that look at runs.
"""
