"""A training step of a transformer with locked feed-forward layers against one that trains them: time and memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks._timing import Row, extra_memory, megabytes, one_thread, race, report
from tightframe.surgery import etf_transformer_, parameter_report

TOKENS = 64
LOCKS = ("w1", "w2", "both")


class Step:
    """Forward, backward and AdamW of a pre-LN encoder of so many blocks; what is locked is named, or "" for nothing."""

    def __init__(self, locked: str, width: int, blocks: int, batch: int) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.model = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        if locked:
            etf_transformer_(self.model, locked)
        self.optimizer = torch.optim.AdamW(p for p in self.model.parameters() if p.requires_grad)
        self.inputs = torch.randn(batch, TOKENS, width)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.inputs).square().mean().backward()
        self.optimizer.step()


def three_steps(locked: str, width: int, blocks: int, batch: int) -> Callable[[], Step]:
    """Return a call that makes gradients, optimiser state and activations, all of which count to its peak."""
    step = Step(locked, width, blocks, batch)

    def call() -> Step:
        for _ in range(3):
            step()
        return step

    return call


def optimizer_row(locked: str, width: int, blocks: int, batch: int) -> Row:
    """Compare the optimiser state that a lock saves, measured, with what the report computes."""
    sides = [Step(which, width, blocks, batch) for which in (locked, "")]
    for side in sides:
        side()
    mine, theirs = (parameter_report(side.model, side.optimizer) for side in sides)
    saved = theirs.optimizer_bytes - mine.optimizer_bytes
    computed = parameter_report(sides[0].model, "adam").optimizer_bytes_saved
    cells = megabytes(mine.optimizer_bytes), megabytes(theirs.optimizer_bytes)
    name = f"AdamW state, {locked} locked; peer: trained"
    return Row(name, *cells, f"{saved:,} bytes saved, {computed:,} computed", "equal", saved == computed)


def run(width: int = 256, blocks: int = 4, batch: int = 16, rounds: int = 9) -> list[Row]:
    size = (width, blocks, batch)
    rows = [
        race(Step(locked, *size), Step("", *size), rounds).costlier(f"training step, {locked} locked; peer: trained")
        for locked in LOCKS
    ]
    return rows + [optimizer_row(locked, *size) for locked in LOCKS]


def memory(width: int = 256, blocks: int = 4, batch: int = 16) -> list[Row]:
    small, size, rows = (16, 1, 1), (width, blocks, batch), []
    trained = extra_memory(three_steps, ("", *small), ("", *size))
    for locked in LOCKS:
        mine = extra_memory(three_steps, (locked, *small), (locked, *size))
        name = f"peak beside the weights, {locked} locked; peer: trained"
        rows.append(Row(name, megabytes(mine), megabytes(trained), f"{mine / trained:.2f}x the memory"))
    return rows


TINY = {"width": 16, "blocks": 1, "batch": 2, "rounds": 1}


def main() -> None:
    one_thread()
    report("ETF-Transformer: a training step, width 256, 4 blocks, 16 x 64 tokens, AdamW", run() + memory())


if __name__ == "__main__":
    main()
