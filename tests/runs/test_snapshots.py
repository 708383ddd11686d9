from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tightframe.errors import DataFileError
from tightframe.runs.snapshots import TENSORS, Snapshot

from .problems import draw


def snapshot(epoch=12, dtype=torch.float32):
    means = draw(3, 4).to(dtype)
    means[1] = torch.nan
    return Snapshot(epoch, means, draw(3, 4, seed=1).to(dtype), draw(5, 4, seed=2).to(dtype), torch.arange(5) % 3)


def assert_equal(found, wanted):
    assert found.epoch == wanted.epoch
    for name in TENSORS:
        a, b = getattr(found, name), getattr(wanted, name)
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epoch", [0, 12, 123456])
def test_round_trip(tmp_path, dtype, epoch):
    path = snapshot(epoch, dtype).save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / f"epoch-{epoch:05d}.safetensors"
    assert_equal(Snapshot.load(path), snapshot(epoch, dtype))
    assert_equal(Snapshot.load(str(path)), snapshot(epoch, dtype))
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing partial is left


def test_names_sort_by_epoch(tmp_path):
    paths = [snapshot(epoch).save(tmp_path) for epoch in (2, 10, 100)]
    assert sorted(tmp_path.iterdir()) == paths


def test_saving_again_replaces(tmp_path):
    snapshot().save(str(tmp_path))
    newer = Snapshot(12, *(torch.zeros(1, 1) for _ in range(3)), torch.zeros(1).long())
    assert_equal(Snapshot.load(newer.save(tmp_path)), newer)


def test_a_killed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = snapshot().save(tmp_path)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("tightframe.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Snapshot(12, *(torch.zeros(1, 1) for _ in range(3)), torch.zeros(1).long()).save(tmp_path)
    assert_equal(Snapshot.load(path), snapshot())


def test_parameters_and_strided_tensors(tmp_path):
    means, W = draw(4, 3).T, torch.nn.Parameter(draw(3, 4))
    path = Snapshot(1, means, W, draw(10, 4)[::2], torch.arange(10)[::2]).save(tmp_path)
    found = Snapshot.load(path)
    assert torch.equal(found.class_means, means)
    assert torch.equal(found.class_vectors, W.detach())
    assert not found.class_vectors.requires_grad
    assert found.labels.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("shared", ["same tensor", "overlapping views", "parts of one"])
def test_tensors_that_share_memory(tmp_path, shared):
    # A nearest-class-mean classifier's rows are the class means themselves.
    whole = draw(10, 4)
    means, vectors = {
        "same tensor": (whole[:3], whole[:3]),
        "overlapping views": (whole[:3], whole[1:4]),
        "parts of one": (whole[:3], whole[3:6]),
    }[shared]
    wanted = Snapshot(1, means, vectors, whole, torch.arange(10))
    assert_equal(Snapshot.load(wanted.save(tmp_path)), wanted)


# ---------------------------------------------------------------- other files


def test_truncated_files(tmp_path):
    path = snapshot().save(tmp_path)
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataFileError, match=r"epoch-00012\.safetensors is not a snapshot"):
            Snapshot.load(path)


@pytest.mark.parametrize("content", [b"epoch: 12\n" * 50, b"\x00" * 100, b"\xff" * 100])
def test_other_files(tmp_path, content):
    path = tmp_path / "epoch-00001.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="is not a snapshot"):
        Snapshot.load(path)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(DataFileError, match="is not a snapshot"):
            Snapshot.load(path)


def test_safetensors_of_another_kind(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {name: torch.zeros(1) for name in TENSORS}
    for kept, metadata in (
        (TENSORS, None),
        (TENSORS, {"format": "pt"}),
        (TENSORS, {"epoch": "last"}),
        (TENSORS[1:], {"epoch": "1"}),
    ):
        save_file({name: tensors[name] for name in kept}, path, metadata=metadata)
        with pytest.raises(DataFileError, match=r"weights\.safetensors is not a snapshot"):
            Snapshot.load(path)
