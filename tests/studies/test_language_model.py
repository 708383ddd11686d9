"""The language-model study in small: what its variants change and keep, what a training leaves, what its table says."""

import json
import math

import pytest
import torch
import yaml
from studies.language_model import LanguageModel, Settings, Windows, bits_per_byte, fit, rate, windows_at
from studies.language_model_network import VARIANTS, build
from studies.language_model_table import pareto

from studies import language_model
from tightframe.data import ByteCorpus
from tightframe.errors import ArgumentError
from tightframe.frames import nearest_simplex_weight, simplex_weight
from tightframe.nn import variance_preserving_gain
from tightframe.records import Records
from tightframe.runs.layout import CONFIG_FILE, RECORDS_FILE, TIMING_FILE, VERSIONS_FILE
from tightframe.surgery import parameter_report

TINY = Settings(steps=6, width=32, blocks=2, batch_size=2)
GAIN = variance_preserving_gain("gelu")
FULL = {
    "baseline": 875_264,
    "no-ff": 347_392,
    "deeper-no-ff": 877_824,
    "half-ff": 612_096,
    "w1": 613_120,
    "w2": 613_120,
    "both": 350_976,
    "orthogonal-w2": 613_120,
    "gaussian-w2": 613_120,
    "orthogonal-both": 350_976,
    "gaussian-both": 350_976,
    "simplex-init-trainable": 875_264,
    "orthogonal-init-trainable": 875_264,
    "gaussian-init-trainable": 875_264,
    "aligned-w2": 875_264,
    "aligned-both": 875_264,
    "w2-scalar": 613_124,
}
FIXED = [name for name in VARIANTS if FULL[name] in (613_120, 350_976, 613_124)]


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    monkeypatch.setattr(language_model, "SCORED_WINDOWS", 20)


@pytest.fixture(scope="module")
def corpus():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randint(97, 123, (n,), dtype=torch.uint8, generator=generator) for n in (5000, 700))
    return ByteCorpus(train, None, test)


def matrices(network):
    """The feed-forward matrices by name, of whatever kind the layers are."""
    return {
        (index, name): getattr(block.feed_forward, name).weight
        for index, block in enumerate(network.blocks)
        if block.feed_forward is not None
        for name in ("w1", "w2")
    }


def trainable(module):
    return parameter_report(module).trainable


def tiny(variant, seed=0):
    return build(variant, TINY.width, TINY.blocks, seed)


def train(variant, corpus, tmp_path, monkeypatch, seed=0):
    """One training; returns the network before and after, and what the files hold."""
    kept = {}
    whole = LanguageModel.on_train_start

    def remember(module):
        kept["module"] = module
        whole(module)

    monkeypatch.setattr(LanguageModel, "on_train_start", remember)
    score, timing = fit(variant, seed, TINY, corpus, tmp_path)
    directory = tmp_path / variant / f"seed-{seed}"
    assert timing.items() <= json.loads((directory / TIMING_FILE).read_text()).items()
    return kept["module"].network, timing, Records.read(directory / RECORDS_FILE), score


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_trains_as_many_parameters_as_it_claims(variant):
    assert trainable(build(variant, 128, 4, seed=0)) == FULL[variant]


def test_the_deeper_network_is_the_nearest_in_parameters():
    network = tiny("deeper-no-ff")
    block = trainable(network.blocks[0])
    assert matrices(network) == {}
    assert abs(trainable(network) - trainable(tiny("baseline"))) <= block / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_starts_everything_outside_the_feed_forward_matrices_alike(variant):
    state, expected, other = (tiny(*which).state_dict() for which in ((variant,), ("baseline",), (variant, 1)))
    shared = [key for key in state if key in expected and ".w1." not in key and ".w2.weight" not in key]
    assert len(shared) == (17 if "no-ff" in variant else 23)
    assert all(torch.equal(state[key], expected[key]) for key in shared)
    assert not torch.equal(state["symbols.weight"], other["symbols.weight"])


def test_the_start_is_the_recipes():
    network = build("baseline", 128, 4, seed=0)
    block = network.blocks[1]
    stds = {
        network.symbols.weight: 0.02,
        network.positions.weight: 0.02,
        network.output.weight: 0.02,
        block.attention.qkv.weight: math.sqrt(2 / (128 + 384)),
        block.attention.output.weight: 0.02 / math.sqrt(8),
        block.feed_forward.w1.weight: math.sqrt(2 / (128 + 512)),
        block.feed_forward.w2.weight: math.sqrt(2 / (128 + 512) / 8),
    }
    for weight, std in stds.items():
        assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert block.attention.qkv.bias.abs().max() == 0


