"""The command line: ``tightframe compare | train | report | recipes | frame | convert | theory``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe import config
from tightframe.config import Recipe, find_recipe, shipped_recipes
from tightframe.errors import ConfigError, TightframeError, check_positive
from tightframe.run_directory import check_directory, write_directory
from tightframe.runs.layout import CONFIG_FILE, TIMING_FILE
from tightframe.theory.problems import PROBLEMS, make_problem

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from tightframe.data import ClassificationData


def compare(recipe: Recipe, out: Path, seed: int, num_seeds: int) -> None:
    """Train every method of a recipe under several seeds, and report them side by side."""
    from rich.console import Console

    check_positive("--num_seeds", num_seeds)
    data = _prepare(recipe, out, list(recipe.methods), seed)
    console = Console(stderr=True)
    runs = [(method, s) for s in range(seed, seed + num_seeds) for method in recipe.methods]
    for i, (method, s) in enumerate(runs, start=1):
        console.print(f"[{i}/{len(runs)}] {method}, seed {s}", highlight=False, markup=False)
        _run(recipe, method, data, out, s, progress=False)
    report(out)


def train(recipe: Recipe, out: Path, seed: int, method: str | None) -> None:
    """Train one method of a recipe."""
    if method is None:
        method = next(iter(recipe.methods))
    if method not in recipe.methods:
        raise ConfigError(f"--method must be one of {', '.join(recipe.methods)}, got {method!r}")
    data = _prepare(recipe, out, [method], seed)
    _run(recipe, method, data, out, seed, progress=True)
    report(out)


def _prepare(recipe: Recipe, out: Path, methods: list[str], seed: int) -> ClassificationData:
    """Find every mistake that can be found before training, then load the data and write the configuration."""
    if not 0 <= seed < 2**31:
        raise ConfigError(f"--seed must be in 0..{2**31 - 1}, got {seed}")
    check_directory(out, recipe)
    data = config.build_data(recipe)
    config.check_bindings(recipe, data, methods)
    write_directory(out, recipe, data)
    return data


def report(out: Path) -> None:
    """Print the table of a directory of runs and write its report."""
    from tightframe.report import build_report, print_leaderboard

    print_leaderboard(out)
    path = build_report(out)
    print(f"\nreport: {path}")  # noqa: T201  # the command's result


def _run(recipe: Recipe, method: str, data: ClassificationData, out: Path, seed: int, progress: bool) -> None:
    """Train one method with one seed, or go on with it, or do nothing if it is done."""
    from tightframe.training import fit

    directory = out / method / f"seed-{seed}"
    if _is_finished(directory, recipe.epochs):
        return
    module = config.build_module(recipe, method, data, seed)
    adaptive = recipe.methods[method].adaptive
    try:
        fit(
            module,
            data.train,
            config.evaluation_parts(data),
            directory,
            run=method,
            seed=seed,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            collapse=recipe.collapse,
            trainer={"enable_progress_bar": progress, **recipe.trainer},
            adaptive=None if adaptive is None else {"seed": seed, **adaptive},
        )
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from stop
        raise


def _is_finished(directory: Path, epochs: int) -> bool:
    try:
        timing = json.loads((directory / TIMING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(timing.get("epochs") == epochs)


def recipes(action: str, name: str | None) -> None:
    """List the shipped recipes, show one, or copy one here to be changed."""
    import yaml

    if action == "list":
        for recipe, path in shipped_recipes().items():
            description = yaml.safe_load(path.read_text(encoding="utf-8")).get("description", "")
            print(f"{recipe:<20} {' '.join(description.split())}")  # noqa: T201
        return
    if name is None:
        raise ConfigError(f"recipes {action} needs the NAME of a recipe; see `tightframe recipes list`")
    path = find_recipe(name)
    if action == "show":
        print(path.read_text(encoding="utf-8"), end="")  # noqa: T201
        return
    target = Path(path.name)
    if target.exists():
        raise ConfigError(f"{target} exists here already; move it away first")
    shutil.copyfile(path, target)
    print(target)  # noqa: T201


def frame(hierarchy: Path, out: Path, **options: Any) -> None:
    """Write the hierarchy-aware frame of a hierarchy file, and say how it came out."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from tightframe.frames import hierarchy_aware_frame, suggest_gamma
    from tightframe.hierarchy import Tree

    check_positive("--seed", options["seed"], 0)
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {out}")
    tree = Tree.read(hierarchy)
    distances = tree.distances(options["mode"])
    gamma = suggest_gamma(distances) if options["gamma"] is None else options["gamma"]
    found = hierarchy_aware_frame(
        distances,
        options["dim"],
        gamma=gamma,
        asymptote=options["asymptote"],
        generator=torch.Generator().manual_seed(options["seed"]),
    )
    facts = {"gamma": found.gamma, "asymptote": found.asymptote, "error": found.error, "violations": found.violations}
    tensors = {"frame": found.frame.contiguous(), "gram": found.gram.contiguous(), "distances": distances}
    metadata = {"classes": json.dumps(tree.class_names), **{name: repr(value) for name, value in facts.items()}}
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata)
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--out {out} cannot be written: {error}") from error
    print(tree)  # noqa: T201  # the command's result
    num_classes, dim = found.frame.shape
    print(f"\n{out}: {num_classes} classes in {dim} dimensions")  # noqa: T201
    print(", ".join(f"{name} {value:.6g}" for name, value in facts.items()))  # noqa: T201


