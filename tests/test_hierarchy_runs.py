"""A hierarchy on its way from a file or the data through recipe, training and records to the tables."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import TensorDataset

from tests.training.models import quiet, trainer
from tightframe.cli import main
from tightframe.config import Method, Part, Recipe, build
from tightframe.data import ClassificationData
from tightframe.errors import ConfigError, DataFileError
from tightframe.frames import hierarchy_aware_frame
from tightframe.functional import severity_metrics
from tightframe.hierarchy import Tree
from tightframe.nn import CosineGramLoss
from tightframe.records import Records
from tightframe.report import build_report
from tightframe.report.history import is_detail
from tightframe.report.tables import leaderboard
from tightframe.runs import RunDirectory, open_directory
from tightframe.training import RecordWriter, fit, make_loader

pytestmark = quiet

K, D = 4, 6
PATHS = (("E", "A"), ("E", "B"), ("F", "C"), ("F", "D"))
EDGES = "# by hand\nR\tE\nR\tF\nE\tA\nE\tB\nF\tC\nF\tD\nR\tG\nG\tnobody\n"
OTHER = "R E\nR F\nE A\nE C\nF B\nF D\n"


def data(paths=PATHS):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % K
    inputs = torch.randn(48, D, generator=generator) + torch.eye(K, D)[labels]
    inputs[1] = inputs[0]  # of another class: whatever is trained makes a mistake
    part = TensorDataset(inputs, labels)
    return ClassificationData(part, None, part, K, tuple("ABCD"), labels.bincount(), paths)


def recipe(loss=None, classifier=None, **changes):
    method = Method(classifier or Part("LinearClassifier"), loss or Part("CrossEntropyLoss"))
    plain = Recipe(
        data=Part("Digits"),
        backbone=Part("MLP", {"widths": [8, 4]}),
        methods={"mine": method},
        optimizer=Part("SGD", {"lr": 0.1}),
        epochs=2,
        batch_size=16,
    )
    return replace(plain, **changes)


HAFRAME = Part(
    "FrameClassifier", {"frame": {"name": "hierarchy_aware_frame", "args": {"gamma": 2.0}}, "normalize": False}
)


def distances(*rows):
    return torch.tensor(rows, dtype=torch.float64)


REAL = distances([0, 1, 2, 2], [1, 0, 2, 2], [2, 2, 0, 1], [2, 2, 1, 0])
SWAPPED = distances([0, 2, 1, 2], [2, 0, 2, 1], [1, 2, 0, 2], [2, 1, 2, 0])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree.tsv").write_text(EDGES)
    (tmp_path / "other.txt").write_text(OTHER)
    return tmp_path


# --- which hierarchy ---


def test_the_hierarchy_of_the_data():
    assert torch.equal(build(recipe(), [], data=data()).tree.distances(), REAL)
    assert build(recipe(), [], data=data(paths=None)).tree is None


def test_a_file_comes_before_the_data_and_may_know_more(folder):
    assert torch.equal(build(recipe(hierarchy="tree.tsv"), [], data=data(paths=None)).tree.distances(), REAL)
    assert torch.equal(build(recipe(hierarchy="other.txt"), [], data=data()).tree.distances(), SWAPPED)


def test_a_file_that_lacks_a_class(folder):
    (folder / "few.tsv").write_text("R\tA\nR\tB\nR\tC\n")
    with pytest.raises(DataFileError, match=r"few\.tsv: classes must name nodes of the hierarchy, got 'D'"):
        build(recipe(hierarchy="few.tsv"), [], data=data()).module("mine", 0)


def test_classifiers_and_losses_get_tree_and_distances(folder):
    chosen = recipe(Part("CosineGramLoss", {"alpha": 0.4}), HAFRAME)
    module = build(chosen, [], data=data()).module("mine", 0)
    expected = hierarchy_aware_frame(REAL, 4, gamma=2.0).gram
    torch.testing.assert_close(module.classifier.weight @ module.classifier.weight.T, expected, atol=1e-6, rtol=0)
    swapped = build(replace(chosen, hierarchy="other.txt"), [], data=data()).module("mine", 0)
    order = [0, 2, 1, 3]
    gram = swapped.classifier.weight @ swapped.classifier.weight.T
    torch.testing.assert_close(gram, expected[order][:, order].float(), atol=1e-6, rtol=0)
    hxe = build(recipe(Part("HXELoss", {"alpha": 0.1})), [], data=data()).module("mine", 0).loss
    assert hxe(torch.zeros(2, 4), torch.tensor([0, 3])).isfinite()


def test_a_method_with_another_hierarchy_is_judged_by_the_same(folder):
    chosen = recipe(classifier=HAFRAME)
    real = build(chosen, [], data=data()).module("mine", 0)
    chosen.methods["mine"].hierarchy = "other.txt"
    swapped = build(chosen, [], data=data()).module("mine", 0)
    order = [0, 2, 1, 3]
    grams = [module.classifier.weight @ module.classifier.weight.T for module in (swapped, real)]
    torch.testing.assert_close(grams[0], grams[1][order][:, order], atol=1e-6, rtol=0)
    assert torch.equal(swapped.severity[0].distances, REAL)


def test_without_a_hierarchy_they_cannot_be_bound():
    with pytest.raises(ConfigError, match="HXELoss"):
        build(recipe(Part("HXELoss", {"alpha": 0.1})), [], data=data(paths=None)).module("mine", 0)


@pytest.mark.parametrize(("dim", "width"), [(None, 4), ("classes", 4), ("classes-1", 3), ("nodes", 6), (5, 5)])
def test_the_feature_dimension_of_a_method(dim, width):
    chosen = recipe(backbone=Part("TokenMean", {"vocabulary": 9, "dim": "auto"}))
    chosen.methods["mine"].dim = dim
    module = build(chosen, [], data=data()).module("mine", 0)
    assert module.classifier.in_features == module.backbone.out_features == width


@pytest.mark.parametrize(
    ("dim", "text"), [("wide", "one of classes, classes-1, nodes, got 'wide'"), (0, ">= 1"), (7, "is 7")]
)
def test_a_feature_dimension_that_cannot_be(dim, text):
    chosen = recipe()
    chosen.methods["mine"].dim = dim
    with pytest.raises(ConfigError, match=rf"methods\.mine\.dim .*{text}"):
        build(chosen, [], data=data()).module("mine", 0)


# --- training ---


def test_evaluation_logs_the_severity_of_the_network(tmp_path):
    module = build(recipe(), [], data=data()).module("mine", 0)
    fitted = trainer(RecordWriter(tmp_path / "records.jsonl"), max_epochs=2)
    fitted.fit(module, make_loader(data().train, 16, seed=0), [make_loader(data().test, 20)])
    records = Records.read(tmp_path / "records.jsonl").where(split="test", epoch=2)
    inputs, labels = data().test.tensors
    with torch.no_grad():
        values = severity_metrics(module.eval()(inputs), labels, REAL)
    for name, value in values.items():
        assert records.value(name) == pytest.approx(value.mean().item(), abs=1e-9), name
    mistakes = values["error"].mean()
    assert mistakes > 0
    assert records.value("mistake_severity") == pytest.approx(
        (values["hierarchical_distance@1"].mean() / mistakes).item()
    )
    assert records.value("accuracy") == pytest.approx(1 - mistakes.item(), abs=1e-6)
    assert records.value("hops.tree-order") >= records.value("hops")
    assert len(Records.read(tmp_path / "records.jsonl").where(metric="error.crm")) == 2


def test_no_severity_without_a_hierarchy(tmp_path):
    module = build(recipe(), [], data=data(paths=None)).module("mine", 0)
    fitted = trainer(max_epochs=1)
    fitted.fit(module, make_loader(data().train, 16, seed=0), [make_loader(data().test, 20)])
    assert sorted(fitted.callback_metrics) == [
        *(f"test/{name}" for name in ("accuracy", "class_mean_accuracy", "loss")),
        "train/accuracy",
        "train/loss",
    ]


def test_the_schedule_of_the_angles_follows_the_epochs():
    loss = Part("CosineGramLoss", {"schedule": "rising", "epochs": "auto"})
    module = build(recipe(loss), [], data=data()).module("mine", 0)
    assert isinstance(module.loss, CosineGramLoss)
    weights = []
    original = module.training_step
    module.training_step = lambda *args: weights.append(module.loss.weights) or original(*args)
    trainer(max_epochs=2).fit(module, make_loader(data().train, 16, seed=0), [make_loader(data().test, 20)])
    assert weights == [(1.0, 0.0)] * 3 + [(0.5, 0.5)] * 3


# --- tables ---


def test_a_leaderboard_shows_the_main_numbers_of_a_hierarchy():
    records = Records()
    shown = {"accuracy": 0.7, "mistake_severity": 2.0, "hierarchical_distance@5": 1.5, "hops": 0.6}
    for name, value in {**shown, "error": 0.3, "error.crm": 0.3, "hops@5": 0.4, "concordance": 0.8}.items():
        records.add(name, value, run="mine", epoch=1, split="test")
    columns = [column.name for column in leaderboard(records).columns]
    assert columns == ["test.accuracy", "test.error", *(f"test.{name}" for name in list(shown)[1:])]
    assert is_detail("hops.crm")
    assert not is_detail("class_mean_accuracy")


def test_the_report_shows_the_tree(folder, monkeypatch):
    monkeypatch.setattr("tightframe.report.build.write_figures", lambda *args: None)  # which take seconds
    names = ("<b>", "B", "C", "D")
    known = replace(data(paths=(("E", "<b>"), ("E", "B"), ("F", "sub", "C"), ("F", "D"))), class_names=names)
    experiment = build(recipe(), [], data=known)
    open_directory(folder / "runs", {}, class_names=names, trees=experiment.trees, sources={})
    module = experiment.module("mine", 0)
    fit(
        module, known.train, {"test": known.test}, folder / "runs" / "mine" / "seed-0", run="mine", seed=0, epochs=1,
        batch_size=16,
    )  # fmt: skip
    directory = RunDirectory.read(folder / "runs")
    assert torch.equal(directory.tree.distances(), Tree.from_paths(known.paths).distances())
    page = build_report(folder / "runs").read_text()
    section = page[page.index('<section id="hierarchy">') : page.index('<section id="trainings">')]
    assert [
        section.index(text) for text in ("root <small>4", "E <small>2", "&lt;b&gt;, B", "F <small>2", "sub <small>1")
    ]
    assert "<b>" not in section
    (folder / "runs" / "hierarchy.json").write_text('{"parents": [0')
    assert RunDirectory.read(folder / "runs").tree is None
    assert '<section id="hierarchy">' not in build_report(folder / "runs").read_text()


# --- tightframe frame ---


def test_a_frame_of_a_file_written_by_hand(folder, capsys):
    (folder / "pets.yaml").write_text("pets: {fur: [cat, dog], shell: [turtle, snail]}\n")
    main(["frame", "--hierarchy", "pets.yaml", "--out", "out/frame.safetensors", "--gamma", "2.0", "--seed", "3"])
    with safe_open("out/frame.safetensors", "pt") as file:
        frame, gram, stored = (file.get_tensor(name) for name in ("frame", "gram", "distances"))
        facts = file.metadata()
    assert torch.equal(stored, REAL)
    torch.testing.assert_close(frame @ frame.T, gram)
    expected = hierarchy_aware_frame(REAL, gamma=2.0, generator=torch.Generator().manual_seed(3))
    assert torch.equal(frame, expected.frame)
    assert facts["classes"] == '["cat", "dog", "turtle", "snail"]'
    assert float(facts["asymptote"]) == pytest.approx(-0.6938745, abs=1e-7)
    out = capsys.readouterr().out
    assert str(Tree.read("pets.yaml")) in out
    assert "4 classes in 4 dimensions" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--hierarchy", "none.tsv", "--out", "f.safetensors"], "none.tsv"),
        (["--hierarchy", "other.txt", "--out", "f.npz"], "--out must end in .safetensors"),
        (["--hierarchy", "other.txt", "--out", "f.safetensors", "--gamma", "-1"], "gamma must be"),
        (["--hierarchy", "other.txt", "--out", "f.safetensors", "--asymptote", "lowest"], "asymptote must be"),
        (["--hierarchy", "other.txt", "--out", "f.safetensors", "--dim", "0"], "dim must be"),
        (["--hierarchy", "other.txt", "--out", "other.txt/f.safetensors"], "cannot be written"),
        (["--out", "f.safetensors"], "hierarchy"),
    ],
)
def test_what_frame_refuses_in_one_line(folder, capsys, arguments, text):
    with pytest.raises(SystemExit) as caught:
        main(["frame", *arguments])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1
    assert not (folder / "f.safetensors").exists()


def test_the_given_asymptote_and_dimension(folder, capsys):
    main(["frame", "--hierarchy", "tree.tsv", "--out", "f.safetensors", "--asymptote", "0.1", "--dim", "3"])
    with safe_open("f.safetensors", "pt") as file:
        assert file.get_tensor("frame").shape == (5, 3)
        assert float(file.metadata()["asymptote"]) == 0.1
        assert float(file.metadata()["error"]) > 1e-3
