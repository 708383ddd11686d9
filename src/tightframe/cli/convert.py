"""``tightframe convert``: fewer trainable parameters without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.config import load_run

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from tightframe.surgery.convert import Conversion

BATCH = 512


def parser(text: str) -> ArgumentParser:
    """Return the parser of the command."""
    from jsonargparse import ArgumentParser

    found = ArgumentParser(
        description=f"{text}: lock the layers beyond the depth to simplex ETFs, or cut the network there and finish "
        "with the nearest class mean; print accuracy, parameters, FLOPs and time",
        exit_on_error=False,
    )
    found.add_argument("run", type=Path, help="<out>/<method>/seed-<s> that compare or train wrote")
    found.add_argument("--truncate", action="store_true", help="cut instead of lock, after every layer in turn")
    found.add_argument("--out", type=Path | None, default=None, help="directory; by default RUN/locked, RUN/truncated")
    found.add_argument("--epsilon", type=float, default=0.01, help="error of the nearest class mean at the depth")
    found.add_argument("--pooling", choices=["flatten", "mean", "cls"], help="pooling of tokens and maps")
    found.add_argument("--layers", nargs="+", help="names or patterns of the layers; linear maps by default")
    found.add_argument("--kind", type=str, default="aligned", help="kind of the fixed weights; see lock_to_etf")
    found.add_argument("--gain", type=float | str | None, default=None, help="gain of the fixed weights")
    found.add_argument("--inclusive", action="store_true", help="lock the layer at the depth too")
    found.add_argument("--keep", nargs="+", default=[], help="names or patterns of layers that are not locked")
    found.add_argument("--seed", type=int, default=0, help="seed of drawn weights")
    found.add_argument("--trust", action="store_true", help="import classes of other packages that the recipe names")
    return found


def run(
    run: Path,
    out: Path | None,
    truncate: bool,
    epsilon: float,
    pooling: str | None,
    layers: Sequence[str] | None,
    inclusive: bool,
    keep: Sequence[str],
    trust: bool,
    **fix: Any,
) -> None:
    """Lock the layers of a trained network beyond its effective depth, or cut it there, and print what that costs."""
    import torch

    from tightframe.report.tables import render_rows
    from tightframe.surgery import Fix, convert
    from tightframe.training import make_loader

    look: dict[str, Any] = {"epsilon": epsilon, "pooling": pooling, "layers": layers}
    lock: dict[str, Any] = {} if truncate else {"inclusive": inclusive, "keep": keep}
    fixed = Fix(**fix)
    loaded = load_run(run, trust=trust)
    if loaded.recipe.num_threads is not None:
        torch.set_num_threads(loaded.recipe.num_threads)
    data, size = loaded.data, loaded.recipe.batch_size
    train, test = (make_loader(part, BATCH) for part in (data.train, data.test))
    parts = convert.Parts(data.num_classes, train, test, make_loader(data.train, size, seed=0))
    if truncate:
        found = convert.truncate_network(loaded.network, parts, **look)
    else:
        found = convert.lock_network(loaded.network, parts, fix=fixed, **look, **lock)
    render_rows(*cells(found))
    depth = f"effective depth {found.depth} of {len(found.layers)}" if found.depth else "no effective depth"
    left = "" if found.changed else "; nothing was converted"
    first = found.stages[0]
    costs = f"{first.flops / 1e6:.3f} MFLOPs a sample, {1e3 * first.seconds:.3f} ms for {len(parts.sample)} samples"
    print(f"{first.name}: {costs}")  # noqa: T201  # the command's result
    print(f"{depth} (nearest class mean errs on at most {epsilon:g} of the training part){left}")  # noqa: T201
    out = out or run / ("truncated" if truncate else "locked")
    facts = {"run": str(run.resolve()), "epsilon": epsilon, **({} if truncate else {**lock, **fix})}
    convert.write_conversion(found, out, facts)
    print(f"\nnetwork: {out / convert.MODEL_FILE}")  # noqa: T201


def cells(conversion: Conversion) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the stages as text; FLOPs and time are in percent of the first one's."""
    first = conversion.stages[0]
    headings = ["Network", "Train %", "Test %", "Trainable", "Parameters", "FLOPs %", "Time %"]
    rows = [
        [
            stage.name,
            f"{100 * stage.train:.2f}",
            f"{100 * stage.test:.2f}",
            f"{stage.trainable:,}",
            f"{stage.parameters:,}",
            f"{100 * stage.flops / max(first.flops, 1):.0f}",
            f"{100 * stage.relative:.0f}",
        ]
        for stage in conversion.stages
    ]
    return headings, rows
