"""The tabs that draw: their forms, the panel of their results, and what happens on a click.

Only `web/page.py` imports it. It imports the rest of `web/`, but nothing of trainings.
"""
