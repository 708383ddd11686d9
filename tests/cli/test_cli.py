import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

from tests.conversion.material import recipe as small_recipe
from tests.conversion.material import trained
from tests.training.models import quiet
from tightframe import __version__, cli
from tightframe.cli import main, report, train
from tightframe.config import shipped_recipes
from tightframe.records import Records
from tightframe.runs.lock import hold
from tightframe.surgery import convert as conversion

pytestmark = quiet
DIGITS = shipped_recipes()["digits"]
RECIPE = DIGITS.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopped(arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def printed(arguments, capsys):
    main(arguments)
    return capsys.readouterr().out


def written(name, text):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


# --- help ---


def test_help_waits_for_no_library():
    program = """
import sys
from tightframe.cli import main
for command in ([], ["compare"], ["train"], ["report"], ["recipes"], ["frame"], ["convert"]):
    try:
        main([*command, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
main(["recipes", "list"])
heavy = {"torch", "lightning", "pytorch_lightning", "sklearn", "pandas", "matplotlib", "plotly", "torchmetrics"}
print("LOADED", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    for word in ("compare", "--num_seeds", "--method", "--epochs", "--truncate", "stdlib"):
        assert word in done.stdout


def test_the_command_is_this_function():
    (command,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "tightframe"]
    assert command.load() is main


def test_version(capsys):
    assert stopped(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"tightframe {__version__}"


def test_every_command_has_one_line_of_help(capsys):
    assert stopped(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {text}" in shown for name, text in cli.COMMANDS.items())


def test_python_m(capsys):
    done = subprocess.run([sys.executable, "-m", "tightframe", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"tightframe {__version__}"


def test_a_core_install_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(cli, "EXTRA", ("yaml", "no_such_library"))
    for arguments in (["--version"], ["compare", "digits"], ["report", "."]):
        (line,) = refused(arguments, capsys).splitlines()
        assert line == "tightframe: error: the command line needs no_such_library; run: pip install 'tightframe[cli]'"


def test_a_second_process_is_told_who_trains(capsys):
    with hold(Path("runs", "learned", "seed-0")):  # a lock that is opened again is another one, whoever opens it
        (line,) = refused(["train", "digits", "--epochs", "1"], capsys).splitlines()
    assert re.search(f"learned/seed-0 is being written by process {os.getpid()} on .*; wait for it", line)


# --- recipes ---


def test_recipes_are_listed(capsys):
    lines = printed(["recipes", "list"], capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(len(line.split()) > 5 for line in lines)


def test_a_recipe_is_shown_as_it_is(capsys):
    assert printed(["recipes", "show", "digits"], capsys) == DIGITS.read_text(encoding="utf-8")


def test_a_recipe_is_copied_once(capsys, folder):
    assert printed(["recipes", "copy", "digits"], capsys) == "digits.yaml\n"
    assert (folder / "digits.yaml").read_bytes() == DIGITS.read_bytes()
    assert stopped(["recipes", "copy", "digits"]) == 2
    assert "digits.yaml exists here already" in capsys.readouterr().err


# --- options ---

PLAIN = {"name": "CrossEntropyLoss", "args": {}}


def config(arguments, capsys):
    """The configuration that a command would run."""
    assert stopped([*arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_configuration_that_is_printed_is_the_recipe(capsys, folder):
    shown = config(["compare", "digits"], capsys)
    recipe = yaml.safe_load(RECIPE)
    for key in ("epochs", "batch_size", "num_threads", "collapse"):
        assert shown[key] == recipe[key]
    assert shown["data"]["name"] == "Digits"
    assert list(shown["methods"]) == list(recipe["methods"])
    assert shown["num_seeds"] == 3
    written("again.yaml", yaml.safe_dump(shown))
    assert config(["compare", "again.yaml"], capsys) == shown


OPTIONS = [
    ("--epochs", "2", ["epochs"], 2),
    ("--seed", "7", ["seed"], 7),
    ("--mixup_alpha", "0.5", ["mixup_alpha"], 0.5),
    ("--data.name", "StdlibModules", ["data", "name"], "StdlibModules"),
    ("--data.args.imbalance", "0.1", ["data", "args", "imbalance"], 0.1),
    ("--backbone.args.widths", "[32, 16]", ["backbone", "args", "widths"], [32, 16]),
    ("--optimizer.args.lr", "0.2", ["optimizer", "args", "lr"], 0.2),
    ("--scheduler.name", "StepLR", ["scheduler", "name"], "StepLR"),
    ("--collapse.every_n_epochs", "2", ["collapse", "every_n_epochs"], 2),
    ("--collapse.layers", "[backbone.3]", ["collapse", "layers"], ["backbone.3"]),
    ("--trainer.precision", "bf16-mixed", ["trainer", "precision"], "bf16-mixed"),
    ("--methods.learned.loss.name", "MSELoss", ["methods", "learned", "loss", "name"], "MSELoss"),
    (
        "--methods.learned.classifier.args",
        '{"bias": false}',
        ["methods", "learned", "classifier", "args", "bias"],
        False,
    ),
]


def test_every_key_can_be_set_by_its_dotted_name(capsys):
    given = [word for option, value, _, _ in OPTIONS for word in (option, value)]
    shown = config(["train", "digits", *given], capsys)
    unset = {"dim": None, "hierarchy": None, "adaptive": None, "etf_transformer": None, "backbone": {}}
    untouched = yaml.safe_load(RECIPE)["methods"]["etf-canonical"] | {"loss": PLAIN, **unset}
    assert shown["methods"]["etf-canonical"] == untouched
    for _, _, path, expected in OPTIONS:
        found = shown
        for key in path:
            found = found[key]
        assert found == expected
    assert config(["train", "digits", "--scheduler", "null"], capsys)["scheduler"] is None


# --- what runs ---


def test_compare_trains_every_method_under_every_seed_and_reports(folder, capsys, monkeypatch):
    small = yaml.safe_load(RECIPE) | {"epochs": 1, "backbone": {"name": "MLP", "args": {"widths": [16]}}}
    small["methods"] = {name: small["methods"][name] for name in ("learned", "etf-canonical")}
    recipe = written("small.yaml", yaml.safe_dump(small))
    command = ["compare", recipe, "--out", "here", "--seed", "3", "--num_seeds", "2"]
    output = printed(command, capsys)
    runs = sorted(p.relative_to(folder / "here").as_posix() for p in (folder / "here").glob("*/seed-*"))
    assert runs == ["etf-canonical/seed-3", "etf-canonical/seed-4", "learned/seed-3", "learned/seed-4"]
    assert "learned" in output
    assert "etf-canonical" in output
    assert output.strip().splitlines()[-1].startswith("report: ")
    assert output.strip().endswith("here/report.html")
    records = Records.read("here/learned/seed-3/records.jsonl")
    assert {(r.run, r.seed) for r in records} == {("learned", 3)}
    assert records.unique("epoch") == [0, 1]
    timing = json.loads((folder / "here" / "etf-canonical" / "seed-4" / "timing.json").read_text())
    assert timing["classifier_parameters"] == 0
    assert timing["epochs"] == 1
    (folder / "here" / "report.html").unlink()
    monkeypatch.setattr("tightframe.report.build.write_figures", lambda *args: None)  # which take seconds
    assert printed(["report", "here"], capsys) == output
    assert (folder / "here" / "report.html").stat().st_size > 10_000


# --- how it ends ---

SMALL = ["digits", "--backbone.args.widths", "[8]", "--collapse.every_n_epochs", "100", "--epochs"]
TRAIN = ["train", *SMALL, "2"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; run the same command to resume after the last epoch"),
        (OSError(28, "No space left on device"), 2, "error: .*No space left on device; run the same command to resume"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "broken"), 2, "error: 'utf-8' codec can't decode .*"),
        (MemoryError(), 2, "error: not enough memory; use smaller .*"),
        (RecursionError("depth"), 2, "error: the input is nested too deeply: depth"),
        (BrokenPipeError(), 2, "error: standard output was closed before everything was written.*"),
        (AttributeError("no\nway"), 1, "unexpected AttributeError: no way; --debug shows where; please report it"),
    ],
)
def test_every_error_is_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(train, "run", lambda **options: (_ for _ in ()).throw(error))
    assert stopped(["train", "digits"]) == code
    assert re.fullmatch(f"tightframe: {line}\n?.*\n", capsys.readouterr().err)
    assert stopped(["train", "--debug", "digits"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_an_output_that_takes_nothing_is_one_line():
    program = "from tightframe.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, "recipes", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program, "recipes", "list"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output was closed" in done.stderr


def test_a_character_that_the_output_lacks_is_replaced(folder, monkeypatch):
    written("tree.tsv", "root\tä\nroot\tλ\n")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    main(["frame", "--hierarchy", "tree.tsv", "--out", "frame.safetensors"])
    assert b"frame.safetensors: 2 classes" in shown.getvalue()


def test_compare_goes_on_with_the_other_methods(folder, capsys, monkeypatch):
    monkeypatch.setattr(report, "run", lambda out: sys.stdout.write("REPORT\n"))
    small = yaml.safe_load(RECIPE) | {"epochs": 1, "backbone": {"name": "MLP", "args": {"widths": [16]}}}
    small["methods"] = {"held": small["methods"]["learned"], "learned": small["methods"]["learned"]}
    recipe = written("small.yaml", yaml.safe_dump(small))
    with hold(Path("runs", "held", "seed-0")):
        assert stopped(["compare", recipe, "--num_seeds", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "REPORT\n"
    last = shown.err.splitlines()[-1]
    assert re.match(
        "tightframe: error: 1 of 2 trainings failed: held, seed 0: ResumeError: .* is being written by", last
    )
    assert (folder / "runs" / "learned" / "seed-0" / "timing.json").exists()


@pytest.mark.parametrize(
    ("limit", "epochs"),
    [
        (["--trainer.max_steps", "30"], 1),
        (["--trainer.max_time", "00:00:00:00"], 1),
        (["--trainer.fast_dev_run", "true"], 0),
    ],
)
def test_a_training_that_a_limit_stops_is_not_finished(folder, capsys, monkeypatch, limit, epochs):
    monkeypatch.setattr(report, "run", lambda out: None)
    main([*TRAIN, *limit])
    assert f"learned, seed 0: stopped by {limit[0][2:]}, not finished" in capsys.readouterr().err
    seed = folder / "runs" / "learned" / "seed-0"
    assert not (seed / "timing.json").exists()
    path = seed / "checkpoints" / "last.ckpt"
    assert (torch.load(path, weights_only=True)["epoch"] + 1 if path.exists() else 0) == epochs
    main(TRAIN)  # the limit is none of the configuration
    assert (seed / "timing.json").exists()
    if not (folder.parent / "whole").exists():
        main([*TRAIN, "--out", str(folder.parent / "whole")])
    whole = folder.parent / "whole" / "learned" / "seed-0" / "records.jsonl"
    assert (seed / "records.jsonl").read_bytes() == whole.read_bytes()


def test_a_training_of_a_part_of_the_batches_is_not_finished(folder, capsys, monkeypatch):
    monkeypatch.setattr(report, "run", lambda out: None)
    main([*TRAIN, "--trainer.limit_train_batches", "2"])
    assert "stopped by trainer.limit_train_batches" in capsys.readouterr().err
    assert not list(folder.glob("runs/*/*/timing.json"))
    (line,) = refused(TRAIN, capsys).splitlines()  # half epochs are not continued by whole ones
    assert "trainer.limit_train_batches differ; choose another --out" in line


# --- recipes of strangers ---


@pytest.mark.parametrize(
    "planted",
    [
        {"data": {"name": "planted.Net"}},
        {"backbone": {"name": "planted.Net"}},
        {
            "backbone": {
                "name": "torch.nn.TransformerEncoderLayer",
                "args": {"d_model": 8, "nhead": 1, "activation": "planted.f"},
            }
        },
        {"methods": {"a": {"classifier": {"name": "FrameClassifier", "args": {"frame": "planted.f"}}}}},
        {"methods": {"a": {"classifier": {"name": "FrameClassifier", "args": {"frame": {"name": "planted.f"}}}}}},
        {"optimizer": {"name": "SGD", "args": {"lr": {"class_path": "planted.Net"}}}},
        {"trainer": {"callbacks": [{"class_path": "planted.Net"}]}},
        {"collapse": {"forward": "planted.f"}},
        {"adaptive": "planted.f"},
        "!!python/object/apply:planted.f []",
    ],
)
def test_a_recipe_of_a_stranger_runs_nothing(folder, capsys, monkeypatch, planted):
    monkeypatch.syspath_prepend(folder)
    written("planted.py", f"open({str(folder / 'ran')!r}, 'w')\nNet = f = None\n")
    whole = {**yaml.safe_load(RECIPE), **planted} if isinstance(planted, dict) else planted
    text = whole if isinstance(whole, str) else yaml.safe_dump(whole)
    written("recipe.yaml", text)
    refused(["train", "recipe.yaml"], capsys)
    seed = folder / "runs" / "a" / "seed-0"
    seed.mkdir(parents=True)
    written("runs/config.yaml", text)
    refused(["convert", str(seed)], capsys)
    refused(["train", "recipe.yaml", "--method", "a"], capsys)
    assert not (folder / "ran").exists()
    assert "planted" not in sys.modules


# --- what is refused ---


def refused(arguments, capsys):
    """What a refused command writes to stderr."""
    assert stopped(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "nosuch"], "recipe must be a .yaml file or one of adaptive-digits, "),
        (["train", "nosuch.yaml"], "nosuch.yaml does not exist"),
        (["train", "digits", "--backbone.name", "MLQ"], "backbone.name: no class or function 'MLQ'"),
        (["train", "digits", "--backbone.name", "no.such.Net"], "no.such.Net, code outside tightframe .*--trust"),
        (["train", "digits", "--trust", "--backbone.name", "no.such.Net"], "no.such cannot be imported"),
        (["train", "--seed", "1", "--config", "digits"], "the recipe comes first"),
        (
            ["train", "digits", "--backbone.name", "CrossEntropyLoss", "--backbone.args", "{}"],
            "no integer out_features",
        ),
        (["train", "digits", "--data.name", "Digit"], "data.name: no class or function 'Digit'"),
        (["train", "digits", "--data.args.imbalanse", "0.1"], "Digits takes no 'imbalanse'"),
        (["train", "digits", "--data.args.imbalance", "fast"], "data.args: .*imbalance"),
        (["train", "digits", "--data.args.imbalance", "7"], "imbalance must be"),
        (["train", "digits", "--backbone.args", "{}"], "backbone.args must set widths for MLP"),
        (["train", "digits", "--backbone.args.widths", "[0]"], "widths must be an integer >= 1"),
        (
            ["train", "digits", "--methods.learned.loss.name", "NoLoss"],
            "learned.loss.name: no class or function 'NoLoss'",
        ),
        (["train", "digits", "--method", "etf"], "--method must be one of learned, .*, got 'etf'"),
        (["train", "digits", "--mixup_alpha", "-1"], "mixup_alpha must be >= 0"),
        (["train", "digits", "--batch_size", "0"], "batch_size must be an integer >= 1"),
        (["train", "digits", "--collapse.every_n_epochs", "0"], "every_n_epochs must be an integer >= 1"),
        (["train", "digits", "--collapse.layers", "[foo]"], "layers must name modules of the model, got 'foo'"),
        (["train", "digits", "--optimizer.args.lr", "fast"], "optimizer.args: .*lr"),
        (["train", "digits", "--trainer.val_check_interval", "1000"], "val_check_interval"),
        (["train", "digits", "--scheduler.name", "StepLR"], "scheduler.args must set step_size"),
        (["train", "digits", "--out", "file"], "file cannot be written"),
        (["train", "digits", "--out", "file/runs"], "file/runs cannot be written"),
        (["compare", "digits", "--num_seeds", "0"], "num_seeds must be an integer >= 1"),
        (["report", "empty"], "at least one row"),
        (["report", "missing"], "no directory"),
        (["report", "file"], "no directory"),
        (["recipes", "show"], "needs the NAME of a recipe"),
        (["recipes", "show", "nosuch"], "got 'nosuch'"),
        (["recipes", "copy", "nosuch"], "got 'nosuch'"),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, arguments, text):
    written("file", "")
    (folder / "empty").mkdir()
    (line,) = refused(arguments, capsys).splitlines()
    assert line.startswith("tightframe: error: ")
    assert re.search(text, line)


OF_THE_PARSER = [
    ([], "command"),
    (["frob"], "frob"),
    (["train"], "data.name"),
    (["train", "digits", "--foo", "3"], "--foo"),
    (["train", "digits", "--epochs", "two"], "two"),
    (["train", "--epochs", "1", "digits"], "digits"),
    (["recipes", "frob"], "frob"),
    (["report"], "out"),
    (["train", "key.yaml"], "colour"),
    (["train", "method.yaml"], "colour"),
    (["train", "broken.yaml"], "pars"),
    (["train", "list.yaml"], "config"),
    (["train", "empty.yaml"], "empty.yaml cannot be read as YAML (it is empty)"),
    (["train", "missing.yaml"], "epochs"),
]


def recipes_with_faults():
    written("key.yaml", RECIPE + "colour: red\n")
    written("method.yaml", RECIPE.replace("  learned:\n", "  learned:\n    colour: red\n"))
    written("broken.yaml", "a: [1,\n b: }\n")
    written("list.yaml", "- 1\n")
    written("empty.yaml", "")
    written("missing.yaml", RECIPE.replace("epochs: 40", ""))


@pytest.mark.parametrize(("arguments", "text"), OF_THE_PARSER)
def test_what_the_parser_refuses(capsys, arguments, text):
    recipes_with_faults()
    (line,) = refused(arguments, capsys).splitlines()
    assert line.startswith("tightframe: error: ")
    assert text in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "latin.yaml"], "latin.yaml"),
        (["train", "digits", "--epochs", "0"], "epochs"),
        (["train", "digits", "--epochs", "-1"], "epochs"),
        (["train", "digits", "--seed", "99999999999999"], "seed"),
        (["train", "digits", "--backbone.args.widths", "[]"], "widths"),
        (["train", "digits", "--collapse.every_n_epoch", "3"], "every_n_epoch"),
        (["train", "digits", "--trainer.devicez", "1"], "devicez"),
        (["train", "digits", "--trainer.accelerator", "foo"], "foo"),
        (["train", "digits", "--trainer.max_epochs", "3"], "max_epochs"),
        (["train", "digits", "--trainer.limit_train_batches", "0"], "must leave a batch to train on, got 0"),
        (["train", "digits", "--trainer.enable_checkpointing", "false"], "enable_checkpointing=False"),
        (["train", "digits", "--trainer.logger", "{a: 1}"], "trainer.logger must be true or false in a recipe, got"),
        (["train", "digits", "--collapse.snapshot_dir", "here"], "snapshot_dir"),
        (["train", "digits", "--optimizer.args.lr", "-1"], "learning rate|optimizer"),
        (["train", "token.yaml", "--mixup_alpha", "1"], "mixup"),
    ],
)
def test_wrong_input_without_a_name(folder, capsys, arguments, text):
    (folder / "latin.yaml").write_bytes(b"description: caf\xe9\n")
    (folder / "library").mkdir()
    for module in ("os", "argparse"):
        written(f"library/{module}.py", "x = 1\n" * 4000)
    token = yaml.safe_load(shipped_recipes()["stdlib"].read_text())
    token["data"] = {"name": "StdlibModules", "args": {"root": "library", "min_bytes": 1000}}
    written("token.yaml", yaml.safe_dump(token))
    (line,) = refused(arguments, capsys).splitlines()
    assert re.search(text, line)


def test_a_mistake_in_the_last_method_is_seen_before_the_first_trains(folder, capsys):
    mistaken = RECIPE.replace("name: DotRegressionLoss", "name: DotRegression") + "epochs: 1\n"
    written("mistaken.yaml", mistaken.replace("epochs: 40\n", ""))
    assert "etf-haar-dr.loss.name: no class" in refused(["compare", "mistaken.yaml", "--out", "here"], capsys)
    assert not list((folder / "here").glob("*/seed-*"))


def test_a_mistake_may_be_mended_in_the_same_directory(capsys, monkeypatch):
    reported = []
    monkeypatch.setattr(report, "run", reported.append)
    refused(["train", "digits", "--data.args.imbalanse", "0.1"], capsys)
    main(["train", "digits", "--data.args.imbalance", "0.1", "--epochs", "1", "--backbone.args.widths", "[8]"])
    assert reported == [Path("runs")]


# --- convert ---


CONVERT = ["convert", "runs/vectors/learned/seed-0", "--trust"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Directories of runs by the kind of their inputs."""
    out = tmp_path_factory.mktemp("runs")
    for kind in ("vectors", "tokens"):
        trained(out / kind, small_recipe(kind, epochs=3))
    return out


@pytest.fixture
def runs(finished, folder, monkeypatch):
    monkeypatch.setattr(conversion, "ROUNDS", 2)
    shutil.copytree(finished, folder / "runs")
    return folder / "runs"


@pytest.mark.parametrize(("truncate", "out"), [(False, None), (True, "else/where")])
def test_convert_tabulates_and_writes(runs, capsys, out, truncate):
    name = "truncated" if truncate else "locked"
    command = [
        "convert",
        "runs/vectors/learned/seed-0",
        "--trust",
        "--epsilon",
        "0.9",
        *(["--truncate"] if truncate else []),
    ]
    output = printed([*command, *([] if out is None else ["--out", out])], capsys)
    where = runs / "vectors" / "learned" / "seed-0" / name if out is None else runs.parent / out
    assert sorted(p.name for p in where.iterdir()) == ["conversion.json", "model.safetensors"]
    names = (
        ["whole", "1 backbone.1", "2 backbone.4", "3 backbone.7"] if truncate else ["trained", "3 locked", "batch norm"]
    )
    lines = [line.strip() for line in output.splitlines()]
    for word in names:
        assert sum(line.startswith(word) for line in lines) >= 1
    assert "effective depth 1 of 4 (nearest class mean errs on at most 0.9 of the training part)" in lines
    assert lines[-1].startswith("network: ")
    facts = json.loads((where / "conversion.json").read_text())
    assert facts["run"] == str(runs / "vectors" / "learned" / "seed-0")
    assert ("kind" in facts) is not truncate
    assert facts["truncated"] is truncate


def test_convert_says_where_nothing_is_converted(runs, capsys):
    for options in ([], ["--truncate"]):
        output = printed([*CONVERT, "--epsilon", "0", *options], capsys)
        assert "no effective depth (nearest class mean errs on at most 0 of the training part)" in output
        assert "nothing was converted" in output


def test_convert_takes_the_run_from_anywhere(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs / "vectors" / "learned" / "seed-0")
    assert "3 locked" in printed(
        ["convert", ".", *CONVERT[2:], "--epsilon", "0.9", "--kind", "class-rank", "--gain", "1"], capsys
    )
    assert json.loads((runs / "vectors/learned/seed-0/locked/conversion.json").read_text())["gain"] == 1.0


def test_convert_keeps_layers_and_looks_at_those_that_are_named(runs, capsys):
    run = "runs/vectors/learned/seed-0"
    assert "2 locked" in printed(["convert", run, "--trust", "--epsilon", "0.9", "--keep", "classifier"], capsys)
    assert json.loads((runs / "vectors/learned/seed-0/locked/conversion.json").read_text())["keep"] == ["classifier"]
    output = printed(["convert", run, "--trust", "--truncate", "--layers", "backbone.[17]", "classifier"], capsys)
    assert "2 backbone.7" in output
    assert "3 " not in {line.strip()[:2] for line in output.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["vectors/learned/seed-0", "--keep", "head", "--epsilon", "0.9"], "keep must name modules of the model, got"),
        (["vectors/learned/seed-0", "--layers", "head"], "layers must name modules of the model, got 'head'"),
        (["vectors/learned/seed-0", "--kind", "etf", "--epsilon", "0"], "kind must be one of 'aligned', "),
        (["vectors/learned/seed-0", "--gain", "big"], "gain must be one of 'unit', "),
        (["vectors/learned/seed-0", "--gain", "-1"], "gain"),
        (["vectors/learned/seed-0", "--seed", "-1"], "seed must be an integer >= 0"),
        (["vectors/learned/seed-0", "--epsilon", "1"], "epsilon must be finite and in"),
        (["vectors/learned/seed-0", "--epsilon", "small"], "epsilon"),
        (["vectors/learned/seed-0", "--pooling", "max"], "pooling"),
        (["tokens/learned/seed-0"], "need a pooling: pass 'cls', 'mean'"),
        (["tokens/learned/seed-0", "--truncate"], "need a pooling: pass 'cls', 'mean'"),
        (
            ["nosuch/learned/seed-0"],
            "RUN must be <out>/<method>/seed-<s> beside <out>/config.yaml, but .* does not exist",
        ),
        (["vectors/learned"], "RUN must be"),
        (["vectors"], "RUN must be"),
        (["vectors/other/seed-0"], "RUN must be <out>/<method>/seed-<s> of a method in <out>/config.yaml, got"),
        (["vectors/learned/seed-1"], "last.ckpt does not exist"),
        (["vectors/learned/half"], "RUN must be"),
    ],
)
def test_what_convert_refuses(runs, capsys, arguments, text):
    before = sorted(runs.rglob("*"))
    (line,) = refused(["convert", f"runs/{arguments[0]}", "--trust", *arguments[1:]], capsys).splitlines()
    assert line.startswith("tightframe: error: ")
    assert re.search(text, line)
    assert sorted(runs.rglob("*")) == before


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"- 1", b"a: [1,\n b: }", b"epochs: 3", b"colour: red"])
def test_convert_refuses_a_configuration_that_is_none(runs, capsys, content):
    (runs / "vectors" / "config.yaml").write_bytes(content)
    (line,) = refused(["convert", "runs/vectors/learned/seed-0"], capsys).splitlines()
    assert re.match(r"tightframe: error: .*config\.yaml: .", line)


