from __future__ import annotations

import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightframe.errors import ArgumentError, DataFileError, MissingExtraError
from tightframe.records import COLUMNS, Record, Records

from .problems import law

NAN, INF = float("nan"), float("inf")
ORDER = ["run", "seed", "epoch", "step", "split", "layer", "metric", "value", "tap"]


def table():
    records = Records()
    records.add("nc1.pinv", 0.5, run="haar", seed=1, epoch=0, step=0, split="train", layer="features")
    records.add("cdnv", 2, run="haar", seed=1, epoch=0, step=0, split="train", layer="features")
    records.add("nc1.pinv", 0.25, run="haar", seed=1, epoch=7, step=90, split="test", layer="block.1")
    records.add("nc1.pinv", NAN, run="learned", seed=2, epoch=7, step=90, split="test", layer="features")
    records.add("cdnv", INF)
    return records


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.jsonl"


# ---------------------------------------------------------------- one row


@pytest.mark.parametrize("value", [0.1, -0.0, 1e308, 5e-324, NAN, INF, -INF])
def test_a_row_is_standard_json_and_comes_back(value):
    row = Record('a "b"\n\u2028é', 3, 4, 5, "train", "block.1", "nc1.pinv", value)
    line = row.to_json()
    assert "\n" not in line

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(line, parse_constant=refuse)
    back = Record.from_json(line)
    assert back == row if not math.isnan(value) else (math.isnan(back.value) and back.to_json() == line)
    assert math.copysign(1, back.value) == math.copysign(1, value) or math.isnan(value)


BROKEN = {
    "no JSON": "{",
    "empty": "",
    "a list": "[1, 2]",
    "a number": "3",
    "a column is missing": json.dumps(dict.fromkeys(ORDER[1:], 0)),
    "a column too many": json.dumps(dict.fromkeys([*ORDER, "more"], 0)),
    "value is no number": json.dumps(dict.fromkeys(ORDER, 0) | {"value": "much"}),
    "value is null": json.dumps(dict.fromkeys(ORDER, 0) | {"value": None}),
    "epoch is no number": json.dumps(dict.fromkeys(ORDER, 0) | {"epoch": "last"}),
    "epoch is null": json.dumps(dict.fromkeys(ORDER, 0) | {"epoch": None}),
    "epoch is infinite": json.dumps(dict.fromkeys(ORDER, 0) | {"epoch": INF}),
    "epoch is nan": json.dumps(dict.fromkeys(ORDER, 0) | {"epoch": NAN}),
}


@pytest.mark.parametrize("name", [name for name in BROKEN if not name.endswith("null")])
def test_what_is_no_row_is_refused(name):
    with pytest.raises(ValueError, match=r".+"):
        Record.from_json(BROKEN[name])


# ---------------------------------------------------------------- the table


def test_rows_are_kept_in_order():
    records = table()
    assert len(records) == 5
    assert [r.metric for r in records] == ["nc1.pinv", "cdnv", "nc1.pinv", "nc1.pinv", "cdnv"]
    assert next(iter(records)) == Record("haar", 1, 0, 0, "train", "features", "nc1.pinv", 0.5)
    assert isinstance(list(records)[1].value, float)
    assert list(records)[-1] == Record("", 0, 0, 0, "", "", "cdnv", INF)
    assert repr(records) == "Records(5 rows, 2 metrics)"
    assert list(Records(records)) == list(records)


def test_extend_and_equality():
    records, more = Records(), table()
    assert records != more
    records.extend(more)
    assert records == more  # nan included
    records.add("x", 1)
    assert len(more) == 5
    assert records != more
    assert records != list(records)


def test_where():
    records = table()
    assert [r.value for r in records.where(metric="nc1.pinv", split="train")] == [0.5]
    assert len(records.where(metric="nc1.pinv", epoch=7)) == 2
    assert len(records.where()) == 5
    assert len(records.where(run="nobody")) == 0
    assert isinstance(records.where(seed=1), Records)
    with pytest.raises(ArgumentError, match=r"columns must be among \['epoch', .*, got \['colour', 'run_name'\]"):
        records.where(run_name="haar", colour=1)


def test_unique():
    records = table()
    assert records.unique("metric") == ["nc1.pinv", "cdnv"]
    assert records.unique("epoch") == [0, 7]
    assert Records().unique("run") == []


