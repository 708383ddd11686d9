"""Each reader and each damage: the same content, or a refusal in one line; never a traceback, never other memory."""

from __future__ import annotations

import pytest

from tests.damage import READERS, damaged, flipped, outcome, plain, planted, put

# Their checksums find every flipped bit of the values.
CHECKED = {"features.npz", "features, compressed", "features.parquet", "image 0.png", "checkpoint", "snapshot"}
CHECKED |= {"confusion", *(reader.name for reader in READERS if reader.name.startswith("runs: "))}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damage(reader, folder, record_property):
    path, trace = reader.write(folder), folder.parent / "trace"
    content = path.read_bytes()
    how, valid = outcome(reader, path)
    assert how == "read", valid
    cases = [*damaged(content, trace).items(), ("directory", None)]
    cases += [("flipped", changed) for changed in flipped(content, reader.name)]
    lost = []
    for name, changed in [*cases, ("missing", b"")]:
        put(path, changed)
        if name == "missing":
            path.unlink()
        how, found = outcome(reader, path)
        # A text that ends early, or has one letter changed, may still be one.
        another = name == "half" or (name == "flipped" and reader.name not in CHECKED)
        same = how == "read" and plain(found, not another) == plain(valid, not another)
        if how != "refused" and not same:
            lost.append((name, how, found))
    record_property("cases", len(cases) + 1)
    record_property("lost", len(lost))
    assert not lost, f"{len(lost)} of {len(cases) + 1}, such as {lost[:3]}"
    assert not trace.exists()
    put(path, content)
    assert plain(outcome(reader, path)[1]) == plain(valid)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_nothing_that_is_planted_runs(reader, folder, record_property):
    path, trace = reader.write(folder), folder.parent / "trace"
    contents = planted(trace)
    for content in contents.values():
        put(path, content)
        assert outcome(reader, path)[0] != "fault"
        assert not trace.exists()
    record_property("cases", len(contents))
    record_property("lost", 0)
