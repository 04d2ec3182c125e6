"""Programs that measure speed, memory and quality, ours and those of other libraries in one run.

They may import every package; nothing but tests may import them.
"""
