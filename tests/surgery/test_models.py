from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError, DeviceError, DimensionError, EmptyDataError
from tightframe.nn import ETFLinear, SimplexETFClassifier
from tightframe.surgery import lock_to_etf, parameter_report, reestimate_batch_norm, replace_classifier


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )


def batches(count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(2 + torch.randn(32, 6, generator=generator), torch.zeros(32).long()) for _ in range(count)]


class TestBatchNorm:
    def test_statistics_are_those_of_the_data(self):
        model = nn.Sequential(nn.BatchNorm1d(6))
        model[0].running_mean.fill_(100.0)
        data = batches()
        assert reestimate_batch_norm(model, data) == 1
        means = torch.stack([x.mean(dim=0) for x, _ in data]).mean(dim=0)
        variances = torch.stack([x.var(dim=0) for x, _ in data]).mean(dim=0)
        torch.testing.assert_close(model[0].running_mean, means)
        torch.testing.assert_close(model[0].running_var, variances)
        tensors = nn.Sequential(nn.BatchNorm1d(6))
        reestimate_batch_norm(tensors, iter([x for x, _ in data]))  # once through is enough, and labels need not be
        torch.testing.assert_close(tensors[0].running_mean, means)

    def test_nothing_else_changes(self):
        model = mlp()
        model[1].momentum = 0.03
        model[5].momentum = None
        model.train()
        model[5].eval()
        modes = [module.training for module in model.modules()]
        before = copy.deepcopy(model.state_dict())
        assert reestimate_batch_norm(model, batches()) == 2
        assert [module.training for module in model.modules()] == modes
        assert (model[1].momentum, model[5].momentum) == (0.03, None)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert changed == {f"{i}.{name}" for i in (1, 5) for name in statistics}
        assert all(p.grad is None for p in model.parameters())

    def test_without_any_nothing_is_read(self):
        def never():
            raise AssertionError
            yield

        assert reestimate_batch_norm(nn.Linear(2, 2), never()) == 0
        assert reestimate_batch_norm(nn.BatchNorm1d(2, track_running_stats=False), never()) == 0

    @pytest.mark.parametrize("data", [[], [torch.ones(4, 6), torch.ones(4, 7)]], ids=["empty", "broken"])
    def test_after_an_error_all_is_as_before(self, data):
        model = mlp().eval()
        reestimate_batch_norm(model, batches())
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError if data else EmptyDataError):
            reestimate_batch_norm(model, data)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert (model[1].momentum, model[1].training) == (0.1, False)

    def test_brings_a_locked_network_back(self):
        # An aligned lock of an orthogonal layer is the same map up to its mean, on other statistics.
        model = mlp().eval()
        nn.init.orthogonal_(model[4].weight)
        data = batches(8)
        reestimate_batch_norm(model, data)
        lock_to_etf(model, "4", gain=10.0)
        x = data[0][0]
        assert model[:6](x).std(dim=0).mean() > 5
        reestimate_batch_norm(model, data)
        assert 0.5 < model[:6](x).std(dim=0).mean() < 2


class TestReplaceClassifier:
    def test_puts_one_in_the_place_of_the_other(self):
        model = mlp().eval()
        old, new = model[6], SimplexETFClassifier(8, 5)
        assert replace_classifier(model, new) is old
        assert model[6] is new
        assert not new.training
        assert model(torch.ones(2, 6)).shape == (2, 5)
        assert replace_classifier(model, old) is new

    def test_under_all_its_names(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
                self.alias = self.net[1]

        model, new = Twice(), nn.Linear(8, 3)
        replace_classifier(model, new)
        assert model.net[1] is new
        assert model.alias is new

    def test_refusals(self):
        model = mlp()
        old = model[6]
        with pytest.raises(DimensionError, match=r"d = 8 as '6' does, got d = 7"):
            replace_classifier(model, nn.Linear(7, 3))
        with pytest.raises(DeviceError, match="cpu, meta"):
            replace_classifier(model, nn.Linear(8, 3, device="meta"))
        with pytest.raises(ArgumentError, match="wrapped by DataParallel"):
            replace_classifier(nn.DataParallel(model), nn.Linear(8, 3))
        with pytest.raises(ArgumentError, match="neither"):
            replace_classifier(nn.ReLU(), nn.Linear(8, 3))
        with pytest.raises(ArgumentError, match="itself the classifier"):
            replace_classifier(old, nn.Linear(8, 3))
        assert model[6] is old


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p),
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.out = nn.Linear(8, 7)
        self.out.weight = self.embedding.weight


