"""The studies turn directories of runs into tables; here the runs are written by hand, so every cell is known."""

import json
import math
from pathlib import Path

import pytest
import torch

from studies import _tables, adaptive_etf, nearest_etf, severity, shuffled_tree
from tightframe import simplex_etf
from tightframe.config import Recipe, build, find_recipe, recipe_parser
from tightframe.data import StdlibModules
from tightframe.files import read_yaml
from tightframe.hierarchy import Tree
from tightframe.records import Records
from tightframe.runs.layout import CLASSES_FILE, CONFIG_FILE, RECORDS_FILE, SNAPSHOT_DIR, TIMING_FILE
from tightframe.runs.snapshots import Snapshot

SEARCH = Path(__file__).parents[2] / "studies" / "stdlib-hierarchy-search.yaml"
K, SCALE = 3, 5.0
FLOOR = math.log(1 + 2 * math.exp(-7.5))
GAP = math.log(3) - FLOOR


def write(out, run, seed, records, seconds, features=None):
    """One finished training."""
    directory = out / run / f"seed-{seed}"
    directory.mkdir(parents=True)
    records.save(directory / RECORDS_FILE)
    (directory / TIMING_FILE).write_text(json.dumps({"fit_seconds": seconds, "epochs": 4}))
    if features is not None:
        vectors = simplex_etf(K, 4, orientation="canonical")
        Snapshot(4, vectors, vectors, features, torch.arange(len(features)) % K).save(directory / SNAPSHOT_DIR)
    (out / CLASSES_FILE).write_text(json.dumps(list("abc")))
    methods = {name: {"classifier": {"name": "Some", "args": {"scale": SCALE}}} for name in ("learned", "nearest")}
    (out / CONFIG_FILE).write_text(json.dumps({"methods": methods}))


def full_batch(shares, accuracies, nc1):
    """Records of an epoch a step whose losses exceed the floor by shares of the gap."""
    records = Records()
    for epoch, (share, accuracy) in enumerate(zip(shares, accuracies, strict=True), start=1):
        here = {"epoch": epoch, "step": epoch, "split": "train"}
        records.add("loss", FLOOR + share * GAP, **here)
        records.add("accuracy", accuracy, **here)
        records.add("nc1.pinv", nc1 * (1 + len(shares) - epoch), **here, layer="features")
    return records


def mini_batch(accuracies):
    records = Records()
    for epoch, accuracy in accuracies.items():
        here = {"epoch": epoch, "step": 11 * epoch}
        records.add("loss", 1.0, **here, split="train")
        records.add("accuracy", accuracy, **here, split="test")
    return records


@pytest.fixture
def ufm(tmp_path):
    out = tmp_path / "ufm"
    vectors = simplex_etf(K, 4, orientation="canonical")
    write(out, "learned", 0, full_batch([1.0, 0.6, 0.3, 0.2], [0.3, 0.9, 1.0, 1.0], 0.02), 4.0, vectors)
    write(out, "learned", 1, full_batch([1.0, 0.5, 0.09, 0.05], [0.5, 1.0, 1.0, 1.0], 0.04), 2.0, vectors)
    write(out, "nearest", 0, full_batch([0.4, 0.1, 0.009, 0.0009], [0.9, 1.0, 1.0, 1.0], 0.01), 6.0, vectors)
    write(out, "nearest", 1, full_batch([0.4, 0.1, 0.009, 0.0009], [0.9, 0.9, 1.0, 1.0], 0.01), 4.0, vectors)
    return out


def cells(capsys, *paths):
    """The rows of all tables that the command prints, by their first cell."""
    assert nearest_etf.main(list(map(str, paths))) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    tables: list[dict[str, list[str]]] = []
    for name, *values in rows:
        if name == "method":
            tables.append({})
        tables[-1][name] = values
    return printed, tables


def test_steps_are_those_before_the_loss_was_computed(ufm, capsys):
    printed, (speed, _) = cells(capsys, ufm)
    assert "## ufm, 2 seeds" in printed
    assert speed["method"][1:4] == ["steps to 100 % accuracy", "to 50 % excess loss", "to 10 % excess loss"]
    assert speed["learned"] == ["40 [30, 50]", "1.5 [1, 2]", "1.5 [1, 2]", "> 4 [2, > 4]", "> 4", "> 4"]
    assert speed["nearest"] == ["90", "1.5 [1, 2]", "0", "1", "2", "3"]


