"""The benchmarks run, and what they compare is the same thing; their speed is not looked at here."""

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import (
    _timing,
    callback,
    cdnv,
    cosine_gram,
    etf_linear,
    etf_logits,
    etf_transformer,
    hierarchical_frame,
    layer_probing,
    measure,
    moments,
    nc1_accuracy,
    nc1_time,
    nearest_step,
    sync,
    ufm_solve,
    ufm_thresholds,
)
from benchmarks.__main__ import NAMES, speedup, times
from benchmarks._timing import Race, Row

from tests.problems import isotropic


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_benchmark_is_run_by_the_command():
    files = {path.stem for path in Path(_timing.__file__).parent.glob("[!_]*.py")}
    assert set(NAMES) | {"statements"} == files
    assert all(callable(importlib.import_module(f"benchmarks.{name}").main) for name in NAMES)


@pytest.mark.parametrize(
    "module",
    [
        *(nc1_accuracy, moments, nc1_time, etf_linear, etf_logits, callback),
        *(nearest_step, hierarchical_frame, cosine_gram, layer_probing, etf_transformer),
        *(ufm_solve, ufm_thresholds, measure),
    ],
    ids=lambda m: m.__name__,
)
def test_a_tiny_run_fills_its_table(module, capsys):
    rows = module.run(**module.TINY)
    assert rows
    assert all(cell for row in rows for cell in (row.name, row.ours, row.peer, row.ratio, row.target))
    assert all((row.met is None) == (row.target == "-") for row in rows)
    _timing.report("title", rows)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == len(rows) + 2
    assert len({len(line) for line in table}) == 1


def test_a_step_whose_memory_is_measured_moves_what_is_not_locked():
    step = etf_transformer.three_steps("both", 16, 1, 2)
    before = {name: p.clone() for name, p in etf_transformer.Step("both", 16, 1, 2).model.named_parameters()}
    after = dict(step().model.named_parameters())
    assert {name for name, p in after.items() if torch.equal(p, before[name])} == {
        "layers.0.linear1.weight",
        "layers.0.linear2.weight",
    }


def test_reference_has_the_closed_form_value():
    K, sigma, radius = 5, 0.3, 2.0
    problem = isotropic(K, 12, sigma, radius, offset=10.0)
    case = nc1_accuracy.Case(problem.features, problem.labels, torch.arange(K))
    assert nc1_accuracy.exact(case) == pytest.approx(sigma**2 * (K - 1) ** 2 / (K * radius**2), rel=1e-12)


@pytest.mark.parametrize("name", nc1_accuracy.CASES)
def test_cases_are_float32_and_small_ones_meet_the_target(name):
    case = nc1_accuracy.CASES[name]()
    assert case.features.dtype == torch.float32
    assert case.labels.unique().tolist() == list(range(case.place.numel()))
    if case.features.shape[1] <= 512:
        assert nc1_accuracy.compare(name, case).met


def test_reference_knows_which_classes_have_merged():
    # The centred means are -1, 2 and -1 along the first axis, where the variance within classes is 0.5 ** 2 / 2.
    means = torch.tensor([[0.0, 7.0], [3.0, 7.0], [0.0, 7.0]])
    steps = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 2.0], [0.0, -2.0]])
    case = nc1_accuracy.Case(
        (means.unsqueeze(1) + steps).flatten(0, 1), torch.arange(3).repeat_interleave(4), torch.tensor([0, 1, 0])
    )
    assert nc1_accuracy.exact(case) == pytest.approx(0.125 / 6, rel=1e-14)


def test_bare_baselines_compute_sums_and_products():
    samples = moments.draw(700, 8, 3)
    h = samples.features.double()
    sums = torch.stack([h[samples.labels == k].sum(dim=0) for k in range(3)])
    torch.testing.assert_close(moments.bare_sums(samples)(), sums, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.bare_products(samples)(), h.T @ h, rtol=1e-12, atol=1e-12)


def test_both_forms_of_cdnv_agree():
    torch.testing.assert_close(cdnv.ours(7, 5)().float(), cdnv.untiled(7, 5)(), rtol=1e-5, atol=0)
    assert cdnv.times(6, 4, rounds=1).target == ">= 20x"


