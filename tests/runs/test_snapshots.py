from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from tests.problems import draw
from tightframe.errors import DataFileError
from tightframe.files import write_tensors
from tightframe.runs import Snapshot

TENSORS = [field.name for field in fields(Snapshot)][1:]


def snapshot(epoch=12, dtype=torch.float32):
    means = draw(3, 4).to(dtype)
    means[1] = torch.nan
    return Snapshot(epoch, means, draw(3, 4, seed=1).to(dtype), draw(5, 4, seed=2).to(dtype), torch.arange(5) % 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("epoch", [0, 123456])
def test_round_trip(tmp_path, dtype, epoch):
    path = snapshot(epoch, dtype).save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"epoch-{epoch:05d}.safetensors"
    found, wanted = Snapshot.load(str(path)), snapshot(epoch, dtype)
    assert found.epoch == epoch
    for name in TENSORS:
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0, equal_nan=True)


def test_names_sort_by_epoch(tmp_path):
    paths = [snapshot(epoch).save(tmp_path) for epoch in (2, 10, 100)]
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize(
    ("names", "metadata"),
    [(TENSORS, None), (TENSORS, {"epoch": "last"}), (TENSORS[1:], {"epoch": "1"}), ([*TENSORS, "x"], {"epoch": "1"})],
)
def test_safetensors_of_another_kind(tmp_path, names, metadata):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {name: torch.zeros(1) for name in names}, metadata)
    with pytest.raises(DataFileError, match=r"weights\.safetensors is not a snapshot"):
        Snapshot.load(path)
