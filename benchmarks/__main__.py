"""Run every benchmark, each in a process of its own, so that none inherits the memory or the threads of another."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    *("nc1_accuracy", "moments", "nc1_time", "cdnv", "pairs", "etf_logits", "callback", "sync"),
    *("nearest_solve", "nearest_gradient", "nearest_step"),
    "cosine_gram",
    "hierarchical_frame",
    "etf_linear",
    "etf_transformer",
    "layer_probing",
    "ufm_solve",
    "ufm_thresholds",
)


def main() -> int:
    failed = [name for name in NAMES if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    for name in failed:
        print(f"benchmarks.{name} failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