@pytest.mark.parametrize("kind", ["mlp", "transformer", "cnn mean", "cnn flatten"])
def test_networks_probed_have_twelve_layers(kind):
    curves = layer_probing.Case(kind, 8, 3, 20, 10).probe()
    assert len(curves.layers) == layer_probing.DEPTH
    assert curves.dims[:1] == {"cnn flatten": (512,)}.get(kind, (8,))


def test_streamed_data_are_the_same_in_both_passes():
    curves = layer_probing.probing(512, True)()
    assert int(curves.moments["0"].count.sum()) == 512
    assert all(error <= 1 for error in curves.ncc_error)


def test_both_ways_of_syncing_agree(tmp_path):
    store = (tmp_path / "store").as_uri()
    assert sync.on_rank(0, 1, store, sync.check, 4, 3) is None
    assert not torch.distributed.is_initialized()


def test_ratios_come_from_pairs():
    race = Race(ours=(1.0, 2.0, 8.0), peer=(2.0, 6.0, 8.0))
    assert race.costs() == [1 / 3, 0.5, 1.0]
    assert race.faster("a", at_least=2) == Row("a", "2 s", "6 s", "2.0x faster [1.0, 3.0]", ">= 2x", True)
    assert race.faster("a", at_least=2.1).met is False
    assert race.costlier("a", at_most=0.5) == Row("a", "2 s", "6 s", "0.50x the time [0.33, 1.00]", "<= 0.5x", True)
    assert race.costlier("a", at_most=0.4).met is False
    assert race.costlier("a").met is None


def test_a_race_warms_up_and_alternates(monkeypatch):
    monkeypatch.setattr(_timing, "SHORTEST", 0.0)
    called: list[str] = []
    result = _timing.race(lambda: called.append("a"), lambda: called.append("b"), rounds=3)
    assert "".join(called) == "aabb" + "ab" * 3
    assert len(result.ours) == len(result.peer) == 3


def test_two_checkouts_are_compared_row_by_row(capsys):
    found = []
    for units in ((1.0, 0.02, 5e-5), (4.0, 0.01, 2e-4)):
        rows = [Race((t,), (1.0,)).faster(f"row {i}") for i, t in enumerate(units)]
        _timing.report("title", [*rows, Row("a size", "3 MiB", "4 MiB", "-")])
        found.append(times(capsys.readouterr().out))
    assert found[0] == pytest.approx({"row 0": 1.0, "row 1": 0.02, "row 2": 5e-5})
    assert speedup(*found) == pytest.approx((1 / 4 * 2 * 1 / 4) ** (1 / 3))
    assert math.isnan(speedup({"a": 1.0}, {"b": 1.0}))


def test_both_sides_use_one_thread():
    code = "from benchmarks import nearest_solve, _timing; _timing.one_thread(); print(_timing.environment())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    threads = re.findall(r" (\w+) (\d+)(?=[,\n])", found.partition("threads:")[2])
    assert {"torch", "openmp"} < dict(threads).keys()
    assert set(dict(threads).values()) == {"1"}


def test_seconds_average_over_calls():
    ticks = iter([10.0, 12.0])
    called: list[str] = []
    assert _timing.seconds(lambda: called.append("a"), calls=4, clock=lambda: next(ticks)) == 0.5
    assert called == ["a"] * 4


def ones(size):
    return lambda: torch.ones(size, dtype=torch.float32).sum().item()  # 4 bytes each, freed on return


@pytest.mark.skipif(not _timing.STATUS.exists(), reason="the account of memory is Linux's")
def test_peak_memory_counts_what_a_call_frees_again():
    assert _timing.extra_memory(ones, (8,), (10 * 2**20,)) / 2**20 == pytest.approx(40, abs=4)
    differences_and_squares = 2 * 4 * 400 * 400 * 32
    assert _timing.extra_memory(cdnv.untiled, (8, 8), (400, 32)) == pytest.approx(differences_and_squares, rel=0.25)


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.0421, "42.1 ms"), (3.5e-6, "3.5 us")])
def test_durations_have_a_fitting_unit(seconds, text):
    assert _timing.duration(seconds) == text