class TestParameterReport:
    def test_counts(self):
        model = mlp()
        lock_to_etf(model, "0")
        report = parameter_report(model)
        assert report.trainable == sum(p.numel() for p in model.parameters()) - 48
        assert report.frozen == 48
        assert report.buffers == 2 * (8 + 8 + 1)
        assert report.stored == sum(value.numel() for value in model.state_dict().values())
        assert report.bytes == 4 * (report.trainable + 48 + 32) + 2 * 8
        assert (report.optimizer_bytes, report.optimizer_bytes_saved) == (None, None)
        rows = {layer.name: layer for layer in report.layers}
        assert list(rows) == ["0", "1", "4", "5", "6"]
        assert (rows["0"].kind, rows["0"].trainable, rows["0"].frozen, rows["0"].stored) == ("Linear", 8, 48, 56)
        assert (rows["1"].buffers, rows["1"].bytes) == (17, 4 * 32 + 8)

    def test_the_mlp_of_the_paper(self):
        # Liu's MLP of five layers with 400 units on Fashion-MNIST; its biases and batch norms stay trainable.
        def build():
            sizes = [(784, 400), (400, 400), (400, 400), (400, 400)]
            hidden = [m for size in sizes for m in (nn.Linear(*size), nn.BatchNorm1d(400), nn.ReLU())]
            return nn.Sequential(*hidden, nn.Linear(400, 10))

        model = build()
        trainable = [parameter_report(model).trainable]
        for name in ("12", "9", "6"):
            lock_to_etf(model, name, "canonical")
            trainable.append(parameter_report(model).trainable)
        assert trainable == [802410, 798410, 638410, 478410]

    def test_shared_tensors_count_once(self):
        report = parameter_report(Tied(), "adam")
        assert (report.trainable, report.stored, report.bytes) == (63, 63, 4 * 63)
        assert report.optimizer_bytes == 2 * 4 * 63 + 2 * 4
        two = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        two[1].weight = nn.Parameter(two[0].weight.detach())  # two parameters in one memory
        assert parameter_report(two).trainable == 16
        assert parameter_report(mlp().to("meta")).trainable == parameter_report(mlp()).trainable

    def test_what_is_not_stored(self):
        report = parameter_report(nn.Sequential(ETFLinear(6, 8, kind="canonical", storage="implicit")))
        assert (report.trainable, report.frozen, report.buffers, report.stored) == (8, 0, 1, 9)
        assert report.bytes == 9 * 4

    def test_is_json(self):
        report = parameter_report(mlp(), "adam")
        read = json.loads(json.dumps(report.to_dict()))
        assert read["trainable"] == report.trainable
        assert sum(layer["bytes"] for layer in read["layers"]) == read["bytes"]
        assert read["layers"][0]["name"] == "0"

    @pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_bytes_of_an_optimizer_are_what_it_holds(self, build):
        model = mlp()
        optimizer = build(model.parameters())

        def measured():
            tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
            return sum(t.untyped_storage().nbytes() for t in tensors)

        assert parameter_report(model, optimizer).optimizer_bytes == 0
        model(batches(1)[0][0]).sum().backward()
        optimizer.step()
        whole = measured()
        assert parameter_report(model, optimizer).optimizer_bytes == whole
        for name in ("0", "4"):
            lock_to_etf(model, name, optimizer=optimizer)
        report = parameter_report(model, optimizer)
        assert report.optimizer_bytes == measured() < whole
        assert report.optimizer_bytes_saved is None
        # As a new optimiser of what is left has it.
        fresh = build([p for p in model.parameters() if p.requires_grad])
        model(batches(1)[0][0]).sum().backward()
        fresh.step()
        assert parameter_report(model, fresh) == report

    def test_bytes_of_adam_before_it_steps(self):
        model = mlp()
        whole = parameter_report(model, "adam").optimizer_bytes
        lock_to_etf(model, "0")
        planned = parameter_report(model, "adam")
        assert planned.optimizer_bytes_saved == whole - planned.optimizer_bytes == 2 * 4 * 48 + 4
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        model(batches(1)[0][0]).sum().backward()
        optimizer.step()
        assert parameter_report(model, optimizer).optimizer_bytes == planned.optimizer_bytes

    def test_refuses_other_optimizers(self):
        with pytest.raises(ArgumentError, match="'adam' or None, got 'sgd'"):
            parameter_report(mlp(), "sgd")
