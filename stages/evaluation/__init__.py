"""What evaluate.py does: images to blocks of numbers on disk, to metrics, to a report.

autoencoder measures one model each, data and blocks are what the commands share, report and
comparison write and read the results. This package must not import generation/, recipes/ or a
script.
"""