def test_a_feed_forward_layer_of_half_the_width_starts_by_the_same_recipe():
    layer = build("half-ff", 128, 4, seed=0).blocks[1].feed_forward
    assert layer.w1.weight.shape == (256, 128)
    assert layer.w1.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 256)), rel=0.02)
    assert layer.w2.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 256) / 8), rel=0.02)
    assert layer.w1.bias.abs().max() == layer.w2.bias.abs().max() == 0


def test_no_byte_looks_ahead():
    network = tiny("baseline").eval()
    text = torch.randint(256, (1, 128), generator=torch.Generator().manual_seed(0))
    other = text.clone()
    other[0, 50] = (text[0, 50] + 1) % 256
    same = (network(text) == network(other)).all(dim=-1)[0]
    assert same[:50].all()
    assert not same[50:].any()


@pytest.mark.parametrize(
    ("variant", "touched"),
    [
        ("w1", {"w1"}),
        ("w2", {"w2"}),
        ("both", {"w1", "w2"}),
        ("simplex-init-trainable", {"w1", "w2"}),
        ("orthogonal-both", {"w1", "w2"}),
        ("gaussian-both", {"w1", "w2"}),
        ("orthogonal-w2", {"w2"}),
        ("gaussian-w2", {"w2"}),
        ("orthogonal-init-trainable", {"w1", "w2"}),
        ("gaussian-init-trainable", {"w1", "w2"}),
    ],
)
def test_matrices_have_the_norm_of_the_variance_preserving_simplex(variant, touched):
    learned, found = matrices(tiny("baseline")), matrices(tiny(variant))
    norm = simplex_weight(128, 32, gain=GAIN).norm().item()
    for (index, name), weight in found.items():
        assert torch.equal(weight, learned[index, name]) == (name not in touched)
        if name in touched:
            assert weight.norm().item() == pytest.approx(norm, rel=1e-6)
            is_simplex = torch.allclose(nearest_simplex_weight(weight), weight, atol=1e-6)
            assert is_simplex == (variant in ("w1", "w2", "both", "simplex-init-trainable"))
    drawn = [weight.flatten().sort().values for (_, name), weight in found.items() if name in touched]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    other = matrices(tiny(variant, seed=1))
    assert not any(torch.equal(weight, other[key]) for key, weight in found.items())


@pytest.mark.parametrize("variant", FIXED)
def test_fixed_matrices_are_the_same_bits_after_training(variant, corpus, tmp_path, monkeypatch):
    network, timing, *_ = train(variant, corpus, tmp_path, monkeypatch)
    before = tiny(variant)
    if variant == "w2-scalar":
        for ours, theirs in zip(network.blocks, before.blocks, strict=True):
            assert torch.equal(ours.feed_forward.w2.simplex, theirs.feed_forward.w2.simplex)
            assert ours.feed_forward.w2.scale != theirs.feed_forward.w2.scale
    else:
        learned = matrices(tiny("baseline"))
        for key, weight in matrices(before).items():
            fixed = not torch.equal(weight, learned[key])
            assert torch.equal(weight, matrices(network)[key]) == fixed
    assert timing["trainable_parameters"] == trainable(before)