def test_convert_of_an_earlier_version_says_what_to_do(runs, capsys):
    out = runs / "vectors"
    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("LinearClassifier", "GoneClassifier"))
    (out / "versions.json").write_text("{}")
    (out / "checksums.json").unlink()
    (line,) = refused(CONVERT, capsys).splitlines()
    assert re.search(
        "no class or function 'GoneClassifier'.*an earlier tightframe wrote .*vectors: use that version", line
    )


def test_convert_refuses_a_damaged_checkpoint(runs, capsys):
    path = runs / "vectors" / "learned" / "seed-0" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:2000])
    (line,) = refused(CONVERT, capsys).splitlines()
    assert re.search(r"last\.ckpt is not a checkpoint that can be loaded .*; delete it", line)


def test_convert_loses_nothing_where_it_cannot_write(runs, capsys):
    written("file", "precious")
    assert stopped([*CONVERT, "--epsilon", "0.9", "--out", "file"]) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"tightframe: error: file/.* cannot be written: .*\n", shown.err)
    assert "3 locked" in shown.out
    with open("file", encoding="utf-8") as file:
        assert file.read() == "precious"


def test_convert_reads_the_hierarchy_that_the_directory_holds(folder, capsys):
    written("tree.tsv", "root\tab\nroot\tcd\nab\ta\nab\tb\ncd\tc\ncd\td\n")
    trained(folder / "runs", small_recipe(hierarchy=str(folder / "tree.tsv"), epochs=1))
    (folder / "tree.tsv").unlink()
    assert "effective depth 1" in printed(["convert", "runs/learned/seed-0", "--trust", "--epsilon", "0.9"], capsys)


def test_convert_imports_the_classes_of_others_on_request_alone(runs, capsys):
    (line,) = refused(["convert", "runs/vectors/learned/seed-0"], capsys).splitlines()
    assert re.search("config.yaml names tests.conversion.material.Blobs, .*--trust", line)


def test_a_frame_that_cannot_be_written(folder, capsys):
    written("tree.tsv", "root\ta\nroot\tb\n")
    (folder / "frame.safetensors").mkdir()
    (line,) = refused(["frame", "--hierarchy", "tree.tsv", "--out", "frame.safetensors"], capsys).splitlines()
    assert "frame.safetensors cannot be written: it exists and is not a file" in line