def convert(run: Path, out: Path | None, truncate: bool, epsilon: float, **lock: Any) -> None:
    """Lock the layers of a trained network beyond its effective depth, or cut it there, and say what that costs."""
    import torch

    from tightframe import conversion
    from tightframe.report.tables import render_rows

    run = run.resolve()
    recipe = _recipe_of(run.parent.parent / CONFIG_FILE)
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    data = config.build_data(recipe)
    network = conversion.network_of_run(run, recipe, data)
    parts = conversion.Parts(data, recipe.batch_size)
    look = {"epsilon": epsilon, "pooling": lock.pop("pooling"), "layers": lock.pop("layers")}
    if truncate:
        found = conversion.truncate_network(network, parts, **look)
    else:
        found = conversion.lock_network(network, parts, **look, **lock)
    render_rows(*conversion.cells(found))
    depth = f"effective depth {found.depth} of {len(found.layers)}" if found.depth else "no effective depth"
    left = "" if found.changed else "; nothing was converted"
    first = found.stages[0]
    costs = f"{first.flops / 1e6:.3f} MFLOPs a sample, {1e3 * first.seconds:.3f} ms for {len(parts.sample)} samples"
    print(f"{first.name}: {costs}")  # noqa: T201  # the command's result
    print(f"{depth} (nearest class mean errs on at most {epsilon:g} of the training part){left}")  # noqa: T201
    out = out or run / ("truncated" if truncate else "locked")
    facts = {"run": str(run), "epsilon": epsilon, **({} if truncate else lock)}
    conversion.write_conversion(found, out, facts)
    print(f"\nnetwork: {out / conversion.MODEL_FILE}")  # noqa: T201


def theory(problem: str, name: str | None, seed: int, plot: Path | None, out: Path | None, **options: Any) -> None:
    """Solve and certify a model, or draw a figure."""
    check_positive("--seed", seed, 0)
    if problem == "figure":
        from tightframe.theory.figures import draw_figure

        draw_figure(name, seed, out)
        return
    if name is not None:
        raise ConfigError(f"theory {problem} takes no second name, got {name!r}; theory figure does")
    from tightframe.theory.describe import describe

    shape = {key: options.pop(key) for key in ("counts", "classes", "samples", "dim")}
    describe(make_problem(problem, **shape, options=options), seed, plot)


