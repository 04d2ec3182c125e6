"""What `tests.hostile.fuzz` changes and reads, a module per area; its `TARGETS` lists them.

A module may import the project's packages and test helpers, but no test file.
"""
