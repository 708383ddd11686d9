import re

import pytest

from tightframe import cli
from tightframe.cli.theory import PROBLEMS, make_problem
from tightframe.errors import ArgumentError, ConfigError
from tightframe.ufm import CrossEntropyUFM, DeepUFM, LayerPeeled

PENALTIES = {"weight_decay": 0.01, "feature_decay": 0.02}
OF_EACH = {
    "cross-entropy": "--weight_decay 0.01 --feature_decay 0.01",
    "mse": "--weight_decay 0.01 --feature_decay 0.01 --bias_decay 0.1",
    "layer-peeled": "--weight_budget 1 --feature_budget 2",
    "ulpm": "",
    "max-margin": "",
    "relu": "--weight_decay 0.01 --feature_decay 0.01",
    "deep-cross-entropy": "--decays [0.001,0.001,0.001]",
    "deep-mse": "--decays [0.01,0.01,0.01]",
}


def theory(capsys, text):
    cli.main(["theory", *text.split()])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_model_is_described(name, capsys):
    out = theory(capsys, f"{name} --classes 3 --samples 1 {OF_EACH[name]}")
    for words in ("closed form", "objective", "lower bound", "global minimum", "NC2 simplex angle", "certificate:"):
        assert words in out
    assert ("solved" in out) == (name != "max-margin")
    row = next(line for line in out.splitlines() if line.strip().startswith("global minimum"))
    assert row.split()[2] == ("not" if name == "deep-cross-entropy" else "proved")


def test_closed_form_and_solver_agree_and_the_gram_matrices_are_drawn(tmp_path, capsys):
    text = f"cross-entropy --counts [3,3,3] --weight_decay 0.01 --feature_decay 0.01 --plot {tmp_path / 'g.svg'}"
    out = theory(capsys, text)
    closed, solved = re.search(r"objective +(\S+) +(\S+)", out).groups()
    assert float(closed) == pytest.approx(float(solved), rel=1e-9)
    assert "class means, H H" in (tmp_path / "g.svg").read_text()


def test_too_few_dimensions_leave_the_solver(capsys):
    out = theory(capsys, "cross-entropy --classes 4 --dim 2 --weight_decay 0.001 --feature_decay 0.001")
    assert "no closed form: dim must be at least 3" in out
    assert "solved: best of" in out


def test_a_model_of_which_nothing_is_known_is_solved(capsys):
    out = theory(capsys, "deep-cross-entropy --counts [3,2] --decays [0.01,0.01,0.01]")
    assert "no closed form: counts must be equal" in out
    assert "solved: best of" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing --classes 3", "PROBLEM must be one of"),
        ("mse --classes 3 --weight_decay 0.1", "mse needs --feature_decay; it takes --counts, --dim, --weight_decay"),
        ("ulpm --classes 3 --weight_decay 0.1", "--weight_decay is not an option of ulpm; it takes --counts, --dim"),
        ("deep-mse --classes 3 --decays [0.1]", "decays must be of the features and at least one matrix"),
        ("ulpm", "give --counts"),
        ("ulpm --counts [1,2] --classes 3", "--counts are of 2 classes, but --classes is 3"),
        ("ulpm --counts [1,0]", "counts must be integers >= 1, got 0 for class 1"),
        ("ulpm --classes 1", "--classes must be an integer >= 2"),
        ("ulpm name --classes 3", "name"),
        ("ulpm --classes 3 --seed -1", "--seed must be an integer >= 0"),
        ("ulpm --classes 3 --plot x.pdf", "x.pdf"),
    ],
)
def test_wrong_input_is_one_line(text, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["theory", *text.split()])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_problems_by_name():
    shape = {"counts": None, "classes": 3, "samples": 4, "dim": None}
    assert make_problem("cross-entropy", **shape, options=PENALTIES | {"bias_decay": None}) == CrossEntropyUFM(
        (4, 4, 4), 3, **PENALTIES
    )
    deep = make_problem("deep-mse", **shape | {"dim": 7}, options={"decays": [0.1, 0.2, 0.3], "relu": True})
    assert deep == DeepUFM((4, 4, 4), 7, (0.1, 0.2, 0.3), "mse", relu=True)
    budgets = {"weight_budget": 1.0, "feature_budget": 2.0, "sample_weights": [0.1, 0.2]}
    peeled = make_problem("layer-peeled", **shape | {"counts": [5, 1], "classes": None}, options=budgets)
    assert peeled == LayerPeeled((5, 1), 2, 1.0, 2.0, (0.1, 0.2))
    with pytest.raises(ConfigError, match="--loss is not an option of deep-mse"):
        make_problem("deep-mse", **shape, options={"decays": [0.1, 0.2], "loss": "cross-entropy"})
    with pytest.raises(ArgumentError, match="weight_decay"):
        make_problem("mse", **shape, options=PENALTIES | {"weight_decay": 0.0})