def test_geometry_is_of_the_last_epoch_and_cost_is_paired_by_seed(ufm, capsys):
    _, (_, geometry) = cells(capsys, ufm)
    columns = dict(zip(geometry["method"], zip(geometry["learned"], geometry["nearest"], strict=True), strict=True))
    # t(0.975, 1) / sqrt(2) times the deviation is 12.706 * 0.01
    assert columns["NC1"] == ("0.0300 ± 0.1271", "0.0100 ± 0.0000")
    assert columns["NC3"] == ("–", "–")
    assert columns["margin, median"][0].startswith("1.50")
    assert columns["time / learned"] == ("1", "1.75 [1.5, 2]")


def test_margins_are_quantiles_over_the_samples_of_the_last_snapshot(tmp_path):
    vectors = simplex_etf(K, 4, orientation="canonical")
    features = vectors.repeat(40, 1)
    features[:9] = -features[:9]  # cosine -1 against the largest other, 1/2
    write(tmp_path / "out", "learned", 0, mini_batch({1: 0.5}), 1.0, features)
    ((median, low),) = map(nearest_etf.margins, _tables.run_directories([tmp_path / "out"])[0].trainings)
    assert median == pytest.approx(1.5, abs=1e-6)
    assert low == pytest.approx(-1.5, abs=1e-6)


