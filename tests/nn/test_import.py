from __future__ import annotations

import subprocess
import sys


def test_import_takes_no_longer_than_torch():
    heavy = ("torch._dynamo", "torchmetrics", "lightning", "scipy", "networkx", "pandas", "yaml")
    code = f"import sys, tightframe.nn; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
