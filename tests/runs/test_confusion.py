from __future__ import annotations

import pytest
import torch

from tightframe.errors import DataFileError
from tightframe.files import write_tensors
from tightframe.runs.confusion import CONFUSION_FILES, Confusion


def confusion(epoch=12):
    return Confusion(epoch, torch.tensor([[0, 0], [0, 2], [9_999, 1]]), torch.tensor([5, 1, 3_000_000_000]))


def assert_equal(found, wanted):
    assert found.epoch == wanted.epoch
    for name in ("pairs", "counts"):
        assert getattr(found, name).dtype == torch.int64
        assert torch.equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("split", ["test", "validation.0"])
def test_round_trip(tmp_path, split):
    path = confusion().save(tmp_path / "new" / "folder", split)
    assert path == tmp_path / "new" / "folder" / f"confusion-{split}.safetensors"
    assert_equal(Confusion.load(path), confusion())
    assert_equal(Confusion.load(str(path)), confusion())
    assert list(path.parent.glob(CONFUSION_FILES)) == [path]


def test_nothing_was_evaluated(tmp_path):
    empty = Confusion(0, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert_equal(Confusion.load(empty.save(str(tmp_path), "test")), empty)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"metadata": None}, "epoch"),
        ({"metadata": {"epoch": "last"}}, "last"),
        ({"counts": None}, "counts"),
        ({"pairs": torch.ones(2, 2)}, r"pairs must be \(P, 2\)"),
        ({"counts": torch.ones(2, dtype=torch.int32)}, r"counts \(P,\), int64"),
        ({"pairs": torch.tensor([[0, 1, 2], [1, 0, 2]])}, r"got \(2, 3\)"),
        ({"pairs": torch.tensor([[0, 1]])}, r"got \(1, 2\)"),
        ({"pairs": torch.tensor([0, 1]), "counts": torch.tensor(3)}, r"got \(2,\)"),
        ({"pairs": torch.tensor([[0, 1], [-1, 0]])}, "classes must be >= 0"),
        ({"counts": torch.tensor([0, 1])}, "counts >= 1"),
        ({"pairs": torch.tensor([[0, 1], [0, 1]])}, "no pair twice"),
    ],
)
def test_safetensors_of_another_kind(tmp_path, changed, text):
    parts = {"pairs": torch.tensor([[0, 1], [1, 1]]), "counts": torch.tensor([2, 1]), "metadata": {"epoch": "1"}}
    parts |= changed
    metadata = parts.pop("metadata")
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {name: tensor for name, tensor in parts.items() if tensor is not None}, metadata)
    with pytest.raises(DataFileError, match=rf"weights\.safetensors is not a confusion: .*{text}"):
        Confusion.load(path)
