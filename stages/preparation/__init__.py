"""Before the trainings: the check of a data folder, and the plan of all stages together.

It knows no page and no command line, and must not import the scripts.
"""