@pytest.mark.parametrize(("variant", "locked"), [("aligned-w2", {"w2"}), ("aligned-both", {"w1", "w2"})])
def test_aligned_matrices_are_locked_to_the_nearest_simplex_after_a_third(
    variant, locked, corpus, tmp_path, monkeypatch
):
    taken = {}
    lock = language_model.lock

    def spy(network, names, optimizer):
        taken["step"] = {int(state["step"]) for state in optimizer.state.values()}
        taken["learned"] = {key: weight.detach().clone() for key, weight in matrices(network).items()}
        lock(network, names, optimizer)
        taken["trained"] = {p for group in optimizer.param_groups for p in group["params"]}

    monkeypatch.setattr(language_model, "lock", spy)
    network, timing, *_ = train(variant, corpus, tmp_path, monkeypatch)
    assert taken["step"] == {2}
    for key, weight in matrices(network).items():
        expected = nearest_simplex_weight(taken["learned"][key])
        assert torch.allclose(weight, expected, rtol=0, atol=1e-6) == (key[1] in locked)
        assert weight.requires_grad == (key[1] not in locked)
        assert weight.grad is None or weight.requires_grad
    trained = [p for p in network.parameters() if p.requires_grad]
    assert taken["trained"] == set(trained)
    assert timing["trainable_parameters"] == sum(p.numel() for p in trained)
    assert timing["trainable_parameters"] == trainable(tiny("baseline")) - len(locked) * 2 * 32 * 128
    # Two float32 averages of each entry, and a float32 count of steps for each tensor.
    assert timing["optimizer_bytes"] == 8 * timing["trainable_parameters"] + 4 * len(trained)
    # What the report computes for the locked is what the baseline's optimiser holds beside.
    of_baseline = 8 * trainable(tiny("baseline")) + 4 * sum(1 for _ in tiny("baseline").parameters())
    assert timing["optimizer_bytes"] + timing["optimizer_bytes_saved"] == of_baseline


def test_a_training_leaves_records_and_timing_and_comes_out_the_same_again(corpus, tmp_path, monkeypatch):
    network, timing, records, score = train("baseline", corpus, tmp_path, monkeypatch)
    assert [(r.step, r.split, r.metric) for r in records] == [(6, "train", "loss"), (6, "test", "bits_per_byte")]
    assert {(r.run, r.seed) for r in records} == {("baseline", 0)}
    assert records.value("bits_per_byte") == score == bits_per_byte(network, corpus.test)
    assert not any(torch.equal(weight, matrices(tiny("baseline"))[key]) for key, weight in matrices(network).items())
    assert timing.keys() == {
        "fit_seconds", "cpu_seconds", "steps", "blocks", "trainable_parameters", "device",
        "optimizer_bytes", "optimizer_bytes_saved",
    }  # fmt: skip
    assert fit("baseline", 0, TINY, corpus, tmp_path / "again")[0] == score
    assert fit("baseline", 1, TINY, corpus, tmp_path / "other")[0] != score


def test_a_seed_decides_the_windows():
    text = torch.arange(1000, dtype=torch.int16)
    found, again, other = Windows(text, 5, 3, 0), Windows(text, 5, 3, 0), Windows(text, 5, 3, 1)
    assert [tuple(found[i].shape) for i in range(len(found))] == [(3, 129)] * 5
    assert all(torch.equal(found[i], again[i]) and not torch.equal(found[i], other[i]) for i in range(5))
    assert all((found[i].diff(dim=1) == 1).all() for i in range(5))
    assert Windows(text[:129], 2, 1, 0)[1].tolist() == [list(range(129))]


def test_the_learning_rate_warms_up_and_ends_at_five_percent():
    rates = [rate(step, 101) for step in range(101)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert rates[6] == pytest.approx(1.0)
    assert rates[53] == pytest.approx(0.525)
    assert rates[-1] == pytest.approx(0.05)


def test_a_network_that_knows_nothing_needs_eight_bits_and_windows_reach_from_end_to_end(monkeypatch):
    network = tiny("no-ff")
    torch.nn.init.zeros_(network.output.weight)
    seen = []

    def spy(text, starts):
        seen.extend(starts.tolist())
        return windows_at(text, starts)

    monkeypatch.setattr(language_model, "windows_at", spy)
    assert bits_per_byte(network, torch.zeros(129 + 190, dtype=torch.uint8), batch_size=7) == pytest.approx(8.0)
    assert seen == list(range(0, 191, 10))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"blocks": 0}, "blocks"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"gain": -1.0}, "gain"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ],
)
def test_settings_out_of_range_are_refused(changes, name):
    with pytest.raises(ArgumentError, match=name):
        Settings(**changes)


SMALL = ["--steps", "2", "--width", "32", "--blocks", "1", "--batch_size", "1"]


