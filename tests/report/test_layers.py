from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tightframe.records import Records
from tightframe.report import build_report
from tightframe.report.build import plain_json
from tightframe.report.history import History
from tightframe.report.layers import LAYER_METRICS, MAX_EPOCHS, RunLayers, gather_layers

from .test_build import HOSTILE, Page

# Layers of the two runs share names, in another order; "features" comes where a classifier's input does, in the middle.
ERRORS = {
    "one": {"b.1": [0.5, 0.2, 0.1], "b.2": [0.6, 0.01, 0.02], "b.3": [0.9, 0.01, 0.0]},
    "two": {"b.3": [0.4, 0.4, 0.3], "b.1": [0.2, 0.3, 0.2]},
}


def records_of(runs: dict[str, dict[str, list[float]]] = ERRORS, *, features: float | None = 0.995) -> Records:
    """Errors by run, layer and epoch, of seed 0 a bit below and of seed 1 above; CDNV is twice the error."""
    records = Records()
    for run, layers in runs.items():
        for epoch in range(3):
            for seed, shift in enumerate((-0.004, 0.004)):
                where = {"run": run, "seed": seed, "epoch": 5 * epoch}
                records.add("accuracy", 0.5, split="test", **where)
                for i, (layer, values) in enumerate(layers.items()):
                    records.add("ncc.error", values[epoch] + shift, split="train", layer=layer, **where)
                    records.add("ncc.error", 1.0, split="test", layer=layer, **where)
                    records.add("cdnv", 2 * values[epoch], split="train", layer=layer, **where)
                    if i == 0 and features is not None:
                        records.add("cdnv", 0.25, split="train", layer="features", **where)
                        records.add("ncc.accuracy", features, split="train", layer="features", **where)
                        records.add("nc1.pinv", 0.1, split="train", layer="features", **where)
    return records


def maps_of(records: Records) -> dict[str, RunLayers]:
    return {item.run: item for item in gather_layers(History(records), records).runs}


def write(out: Path, records: Records) -> Path:
    for run in records.unique("run"):
        for seed in (0, 1):
            directory = out / run / f"seed-{seed}"
            directory.mkdir(parents=True)
            records.where(run=run, seed=seed).save(directory / "records.jsonl")
            (directory / "timing.json").write_text('{"epochs": 10}')
    return out


def test_rows_are_layers_in_the_order_of_each_run_and_columns_epochs() -> None:
    maps = maps_of(records_of())
    assert list(maps) == ["one", "two"]
    assert maps["one"].layers == ("b.1", "b.2", "b.3", "features")
    assert maps["two"].layers == ("b.3", "b.1", "features")
    assert maps["one"].epochs == maps["two"].epochs == (0, 5, 10)
    for run, layers in ERRORS.items():
        errors, cdnv = maps[run].values["ncc.error"], maps[run].values["cdnv"]
        np.testing.assert_allclose(errors, [*layers.values(), [0.005] * 3], atol=1e-12)
        np.testing.assert_allclose(cdnv, [*(np.multiply(2, v) for v in layers.values()), [0.25] * 3], atol=1e-12)
        assert list(maps[run].values) == ["ncc.error", "cdnv"]  # NC1 is the classifier's alone


@pytest.mark.parametrize("why", ["not at every epoch", "read after they ran", "not in every metric"])
def test_the_classifier_s_input_is_left_out_where_it_does_not_follow(why: str) -> None:
    records = records_of({"one": ERRORS["one"]})
    if why == "read after they ran":
        records = Records(replace(r, tap="post") if r.layer != "features" else r for r in records)
    else:
        metric = "cdnv" if why == "not in every metric" else "ncc.accuracy"
        records = Records(r for r in records if (r.layer, r.metric, r.epoch) != ("features", metric, 5))
    item = maps_of(records)["one"]
    assert item.layers == ("b.1", "b.2", "b.3")
    assert item.epochs == (0, 5, 10)
    assert item.depths == [None, 2, 3]


