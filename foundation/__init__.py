"""What every other package may import: errors, atomic files, hashing, collectives, shapes.

It holds no machine learning, and must not import any other package of this project.
"""
