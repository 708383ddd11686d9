from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError, EmptyDataError, ShapeError
from tightframe.functional import nearest_class_center
from tightframe.moments import ClassMoments
from tightframe.probing import Probe
from tightframe.surgery import TruncatedModel, nearest_class_mean_linear, truncate


class Net(nn.Module):
    """Four linear maps in a module that is no nn.Sequential, with something of its own after each."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(8, 8)
        self.c = nn.Linear(8, 8)
        self.d = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8))
        self.calls = []

    def forward(self, x, shift=0.0):
        for name in "abc":
            x = torch.relu(getattr(self, name)(x)) * self.scale + shift
            self.calls.append(name)
        return self.d(x)


class Block(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 12)
        self.down = nn.Linear(12, dim)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def cnn():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    return nn.Sequential(features, nn.Sequential(nn.Flatten(), nn.Linear(6, 3))).eval()


def net():
    torch.manual_seed(0)
    return Net().eval()


def blocks():
    torch.manual_seed(0)
    return nn.ModuleDict({"x": nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.Linear(8, 3))})["x"].eval()


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=not layer.norm_first).eval()


def head(width):
    torch.manual_seed(1)
    return nn.Linear(width, 3)


def count(module):
    return sum(p.numel() for p in module.parameters())


x4 = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
x8 = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(3))
images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class TestRepresentation:
    @pytest.mark.parametrize("layer", ["0", "3", "6"])
    def test_of_a_sequential(self, layer):
        model = mlp()
        classifier = head(8 if layer != "6" else 3)
        index = int(layer)
        pre = truncate(model, layer, classifier, x4, tap="pre")
        torch.testing.assert_close(pre(x4), classifier(model[: index + 1](x4)))
        post = truncate(model, layer, classifier, x4)
        end = {"0": 3, "3": 6, "6": 7}[layer]
        torch.testing.assert_close(post(x4), classifier(model[:end](x4)))
        assert len(pre.trunk) == index + 1
        assert len(post.trunk) == end

    @pytest.mark.parametrize("name", ["a", "b", "c"])
    def test_of_any_module(self, name):
        model, classifier = net(), head(8)
        h = x4
        for other in "abc"["abc".index("a") : "abc".index(name)]:
            h = torch.relu(getattr(model, other)(h))
        pre = getattr(model, name)(h)
        torch.testing.assert_close(truncate(model, name, classifier, x4, tap="pre")(x4), classifier(pre))
        torch.testing.assert_close(truncate(model, name, classifier, x4)(x4), classifier(torch.relu(pre)))

    def test_of_convolutions(self):
        model = cnn()
        features, (_, last) = model
        cases = {
            ("0.0", "pre"): features[:1],
            ("0.0", "post"): features[:3],
            ("0.3", "pre"): features[:4],
            ("0.3", "post"): nn.Sequential(features, nn.Flatten()),
            ("1.1", "post"): model,
        }
        for (layer, tap), part in cases.items():
            wanted = part(images)
            linear = head(wanted[0].numel())
            truncated = truncate(model, layer, nn.Sequential(nn.Flatten(), linear), images, tap=tap)
            torch.testing.assert_close(truncated(images), linear(wanted.flatten(1)))
            assert not truncated.stops
        assert last.weight.shape == (3, 6)

    def test_inside_a_block_and_after_it(self):
        model, classifier = blocks(), head(8)
        h = model[0](x4)
        up = model[1].up(model[1].norm(h))
        torch.testing.assert_close(truncate(model, "1.up", head(12), x4, tap="pre")(x4), head(12)(up))
        torch.testing.assert_close(truncate(model, "1.up", head(12), x4)(x4), head(12)(up.relu()))
        after = model[1](h)
        # After the whole block: what it returns, and what the next linear layer receives, which has been normed.
        torch.testing.assert_close(truncate(model, "1", classifier, x4, tap="pre")(x4), classifier(after))
        torch.testing.assert_close(truncate(model, "1", classifier, x4)(x4), classifier(model[2].norm(after)))
        torch.testing.assert_close(truncate(model, "1.down", classifier, x4)(x4), classifier(model[2].norm(after)))

    def test_of_pytorchs_encoder_in_both_modes(self):
        for norm_first in (False, True):
            model, classifier = encoder(norm_first=norm_first), head(8)
            with torch.no_grad():
                first = model.layers[0](x8)
                pre = truncate(model, "layers.0", classifier, x8, tap="pre")
                torch.testing.assert_close(pre(x8), classifier(first), rtol=1e-5, atol=1e-5)
                assert count(pre.trunk) == count(model.layers[0])
                post = truncate(model, "layers.0", classifier, x8)
                for mode in (True, False):
                    layer = copy.deepcopy(model.layers[1])
                    seen = []
                    layer.linear1.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
                    layer(first)
                    torch.testing.assert_close(post.train(mode)(x8), classifier(seen[0]), rtol=1e-5, atol=1e-5)
            assert isinstance(post.trunk.layers[2], type(post.trunk.layers[1].linear1))  # both are cut off
            assert count(post.trunk) < count(model.layers[0]) + count(model.layers[1]) - 8 * 12

    @pytest.mark.parametrize("tap", ["pre", "post"])
    @pytest.mark.parametrize(
        ("build", "layers"),
        [
            ("mlp", None),
            ("net", ["a", "c", "d"]),
            ("cnn", None),
            ("blocks", None),
            ("blocks", ["[12]"]),
            ("encoder", None),
            ("encoder", ["layers.*"]),
        ],
        ids=str,
    )
    def test_is_what_a_probe_sees(self, build, layers, tap):
        model = {"mlp": mlp, "net": net, "cnn": cnn, "blocks": blocks, "encoder": encoder}[build]()
        x = {"cnn": images, "encoder": x8}.get(build, x4)
        with torch.no_grad(), Probe(model, layers, tap=tap) as probe:
            model(x)
            features = probe.take()
        assert features
        for name, wanted in features.items():
            truncated = truncate(model, name, nn.Flatten(), x, tap=tap, layers=layers)
            with torch.no_grad():
                torch.testing.assert_close(truncated(x), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("layer", ["layers.0", "layers.1", "layers.0.linear1"])
    @pytest.mark.parametrize("tap", ["pre", "post"])
    def test_of_pytorchs_encoder_with_padding(self, layer, tap):
        model = encoder()
        mask = torch.arange(6) >= torch.tensor([[6], [3], [2], [4], [1]])
        inputs = {"src": x8, "src_key_padding_mask": mask}
        truncated = truncate(model, layer, nn.Identity(), inputs, tap=tap)
        alone = truncate(model, layer, nn.Identity(), x8[1:2, :3], tap=tap)
        with torch.no_grad():  # where PyTorch makes nested tensors of padded ones
            found = truncated(**inputs)
            assert not found.is_nested
            torch.testing.assert_close(found[1, :3], alone(x8[1:2, :3])[0], rtol=1e-4, atol=1e-4)
        assert model.use_nested_tensor

    def test_of_keyword_and_of_several_arguments(self):
        model, classifier = net(), head(8)
        wanted = classifier(torch.relu(model.a(x4)) + 2.0)
        truncated = truncate(model, "a", classifier, {"x": x4, "shift": 1.0})
        torch.testing.assert_close(truncated(x4, shift=2.0), wanted)
        torch.testing.assert_close(truncate(model, "a", classifier, (x4, 1.0))(x4, 2.0), wanted)

    def test_of_a_tuple(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.GRU(8, 8, batch_first=True)
                self.out = nn.Linear(8, 3)

            def forward(self, x):
                return self.out(self.rnn(x)[0][:, -1])

        model = Recurrent().eval()
        truncated = truncate(model, "rnn", nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), x8, tap="pre")
        assert truncated(x8).shape == (5, 3)
        torch.testing.assert_close(truncated.representation(x8), model.rnn(x8)[0])

    def test_before_something_works_in_place(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).eval()
        truncated = truncate(model, "0", head(8), x4, tap="pre")
        torch.testing.assert_close(truncated.representation(x4), model[0](x4))


class TestSavings:
    def test_what_does_not_run_is_gone(self):
        model = net()
        truncated = truncate(model, "a", head(8), x4)
        assert [n for n, _ in truncated.named_parameters()] == [
            "trunk.scale",
            "trunk.a.weight",
            "trunk.a.bias",
            "classifier.weight",
            "classifier.bias",
        ]
        truncated.trunk.calls.clear()
        truncated(x4)
        assert truncated.trunk.calls == ["a"]

    def test_the_model_stays_and_shares_nothing(self):
        for build, layer, tap in (
            (net, "b", "post"),
            (net, "b", "pre"),
            (mlp, "3", "post"),
            (encoder, "layers.0", "pre"),
        ):
            model, x = build(), x8 if build is encoder else x4
            model.train()
            modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
            modes = [module.training for module in modules]
            next(model.children()).training = False
            modes[1] = False
            truncated = truncate(model, layer, head(8), x, tap=tap)
            assert list(model.modules()) == modules
            assert [module.training for module in modules] == modes
            assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
            own = {p.data_ptr() for p in model.parameters()}
            assert not own & {p.data_ptr() for p in truncated.trunk.parameters()}
            assert truncated.training
            assert truncated.trunk.training
            assert not next(truncated.trunk.children()).training
            assert not truncate(model.eval(), layer, head(8), x, tap=tap).training
            assert torch.backends.mha.get_fastpath_enabled()

    @pytest.mark.parametrize("tap", ["pre", "post"])
    def test_a_sequential_inside_of_something_else(self, tap):
        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.last = mlp(), nn.Linear(3, 3)

            def forward(self, x):
                return self.last(self.body(x) + 1)

        model = Outer().eval()
        truncated = truncate(model, "body.3", head(8), x4, tap=tap)
        end = {"pre": 4, "post": 6}[tap]
        torch.testing.assert_close(truncated.representation(x4), model.body[:end](x4))
        assert count(truncated.trunk) == count(model.body[:end])
        whole = truncate(model, "body.6", head(3), x4, tap="post")  # what the last layer receives: the sum with one
        torch.testing.assert_close(whole.representation(x4), model.body(x4) + 1)

    def test_containers_that_do_not_run_themselves(self):
        class Stages(nn.Module):
            def __init__(self):
                super().__init__()
                self.stages = nn.ModuleList([nn.ModuleDict({"f": nn.Linear(8, 8)}) for _ in range(3)])

            def forward(self, x):
                for stage in self.stages:
                    x = stage["f"](x).relu()
                return x

        truncated = truncate(Stages(), "stages.1.f", head(8), torch.ones(1, 8))
        assert [n for n, _ in truncated.trunk.named_parameters()] == [
            f"stages.{i}.f.{p}" for i in (0, 1) for p in ("weight", "bias")
        ]

    def test_what_is_used_without_being_run_is_kept(self):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.mix = nn.Linear(4, 4)
                self.gate = nn.Linear(4, 4, bias=False)
                self.out = nn.Linear(4, 3)

            def forward(self, x):
                return self.out(self.mix(x) @ self.gate.weight)

        model = Functional()
        truncated = truncate(model, "mix", head(4), x4)
        torch.testing.assert_close(truncated.representation(x4), model.mix(x4) @ model.gate.weight)
        assert [n for n, _ in truncated.trunk.named_parameters()] == ["mix.weight", "mix.bias", "gate.weight"]

        class Silent(Functional):
            def forward(self, x):
                return self.out(self.mix(x) + sum(p.sum() for p in self.gate.parameters()))

        with pytest.raises(ArgumentError, match="uses modules without running them"):
            truncate(Silent(), "mix", head(4), x4)

    def test_a_model_may_catch_exceptions(self):
        class Careful(Net):
            def forward(self, x):
                try:
                    return super().forward(x)
                except Exception:
                    return None

        torch.testing.assert_close(truncate(Careful().eval(), "a", head(8), x4).representation(x4).shape, (5, 8))


class TestModule:
    @pytest.mark.parametrize("build", [net, mlp])
    def test_state_goes_into_another_one(self, build):
        layer = "b" if build is net else "3"
        truncated = truncate(build(), layer, head(8), x4)
        with torch.no_grad():
            for p in truncated.parameters():
                p.add_(0.1)
        file = io.BytesIO()
        torch.save(truncated.state_dict(), file)
        file.seek(0)
        other = truncate(build(), layer, head(8), x4)
        other.load_state_dict(torch.load(file))
        torch.testing.assert_close(other(x4), truncated(x4), rtol=0, atol=0)

    @pytest.mark.parametrize("tap", ["pre", "post"])
    @pytest.mark.parametrize("build", [net, mlp])
    def test_it_pickles_copies_and_moves(self, build, tap):
        truncated = truncate(build(), "b" if build is net else "3", head(8), x4, tap=tap)
        wanted = truncated(x4)
        file = io.BytesIO()
        torch.save(truncated, file)
        file.seek(0)
        for twin in (copy.deepcopy(truncated), torch.load(file, weights_only=False)):
            assert isinstance(twin, TruncatedModel)
            torch.testing.assert_close(twin(x4), wanted, rtol=0, atol=0)
        wide = truncated.to(torch.float64)
        torch.testing.assert_close(wide(x4.double()).float(), wanted, rtol=1e-4, atol=1e-5)
        assert wide.to("meta")(x4.to("meta", torch.float64)).shape == (5, 3)

    @pytest.mark.parametrize("build", [net, mlp])
    def test_it_trains(self, build):
        truncated = truncate(build(), "b" if build is net else "3", head(8), x4).train()
        optimizer = torch.optim.SGD(truncated.parameters(), lr=0.5)
        y = torch.tensor([0, 1, 2, 0, 1])
        before = [p.detach().clone() for p in truncated.parameters()]
        nn.functional.cross_entropy(truncated(x4), y).backward()
        optimizer.step()
        for p, start in zip(truncated.parameters(), before, strict=True):
            assert torch.equal(p, start - 0.5 * p.grad)
            assert p.grad.any()

    @pytest.mark.parametrize(("build", "layer"), [(net, "b"), (mlp, "3"), (blocks, "1.up"), (cnn, "0.0")])
    def test_it_compiles_without_a_break(self, build, layer):
        x = images if build is cnn else x4
        model = build()
        width = {"b": 8, "3": 8, "1.up": 12, "0.0": 36}[layer]
        truncated = truncate(model, layer, nn.Sequential(nn.Flatten(), head(width)), x)
        torch._dynamo.reset()
        compiled = torch.compile(truncated, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), truncated(x))

    def test_what_training_needs_beside(self):
        class Auxiliary(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.aux, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

            def forward(self, x):
                h = self.a(x)
                if self.training:
                    self.aux(h)
                return self.b(h)

        truncated = truncate(Auxiliary(), "a", head(8), x4)
        assert truncated.eval()(x4).shape == (5, 3)
        with pytest.raises(ArgumentError, match="'aux' was cut off"):
            truncated.train()(x4)
        with pytest.raises(AttributeError, match="no 'weight': 'aux' was cut off"):
            _ = truncated.trunk.aux.weight

    def test_a_run_that_does_not_come_by(self):
        class Switch(Net):
            def forward(self, x):
                return super().forward(x) if x.shape[0] > 1 else x

        truncated = truncate(Switch().eval(), "a", head(8), x4)
        with pytest.raises(ArgumentError, match="ran to its end without the layer"):
            truncated(x4[:1])


class TestRefusals:
    def test_arguments(self):
        with pytest.raises(ArgumentError, match="tap"):
            truncate(net(), "a", head(8), x4, tap="middle")
        with pytest.raises(ArgumentError, match="no module 'e'"):
            truncate(net(), "e", head(8), x4)
        with pytest.raises(ArgumentError, match="inside the model"):
            truncate(net(), "", head(8), x4)
        with pytest.raises(ArgumentError, match="got 'z'"):
            truncate(net(), "a", head(8), x4, layers=["z"])

    def test_layers_that_do_not_run_once(self):
        model = net()
        model.add_module("idle", nn.Linear(3, 3))
        with pytest.raises(ArgumentError, match="'idle' must run once in a forward pass, it ran 0 times"):
            truncate(model, "idle", head(3), x4)
        shared = nn.Linear(4, 4)
        twice = nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), shared)
        with pytest.raises(ArgumentError, match="it ran 2 times"):
            truncate(twice, "0", head(4), x4)
        with pytest.raises(ArgumentError, match="what runs after layer '2' ran before it too"):
            truncate(twice, "2", head(4), x4)
        assert truncate(twice, "2", head(4), x4, tap="pre")(x4).shape == (5, 3)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *twice.modules()))

    def test_wrapped_compiled_and_truncated_models(self):
        with pytest.raises(ArgumentError, match="wrapped by DataParallel"):
            truncate(nn.DataParallel(net()), "module.a", head(8), x4)
        with pytest.raises(ArgumentError, match="wrapped by OptimizedModule"):
            truncate(nn.Sequential(torch.compile(net(), backend="eager")), "0._orig_mod.a", head(8), x4)
        model = net()
        model.b.compile(backend="eager")
        with pytest.raises(ArgumentError, match="'b' is compiled"):
            truncate(model, "a", head(8), x4)
        with pytest.raises(ArgumentError, match="truncated already"):
            truncate(truncate(net(), "b", head(8), x4), "trunk.a", head(8), x4)

    def test_classifiers_of_another_width(self):
        for model in (mlp(), net()):
            with pytest.raises(ShapeError, match=r"does not take the representation after .*\(5, 8\)"):
                truncate(model, "3" if isinstance(model, nn.Sequential) else "a", head(9), x4)
        with pytest.raises(ShapeError, match=r"\(5, 4, 3, 3\)"):
            truncate(cnn(), "0.0", head(36), images)

    def test_random_models(self):
        class Noisy(Net):
            def forward(self, x):
                return super().forward(x + torch.randn_like(x))

        with pytest.raises(ArgumentError, match="random in eval mode"):
            truncate(Noisy().eval(), "a", head(8), x4)

    def test_errors_of_the_model_are_its_own(self):
        model = net()
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            truncate(model, "a", head(8), torch.ones(1, 5))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TestNearestClassMean:
    def test_decides_as_the_nearest_mean(self):
        generator = torch.Generator().manual_seed(0)
        h, y = torch.randn(200, 6, generator=generator), torch.randint(7, (200,), generator=generator)
        y[y == 4] = 2  # class 4 is absent
        moments = ClassMoments.from_samples(h + 3, y, 7)
        linear = nearest_class_mean_linear(moments)
        new = 3 + 2 * torch.randn(1000, 6, generator=generator)
        assert torch.equal(linear(new).argmax(dim=1), nearest_class_center(new, moments))
        torch.testing.assert_close(linear.weight.detach(), moments.mean.float())
        torch.testing.assert_close(linear.bias.detach()[0], -moments.mean[0].square().sum().float() / 2)

    def test_an_absent_class_is_never_predicted_and_does_not_spoil_training(self):
        moments = ClassMoments.from_samples(torch.randn(10, 3), torch.arange(10) % 2, 4)
        linear = nearest_class_mean_linear(moments)
        optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(linear(torch.randn(8, 3)), torch.arange(8) % 2).backward()
            optimizer.step()
        assert all(torch.isfinite(p).all() for p in linear.parameters())
        assert linear(100 * torch.randn(100, 3)).argmax(dim=1).max() < 2

    def test_truncation_with_it_is_the_nearest_class_mean_there(self):
        model, y = mlp(), torch.tensor([0, 1, 2, 0, 1])
        h = model[:3](x4)
        moments = ClassMoments.from_samples(h.detach(), y, 3)
        truncated = truncate(model, "0", nearest_class_mean_linear(moments), x4)
        assert torch.equal(truncated(x4).argmax(dim=1), nearest_class_center(h, moments))

    def test_nothing_seen(self):
        with pytest.raises(EmptyDataError):
            nearest_class_mean_linear(ClassMoments(3, 2))
