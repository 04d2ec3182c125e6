"""Metrics of images, features and retrieval: arrays in, numbers with intervals out.

feature_spaces/ loads the networks that turn images into features; no file here knows the data or
the models that are measured, and all must import foundation/ and interop/ alone.
"""
