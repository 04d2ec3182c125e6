"""Comparisons by the names that papers gave to processes and methods.

They use the reports of evaluate.py, and must not be imported by anything.
"""
