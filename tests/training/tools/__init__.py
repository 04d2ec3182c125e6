"""Tests of training/tools."""
