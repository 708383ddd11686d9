"""Ratios against a peer or a bare baseline measured in the same run; ``python -m benchmarks`` prints them all."""