def _recipe_of(path: Path) -> Recipe:
    """Return the recipe that a directory of runs was made with."""
    from jsonargparse import ArgumentError

    if not path.is_file():
        raise ConfigError(f"RUN must be <out>/<method>/seed-<s> beside <out>/{CONFIG_FILE}, but {path} does not exist")
    parser = _recipe_parser("")
    try:
        options: Any = parser.instantiate(parser.parse_args(["--config", str(path)]))
    except (ArgumentError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    return Recipe(**{name: value for name, value in vars(options).items() if name not in ("config", "out", "seed")})


def build_parser() -> ArgumentParser:
    """Return the parser of the whole command line; torch is not imported for it."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="tightframe", description="Measure, induce and explain neural collapse.", exit_on_error=False
    )
    parser.add_argument("--version", action="version", version=f"tightframe {_version()}")
    commands = parser.add_subcommands(required=True, dest="command")

    sub = _recipe_parser("train every method of a recipe under several seeds, and report them side by side")
    sub.add_argument("--num_seeds", type=int, default=3, help="seeds of each method: seed, seed + 1, ...")
    commands.add_subcommand("compare", sub)

    sub = _recipe_parser("train one method of a recipe; interrupted, the same command goes on")
    sub.add_argument("--method", type=str | None, default=None, help="name of the method; the first by default")
    commands.add_subcommand("train", sub)

    sub = ArgumentParser(description="print the table of a directory of runs and write its report", exit_on_error=False)
    sub.add_argument("out", type=Path, help="directory that compare or train wrote")
    commands.add_subcommand("report", sub)

    sub = ArgumentParser(
        description="list the shipped recipes, show one, or copy one here to be changed", exit_on_error=False
    )
    sub.add_argument("action", choices=["list", "show", "copy"], help="what to do")
    sub.add_argument("name", nargs="?", help="name of a recipe")
    commands.add_subcommand("recipes", sub)

    sub = ArgumentParser(
        description="write the hierarchy-aware frame of a hierarchy as safetensors: frame, gram, distances and, as "
        "metadata, the class names",
        exit_on_error=False,
    )
    sub.add_argument("--hierarchy", type=Path, required=True, help="edge list (.tsv, .txt) or nested .json, .yaml")
    sub.add_argument("--out", type=Path, required=True, help="file to write, *.safetensors")
    sub.add_argument("--dim", type=int | None, default=None, help="dimension; the number of classes by default")
    sub.add_argument("--gamma", type=float | None, default=None, help="how fast cosines fall; suggested by default")
    sub.add_argument(
        "--asymptote", type=float | str, default="max-separation", help="max-separation, grid or a number below 1"
    )
    sub.add_argument("--mode", choices=["depth", "height"], default="depth", help="distance in the tree")
    sub.add_argument("--seed", type=int, default=0, help="of the orientation")
    commands.add_subcommand("frame", sub)
    commands.add_subcommand("convert", _convert_parser())
    commands.add_subcommand("theory", _theory_parser())
    return parser


def _theory_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="solve an unconstrained-feature model: print its closed form, its solved optimum, the certificates "
        "of both and their collapse; or draw a figure of the theory: theory figure NAME (theory figure lists them). "
        f"PROBLEM is figure or one of {', '.join(PROBLEMS)}",
        exit_on_error=False,
    )
    parser.add_argument("problem", type=str, help="name of a model, or figure")
    parser.add_argument("name", nargs="?", help="name of a figure")
    parser.add_argument("--counts", type=list[int] | None, default=None, help="samples of each class, as in [90,90,9]")
    parser.add_argument("--classes", type=int | None, default=None, help="number of classes, where there are no counts")
    parser.add_argument("--samples", type=int, default=1, help="of each class, where there are no counts")
    parser.add_argument(
        "--dim", type=int | None, default=None, help="feature dimension; the number of classes by default"
    )
    for option, kind, text in (
        ("weight_decay", float, "penalty on the classifier"),
        ("feature_decay", float, "penalty on the features"),
        ("bias_decay", float, "penalty on the bias; 0 is a free one; no bias by default"),
        ("sample_weights", list[float], "weight of a sample of each class; 1/N by default"),
        ("weight_budget", float, "E_W of the layer-peeled model"),
        ("feature_budget", float, "E_H of the layer-peeled model"),
        ("decays", list[float], "penalties of a deep model: features, then each matrix"),
        ("relu", bool, "whether a deep model has ReLUs"),
    ):
        parser.add_argument(f"--{option}", type=kind | None, default=None, help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the solver's starts, or of a figure")
    parser.add_argument("--plot", type=Path | None, default=None, help="*.png or *.svg for the Gram matrices")
    parser.add_argument("--out", type=Path | None, default=None, help="of a figure; NAME.svg by default")
    return parser


def _convert_parser() -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description="without training, lock the layers of a trained network beyond its effective depth to simplex "
        "ETFs, or cut it there and finish with the nearest class mean; print accuracy, parameters, FLOPs and time",
        exit_on_error=False,
    )
    parser.add_argument("run", type=Path, help="<out>/<method>/seed-<s> that compare or train wrote")
    parser.add_argument("--truncate", action="store_true", help="cut instead of lock, after every layer in turn")
    parser.add_argument("--out", type=Path | None, default=None, help="directory; by default RUN/locked, RUN/truncated")
    parser.add_argument("--epsilon", type=float, default=0.01, help="error of the nearest class mean at the depth")
    parser.add_argument("--pooling", choices=["flatten", "mean", "cls"], help="of tokens and maps")
    parser.add_argument("--layers", nargs="+", help="names or patterns of those to look at; by default linear maps")
    parser.add_argument("--kind", type=str, default="aligned", help="of the fixed weights; see lock_to_etf")
    parser.add_argument("--gain", type=float | str | None, default=None, help="of the fixed weights; see lock_to_etf")
    parser.add_argument("--inclusive", action="store_true", help="lock the layer at the depth too")
    parser.add_argument("--keep", nargs="+", default=[], help="names or patterns of layers that are not locked")
    parser.add_argument("--seed", type=int, default=0, help="of drawn weights")
    return parser


def _recipe_parser(description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        description=f"{description}. RECIPE is the name of a shipped recipe or a YAML file; any key of it can be "
        "overridden, as in --epochs 5 or --data.args.imbalance 0.01; a method's args are given together, as in "
        """--methods.etf-haar.classifier.args '{"seed": 1, "scale": 4}'""",
        usage="%(prog)s RECIPE [options]",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="the recipe; RECIPE is short for this")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory for runs and report")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and frames")
    parser.add_class_arguments(Recipe, fail_untyped=False)
    return parser


def _version() -> str:
    from tightframe import __version__

    return __version__


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; wrong input ends with one line on stderr and exit code 2."""
    from jsonargparse import ArgumentError

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) > 1 and arguments[0] in ("compare", "train") and not arguments[1].startswith("-"):
            arguments[1:2] = ["--config", str(find_recipe(arguments[1]))]
        parser = build_parser()
        try:
            parsed = parser.parse_args(arguments)
        except (ArgumentError, UnicodeDecodeError) as error:
            where = f"{arguments[2]}: " if arguments[1:2] == ["--config"] else ""
            raise ConfigError(where + " ".join(str(error).split())) from error
        command = parsed.command
        options: Any = parser.instantiate(parsed)[command]
        if command in ("compare", "train"):
            own = {"compare": ("out", "seed", "num_seeds"), "train": ("out", "seed", "method")}[command]
            extra = {name: options.pop(name) for name in own}
            options.pop("config", None)
            recipe = Recipe(**options)
            compare(recipe, **extra) if command == "compare" else train(recipe, **extra)
        elif command == "report":
            report(options.out)
        elif command == "frame":
            frame(**vars(options))
        elif command == "convert":
            convert(**vars(options))
        elif command == "theory":
            theory(**vars(options))
        else:
            recipes(options.action, options.name)
    except TightframeError as error:
        print(f"tightframe: error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("tightframe: stopped; the same command goes on from the last epoch", file=sys.stderr)  # noqa: T201
        sys.exit(130)
