"""Tests of training/logging."""
