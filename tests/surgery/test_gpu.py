"""What fixed layers, locks and probing do on a CUDA device: the same as on the CPU."""

import copy

import pytest
import torch
from torch import nn

from tightframe.nn import ETFLinear
from tightframe.probing import probe_layers
from tightframe.surgery import lock_to_etf, parameter_report, reestimate_batch_norm, truncate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def mlp():
    torch.manual_seed(0)
    blocks = [m for _ in range(3) for m in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Linear(16, 5)).double()


def batches(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 16, dtype=torch.float64, generator=generator), torch.arange(120) % 5
    return [(a.to(device), b.to(device)) for a, b in zip((x + y[:, None]).split(40), y.split(40), strict=True)]


@pytest.mark.parametrize(("storage", "kind"), [("dense", "haar"), ("implicit", "canonical")])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 12), (12, 40), (40, 12)])
def test_fixed_layers_are_those_of_the_cpu(storage, kind, inputs, outputs):
    cpu = ETFLinear(inputs, outputs, kind=kind, storage=storage, learn_scale=True)
    other = copy.deepcopy(cpu).to(DEVICE)
    x = torch.randn(7, inputs)
    sides = []
    for layer, device in ((cpu, "cpu"), (other, DEVICE)):
        own = x.to(device).requires_grad_()
        layer(own).square().sum().backward()
        sides.append([own.grad.cpu(), layer.bias.grad.cpu(), layer(own).detach().cpu()])
    for mine, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["aligned", "haar", "orthogonal"])
def test_a_lock_is_that_of_the_cpu_and_stays(kind):
    cpu, other = mlp(), mlp().to(DEVICE)
    for model, device in ((cpu, "cpu"), (other, DEVICE)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for x, y in batches(device):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        model.load_state_dict(mlp().state_dict())
        lock_to_etf(model, "3", kind=kind, optimizer=optimizer)
        locked = model[3].weight.detach().clone()
        for x, y in batches(device):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert torch.equal(model[3].weight, locked)
        planned = parameter_report(model, "adam")
        assert planned.optimizer_bytes_saved == 2 * 8 * 16 * 16 + 4
        assert parameter_report(model, optimizer).optimizer_bytes == planned.optimizer_bytes
    torch.testing.assert_close(cpu[3].weight, other[3].weight.cpu(), rtol=1e-9, atol=1e-11)


def test_one_pass_over_layers_is_that_of_the_cpu():
    cpu, other = mlp(), mlp().to(DEVICE)
    reestimate_batch_norm(cpu, batches())
    assert reestimate_batch_norm(other, batches(DEVICE)) == 3
    for pieces in (0, 2**28):
        mine = probe_layers(cpu, batches(), scatter=True, hold_bytes=pieces)
        theirs = probe_layers(other, batches(), scatter=True, hold_bytes=pieces)  # it moves the batches itself
        assert mine.ncc_error == theirs.ncc_error
        assert mine.ncc_mismatch == theirs.ncc_mismatch
        assert mine.cdnv == pytest.approx(theirs.cdnv)
        assert mine.nc1 == pytest.approx(theirs.nc1)


def test_a_truncated_network_is_that_of_the_cpu():
    cpu, other = mlp().eval(), mlp().to(DEVICE).eval()
    x = batches()[0][0]
    sides = [
        truncate(model, "3", nn.Linear(16, 5, dtype=torch.float64, device=device), x.to(device)).representation(
            x.to(device)
        )
        for model, device in ((cpu, "cpu"), (other, DEVICE))
    ]
    torch.testing.assert_close(sides[0], sides[1].cpu(), rtol=1e-9, atol=1e-11)
