"""Metrics of images and of retrieval: functions of tensors that return numbers.

This package reads no files and loads no models, and must import foundation/ alone.
"""
