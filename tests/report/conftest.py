from __future__ import annotations

from pathlib import Path

import pytest

from .material import write_comparison


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, two seeds, three measurements: read only."""
    return write_comparison(tmp_path_factory.mktemp("comparison") / "digits")
