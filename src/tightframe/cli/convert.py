"""``tightframe convert``: fewer trainable parameters without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightframe.config import load_run

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


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
    layers: Any,
    trust: bool,
    **lock: Any,
) -> None:
    """Lock the layers of a trained network beyond its effective depth, or cut it there, and print what that costs."""
    import torch

    from tightframe import conversion
    from tightframe.report.tables import render_rows

    loaded = load_run(run, trust=trust)
    if loaded.recipe.num_threads is not None:
        torch.set_num_threads(loaded.recipe.num_threads)
    parts = conversion.Parts(loaded.data, loaded.recipe.batch_size)
    look = {"epsilon": epsilon, "pooling": pooling, "layers": layers}
    if truncate:
        found = conversion.truncate_network(loaded.network, parts, **look)
    else:
        found = conversion.lock_network(loaded.network, parts, **look, **lock)
    render_rows(*conversion.cells(found))
    depth = f"effective depth {found.depth} of {len(found.layers)}" if found.depth else "no effective depth"
    left = "" if found.changed else "; nothing was converted"
    first = found.stages[0]
    costs = f"{first.flops / 1e6:.3f} MFLOPs a sample, {1e3 * first.seconds:.3f} ms for {len(parts.sample)} samples"
    print(f"{first.name}: {costs}")  # noqa: T201  # the command's result
    print(f"{depth} (nearest class mean errs on at most {epsilon:g} of the training part){left}")  # noqa: T201
    out = out or run / ("truncated" if truncate else "locked")
    facts = {"run": str(run.resolve()), "epsilon": epsilon, **({} if truncate else lock)}
    conversion.write_conversion(found, out, facts)
    print(f"\nnetwork: {out / conversion.MODEL_FILE}")  # noqa: T201