def test_what_is_unfinished_is_left_out_and_named(ufm, capsys):
    (ufm / "nearest" / "seed-0" / TIMING_FILE).unlink()
    printed, (speed, geometry) = cells(capsys, ufm)
    assert "left out: nearest, seed 0, unfinished: last epoch measured is 4" in printed
    assert speed["nearest"][1] == "2"
    assert geometry["nearest"][-1] == "2"


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 0.03420), (100, 0.49116), (200, 0.83620), (1000, 2.04091)])
def test_the_floor_of_the_loss(num_classes, expected):
    assert nearest_etf.floor(num_classes, 5.0) == pytest.approx(expected, abs=5e-6)
    vectors = simplex_etf(10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(5 * vectors @ vectors.T, torch.arange(10))
    assert nearest_etf.floor(10, 5.0) == pytest.approx(loss.item(), rel=1e-12)


def test_severity_of_every_method_under_every_rule(tmp_path, capsys):
    for run, shift in (("learned", 0.0), ("haframe", 0.1)):
        for seed in (0, 1):
            records = Records()
            for epoch in (1, 2):
                for rule, gain in (("", 0.0), (".crm", 0.05), (".tree-order", 0.02)):
                    error = 0.5 - shift - gain + 0.02 * seed - 0.1 * epoch
                    here = {"epoch": epoch, "step": epoch, "split": "test"}
                    records.add(f"error{rule}", error, **here)
                    records.add(f"mistake_severity{rule}", 2.0, **here)
                    records.add(f"hierarchical_distance@1{rule}", 2 * error + 1e-3 * (rule == ".crm"), **here)
            if run == "haframe":
                records.add("frame.alignment.span", 0.5 + 0.1 * seed, epoch=2, split="train", layer="features")
            write(tmp_path / "runs", run, seed, records, 1.0)
    assert severity.main([str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "## runs, 2 seeds" in out
    tables = out.split("\n\n")
    rows, differences, alignment = (
        {cells[1].strip(): cells[2:] for cells in (line.split("|") for line in table.splitlines()) if len(cells) > 2}
        for table in tables[1:4]
    )
    assert [rows[name][0].split(" ±")[0].strip() for name in ("learned", "learned, crm", "haframe, tree-order")] == [
        "31.00",
        "26.00",
        "19.00",
    ]
    assert rows["haframe"][1].strip() == "2.00 ± 0.00"
    assert rows["haframe"][3].strip() == "–"
    assert "HD@1 = severity x error to 1.0e-03" in out
    # Paired by seed: the seeds' own spread is gone.
    assert list(differences) == ["minus learned", "-" * 13, "haframe"]
    assert [cell.strip() for cell in differences["haframe"][:3]] == ["-10.00 ± 0.00", "0.00 ± 0.00", "-0.200 ± 0.000"]
    assert list(alignment)[2:] == ["haframe"]
    assert [cell.strip() for cell in alignment["haframe"][:3]] == ["–", "0.550 ± 0.635", "–"]


def test_a_shuffled_tree_has_the_same_shape_and_other_neighbours():
    names = [f"c{k}" for k in range(12)]
    paths = [("T" if k < 6 else "U", f"p{k // 3}", name) for k, name in enumerate(names)]
    real = Tree.from_paths(paths).distances()
    found = Tree.from_nested(shuffled_tree.shuffled(paths, names, seed=0), names).distances()
    assert sorted(found.flatten().tolist()) == sorted(real.flatten().tolist())
    assert not torch.equal(found, real)
    assert shuffled_tree.shuffled(paths, names, 0) == shuffled_tree.shuffled(paths, names, 0)
    assert shuffled_tree.main(["digits", "unused.json"]) == 2


def test_the_shuffled_tree_of_a_recipe_is_one_of_its_classes(tmp_path):
    assert shuffled_tree.main(["stdlib-hierarchy", str(tmp_path / "tree.json"), "--seed", "1"]) == 0
    data = StdlibModules().load()
    tree = Tree.read(tmp_path / "tree.json", data.class_names)
    assert tree.class_names == data.class_names
    assert len(tree.names) == len(Tree.from_paths(data.paths).names)


def test_trained_parameters_and_conversions(tmp_path, capsys):
    out = tmp_path / "runs"
    for run, loss, trained, depths in (("learned", 0.0, 1000, [2.0]), ("nearest", 0.05, 250, [math.nan, 3.0])):
        for seed in (0, 1):
            records = Records()
            for split in ("train", "test"):
                records.add("accuracy", 0.9 - loss + 0.02 * seed, epoch=1, split=split)
            for epoch, depth in enumerate(depths):
                records.add("effective_depth", depth, epoch=epoch, split="train")
            write(out, run, seed, records, 1.0)
            timing = {"fit_seconds": 1.0, "epochs": 4, "trainable_parameters": trained}
            (out / run / f"seed-{seed}" / TIMING_FILE).write_text(json.dumps(timing))
    stage = {"train": 1.0, "test": 0.9, "trainable": 1000, "parameters": 1000, "flops": 50, "relative": 1.0}
    for kind, stages in (
        ("locked", [stage, {**stage, "test": 0.5, "trainable": 400}]),
        ("truncated", [stage, {**stage, "test": 0.7, "parameters": 100, "flops": 5, "relative": 0.2}]),
    ):
        for seed in (0, 1):
            folder = out / "learned" / f"seed-{seed}" / kind
            folder.mkdir()
            (folder / "conversion.json").write_text(
                json.dumps({"depth": 1, "truncated": kind == "truncated", "stages": stages})
            )
    assert adaptive_etf.main([str(out)]) == 0
    _, table, locked, truncated, *_ = capsys.readouterr().out.split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert cells[0][1:] == ["2", "91.00 ± 12.71", "–", "91.00 ± 12.71", "1,000", "100", "2 2"]
    assert cells[1][3:] == ["-5.00 ± 0.00", "86.00 ± 12.71", "250", "25", "3 3"]
    assert [line.split("|")[3].strip() for line in locked.splitlines()[2:]] == ["90.00 ± 0.00", "50.00 ± 0.00"]
    whole, chosen, after = ([c.strip() for c in line.split("|")[2:-1]] for line in truncated.splitlines()[2:])
    assert whole[3:] == ["100", "100", "100.00 ± 0.00"]
    assert chosen == after == ["100.00 ± 0.00", "70.00 ± 0.00", "1,000", "10", "10", "20.00 ± 0.00"]


def test_parameters_are_searched_over_methods_that_can_be_made():
    described = read_yaml(SEARCH)
    parser = recipe_parser()
    recipe = Recipe(**vars(parser.instantiate(parser.parse_object(read_yaml(SEARCH)))))
    experiment = build(recipe, ["learned", "barz-denzler-1-32", "hier-cos-0.05", "haframe-5-0.4"])
    assert experiment.data.validation is not None
    # What was chosen is what the shipped recipe has.
    shipped = read_yaml(find_recipe("stdlib-hierarchy"))["methods"]
    chosen = {"hxe": "hxe-0.4", "hace": "hace-0.2", "barz-denzler": "barz-denzler-1-32", "haframe-5": "haframe-5-0.4"}
    for name, source in chosen.items():
        assert shipped[name] == described["methods"][source]
