"""The parts of benchmarks/gpu.py, each of which runs in a process of its own.

They may import every package; nothing but benchmarks/gpu.py and tests may import them.
"""
