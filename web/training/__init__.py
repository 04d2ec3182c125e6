"""Parts of the tabs "Train" and "Runs": a zone for files and folders, and the cost of presets.

Nothing but `web` may import it.
"""
