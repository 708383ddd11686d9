"""Measure, induce and explain neural collapse in PyTorch classifiers."""

__version__ = "0.1.0"