def test_the_effective_depth_is_the_first_row_of_those_that_pass_to_the_end() -> None:
    maps = maps_of(records_of())
    assert maps["one"].depths == [4, 2, 3]
    assert maps["two"].depths == [3, 3, 3]
    assert maps_of(records_of(features=None))["two"].depths == [None] * 3
    assert maps_of(records_of(features=None))["one"].depths == [None, 2, 3]


def test_runs_without_layers_have_no_map(tmp_path: Path) -> None:
    records = records_of({"one": ERRORS["one"]})
    for metric in (*LAYER_METRICS, "ncc.accuracy"):
        records.add(metric, 0.5, run="plain", split="train", layer="features")
        records.add(metric, 0.5, run="tested", split="test", layer="b.1")
    records.add("nc2.gram.means", 0.5, run="other", split="train", layer="b.1")
    assert list(maps_of(records)) == ["one"]
    page = Page(build_report(write(tmp_path / "runs", Records(r for r in records_of() if r.layer == "features"))))
    assert page.data["layers"] == {"runs": [], "metrics": []}
    assert "layers" not in {attrs.get("id") for _, attrs in page.tags}
    assert "layer-map" not in page.scripts[-1]


def test_what_was_not_measured_is_blank() -> None:
    records = records_of({"one": ERRORS["one"]}, features=None)
    records.add("cdnv", 3.0, run="one", epoch=20, split="train", layer="b.2")
    records.add("nc1.ratio", math.inf, run="one", epoch=20, split="train", layer="b.3")
    item = maps_of(records)["one"]
    assert item.epochs == (0, 5, 10, 20)
    assert np.isnan(item.values["ncc.error"][:, 3]).all()
    assert item.depths[3] is None
    assert item.values["cdnv"][1, 3] == 3
    assert np.isnan(item.values["nc1.ratio"]).all()
    data = plain_json(gather_layers(History(records), records))
    assert data["runs"][0]["values"]["cdnv"][0][3] is None
    assert data["metrics"][2]["range"] == [0.0, 0.0]


def test_maps_without_errors_have_no_depth() -> None:
    records = Records(r for r in records_of(features=None) if r.metric != "ncc.error")
    item = maps_of(records)["one"]
    assert list(item.values) == ["cdnv"]
    assert item.depths == [None] * 3


def test_scales_are_those_of_all_runs() -> None:
    errors, cdnv = gather_layers(History(records_of()), records_of()).metrics
    assert (errors["id"], errors["percent"], errors["range"]) == ("ncc.error", True, [0.0, pytest.approx(0.9)])
    assert (cdnv["id"], cdnv["percent"], cdnv["range"]) == ("cdnv", False, [0.02, 1.8])  # 0 has no logarithm


def test_many_epochs_are_thinned() -> None:
    records = Records()
    for epoch in range(1000):
        records.add("ncc.error", epoch / 1000, run="long", epoch=epoch, split="train", layer="b")
    item = maps_of(records)["long"]
    assert len(item.epochs) == len(set(item.epochs)) == MAX_EPOCHS
    assert (item.epochs[0], item.epochs[-1]) == (0, 999)
    assert item.values["ncc.error"][0].tolist() == [epoch / 1000 for epoch in item.epochs]


def test_the_page_draws_them(tmp_path: Path) -> None:
    page = Page(build_report(write(tmp_path / "runs", records_of())))
    data = page.data["layers"]
    assert [run["run"] for run in data["runs"]] == ["one", "two"]
    assert data["runs"][1]["layers"] == ["b.3", "b.1", "features"]
    assert data["runs"][0]["depths"] == [4, 2, 3]
    assert data["runs"][0]["values"]["cdnv"][1] == [1.2, 0.02, 0.04]
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"layers", "layer-run", "layer-metric", "layer-map", "layer-summary"} <= ids
    assert "drawLayers" in page.scripts[-1]


def test_names_stay_text(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("/", "")  # the name of a run is that of a folder
    runs = {hostile: {f"<img src=x>{HOSTILE}": [0.1] * 3}}
    page = Page(build_report(write(tmp_path / "runs", records_of(runs))))
    assert page.data["layers"]["runs"][0]["layers"][0] == f"<img src=x>{HOSTILE}"
    assert len(page.script_tags) == 4
    assert not [tag for tag, _ in page.tags if tag == "img"]
