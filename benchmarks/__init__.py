"""Ratios against a peer or a bare baseline measured in the same run; ``python -m benchmarks`` prints them all."""

import os

# One thread on both sides. Libraries read this when they are loaded, so it stands before every import of numpy.
for _library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
