"""What a pass over a loader shows, and what it leaves as it was."""

import io
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.probing.material import INPUTS, LABELS, network
from tightframe.errors import Notice
from tightframe.probing import measure, passes
from tightframe.probing.passes import shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_long_pass_shows_its_progress_on_a_terminal_alone(kind, monkeypatch):
    monkeypatch.setattr(sys, "stderr", kind())
    monkeypatch.setattr(passes, "PATIENCE", 0.0)
    assert list(shown(range(30), 30, "measuring")) == list(range(30))
    assert ("measuring" in sys.stderr.getvalue()) == (kind is Terminal)


class Noisy(TensorDataset):
    """Samples with noise that differs from one reading to the next."""

    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs + torch.randn(()), label


def test_a_second_pass_sees_the_samples_of_the_first():
    loader = DataLoader(Noisy(INPUTS, LABELS), 10, shuffle=True)
    torch.manual_seed(3)
    held = measure(network(), loader)
    torch.manual_seed(3)
    with pytest.warns(Notice, match="one more pass"):
        again = measure(network(), loader, hold_bytes=0, spill_bytes=0)
    assert again == held