def run(out, *options):
    return language_model.main(["run", "--out", str(out), *SMALL, *options])


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    whole, trained = language_model.fit, []

    def killed(variant, seed, *arguments):
        trained.append((variant, seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return whole(variant, seed, *arguments)

    monkeypatch.setattr(language_model, "fit", killed)
    options = ["--variants", "baseline,w2", "--seeds", "3,4"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", *options)
    assert trained == [("baseline", 3), ("w2", 3), ("baseline", 4)]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/seed-*/*.json*")}
    assert run(tmp_path / "out", *options) == 0
    assert trained[3:] == [("baseline", 4), ("w2", 4)]
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    printed = capsys.readouterr().out
    assert "w2, seed 3: finished before" in printed
    assert "baseline: 1 blocks, 33,248 trainable parameters" in printed
    config = yaml.safe_load((tmp_path / "out" / CONFIG_FILE).read_text())
    assert (config["steps"], config["gain"]) == (2, None)
    assert config["python"] == json.loads((tmp_path / "out" / VERSIONS_FILE).read_text())["python"]


def test_parameters_are_chosen_on_validation(tmp_path, capsys):
    assert run(tmp_path / "v", "--variants", "no-ff", "--seeds", "0", "--validation_fraction", "0.1") == 0
    records = Records.read(tmp_path / "v" / "no-ff" / "seed-0" / RECORDS_FILE)
    assert records.unique("split") == ["train", "validation"]
    assert language_model.main(["table", str(tmp_path / "v")]) == 0
    assert "validation bits/byte" in capsys.readouterr().out


def write(out, variant, seed, bits, seconds=None, **timing):
    """One training by hand; unfinished without ``seconds``."""
    directory = out / variant / f"seed-{seed}"
    directory.mkdir(parents=True)
    records = Records()
    records.add("loss", 1.0, epoch=0, step=100, split="train")
    records.add("bits_per_byte", bits, epoch=0, step=200, split="test")
    records.save(directory / RECORDS_FILE)
    if seconds is not None:
        told = {"fit_seconds": seconds, "cpu_seconds": seconds / 2, "steps": 200, "device": "cpu"}
        (directory / TIMING_FILE).write_text(json.dumps(told | timing))


@pytest.fixture
def study(tmp_path):
    out = tmp_path / "study"
    for seed, (baseline, w2, no_ff) in enumerate([(2.0, 2.1, 3.0), (2.2, 2.2, 3.0)]):
        write(out, "w2", seed, w2, 12.0, trainable_parameters=613_120, optimizer_bytes=4_905_172)
        write(out, "no-ff", seed, no_ff, 6.0, trainable_parameters=347_392, optimizer_bytes=2_779_280)
        write(out, "baseline", seed, baseline, 20.0 + 4 * seed, trainable_parameters=875_264, optimizer_bytes=7_002_320)
    write(out, "both", 1, 2.4, 10.0, trainable_parameters=350_976, optimizer_bytes=2_808_048)
    return out


def cells(capsys, *arguments):
    assert language_model.main(["table", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    return printed, {name: dict(zip(rows[0][1:], values, strict=True)) for name, *values in rows[2:]}


def test_the_table(study, capsys):
    _, rows = cells(capsys, study)
    assert list(rows) == ["baseline", "no-ff", "w2", "both"]
    # t(0.975, 1) / sqrt(2) times the deviation of two values is 6.353 times their distance.
    assert rows["w2"] == {
        "seeds": "2",
        "test bits/byte": "2.150 ± 0.635",
        "minus baseline": "0.050 ± 0.635",
        "FF kept %": "95 ± 64",
        "trainable parameters": "613,120",
        "optimiser bytes": "4,905,172",
        "ms/step": "60.0",
        "CPU ms/step": "30.0",
    }
    assert rows["baseline"]["minus baseline"] == "–"
    assert (rows["baseline"]["FF kept %"], rows["no-ff"]["FF kept %"]) == ("100 ± 0", "0 ± 0")
    assert rows["baseline"]["ms/step"] == "110.0"
    assert rows["no-ff"]["test bits/byte"] == "3.000 ± 0.000"
    # Only seed 1 has a partner: (3.0 - 2.4) / (3.0 - 2.2).
    assert (rows["both"]["minus baseline"], rows["both"]["FF kept %"]) == ("0.200", "75")


def test_the_front_is_what_nothing_cheaper_beats():
    assert pareto([(3.0, 1.0), (1.0, 2.0), (2.0, 2.5), (1.0, 3.0), (4.0, 1.0)]) == [(1.0, 2.0), (3.0, 1.0)]
