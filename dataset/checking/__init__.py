"""What to know about data before a training: files, pictures, captions, and how they suit a plan.
It returns facts as dataclasses and lines of text, and imports no package but `foundation`.
"""