@pytest.mark.parametrize("column", ["colour", "to_json", "__class__"])
@pytest.mark.parametrize("records", [table(), Records()], ids=["rows", "no rows"])
def test_unique_of_what_is_no_column(records, column):
    with pytest.raises(ArgumentError, match="column"):
        records.unique(column)


def test_value_is_the_newest_of_one_place():
    records = table()
    assert records.value("nc1.pinv", run="haar", split="test") == 0.25
    assert records.value("nc1.pinv", run="haar", layer="features", epoch=0) == 0.5
    records.add("nc1.pinv", 9, run="haar", seed=1, epoch=8, split="test", layer="block.1")
    assert records.value("nc1.pinv", run="haar", split="test") == 9
    with pytest.raises(ArgumentError, match=r"run must be given .*rows of \['haar', 'learned'\]"):
        records.value("nc1.pinv")
    records.add("nc1.pinv", 3, run="haar", seed=1, split="test", layer="block.1", tap="post")
    with pytest.raises(ArgumentError, match="tap must be given"):
        records.value("nc1.pinv", run="haar", split="test")
    with pytest.raises(ArgumentError, match=r"no row has metric='nc1' .*metrics here: \['nc1\.pinv', 'cdnv'\]"):
        records.value("nc1")
    with pytest.raises(ArgumentError, match=r"no row has metric='cdnv' and \{'epoch': 7\}"):
        records.value("cdnv", epoch=7)
    with pytest.raises(ArgumentError, match="columns must be among"):
        records.value("cdnv", when=7)


def test_frame():
    frame = table().to_frame()
    assert list(frame.columns) == ORDER
    assert frame["value"].tolist()[:3] == [0.5, 2.0, 0.25]
    assert frame["value"].isna().sum() == 1
    assert list(Records().to_frame().columns) == ORDER
    assert set(ORDER) == COLUMNS


def test_frame_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tightframe\[cli\]'"):
        table().to_frame()


# ---------------------------------------------------------------- files


@law
@given(
    st.lists(
        st.builds(
            Record,
            run=st.text(),
            seed=st.integers(1 - 2**63, 2**63 - 1),
            epoch=st.integers(0, 2**63 - 1),
            step=st.integers(0, 2**63 - 1),
            split=st.text(),
            layer=st.text(),
            metric=st.text(),
            value=st.floats(),
        )
    )
)
def test_any_table_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "r.jsonl"
    Records(rows).save(path)
    assert Records.read(path) == Records(rows)


def test_saving(path):
    assert table().save(path) == path
    assert len(path.read_text().splitlines()) == 5
    assert Records.read(str(path)) == table()
    Records().save(str(path))
    assert len(Records.read(path)) == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing partial is left


def test_a_failed_save_leaves_the_old_file(path):
    table().save(path)
    broken = table()
    broken.add("x", 1.0, run=object())
    with pytest.raises(TypeError):
        broken.save(path)
    assert Records.read(path) == table()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_killed_save_leaves_the_old_file(path, monkeypatch):
    table().save(path)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("tightframe.records.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Records().save(path)
    assert Records.read(path) == table()


def test_a_half_written_last_line_is_dropped(path):
    table().save(path)
    text = path.read_text()
    start = text.rstrip("\n").rindex("\n") + 1
    for cut in range(start, len(text) - 1):
        path.write_text(text[:cut])
        assert Records.read(path) == Records(list(table())[:4])


@pytest.mark.parametrize("name", BROKEN)
def test_any_other_broken_line_is_named(path, name):
    table().save(path)
    whole = path.read_text().splitlines()
    for line in (0, 2, 4):
        path.write_text("\n".join([*whole[:line], BROKEN[name], *whole[line + 1 :]]) + "\n")
        with pytest.raises(DataFileError, match=rf"records\.jsonl, line {line + 1} is not a record"):
            Records.read(path)


def test_files_that_hold_no_records(path):
    with pytest.raises(DataFileError, match=r"records\.jsonl cannot be read as records"):
        Records.read(path)
    with pytest.raises(DataFileError, match="cannot be read as records"):
        Records.read(path.parent)
    path.write_bytes(b"\xff\xfe\x00broken\n")
    with pytest.raises(DataFileError, match="cannot be read as records"):
        Records.read(path)
