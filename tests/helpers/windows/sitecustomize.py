"""Python imports this file when it starts, if its folder is in PYTHONPATH."""

import os

if os.environ.get("LATENTSMITH_AS_WINDOWS"):
    import refusals

    refusals.install()
