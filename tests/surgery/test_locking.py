from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from tightframe.errors import ArgumentError, DeviceError, DimensionError, DtypeError, NonFiniteError
from tightframe.frames import control_weight, nearest_simplex_weight, simplex_etf, simplex_weight
from tightframe.nn import ETFLinear, LinearClassifier, SimplexETFClassifier, variance_preserving_gain
from tightframe.surgery import LOCK_KINDS, lock_to_etf

kinds = pytest.mark.parametrize("kind", LOCK_KINDS)


class Conv1D(nn.Module):
    """A linear layer with the weight of Hugging Face's: (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def mlp(*, seed=0, dtype=torch.float32, norm=False):
    torch.manual_seed(seed)
    norms = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *norms, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def train(model, optimizer, steps=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator).to(dtype)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) % 3).backward()
        optimizer.step()


def simplex_gram(k):
    return (k * torch.eye(k, dtype=torch.float64) - 1) / (k - 1)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
}
optimizers = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


class TestWeight:
    def test_aligned_is_the_nearest_simplex(self):
        for name, size in (("0", (8, 6)), ("2", (8, 8))):
            model = mlp(dtype=torch.float64)
            before = model.get_submodule(name).weight.detach().clone()
            lock = lock_to_etf(model, name)
            after = model.get_submodule(name).weight.detach()
            torch.testing.assert_close(after, nearest_simplex_weight(before), rtol=0, atol=1e-12)
            k = min(size)
            torch.testing.assert_close(after.T @ after, lock.gain**2 * simplex_gram(k), rtol=0, atol=1e-12)
            assert lock.distance == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-9)
            assert (lock.name, lock.kind, lock.shape, lock.freed) == (name, "aligned", size, math.prod(size))
            # The best gain is no worse than any other.
            for gain in (0.9 * lock.gain, 1.1 * lock.gain):
                model.get_submodule(name).weight.data.copy_(before)
                assert lock_to_etf(model, name, gain=gain).distance > lock.distance

    def test_drawn_ones_are_those_of_frames(self):
        def draw(build, *shape, **options):
            return build(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3), **options)

        wanted = {
            "haar": draw(simplex_weight, 8, 6, gain=2.0),
            "canonical": draw(simplex_weight, 8, 6, kind="canonical", gain=2.0),
            "class-rank": draw(simplex_weight, 8, 6, kind="class-rank", num_classes=3, gain=2.0),
            "orthogonal": draw(control_weight, 8, 6, kind="orthogonal", gain=2.0),
            "gaussian": draw(control_weight, 8, 6, kind="gaussian", gain=2.0),
        }
        for kind, weight in wanted.items():
            model = mlp(dtype=torch.float64)
            classes = 3 if kind == "class-rank" else None
            lock = lock_to_etf(model, "0", kind, gain=2.0, seed=3, num_classes=classes)
            torch.testing.assert_close(model[0].weight.detach(), weight, rtol=0, atol=1e-12)
            assert lock.gain == 2.0

    def test_gains(self):
        for gain, wanted in (
            ("unit", 1.0),
            (2, 2.0),
            ("variance-preserving", math.sqrt(2 * math.pi / (math.pi - 1))),
            (None, math.sqrt(2 * math.pi / (math.pi - 1))),
        ):
            assert lock_to_etf(mlp(), "0", "haar", gain=gain).gain == pytest.approx(wanted, rel=1e-9)
        assert lock_to_etf(mlp(), "0", "haar", activation="gelu").gain == variance_preserving_gain("gelu")
        for kind in LOCK_KINDS:
            model = mlp()
            norm = float(model[0].weight.detach().norm())
            lock_to_etf(model, "0", kind, gain="match-init", num_classes=3 if kind == "class-rank" else None)
            assert float(model[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-5)

    @kinds
    def test_a_conv1d_is_the_transposed_linear(self, kind):
        linear = nn.Linear(6, 8)
        conv = Conv1D(8, 6)
        conv.weight.data.copy_(linear.weight.T)
        options = {"num_classes": 3 if kind == "class-rank" else None, "classifier": False}
        locks = [lock_to_etf(nn.ModuleDict({"x": module}), "x", kind, **options) for module in (linear, conv)]
        torch.testing.assert_close(conv.weight, linear.weight.T, rtol=0, atol=1e-6)
        assert [lock.shape for lock in locks] == [(8, 6), (6, 8)]

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_a_convolution_is_its_flattened_kernel(self, memory_format):
        conv = nn.Conv2d(2, 5, 3).to(memory_format=memory_format)
        before = conv.weight.detach().clone()
        lock_to_etf(nn.Sequential(conv), "0")
        wanted = nearest_simplex_weight(before.flatten(1).double()).float()
        torch.testing.assert_close(conv.weight.detach().flatten(1), wanted, rtol=0, atol=1e-6)
        assert conv.weight.is_contiguous(memory_format=memory_format)

    def test_half_precision_is_computed_in_float64_and_rounded_once(self):
        model = mlp()
        wanted = copy.deepcopy(model).to(torch.bfloat16).double()
        model.to(torch.bfloat16)
        lock_to_etf(model, "0")
        lock_to_etf(wanted, "0")
        assert torch.equal(model[0].weight, wanted[0].weight.to(torch.bfloat16))

    def test_seeds(self):
        weights = []
        for seed in (0, 0, 1):
            model = mlp()
            lock_to_etf(model, "0", "haar", seed=seed)
            weights.append(model[0].weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.allclose(weights[0], weights[2], atol=0.1)

    def test_a_weight_of_zeros(self):
        model = mlp()
        nn.init.zeros_(model[0].weight)
        with pytest.raises(ArgumentError, match=r"'0' must have vertices that differ.*gain"):
            lock_to_etf(model, "0")
        with pytest.raises(ArgumentError, match="zero for gain='match-init'"):
            lock_to_etf(model, "0", "haar", gain="match-init")
        assert lock_to_etf(model, "0", gain=1.0).distance == math.inf
        torch.testing.assert_close((model[0].weight.T @ model[0].weight).double(), simplex_gram(6))


class TestClassifier:
    @pytest.mark.parametrize("dim", [4, 5, 9])
    @pytest.mark.parametrize("kind", ["aligned", "haar", "canonical", "class-rank"])
    def test_its_rows_are_the_vertices(self, dim, kind):
        model = nn.Sequential(nn.Linear(3, dim), nn.ReLU(), LinearClassifier(dim, 5, dtype=torch.float64))
        lock = lock_to_etf(model, "2", kind)
        W = model[2].weight.detach()
        torch.testing.assert_close(W @ W.T, lock.gain**2 * simplex_gram(5), rtol=0, atol=1e-10)

    def test_aligned_is_the_best_of_many(self):
        for dim in (4, 5):
            model = nn.Sequential(nn.Linear(dim, 5, dtype=torch.float64))
            before = model[0].weight.detach().clone()
            lock = lock_to_etf(model, "0")
            nearest = float((model[0].weight.detach() - before).norm())
            generator = torch.Generator().manual_seed(0)
            for _ in range(200):
                frame = simplex_etf(5, dim, orientation="haar", generator=generator, dtype=torch.float64)
                assert float((lock.gain * frame - before).norm()) >= nearest
            model[0].weight.data.copy_(before)
            longer = lock_to_etf(model, "0", gain=2 * lock.gain)
            torch.testing.assert_close(
                model[0].weight.detach() @ model[0].weight.detach().T, longer.gain**2 * simplex_gram(5)
            )
            assert longer.gain == 2 * lock.gain

    @pytest.mark.parametrize("weight", [[[1.0], [-1.0]], [[1.0, 1.0], [-1.0, -1.0]]])
    def test_of_two_classes(self, weight):
        model = nn.Sequential(nn.Linear(len(weight[0]), 2))
        model[0].weight.data.copy_(torch.tensor(weight))
        assert lock_to_etf(model, "0").distance == 0.0
        assert not model[0].weight.requires_grad

    def test_equal_vertices(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
        for layer in (model[0], model[2]):
            layer.weight.data.fill_(1.0)
        for name in ("0", "2"):
            with pytest.raises(ArgumentError, match="vertices that differ"):
                lock_to_etf(model, name)
            lock_to_etf(model, name, "haar", gain="match-init")

    def test_controls_have_the_norm_of_the_simplex(self):
        for kind in ("haar", "orthogonal", "gaussian"):
            model = nn.Sequential(nn.Linear(4, 5))
            lock_to_etf(model, "0", kind, gain=2.0)
            assert float(model[0].weight.detach().norm()) == pytest.approx(2 * math.sqrt(5), rel=1e-5)

    def test_too_narrow(self):
        model = nn.Sequential(nn.Linear(3, 5))
        with pytest.raises(DimensionError, match=r"classifier '0' needs d >= K - 1.*d = 3 and K = 5"):
            lock_to_etf(model, "0")
        assert model[0].weight.requires_grad
        lock = lock_to_etf(model, "0", classifier=False)  # three columns in five dimensions
        W = model[0].weight.detach().double()
        torch.testing.assert_close(W.T @ W / lock.gain**2, simplex_gram(3), rtol=0, atol=1e-5)

    def test_is_the_last_linear_layer_unless_the_caller_says_otherwise(self):
        square = mlp()
        square[4] = nn.Linear(8, 8)
        W = {}
        for flag in (None, True, False):
            model = copy.deepcopy(square)
            lock_to_etf(model, "4", classifier=flag)
            W[flag] = model[4].weight.detach()
        assert torch.equal(W[None], W[True])
        assert not torch.allclose(W[True], W[False], atol=1e-3)
        hidden = copy.deepcopy(square)
        lock_to_etf(hidden, "2", classifier=True)
        rows = hidden[2].weight.double()
        gram = rows @ rows.T
        torch.testing.assert_close(gram / gram[0, 0], simplex_gram(8), rtol=0, atol=1e-5)

    def test_number_of_classes(self):
        assert lock_to_etf(mlp(), "4", "class-rank", num_classes=3).changed
        with pytest.raises(ArgumentError, match="num_classes must be K = 3"):
            lock_to_etf(mlp(), "4", "class-rank", num_classes=4)
        with pytest.raises(ArgumentError, match="num_classes"):
            lock_to_etf(mlp(), "2", "class-rank")


class TestFixed:
    def test_keys_modules_and_the_other_parameters_stay(self):
        model = mlp(norm=True)
        keys, layer, weight = list(model.state_dict()), model[0], model[0].weight
        others = {n: p.detach().clone() for n, p in model.named_parameters() if n != "0.weight"}
        lock_to_etf(model, "0")
        assert list(model.state_dict()) == keys
        assert model[0] is layer
        assert model[0].weight is weight
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]
        for name, p in model.named_parameters():
            assert name == "0.weight" or torch.equal(p, others[name])

    @kinds
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_locking_twice_changes_nothing_and_says_so(self, kind, dtype):
        for name in ("0", "2", "4"):
            model = mlp(dtype=dtype)
            options = {"num_classes": 3 if kind == "class-rank" else None}
            for gain in (None, 2.0, "match-init"):
                lock_to_etf(model, name, kind, gain=gain, **options)
                before = model.get_submodule(name).weight.detach().clone()
                again = lock_to_etf(model, name, kind, gain=gain, **options)
                assert torch.equal(model.get_submodule(name).weight, before)
                assert (again.distance, again.freed, again.changed) == (0.0, 0, False)

    def test_aligning_a_drawn_simplex_leaves_it(self):
        for kind in ("haar", "canonical"):
            model = mlp()
            lock_to_etf(model, "2", kind)
            before = model[2].weight.detach().clone()
            assert not lock_to_etf(model, "2").changed
            assert torch.equal(model[2].weight, before)

    def test_after_loading_a_state_locking_frees_and_leaves_the_values(self):
        model, fresh = mlp(), mlp(seed=5)
        lock_to_etf(model, "0")
        fresh.load_state_dict(model.state_dict())
        lock = lock_to_etf(fresh, "0")
        assert (lock.distance, lock.freed, lock.changed) == (0.0, 48, True)
        assert torch.equal(fresh[0].weight, model[0].weight)

    @optimizers
    @pytest.mark.parametrize("given", [False, True], ids=["alone", "from-optimizer"])
    @pytest.mark.parametrize("set_to_none", [False, True])
    def test_no_step_moves_it(self, build, given, set_to_none):
        model = mlp()
        optimizer = build(model.parameters())
        train(model, optimizer)  # the optimiser has momentum for it, and there is a gradient
        locks = [lock_to_etf(model, name, optimizer=optimizer if given else None) for name in ("0", "4")]
        assert [lock.freed for lock in locks] == [48, 24]
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad(set_to_none=set_to_none)
        train(model, optimizer)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {"0.bias", "2.weight", "2.bias", "4.bias"}
        assert model[0].weight.grad is None

    def test_a_compiled_module_gives_it_no_gradient_any_more(self):
        model = mlp()
        model.compile(backend="aot_eager")
        model(torch.ones(2, 6)).sum().backward()
        assert model[0].weight.grad is not None
        lock_to_etf(model, "0")
        model(torch.ones(2, 6)).sum().backward()
        assert model[0].weight.grad is None
        x, plain = torch.ones(2, 6), mlp()
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(x), plain(x))


class TestOptimizer:
    @optimizers
    def test_the_weight_leaves_groups_and_state(self, build):
        model = mlp()
        optimizer = build(model.parameters())
        train(model, optimizer)
        assert model[0].weight in optimizer.state
        lists = [group["params"] for group in optimizer.param_groups]
        lock_to_etf(model, "0", optimizer=optimizer)
        assert model[0].weight not in optimizer.state
        assert [id(p) for p in lists[0]] == [id(p) for p in model.parameters() if p is not model[0].weight]
        assert lists[0] is optimizer.param_groups[0]["params"]  # schedulers and wrappers may hold the list

    def test_names_leave_with_it(self):
        model = mlp()
        optimizer = torch.optim.AdamW(model.named_parameters())
        lock_to_etf(model, "2", optimizer=optimizer)
        assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.bias", "4.weight", "4.bias"]

    def test_once_more_with_the_optimizer(self):
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters())
        lock_to_etf(model, "0")
        assert len(optimizer.param_groups[0]["params"]) == 6
        assert not lock_to_etf(model, "0", optimizer=optimizer).changed
        assert len(optimizer.param_groups[0]["params"]) == 5

    @optimizers
    @pytest.mark.parametrize(
        "schedule",
        [
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda e: 0.9**e, lambda e: 0.5**e]),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=10, cycle_momentum=False),
            lambda o: torch.optim.lr_scheduler.SequentialLR(
                o,
                [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
                milestones=[3],
            ),
        ],
        ids=["cosine", "lambda", "one-cycle", "sequential"],
    )
    def test_a_group_that_becomes_empty_stays_for_the_schedulers(self, build, schedule):
        model = mlp()
        rest = [p for p in model.parameters() if p is not model[0].weight]
        optimizer = build([{"params": [model[0].weight]}, {"params": rest}])
        scheduler = schedule(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, optimizer, 1)
            scheduler.step()
            lock_to_etf(model, "0", optimizer=optimizer)
            for _ in range(4):
                train(model, optimizer, 1)
                scheduler.step()
        assert [len(group["params"]) for group in optimizer.param_groups] == [0, 5]
        assert len(scheduler.get_last_lr()) == 2

    @optimizers
    def test_its_state_resumes_after_a_lock(self, build):
        model = mlp()
        optimizer = build(model.parameters())
        train(model, optimizer)
        lock_to_etf(model, "0", optimizer=optimizer)
        train(model, optimizer, seed=2)
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        train(model, optimizer, seed=3)

        resumed = mlp(seed=9)
        again = build(resumed.parameters())
        resumed.load_state_dict(saved[0])
        lock_to_etf(resumed, "0", optimizer=again)
        again.load_state_dict(saved[1])
        train(resumed, again, seed=3)
        for key, value in model.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value)
        with pytest.raises(ValueError, match="size of optimizer's group"):
            build(mlp().parameters()).load_state_dict(saved[1])

    def test_what_no_tensor_can_leave(self):
        model = mlp()
        with pytest.raises(ArgumentError, match="LBFGS"):
            lock_to_etf(model, "0", optimizer=torch.optim.LBFGS(model.parameters()))
        with pytest.raises(ArgumentError, match=r"torch\.optim\.Optimizer, got list"):
            lock_to_etf(model, "0", optimizer=[])
        assert model[0].weight.requires_grad


class TestRefusals:
    def refuse(self, model, name="0", error=ArgumentError, match="", **options):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        needing = {n for n, p in model.named_parameters() if p.requires_grad}
        with pytest.raises(error, match=match):
            lock_to_etf(model, name, **options)
        for n, p in model.named_parameters():
            assert p.is_meta or torch.equal(p.nan_to_num(), before[n].nan_to_num())
        assert {n for n, p in model.named_parameters() if p.requires_grad} == needing

    def test_names(self):
        model = nn.ModuleDict({"encoder": mlp()})
        self.refuse(model, "encodr.0", match=r"no module 'encodr\.0'; near it are 'encoder\.0'")
        self.refuse(model, "encoder.0.weight", match=r"near it are 'encoder\.0'")
        self.refuse(model, "encoder.1", match="'encoder.1' must be an nn.Linear.*got ReLU")

    @pytest.mark.parametrize("bad", [{"kind": "random"}, {"gain": 0.0}, {"gain": "big"}, {"seed": -1}, {"gain": True}])
    def test_options(self, bad):
        self.refuse(mlp(), match=next(iter(bad)), **bad)

    def test_tied_weights(self):
        class Language(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(7, 8)
                self.out = nn.Linear(8, 7, bias=False)
                self.out.weight = self.embedding.weight

        self.refuse(Language(), "out", match=r"out\.weight is tied: embedding\.weight")
        # Two parameters in one memory, all of it and a part.
        for part in (slice(None), slice(3, 4)):
            model = nn.Sequential(nn.Linear(4, 8), nn.Linear(4, 8))
            model[1].weight = nn.Parameter(model[0].weight.detach()[part])
            self.refuse(model, match=r"0\.weight is tied: 1\.weight")
        # Two names of one module, and a buffer.
        layer = nn.Linear(4, 8)
        self.refuse(nn.Sequential(layer, layer), match=r"0\.weight is tied: 1\.weight")
        model = nn.Sequential(nn.Linear(4, 8))
        model.register_buffer("shadow", model[0].weight.detach())
        self.refuse(model, match="tied: shadow")

    def test_neighbours_in_one_storage_are_not_tied(self):
        flat = torch.randn(64)
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(4, 8, bias=False))
        for layer, values in zip(model, flat.split(32), strict=True):
            layer.weight = nn.Parameter(values.view(8, 4))
        before = model[1].weight.detach().clone()
        lock_to_etf(model, "0")
        assert torch.equal(model[1].weight, before)

    def test_wrapped_models(self):
        self.refuse(nn.DataParallel(mlp()), "module.0", match="wrapped by DataParallel; work on model.module")
        self.refuse(torch.compile(mlp(), backend="eager"), "_orig_mod.0", match="wrapped by OptimizedModule")
        inner = nn.ModuleDict({"net": nn.DataParallel(mlp()), "free": mlp()})
        self.refuse(inner, "net.module.0", match="'net' is wrapped by DataParallel")
        assert lock_to_etf(inner, "free.0").changed
        for name in ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"):
            wrapper = type(name, (nn.Sequential,), {})
            self.refuse(wrapper(nn.Linear(4, 8)), match=f"wrapped by {name}")

    def test_weights_that_are_computed(self):
        model = mlp()
        parametrize.register_parametrization(model[0], "weight", nn.Identity())
        self.refuse(model, match="'0' is computed by a parametrization")
        for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal):
            model = mlp()
            wrap(model[0])
            self.refuse(model, match="parametrization")
        pruned = mlp()
        prune.l1_unstructured(pruned[0], "weight", 0.5)
        self.refuse(pruned, match="pruning")

    def test_layers_of_another_kind(self):
        self.refuse(nn.Sequential(ETFLinear(4, 8)), match="ETFLinear, whose weight is fixed")
        self.refuse(nn.Sequential(SimplexETFClassifier(4, 3)), match="got SimplexETFClassifier")
        self.refuse(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), match="groups=2")
        self.refuse(nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), match="got ConvTranspose2d")
        self.refuse(nn.Sequential(nn.Embedding(4, 4)), match="got Embedding")

    def test_weights_without_values_or_of_another_type(self):
        self.refuse(nn.Sequential(nn.Linear(4, 8, device="meta")), error=DeviceError, match="no values yet")
        lazy = nn.Sequential(nn.LazyLinear(8))
        with pytest.raises(DeviceError, match="no values yet"):
            lock_to_etf(lazy, "0")
        model = nn.Sequential(nn.Linear(4, 8))
        model[0].weight = nn.Parameter(torch.ones(8, 4, dtype=torch.int8), requires_grad=False)
        self.refuse(model, error=DtypeError, match="torch.int8: it is quantised")

        class Packed(nn.Parameter):
            pass

        model[0].weight = Packed(torch.ones(8, 4))
        self.refuse(model, error=DtypeError, match="plain tensor, got Packed")
        model = mlp()
        model[0].weight.data[1, 1] = torch.nan
        self.refuse(model, error=NonFiniteError, match="weight of layer '0'")
        self.refuse(model, error=NonFiniteError, match="weight of layer '0'", kind="haar")
